//! Operations in flight: what begins them, what ends them, and what makes a report stale.
//!
//! ```text
//!            InFlight (poll, again and again)                 Ended (ring)
//!   unknown ────────────────────────────────> in flight ───────────────────────> past: returned
//!                                                │  │ └─ absent from a complete poll ─> past: absent ──┐
//!                                                │  └─── its actor has moved on ──────> past: moved on │ reported again
//!                                                └────── its process is gone ─────────> (forgotten)    └──> in flight
//! ```
//!
//! A report of an operation that is past never brings it back, except when it was only taken for ended because a poll
//! did not mention it.

mod found;
mod past;

pub use found::{is_found, may_follow, outermost_first};

use super::limits;
use crate::event::{Actor, Began, Kind, Ns, Operation, OperationId, Outcome};
use compact_str::CompactString;
use past::{Ended, Past};
use std::collections::BTreeMap;

/// Offset of `mu` in the shim's `process.Init` (the same in containerd 1.4 to 2.1).
pub const INIT_MU: u64 = 0x20;

/// Methods of the shim's `process.Init` that take `Init.mu` for their whole body (containerd main and 1.4 to 2.1).
const TAKES_MU: [&str; 14] = [
    "Update",
    "Delete",
    "Kill",
    "KillAll",
    "Status",
    "SetExited",
    "ExitStatus",
    "ExitedAt",
    "Start",
    "Pause",
    "Resume",
    "Resize",
    "Exec",
    "Checkpoint",
];

/// An operation in flight with what the correlator has learnt about it.
#[derive(Clone, Debug)]
pub struct Flight {
    /// As reported; later reports fill what earlier ones left open.
    pub op: Operation,
    /// Its begin, or the begin of the first of several merged lock waits.
    pub since: Ns,
    /// Number of the event that reported it last.
    pub reported: u64,
    /// Time of that event.
    pub reported_at: Ns,
    /// Complete polls in a row that did not mention it.
    pub missed: u8,
    /// When its actor got the lock that this operation holds, if it had to wait for it.
    pub held_since: Option<Ns>,
    /// When its actor was seen to release the lock that this operation held.
    pub released_at: Option<Ns>,
    /// When somebody made this lock wait runnable.
    pub woken: Option<Ns>,
    /// When something its actor did within it ended last.
    pub idle_since: Option<Ns>,
}

impl Flight {
    /// An operation that was reported just now and of which nothing else is known.
    pub fn standing_for(op: Operation) -> Flight {
        Flight {
            since: op.begin,
            op,
            reported: 0,
            reported_at: 0,
            missed: 0,
            held_since: None,
            released_at: None,
            woken: None,
            idle_since: None,
        }
    }
}

/// Why an operation is no longer in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// Its end was reported.
    Returned,
    /// A complete poll did not mention it.
    Absent,
    /// Its actor has done something since that it could not have done within it.
    MovedOn,
}

/// An operation whose end was reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The operation.
    pub op: Operation,
    /// When it ended.
    pub at: Ns,
    /// How.
    pub outcome: Outcome,
    /// Whether it had been seen in flight.
    pub was_seen: bool,
}

/// A lock wait that has ended and may go on as a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settling {
    /// The semaphore.
    pub semaphore: u64,
    /// The goroutine's number, where it is known: the address of `g` is used again by another.
    pub goid: Option<u64>,
    /// Begin of the first of the merged waits.
    pub since: Ns,
    /// When it ended.
    pub ended: Ns,
}

