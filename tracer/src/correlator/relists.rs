//! Slow relists since the start, and which of them could be explained: while they lasted, or in hindsight.
//!
//! Starvation is told when it has lasted for two seconds (`node::stalls`), and a relist that was slow because of it may be over
//! by then. What is told then began before that relist was over, so it is explained after all.

use super::diagnosis::{Diagnoses, explains};
use super::facts::Facts;
use super::frame::{Hindsight, RelistSummary};
use super::operations::Operations;
use super::{limits, stalls, words};
use crate::event::{Kind, Ns, OperationId};
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

impl Relists {
    /// One has ended, after `took`; whether that is slow is for `shown` to say.
    pub fn ended(&mut self, id: &OperationId, took: Ns, shown: Ns) {
        self.summary.longest = self.summary.longest.max(took);
        if took >= shown && !self.slow.contains_key(id) {
            // It was over before a tick saw its chain.
            self.summary.unexplained = self.summary.unexplained.saturating_add(1);
        }
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
                let server = stalls::server_of(&link.operation, container, facts);
                [Some(link.operation.actor.pid), server].into_iter().flatten().collect()
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
        let (summary, unexplained) = (&mut self.summary, &mut self.unexplained);
        self.slow.retain(|id, slow| {
            if operations.contains(id) {
                return true;
            }
            if slow.explained {
                summary.explained = summary.explained.saturating_add(1);
            } else {
                summary.unexplained = summary.unexplained.saturating_add(1);
                if unexplained.len() >= limits::UNEXPLAINED {
                    unexplained.pop_front();
                }
                unexplained.push_back(slow.clone());
            }
            false
        });
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
                .filter(|op| op.kind == Kind::Stalled && op.begin < slow.seen)
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
