//! How long things took: bounded latency distributions.
//!
//! Only ends above a floor are reported one by one, so every distribution says 'of at least' that floor
//! ([`crate::thresholds::floor`]); it never pretends to know the short ones.

use crate::correlator::Distribution;
use crate::correlator::limits;
use crate::event::{Kind, Ns, Operation, Outcome};
use crate::thresholds::floor;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// Longest duration that is told apart, one day; longer ones count as this.
const LONGEST_US: u64 = 24 * 3600 * 1_000_000;

/// Distributions by name.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// By rank (the order they are shown in) and name.
    by_name: BTreeMap<(u8, String), Series>,
    /// CRI methods that have no distribution of their own because there were too many.
    pub dropped: u64,
}

#[derive(Clone, Debug)]
struct Series {
    at_least: Ns,
    /// In microseconds; two significant digits.
    histogram: Histogram<u32>,
    max: Ns,
}

impl Stats {
    /// An operation ended after `took`. Failed unmounts are left out (EINVAL and EBUSY return at once and say nothing),
    /// and so is the sync of an overlay: that of its upper file system is counted.
    pub fn record(&mut self, op: &Operation, outcome: Outcome, took: Ns) {
        let name = match op.kind {
            Kind::Unmount if outcome == Outcome::Done => (0, "unmount"),
            Kind::Sync if op.fs_type.as_deref() != Some("overlay") => (1, "sync"),
            Kind::LockWait => (2, "lock wait"),
            Kind::CriCall => (3, "CRI call"),
            Kind::Relist => (5, "relist"),
            // One attempt: a late exit is many of them, or a long one.
            Kind::ExitHandling => (6, "exit handling"),
            _ => return,
        };
        self.add(name.0, name.1, floor(op.kind), took);
        if op.kind == Kind::CriCall {
            let methods = self.by_name.keys().filter(|(rank, _)| *rank == 4).count();
            if methods < limits::METHODS || self.by_name.contains_key(&(4, op.method.clone())) {
                self.add(4, &op.method, floor(op.kind), took);
            } else {
                self.dropped = self.dropped.saturating_add(1);
            }
        }
    }

    fn add(&mut self, rank: u8, name: &str, at_least: Ns, took: Ns) {
        let key = (rank, name.to_owned());
        if !self.by_name.contains_key(&key) {
            // The bounds are constants that the library accepts; if it ever does not, nothing is recorded.
            let Ok(histogram) = Histogram::new_with_bounds(1, LONGEST_US, 2) else { return };
            self.by_name.insert(key.clone(), Series { at_least, histogram, max: 0 });
        }
        if let Some(series) = self.by_name.get_mut(&key) {
            series.histogram.saturating_record((took / 1_000).max(1));
            series.max = series.max.max(took);
        }
    }

    /// All distributions, in a fixed order. Quantiles are exact to two significant digits and never above the maximum.
    pub fn distributions(&self) -> Vec<Distribution> {
        self.by_name
            .iter()
            .map(|((_, name), s)| {
                let at = |q: f64| s.histogram.value_at_quantile(q).saturating_mul(1_000).min(s.max);
                Distribution {
                    of: name.clone(),
                    at_least: s.at_least,
                    count: s.histogram.len(),
                    p50: at(0.5),
                    p90: at(0.9),
                    p99: at(0.99),
                    max: s.max,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Actor, Began, SeenBy};
    use crate::thresholds::{MILLISECOND, SECOND};

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
