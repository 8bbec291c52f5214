//! From events to frames: orders events by their own time, feeds them to the correlator, ticks it on a fixed grid of
//! event time. Pure: the time comes in. Live and replay differ only in who calls this.
//!
//! A tick waits until nothing can come before it any more, 200 ms. For somebody who is to be told that a threshold is
//! passed that is long, and it need not be waited for:
//!
//! ```text
//! begins            crosses   read: in flight
//! |--------------------|---------|----------> time        what was read after the crossing and was still in flight then
//!                                ^ a copy of the correlator hears all that has come, and is ticked for this time
//! ```
//!
//! No end that comes later can be before the crossing. What the copy opens is told at once, is announced to the
//! correlator itself, and is opened there under the same id by a tick of the grid: so it is in all frames that follow, and
//! has its end there, also when it was over before that tick.

use crate::{
    correlator::{Correlator, Frame, TieBreak},
    event::{Body, Event, LossPoint, Ns},
    order::{Grid, Orderer, Released},
    thresholds::{LATENESS, SECOND, STEADY_EVERY, TICK_EVERY, Thresholds},
};

/// Events held back at most; at its bound the oldest goes early, which the orderer counts.
const MOST_HELD: usize = 65_536;

/// Orders, correlates, ticks.
#[derive(Clone)]
pub struct Pipeline {
    order: Orderer<TieBreak, Event>,
    correlator: Correlator,
    grid: Grid,
    /// Whether anything has happened since the last frame that is not just told again and again, or the last frame told
    /// of something that lasts.
    stirred: bool,
    /// Whether something has happened since the last frame but that what lasts has grown older, and was looked at again.
    changed: bool,
    /// The last tick of the grid, if it was left out because nothing had changed.
    left_out: Option<Ns>,
    thresholds: Thresholds,
    /// The latest time that was judged, by a tick of the grid or ahead of it; 0 before the first.
    judged: Ns,
    /// When something was in flight last that has passed a threshold since then; 0 when nothing was.
    crossed: Ns,
    /// Time of the latest that came and is more than a sample.
    heard: Ns,
    /// Time of the latest that came and may begin or end something, beyond samples and other looks at what is known to last.
    begun: Ns,
    /// The last tick of the grid; 0 before the first.
    ticked: Ns,
    /// The last of which there was a frame; 0 before the first.
    told: Ns,
}

impl Pipeline {
    /// Nothing has happened yet.
    pub fn new(thresholds: Thresholds) -> Pipeline {
        let order = Orderer::new(LATENESS, MOST_HELD, TieBreak::of);
        Pipeline {
            order,
            correlator: Correlator::new(thresholds.clone()),
            grid: Grid::new(TICK_EVERY),
            stirred: true,
            changed: true,
            left_out: None,
            thresholds,
            judged: 0,
            crossed: 0,
            heard: 0,
            begun: 0,
            ticked: 0,
            told: 0,
        }
    }

    /// Until when nothing will follow from the passing of time alone, if there is such a time: nothing that has come waits
    /// for its tick; and either nothing lasts, and the next frame is that of the next whole second, or only ages change.
    pub fn rests_until(&self) -> Option<Ns> {
        let next = |every: Ns| (self.ticked - self.ticked % every).saturating_add(every);
        if self.correlator.is_quiet() {
            let rests = self.ticked > self.heard && !self.stirred;
            return rests.then(|| next(SECOND).saturating_add(LATENESS));
        }
        let rests = self.ticked > self.begun && !self.changed;
        if !rests || !self.correlator.is_steady(self.told, self.ticked) {
            return None;
        }
        Some(next(STEADY_EVERY).min(self.correlator.next_news(self.told)).saturating_add(LATENESS))
    }

    /// Takes events in any order.
    pub fn push(&mut self, events: Vec<Event>) {
        for event in events {
            self.push_one(event);
        }
    }

