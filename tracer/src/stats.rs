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
