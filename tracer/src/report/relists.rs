//! Slow relists, one by one: which were explained, by what, and how long the node stood still for them.

use super::{Moment, RELISTS};
use crate::capture::line::Clock;
use crate::correlator::{Frame, Head, explains, words};
use crate::event::{Body, Event, Kind, Ns, OperationId, Outcome};
use serde::Serialize;
use std::collections::BTreeMap;

/// Calls that stand for a relist where no kubelet is seen.
const RELIST_CALLS: [&str; 2] = ["ListContainers", "ListPodSandbox"];
/// Slow relists in flight that are followed.
const FOLLOWED: usize = 4_096;
/// Stretches that are kept for the picture, and until all of an overlap is known.
const STRETCHES: usize = 4_096;

/// All slow relists, or list calls that stand for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Relists {
    /// Whether these are containerd's list calls, because no kubelet was seen.
    pub stand_in: bool,
    /// Slow ones that have ended and whose chain reached an end.
    pub explained: u64,
    /// Slow ones that have ended and whose cause was not visible.
    pub unexplained: u64,
    /// Age of the one that was in flight at the end, in nanoseconds.
    pub in_flight: Option<Ns>,
    /// The longest that has ended, slow or not, in nanoseconds.
    pub longest: Ns,
    /// The longest slow ones, in the order of their times; at most [`RELISTS`].
    pub slow: Vec<Relist>,
}

/// One slow relist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Relist {
    /// When it began.
    pub begin: Moment,
    /// How long it took, or had taken when the capture ended, in nanoseconds.
    pub took: Ns,
    /// Whether its end was seen.
    pub ended: bool,
    /// What it waited for; `None` when that was not visible.
    pub explained: Option<String>,
    /// Why it was not visible.
    pub because: Option<String>,
    /// The incident it belongs to.
    pub incident: Option<String>,
}

/// One that is in flight.
#[derive(Clone, Debug)]
struct Seen {
    explained: Option<String>,
    because: Option<String>,
    incident: Option<String>,
    /// Whether the last frame had it.
    there: bool,
    ended: Option<Ns>,
    /// Whether the end of the same call was seen as containerd serves it.
    served: bool,
}

/// Follows them.
#[derive(Clone, Debug, Default)]
pub(super) struct Follower {
    seen: BTreeMap<OperationId, Seen>,
    slow: Vec<Relist>,
    covered: Cover,
    stand_in: bool,
    /// Those over before a frame told of them, with their length.
    brief: Vec<(OperationId, Ns)>,
}

impl Follower {
    /// Something happened.
    pub fn event(&mut self, event: &Event, shown: Ns) {
        let Body::Ended(op, outcome) = &event.body else { return };
        let id = op.id();
        if let Some(seen) = self.seen.get_mut(&id) {
            seen.ended = Some(event.at);
            if seen.explained.is_none() && *outcome != Outcome::Done {
                seen.because.get_or_insert_with(|| "it failed".to_owned());
            }
            return;
        }
        let took = event.at.saturating_sub(op.begin);
        let list = op.kind == Kind::CriCall && RELIST_CALLS.contains(&op.method.as_str()) && self.stand_in;
        if (op.kind != Kind::Relist && !list) || took < shown {
            return;
        }
        // A kubelet's call is known by its own side, which ends a moment later: it is one call.
        let same = |(of, seen): &(&OperationId, &mut Seen)| {
            of.kind == Kind::CriClient && of.method == op.method && of.begin <= op.begin && !seen.served
        };
        if let Some((_, seen)) = self.seen.iter_mut().find(same) {
            seen.served = true;
        } else if self.brief.len() < RELISTS {
            self.brief.push((id, took));
        }
    }

