//! Operations that were found by looking at a process's memory, and how they join those that probes report.
//!
//! Such an operation began at its begin *or before*, so nothing is concluded from that begin being the later of two.
//! No probe saw it begin, so none will tell its end: it is over when a later look does not find it.

use super::super::limits;
use super::{EndedBy, Flight, Operations, actor_key};
use crate::event::{Actor, Began, Kind, Ns, Operation, OperationId, SeenBy};

/// Whether it was found by looking.
pub fn is_found(op: &Operation) -> bool {
    op.seen_by == SeenBy::Memory
}

/// Whether `inner` can have begun within `outer`, by what is known of their begins.
pub fn may_follow(inner: &Operation, outer: &Operation) -> bool {
    inner.begin >= outer.begin || outer.began == Began::ThenOrBefore
}

/// Whether both are reports of one operation, or one of them is stale.
fn same(a: &Operation, b: &Operation) -> bool {
    let another = matches!((a.actor.goid, b.actor.goid), (Some(a), Some(b)) if a != b);
    let elsewhere = a.object != b.object && a.object != 0 && b.object != 0;
    a.kind == b.kind && a.method == b.method && !another && !elsewhere
}

/// Where an operation stands in a chain within one goroutine, outermost first.
fn depth(kind: Kind) -> (u8, Kind) {
    // An exit is handled by updating the status.
    (if kind == Kind::ExitHandling { Kind::CriCall as u8 } else { kind as u8 }, kind)
}

/// The order of an actor's operations, outermost first. One that was found began before any of those that are further in
/// by what they are.
pub fn outermost_first(a: &Operation, others: &[&Operation]) -> (Ns, (u8, Kind)) {
    let within = others.iter().filter(|o| depth(o.kind) > depth(a.kind)).map(|o| o.begin).min();
    let begin = match (a.began, within) {
        (Began::ThenOrBefore, Some(within)) => a.begin.min(within),
        _ => a.begin,
    };
    (begin, depth(a.kind))
}

impl Operations {
    /// Takes a report together with what is known of the same operation from elsewhere; whether that was all there was to
    /// do. A begin that a probe saw is worth more than one that was only found.
    pub(super) fn join(&mut self, op: &Operation, at: Ns) -> bool {
        let (pid, actor) = actor_key(&op.actor);
        if is_found(op) && self.has_returned_since(op) {
            return true; // The look was before that.
        }
        let Some(known) = self.ids_of(pid, actor).find(|(_, f)| same(&f.op, op)).map(|(id, _)| id.clone())
        else {
            return false;
        };
        let Some(flight) = self.flights.get_mut(&known) else { return false };
        match (is_found(&flight.op), is_found(op)) {
            (true, true) if op.begin > flight.op.begin => {
                // Another call of the same: the one that was found before is over.
                self.drop_flight(&known, EndedBy::Absent, at);
                false
            }
            (_, true) => {
                super::fill(&mut flight.op, op);
                // What a probe saw begin is followed by its polls.
                if is_found(&flight.op) {
                    (flight.reported, flight.reported_at) = (self.sequence, flight.reported_at.max(at));
                }
                true
            }
            (true, false) => {
                self.flights.remove(&known);
                false
            }
            (false, false) => false,
        }
    }

    /// Whether this actor was seen to come back from such an operation since it was found to be in it.
    fn has_returned_since(&self, op: &Operation) -> bool {
        let (pid, actor) = actor_key(&op.actor);
        self.past.of_actor(pid, actor).any(|(id, past)| {
            past.by == EndedBy::Returned
                && id.kind == op.kind
                && id.method == op.method
                && past.at >= op.begin
        })
    }

    /// Remembers who released a semaphore last; of more than [`limits::RELEASES`], those of the longest ago are forgotten.
    pub(super) fn note_release(&mut self, by: &Actor, semaphore: u64, at: Ns) {
        self.released.insert((by.pid, semaphore), (*by, at));
        if self.released.len() > limits::RELEASES
            && let Some(oldest) = self.released.iter().min_by_key(|(_, (_, at))| *at).map(|(key, _)| *key)
        {
            self.released.remove(&oldest);
        }
    }

    /// Who was seen to release a semaphore last.
    pub fn last_release(&self, pid: u32, semaphore: u64) -> Option<&Actor> {
        self.released.get(&(pid, semaphore)).map(|(by, _)| by)
    }

    /// A process was looked at: what was found there before and not this time is over.
    pub fn looked(&mut self, pid: u32, at: Ns) {
        if self.looks.len() >= limits::PROCESSES && !self.looks.contains_key(&pid) {
            self.looks.pop_first(); // Its operations are over at the look after the next.
        }
        let before = self.looks.insert(pid, self.sequence).unwrap_or(0);
        let gone =
            |(id, f): (&OperationId, &Flight)| (is_found(&f.op) && f.reported <= before).then(|| id.clone());
        let first = super::first_of(pid, 0);
        let of_process = self.flights.range(first..).take_while(|(id, _)| id.pid == pid);
        for id in of_process.filter_map(gone).collect::<Vec<_>>() {
            self.drop_flight(&id, EndedBy::Absent, at);
        }
    }
}
