//! Exits of containers that containerd has not handled yet: the container is gone and containerd still says Running.
//!
//! ```text
//! attempt 1       attempt 2            attempt 3                   (containerd's internal/cri/server/events.go, the same
//! ├── 10 s ──✗ 1s ├── 10 s ──✗  2s     ├── 3 s ──✓ reported         rule from 1.4 to 2.3)
//! └─ first begin: the container exited before this ──────┘ late
//! ```
//!
//! An attempt gets ten seconds (`handleEventTimeout`). One that fails goes to a back-off queue: one second, doubled at each
//! further failure up to five minutes, and looked at once a second. One goroutine works that queue off, exit by exit, so a
//! retry that hangs holds up all others that are due. The first attempt has a goroutine of its own (since 1.5), so it holds
//! up nobody. Between two attempts no operation is in flight, and the exit is as late as before: that is what this is for.

use super::graph::{Graph, Next};
use super::ground::Ground;
use super::limits;
use super::operations::{Finished, Flight, is_found};
use crate::event::{Actor, Kind, Ns, Operation, OperationId, Outcome, Process};
use crate::thresholds::{MILLISECOND, SECOND};
use compact_str::CompactString;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// containerd gives one attempt this long.
const TIMEOUT: Ns = 10 * SECOND;
/// An attempt that lasted longer than this has run into [`TIMEOUT`].
const TIMED_OUT: Ns = TIMEOUT - 200 * MILLISECOND;
/// Wait before the second attempt, and the longest wait.
const BACK_OFF: (Ns, Ns) = (SECOND, 300 * SECOND);

/// How far containerd has got with a container's exit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    /// Attempts that were seen to begin.
    pub begun: u32,
    /// Whether there were others before, since the first that was seen was a retry already.
    pub more: bool,
    /// Whether one is in flight.
    pub in_flight: bool,
    /// The last that failed.
    pub failed: Option<Failed>,
    /// About when the next one begins (an estimate by containerd's back-off rule); `None` while one is in flight.
    pub next: Option<Ns>,
}

/// An attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// How long it took.
    pub took: Ns,
    /// Whether it ran into containerd's limit: `context deadline exceeded`.
    pub deadline: bool,
    /// Whether its error was seen; else it is told from the time that it took.
    pub seen: bool,
}

/// A container by its id, in this containerd.
type ExitOf = (String, u32);

/// An exit that has been handled at last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported {
    /// When.
    pub at: Ns,
    /// Begin of the first attempt.
    pub first: Ns,
    /// Attempts that were seen.
    pub attempts: u32,
}

/// All exits that are not handled yet, and those that were late.
#[derive(Clone, Debug, Default)]
pub struct Exits {
    pending: BTreeMap<ExitOf, Exit>,
    reported: BTreeMap<ExitOf, Reported>,
    /// The goroutine that retries, by containerd.
    retrier: BTreeMap<u32, Actor>,
    /// Exits left out because [`limits::EXITS`] was reached.
    pub dropped: u64,
}

/// An exit that is not handled yet.
#[derive(Clone, Debug)]
struct Exit {
    first: Ns,
    begun: u32,
    now: Option<Operation>,
    last: Option<Attempt>,
    /// The wait before the last attempt, where that tells more than the number of attempts that were seen.
    waited: Option<Ns>,
}

#[derive(Clone, Debug)]
struct Attempt {
    actor: Actor,
    begin: Ns,
    at: Ns,
    seen: bool,
}

impl Exit {
    fn attempts(&self) -> Attempts {
        Attempts {
            begun: self.begun,
            more: self.waited.is_some(),
            in_flight: self.now.is_some(),
            failed: self.last.as_ref().map(|last| {
                let took = last.at.saturating_sub(last.begin);
                Failed { took, deadline: took >= TIMED_OUT, seen: last.seen }
            }),
            next: self.next(),
        }
    }

