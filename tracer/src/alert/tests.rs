//! Stories of incidents, and random ones: each is told once or counted in what is told.

use super::*;
use crate::correlator::{Advice, Chain, Confidence, DeviceName, Diagnosis, Head, NotReady, Outlook};
use crate::event::Device;
use proptest::prelude::*;
use std::collections::BTreeSet;

const SETTINGS: Settings = Settings { hold_off: 60 * SECOND, not_ready_within: 60 * SECOND };

fn incident(id: &str, disk: u32, since: u64, now: u64, level: u32) -> Incident {
    let device = Some(DeviceName { device: Device { major: 8, minor: disk }, name: None });
    Incident {
        id: id.to_owned(),
        opened: (since + 5) * SECOND,
        since: since * SECOND,
        ended: None,
        crossed_by: "unmount over 5s".to_owned(),
        ends_in: EndsIn::UnmountSync { device, fs_type: None },
        signature: "unmount-sync".to_owned(),
        summary: format!("STUCK {}s", now - since),
        cause: "sync".to_owned(),
        level,
        longest: (now - since) * SECOND,
        stuck_calls: 1,
        containers: Vec::new(),
        consequences: Vec::new(),
        change: None,
        uncertain_end: None,
        last: None,
    }
}

fn over(mut incident: Incident, now: u64) -> Incident {
    incident.ended = Some(now * SECOND);
    incident.change = Some(Change::Ended);
    incident
}

fn frame(now: u64, incidents: Vec<Incident>) -> Frame {
    Frame { now: now * SECOND, incidents, ..Frame::default() }
}

/// A diagnosis of which only the consequence for the node matters.
fn diagnosis(id: &str, not_ready_at: u64) -> Diagnosis {
    Diagnosis {
        ends_in: EndsIn::StatusWrite,
        confidence: Confidence::Proven,
        evidence: String::new(),
        chain: Chain { links: Vec::new(), age: 0 },
        head: Head::Relist,
        stuck_calls: Vec::new(),
        stuck_calls_total: 1,
        containers: Vec::new(),
        not_ready: Some(NotReady {
            at: not_ready_at * SECOND,
            latest: false,
            threshold: 180 * SECOND,
            evictions_from: (not_ready_at + 300) * SECOND,
            confidence: Confidence::Proven,
            evidence: String::new(),
        }),
        pods_waiting: 0,
        outlook: Outlook::Unknown { because: String::new() },
        dirtied_by: Vec::new(),
        dirtied_unknown: None,
        consequences: Vec::new(),
        not_this_chain: None,
        signature: String::new(),
        blind_spots: Vec::new(),
        advice: Advice::default(),
        incident: Some(id.to_owned()),
    }
}

/// What is told, in short: `crossed a`, `repeated a x3`.
fn told(notices: &[Notice]) -> Vec<String> {
    let short = |n: &Notice| {
        let repeats = if n.repeats > 0 { format!(" x{}", n.repeats) } else { String::new() };
        format!("{} {}{repeats}", n.event.word(), n.incident.id)
    };
    notices.iter().filter(|n| n.told).map(short).collect()
}

#[test]
fn an_incident_is_told_when_it_crosses_when_it_doubles_and_when_it_ends() {
    let mut alerts = Alerts::new(SETTINGS);
    let mut all = Vec::new();
    for (now, level) in [(15, 0), (16, 0), (20, 1), (25, 1), (30, 2), (31, 2)] {
        let notices = alerts.tick(&frame(now, vec![incident("a", 0, 10, now, level)]));
        all.extend(told(&notices).into_iter().map(|line| format!("{now} {line}")));
    }
    assert_eq!(alerts.open(), (1, 1));
    all.extend(told(&alerts.tick(&frame(33, vec![over(incident("a", 0, 10, 33, 2), 33)]))));
    assert_eq!(all, ["15 crossed a", "20 grew a", "30 grew a", "ended a"]);
    assert!(alerts.tick(&frame(34, vec![])).is_empty());
    assert_eq!(alerts.open(), (0, 0));
}

