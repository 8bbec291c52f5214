//! The record of an incident: never longer than promised, whatever the names; always whole enough to act on.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

use proptest::prelude::*;
use serde_json::Value;
use std::path::Path;
use tracer::capture::line::Clock;
use tracer::capture::{Header, Line, Record, VERSION, record::MOST};
use tracer::correlator::scenario::{Step, parse};
use tracer::correlator::{Correlator, Frame, limits};
use tracer::event::Role;
use tracer::thresholds::Thresholds;

fn header() -> Header {
    Header {
        version: VERSION,
        plegscope: "0.1.0".into(),
        host: "node-7".into(),
        kernel: "6.12.9".into(),
        boot_id: "3a2b".into(),
        clock: Clock { monotonic: 0, boottime: 0, realtime: 1_700_000_000_000_000_000, offset: 3_600 },
        zone: "Europe/Berlin".into(),
        thresholds: Thresholds::DEFAULT,
        redacted: false,
    }
}

/// All frames of a scenario.
fn frames(scenario: &Path) -> Vec<Frame> {
    let content = std::fs::read_to_string(scenario).unwrap();
    let mut correlator = Correlator::new(Thresholds::default());
    let mut frames = Vec::new();
    for step in parse(content.split("\n---- expected ----\n").next().unwrap()).unwrap() {
        match step {
            Step::Event(event) => correlator.apply(&event),
            Step::Tick(now, _) => frames.push(correlator.tick(now)),
        }
    }
    frames
}

fn scenarios() -> Vec<std::path::PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|p| p.extension().is_some_and(|e| e == "txt")).collect()
}

/// As it is in a capture, and back.
fn through_json(record: &Record) -> Record {
    let json = record.json();
    assert!(json.len() <= MOST, "{} bytes: {}", json.len(), String::from_utf8_lossy(&json));
    assert!(std::str::from_utf8(&json).unwrap().chars().all(|c| !c.is_control()));
    serde_json::from_slice(&json).unwrap()
}

