//! Puts what arrives out of order back into the order of its times.
//!
//! Generic over what is ordered: it knows times, keys that decide between equal times, and nothing else.
//!
//! ```text
//! arrives      12   10   11      14  9            window = 3
//! newest       12   12   12      14  14
//! releases                       10               everything older than newest - window
//! late                               9            older than what may have been released: handed back at once
//! ```
//!
//! A late item is not thrown away: it is handed back marked as late and counted, and the caller passes it on (the
//! correlator takes a late end for what it is) together with `Lost { at: Late }`. What it may not do is to change the
//! order of what was released before.

use crate::event::Ns;
use std::collections::{BTreeMap, VecDeque};

/// Room for so many items is kept.
const ROOM: usize = 1_024;

/// An item on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Released<T> {
    /// In order: its time is not before that of anything released in order earlier.
    InOrder(Ns, T),
    /// It came later than the window allows.
    Late(Ns, T),
}

impl<T> Released<T> {
    /// The item, whichever way it came.
    pub fn item(&self) -> &T {
        let (Released::InOrder(_, item) | Released::Late(_, item)) = self;
        item
    }

    /// The same.
    pub fn into_item(self) -> T {
        match self {
            Released::InOrder(_, item) | Released::Late(_, item) => item,
        }
    }
}

/// Holds items back until nothing older can come in time.
#[derive(Clone, Debug)]
pub struct Orderer<K, T> {
    window: Ns,
    limit: usize,
    /// What decides between equal times. Asked only where there are some.
    key: fn(&T) -> K,
    /// What came in order, which is most of it: by time and number of arrival.
    held: VecDeque<(Ns, u64, T)>,
    /// What came before something that is older, by time and number of arrival.
    overtaken: BTreeMap<(Ns, u64), T>,
    /// All of one time, in order: they are on their way out.
    ready: VecDeque<T>,
    /// Their time.
    ready_at: Ns,
    /// Number of arrival, the last resort between equal times and keys.
    arrivals: u64,
    /// Everything before this may have been released.
    watermark: Ns,
    late: u64,
    early: u64,
}

impl<K: Ord, T> Orderer<K, T> {
    /// An orderer that waits for `window` nanoseconds of item time and holds at most `limit` items (at least one); `key`
    /// decides between items of the same time.
    pub fn new(window: Ns, limit: usize, key: fn(&T) -> K) -> Self {
        Orderer {
            window,
            limit: limit.max(1),
            key,
            held: VecDeque::new(),
            overtaken: BTreeMap::new(),
            ready: VecDeque::new(),
            ready_at: 0,
            arrivals: 0,
            watermark: 0,
            late: 0,
            early: 0,
        }
    }

    /// Takes an item. Returns it at once if it is late, or the oldest one if there is no room for more.
    pub fn push(&mut self, at: Ns, item: T) -> Option<Released<T>> {
        if at < self.watermark {
            self.late = self.late.saturating_add(1);
            return Some(Released::Late(at, item));
        }
        self.arrivals = self.arrivals.saturating_add(1);
        if self.held.back().is_none_or(|(last, _, _)| *last <= at) {
            self.held.push_back((at, self.arrivals, item));
        } else {
            self.overtaken.insert((at, self.arrivals), item);
        }
        self.advance(at);
        if self.len() > self.limit
            && let Some((at, item)) = self.take_first()
        {
            self.early = self.early.saturating_add(1);
            self.watermark = self.watermark.max(at);
            return Some(Released::InOrder(at, item));
        }
        None
    }

    /// Time has come to `now`, whether or not anything happened: what is older than the window may go.
    pub fn advance(&mut self, now: Ns) {
        self.watermark = self.watermark.max(now.saturating_sub(self.window));
    }

    /// The next item that nothing in time can come before.
    pub fn pop(&mut self) -> Option<Released<T>> {
        if self.ready.is_empty() && self.overtaken.is_empty() {
            // All came in order, as nearly always: then what is first needs no comparing but with the next.
            let at = self.held.front().map(|(at, _, _)| *at).filter(|at| *at < self.watermark)?;
            if self.held.get(1).is_none_or(|(next, _, _)| *next != at) {
                return self.take_held().map(|(at, item)| Released::InOrder(at, item));
            }
        }
        let at = if self.ready.is_empty() { self.first_at()? } else { self.ready_at };
        if at >= self.watermark {
            return None;
        }
        self.take_first().map(|(at, item)| Released::InOrder(at, item))
    }

    /// The first of all.
    fn take_first(&mut self) -> Option<(Ns, T)> {
        if let Some(item) = self.ready.pop_front() {
            return Some((self.ready_at, item));
        }
        let (at, first) = self.take_one()?;
        if self.first_at() != Some(at) {
            return Some((at, first));
        }
        let mut all = vec![first];
        while self.first_at() == Some(at) {
            all.extend(self.take_one().map(|(_, item)| item));
        }
        // Stable: by arrival where the keys are equal, too.
        all.sort_by_cached_key(self.key);
        self.ready_at = at;
        self.ready.extend(all);
        self.ready.pop_front().map(|item| (at, item))
    }

