//! How long things took: bounded latency distributions.
//!
//! Only ends above a floor are reported one by one, so every distribution says 'of at least' that floor
//! ([`crate::thresholds::floor`]); it never pretends to know the short ones.

use crate::correlator::Distribution;
use crate::correlator::limits;
use crate::event::{Kind, Ns, Operation, Outcome};
use crate::thresholds::{MILLISECOND, floor};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// Longest duration that is told apart, one day; longer ones count as this.
const LONGEST_US: u64 = 24 * 3600 * 1_000_000;

/// Distributions by name.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// By rank, the order they are shown in.
    kinds: [Option<Series>; NAMES.len()],
    /// Those of CRI methods, which are shown behind [`CRI_CALL`].
    methods: BTreeMap<String, Series>,
    /// CRI methods that have no distribution of their own because there were too many.
    pub dropped: u64,
}

/// What there is a distribution of, in the order in which they are shown.
const NAMES: [&str; 6] = ["unmount", "sync", "lock wait", "CRI call", "relist", "exit handling"];
/// Rank of all CRI calls together.
const CRI_CALL: usize = 3;

/// Steps to each power of ten, in tenths of a millisecond: their logarithms are a fifth apart.
const STEPS: [Ns; 5] = [100, 158, 251, 398, 631];
/// Where each step of [`Distribution::counts`] begins: 10 ms, 15.8 ms, 25.1 ms, … 398 s.
pub const STEPS_FROM: [Ns; 24] = {
    let mut from = [0; 24];
    let (mut n, mut power) = (0, MILLISECOND / 10);
    while n < from.len() {
        from[n] = STEPS[n % STEPS.len()] * power;
        n += 1;
        if n.is_multiple_of(STEPS.len()) {
            power *= 10;
        }
    }
    from
};

#[derive(Clone, Debug)]
struct Series {
    /// In microseconds; two significant digits.
    histogram: Histogram<u32>,
    /// Those that are shown: [`SHOWN`].
    quantiles: [Quantile; SHOWN.len()],
    /// How many in each of [`STEPS_FROM`].
    steps: [u64; STEPS_FROM.len()],
    at_least: Ns,
    max: Ns,
    /// What it comes to, until there is more: few change from one frame to the next.
    shown: Option<Distribution>,
}

/// The quantiles that are shown.
const SHOWN: [f64; 3] = [0.5, 0.9, 0.99];

/// A quantile, found from where it was before: from one frame to the next it moves little, and to count from the shortest
/// each time would be a good part of what a quiet second costs.
#[derive(Clone, Copy, Debug, Default)]
struct Quantile {
    /// The shortest of the durations that are told apart from it no more.
    at: u64,
    /// How many are shorter than that.
    shorter: u64,
}

impl Quantile {
    /// One more of this length.
    fn note(&mut self, length: u64) {
        self.shorter = self.shorter.saturating_add(u64::from(length < self.at));
    }

    /// The same as [`Histogram::value_at_quantile`].
    fn find(&mut self, share: f64, all: &Histogram<u32>) -> u64 {
        let wanted = ((share * all.len() as f64).ceil() as u64).max(1);
        while self.shorter >= wanted && self.at > 0 {
            self.at = all.lowest_equivalent(self.at - 1);
            self.shorter = self.shorter.saturating_sub(u64::from(all.count_at(self.at)));
        }
        loop {
            let here = self.shorter.saturating_add(u64::from(all.count_at(self.at)));
            let longest = all.highest_equivalent(self.at);
            if here >= wanted || longest >= all.max() {
                return longest;
            }
            (self.at, self.shorter) = (longest + 1, here);
        }
    }
}

impl Stats {
    /// An operation ended after `took`. Failed unmounts are left out (EINVAL and EBUSY return at once and say nothing),
    /// and so is the sync of an overlay: that of its upper file system is counted.
    pub fn record(&mut self, op: &Operation, outcome: Outcome, took: Ns) {
        let rank = match op.kind {
            Kind::Unmount if outcome == Outcome::Done => 0,
            Kind::Sync if op.fs_type.as_deref() != Some("overlay") => 1,
            Kind::LockWait => 2,
            Kind::CriCall => CRI_CALL,
            Kind::Relist => 4,
            // One attempt: a late exit is many of them, or a long one.
            Kind::ExitHandling => 5,
            _ => return,
        };
        let at_least = floor(op.kind);
        if let Some(kind) = self.kinds.get_mut(rank) {
            if kind.is_none() {
                *kind = Series::new(at_least);
            }
            kind.iter_mut().for_each(|series| series.add(took));
        }
        if rank != CRI_CALL {
            return;
        }
        if let Some(series) = self.methods.get_mut(&op.method) {
            series.add(took);
        } else if self.methods.len() >= limits::METHODS {
            self.dropped = self.dropped.saturating_add(1);
        } else if let Some(mut series) = Series::new(at_least) {
            series.add(took);
            self.methods.insert(op.method.clone(), series);
        }
    }

    /// All distributions, in a fixed order. Quantiles are exact to two significant digits and never above the maximum.
    pub fn distributions(&mut self) -> Vec<Distribution> {
        let mut all = Vec::new();
        for (rank, (kind, name)) in self.kinds.iter_mut().zip(NAMES).enumerate() {
            all.extend(kind.as_mut().map(|series| series.shown(name)));
            if rank == CRI_CALL {
                all.extend(self.methods.iter_mut().map(|(method, series)| series.shown(method)));
            }
        }
        all
    }
}

