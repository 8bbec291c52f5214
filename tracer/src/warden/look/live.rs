//! Looks while probes are attached: at everything once at the start, since waits that began before were seen by no probe;
//! then at those processes in which an operation has lasted long, or something found earlier is still in progress.

use super::{Looks, Opener, PATIENCE, one::Target, unreturned::unreturned};
use crate::{
    event::{Body, Event, Kind, Ns, Operation, OperationId, Role},
    look,
    node::{alive, clock, contained::Outside},
    thresholds::SECOND,
    warden::{
        Settings,
        causes::waits_for_disk,
        child::{Known, Shared, lock},
        outbox::Outbox,
        protocol::Level,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

/// How often there may be something to do.
const EVERY: Duration = Duration::from_millis(250);
/// The same while nothing is in flight and nothing was found.
const REST: Duration = Duration::from_secs(2);
/// An operation of this age is looked at, and again whenever its age has doubled.
const OLD: Ns = 2 * SECOND;
/// The same for the handling of an exit, most of which no probe sees: an exit takes a tenth of a second.
const OLD_EXIT: Ns = SECOND * 2 / 5;
/// Where programs are not probed, containerd and the kubelet are looked at this often: nothing else tells of a call that is
/// stuck there. NotReady takes nine times as long.
const PATROL: Ns = 20 * SECOND;
/// What a look has found in progress is looked at again after this time.
const AGAIN: Ns = SECOND;
/// Where probes follow all of that, a look tells only where it sits: after twice the time each time, up to this.
const SELDOM: Ns = 4 * SECOND;
/// When the kernel is done with something that had lasted long, what waited for it is about to be over: for this time after
/// that, what was told is looked at as often as something new. A call that was given up is no such sign: while a node is stuck
/// there is one every few seconds.
const RECOVERS: Ns = 2 * SECOND;
/// Something new that a look has found is told once another has found it, after this time.
const CONFIRM: Ns = SECOND / 5;
/// Processes looked at in one second at most.
const MOST_A_SECOND: usize = 16;
/// All looks of one round end by then; the first one at all processes may take as long.
const ROUND: Duration = Duration::from_secs(2);
/// Notes that are told.
const MOST_NOTED: usize = 64;
/// Operations that wait for being forgotten, at most; the others are found again by a later look.
const MOST_UNRETURNED: usize = 4096;
/// Looks of which the own cost is told.
const TOLD_EVERY: u32 = 240;

/// Looks until the process ends.
pub fn run(settings: &Settings, outbox: &Outbox, shared: &Shared) {
    let mut live = Live {
        outside: Outside::find(settings.also.clone()),
        also: settings.also.clone(),
        outbox: outbox.clone(),
        looks: Looks::new(PATIENCE),
        found: look::Looks::default(),
        turns: BTreeMap::new(),
        ages: Ages::default(),
        recovers_until: 0,
        noted: BTreeSet::new(),
        queue: VecDeque::new(),
        budget: Budget { left: MOST_A_SECOND, since: clock::monotonic() },
        patrol: settings.patrol,
    };
    while !shared.surveyed.load(Ordering::Acquire) {
        std::thread::sleep(EVERY);
    }
    let mut rounds = 0u32;
    let all: Vec<u32> = known(shared).into_keys().collect();
    live.round(all, shared);
    loop {
        shared.rest(EVERY, if live.has_work() { EVERY } else { REST });
        let known = known(shared);
        live.forget(&known, shared);
        let mut blocked = lock(&shared.in_flight).clone();
        blocked.sort_by_key(|o| o.begin);
        live.want(&blocked, shared, &known);
        let now = live.budget.take(&mut live.queue, clock::monotonic());
        if !now.is_empty() {
            live.round(now, shared);
            // Now, and not after a rest: what is kept is locked memory.
            live.forget(&known, shared);
            rounds += 1;
            if rounds.is_multiple_of(TOLD_EVERY) {
                let spent = live.looks.spent.load(Ordering::Relaxed) / 1_000_000;
                outbox.log(Level::Debug, format!("{rounds} rounds of looks have taken {spent} ms of CPU"));
            }
        }
    }
}

fn known(shared: &Shared) -> BTreeMap<u32, Known> {
    shared.known.read().unwrap_or_else(PoisonError::into_inner).clone()
}

struct Live {
    outside: Outside,
    also: Vec<u32>,
    outbox: Outbox,
    looks: Looks,
    /// What has been found so far.
    found: look::Looks,
    /// When each process was looked at last, and after what time it is again as long as something is in progress there.
    turns: BTreeMap<u32, (Ns, Ns)>,
    ages: Ages,
    /// Until then what was found is looked at more often.
    recovers_until: Ns,
    /// Processes that are to be looked at, the most important first.
    queue: VecDeque<u32>,
    budget: Budget,
    /// What makes looks weaker than they could be, as far as it was told.
    noted: BTreeSet<String>,
    /// Whether daemons are looked at also when nothing is known to be blocked in them.
    patrol: bool,
}

impl Live {
    /// Whether something may be due that no operation in flight tells of.
    fn has_work(&self) -> bool {
        let found = self.turns.keys().any(|pid| self.found.has(*pid));
        found || !self.queue.is_empty() || !self.ages.next.is_empty()
    }

    /// Processes that have ended are forgotten; and all programs while there is nothing to look at: their tables are large,
    /// and what is touched of them stays in memory, which is locked.
    fn forget(&mut self, known: &BTreeMap<u32, Known>, shared: &Shared) {
        self.found.retain(|pid| known.contains_key(&pid));
        self.turns.retain(|pid, _| known.contains_key(pid));
        lock(&shared.found).retain(|pid, _| known.contains_key(pid));
        self.queue.retain(|pid| known.contains_key(pid));
        let running: BTreeSet<_> = known.values().map(|known| known.exe).collect();
        let watching = !self.queue.is_empty() || known.keys().any(|pid| self.found.has(*pid));
        self.looks.lock().retain(|id, _| watching && running.contains(id));
    }

    /// Notes what is worth a look.
    fn want(&mut self, blocked: &[Operation], shared: &Shared, known: &BTreeMap<u32, Known>) {
        let now = clock::monotonic();
        let mut wanted = Vec::new();
        // Of what the kernel does itself, the memory of a Go program tells nothing; but where programs have no probes, nothing
        // else tells that one of their threads does it.
        let ours = |operation: &Operation| self.patrol && known.contains_key(&operation.actor.pid);
        let mut latest = 0;
        for (operation, since) in self.ages.due(blocked, now, ours) {
            let shim = operation.container.as_ref().and_then(|id| lock(&shared.shims).get(id).copied());
            let pids = [Some(operation.actor.pid), shim].into_iter().flatten();
            wanted.extend(pids.filter(|pid| !self.was_looked_at(*pid, since)));
            latest = latest.max(since);
        }
        // What is found next may be followed by nobody.
        for pid in &wanted {
            self.turns.entry(*pid).and_modify(|(_, after)| *after = AGAIN);
        }
        if self.ages.over {
            self.recovers_until = now + RECOVERS;
        }
        if self.patrol {
            let daemons = known.iter().filter(|(_, k)| k.process.role != Role::Shim).map(|(pid, _)| *pid);
            // Who waits for what is blocked waits in a daemon.
            let since = latest.max(now.saturating_sub(PATROL));
            wanted.extend(daemons.filter(|pid| !self.was_looked_at(*pid, since)));
        }
        let recovers = now < self.recovers_until;
        let late = |pid: &&u32| {
            let soon = recovers && self.found.has_told(**pid);
            let due = |(at, after): &(Ns, Ns)| now.saturating_sub(*at) >= if soon { CONFIRM } else { *after };
            self.found.has(**pid) && self.turns.get(pid).is_none_or(due)
        };
        wanted.extend(known.keys().filter(late));
        for pid in wanted {
            if known.contains_key(&pid) && !self.queue.contains(&pid) {
                self.queue.push_back(pid);
            }
        }
    }

    fn was_looked_at(&self, pid: u32, since: Ns) -> bool {
        self.turns.get(&pid).is_some_and(|(at, _)| *at >= since)
    }

    /// Looks at these processes, and tells what follows.
    fn round(&mut self, pids: Vec<u32>, shared: &Shared) {
        let end = Instant::now() + ROUND;
        let mut processes: Vec<Known> = pids.iter().filter_map(|pid| shared.get(*pid)).collect();
        // Daemons first; otherwise in the order they were asked for.
        processes.sort_by_key(|known| known.process.role == Role::Shim);
        let mut running: BTreeMap<_, Vec<(u32, String)>> = BTreeMap::new();
        for known in &processes {
            let process = (known.process.pid, known.process.comm.clone());
            running.entry(known.exe).or_default().push(process);
        }
        let opener = |processes: Vec<(u32, String)>| -> Opener {
            let outside = self.outside.clone();
            Box::new(move || outside.open(&processes))
        };
        let openers = running.into_iter().map(|(id, processes)| (id, opener(processes))).collect();
        self.looks.read(openers, !self.also.is_empty(), end);
        let target = |known: Known| {
            let program = match self.looks.program(known.exe) {
                Some(Ok(Some(program))) => Ok(program),
                Some(Ok(None)) => return None,
                Some(Err(why)) => Err(why),
                None => Err("there are too many programs".into()),
            };
            Some(Target { process: known.process, program })
        };
        let targets: Vec<Target> = processes.into_iter().filter_map(target).collect();
        let (found, outbox, turns) = (&mut self.found, &self.outbox, &mut self.turns);
        let noted = &mut self.noted;
        let (patrol, mut called) = (self.patrol, Vec::new());
        let blocked = lock(&shared.in_flight).clone();
        self.looks.look(targets, end, |target, result| {
            let pid = target.process.pid;
            let before = turns.get(&pid).map(|(_, after)| *after);
            turns.insert(pid, (clock::monotonic(), AGAIN));
            match result {
                // It may have ended meanwhile, and the correlator have been told.
                Ok(looked)
                    if shared.get(pid).is_some_and(|k| k.process.started == looked.process.started) =>
                {
                    let events: Vec<Event> = found.events(&looked);
                    let followed = are_followed(&events, &blocked);
                    let after = after(before, found.has_new(pid), followed);
                    turns.insert(pid, (clock::monotonic(), after));
                    let waiting = |event: &Event| match &event.body {
                        Body::InFlight(op) if waits_for_disk(op.kind) => Some(op.clone()),
                        _ => None,
                    };
                    lock(&shared.found).insert(pid, events.iter().filter_map(waiting).collect());
                    if patrol {
                        called.extend(events.iter().filter_map(|event| called_shim(event, shared)));
                    }
                    outbox.events(events);
                    if let Ok(look) = &looked.look
                        && !look.note.is_empty()
                        && noted.len() < MOST_NOTED
                        // Of a process that has ended meanwhile there is nothing to say.
                        && alive::alive_since(pid).is_some()
                        && noted.insert(look.note.clone())
                    {
                        let text = format!("look at {} {pid}: {}", looked.process.comm, look.note);
                        outbox.log(Level::Warning, text);
                    }
                    let over = unreturned(&looked, &blocked);
                    if !over.is_empty() {
                        outbox.log(Level::Debug, format!("left without returning: {over:?}"));
                        let mut waiting = lock(&shared.unreturned);
                        let room = MOST_UNRETURNED.saturating_sub(waiting.len());
                        waiting.extend(over.into_iter().take(room));
                    }
                    if let Err(why) = &looked.look {
                        outbox.log(Level::Debug, format!("process {pid} could not be looked at: {why}"));
                    }
                }
                Ok(_) => {}
                Err(why) => outbox.log(Level::Debug, format!("process {pid} was not looked at: {why}")),
            }
        });
        for pid in called {
            if !self.found.has(pid) && !self.queue.contains(&pid) {
                self.queue.push_back(pid);
            }
        }
    }
}

/// After what time a process is looked at again in which something is in progress; `before` it was after that time, `new` is
/// whether something was found that was not there, `followed` whether probes tell the end of all that was there before.
fn after(before: Option<Ns>, new: bool, followed: bool) -> Ns {
    match before {
        // A busy program is found in the middle of something else each time.
        Some(CONFIRM) if new && followed => AGAIN,
        _ if new => CONFIRM,
        Some(before) if followed => before.saturating_mul(2).clamp(AGAIN, SELDOM),
        _ => AGAIN,
    }
}

/// Whether a look has found operations again, and probes tell of all of these, too.
fn are_followed(events: &[Event], in_flight: &[Operation]) -> bool {
    let whose = |o: &Operation| {
        let (actor, kind) = (o.actor, o.kind);
        let (g, tid) =
            (actor.g.map(|g| (false, g)), (actor.tid != 0).then_some((true, u64::from(actor.tid))));
        g.into_iter().chain(tid).map(move |who| (actor.pid, kind, who))
    };
    let followed: BTreeSet<_> = in_flight.iter().flat_map(whose).collect();
    let mut found = events.iter().filter_map(|event| match &event.body {
        Body::InFlight(operation) => Some(operation),
        _ => None,
    });
    let is_followed = |operation| whose(operation).any(|one| followed.contains(&one));
    found.next().is_some_and(is_followed) && found.all(is_followed)
}

/// The age at which each operation is looked at next. Whether its holder and what it ends in are known is for the correlator
/// to say, which is in the other process; so all that last long are looked at, ever more seldom.
#[derive(Default)]
struct Ages {
    next: BTreeMap<OperationId, Ns>,
    /// Whether one that was looked at, and that the kernel did, is over since it was asked last.
    over: bool,
}

impl Ages {
    /// Those of all operations in flight that are to be looked at now, each unless that was done since the time beside it, which
    /// is of half its age: so what begins each second does not have a daemon looked at each second for each of them. What the
    /// kernel does itself is there only if it is `ours`.
    fn due<'o>(
        &mut self,
        in_flight: &'o [Operation],
        now: Ns,
        ours: impl Fn(&Operation) -> bool,
    ) -> Vec<(&'o Operation, Ns)> {
        let by_kernel = |kind: Kind| matches!(kind, Kind::Sync | Kind::SuperShutdown);
        let ids: BTreeSet<OperationId> = in_flight.iter().map(Operation::id).collect();
        let mut over = false;
        self.next.retain(|id, due| {
            let lasts = ids.contains(id);
            over |= !lasts && *due > OLD && (id.kind == Kind::Unmount || by_kernel(id.kind));
            lasts
        });
        self.over = over;
        let told = |o: &&Operation| o.kind != Kind::Stalled && (!by_kernel(o.kind) || ours(o));
        let mut if_due = |operation: &'o Operation| {
            let age = now.saturating_sub(operation.begin);
            let old = if operation.kind == Kind::ExitHandling { OLD_EXIT } else { OLD };
            let due = self.next.entry(operation.id()).or_insert(old);
            if age < *due {
                return None;
            }
            *due = age.saturating_mul(2);
            Some((operation, now.saturating_sub(age / 2)))
        };
        in_flight.iter().filter(told).filter_map(&mut if_due).collect()
    }
}