    /// A frame; nothing that is over by it will be told of again.
    pub fn frame(&mut self, frame: &Frame, clock: &Clock) {
        self.stand_in = frame.relists.stand_in;
        self.seen.values_mut().for_each(|seen| seen.there = false);
        for d in &frame.diagnoses {
            for call in d.stuck_calls.iter().filter(|c| matches!(c.head, Head::Relist | Head::ListCall)) {
                if self.seen.len() >= FOLLOWED && !self.seen.contains_key(&call.id) {
                    continue;
                }
                let seen = self.seen.entry(call.id.clone()).or_insert(Seen {
                    explained: None,
                    because: None,
                    incident: None,
                    there: true,
                    ended: None,
                    served: false,
                });
                seen.there = true;
                if explains(&d.ends_in) {
                    seen.explained = Some(words::cause(d));
                } else if seen.explained.is_none() {
                    seen.because = words::because(&d.ends_in).map(str::to_owned);
                }
                seen.incident = d.incident.clone().or(seen.incident.take());
            }
        }
        // Only some of those that wait for the same are listed.
        let cut = frame.diagnoses.iter().any(|d| d.stuck_calls_total > d.stuck_calls.len() as u64);
        let over = |seen: &Seen| seen.ended.is_some_and(|at| at < frame.now) || (!seen.there && !cut);
        let done: Vec<OperationId> =
            self.seen.iter().filter(|(_, seen)| over(seen)).map(|(id, _)| id.clone()).collect();
        for id in done {
            let Some(seen) = self.seen.remove(&id) else { continue };
            let end = seen.ended.unwrap_or(frame.now);
            self.keep(id.begin, end, seen.ended.is_some(), seen, clock);
        }
        for (id, took) in std::mem::take(&mut self.brief) {
            if self.seen.contains_key(&id) {
                continue;
            }
            let because = Some("it was over before its chain was looked at".to_owned());
            let seen =
                Seen { explained: None, because, incident: None, there: false, ended: None, served: false };
            self.keep(id.begin, id.begin.saturating_add(took), true, seen, clock);
        }
        for late in &frame.relists.hindsight {
            if let Some(relist) = self.slow.iter_mut().rev().find(|relist| relist.begin.at == late.begin) {
                relist.explained = Some(late.explained.clone());
                relist.because = None;
            }
        }
        if self.seen.is_empty() {
            self.covered.settle();
        }
    }

    fn keep(&mut self, begin: Ns, end: Ns, ended: bool, seen: Seen, clock: &Clock) {
        self.covered.add(begin, end);
        self.slow.push(Relist {
            begin: Moment { at: begin, time: clock.rfc3339(begin) },
            took: end.saturating_sub(begin),
            ended,
            because: seen.because.filter(|_| seen.explained.is_none()),
            explained: seen.explained,
            incident: seen.incident,
        });
        if self.slow.len() > 2 * RELISTS {
            self.longest_only();
        }
    }

    fn longest_only(&mut self) {
        self.slow.sort_by_key(|one| (std::cmp::Reverse(one.took), one.begin.at));
        self.slow.truncate(RELISTS);
    }

    /// All of them, how long at least one was in flight, and when that was.
    pub fn finish(mut self, last: &Frame, clock: &Clock) -> (Relists, Ns, Vec<(Ns, Ns)>) {
        for (id, seen) in std::mem::take(&mut self.seen) {
            let end = seen.ended.unwrap_or(last.now);
            self.keep(id.begin, end, seen.ended.is_some(), seen, clock);
        }
        self.covered.settle();
        self.longest_only();
        self.slow.sort_by_key(|one| (one.begin.at, one.took));
        let summary = &last.relists;
        let relists = Relists {
            stand_in: summary.stand_in,
            explained: summary.explained,
            unexplained: summary.unexplained,
            in_flight: summary.in_flight,
            longest: summary.longest,
            slow: self.slow,
        };
        (relists, self.covered.total, self.covered.stretches)
    }
}

/// How long at least one of several things lasted.
#[derive(Clone, Debug, Default)]
pub(super) struct Cover {
    /// In nanoseconds, of all that has settled.
    pub total: Ns,
    /// When that was, merged, in order; bounded by [`STRETCHES`], the first are kept.
    pub stretches: Vec<(Ns, Ns)>,
    unsettled: Vec<(Ns, Ns)>,
}

impl Cover {
    /// Something lasted from `begin` to `end`.
    pub fn add(&mut self, begin: Ns, end: Ns) {
        if self.unsettled.len() >= STRETCHES {
            self.unsettled = merged(std::mem::take(&mut self.unsettled));
        }
        self.unsettled.push((begin, end.max(begin)));
    }

    /// Nothing that is added from now on began before what was added so far had ended.
    pub fn settle(&mut self) {
        for (begin, end) in merged(std::mem::take(&mut self.unsettled)) {
            let begin = begin.max(self.stretches.last().map_or(0, |last| last.1));
            self.total = self.total.saturating_add(end.saturating_sub(begin));
            if self.stretches.len() < STRETCHES && end > begin {
                self.stretches.push((begin, end));
            }
        }
    }
}

/// The same stretches without overlaps, in order.
fn merged(mut stretches: Vec<(Ns, Ns)>) -> Vec<(Ns, Ns)> {
    stretches.sort_unstable();
    let mut out: Vec<(Ns, Ns)> = Vec::new();
    for (begin, end) in stretches {
        match out.last_mut() {
            Some(last) if begin <= last.1 => last.1 = last.1.max(end),
            _ => out.push((begin, end)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_counts_once() {
        let mut cover = Cover::default();
        for (begin, end) in [(10, 20), (15, 18), (5, 12), (30, 31)] {
            cover.add(begin, end);
        }
        assert_eq!(cover.total, 0);
        cover.settle();
        assert_eq!((cover.total, cover.stretches.clone()), (16, vec![(5, 20), (30, 31)]));
        cover.add(40, 45);
        cover.settle();
        assert_eq!(cover.total, 21);
    }
}
