//! The heart: from events to diagnoses. A pure function of events and `tick(now)`; same events in, same frames out.

pub mod frame;
pub mod limits;

pub use frame::*;

use crate::event::{Event, Ns};
use crate::thresholds::Thresholds;

/// Turns events into frames.
#[derive(Clone, Debug)]
pub struct Correlator {
    #[allow(dead_code)]
    thresholds: Thresholds,
}

impl Correlator {
    /// A correlator that knows nothing yet.
    pub fn new(thresholds: Thresholds) -> Self {
        Correlator { thresholds }
    }

    /// Takes note of what happened.
    pub fn apply(&mut self, _event: &Event) {}

    /// Says what is known at `now`.
    pub fn tick(&mut self, now: Ns) -> Frame {
        Frame { now, ..Frame::default() }
    }
}