    fn next(&self) -> Option<Ns> {
        let last = self.last.as_ref().filter(|_| self.now.is_none())?;
        let wait = match self.waited {
            // It was looked at once a second, so it was a little shorter: a power of two.
            Some(waited) => BACK_OFF.0 << ((waited / BACK_OFF.0).max(1).ilog2() + 1).min(16),
            None => BACK_OFF.0 << self.begun.saturating_sub(1).min(16),
        };
        Some(last.at.saturating_add(wait.min(BACK_OFF.1)))
    }
}

/// An exit between two attempts, as if it were an operation in flight.
pub struct Waiting {
    /// The operation that stands for it: its identity is the same between all attempts.
    pub flight: Flight,
    /// Whether its next attempt is due.
    pub due: bool,
}

/// The identity by which an exit is known over all attempts.
pub fn identity(pid: u32, first: Ns) -> OperationId {
    OperationId {
        pid,
        actor: u64::from(pid),
        kind: Kind::ExitHandling,
        method: CompactString::const_new(""),
        object: 0,
        begin: first,
    }
}

fn of_container(id: &str) -> std::ops::RangeInclusive<ExitOf> {
    (id.to_owned(), 0)..=(id.to_owned(), u32::MAX)
}

/// Whether the probe in this program can tell that an attempt failed: with the old calling convention (Go before 1.17) the
/// result lies too deep in the stack.
fn tells_errors(containerd: Option<&Process>) -> bool {
    let version = containerd.and_then(|p| p.go_version.strip_prefix("go1."));
    let minor = version.and_then(|v| v.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok());
    minor.is_some_and(|minor| minor >= 17)
}

impl Exits {
    /// An attempt is in flight. To be called at each report.
    pub fn begun(&mut self, op: &Operation) {
        let Some(id) = &op.container else { return };
        let key = (id.clone(), op.actor.pid);
        if !self.pending.contains_key(&key) {
            if self.pending.len() >= limits::EXITS {
                self.dropped = self.dropped.saturating_add(1);
                return;
            }
            // What was taken for reported was not: its error could not be seen.
            let before = self.reported.remove(&key);
            let (first, begun) = before.map_or((op.begin, 0), |r| (r.first, r.attempts));
            self.pending.insert(key.clone(), Exit { first, begun, now: None, last: None, waited: None });
        }
        let Some(exit) = self.pending.get_mut(&key) else { return };
        match (&exit.now, is_found(op)) {
            // What a look finds is the attempt that is in flight, or one that was over before it was told.
            (Some(_), true) => return,
            (None, true) if exit.last.as_ref().is_some_and(|last| last.at >= op.begin) => return,
            // The one that a look has found, as a probe saw it begin.
            (Some(now), false)
                if is_found(now)
                    && op.begin <= now.begin
                    && exit.last.as_ref().is_none_or(|last| last.begin < op.begin) =>
            {
                exit.first = exit.first.min(op.begin);
                exit.now = Some(op.clone());
                return;
            }
            _ => {}
        }
        let known = |begin: Option<Ns>| begin.is_some_and(|begin| begin >= op.begin);
        if known(exit.now.as_ref().map(|now| now.begin)) {
            return;
        }
        if exit.last.as_ref().is_some_and(|last| last.begin > op.begin) {
            return;
        }
        if !known(exit.last.as_ref().map(|last| last.begin)) {
            exit.begun = exit.begun.saturating_add(1);
        }
        exit.first = exit.first.min(op.begin);
        if let Some(last) = exit.last.as_ref().filter(|last| last.begin < op.begin)
            && (exit.waited.is_some()
                || (exit.begun == 2 && op.actor.g.is_some() && last.actor.is(&op.actor)))
        {
            // The first attempt has a goroutine of its own: what was seen first was a retry.
            exit.waited = Some(op.begin.saturating_sub(last.at));
        }
        if let Some(before) = exit.now.replace(op.clone()) {
            let at = op.begin.min(before.begin.saturating_add(TIMEOUT));
            exit.last = Some(Attempt { actor: before.actor, begin: before.begin, at, seen: false });
        }
        // Until 1.4 one goroutine makes all attempts, the first ones too.
        let again = exit.begun > 1;
        let shared = || {
            self.pending.iter().any(|(other, exit)| {
                *other != key && exit.last.as_ref().is_some_and(|last| last.actor.is(&op.actor))
            })
        };
        if op.actor.g.is_some() && (again || shared()) {
            self.retrier.insert(key.1, op.actor);
        }
    }