    /// Takes one event.
    pub fn push_one(&mut self, event: Event) {
        self.note_crossing(&event);
        let sample = is_sample(&event.body);
        if !sample {
            self.heard = self.heard.max(event.at);
        }
        // A poll may end what it does not mention.
        let poll = matches!(event.body, Body::PollComplete { .. });
        if poll || !sample && (!is_closer_look(&event.body) || self.would_change(&event)) {
            self.begun = self.begun.max(event.at);
        }
        if let Some(released) = self.order.push(event.at, event) {
            self.apply(released);
        }
    }

    /// Notes it when this says that something has passed a threshold of which that was not judged yet.
    fn note_crossing(&mut self, event: &Event) {
        let Body::InFlight(op) = &event.body else { return };
        if self.judged == 0 || event.at <= self.crossed {
            return;
        }
        let since = |threshold: Ns| op.begin.saturating_add(threshold);
        let crosses = self.thresholds.of(op.kind).map(since).any(|at| self.judged < at && at <= event.at);
        // What piles up behind something that was told is no news.
        if crosses && !self.correlator.is_told(&op.id()) {
            self.crossed = event.at;
        }
    }

    /// Takes something that was known before: it is no news, so it need not come in order.
    pub fn known(&mut self, event: &Event) {
        (self.stirred, self.changed) = (true, true);
        self.correlator.apply(event);
    }

    /// All that is known by now, as events that make another pipeline know it too.
    pub fn all_known(&self) -> Vec<Event> {
        self.correlator
            .all_known(self.order.watermark())
            .into_iter()
            .chain(self.order.held().into_iter().cloned())
            .collect()
    }

    fn apply(&mut self, released: Released<Event>) {
        if let Released::Late(at, _) = &released {
            self.correlator.apply(&Event { at: *at, body: Body::Lost { at: LossPoint::Late, count: 1 } });
            (self.stirred, self.changed) = (true, true);
        }
        let event = released.into_item();
        // What ends was in the last frame, or it has not lasted: its share in the latencies can wait for the next second.
        let usual = matches!(event.body, Body::Ended(..) | Body::Woken { .. });
        self.stirred |= !usual && !is_sample(&event.body);
        self.changed |= !usual && !is_sample(&event.body) && !is_closer_look(&event.body);
        let before = self.correlator.changes();
        self.correlator.take(event);
        self.changed |= self.correlator.changes() != before;
    }

    /// Whether this begins or ends something that lasts, as far as that can be told before it is applied.
    fn would_change(&self, event: &Event) -> bool {
        match &event.body {
            Body::InFlight(op) => !self.correlator.knows(&op.id()),
            Body::Ended(op, _) => self.correlator.knows(&op.id()),
            Body::PollComplete { kinds, older_than } => self.correlator.misses(kinds, *older_than),
            Body::Woken { .. } | Body::ProcessGone { .. } => true,
            _ => false,
        }
    }

    /// It is `now`: applies what can no longer be overtaken, and gives the frame of each grid point passed, oldest
    /// first, to `each`. While nothing happens and nothing is in flight, whole seconds are enough, from the first frame
    /// on that says so; while all that is in flight has lasted for long, half seconds, and each change has the grid points
    /// before and after it.
    ///
    /// Returns the incidents that have opened since, ahead of the grid, in a frame of their own: to be told, and in the
    /// frames of the grid later.
    pub fn advance(&mut self, now: Ns, mut each: impl FnMut(Frame)) -> Option<Frame> {
        /// After a pause (a stopped process, a suspended machine) the grid is taken up again instead of being filled in.
        const MOST_TICKS: u64 = 100;
        while let Some(tick) = self.grid.due(now.saturating_sub(LATENESS), MOST_TICKS) {
            // Everything before `tick` is applied before it; of what is later only what is beyond lateness by now.
            self.order.advance(tick.saturating_add(LATENESS));
            while let Some(released) = self.order.pop() {
                // How long it was as it was is accounted for until now, not until the last frame.
                if let Some(before) = self.left_out
                    && self.would_change(released.item())
                {
                    self.left_out = None;
                    each(self.correlator.tick(before));
                }
                self.apply(released);
            }
            let busy = !self.correlator.is_quiet();
            let due = if busy && !self.changed && self.correlator.is_steady(self.told, tick) {
                tick.is_multiple_of(STEADY_EVERY)
            } else {
                busy || self.stirred || tick.is_multiple_of(SECOND)
            };
            self.left_out = (busy && !due).then_some(tick);
            if due {
                // What was there may be gone at the next tick without a word: that it is gone is news.
                (self.stirred, self.changed, self.told) = (busy, false, tick);
                each(self.correlator.tick(tick));
            }
            if self.left_out.is_none() {
                self.judged = self.judged.max(tick);
            }
            self.ticked = tick;
        }
        self.ahead()
    }