#[test]
fn what_is_told_ahead_is_not_told_again_and_not_gone_before_its_time() {
    let mut alerts = Alerts::new(SETTINGS);
    assert_eq!(told(&alerts.ahead(&frame(15, vec![incident("a", 0, 10, 15, 0)]))), ["crossed a"]);
    // Frames of before do not have it yet.
    assert!(alerts.tick(&frame(13, vec![])).is_empty());
    assert!(alerts.tick(&frame(14, vec![])).is_empty());
    assert!(alerts.tick(&frame(15, vec![incident("a", 0, 10, 15, 0)])).is_empty());
    assert_eq!(told(&alerts.tick(&frame(20, vec![incident("a", 0, 10, 20, 1)]))), ["grew a"]);
    assert_eq!(told(&alerts.tick(&frame(21, vec![over(incident("a", 0, 10, 21, 1), 21)]))), ["ended a"]);
    // In its hold-off it is held, ahead as well.
    let ahead = alerts.ahead(&frame(30, vec![incident("b", 0, 25, 30, 0)]));
    assert_eq!((told(&ahead).len(), ahead.len()), (0, 1));
    assert!(told(&alerts.tick(&frame(31, vec![over(incident("b", 0, 25, 31, 0), 31)]))).is_empty());
    assert_eq!(told(&alerts.tick(&frame(81, vec![]))), ["repeated b x1"]);
    // What no frame ever has is over all the same.
    assert_eq!(told(&alerts.ahead(&frame(90, vec![incident("c", 1, 85, 90, 0)]))), ["crossed c"]);
    assert_eq!(told(&alerts.tick(&frame(90, vec![]))), ["ended c"]);
}

#[test]
fn a_change_in_a_frame_that_was_left_out_is_told_with_the_next() {
    let mut alerts = Alerts::new(SETTINGS);
    assert_eq!(told(&alerts.tick(&frame(50, vec![incident("a", 0, 10, 50, 3)]))), ["crossed a"]);
    let notices = alerts.tick(&frame(99, vec![]));
    assert_eq!(told(&notices), ["ended a"]);
    assert_eq!(notices[0].incident.uncertain_end.as_deref(), Some("its end was not seen"));
}

#[test]
fn the_same_cause_is_held_off_and_counted_and_another_is_told() {
    let mut alerts = Alerts::new(SETTINGS);
    alerts.tick(&frame(15, vec![incident("a", 0, 10, 15, 0)]));
    alerts.tick(&frame(20, vec![over(incident("a", 0, 10, 20, 0), 20)]));
    // Twice more within the minute, on the same disk; and once on another.
    for (id, at) in [("b", 30), ("c", 40)] {
        let notices = alerts.tick(&frame(at, vec![incident(id, 0, at - 5, at, 0)]));
        assert_eq!((told(&notices).len(), notices.len()), (0, 1), "held, and kept");
        let notices = alerts.tick(&frame(at + 3, vec![over(incident(id, 0, at - 5, at + 3, 0), at + 3)]));
        assert!(told(&notices).is_empty());
    }
    assert_eq!(told(&alerts.tick(&frame(50, vec![incident("d", 1, 45, 50, 0)]))), ["crossed d"]);
    assert_eq!(told(&alerts.tick(&frame(55, vec![over(incident("d", 1, 45, 55, 0), 55)]))), ["ended d"]);
    assert!(told(&alerts.tick(&frame(79, vec![]))).is_empty());
    assert_eq!(told(&alerts.tick(&frame(80, vec![]))), ["repeated b x2"], "when the minute is over");
    // It has come back, so the next hold-off is twice as long.
    assert!(told(&alerts.tick(&frame(150, vec![incident("e", 0, 145, 150, 0)]))).is_empty());
    alerts.tick(&frame(152, vec![over(incident("e", 0, 145, 152, 0), 152)]));
    assert_eq!(told(&alerts.tick(&frame(200, vec![]))), ["repeated e x1"]);
    // Then it is quiet for a whole hold-off: it is armed again.
    assert!(alerts.tick(&frame(200 + 240, vec![])).is_empty());
    assert_eq!(told(&alerts.tick(&frame(500, vec![incident("f", 0, 495, 500, 0)]))), ["crossed f"]);
}