/// The shim that a call which is in progress waits for.
fn called_shim(event: &Event, shared: &Shared) -> Option<u32> {
    let Body::InFlight(operation) = &event.body else { return None };
    let id = operation.container.as_ref().filter(|_| operation.kind == Kind::ShimCall)?;
    lock(&shared.shims).get(id).copied()
}

/// How many processes may still be looked at in this second.
struct Budget {
    left: usize,
    since: Ns,
}

impl Budget {
    fn take(&mut self, queue: &mut VecDeque<u32>, now: Ns) -> Vec<u32> {
        if now.saturating_sub(self.since) >= SECOND {
            *self = Budget { left: MOST_A_SECOND, since: now };
        }
        let taken: Vec<u32> = queue.drain(..queue.len().min(self.left)).collect();
        self.left -= taken.len();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Actor, Began, SeenBy};

    fn operation(kind: Kind, begin: Ns) -> Operation {
        Operation {
            kind,
            method: String::new(),
            actor: Actor { pid: 7, tid: 8, g: None, goid: None },
            begin,
            began: Began::Then,
            object: 0,
            container: None,
            path: None,
            device: None,
            fs_type: None,
            seen_by: SeenBy::Uprobe,
        }
    }

    #[test]
    fn what_lasts_is_looked_at_once_it_is_old_and_then_ever_more_seldom() {
        let mut ages = Ages::default();
        let blocked = [operation(Kind::CriCall, 0), operation(Kind::Sync, 0)];
        let mut looked_at = Vec::new();
        for at in (0..40).map(|half| half * SECOND / 2) {
            let due = ages.due(&blocked, at, |_| false);
            assert!(due.iter().all(|(operation, since)| operation.kind == Kind::CriCall && *since == at / 2));
            looked_at.extend(due.iter().map(|_| at));
        }
        assert_eq!(looked_at, [2, 4, 8, 16].map(|second| second * SECOND));
        // Another of the same kind is new, and the first is forgotten.
        assert!(ages.due(&[operation(Kind::CriCall, 19 * SECOND)], 20 * SECOND, |_| false).is_empty());
        assert_eq!(ages.next.len(), 1);
        assert!(!ages.over, "a call may have been given up");
        assert_eq!(ages.due(&blocked, 20 * SECOND, |_| false).len(), 1);
        assert_eq!(ages.due(&blocked[1..], 40 * SECOND, |_| true).len(), 1, "ours");
    }