    /// An attempt has ended; `containerd` is the program that made it.
    pub fn ended(&mut self, f: &Finished, containerd: Option<&Process>) {
        self.begun(&f.op);
        let Some(id) = &f.op.container else { return };
        let key = (id.clone(), f.op.actor.pid);
        let Some(exit) = self.pending.get_mut(&key) else { return };
        if exit.now.as_ref().is_none_or(|now| now.begin != f.op.begin) {
            return; // An earlier attempt, told late.
        }
        let seen = f.outcome != Outcome::Done;
        let took = f.at.saturating_sub(f.op.begin);
        if seen || (took >= TIMED_OUT && !tells_errors(containerd)) {
            exit.last = Some(Attempt { actor: f.op.actor, begin: f.op.begin, at: f.at, seen });
            exit.now = None;
            return;
        }
        let reported = Reported { at: f.at, first: exit.first, attempts: exit.begun };
        self.pending.remove(&key);
        if (reported.attempts > 1 || took >= SECOND) && self.reported.len() < limits::EXITS {
            self.reported.insert(key, reported);
        }
    }

    /// The process is gone: what this containerd was to do before `before` is no more.
    pub fn process_gone(&mut self, pid: u32, before: Ns) {
        self.pending.retain(|(_, of), exit| *of != pid || exit.first >= before);
    }

    /// Forgets what is over without having been told. `in_flight` says which operations are.
    pub fn tick(&mut self, now: Ns, in_flight: impl Fn(&OperationId) -> bool) {
        self.pending.retain(|_, exit| {
            if let Some(op) = exit.now.take_if(|op| !in_flight(&op.id())) {
                // Its end was not reported. Only the time tells how it ended.
                if now.saturating_sub(op.begin) < TIMED_OUT {
                    return false;
                }
                let at = now.min(op.begin.saturating_add(TIMEOUT));
                exit.last = Some(Attempt { actor: op.actor, begin: op.begin, at, seen: false });
            }
            exit.next().is_none_or(|next| next.saturating_add(limits::EXIT_OVERDUE) > now)
        });
        self.reported.retain(|_, r| r.at.saturating_add(limits::AFTERMATH) > now);
        let pending = &self.pending;
        self.retrier.retain(|pid, _| pending.keys().any(|(_, of)| of == pid));
    }

    /// Exits between two attempts.
    pub fn waiting(&self, now: Ns) -> Vec<Waiting> {
        let between = self.pending.iter().filter(|(_, exit)| exit.now.is_none() && exit.last.is_some());
        let waiting = between.map(|((id, pid), exit)| Waiting {
            flight: Flight::standing_for(Operation {
                kind: Kind::ExitHandling,
                method: String::new(),
                actor: Actor { pid: *pid, tid: *pid, g: None, goid: None },
                begin: exit.first,
                object: 0,
                container: Some(id.clone()),
                path: None,
                device: None,
                fs_type: None,
                began: crate::event::Began::Then,
                seen_by: crate::event::SeenBy::Uprobe,
            }),
            due: exit.next().is_some_and(|next| next <= now),
        });
        waiting.collect()
    }

    /// Begin of the first attempt, and how far containerd has got, of an attempt that is in flight or of an exit that waits.
    pub fn of(&self, op: &Operation) -> Option<(Ns, Attempts)> {
        let exit = self.pending.get(&(op.container.clone()?, op.actor.pid))?;
        Some((exit.first, exit.attempts()))
    }

    /// Whether this attempt is made by the goroutine that retries all others.
    pub fn holds_up_others(&self, op: &Operation) -> bool {
        op.actor.g.is_some() && self.retrier.get(&op.actor.pid).is_some_and(|a| a.is(&op.actor))
    }

