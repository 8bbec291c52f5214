//! How it went over time, in a bounded number of samples however long the capture is.

use crate::correlator::{Frame, words};
use crate::event::Ns;
use serde::Serialize;
use std::collections::BTreeMap;

/// Samples at most; when there are more, two neighbours become one.
const SAMPLES: usize = 1_024;
/// Devices that are followed.
const DEVICES: usize = 8;

/// How it went over time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// One after the other; of what lies in a sample the greatest is told.
    pub samples: Vec<Sample>,
    /// What the numbers of [`Sample::written`] are of, in this order.
    pub devices: Vec<String>,
    /// When at least one slow relist was in flight.
    pub stalled: Vec<(Ns, Ns)>,
}

/// A stretch of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Its last frame.
    pub at: Ns,
    /// Age of the slow relist that was in flight, in nanoseconds; 0 when there was none.
    pub relist: Ns,
    /// Bytes dirty, and under writeback, where that was known.
    pub memory: Option<(u64, u64)>,
    /// Bytes per second that each device has written, where that was known.
    pub written: Vec<Option<u64>>,
}

/// Collects samples.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    samples: Vec<Sample>,
    devices: BTreeMap<String, usize>,
    /// Frames in a sample.
    stride: u32,
    /// Frames in the last sample.
    filled: u32,
}

impl Sampler {
    pub fn new() -> Sampler {
        Sampler { samples: Vec::new(), devices: BTreeMap::new(), stride: 1, filled: 0 }
    }

    pub fn frame(&mut self, frame: &Frame) {
        let mut sample = Sample {
            at: frame.now,
            relist: frame.relists.in_flight.unwrap_or(0),
            memory: frame.memory.map(|m| (m.dirty, m.writeback)),
            written: vec![None; self.devices.len()],
        };
        for device in &frame.devices {
            let name = words::device(&device.device);
            let next = self.devices.len();
            if next >= DEVICES && !self.devices.contains_key(&name) {
                continue;
            }
            let place = *self.devices.entry(name).or_insert(next);
            if sample.written.len() <= place {
                sample.written.resize(place + 1, None);
            }
            if let Some(written) = sample.written.get_mut(place) {
                *written = device.bytes_per_second;
            }
        }
        match self.samples.last_mut() {
            Some(last) if self.filled < self.stride => {
                join(last, sample);
                self.filled += 1;
            }
            _ => {
                self.samples.push(sample);
                self.filled = 1;
            }
        }
        if self.samples.len() > SAMPLES {
            let mut halved: Vec<Sample> = Vec::with_capacity(SAMPLES);
            for (i, sample) in std::mem::take(&mut self.samples).into_iter().enumerate() {
                match halved.last_mut() {
                    Some(last) if i % 2 == 1 => join(last, sample),
                    _ => halved.push(sample),
                }
            }
            // The last one was alone, and takes up more.
            self.stride = self.stride.saturating_mul(2);
            self.samples = halved;
        }
    }

    pub fn finish(mut self, stalled: Vec<(Ns, Ns)>) -> Timeline {
        let mut devices: Vec<(usize, String)> = self.devices.into_iter().map(|(n, i)| (i, n)).collect();
        devices.sort();
        let count = devices.len();
        self.samples.iter_mut().for_each(|sample| sample.written.resize(count, None));
        Timeline { samples: self.samples, devices: devices.into_iter().map(|(_, n)| n).collect(), stalled }
    }
}

/// The greater of both.
fn join(into: &mut Sample, other: Sample) {
    into.at = other.at;
    into.relist = into.relist.max(other.relist);
    into.memory = match (into.memory, other.memory) {
        (Some(a), Some(b)) => Some((a.0.max(b.0), a.1.max(b.1))),
        (a, b) => a.or(b),
    };
    into.written.resize(into.written.len().max(other.written.len()), None);
    for (a, b) in into.written.iter_mut().zip(other.written) {
        *a = (*a).max(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_capture_has_no_more_samples_than_a_short_one_and_no_peak_is_lost() {
        let mut sampler = Sampler::new();
        let mut frame = Frame::default();
        for tick in 1..=100_000 {
            frame.now = tick;
            frame.relists.in_flight = (tick == 77_777).then_some(5);
            sampler.frame(&frame);
        }
        let timeline = sampler.finish(Vec::new());
        assert!((SAMPLES / 2..=SAMPLES).contains(&timeline.samples.len()), "{}", timeline.samples.len());
        assert_eq!(timeline.samples.last().map(|s| s.at), Some(100_000));
        assert!(timeline.samples.windows(2).all(|two| two[0].at < two[1].at));
        let peak: Vec<Ns> = timeline.samples.iter().filter(|s| s.relist == 5).map(|s| s.at).collect();
        assert_eq!(peak.len(), 1);
        assert!(peak[0] >= 77_777 && peak[0] < 77_777 + 256, "{peak:?}");
    }
}
