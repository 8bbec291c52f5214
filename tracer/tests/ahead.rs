//! What is told before the tick that is to open it: whatever comes in whatever order within the window, a crossing that is
//! told has really happened, is told once, is in the frames that follow under the same id, and has its end.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

#[expect(dead_code, reason = "what other tests ask of it")]
mod world;

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use tracer::alert::{Alerts, Event as Tell, Settings};
use tracer::correlator::Frame;
use tracer::event::{Event, Kind, Ns, OperationId};
use tracer::pipeline::Pipeline;
use tracer::thresholds::{LATENESS, MILLISECOND, SECOND, Thresholds};
use world::{Truth, plans, play};

/// How often the warden tells something, at least.
const STEP: Ns = 20 * MILLISECOND;
const THRESHOLD: Ns = 700 * MILLISECOND;

fn thresholds() -> Thresholds {
    Thresholds {
        shown: 100 * MILLISECOND,
        unmount: THRESHOLD,
        lock: THRESHOLD,
        cri: THRESHOLD,
        relist: THRESHOLD,
        ..Thresholds::DEFAULT
    }
}

/// What was told: ahead of the grid, and by its frames.
struct Told {
    ahead: Vec<Frame>,
    frames: Vec<Frame>,
    /// By incident: what.
    alerts: BTreeMap<String, Vec<Tell>>,
}

/// Each event comes so much later than it happened.
fn tell(truth: &Truth, delays: &[Ns]) -> Told {
    let mut arrivals: Vec<(Ns, &Event)> = truth
        .events
        .iter()
        .enumerate()
        .map(|(i, event)| (event.at + delays[i % delays.len()], event))
        .collect();
    arrivals.sort_by_key(|(at, _)| *at);
    let mut arrivals = arrivals.into_iter().peekable();
    let mut pipeline = Pipeline::new(thresholds());
    let mut alerts = Alerts::new(Settings { hold_off: 0, not_ready_within: 0 });
    let mut told = Told { ahead: Vec::new(), frames: Vec::new(), alerts: BTreeMap::new() };
    let mut now = 0;
    while now < truth.end + 2 * SECOND {
        now += STEP;
        while let Some((_, event)) = arrivals.next_if(|(at, _)| *at <= now) {
            pipeline.push_one(event.clone());
        }
        let mut notices = Vec::new();
        let ahead = pipeline.advance(now, |frame| {
            notices.extend(alerts.tick(&frame));
            told.frames.push(frame);
        });
        if let Some(frame) = ahead {
            notices.extend(alerts.ahead(&frame));
            told.ahead.push(frame);
        }
        for notice in notices.into_iter().filter(|notice| notice.told) {
            told.alerts.entry(notice.incident.id).or_default().push(notice.event);
        }
    }
    told
}

/// Operations that passed the threshold, and when.
fn crossings(truth: &Truth) -> impl Iterator<Item = (&OperationId, Ns)> {
    truth
        .spans
        .iter()
        .filter(|(id, (_, end))| thresholds().of(id.kind).any(|age| id.begin + age <= *end))
        .map(|(id, _)| (id, id.begin + THRESHOLD))
}

fn check(truth: &Truth, told: &Told) -> Result<(), TestCaseError> {
    let crossed: Vec<(&OperationId, Ns)> = crossings(truth).collect();
    let mut opened = BTreeSet::new();
    for frame in &told.ahead {
        let now = frame.now;
        for incident in &frame.incidents {
            opened.insert(incident.id.clone());
            let is_true = crossed.iter().any(|(id, at)| *at <= now && truth.lasted(id, now));
            prop_assert!(is_true, "at {now}: {}", incident.summary);
        }
    }
    for (id, events) in &told.alerts {
        // The same operation may block again, once it was told that it is over.
        let mut open = false;
        for event in events {
            prop_assert!(!open || *event != Tell::Crossed, "{id} is told twice: {events:?}");
            open = (open || *event == Tell::Crossed) && *event != Tell::Ended;
        }
        prop_assert!(!open && events.contains(&Tell::Ended), "{id} has no end: {events:?}");
    }
    // What was told ahead is in the frames, as one incident.
    for id in &opened {
        let states: Vec<bool> = told
            .frames
            .iter()
            .flat_map(|frame| &frame.incidents)
            .filter(|incident| incident.id == *id)
            .map(|incident| incident.ended.is_some())
            .collect();
        prop_assert_eq!(states.last(), Some(&true), "{}: {:?}", id, states);
    }
    for frame in &told.frames {
        for incident in &frame.incidents {
            prop_assert!(incident.opened <= frame.now, "{} opens in the future", incident.id);
        }
    }
    Ok(())
}

#[test]
fn an_unmount_is_told_with_the_first_look_after_its_crossing() {
    let plan = world::Plan { containers: 1, calls: vec![(SECOND, world::Call::Exit(0, 2 * SECOND))] };
    let truth = play(&plan);
    let told = tell(&truth, &[MILLISECOND]);
    let unmount = truth.spans.keys().find(|id| id.kind == Kind::Unmount).unwrap();
    let crossing = unmount.begin + THRESHOLD;
    let first = &told.ahead[0];
    assert!((crossing..crossing + world::STEP).contains(&first.now), "{} not {crossing}", first.now);
    let id = &first.incidents[0].id;
    assert_eq!(told.alerts[id], [Tell::Crossed, Tell::Grew, Tell::Ended]);
    let grid = told.frames.iter().find(|frame| !frame.incidents.is_empty()).unwrap();
    assert!(grid.incidents[0].id == *id && grid.now >= first.now.min(crossing));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_crossing_that_is_told_has_happened_and_is_told_once(
        plan in plans(), delays in proptest::collection::vec(0..LATENESS - STEP, 64)
    ) {
        let truth = play(&plan);
        check(&truth, &tell(&truth, &delays))?;
    }

    #[test]
    fn also_while_everything_comes_at_once(plan in plans()) {
        let truth = play(&plan);
        check(&truth, &tell(&truth, &[0]))?;
    }
}
