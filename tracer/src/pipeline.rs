//! From events to frames: orders events by their own time, feeds them to the correlator, ticks it on a fixed grid of
//! event time. Pure: the time comes in. Live and replay differ only in who calls this.

use crate::{
    correlator::{Correlator, Frame},
    event::{Event, Ns},
    order::Orderer,
    thresholds::{LATENESS, TICK_EVERY, Thresholds},
};

/// Orders, correlates, ticks.
pub struct Pipeline {
    order: Orderer,
    correlator: Correlator,
    next_tick: Option<Ns>,
}

impl Pipeline {
    /// Nothing has happened yet.
    pub fn new(thresholds: Thresholds) -> Pipeline {
        Pipeline { order: Orderer::new(LATENESS), correlator: Correlator::new(thresholds), next_tick: None }
    }

    /// Takes events in any order.
    pub fn push(&mut self, events: Vec<Event>) {
        for event in events {
            self.order.push(event);
        }
    }

    /// It is `now`: applies what can no longer be overtaken, and gives the frame of each grid point passed, oldest
    /// first, to `each`.
    pub fn advance(&mut self, now: Ns, mut each: impl FnMut(Frame)) {
        /// After a pause (a stopped process, a suspended machine) the grid is taken up again instead of being filled in.
        const MOST_TICKS: u64 = 100;
        let horizon = now.saturating_sub(LATENESS);
        let first = self.next_tick.unwrap_or(horizon / TICK_EVERY * TICK_EVERY);
        let mut tick = first.max((horizon / TICK_EVERY).saturating_sub(MOST_TICKS) * TICK_EVERY);
        while tick <= horizon {
            self.order.release(tick, |event| self.correlator.apply(&event));
            each(self.correlator.tick(tick));
            tick += TICK_EVERY;
        }
        self.next_tick = Some(tick);
    }
}