#[test]
fn what_is_worse_or_lasts_longer_than_its_hold_off_is_told() {
    let mut alerts = Alerts::new(SETTINGS);
    let first = |alerts: &mut Alerts| {
        alerts.tick(&frame(15, vec![incident("a", 0, 10, 15, 0)]));
        alerts.tick(&frame(20, vec![over(incident("a", 0, 10, 20, 1), 20)]));
        assert!(told(&alerts.tick(&frame(30, vec![incident("b", 0, 25, 30, 0)]))).is_empty());
    };
    first(&mut alerts);
    assert!(told(&alerts.tick(&frame(36, vec![incident("b", 0, 25, 36, 1)]))).is_empty(), "as bad as a was");
    assert_eq!(told(&alerts.tick(&frame(46, vec![incident("b", 0, 25, 46, 2)]))), ["crossed b"]);
    assert_eq!(told(&alerts.tick(&frame(66, vec![incident("b", 0, 25, 66, 3)]))), ["grew b"]);

    let mut alerts = Alerts::new(SETTINGS);
    first(&mut alerts);
    let lasts = |now| frame(now, vec![incident("b", 0, 25, now, 0)]);
    assert!(told(&alerts.tick(&lasts(79))).is_empty());
    assert_eq!(told(&alerts.tick(&lasts(80))), ["crossed b"]);
    assert_eq!(
        told(&alerts.tick(&frame(90, vec![over(incident("b", 0, 25, 90, 0), 90)]))),
        ["ended b"],
        "what was told has an end"
    );
}

#[test]
fn not_ready_is_told_once_it_is_near_and_again_when_it_was_far_meanwhile() {
    let mut alerts = Alerts::new(SETTINGS);
    let mut at = |now: u64, not_ready_at: u64| {
        let mut frame = frame(now, vec![incident("a", 0, 10, now, 0)]);
        frame.diagnoses = vec![diagnosis("a", not_ready_at)];
        let notices = alerts.tick(&frame);
        (told(&notices), notices.first().is_some_and(|n| n.urgent))
    };
    assert_eq!(at(15, 190), (vec!["crossed a".to_owned()], false));
    assert_eq!(at(129, 190).0, [""; 0]);
    assert_eq!(at(130, 190), (vec!["notready a".to_owned()], true));
    assert_eq!(at(140, 190).0, [""; 0], "once");
    assert_eq!(at(141, 321).0, [""; 0], "a relist has come back");
    assert_eq!(at(270, 321).0, ["notready a"]);
    // Near from the beginning: one alert is enough, and it is urgent.
    let mut alerts = Alerts::new(SETTINGS);
    let mut first = frame(15, vec![incident("a", 0, 10, 15, 0)]);
    first.diagnoses = vec![diagnosis("a", 20)];
    let notices = alerts.tick(&first);
    assert_eq!((told(&notices), notices[0].urgent), (vec!["crossed a".to_owned()], true));
}

#[test]
fn not_ready_breaks_a_hold_off() {
    let mut alerts = Alerts::new(SETTINGS);
    alerts.tick(&frame(15, vec![incident("a", 0, 10, 15, 3)]));
    alerts.tick(&frame(20, vec![over(incident("a", 0, 10, 20, 3), 20)]));
    let mut held = frame(30, vec![incident("b", 0, 25, 30, 0)]);
    assert!(told(&alerts.tick(&held)).is_empty());
    held.now = 31 * SECOND;
    held.diagnoses = vec![diagnosis("b", 60)];
    assert_eq!(told(&alerts.tick(&held)), ["crossed b"]);
}

#[test]
fn what_was_over_before_it_was_seen_is_told_and_what_comes_later_a_few_times() {
    let mut alerts = Alerts::new(SETTINGS);
    assert_eq!(told(&alerts.tick(&frame(20, vec![over(incident("a", 0, 10, 20, 0), 20)]))), ["ended a"]);
    let after = |now| {
        let mut incident = over(incident("a", 0, 10, 20, 0), 20);
        incident.change = Some(Change::Aftermath);
        frame(now, vec![incident])
    };
    let lines: Vec<String> = (30..50).flat_map(|now| told(&alerts.tick(&after(now)))).collect();
    assert_eq!(lines, vec!["after a"; AFTERMATHS as usize]);
    assert_eq!(alerts.held, 12);
}

