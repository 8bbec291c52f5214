//! Reads the kernel half: the ring as it fills, what is in flight ten times a second, and when something in flight passes a
//! threshold, so that it is told at once that it still is.

use super::{
    binaries::method_name,
    child::{MOST_BUSY, Shared, lock, take},
    cost::{Ledger, Price},
    fuse::Fuse,
    outbox::Outbox,
    protocol::{Cost, Level, Message},
};
use crate::{
    bpf::{load, read::Reader},
    decode,
    event::{Actor, Body, Event, Kind, LossPoint, Ns, Operation, OperationId, Outcome},
    node::{alive, clock, threads},
    thresholds::{POLL_EVERY, STEADY_AGE, STEADY_EVERY, Thresholds, floor},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tracer_common::{
    op::{Key, Op, Wait, flag},
    record::Record,
    stats::Cause,
};

/// `umount2` on x86-64.
const SYS_UMOUNT2: i64 = 166;
/// Costs and losses are told once in this many polls.
const COST_EVERY: u32 = 10;

/// What comes to the ring within this time is read together, ns.
const GATHER: Ns = 25_000_000;
/// While nothing is in flight that is told in this many polls once: an empty poll ends what was told before, says nothing
/// new from then on, and each wakes three threads.
const EMPTY_TOLD_EVERY: u32 = 5;
/// Empty polls in a row that are told one by one: where records were lost, it takes three to end something.
const EMPTY_TOLD: u32 = 5;

/// Reads until the process ends.
pub fn run(mut reader: Reader, outbox: &Outbox, shared: &Shared, fuse: Fuse, thresholds: &Thresholds) {
    let mut poller = Poller::default();
    let mut next_poll = clock::monotonic();
    let mut polls = 0u32;
    let mut meters = Meters { fuse, ledger: Ledger::default(), read_at: next_poll, warned: 0 };
    while !shared.ending() {
        let now = clock::monotonic();
        let wait = Duration::from_nanos(next_poll.saturating_sub(now));
        let waited = reader.wait(wait);
        // Many small records shall not wake this thread one by one; 25 ms are well inside the window of lateness.
        let rest = next_poll.saturating_sub(clock::monotonic()).min(GATHER);
        if rest > 0 {
            std::thread::sleep(Duration::from_nanos(rest));
        }
        if let Err(error) = waited {
            outbox.log(
                Level::Error,
                format!("waiting for the ring failed ({error}); events are read by polling only"),
            );
            std::thread::sleep(Duration::from_nanos(POLL_EVERY));
        }
        let mut events = Vec::new();
        reader.records(|record| {
            match &record {
                Record::ProcessGone(gone) => poller.replaced.push((gone.tgid, gone.header.at)),
                // Once is enough.
                Record::OpEnded(ended) if poller.has_told(&ended.op) => return,
                _ => {}
            }
            from_record(&record, shared, &mut events);
        });
        let now = clock::monotonic();
        if now >= next_poll {
            let polled = poller.poll(&mut reader, shared, now, thresholds, &mut events);
            next_poll = next_read(&poller.operations, now, thresholds);
            match polled {
                Ok(()) => shared.note_in_flight(&poller.operations),
                Err(error) => {
                    outbox.log(Level::Error, format!("reading what is in flight failed: {error:#}"))
                }
            }
            if polls.is_multiple_of(COST_EVERY) {
                let costs = costs(&reader);
                let skipped = load::skipped(&lock(&shared.skippable)).inspect_err(|error| {
                    let text = format!("asking how often programs were skipped failed: {error}");
                    outbox.log(Level::Debug, text);
                });
                poller.losses(&costs, skipped.ok(), now, &mut events);
                outbox.send(&Message::Cost(costs));
                meters.read(&reader, now, shared, &mut events);
                meters.watch_attaching(now, shared, outbox, &mut events);
            }
            polls = polls.wrapping_add(1);
        }
        outbox.events(events);
    }
}

/// When to read what is in flight again: at the usual pace, or as soon as something passes a threshold.
fn next_read(in_flight: &[Operation], now: Ns, thresholds: &Thresholds) -> Ns {
    let usual = now + POLL_EVERY;
    let first = crossings(in_flight, thresholds).filter(|at| (now + 1..usual).contains(at)).min();
    // Not one by one, where many do.
    first.map_or(usual, |at| at.max(now + GATHER))
}

/// When these pass their thresholds.
fn crossings(in_flight: &[Operation], thresholds: &Thresholds) -> impl Iterator<Item = Ns> {
    in_flight.iter().flat_map(|op| thresholds.of(op.kind).map(|age| op.begin.saturating_add(age)))
}

/// What looking costs, once a second; and whether attaching comes back.
struct Meters {
    fuse: Fuse,
    ledger: Ledger,
    read_at: Ns,
    /// For how long the attaching that hangs had hung when that was told, ns; 0 when none does.
    warned: Ns,
}

impl Meters {
    fn read(&mut self, reader: &Reader, now: Ns, shared: &Shared, events: &mut Vec<Event>) {
        let since = std::mem::replace(&mut self.read_at, now);
        let price = lock(&shared.price).unwrap_or(Price::ASSUMED);
        let metered = lock(&shared.metered).clone();
        let bills = self.ledger.read(reader.passes(), now.saturating_sub(since), price, &metered);
        for bill in &bills {
            if let Some(blown) = self.fuse.look(bill.meter, since, now, &bill.shares) {
                let mut waiting = lock(&shared.blown);
                // The attaching thread may be stuck; what it was told already is not told again.
                waiting.retain(|earlier| earlier.meter != blown.meter);
                waiting.push(blown);
            }
        }
        let told = self.ledger.programs(&bills, &metered).into_iter();
        events.extend(told.map(|cost| Event { at: now, body: Body::Cost(cost) }));
    }

    /// Tells when the kernel does not come back from attaching or detaching, again at each doubling, and when it has.
    fn watch_attaching(&mut self, now: Ns, shared: &Shared, outbox: &Outbox, events: &mut Vec<Event>) {
        const FIRST: Ns = 2_000_000_000;
        let blind = |reason: String| Event {
            at: now,
            body: Body::BlindSpot {
                what: "attaching probes of containerd, shims and kubelet".into(),
                reason,
            },
        };
        let attaching = lock(&shared.attaching).clone();
        let hung = attaching.map(|a| (now.saturating_sub(a.since), a.what)).filter(|(age, _)| *age >= FIRST);
        match hung {
            Some((age, what)) if self.warned == 0 || age >= 2 * self.warned => {
                self.warned = age;
                let line = format!(
                    "attaching to {what} has not come back for {} s: every fork() on this node may wait for it too",
                    age / 1_000_000_000
                );
                events.push(blind(line.clone()));
                outbox.log(Level::Error, line);
            }
            Some(_) => {}
            None if self.warned > 0 => {
                self.warned = 0;
                events.push(blind(String::new()));
                outbox.log(Level::Warning, "attaching has come back");
            }
            None => {}
        }
    }
}

/// A record of the ring as an event.
fn from_record(record: &Record, shared: &Shared, events: &mut Vec<Event>) {
    let (at, body) = match record {
        Record::WaitEnded(r) => {
            (r.header.at, decode::wait(&r.wait).map(|operation| Body::Ended(operation, Outcome::Done)))
        }
        Record::OpEnded(r) => {
            let ended = decode::op(&r.op, method_name).map(|o| (o, decode::outcome(&r.op)));
            if let Some((Operation { path: Some(path), actor, .. }, Outcome::Errno(libc::EBUSY))) = &ended {
                let mut busy = lock(&shared.busy);
                if busy.len() < MOST_BUSY && !busy.iter().any(|(known, _)| known == path) {
                    busy.push((path.clone(), actor.pid));
                }
            }
            (r.header.at, ended.map(|(operation, outcome)| Body::Ended(operation, outcome)))
        }
        Record::Woken(r) => (
            r.header.at,
            decode::wait(&r.wait).map(|waiting| Body::Woken {
                by: Actor {
                    pid: r.wait.key.tgid,
                    tid: r.by_tid,
                    g: (r.by != 0).then_some(r.by),
                    goid: (r.by_goid != 0).then_some(r.by_goid),
                },
                waiter: waiting.actor,
                semaphore: r.wait.object,
            }),
        ),
        Record::ProcessGone(r) => {
            shared.recheck(r.tgid);
            return;
        }
        // A record of a kind that this version does not know cannot come from the object embedded in it.
        Record::Unknown(header) => (header.at, Some(Body::Lost { at: LossPoint::Ring, count: 1 })),
    };
    events.extend(body.map(|body| Event { at, body }));
}

/// Reading two empty maps costs a walk over all their buckets (0.8 ms in our test machine). While nothing begins, empty
/// maps stay empty and need not be read.
#[derive(Debug, Default)]
struct Rest {
    begun: u64,
    /// Reads since something has begun that found both maps empty.
    empty: u32,
    skipped: u32,
}

impl Rest {
    /// Whether both maps are known to be empty; `begun` counts all begins so far. A begin is counted a moment before it
    /// is in its map, so one empty read is not enough; and once a second the maps are read whatever was counted.
    fn may_skip(&mut self, begun: u64) -> bool {
        if std::mem::replace(&mut self.begun, begun) != begun {
            self.empty = 0;
        }
        self.skipped += 1;
        self.empty >= 2 && self.skipped < 10
    }

    /// They were read.
    fn read(&mut self, empty: bool) {
        self.empty = if empty { self.empty.saturating_add(1) } else { 0 };
        self.skipped = 0;
    }
}

/// Whether a poll is told: one that found something, or the last of so many that found nothing if it says anything new.
fn is_told(empty: u32) -> bool {
    empty <= EMPTY_TOLD || empty.is_multiple_of(EMPTY_TOLD_EVERY)
}

/// What was told last, and when: while the same lasts, and has for long, telling it again has two processes work through it
/// and says nothing new.
#[derive(Default)]
struct Told {
    operations: Vec<Operation>,
    at: Ns,
    /// When it was seen last that they are still there.
    seen: Ns,
}

impl Told {
    /// What is no more in flight and was seen there after it was told last: how long it has lasted hangs on that, where nobody
    /// tells of its end.
    fn vanished(&self, operations: &[Operation]) -> impl Iterator<Item = Event> {
        let later = self.seen > self.at;
        let gone = self.operations.iter().filter(move |op| later && !operations.contains(op));
        gone.map(|op| Event { at: self.seen, body: Body::InFlight(op.clone()) })
    }

    /// Whether this need not be told at `now`, unless something else is.
    fn may_wait(&self, operations: &[Operation], now: Ns, thresholds: &Thresholds) -> bool {
        let lasts = |op: &Operation| now.saturating_sub(op.begin) >= STEADY_AGE;
        // Who passes a threshold is told as being still there.
        let crosses = |at: Ns| self.at < at && at <= now;
        now.saturating_sub(self.at) < STEADY_EVERY
            && !operations.is_empty()
            && self.operations == operations
            && operations.iter().all(lasts)
            && !crossings(operations, thresholds).any(crosses)
    }
}

/// Turns in-flight entries into events.
#[derive(Default)]
struct Poller {
    rest: Rest,
    /// When each process with something in flight was asked for, and when it was started, if it lives.
    alive: BTreeMap<u32, (Ns, Option<Ns>)>,
    waits: Vec<Wait>,
    ops: Vec<Op>,
    /// Above the floor, as of the last poll.
    operations: Vec<Operation>,
    last: Told,
    /// Polls in a row that found nothing.
    empty: u32,
    /// Entries that are over but stay in the map until their thread unmounts again, as told already: key and begin.
    told: BTreeSet<(Key, Ns)>,
    /// The same as of the poll before, since a record may come after its entry was gone.
    told_before: BTreeSet<(Key, Ns)>,
    /// Processes of which the kernel half has seen an exec or exit since the last poll, and when.
    replaced: Vec<(u32, Ns)>,
    /// Loss counters as told already.
    lost: BTreeMap<LossPoint, u64>,
}

impl Poller {
    fn poll(
        &mut self,
        reader: &mut Reader,
        shared: &Shared,
        now: Ns,
        thresholds: &Thresholds,
        events: &mut Vec<Event>,
    ) -> anyhow::Result<()> {
        // Taken before the maps are read: what is there still was not left after the look either.
        let unreturned = take(&shared.unreturned);
        if self.rest.may_skip(reader.begun(Kind::RECORDED.into_iter().map(decode::number_of))) {
            self.waits.clear();
            self.ops.clear();
        } else {
            reader.in_flight(&mut self.waits, &mut self.ops)?;
            self.rest.read(self.waits.is_empty() && self.ops.is_empty());
        }
        self.forget_the_replaced(reader, shared, events)?;
        self.forget_the_dead(reader, shared, now, events)?;
        self.forget_the_unreturned(reader, &unreturned)?;
        self.operations.clear();
        let old = |kind: Option<Kind>, begin: Ns| {
            // An entry whose begin is 0 is being filled in.
            kind.is_some_and(|kind| begin != 0 && now.saturating_sub(begin) >= floor(kind))
        };
        for wait in &self.waits {
            if old(decode::kind_of(&wait.key), wait.begin) {
                self.operations.extend(decode::wait(wait));
            }
        }
        let mut still_told = BTreeSet::new();
        let has_skipped = self.lost.get(&LossPoint::Skipped).is_some_and(|count| *count > 0);
        for op in &self.ops {
            let kind = decode::kind_of(&op.key);
            if !old(kind, op.begin) || kind.is_some_and(|kind| short(op, floor(kind))) {
                continue;
            }
            let Some(operation) = decode::op(op, method_name) else { continue };
            let identity = (op.key, op.begin);
            // What was over stays over: later the thread may run, or be in another unmount, and be asked in vain.
            if self.told.contains(&identity) {
                still_told.insert(identity);
                continue;
            }
            match over(op, now, has_skipped) {
                None => self.operations.push(operation),
                Some(at) => {
                    events.push(Event { at, body: Body::Ended(operation, decode::outcome(op)) });
                    still_told.insert(identity);
                }
            }
        }
        self.told_before = std::mem::replace(&mut self.told, still_told);
        if self.last.may_wait(&self.operations, now, thresholds) {
            self.last.seen = now;
            return Ok(());
        }
        events.extend(self.last.vanished(&self.operations));
        (self.last.at, self.last.seen) = (now, now);
        self.last.operations.clone_from(&self.operations);
        events.extend(self.operations.iter().map(|o| Event { at: now, body: Body::InFlight(o.clone()) }));
        self.empty = if self.operations.is_empty() { self.empty.saturating_add(1) } else { 0 };
        if !is_told(self.empty) {
            return Ok(());
        }
        let mut by_floor: BTreeMap<Ns, Vec<Kind>> = BTreeMap::new();
        for kind in Kind::RECORDED {
            by_floor.entry(floor(kind)).or_default().push(kind);
        }
        events.extend(by_floor.into_iter().map(|(floor, kinds)| Event {
            at: now,
            body: Body::PollComplete { kinds, older_than: now.saturating_sub(floor) },
        }));
        Ok(())
    }

    /// Whether the end of an operation was told by polling.
    fn has_told(&self, op: &Op) -> bool {
        let identity = (op.key, op.begin);
        self.told.contains(&identity) || self.told_before.contains(&identity)
    }

    /// Removes what processes that are no more have left in the maps: nothing else ever would, since a killed process
    /// returns from nothing. Most come from programs that live too short to be known (`containerd-shim start`, `delete`).
    fn forget_the_dead(
        &mut self,
        reader: &mut Reader,
        shared: &Shared,
        now: Ns,
        events: &mut Vec<Event>,
    ) -> anyhow::Result<()> {
        /// A process is asked for again after this time.
        const ASK_EVERY: Ns = 500_000_000;
        /// Start times are told to 10 ms.
        const START_STEP: Ns = 20_000_000;
        self.alive.retain(|_, (asked, _)| now.saturating_sub(*asked) < ASK_EVERY);
        let (alive, replaced) = (&mut self.alive, &mut self.replaced);
        let mut ask = |pid: u32| {
            // Where no probe sees it, a process may have called exec since.
            let known = shared.get(pid).and_then(|known| known.image);
            if known.is_some_and(|known| alive::image(pid).is_some_and(|image| image != known)) {
                replaced.push((pid, now));
            }
            (now, alive::alive_since(pid))
        };
        let mut dead = |key: &Key, begin: Ns| {
            let old = decode::kind_of(key).is_some_and(|kind| now.saturating_sub(begin) >= floor(kind));
            if begin == 0 || !old {
                return false;
            }
            let (_, since) = *alive.entry(key.tgid).or_insert_with(|| ask(key.tgid));
            since.is_none_or(|since| since > begin.saturating_add(START_STEP))
        };
        let mut keys: Vec<Key> = Vec::new();
        self.waits.retain(|wait| {
            let dead = dead(&wait.key, wait.begin);
            keys.extend(dead.then_some(wait.key));
            !dead
        });
        self.ops.retain(|op| {
            let dead = dead(&op.key, op.begin);
            keys.extend(dead.then_some(op.key));
            !dead
        });
        for key in &keys {
            reader.forget(key)?;
        }
        let pids: BTreeSet<u32> = keys.iter().map(|key| key.tgid).collect();
        let gone =
            pids.into_iter().filter(|pid| self.alive.get(pid).is_some_and(|(_, since)| since.is_none()));
        events.extend(gone.map(|pid| Event { at: now, body: Body::ProcessGone { pid } }));
        Ok(())
    }

    /// Removes what processes have left in the maps that called exec: the program that began it is no more, while pid and
    /// start time are the same. An exit is told by the same record; then nobody lives, or only other threads do.
    fn forget_the_replaced(
        &mut self,
        reader: &mut Reader,
        shared: &Shared,
        events: &mut Vec<Event>,
    ) -> anyhow::Result<()> {
        for (pid, at) in std::mem::take(&mut self.replaced) {
            if !alive::leader_lives(pid) {
                continue;
            }
            shared.replaced(pid);
            shared.recheck(pid);
            let old = |key: &Key, begin: Ns| key.tgid == pid && begin < at;
            let waits = self.waits.extract_if(.., |wait| old(&wait.key, wait.begin)).map(|wait| wait.key);
            let keys: Vec<Key> =
                waits.chain(self.ops.extract_if(.., |op| old(&op.key, op.begin)).map(|op| op.key)).collect();
            for key in &keys {
                reader.forget(key)?;
            }
            events.push(Event { at, body: Body::ProcessGone { pid } });
            // The same program once more is no news to the thread that looks for programs.
            let known = shared.get(pid).map(|known| Body::Process(known.process));
            events.extend(known.map(|body| Event { at, body }));
        }
        Ok(())
    }

    /// Removes operations of which an earlier look has shown that nobody is in them.
    fn forget_the_unreturned(
        &mut self,
        reader: &mut Reader,
        unreturned: &[OperationId],
    ) -> anyhow::Result<()> {
        if unreturned.is_empty() {
            return Ok(());
        }
        let is = |op: &mut Op| decode::op(op, method_name).is_some_and(|o| unreturned.contains(&o.id()));
        let keys: Vec<Key> = self.ops.extract_if(.., is).map(|op| op.key).collect();
        keys.iter().try_for_each(|key| reader.forget(key)).map_err(Into::into)
    }

    /// Tells what was lost since the last time.
    fn losses(&mut self, costs: &[Cost], skipped: Option<u64>, now: Ns, events: &mut Vec<Event>) {
        let mut totals: BTreeMap<LossPoint, u64> =
            skipped.map(|count| (LossPoint::Skipped, count)).into_iter().collect();
        for (words, count) in costs.iter().flat_map(|cost| &cost.refusals) {
            let point = match words.as_str() {
                w if w == Cause::RingFull.words() => LossPoint::Ring,
                w if w == Cause::NoBegin.words() => continue,
                _ => LossPoint::Map,
            };
            *totals.entry(point).or_default() += count;
        }
        for (point, total) in totals {
            let told = self.lost.insert(point, total).unwrap_or(0);
            if total > told {
                events.push(Event { at: now, body: Body::Lost { at: point, count: total - told } });
            }
        }
    }
}

/// Whether an entry that is still in the map was over before it reached the floor.
fn short(op: &Op, floor: Ns) -> bool {
    let over = op.flags & (flag::RETURNED | flag::CLEANING | flag::TRACEPOINT) == flag::RETURNED;
    over && op.end.saturating_sub(op.begin) < floor
}

/// When an entry that is still in the map was over; `None` while it is in flight.
fn over(op: &Op, now: Ns, has_skipped: bool) -> Option<Ns> {
    let has = |bit: u32| op.flags & bit != 0;
    let kind = decode::kind_of(&op.key);
    let unmount = kind == Some(Kind::Unmount);
    let returned = has(flag::RETURNED) && !has(flag::CLEANING);
    if returned && !has(flag::TRACEPOINT) {
        // The kernel runs `cleanup_mnt` before the thread is back in user space; between the return of the call and
        // its begin there is next to nothing, but not nothing.
        const SETTLED: Ns = 20_000_000;
        return (now.saturating_sub(op.end) > SETTLED).then_some(op.end);
    }
    // Some ends no probe tells, so the thread itself must be asked whether it is back: that of an unmount without a probe
    // on `cleanup_mnt`, that of a sync that is told by its begin only, that of a kprobe whose kretprobe was dropped for want
    // of an instance, and that of an fentry whose fexit the kernel may have skipped.
    let droppable = has(flag::KPROBE) || has_skipped && has(flag::FENTRY);
    let block = matches!(kind, Some(Kind::SuperShutdown | Kind::Sync)) && droppable;
    let ask = block
        || (returned && has(flag::TRACEPOINT))
        || has(flag::ENDS_WITH_UNMOUNT)
        || (unmount && droppable);
    if !ask {
        return None;
    }
    let (pid, tid) = (op.key.tgid, op.tid);
    if !block {
        return match threads::call(pid, tid) {
            // While it runs it cannot be told where: asked again at the next poll. It may have begun to run since its state
            // was read, too: only another system call shows that it is back.
            Ok(('R', _)) => None,
            Ok((_, call)) => call.filter(|number| *number != SYS_UMOUNT2).map(|_| now),
            Err(_) => Some(now),
        };
    }
    match threads::look(pid, tid) {
        // Its stack would be that of its last sleep.
        Ok(site) if site.site.state == 'R' => None,
        Ok(site) => {
            let function =
                if kind == Some(Kind::Sync) { "sync_filesystem" } else { "generic_shutdown_super" };
            has_left(&site.site.kernel_stack, function).then_some(now)
        }
        Err(_) => Some(now),
    }
}

/// Whether a thread that sleeps with this kernel stack is no longer in a function that several system calls, and the way out
/// of a process, can lead to. A stack that is not there to its bottom says nothing: before 5.16 it ends where a kretprobe
/// has its return address. `__sync_filesystem`, which `sync_filesystem` of 5.10 ends with, is the same.
fn has_left(stack: &[String], function: &str) -> bool {
    let whole = stack.last().is_some_and(|name| name.starts_with("entry_SYSCALL"));
    whole && !stack.iter().any(|name| name.contains(function))
}

fn costs(reader: &Reader) -> Vec<Cost> {
    Kind::RECORDED
        .into_iter()
        .filter_map(|kind| {
            let counters = reader.counters(decode::number_of(kind));
            let refusals = Cause::ALL.iter().zip(counters.refusals).filter(|(_, n)| *n > 0);
            let refusals: Vec<_> = refusals.map(|(cause, n)| (cause.words().to_owned(), n)).collect();
            (counters.hits > 0 || !refusals.is_empty()).then_some(Cost {
                kind,
                hits: counters.hits,
                refusals,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thresholds::{MILLISECOND, SECOND};

    #[test]
    fn only_a_whole_stack_shows_that_a_thread_has_left() {
        let left = |names: &str| {
            let stack: Vec<String> = names.split(' ').map(str::to_owned).collect();
            has_left(&stack, "sync_filesystem")
        };
        assert!(left("futex_wait do_futex do_syscall_64 entry_SYSCALL_64_after_hwframe"));
        assert!(!left("sync_inodes_sb __sync_filesystem ovl_sync_fs entry_SYSCALL_64_after_hwframe"));
        assert!(!left("sync_inodes_sb sync_filesystem kretprobe_trampoline"));
        assert!(!left("ovl_put_super kretprobe_trampoline"), "nobody knows what is below");
        assert!(!has_left(&[], "sync_filesystem"));
    }

    #[test]
    fn what_passes_a_threshold_is_read_then_and_what_has_passed_it_at_the_usual_pace() {
        let thresholds = Thresholds::DEFAULT;
        let now = 100 * SECOND;
        let at = |kind, begin| Operation {
            kind,
            method: String::new(),
            actor: Actor { pid: 1, tid: 1, g: None, goid: None },
            begin,
            object: 0,
            container: None,
            path: None,
            device: None,
            fs_type: None,
            began: crate::event::Began::Then,
            seen_by: crate::event::SeenBy::Fentry,
        };
        let next = |in_flight: &[Operation]| next_read(in_flight, now, &thresholds) - now;
        let before = |threshold: Ns, left: Ns| now + left * MILLISECOND - threshold;
        let unmount = |left| at(Kind::Unmount, before(thresholds.unmount, left));
        assert_eq!(next(&[]), POLL_EVERY);
        assert_eq!(next(&[unmount(60)]), 60 * MILLISECOND);
        assert_eq!(
            next(&[unmount(500), unmount(70), at(Kind::ExitHandling, before(thresholds.exit, 40))]),
            40 * MILLISECOND
        );
        assert_eq!(next(&[unmount(3)]), GATHER, "not too often");
        assert_eq!(next(&[unmount(0)]), POLL_EVERY, "it was read now");
        assert_eq!(next(&[at(Kind::Sync, before(thresholds.unmount, 60))]), POLL_EVERY, "is none by itself");
    }

    #[test]
    fn empty_polls_are_told_until_they_have_ended_all_and_then_often_enough_to_be_believed() {
        assert!((0..=3).all(is_told), "three end what lost records have left");
        let told: Vec<u32> = (1..=100).filter(|empty| is_told(*empty)).collect();
        let longest = told.windows(2).map(|two| u64::from(two[1] - two[0]) * POLL_EVERY).max().unwrap();
        assert!(longest >= SECOND / 2, "it is what rest there is");
        assert!(2 * longest <= crate::correlator::limits::POLL_STALE, "or it would be a blind spot");
    }

    #[test]
    fn maps_are_read_while_something_begins_or_is_in_flight_and_once_a_second() {
        let mut rest = Rest::default();
        assert!(!rest.may_skip(7), "the first time");
        rest.read(true);
        assert!(!rest.may_skip(7), "what was counted may come a moment later");
        rest.read(true);
        for _ in 0..9 {
            assert!(rest.may_skip(7));
        }
        assert!(!rest.may_skip(7), "once a second");
        rest.read(true);
        assert!(rest.may_skip(7));
        assert!(!rest.may_skip(8), "something has begun");
        rest.read(false);
        for _ in 0..20 {
            assert!(!rest.may_skip(8), "something is in flight");
            rest.read(false);
        }
    }

    #[test]
    fn what_lasts_is_told_twice_a_second_and_what_begins_ends_or_passes_a_threshold_at_once() {
        let thresholds = Thresholds::default();
        let unmount = |begin: Ns| Operation {
            kind: Kind::Unmount,
            method: String::new(),
            actor: Actor { pid: 7, tid: 8, g: None, goid: None },
            begin,
            began: crate::event::Began::Then,
            object: 0,
            container: None,
            path: None,
            device: None,
            fs_type: None,
            seen_by: crate::event::SeenBy::Tracepoint,
        };
        let (one, both) = (vec![unmount(SECOND)], vec![unmount(SECOND), unmount(2 * SECOND)]);
        let told = |at: Ns| Told { operations: one.clone(), at, seen: at };
        let (at, soon) = (3_500 * MILLISECOND, 100 * MILLISECOND);
        assert!(told(at).may_wait(&one, at + soon, &thresholds));
        assert!(!told(at).may_wait(&one, at + STEADY_EVERY, &thresholds), "twice a second");
        assert!(!told(at).may_wait(&both, at + soon, &thresholds), "one has begun");
        let seen = Told { operations: both.clone(), at, seen: at + soon };
        assert!(!seen.may_wait(&one, at + 2 * soon, &thresholds), "one has ended");
        let last: Vec<Event> = seen.vanished(&one).collect();
        assert_eq!(
            last,
            [Event { at: at + soon, body: Body::InFlight(both[1].clone()) }],
            "it was there until then"
        );
        assert_eq!(told(at).vanished(&[]).count(), 0, "that was told");
        assert!(!told(2 * SECOND).may_wait(&one, 2 * SECOND + soon, &thresholds), "it is young");
        let crossing = SECOND + thresholds.unmount;
        assert!(!told(crossing - soon).may_wait(&one, crossing, &thresholds), "it passes its threshold");
        assert!(told(crossing).may_wait(&one, crossing + soon, &thresholds), "that was told");
        assert!(
            !Told::default().may_wait(&[], SECOND, &thresholds),
            "that nothing is there has its own pace"
        );
    }
}