/// All operations in flight, and the memory that keeps stale reports out.
#[derive(Clone, Debug, Default)]
pub struct Operations {
    flights: BTreeMap<OperationId, Flight>,
    past: Ended,
    settling: BTreeMap<(u32, u64), Settling>,
    /// Per kind: number and time of the last complete poll, if there was one.
    polls: [Option<(u64, Ns)>; Kind::ALL.len()],
    /// Per process: number of the last event that its memory was looked at.
    looks: BTreeMap<u32, u64>,
    /// Per process and semaphore: who released it last, and when.
    released: BTreeMap<(u32, u64), (Actor, Ns)>,
    /// Number of the current event.
    sequence: u64,
    /// How often what is in flight, or who waits for whom there, has changed.
    changes: u64,
    /// Number and time of the last loss that may hide an operation.
    last_loss: Option<(u64, Ns)>,
    /// Ends that were inferred, not reported.
    pub uncertain_ends: u64,
    /// Reports refused because [`limits::OPERATIONS`] was reached.
    pub refused: u64,
    /// Ended operations forgotten early because [`limits::ENDED`] was reached.
    pub forgotten: u64,
    /// Lock waits counted early because [`limits::SETTLING`] was reached.
    pub unsettled: u64,
}

/// The lock an operation holds, or waits for within: its base address.
pub fn held_base(op: &Operation) -> Option<u64> {
    match op.kind {
        Kind::StatusUpdate | Kind::LockHold if op.object != 0 => Some(op.object),
        Kind::InitMethod if op.object != 0 && TAKES_MU.contains(&op.method.as_str()) => {
            op.object.checked_add(INIT_MU)
        }
        _ => None,
    }
}

/// Whether an operation lasts for as long as somebody likes and so says nothing about being stuck.
pub fn lasts_by_design(op: &Operation) -> bool {
    matches!(op.kind, Kind::ShimCall | Kind::ShimServe | Kind::InitMethod) && op.method == "Wait"
}

/// Whether this kind is seen in the kernel, on a thread, rather than in a Go program.
pub fn is_kernel(kind: Kind) -> bool {
    matches!(kind, Kind::Unmount | Kind::SuperShutdown | Kind::Sync)
}

/// Whether this unmounts a mount that containerd makes for itself while it creates a container, and that no shim has a part
/// in: `mount.WithTempMount` (to look up the image's user) and `WithVolumes` (to copy what the image has in a volume).
pub fn is_temporary(op: &Operation) -> bool {
    let folder = op.path.as_deref().and_then(|path| path.rsplit('/').next());
    op.kind == Kind::Unmount
        && folder.is_some_and(|f| f.starts_with("containerd-mount") || f.starts_with("ctd-volume"))
}

/// Whether `newer`, which began later on the same goroutine or thread, could not have begun while `older` lasted.
fn excludes(newer: &Operation, older: &Operation) -> bool {
    if let (Some(a), Some(b)) = (newer.actor.goid, older.actor.goid)
        && a != b
    {
        // The runtime has reused the g: the goroutine of the older one is gone.
        return true;
    }
    if newer.began == Began::ThenOrBefore {
        return false; // It may be the older one.
    }
    match older.kind {
        // A parked goroutine begins nothing.
        Kind::LockWait => true,
        Kind::Relist
        | Kind::CriClient
        | Kind::CriCall
        | Kind::StatusUpdate
        | Kind::ExitHandling
        | Kind::ShimCall
        | Kind::ShimServe => newer.kind == older.kind,
        Kind::Unmount => newer.kind == Kind::Unmount && newer.seen_by == older.seen_by,
        // Nested for another super block, never for the same; an unmount never begins within.
        Kind::SuperShutdown | Kind::Sync => {
            newer.kind == Kind::Unmount
                || (newer.kind == older.kind && newer.object == older.object && newer.object != 0)
        }
        Kind::InitMethod | Kind::LockHold => false,
        Kind::Stalled => newer.kind == Kind::Stalled,
    }
}

/// First possible identity of an actor's operations.
fn first_of(pid: u32, actor: u64) -> OperationId {
    OperationId { pid, actor, kind: Kind::Relist, method: CompactString::const_new(""), object: 0, begin: 0 }
}

fn actor_key(actor: &Actor) -> (u32, u64) {
    (actor.pid, actor.g.unwrap_or(u64::from(actor.tid)))
}

impl Operations {
    /// Counts one more event; to be called once for each, before anything else.
    pub fn next_event(&mut self) {
        self.sequence = self.sequence.saturating_add(1);
    }

    /// All in flight, in the order of their identities.
    pub fn iter(&self) -> impl Iterator<Item = &Flight> {
        self.flights.values()
    }

