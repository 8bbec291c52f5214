//! Slow relists since the start, and which of them could be explained: while they lasted, or in hindsight.
//!
//! Starvation is told when it has lasted for two seconds (`node::stalls`), and a relist that was slow because of it may be over
//! by then. What is told then began before that relist was over, so it is explained after all.

use super::diagnosis::{Diagnoses, explains};
use super::facts::Facts;
use super::frame::{Hindsight, RelistSummary};
use super::operations::{Finished, Operations};
use super::{limits, stalls, words};
use crate::event::{Kind, Ns, Operation, OperationId};
use std::collections::{BTreeMap, VecDeque};

/// Keeps count.
#[derive(Clone, Debug, Default)]
pub struct Relists {
    summary: RelistSummary,
    /// Slow ones in flight.
    slow: BTreeMap<OperationId, Slow>,
    /// Slow ones that have ended unexplained, oldest first.
    unexplained: VecDeque<Slow>,
}

/// A slow relist.
#[derive(Clone, Debug)]
struct Slow {
    begin: Ns,
    /// When it was in flight for certain.
    seen: Ns,
    /// Whether its chain has reached an end that explains it.
    explained: bool,
    /// Processes of which it would be known that it waits for them if it were known that they do not run.
    needs: Vec<u32>,
}

impl Slow {
    /// Whether at least half of it came after that: what began only at its end has not made it slow.
    fn mostly_after(&self, at: Ns) -> bool {
        self.seen.saturating_sub(at) >= self.seen.saturating_sub(self.begin) / 2 && at < self.seen
    }
}

impl Relists {
    /// One has ended; whether it was slow is for `shown` to say.
    pub fn ended(&mut self, f: &Finished, facts: &Facts, shown: Ns) {
        let took = f.at.saturating_sub(f.op.begin);
        self.summary.longest = self.summary.longest.max(took);
        if took >= shown && !self.slow.contains_key(&f.op.id()) {
            // It was over before a tick saw its chain.
            let needs = needs(&f.op, f.op.container.as_deref(), facts);
            self.unexplained(Slow { begin: f.op.begin, seen: f.at, explained: false, needs });
        }
    }

    /// One has ended unexplained.
    fn unexplained(&mut self, slow: Slow) {
        self.summary.unexplained = self.summary.unexplained.saturating_add(1);
        if self.unexplained.len() >= limits::UNEXPLAINED {
            self.unexplained.pop_front();
        }
        self.unexplained.push_back(slow);
    }

    /// Splits slow relists into explained and unexplained.
    pub fn tick(
        &mut self,
        diagnoses: &Diagnoses,
        operations: &Operations,
        facts: &Facts,
        now: Ns,
    ) -> RelistSummary {
        self.summary.stand_in = diagnoses.stand_in;
        for f in &diagnoses.found {
            let explained = explains(&f.diagnosis.ends_in);
            let needs = f.diagnosis.chain.links.last().filter(|_| !explained).map_or(Vec::new(), |link| {
                let container = link.subject.as_ref().map(|subject| subject.id.as_str());
                needs(&link.operation, container, facts)
            });
            for id in &f.relists {
                if self.slow.len() < limits::SLOW_RELISTS || self.slow.contains_key(id) {
                    let slow = self.slow.entry(id.clone()).or_insert(Slow {
                        begin: id.begin,
                        seen: now,
                        explained,
                        needs: Vec::new(),
                    });
                    slow.seen = now;
                    slow.explained |= explained;
                    slow.needs.clone_from(&needs);
                }
            }
        }
        let over = self.slow.extract_if(.., |id, _| !operations.contains(id)).map(|(_, slow)| slow);
        for slow in over.collect::<Vec<_>>() {
            if slow.explained {
                self.summary.explained = self.summary.explained.saturating_add(1);
            } else {
                self.unexplained(slow);
            }
        }
        self.look_back(operations, facts, now);
        self.summary.in_flight =
            diagnoses.found.iter().flat_map(|f| &f.relists).map(|id| now.saturating_sub(id.begin)).max();
        self.summary.clone()
    }

    /// Whether it is known now of a process that it did not run while one of them waited for it.
    fn look_back(&mut self, operations: &Operations, facts: &Facts, now: Ns) {
        let summary = &mut self.summary;
        summary.hindsight.clear();
        self.unexplained.retain(|slow| {
            let stall = operations
                .iter()
                .map(|flight| &flight.op)
                .filter(|op| op.kind == Kind::Stalled && slow.mostly_after(op.begin))
                .find(|op| slow.needs.contains(&op.actor.pid));
            if let Some(stall) = stall {
                summary.explained = summary.explained.saturating_add(1);
                summary.unexplained = summary.unexplained.saturating_sub(1);
                let role = words::role(facts.who(&stall.actor).role);
                let explained = format!("{role} that was {}", stall.method);
                summary.hindsight.push(Hindsight { begin: slow.begin, explained });
            }
            stall.is_none() && slow.seen.saturating_add(limits::HINDSIGHT) >= now
        });
    }

    /// Sizes of its collections beside their bounds.
    pub fn sizes(&self) -> [(usize, usize); 2] {
        [(self.slow.len(), limits::SLOW_RELISTS), (self.unexplained.len(), limits::UNEXPLAINED)]
    }
}

/// Whoever must run so that an operation goes on that waits for nothing else as far as is known: its process, and the one that
/// should serve it.
fn needs(op: &Operation, container: Option<&str>, facts: &Facts) -> Vec<u32> {
    [Some(op.actor.pid), stalls::server_of(op, container, facts)].into_iter().flatten().collect()
}