    /// The earliest time of what is not on its way out yet.
    fn first_at(&self) -> Option<Ns> {
        let overtaken = self.overtaken.first_key_value().map(|((at, _), _)| *at);
        self.held.front().map(|(at, _, _)| *at).into_iter().chain(overtaken).min()
    }

    /// The first of that, by time and arrival.
    fn take_one(&mut self) -> Option<(Ns, T)> {
        let overtaken = self.overtaken.first_key_value().map(|(key, _)| *key);
        match (self.held.front().map(|(at, arrival, _)| (*at, *arrival)), overtaken) {
            (Some(held), Some(overtaken)) if overtaken < held => {}
            (Some(_), _) => return self.take_held(),
            (None, _) => {}
        }
        self.overtaken.pop_first().map(|((at, _), item)| (at, item))
    }

    /// The first of what came in order.
    fn take_held(&mut self) -> Option<(Ns, T)> {
        // What a storm has taken is given back.
        if self.held.capacity() > ROOM && self.held.len() < self.held.capacity() / 8 {
            self.held.shrink_to(self.held.capacity() / 4);
        }
        self.held.pop_front().map(|(at, _, item)| (at, item))
    }

    /// Everything that is still held, in order: there will be no more.
    pub fn finish(&mut self) -> Vec<Released<T>> {
        let mut all = Vec::with_capacity(self.len());
        while let Some((at, item)) = self.take_first() {
            self.watermark = self.watermark.max(at);
            all.push(Released::InOrder(at, item));
        }
        all
    }

    /// Everything before this time has been handed out by [`Orderer::pop`], once that returns `None`: a tick at it may
    /// take place.
    pub fn watermark(&self) -> Ns {
        self.watermark
    }

    /// How many items were late.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// How many items were released before their time because the limit was reached.
    pub fn early(&self) -> u64 {
        self.early
    }

    /// What is held, in order.
    pub fn held(&self) -> Vec<&T> {
        let overtaken = self.overtaken.iter().map(|((at, arrival), item)| (*at, *arrival, item));
        let held = self.held.iter().map(|(at, arrival, item)| (*at, *arrival, item));
        let mut all: Vec<(Ns, u64, &T)> = held.chain(overtaken).collect();
        all.sort_by_cached_key(|(at, arrival, item)| (*at, (self.key)(item), *arrival));
        self.ready.iter().chain(all.into_iter().map(|(_, _, item)| item)).collect()
    }