    #[test]
    fn things_recover_when_the_kernel_is_done_with_what_had_lasted() {
        let over_after = |kind, age| {
            let mut ages = Ages::default();
            ages.due(&[operation(kind, 0)], age, |_| true);
            ages.due(&[], age + SECOND, |_| true);
            ages.over
        };
        assert!(over_after(Kind::Unmount, 3 * SECOND) && over_after(Kind::Sync, 3 * SECOND));
        assert!(!over_after(Kind::Unmount, SECOND), "it had not lasted");
        assert!(!over_after(Kind::CriCall, 30 * SECOND), "it may have been given up");
    }

    #[test]
    fn what_probes_follow_is_looked_at_ever_more_seldom_and_all_else_as_often_as_ever() {
        let times = |followed, looks: &[bool]| {
            let mut before = None;
            let one = |new: &bool| {
                before = Some(after(before, *new, followed));
                before.unwrap()
            };
            looks.iter().map(one).collect::<Vec<Ns>>()
        };
        let still = [true, false, false, false, false];
        assert_eq!(times(true, &still), [CONFIRM, AGAIN, 2 * AGAIN, 4 * AGAIN, 4 * AGAIN]);
        assert_eq!(times(false, &still), [CONFIRM, AGAIN, AGAIN, AGAIN, AGAIN]);
        let busy = [true; 4];
        assert_eq!(times(true, &busy), [CONFIRM, AGAIN, CONFIRM, AGAIN]);
        assert_eq!(times(false, &busy), [CONFIRM; 4]);
        // Where threads sit is believed for this long.
        const { assert!(SELDOM + SECOND / 2 < crate::correlator::limits::SITE_FRESH) };
    }