    /// How many are in flight.
    pub fn len(&self) -> usize {
        self.flights.len()
    }

    /// How often what is in flight has changed, beyond being reported again.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether this operation is in flight.
    pub fn contains(&self, id: &OperationId) -> bool {
        self.flights.contains_key(id)
    }

    /// How this operation ended, if it is over and remembered.
    pub fn ended_by(&self, id: &OperationId) -> Option<EndedBy> {
        self.past.get(id).map(|p| p.by)
    }

    /// Whether an operation of this kind and method that began at `begun` or later has ended since `since`.
    pub fn has_ended(&self, kind: Kind, method: &str, begun: Ns, since: Ns) -> bool {
        self.past
            .heard_since(since)
            .any(|(id, past)| id.kind == kind && id.method == method && id.begin >= begun && past.at >= since)
    }

    /// Lock waits that have ended lately, by process and actor.
    pub fn settling(&self, actor: &Actor) -> Option<&Settling> {
        self.settling.get(&actor_key(actor))
    }

    /// When records were last lost in a way that may hide an operation.
    pub fn last_loss(&self) -> Option<Ns> {
        self.last_loss.map(|(_, at)| at)
    }

    /// Kinds whose in-flight state was last read completely before `than`, oldest first.
    pub fn polls_older(&self, than: Ns) -> Option<Ns> {
        self.polls.iter().flatten().map(|&(_, at)| at).filter(|&at| at < than).min()
    }

    /// Sizes of the bounded collections, for tests.
    pub fn sizes(&self) -> [usize; 3] {
        [self.flights.len(), self.past.len(), self.settling.len()]
    }

    /// Ids of an actor's operations in flight.
    fn ids_of(&self, pid: u32, actor: u64) -> impl Iterator<Item = (&OperationId, &Flight)> {
        // Mostly nothing is in flight, and to look for the place where it would begin is a good part of what an end costs.
        let any = (!self.flights.is_empty()).then(|| self.flights.range(first_of(pid, actor)..));
        any.into_iter().flatten().take_while(move |(id, _)| id.pid == pid && id.actor == actor)
    }