    /// How many items are held.
    pub fn len(&self) -> usize {
        self.ready.len() + self.held.len() + self.overtaken.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Ticks on a fixed grid of event time, so that live and replay tick at the same moments.
#[derive(Clone, Debug)]
pub struct Grid {
    every: Ns,
    next: Option<Ns>,
}

impl Grid {
    /// A grid with ticks at all multiples of `every` (at least 1 ns) from the first time it is asked about.
    pub fn new(every: Ns) -> Self {
        Grid { every: every.max(1), next: None }
    }

    /// The next tick at or before `time`, if there is one that was not handed out. Ask until `None`: before an event
    /// is applied with its time less one, and with the orderer's watermark less one when nothing more is ready.
    /// Over a gap without events longer than `skip_over` ticks the grid is taken up again at the last one.
    pub fn due(&mut self, time: Ns, skip_over: u64) -> Option<Ns> {
        let last = time - time % self.every;
        let next = *self.next.get_or_insert(last);
        if next > time {
            return None;
        }
        let behind = (last - next) / self.every;
        let tick = if behind > skip_over { last } else { next };
        self.next = Some(tick.saturating_add(self.every));
        Some(tick)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Nothing decides between equal times but their arrival.
    fn none<T>(_: &T) {}

    fn drain(o: &mut Orderer<(), u64>, out: &mut Vec<Released<u64>>) {
        while let Some(r) = o.pop() {
            out.push(r);
        }
    }

    #[test]
    fn timeline_of_the_module_doc() {
        let mut o = Orderer::new(3, 100, none);
        let mut out = Vec::new();
        for at in [12, 10, 11, 14, 9] {
            out.extend(o.push(at, at));
            drain(&mut o, &mut out);
        }
        assert_eq!(out, [Released::InOrder(10, 10), Released::Late(9, 9)]);
        assert_eq!(o.finish().into_iter().map(Released::into_item).collect::<Vec<_>>(), [11, 12, 14]);
        assert_eq!((o.late(), o.early(), o.watermark()), (1, 0, 14));
    }

    #[test]
    fn exactly_as_old_as_the_window_is_in_time() {
        let mut o = Orderer::new(5, 100, none);
        assert_eq!(o.push(20, 20), None);
        assert_eq!(o.pop(), None);
        assert_eq!(o.push(15, 15), None, "20 - 5 may still come");
        assert_eq!(o.push(14, 14), Some(Released::Late(14, 14)));
        assert_eq!(o.push(21, 21), None);
        assert_eq!(o.pop(), Some(Released::InOrder(15, 15)));
        assert_eq!(o.pop(), None);
    }

    #[test]
    fn keys_decide_between_equal_times() {
        let mut o = Orderer::new(1, 100, |item: &(u8, char)| item.0);
        for item in [(3u8, 'c'), (1, 'a'), (2, 'b'), (2, 'B')] {
            assert_eq!(o.push(7, item), None);
        }
        assert_eq!(o.push(6, (9, '0')), None);
        let text = |items: Vec<(u8, char)>| items.into_iter().map(|(_, c)| c).collect::<String>();
        assert_eq!(text(o.held().into_iter().copied().collect()), "0abBc");
        // In the middle of those of one time, too.
        o.advance(9);
        let first = [o.pop(), o.pop()].map(|released| released.map(Released::into_item));
        assert_eq!(first, [Some((9, '0')), Some((1, 'a'))]);
        assert_eq!((text(o.held().into_iter().copied().collect()).as_str(), o.len()), ("bBc", 3));
        assert_eq!(text(o.finish().into_iter().map(Released::into_item).collect()), "bBc");
    }

    #[test]
    fn a_full_orderer_lets_the_oldest_go_and_counts_it() {
        let mut o = Orderer::new(1_000, 2, none);
        assert_eq!(o.push(5, 5), None);
        assert_eq!(o.push(6, 6), None);
        assert_eq!(o.push(4, 4), Some(Released::InOrder(4, 4)));
        assert_eq!(o.push(3, 3), Some(Released::Late(3, 3)), "4 is out already");
        assert_eq!((o.early(), o.late(), o.len()), (1, 1, 2));
    }

    #[test]
    fn time_passes_without_items() {
        let mut o = Orderer::new(10, 100, none);
        assert_eq!(o.push(100, 1), None);
        assert_eq!(o.pop(), None);
        o.advance(111);
        assert_eq!(o.watermark(), 101);
        assert_eq!(o.pop(), Some(Released::InOrder(100, 1)));
    }

    #[test]
    fn the_grid_is_the_same_however_it_is_asked() {
        let ticks = |times: &[Ns]| {
            let mut grid = Grid::new(100);
            let mut out = Vec::new();
            for &t in times {
                while let Some(tick) = grid.due(t, 1_000) {
                    out.push(tick);
                }
            }
            out
        };
        assert_eq!(ticks(&[250, 310, 399, 400, 601]), [200, 300, 400, 500, 600]);
        assert_eq!(ticks(&[250, 601]), [200, 300, 400, 500, 600]);
        let mut grid = Grid::new(100);
        assert_eq!(grid.due(0, 3), Some(0));
        assert_eq!(grid.due(10_000, 3), Some(10_000), "a long gap is not ticked through");
        assert_eq!(grid.due(10_000, 3), None);
    }

    proptest! {
        /// Whatever arrives within the window comes out sorted, complete, and none of it late.
        #[test]
        fn any_order_within_the_window_is_put_right(
            times in proptest::collection::vec((0u64..2_000, 0u64..100), 1..200),
        ) {
            let window = 100;
            // Arrival time is the item's time plus a delay below the window.
            let mut arrivals: Vec<(u64, u64, usize)> =
                times.iter().enumerate().map(|(i, (at, delay))| (at + delay, *at, i)).collect();
            arrivals.sort();
            let mut o = Orderer::new(window, 10_000, |(_, i): &(u64, usize)| *i);
            let mut out = Vec::new();
            for (_, at, i) in &arrivals {
                out.extend(o.push(*at, (*at, *i)));
                while let Some(r) = o.pop() { out.push(r); }
            }
            out.extend(o.finish());
            prop_assert_eq!(o.late(), 0);
            let items: Vec<(u64, usize)> = out.into_iter().map(Released::into_item).collect();
            let mut expected: Vec<(u64, usize)> = times.iter().enumerate().map(|(i, (at, _))| (*at, i)).collect();
            expected.sort();
            prop_assert_eq!(items, expected);
        }

        /// In any order at all: nothing is lost, nothing is doubled, what is in order is in order, and no more is held
        /// than allowed.
        #[test]
        fn nothing_is_lost_in_any_order(
            times in proptest::collection::vec(0u64..1_000, 0..200), limit in 1usize..20, window in 0u64..300,
        ) {
            let mut o = Orderer::new(window, limit, none);
            let mut out = Vec::new();
            for (i, at) in times.iter().enumerate() {
                out.extend(o.push(*at, i));
                prop_assert!(o.len() <= limit);
                while let Some(r) = o.pop() { out.push(r); }
            }
            out.extend(o.finish());
            let mut last = 0;
            let mut late = 0;
            for r in &out {
                match r {
                    Released::InOrder(at, _) => { prop_assert!(*at >= last); last = *at; }
                    Released::Late(at, _) => { prop_assert!(*at < o.watermark()); late += 1; }
                }
            }
            prop_assert_eq!(late, o.late());
            let mut items: Vec<usize> = out.into_iter().map(Released::into_item).collect();
            items.sort_unstable();
            prop_assert_eq!(items, (0..times.len()).collect::<Vec<_>>());
        }
    }
}
