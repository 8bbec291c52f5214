//! What has been: seconds, slow relists and incidents, each in a bounded row. Made of frames alone, so that a replay shows
//! what the live screen showed.

use crate::correlator::{Change, Diagnosis, EndsIn, Frame, Head, Incident, words};
use crate::event::{Device, Ns, Resource};
use crate::sinks::text;
use crate::thresholds::SECOND;
use std::collections::VecDeque;

/// Seconds that are remembered.
pub const SECONDS: usize = 600;
/// Slow relists that are remembered.
pub const RELISTS: usize = 64;
/// Incidents that are remembered.
pub const INCIDENTS: usize = 128;
/// Devices of which the rate is remembered, those that write the most.
const DEVICES: usize = 8;

/// What has been.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Oldest first; seconds without a frame are missing.
    seconds: VecDeque<Second>,
    /// Slow relists that have ended, oldest first.
    relists: VecDeque<SlowRelist>,
    /// Incidents, oldest first.
    incidents: VecDeque<Known>,
    /// Incidents that have been forgotten.
    pub forgotten: u64,
    /// The relist in flight, as it was last seen.
    relist: Option<SlowRelist>,
    latest: Ns,
}

/// One second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Second {
    /// When it began.
    pub at: Ns,
    /// The greatest age that the relist in flight came to; `None` where none was slow.
    pub relist: Option<Ns>,
    /// Bytes dirty and under writeback, where that is known.
    pub memory: Option<(u64, u64)>,
    /// Millionths of the time in which somebody waited, by resource, where that is known.
    pub pressures: Vec<(Resource, u32)>,
    /// Bytes written per second, by device.
    pub rates: Vec<(Device, u64)>,
}

/// A slow relist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowRelist {
    /// When it was seen last.
    pub at: Ns,
    /// How old it was then.
    pub age: Ns,
    /// What it was waiting for, as known last.
    pub cause: Option<String>,
}

/// An incident, as known last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// It.
    pub incident: Incident,
    /// The incident that it has turned out to be part of.
    pub part_of: Option<String>,
    /// Its last diagnosis, as for a ticket.
    pub ticket: Vec<String>,
}

impl History {
    /// Another moment.
    pub fn frame(&mut self, frame: &Frame) {
        if frame.now < self.latest {
            self.back_to(frame.now);
        }
        self.latest = frame.now;
        self.second(frame);
        self.relist(frame);
        for incident in &frame.incidents {
            self.incident(frame, incident);
        }
    }

    /// A replay has gone back: what comes after that has not been yet.
    fn back_to(&mut self, now: Ns) {
        self.seconds.retain(|s| s.at <= now);
        self.relists.retain(|r| r.at <= now);
        self.incidents.retain(|k| k.incident.opened <= now);
        self.relist = None;
    }

    fn second(&mut self, frame: &Frame) {
        let at = frame.now - frame.now % SECOND;
        if self.seconds.back().is_none_or(|s| s.at != at) {
            if self.seconds.len() >= SECONDS {
                self.seconds.pop_front();
            }
            self.seconds.push_back(Second { at, ..Second::default() });
        }
        let Some(second) = self.seconds.back_mut() else { return };
        second.relist = second.relist.max(frame.relists.in_flight);
        second.memory = frame.memory.map(|m| (m.dirty, m.writeback)).or(second.memory);
        second.pressures = frame.pressures.iter().filter_map(|p| Some((p.of, p.some_ppm?))).collect();
        let mut rates: Vec<(Device, u64)> =
            frame.devices.iter().filter_map(|d| Some((d.device.device, d.bytes_per_second?))).collect();
        rates.sort_by_key(|(device, rate)| (std::cmp::Reverse(*rate), *device));
        rates.truncate(DEVICES);
        second.rates = rates;
    }

    fn relist(&mut self, frame: &Frame) {
        let is_its = |d: &&Diagnosis| matches!(d.head, Head::Relist | Head::ListCall);
        // While the convoy comes back it is seen no more what it was waiting for: what was seen before counts.
        let shows_why = |d: &&Diagnosis| !matches!(d.ends_in, EndsIn::NotVisible { .. });
        let why = frame.diagnoses.iter().find(is_its);
        let cause = why.filter(shows_why).map(words::cause);
        let age = frame.relists.in_flight;
        if let Some(before) = self.relist.take_if(|before| age.is_none_or(|age| age < before.age)) {
            if self.relists.len() >= RELISTS {
                self.relists.pop_front();
            }
            self.relists.push_back(before);
        }
        if let Some(age) = age {
            let known = self.relist.take().and_then(|before| before.cause);
            let cause = cause.or(known).or_else(|| why.map(words::cause));
            self.relist = Some(SlowRelist { at: frame.now, age, cause });
        }
    }