    fn ahead(&mut self) -> Option<Frame> {
        let at = std::mem::take(&mut self.crossed);
        if at <= self.judged {
            return None;
        }
        self.judged = at;
        let mut ahead = self.correlator.clone();
        self.order.held().into_iter().take_while(|event| event.at <= at).for_each(|event| ahead.apply(event));
        let mut frame = ahead.tick(at);
        let opened = self.correlator.announce(&ahead, at);
        frame.incidents.retain(|incident| opened.contains(&incident.id));
        (!frame.incidents.is_empty()).then_some(frame)
    }
}

/// Whether this says again, or more exactly, what something in flight is doing. It may wait for a frame, but not for one of
/// a node at rest.
fn is_closer_look(body: &Body) -> bool {
    matches!(
        body,
        Body::InFlight(_)
            | Body::Looked { .. }
            | Body::GoroutineSite(_)
            | Body::ThreadSite(_)
            | Body::Writers(_)
            | Body::Pins(_)
    )
}

/// Whether this is told again and again whatever happens: no news by itself.
fn is_sample(body: &Body) -> bool {
    matches!(
        body,
        Body::PollComplete { .. } | Body::Memory { .. } | Body::Pressure(_) | Body::Device(_) | Body::Cost(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Actor, Began, Kind, Operation, Outcome, SeenBy};
    use crate::thresholds::MILLISECOND;

    fn poll(at: Ns) -> Event {
        Event { at, body: Body::PollComplete { kinds: vec![Kind::Unmount], older_than: at } }
    }

    fn unmount(begin: Ns) -> Operation {
        Operation {
            kind: Kind::Unmount,
            method: String::new(),
            actor: Actor { pid: 5, tid: 5, g: None, goid: None },
            begin,
            object: 0,
            container: None,
            path: None,
            device: None,
            fs_type: None,
            began: Began::Then,
            seen_by: SeenBy::Uprobe,
        }
    }

    fn ticks(from: Ns, to: Ns) -> Vec<Ns> {
        (from..=to).map(|tick| tick * TICK_EVERY).collect()
    }

    fn frames_until(pipeline: &mut Pipeline, end: Ns) -> Vec<Ns> {
        let mut times = Vec::new();
        pipeline.advance(end + LATENESS, |frame| times.push(frame.now));
        times
    }

    #[test]
    fn a_quiet_node_gives_a_frame_a_second_and_a_busy_one_each_tick() {
        let mut pipeline = Pipeline::new(Thresholds::default());
        assert_eq!(frames_until(&mut pipeline, 10 * SECOND), [10 * SECOND], "the first");
        pipeline.push((101..=120).map(|tick| poll(tick * TICK_EVERY)).collect());
        // What was known when nothing was: the first poll is no news.
        assert_eq!(frames_until(&mut pipeline, 12 * SECOND), [11 * SECOND, 12 * SECOND]);

        let begin = 12 * SECOND + 250 * MILLISECOND;
        let operation = unmount(begin);
        pipeline.push(vec![Event { at: begin, body: Body::InFlight(operation.clone()) }]);
        assert_eq!(frames_until(&mut pipeline, 13_200 * MILLISECOND), ticks(123, 132), "as long as it lasts");
        pipeline.push(vec![Event { at: begin + SECOND, body: Body::Ended(operation, Outcome::Done) }]);
        let times = frames_until(&mut pipeline, 16 * SECOND);
        assert_eq!(times[0], 13_300 * MILLISECOND, "its end is told");
        assert_eq!(times[times.len() - 2..], [15 * SECOND, 16 * SECOND], "quiet again");
    }

    #[test]
    fn who_is_asked_only_when_it_may_rest_no_longer_gives_the_same_frames() {
        let (begin, end) = (11 * SECOND + 250 * MILLISECOND, 13 * SECOND + 130 * MILLISECOND);
        let events = |now: Ns| -> Vec<Event> {
            let operation = unmount(begin);
            let at = |time: Ns, body| (now == time).then_some(Event { at: time, body });
            let lasts = (begin..end).contains(&now) && now.is_multiple_of(TICK_EVERY);
            [
                now.is_multiple_of(SECOND / 2).then(|| poll(now)),
                lasts.then(|| Event { at: now, body: Body::InFlight(operation.clone()) }),
                at(end, Body::Ended(operation.clone(), Outcome::Done)),
                at(15 * SECOND, Body::BlindSpot { what: "a probe".into(), reason: "off".into() }),
                // Longer than any threshold, and nobody has seen it in flight.
                at(17 * SECOND, Body::Ended(unmount(8 * SECOND), Outcome::Done)),
            ]
            .into_iter()
            .flatten()
            .collect()
        };
        let (mut always, mut rarely) = (Vec::new(), Vec::new());
        let (mut asking, mut resting) =
            (Pipeline::new(Thresholds::default()), Pipeline::new(Thresholds::default()));
        let mut asked = 0;
        for now in (10 * SECOND..20 * SECOND).step_by(10_000_000) {
            asking.push(events(now));
            resting.push(events(now));
            asking.advance(now, |frame| always.push((now, frame)));
            if resting.rests_until().is_none_or(|until| now >= until) {
                resting.advance(now, |frame| rarely.push((now, frame)));
                asked += 1;
            }
        }
        assert!(always.iter().any(|(_, frame)| frame.in_flight_total > 0));
        assert!(always.iter().any(|(_, frame)| !frame.incidents.is_empty()));
        assert_eq!(always, rarely, "and no later");
        assert!(asked < 600, "it has rested: {asked}");
    }

    #[test]
    fn what_vanishes_without_a_word_is_out_of_the_next_frame() {
        let mut pipeline = Pipeline::new(Thresholds::default());
        assert_eq!(frames_until(&mut pipeline, 10 * SECOND), [10 * SECOND]);
        let begin = 10 * SECOND + 250 * MILLISECOND;
        let reported = |at| Event { at, body: Body::InFlight(unmount(begin)) };
        let mut frames = Vec::new();
        for tick in 103..=140 {
            // Reported by the polls up to the one of 10.6 s; only the poll after it says, by its silence, that it is over.
            let at = tick * TICK_EVERY + MILLISECOND;
            pipeline.push([reported(at), poll(at)].into_iter().skip(usize::from(tick > 106)).collect());
            pipeline.advance(tick * TICK_EVERY + LATENESS, |frame| {
                frames.push((frame.now, frame.in_flight_total));
            });
        }
        let lasting: Vec<(Ns, u64)> =
            frames.iter().copied().filter(|(_, in_flight)| *in_flight > 0).collect();
        let expected: Vec<(Ns, u64)> = ticks(104, 107).into_iter().map(|at| (at, 1)).collect();
        assert_eq!(lasting, expected);
        let quiet: Vec<Ns> = frames[lasting.len()..].iter().map(|(at, _)| *at).collect();
        let at_once = 10_800 * MILLISECOND;
        assert_eq!(quiet, [at_once, 11 * SECOND, 12 * SECOND, 13 * SECOND, 14 * SECOND]);
    }

    #[test]
    fn what_lasts_gives_two_frames_a_second_and_each_change_one_before_it_and_one_after() {
        let mut pipeline = Pipeline::new(Thresholds::default());
        let begin = 10 * SECOND + 250 * MILLISECOND;
        let (second, over) = (15 * SECOND + 730 * MILLISECOND, 20 * SECOND + 330 * MILLISECOND);
        let other = Operation { actor: Actor { pid: 6, tid: 6, g: None, goid: None }, ..unmount(second) };
        let (mut times, mut ahead) = (Vec::new(), Vec::new());
        for tick in 101..=230 {
            let at = tick * TICK_EVERY + 50 * MILLISECOND;
            let lasts = |op: &Operation, end: Ns| (op.begin..end).contains(&at);
            let both = [(unmount(begin), Ns::MAX), (other.clone(), over)];
            let seen = both.iter().filter(|(op, end)| lasts(op, *end));
            let mut events: Vec<Event> =
                seen.map(|(op, _)| Event { at, body: Body::InFlight(op.clone()) }).collect();
            events.push(poll(at));
            if (at - TICK_EVERY..at).contains(&over) {
                events.push(Event { at: over, body: Body::Ended(other.clone(), Outcome::Done) });
            }
            pipeline.push(events);
            let opened = pipeline.advance(at, |frame| times.push((frame.now, frame.in_flight_total)));
            ahead.extend(opened.map(|frame| frame.now));
        }
        let within = |from: Ns, to: Ns| {
            let of = times.iter().filter(|(at, _)| (from..to).contains(at));
            of.map(|(at, n)| (at / MILLISECOND, *n)).collect::<Vec<_>>()
        };
        assert_eq!(within(12_300 * MILLISECOND, 14 * SECOND), [(12_500, 1), (13_000, 1), (13_500, 1)]);
        // It is told that it crosses its threshold at 15.25 s, and the ticks up to the one that opens the incident are made.
        let crosses = [(15_000, 1), (15_100, 1), (15_200, 1), (15_300, 1), (15_500, 1)];
        assert_eq!(within(15 * SECOND, 15_600 * MILLISECOND), crosses);
        assert_eq!(ahead, [begin + Thresholds::DEFAULT.unmount]);
        let begins = [(15_700, 1), (15_800, 2), (15_900, 2)];
        assert_eq!(within(15_600 * MILLISECOND, 16 * SECOND), begins, "before, after, and young: each tick");
        let ends = [(19_500, 2), (20_000, 2), (20_200, 2), (20_300, 1), (20_500, 1)];
        assert_eq!(within(19_500 * MILLISECOND, 21 * SECOND), ends);
    }

    #[test]
    fn age_alone_passes_a_threshold_and_doubles_at_once_though_nothing_is_read_again() {
        let mut pipeline = Pipeline::new(Thresholds::default());
        let begin = 10 * SECOND + 250 * MILLISECOND;
        let report = Event { at: begin + MILLISECOND, body: Body::InFlight(unmount(begin)) };
        let mut told = Vec::new();
        for tick in 101..=320 {
            pipeline.push(if tick == 103 { vec![report.clone()] } else { Vec::new() });
            pipeline.advance(tick * TICK_EVERY, |frame| {
                let change = frame.incidents.first().and_then(|incident| incident.change.clone());
                told.extend(change.map(|change| (frame.now / MILLISECOND, format!("{change:?}"))));
            });
        }
        let expected = [(15_300, "Crossed"), (20_300, "Grew"), (30_300, "Grew")];
        assert_eq!(told, expected.map(|(at, change)| (at, change.to_owned())));
    }

    #[test]
    fn what_vanishes_after_long_was_there_until_the_grid_point_before() {
        let mut pipeline = Pipeline::new(Thresholds::default());
        let begin = 10 * SECOND + 250 * MILLISECOND;
        let mut frames = Vec::new();
        for tick in 101..=170 {
            let at = tick * TICK_EVERY + 50 * MILLISECOND;
            let there = (begin..14 * SECOND + 300 * MILLISECOND).contains(&at);
            let seen = there.then(|| Event { at, body: Body::InFlight(unmount(begin)) });
            pipeline.push(seen.into_iter().chain([poll(at)]).collect());
            pipeline.advance(at, |frame| frames.push((frame.now / MILLISECOND, frame.in_flight_total)));
        }
        let around = frames.iter().filter(|(at, _)| (13_500..15_000).contains(at)).copied();
        let expected = [(13_500, 1), (14_000, 1), (14_300, 1), (14_400, 0)];
        assert_eq!(around.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_crossing_is_told_as_soon_as_it_was_read_and_never_on_the_word_of_before() {
        let begin = 10 * SECOND + 250 * MILLISECOND;
        let crossing = begin + Thresholds::DEFAULT.unmount;
        let read = |at| [Event { at, body: Body::InFlight(unmount(begin)) }, poll(at)];
        // Read last 30 ms before the crossing; then it ends, 10 ms before it, or 10 ms behind it.
        for (end, expected) in [(crossing - 10 * MILLISECOND, 0), (crossing + 10 * MILLISECOND, 1)] {
            let mut pipeline = Pipeline::new(Thresholds::default());
            let (mut ahead, mut frames) = (Vec::new(), Vec::new());
            let mut heard = |pipeline: &mut Pipeline, events: Vec<Event>, now: Ns| {
                pipeline.push(events);
                ahead.extend(pipeline.advance(now, |frame| frames.push(frame)));
            };
            for at in (103..=152).map(|tick| tick * TICK_EVERY + 20 * MILLISECOND) {
                heard(&mut pipeline, read(at).to_vec(), at + MILLISECOND);
            }
            // Time goes on, and nothing is heard.
            heard(&mut pipeline, Vec::new(), crossing + 5 * MILLISECOND);
            if end > crossing {
                heard(&mut pipeline, read(crossing).to_vec(), crossing + 6 * MILLISECOND);
            }
            let over = Event { at: end, body: Body::Ended(unmount(begin), Outcome::Done) };
            heard(&mut pipeline, vec![over], crossing + 190 * MILLISECOND);
            heard(&mut pipeline, Vec::new(), crossing + SECOND);
            assert_eq!(ahead.len(), expected);
            let incidents: Vec<_> = frames.iter().flat_map(|frame| &frame.incidents).collect();
            assert_eq!(incidents.len(), expected, "{incidents:?}");
            if let (Some(ahead), [incident]) = (ahead.first(), &incidents[..]) {
                assert_eq!(ahead.now, crossing);
                assert_eq!((&ahead.incidents[0].id, ahead.incidents[0].opened), (&incident.id, crossing));
                assert!(incident.ended.is_some() && incident.uncertain_end.is_none(), "{incident:?}");
            }
        }
    }

    #[test]
    fn not_ready_that_is_near_is_an_incident_however_patient_the_thresholds_are() {
        let patient = Thresholds { relist: 600 * SECOND, ..Thresholds::default() };
        for (within, expected) in [(60 * SECOND, Some(120)), (0, None)] {
            let mut pipeline = Pipeline::new(Thresholds { not_ready_within: within, ..patient.clone() });
            let relist = Operation { kind: Kind::Relist, ..unmount(10 * SECOND) };
            let mut first = None;
            for tick in 105..=1800 {
                let at = tick * TICK_EVERY;
                let in_flight = Event { at, body: Body::InFlight(relist.clone()) };
                let complete = Body::PollComplete { kinds: Kind::ALL.to_vec(), older_than: at };
                pipeline.push(vec![in_flight, Event { at, body: complete }]);
                pipeline.advance(at + LATENESS, |frame| {
                    if let (None, Some(incident)) = (first, frame.incidents.first()) {
                        let by = "time since the last good relist over 2m00s";
                        assert_eq!(incident.crossed_by, by);
                        let not_ready = frame.diagnoses[0].not_ready.as_ref().unwrap();
                        first = Some((not_ready.at - frame.now) / SECOND + 60);
                    }
                });
            }
            assert_eq!(first, expected);
        }
    }
}