#[test]
fn without_a_hold_off_everything_is_told() {
    let mut alerts = Alerts::new(Settings { hold_off: 0, ..SETTINGS });
    for at in [20, 30, 40] {
        let id = at.to_string();
        let lines = told(&alerts.tick(&frame(at, vec![incident(&id, 0, at - 5, at, 0)])));
        assert_eq!(lines, [format!("crossed {id}")]);
        alerts.tick(&frame(at + 1, vec![over(incident(&id, 0, at - 5, at + 1, 0), at + 1)]));
    }
    assert!(alerts.cooling.is_empty());
}

/// An incident that somebody made up: when it begins, how long it lasts, on which disk.
#[derive(Clone, Debug)]
struct Made {
    begin: u64,
    lasts: u64,
    disk: u32,
    merged: bool,
}

fn made() -> impl Strategy<Value = Vec<Made>> {
    let one = (0u64..600, 0u64..120, 0u32..3, proptest::bool::weighted(0.1))
        .prop_map(|(begin, lasts, disk, merged)| Made { begin, lasts, disk, merged });
    proptest::collection::vec(one, 0..40)
}

proptest! {
    #[test]
    fn each_is_told_once_or_counted_in_what_is_told(
        all in made(), hold in 0u64..100, skipped in proptest::collection::btree_set(0u64..1000, 0..200)
    ) {
        let mut alerts = Alerts::new(Settings { hold_off: hold * SECOND, not_ready_within: 0 });
        let mut lines: Vec<(Event, String, u32)> = Vec::new();
        let mut counted = 0;
        let mut seen = BTreeSet::new();
        let mut pending: Vec<Incident> = Vec::new();
        for now in 0..900u64 {
            // What ends in a frame that is left out is not seen to end.
            let mut incidents = std::mem::take(&mut pending);
            for (i, one) in all.iter().enumerate() {
                let id = format!("i{i}");
                let (crosses, ends) = (one.begin + 5, one.begin + 5 + one.lasts);
                let age = now.saturating_sub(one.begin);
                let level = (age / 5).checked_ilog2().unwrap_or(0);
                if now >= crosses && now < ends {
                    incidents.push(incident(&id, one.disk, one.begin, now, level));
                } else if now == ends {
                    let mut last = over(incident(&id, one.disk, one.begin, now, level), now);
                    if one.merged {
                        last.change = Some(Change::MergedInto("other".to_owned()));
                    }
                    incidents.push(last);
                }
            }
            if skipped.contains(&now) {
                // Ends are in one frame only; a caller that leaves out a frame must not leave out those.
                pending = incidents.into_iter().filter(|i| i.ended.is_some()).collect();
                continue;
            }
            seen.extend(incidents.iter().map(|incident| incident.id.clone()));
            for n in alerts.tick(&frame(now, incidents)) {
                counted += n.repeats;
                if n.told {
                    lines.push((n.event, n.incident.id.clone(), n.incident.level));
                }
            }
            prop_assert!(alerts.open().0 <= all.len() && alerts.cooling.len() <= CAUSES);
        }
        for now in [4_600, 20_000, 40_000] {
            counted += alerts.tick(&frame(now, vec![])).iter().map(|n| n.repeats).sum::<u64>();
        }
        // No event twice; what has crossed has ended, and nothing is told after its end.
        let mut firsts = BTreeSet::new();
        for id in &seen {
            let of: Vec<&(Event, String, u32)> =
                lines.iter().filter(|(e, i, _)| i == id && *e != Event::Repeated).collect();
            let crossed = of.iter().filter(|(e, ..)| *e == Event::Crossed).count();
            let ended = of.iter().filter(|(e, ..)| *e == Event::Ended).count();
            prop_assert!(crossed <= 1 && ended <= 1 && crossed <= ended, "{id}: {of:?}");
            let distinct: BTreeSet<_> = of.iter().collect();
            prop_assert_eq!(distinct.len(), of.len(), "{}: {:?}", id, of);
            prop_assert!(of.last().is_none_or(|(e, ..)| *e == Event::Ended), "{id}: {of:?}");
            if !of.is_empty() {
                firsts.insert(id.clone());
            }
        }
        // Each incident was told, or is one of those that were counted. One that turned out to be part of another, and
        // was held, is that other.
        let held_merged = all.iter().enumerate()
            .filter(|(i, one)| one.merged && seen.contains(&format!("i{i}")) && !firsts.contains(&format!("i{i}")))
            .count() as u64;
        prop_assert_eq!(firsts.len() as u64 + counted + held_merged, seen.len() as u64);
    }
}