    fn incident(&mut self, frame: &Frame, incident: &Incident) {
        let known = self.incidents.iter().position(|k| k.incident.id == incident.id);
        let index = known.unwrap_or_else(|| {
            if self.incidents.len() >= INCIDENTS {
                self.incidents.pop_front();
                self.forgotten += 1;
            }
            let new = Known { incident: incident.clone(), part_of: None, ticket: Vec::new() };
            self.incidents.push_back(new);
            self.incidents.len() - 1
        });
        let Some(known) = self.incidents.get_mut(index) else { return };
        if let Some(Change::MergedInto(other)) = &incident.change {
            known.part_of = Some(other.clone());
        }
        if let Some(last) = &incident.last {
            known.ticket = text::diagnosis(last, frame.now);
        }
        known.incident = Incident { last: None, ..incident.clone() };
    }

    /// How far back it reaches.
    pub fn span(&self) -> Ns {
        self.seconds.front().map_or(0, |first| self.latest.saturating_sub(first.at))
    }

    /// The seconds, oldest first.
    pub fn seconds(&self) -> impl DoubleEndedIterator<Item = &Second> {
        self.seconds.iter()
    }

    /// Slow relists that have ended, newest first.
    pub fn relists(&self) -> impl Iterator<Item = &SlowRelist> {
        self.relists.iter().rev()
    }

    /// Incidents, newest first.
    pub fn incidents(&self) -> impl Iterator<Item = &Known> {
        self.incidents.iter().rev()
    }

    /// A value of each of the last `columns` steps of `step` seconds, oldest first: the greatest within each.
    pub fn series(&self, columns: usize, step: u64, of: impl Fn(&Second) -> Option<u64>) -> Vec<Option<u64>> {
        let mut out = vec![None; columns];
        let step = step.max(1) * SECOND;
        let last = self.latest / step;
        for second in self.seconds() {
            let back = usize::try_from(last.saturating_sub(second.at / step)).unwrap_or(usize::MAX);
            if let Some(slot) = columns.checked_sub(1 + back).and_then(|i| out.get_mut(i)) {
                *slot = (*slot).max(of(second));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correlator::RelistSummary;

    fn frame(now: Ns, relist: Option<Ns>) -> Frame {
        let relists = RelistSummary { in_flight: relist, ..RelistSummary::default() };
        Frame { now, relists, ..Frame::default() }
    }

    #[test]
    fn a_slow_relist_is_remembered_with_its_last_age_when_it_is_over_or_another_begins() {
        let mut history = History::default();
        for (tenth, age) in [(100, None), (101, Some(3)), (102, Some(4)), (103, Some(1)), (104, None)] {
            history.frame(&frame(tenth * SECOND / 10, age));
        }
        let relists: Vec<Ns> = history.relists().map(|r| r.age).collect();
        assert_eq!(relists, [1, 4]);
        assert_eq!(history.seconds().map(|s| s.relist).collect::<Vec<_>>(), [Some(4)]);
    }

    #[test]
    fn it_stays_bounded_and_a_replay_that_goes_back_forgets_what_comes() {
        let mut history = History::default();
        for second in 0..2 * SECONDS as u64 {
            history.frame(&frame(second * SECOND, (second % 2 == 0).then_some(SECOND)));
        }
        assert_eq!(history.seconds().count(), SECONDS);
        assert_eq!(history.relists().count(), RELISTS);
        history.frame(&frame(1_000 * SECOND, None));
        assert_eq!(history.seconds().next_back().unwrap().at, 1_000 * SECOND);
        assert!(history.relists().all(|r| r.at <= 1_000 * SECOND));
    }

    #[test]
    fn a_series_has_the_greatest_of_each_step_and_holes_where_nothing_is_known() {
        let mut history = History::default();
        for (second, age) in [(10, 5), (11, 7), (14, 2)] {
            history.frame(&frame(second * SECOND, Some(age)));
        }
        let of = |s: &Second| s.relist;
        assert_eq!(history.series(5, 1, of), [Some(5), Some(7), None, None, Some(2)]);
        assert_eq!(history.series(3, 2, of), [Some(7), None, Some(2)]);
    }
}