    #[test]
    fn followed_is_only_what_the_same_actor_is_known_to_do() {
        let operation = |kind, tid, g| {
            let actor = Actor { pid: 7, tid, g, goid: None };
            Operation { actor, ..operation(kind, 1) }
        };
        let found = |operation| [Event { at: 2, body: Body::InFlight(operation) }];
        let known = [operation(Kind::LockWait, 8, Some(0xc1)), operation(Kind::Unmount, 9, None)];
        assert!(are_followed(&found(operation(Kind::LockWait, 0, Some(0xc1))), &known));
        assert!(are_followed(&found(operation(Kind::Unmount, 9, Some(0xc2))), &known), "its thread");
        assert!(!are_followed(&found(operation(Kind::Unmount, 0, Some(0xc2))), &known));
        assert!(!are_followed(&found(operation(Kind::CriCall, 8, Some(0xc1))), &known));
        let both = [found(known[0].clone()), found(operation(Kind::CriCall, 8, None))].concat();
        assert!(!are_followed(&both, &known));
        assert!(
            !are_followed(&[Event { at: 2, body: Body::Looked { pid: 7 } }], &known),
            "nothing was found again"
        );
    }

    #[test]
    fn no_more_than_so_many_in_a_second_and_none_is_lost() {
        let mut budget = Budget { left: MOST_A_SECOND, since: 0 };
        let mut queue: VecDeque<u32> = (0..40).collect();
        let mut all = budget.take(&mut queue, 1);
        assert_eq!(all.len(), MOST_A_SECOND);
        assert!(budget.take(&mut queue, SECOND - 1).is_empty());
        all.extend(budget.take(&mut queue, SECOND));
        all.extend(budget.take(&mut queue, 3 * SECOND));
        assert_eq!(all, (0..40).collect::<Vec<_>>());
    }
}