impl Series {
    /// Without anything; `None` if the library does not accept the bounds, which are constants.
    fn new(at_least: Ns) -> Option<Series> {
        let histogram = Histogram::new_with_bounds(1, LONGEST_US, 2).ok()?;
        let quantiles = [Quantile::default(); SHOWN.len()];
        Some(Series { histogram, quantiles, steps: [0; STEPS_FROM.len()], at_least, max: 0, shown: None })
    }

    fn add(&mut self, took: Ns) {
        let length = (took / 1_000).clamp(1, LONGEST_US);
        self.histogram.saturating_record(length);
        self.quantiles.iter_mut().for_each(|quantile| quantile.note(length));
        let step = STEPS_FROM.partition_point(|from| *from <= took).saturating_sub(1);
        if let Some(count) = self.steps.get_mut(step) {
            *count = count.saturating_add(1);
        }
        self.max = self.max.max(took);
        self.shown = None;
    }

    fn shown(&mut self, name: &str) -> Distribution {
        let shown = self.shown.take().unwrap_or_else(|| self.distribution(name));
        self.shown.insert(shown).clone()
    }

    fn distribution(&mut self, name: &str) -> Distribution {
        let mut found = [0; SHOWN.len()];
        for ((found, quantile), share) in found.iter_mut().zip(&mut self.quantiles).zip(SHOWN) {
            *found = quantile.find(share, &self.histogram).saturating_mul(1_000).min(self.max);
        }
        let [p50, p90, p99] = found;
        let steps = STEPS_FROM.into_iter().zip(self.steps);
        Distribution {
            of: name.to_owned(),
            at_least: self.at_least,
            count: self.histogram.len(),
            p50,
            p90,
            p99,
            max: self.max,
            counts: steps.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Actor, Began, SeenBy};
    use crate::thresholds::SECOND;
    use proptest::prelude::*;

    fn op(kind: Kind, method: &str) -> Operation {
        Operation {
            kind,
            method: method.to_owned(),
            actor: Actor { pid: 1, tid: 1, g: None, goid: None },
            begin: 0,
            object: 0,
            container: None,
            path: None,
            device: None,
            fs_type: None,
            began: Began::Then,
            seen_by: SeenBy::Fentry,
        }
    }

    #[test]
    fn quantiles_of_a_known_series() {
        let mut stats = Stats::default();
        for ms in 1..=1_000 {
            stats.record(&op(Kind::Unmount, ""), Outcome::Done, ms * MILLISECOND);
        }
        let all = stats.distributions();
        assert_eq!(all.len(), 1);
        let d = &all[0];
        assert_eq!((d.of.as_str(), d.count, d.max, d.at_least), ("unmount", 1_000, SECOND, 10 * MILLISECOND));
        for (got, wanted) in [(d.p50, 500), (d.p90, 900), (d.p99, 990)] {
            let wanted = wanted * MILLISECOND;
            assert!(got.abs_diff(wanted) * 100 <= wanted, "{got} is not within 1 % of {wanted}");
        }
        // 10 ms and less, then from step to step, as many as there are whole milliseconds in it.
        let steps = [15, 10, 14, 24, 36, 58, 93, 147, 233, 369].into_iter().zip(STEPS_FROM);
        let mut expected: Vec<(Ns, u64)> = steps.take(10).map(|(count, from)| (from, count)).collect();
        expected.push((SECOND, 1));
        let told: Vec<(Ns, u64)> = d.counts.clone();
        assert_eq!(told.iter().map(|(_, count)| count).sum::<u64>(), d.count);
        assert_eq!(told, expected);
    }

    proptest! {
        /// From wherever it was, a quantile is found where counting from the shortest would find it.
        #[test]
        fn quantiles_are_those_of_the_histogram(
            steps in proptest::collection::vec((0u32..40, 1u64..1_000, any::<bool>()), 1..80),
        ) {
            let mut series = Series::new(0).unwrap();
            for (power, part, ask) in steps {
                series.add((part << power).saturating_mul(1_000));
                if ask {
                    let shown = series.distribution("");
                    let expected = SHOWN.map(|share| {
                        series.histogram.value_at_quantile(share).saturating_mul(1_000).min(series.max)
                    });
                    prop_assert_eq!([shown.p50, shown.p90, shown.p99], expected);
                }
            }
        }
    }

    #[test]
    fn what_says_nothing_is_left_out() {
        let mut stats = Stats::default();
        stats.record(&op(Kind::Unmount, ""), Outcome::Errno(22), SECOND);
        stats.record(&op(Kind::StatusUpdate, "Update"), Outcome::Done, SECOND);
        let overlay = Operation { fs_type: Some("overlay".to_owned()), ..op(Kind::Sync, "") };
        stats.record(&overlay, Outcome::Done, SECOND);
        assert_eq!(stats.distributions(), []);
    }

    #[test]
    fn methods_are_bounded_and_order_is_fixed() {
        let mut stats = Stats::default();
        stats.record(&op(Kind::Relist, ""), Outcome::Done, SECOND);
        for n in 0..limits::METHODS + 5 {
            stats.record(&op(Kind::CriCall, &format!("M{n:02}")), Outcome::Done, 100 * SECOND);
        }
        stats.record(&op(Kind::CriCall, "M00"), Outcome::Error, u64::MAX);
        let all = stats.distributions();
        assert_eq!(all.len(), limits::METHODS + 2);
        assert_eq!(stats.dropped, 5);
        assert_eq!((all[0].of.as_str(), all[0].count), ("CRI call", limits::METHODS as u64 + 6));
        assert_eq!((all[1].of.as_str(), all[1].count, all[1].max), ("M00", 2, u64::MAX));
        assert_eq!(all.last().map(|d| d.of.as_str()), Some("relist"));
    }
}