    /// A poll, or the ring, says that this operation is in flight at `at`. Returns lock waits that have thereby settled.
    pub fn report(&mut self, op: &Operation, at: Ns) -> Option<Finished> {
        let id = op.id();
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.reported = self.sequence;
            flight.reported_at = flight.reported_at.max(at);
            flight.missed = 0;
            fill(&mut flight.op, op);
            return None;
        }
        if self.join(op, at) {
            return None;
        }
        let mut revived = None;
        if let Some(past) = self.past.get(&id) {
            if past.by != EndedBy::Absent || at <= past.at {
                // Stale: the kernel half still has it in its map, or the report was on its way. Remember for longer.
                self.past.heard(&id, at);
                return None;
            }
            revived = self.past.remove(&id).and_then(|past| past.flight);
            self.uncertain_ends = self.uncertain_ends.saturating_sub(1);
        }
        let (pid, actor) = actor_key(&op.actor);
        let mut over = Vec::new();
        let mut stale = false;
        for (other_id, other) in self.ids_of(pid, actor) {
            if other.op.begin < op.begin && excludes(op, &other.op) {
                over.push(other_id.clone());
            } else if op.begin < other.op.begin && excludes(&other.op, op) {
                stale = true;
            }
        }
        for other in over {
            self.drop_flight(&other, EndedBy::MovedOn, at);
        }
        if stale {
            self.uncertain_ends = self.uncertain_ends.saturating_add(1);
            self.remember(id, EndedBy::MovedOn, at, None);
            return None;
        }
        if self.flights.len() >= limits::OPERATIONS {
            self.refused = self.refused.saturating_add(1);
            return None;
        }
        let mut flight = match revived {
            Some(mut flight) => {
                fill(&mut flight.op, op);
                *flight
            }
            None => Flight::standing_for(op.clone()),
        };
        flight.reported = self.sequence;
        flight.reported_at = at;
        flight.missed = 0;
        let mut settled = None;
        if let Some(&wait) = self.settling.get(&(pid, actor)) {
            if op.kind == Kind::LockWait {
                if continues(&wait, op.actor.goid, op.object, op.begin) {
                    flight.since = flight.since.min(wait.since);
                    self.settling.remove(&(pid, actor));
                    for held in self.holding(pid, actor, wait.semaphore) {
                        if let Some(h) = self.flights.get_mut(&held) {
                            h.held_since = None;
                        }
                    }
                }
            } else if held_base(op).is_some_and(|base| may_be_at(base, wait.semaphore))
                && op.begin <= wait.since
            {
                flight.held_since = flight.held_since.or(Some(wait.ended));
            }
            if op.kind == Kind::LockWait
                && !continues(&wait, op.actor.goid, op.object, op.begin)
                && op.begin > wait.ended
            {
                settled = self.settling.remove(&(pid, actor)).map(|w| settled_wait(&op.actor, &w));
            }
        }
        self.flights.insert(id, flight);
        self.changes += 1;
        settled
    }

    /// The end of this operation was reported. Returns what ended, unless it was known already; a lock wait is returned
    /// only once it has settled, see [`Operations::settle`].
    pub fn end(&mut self, mut op: Operation, outcome: Outcome, at: Ns) -> [Option<Finished>; 2] {
        let id = op.id();
        let (kind, begin, object, reported) = (op.kind, op.begin, op.object, op.actor);
        let mut since = begin;
        let mut was_seen = true;
        if let Some(flight) = self.flights.remove(&id) {
            self.changes += 1;
            since = flight.since;
            let told = std::mem::replace(&mut op, flight.op);
            fill(&mut op, &told);
        } else if let Some(past) = self.past.get(&id) {
            if past.by == EndedBy::Returned {
                return [None, None];
            }
            self.uncertain_ends = self.uncertain_ends.saturating_sub(1);
            if let Some(flight) = &past.flight {
                since = flight.since;
            }
        } else {
            was_seen = false;
        }
        self.remember(id, EndedBy::Returned, at, None);
        self.end_nested(&op, at);
        let (pid, actor) = actor_key(&reported);
        let around: Vec<OperationId> =
            self.ids_of(pid, actor).filter(|(_, f)| f.op.begin <= begin).map(|(id, _)| id.clone()).collect();
        for outer in around {
            if let Some(flight) = self.flights.get_mut(&outer) {
                flight.idle_since = flight.idle_since.max(Some(at));
                self.changes += 1;
            }
        }
        if kind != Kind::LockWait {
            return [Some(Finished { op, at, outcome, was_seen }), None];
        }
        let mut finished = [None, None];
        if let Some(&before) = self.settling.get(&(pid, actor)) {
            if continues(&before, reported.goid, object, begin) {
                since = since.min(before.since);
            } else {
                finished[0] = Some(settled_wait(&reported, &before));
            }
        }
        for held in self.holding(pid, actor, object) {
            if let Some(h) = self.flights.get_mut(&held) {
                h.held_since = Some(h.held_since.map_or(at, |t| t.max(at)));
            }
        }
        let wait = Settling { semaphore: object, goid: reported.goid, since, ended: at };
        if self.settling.len() >= limits::SETTLING && !self.settling.contains_key(&(pid, actor)) {
            self.unsettled = self.unsettled.saturating_add(1);
            finished[1] = Some(settled_wait(&reported, &wait));
        } else {
            self.settling.insert((pid, actor), wait);
        }
        finished
    }

    /// Lock waits that have ended and were not taken up again.
    pub fn settle(&mut self, now: Ns) -> Vec<Finished> {
        let done: Vec<(u32, u64)> = self
            .settling
            .iter()
            .filter(|(_, w)| w.ended.saturating_add(limits::SETTLE) < now)
            .map(|(key, _)| *key)
            .collect();
        let mut finished = Vec::with_capacity(done.len());
        for key in done {
            if let Some(wait) = self.settling.remove(&key) {
                let actor = Actor { pid: key.0, tid: 0, g: Some(key.1), goid: None };
                finished.push(settled_wait(&actor, &wait));
            }
        }
        self.past.forget(now.saturating_sub(limits::ENDED_MEMORY));
        finished
    }

    /// `by` made `waiter` runnable by releasing `semaphore`.
    pub fn woken(&mut self, by: &Actor, waiter: &Actor, semaphore: u64, at: Ns) {
        self.note_release(by, semaphore, at);
        let (pid, actor) = actor_key(waiter);
        for id in self.ids_of(pid, actor).map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            if let Some(flight) = self.flights.get_mut(&id)
                && flight.op.kind == Kind::LockWait
                && flight.op.object == semaphore
                && flight.op.begin <= at
            {
                flight.woken = Some(at);
                self.changes += 1;
            }
        }
        let (pid, actor) = actor_key(by);
        for held in self.holding(pid, actor, semaphore) {
            if let Some(h) = self.flights.get_mut(&held)
                && h.op.begin <= at
            {
                h.released_at = Some(at);
                self.changes += 1;
            }
        }
    }

    /// Whether a poll of `kinds` that is complete would end something, since it was not reported since the poll before.
    pub fn misses(&self, kinds: &[Kind], older_than: Ns) -> bool {
        self.flights.values().any(|flight| {
            let before = self.polls.get(flight.op.kind as usize).copied().flatten();
            kinds.contains(&flight.op.kind)
                && !is_found(&flight.op)
                && flight.op.begin < older_than
                && before.is_some_and(|(previous, _)| flight.reported <= previous)
        })
    }

    /// A poll of `kinds` is complete.
    pub fn complete(&mut self, kinds: &[Kind], older_than: Ns, at: Ns) {
        // Per kind: number of the poll before, and whether records were lost since.
        let mut before = [None; Kind::ALL.len()];
        for &kind in kinds {
            let (Some(poll), Some(before)) =
                (self.polls.get_mut(kind as usize), before.get_mut(kind as usize))
            else {
                continue;
            };
            let (previous, previous_at) = poll.unwrap_or((0, 0));
            if previous != 0 && at <= previous_at {
                continue; // The same poll again, or an older one that came late: says nothing new.
            }
            *poll = Some((self.sequence, at));
            *before = Some((previous, self.last_loss.is_some_and(|(sequence, _)| sequence > previous)));
        }
        let mut absent = Vec::new();
        for (id, flight) in &mut self.flights {
            let Some((previous, lossy)) = before.get(id.kind as usize).copied().flatten() else { continue };
            if !is_found(&flight.op) && id.begin < older_than && flight.reported <= previous {
                flight.missed = flight.missed.saturating_add(1);
                // When records were lost, one absence proves nothing; three do.
                if !lossy || flight.missed >= 3 {
                    absent.push(id.clone());
                }
            }
        }
        for id in absent {
            self.drop_flight(&id, EndedBy::Absent, at);
        }
    }

    /// Records were lost; any operation may be missing, any may be over.
    pub fn lost(&mut self, at: Ns) {
        let at = self.last_loss.map_or(at, |(_, before)| before.max(at));
        self.last_loss = Some((self.sequence, at));
    }

    /// The process is gone: all it did before `at` is over.
    pub fn process_gone(&mut self, pid: u32, before: Ns) {
        self.looks.remove(&pid);
        self.released.retain(|(of, _), (_, at)| *of != pid || *at >= before);
        let ids: Vec<OperationId> = self
            .flights
            .range(first_of(pid, 0)..)
            .take_while(|(id, _)| id.pid == pid)
            .filter(|(id, _)| id.begin < before)
            .map(|(id, _)| id.clone())
            .collect();
        for id in ids {
            self.flights.remove(&id);
            self.changes += 1;
        }
        let waits: Vec<(u32, u64)> = self
            .settling
            .range((pid, 0)..=(pid, u64::MAX))
            .filter(|(_, w)| w.ended < before)
            .map(|(key, _)| *key)
            .collect();
        for key in waits {
            self.settling.remove(&key);
        }
    }

    /// When an operation returns, everything its actor began within it is over too, even if those ends were lost.
    fn end_nested(&mut self, outer: &Operation, at: Ns) {
        if matches!(outer.kind, Kind::LockHold | Kind::LockWait | Kind::Stalled) {
            return; // A lock may be kept beyond the function that took it; a process goes on when it runs again.
        }
        let (pid, actor) = actor_key(&outer.actor);
        let within = |f: &Flight| (f.op.begin, f.op.kind) > (outer.begin, outer.kind) && f.op.begin < at;
        let mut over: Vec<OperationId> = self
            .ids_of(pid, actor)
            .filter(|(_, f)| !matches!(f.op.kind, Kind::LockHold | Kind::Stalled) && within(f))
            .map(|(id, _)| id.clone())
            .collect();
        if is_kernel(outer.kind) && outer.actor.g.is_some() {
            // A Go unmount pins its thread: kernel operations that were recorded on the thread lay within it.
            over.extend(
                self.ids_of(pid, u64::from(outer.actor.tid))
                    .filter(|(_, f)| is_kernel(f.op.kind) && within(f))
                    .map(|(id, _)| id.clone()),
            );
        }
        for id in over {
            self.drop_flight(&id, EndedBy::MovedOn, at);
        }
    }

    /// Operations in flight of this actor that hold the lock the semaphore may belong to.
    fn holding(&self, pid: u32, actor: u64, semaphore: u64) -> Vec<OperationId> {
        self.ids_of(pid, actor)
            .filter(|(_, f)| held_base(&f.op).is_some_and(|base| may_be_at(base, semaphore)))
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn drop_flight(&mut self, id: &OperationId, by: EndedBy, at: Ns) {
        if let Some(flight) = self.flights.remove(id) {
            self.changes += 1;
            self.uncertain_ends = self.uncertain_ends.saturating_add(1);
            let keep = (by == EndedBy::Absent).then(|| Box::new(flight));
            self.remember(id.clone(), by, at, keep);
        }
    }

    fn remember(&mut self, id: OperationId, by: EndedBy, at: Ns, flight: Option<Box<Flight>>) {
        let forgotten = self.past.insert(id, Past { by, at, flight });
        self.forgotten = self.forgotten.saturating_add(u64::from(forgotten));
    }
}