#[test]
fn the_record_of_every_scenario_is_whole() {
    let mut seen = 0;
    for file in scenarios() {
        for frame in frames(&file) {
            for incident in &frame.incidents {
                let record = Record::of(&header(), &frame, incident);
                assert_eq!(through_json(&record), record);
                assert_eq!(record.cut, [""; 0], "{}: {}", file.display(), record.sentence);
                assert_eq!((record.id.as_str(), &record.sentence), (incident.id.as_str(), &incident.summary));
                let diagnosis = frame
                    .diagnoses
                    .iter()
                    .find(|d| d.incident.as_ref() == Some(&incident.id))
                    .filter(|_| incident.last.is_none());
                if let Some(d) = diagnosis {
                    let sum: u64 = record.chain.iter().map(|s| s.critical).sum();
                    assert_eq!(sum, d.chain.age);
                    assert_eq!(record.chain.last().unwrap().age, d.chain.links.last().unwrap().age);
                    assert!(record.blind_spots.len() >= d.blind_spots.len());
                    assert!(record.ahead.is_some());
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 100, "only {seen} records of open incidents");
}

#[test]
fn it_says_what_it_is_of_and_when() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/full-chain-with-kubelet.txt");
    let frames = frames(&file);
    let frame = frames.iter().rfind(|f| f.incidents.iter().any(|i| i.ended.is_none())).unwrap();
    let record = Record::of(&header(), frame, &frame.incidents[0]);
    assert_eq!((record.node.host.as_str(), record.node.kernel.as_str()), ("node-7", "6.12.9"));
    assert_eq!(record.node.programs, frame.programs);
    assert!(record.node.programs.iter().any(|p| p.role == Role::Kubelet), "{:?}", record.node.programs);
    assert_eq!(record.time, header().clock.rfc3339(frame.now));
    assert!(record.chain.first().unwrap().what.contains("relist"), "{:?}", record.chain);
    assert!(record.chain.last().unwrap().what.contains("sync of /dev/"), "{:?}", record.chain);
    assert!(record.chain.iter().skip(1).all(|s| s.confidence.is_some() && !s.evidence.is_empty()));
    assert_eq!(record.ends_in.class, "unmount-sync");
    let line = serde_json::to_string(&Line::Incident(Box::new(record.clone()))).unwrap();
    assert_eq!(serde_json::from_str::<Line>(&line).unwrap(), Line::Incident(Box::new(record)));
}

/// Where the strings are that may be anything, as paths into the JSON.
fn free_strings(frame: &Value) -> Vec<String> {
    fn leaves(value: &Value, at: &str, out: &mut Vec<String>) {
        match value {
            Value::String(_) => out.push(at.to_owned()),
            Value::Array(all) => {
                all.iter().enumerate().for_each(|(i, v)| leaves(v, &format!("{at}/{i}"), out));
            }
            Value::Object(all) => all.iter().for_each(|(key, v)| leaves(v, &format!("{at}/{key}"), out)),
            _ => {}
        }
    }
    let mut all = Vec::new();
    leaves(frame, "", &mut all);
    all.retain(|path| {
        let mut changed = frame.clone();
        *changed.pointer_mut(path).unwrap() = Value::from("anything");
        serde_json::from_value::<Frame>(changed).is_ok()
    });
    all
}

/// A frame with an open incident in which every list is as long as it may be.
fn fullest() -> (Value, Vec<String>) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/recreated.txt");
    let frames = frames(&file);
    let mut frame = frames
        .into_iter()
        .rfind(|f| f.incidents.iter().any(|i| i.ended.is_none() && !i.consequences.is_empty()))
        .unwrap();
    fn fill<T: Clone>(list: &mut Vec<T>, most: usize) {
        assert!(!list.is_empty(), "nothing to repeat: {}", std::any::type_name::<T>());
        *list = list.iter().cycle().take(most).cloned().collect();
    }
    frame.diagnoses.truncate(1);
    frame.incidents.truncate(1);
    let d = &mut frame.diagnoses[0];
    fill(&mut d.chain.links, limits::LINKS);
    fill(&mut d.stuck_calls, limits::STUCK_CALLS_SHOWN);
    fill(&mut d.containers, limits::SUBJECTS_SHOWN);
    fill(&mut d.consequences, limits::CONSEQUENCES_SHOWN);
    fill(&mut d.advice.fixes, 8);
    fill(&mut d.advice.do_now, 8);
    fill(&mut d.advice.do_not, 8);
    let i = &mut frame.incidents[0];
    fill(&mut i.containers, limits::SUBJECTS_SHOWN);
    fill(&mut i.consequences, limits::CONSEQUENCES_SHOWN);
    fill(&mut frame.programs, limits::PROGRAMS_SHOWN);
    let blind = || tracer::correlator::BlindSpot { what: "what".into(), reason: "reason".into() };
    frame.blind_spots = (0..limits::BLIND_SPOTS).map(|_| blind()).collect();
    frame.diagnoses[0].blind_spots = vec!["blind".into(); 16];
    frame.in_flight.clear();
    let value = serde_json::to_value(&frame).unwrap();
    let free = free_strings(&value);
    (value, free)
}

/// A string that takes up to a few kilobytes, half of it in characters that are escaped.
fn hostile() -> impl Strategy<Value = String> {
    let one = prop_oneof![
        Just('\u{1b}'),
        Just('\u{202e}'),
        Just('\u{e0041}'),
        Just('"'),
        Just('\\'),
        Just('\n'),
        Just('数'),
        any::<char>(),
    ];
    (proptest::collection::vec(one, 0..12), 0usize..300)
        .prop_map(|(chars, times)| chars.into_iter().collect::<String>().repeat(times))
}

#[test]
fn no_names_make_it_longer_than_promised() {
    let (frame, free) = fullest();
    assert!(free.len() > 500, "only {} strings", free.len());
    let of = |frame: &Value| {
        let frame: Frame = serde_json::from_value(frame.clone()).unwrap();
        let header = Header { host: frame.incidents[0].summary.clone(), ..header() };
        let record = Record::of(&header, &frame, &frame.incidents[0]);
        assert_eq!(through_json(&record), record);
        record
    };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(96));
    runner
        .run(&(proptest::collection::vec(hostile(), 1..8), 1usize..4), |(strings, every)| {
            let mut frame = frame.clone();
            let id = Value::from(strings[0].clone());
            for (n, path) in free.iter().enumerate().filter(|(n, _)| n % every == 0) {
                *frame.pointer_mut(path).unwrap() = Value::from(strings[n % strings.len()].clone());
            }
            // The incident and its diagnosis still belong together.
            *frame.pointer_mut("/incidents/0/id").unwrap() = id.clone();
            *frame.pointer_mut("/diagnoses/0/incident").unwrap() = id;
            let record = of(&frame);
            prop_assert_eq!(record.links, limits::LINKS as u64);
            let last = record.chain.last().unwrap();
            prop_assert_eq!((record.chain[0].n, last.n), (1, limits::LINKS as u64), "both ends stay");
            prop_assert!(!record.cut.is_empty());
            Ok(())
        })
        .unwrap();
    // The worst that can be: every string long, and every character as wide as they come.
    let mut worst = frame;
    for path in &free {
        *worst.pointer_mut(path).unwrap() = Value::from("\u{e0041}".repeat(5_000));
    }
    let record = of(&worst);
    assert!(record.cut.iter().any(|said| said.contains("links of the chain")), "{:?}", record.cut);
}