    /// Whether an exit of this identity is pending.
    pub fn contains(&self, id: &OperationId) -> bool {
        id.kind == Kind::ExitHandling
            && self.pending.iter().any(|((_, pid), exit)| identity(*pid, exit.first) == *id)
    }

    /// Whether the exit of this identity has been reported lately.
    pub fn has_reported(&self, id: &OperationId) -> bool {
        id.kind == Kind::ExitHandling
            && self.reported.iter().any(|((_, pid), r)| identity(*pid, r.first) == *id)
    }

    /// Exits of this container that are pending: begin of the first attempt, and how far containerd has got.
    pub fn pending_of(&self, id: &str) -> Option<(Ns, Attempts)> {
        let (_, exit) = self.pending.range(of_container(id)).next()?;
        Some((exit.first, exit.attempts()))
    }

    /// The exit of this container, where it has been reported lately and late.
    pub fn reported_of(&self, id: &str) -> Option<Reported> {
        self.reported.range(of_container(id)).next().map(|(_, r)| *r)
    }

    /// Sizes of the bounded collections beside their bounds, for tests.
    pub fn sizes(&self) -> [(usize, usize); 2] {
        [(self.pending.len(), limits::EXITS), (self.reported.len(), limits::EXITS)]
    }
}

impl Graph<'_> {
    /// Where the chain of a late exit goes on: between two attempts, and where nothing is seen below an attempt, to what an
    /// earlier attempt has left behind in the shim; else, when the next attempt is due, to the exit that has its turn.
    pub(super) fn link_late_exits(&mut self, exits: &Exits) {
        let late: Vec<usize> = (0..self.nodes.len())
            .filter(|&i| self.nodes[i].exit.as_ref().is_some_and(|exit| exit.failed.is_some()))
            .collect();
        for i in late {
            let Some(&tip) = self.stacks[self.nodes[i].stack].members.last() else { continue };
            if matches!(self.nodes[tip].next, Next::To { .. }) {
                continue;
            }
            let next = match self.removal_of(i) {
                Some(n) => {
                    let to = self.stacks[self.nodes[n].stack].members.first().copied().unwrap_or(n);
                    Some((to, Ground::RemovalGoesOn))
                }
                None if self.nodes[i].waiting == Some(true) => {
                    self.turn_before(i, exits).map(|to| (to, Ground::RetriedInTurn))
                }
                None => None,
            };
            if let Some((to, ground)) = next {
                // Before its own attempt was due it did not wait for its turn.
                let due = match ground {
                    Ground::RetriedInTurn => self.nodes[i].exit.as_ref().and_then(|exit| exit.next),
                    _ => None,
                };
                let since = self.begin(tip).max(self.begin(to)).max(due.unwrap_or(0));
                self.nodes[tip].next = self.edge(tip, to, ground, since);
            }
        }
    }

    /// The Delete of this exit's container that goes on in its shim, or its unmount where the shim is not probed.
    fn removal_of(&self, exit: usize) -> Option<usize> {
        let op = &self.nodes[exit].flight.op;
        let goes_on = |&n: &usize| {
            let node = &self.nodes[n];
            let removal = match node.flight.op.kind {
                Kind::ShimServe | Kind::InitMethod => node.flight.op.method == "Delete",
                Kind::Unmount => true,
                _ => false,
            };
            removal && node.container == op.container && node.flight.op.actor.pid != op.actor.pid
        };
        (0..self.nodes.len()).filter(goes_on).min_by_key(|&n| (self.begin(n), n))
    }

    /// The attempt for another exit that the goroutine is at which retries them all.
    fn turn_before(&self, exit: usize, exits: &Exits) -> Option<usize> {
        let pid = self.nodes[exit].flight.op.actor.pid;
        (0..self.nodes.len()).find(|&n| {
            let other = &self.nodes[n];
            let op = &other.flight.op;
            other.waiting.is_none()
                && op.kind == Kind::ExitHandling
                && op.actor.pid == pid
                && exits.holds_up_others(op)
        })
    }
}
