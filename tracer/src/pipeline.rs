//! From events to frames: orders events by their own time, feeds them to the correlator, ticks it on a fixed grid of
//! event time. Pure: the time comes in. Live and replay differ only in who calls this.

use crate::{
    correlator::{Correlator, Frame, TieBreak},
    event::{Body, Event, LossPoint, Ns},
    order::{Grid, Orderer, Released},
    thresholds::{LATENESS, TICK_EVERY, Thresholds},
};

/// Events held back at most; at its bound the oldest goes early, which the orderer counts.
const MOST_HELD: usize = 65_536;

/// Orders, correlates, ticks.
pub struct Pipeline {
    order: Orderer<TieBreak, Event>,
    correlator: Correlator,
    grid: Grid,
}

impl Pipeline {
    /// Nothing has happened yet.
    pub fn new(thresholds: Thresholds) -> Pipeline {
        let order = Orderer::new(LATENESS, MOST_HELD);
        Pipeline { order, correlator: Correlator::new(thresholds), grid: Grid::new(TICK_EVERY) }
    }

    /// Takes events in any order.
    pub fn push(&mut self, events: Vec<Event>) {
        for event in events {
            if let Some(released) = self.order.push(event.at, TieBreak::of(&event), event) {
                self.apply(released);
            }
        }
    }

    fn apply(&mut self, released: Released<Event>) {
        if let Released::Late(at, _) = &released {
            self.correlator.apply(&Event { at: *at, body: Body::Lost { at: LossPoint::Late, count: 1 } });
        }
        self.correlator.apply(&released.into_item());
    }

    /// It is `now`: applies what can no longer be overtaken, and gives the frame of each grid point passed, oldest
    /// first, to `each`.
    pub fn advance(&mut self, now: Ns, mut each: impl FnMut(Frame)) {
        /// After a pause (a stopped process, a suspended machine) the grid is taken up again instead of being filled in.
        const MOST_TICKS: u64 = 100;
        while let Some(tick) = self.grid.due(now.saturating_sub(LATENESS), MOST_TICKS) {
            // Everything before `tick` is applied before it, nothing from it on.
            self.order.advance(tick.saturating_add(LATENESS));
            while let Some(released) = self.order.pop() {
                self.apply(released);
            }
            each(self.correlator.tick(tick));
        }
    }
}