/// Whether a semaphore may belong to the lock at `base` (Mutex +4, RWMutex writers +8, readers +12).
pub fn may_be_at(base: u64, semaphore: u64) -> bool {
    matches!(semaphore.checked_sub(base), Some(4 | 8 | 12))
}

/// Whether a new wait goes on from one that has just ended: the same goroutine and lock (a writer first queues on +4,
/// then waits for readers on +8), within [`limits::REQUEUE_GAP`].
fn continues(before: &Settling, goid: Option<u64>, object: u64, begin: Ns) -> bool {
    let another = matches!((before.goid, goid), (Some(a), Some(b)) if a != b);
    !another
        && (object == before.semaphore || object == before.semaphore.wrapping_add(4))
        && begin >= before.ended
        && begin - before.ended <= limits::REQUEUE_GAP
}

fn settled_wait(actor: &Actor, wait: &Settling) -> Finished {
    Finished {
        op: Operation {
            kind: Kind::LockWait,
            method: String::new(),
            actor: *actor,
            begin: wait.since,
            object: wait.semaphore,
            container: None,
            path: None,
            device: None,
            fs_type: None,
            began: Began::Then,
            seen_by: crate::event::SeenBy::Uprobe,
        },
        at: wait.ended,
        outcome: Outcome::Done,
        was_seen: true,
    }
}

/// Fills what was not known before.
fn fill(known: &mut Operation, report: &Operation) {
    if known.container.is_none() {
        known.container.clone_from(&report.container);
    }
    if known.path.is_none() {
        known.path.clone_from(&report.path);
    }
    if known.device.is_none() {
        known.device = report.device;
    }
    if known.fs_type.is_none() {
        known.fs_type.clone_from(&report.fs_type);
    }
    if known.actor.goid.is_none() {
        known.actor.goid = report.actor.goid;
    }
}
