//! How much of the time everybody waits for disks, memory and processors, from counters that only grow.

use super::frame::Pressure;
use super::limits;
use crate::event::{Body, Event, Ns, PressureFacts, Resource};
use std::collections::{BTreeMap, VecDeque};

/// Samples of each resource, the oldest first: at most [`limits::RATE_SAMPLES`], never none.
#[derive(Clone, Debug, Default)]
pub struct Pressures(BTreeMap<Resource, VecDeque<(Ns, PressureFacts)>>);

impl Pressures {
    /// Takes a sample of each.
    pub fn sample(&mut self, all: &[PressureFacts], at: Ns) {
        for facts in all {
            let samples = self.0.entry(facts.of).or_default();
            if samples.back().is_some_and(|(last, _)| *last >= at) {
                continue;
            }
            // Counters do not go back: they are another boot's, or cannot be read any more, or can be again.
            let goes_on = |(_, before): &(Ns, PressureFacts)| {
                before.some <= facts.some && before.reason == facts.reason
            };
            if !samples.back().is_none_or(goes_on) {
                samples.clear();
            }
            samples.push_back((at, facts.clone()));
            let old = |(from, _): &(Ns, PressureFacts)| from.saturating_add(limits::RATE_OVER) < at;
            while samples.len() > limits::RATE_SAMPLES || (samples.len() > 2 && old(&samples[0])) {
                samples.pop_front();
            }
        }
    }

    /// What they come to.
    pub fn shown(&self) -> Vec<Pressure> {
        self.0.values().filter_map(of).collect()
    }

    /// The samples, as events that make another know them too.
    pub fn all_known(&self) -> impl Iterator<Item = Event> {
        let samples = self.0.values().flatten();
        samples.map(|(at, facts)| Event { at: *at, body: Body::Pressure(vec![facts.clone()]) })
    }
}

fn of(samples: &VecDeque<(Ns, PressureFacts)>) -> Option<Pressure> {
    let ((from, before), (to, now)) = (samples.front()?, samples.back()?);
    let span = u128::from(to.saturating_sub(*from));
    // Microseconds of nanoseconds: a thousandth, of which millionths are told.
    let share = |of: fn(&PressureFacts) -> Option<u64>| {
        let waited = u128::from(of(now)?.checked_sub(of(before)?)?);
        let ppm = (waited * 1_000 * 1_000_000).checked_div(span)?;
        // The kernel adds up now and then, so a sample may bring a little more time than has passed.
        Some(u32::try_from(ppm.min(1_000_000)).unwrap_or(1_000_000))
    };
    Some(Pressure {
        of: now.of,
        some_ppm: share(|facts| facts.some),
        full_ppm: share(|facts| facts.full),
        reason: now.reason.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thresholds::SECOND;

    fn io(some: Option<u64>, full: Option<u64>, reason: &str) -> PressureFacts {
        PressureFacts { of: Resource::Io, some, full, reason: reason.to_owned() }
    }

    fn shares(pressures: &Pressures) -> Vec<(Option<u32>, Option<u32>)> {
        pressures.shown().iter().map(|p| (p.some_ppm, p.full_ppm)).collect()
    }

    #[test]
    fn a_share_is_that_of_the_last_ten_seconds() {
        let mut pressures = Pressures::default();
        assert!(shares(&pressures).is_empty());
        pressures.sample(&[io(Some(7), Some(3), "")], SECOND);
        assert_eq!(shares(&pressures), [(None, None)]);
        // Half a second of one, a tenth of a second of it by all.
        pressures.sample(&[io(Some(500_007), Some(100_003), "")], 2 * SECOND);
        assert_eq!(shares(&pressures), [(Some(500_000), Some(100_000))]);
        for second in 3..30 {
            pressures.sample(&[io(Some(500_007), Some(100_003), "")], second * SECOND);
            pressures.sample(&[io(Some(0), Some(0), "")], second * SECOND); // The same time again says nothing.
        }
        assert_eq!(shares(&pressures), [(Some(0), Some(0))]);
        pressures.sample(&[io(Some(9_000_000), None, "")], 30 * SECOND);
        let all: Vec<Event> = pressures.all_known().collect();
        let mut other = Pressures::default();
        for event in &all {
            let Body::Pressure(facts) = &event.body else { panic!("{event:?}") };
            other.sample(facts, event.at);
        }
        assert_eq!(other.shown(), pressures.shown());
        assert_eq!(shares(&pressures)[0].1, None);
        assert!(all.len() <= limits::RATE_SAMPLES);
    }

    #[test]
    fn unknown_has_its_reason_and_no_share_is_made_over_a_gap() {
        let mut pressures = Pressures::default();
        pressures.sample(&[io(Some(1_000_000), Some(0), "")], SECOND);
        pressures.sample(&[io(None, None, "no such file")], 2 * SECOND);
        assert_eq!(pressures.shown()[0].reason, "no such file");
        assert_eq!(shares(&pressures), [(None, None)]);
        pressures.sample(&[io(Some(5_000_000), Some(0), "")], 3 * SECOND);
        assert_eq!(shares(&pressures), [(None, None)]);
        pressures.sample(&[io(Some(4_000_000), Some(0), "")], 4 * SECOND);
        assert_eq!(shares(&pressures), [(None, None)], "a counter that has gone back is another one");
        pressures.sample(&[io(Some(99_000_000), Some(0), "")], 5 * SECOND);
        assert_eq!(shares(&pressures), [(Some(1_000_000), Some(0))], "never more than all of the time");
    }
}
