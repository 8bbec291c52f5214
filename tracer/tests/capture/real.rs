//! The captures that are checked in: real ones, of stories whose truth is known.

use super::format::captures;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use tracer::capture::record::MOST;
use tracer::capture::replay::{Replay, Told};
use tracer::capture::{Line, Record, reader};
use tracer::correlator::{Change, Frame, Incident};
use tracer::sinks::text;
use tracer::thresholds::TICK_EVERY;

/// All frames of a capture, and the records in it.
fn play(path: &Path) -> (Vec<Frame>, Vec<Record>) {
    let mut reader = reader::open(path, false).unwrap();
    let (mut frames, mut records) = (Vec::new(), Vec::new());
    let replay = Replay::new(reader.header().thresholds.clone());
    let told = |told| match told {
        Told::Frame(frame) => frames.push(frame),
        Told::Line(Line::Incident(record)) => records.push(*record),
        Told::Ahead(_) | Told::Passed(_) | Told::Line(_) => {}
    };
    replay.all(reader.by_ref(), told).unwrap();
    assert!(reader.has_ended(), "{}", path.display());
    (frames, records)
}

fn named(name: &str) -> (Vec<Frame>, Vec<Record>) {
    let path = captures().into_iter().find(|path| path.file_stem().unwrap() == name).unwrap();
    play(&path)
}

/// Incidents that opened: what each ended in, and the containers in it.
fn incidents(frames: &[Frame]) -> Vec<(String, Vec<String>)> {
    let ended = frames.iter().flat_map(|frame| &frame.incidents).filter(|i| i.change == Some(Change::Ended));
    let pod = |s: &tracer::correlator::Subject| s.pod.clone();
    ended.map(|i| (format!("{:?}", i.ends_in), i.containers.iter().filter_map(pod).collect())).collect()
}

#[test]
fn what_was_told_on_the_node_is_told_again() {
    let captures = captures();
    assert!(captures.len() >= 4, "{captures:?}");
    for path in captures {
        assert!(std::fs::metadata(&path).unwrap().len() <= 200_000, "{}", path.display());
        let (frames, records) = play(&path);
        let (again, _) = play(&path);
        let json = |frames: &[Frame]| serde_json::to_string(frames).unwrap();
        assert_eq!(json(&frames), json(&again), "{}", path.display());
        // The records were made on the node, of what it saw: the replay says the same of the same moments.
        for record in &records {
            assert!(record.json().len() <= MOST);
            let frame = frames.iter().find(|frame| frame.now == record.at);
            let frame = frame.unwrap_or_else(|| panic!("{}: no frame at {}", path.display(), record.at));
            // Not by its id: how that is made may change from version to version; and older ones opened an incident at the
            // tick behind the crossing.
            let same = |i: &&Incident| {
                i.opened.abs_diff(record.opened) <= TICK_EVERY
                    && (&i.change, &i.cause) == (&record.change, &record.cause)
            };
            let told: Vec<&String> = frame.incidents.iter().map(|incident| &incident.summary).collect();
            assert!(frame.incidents.iter().any(|i| same(&i)), "{}: {told:#?}\n{record:#?}", path.display());
        }
        let crossings =
            |frame: &Frame| frame.incidents.iter().filter(|i| i.change == Some(Change::Crossed)).count();
        let told = records.iter().filter(|record| record.change == Some(Change::Crossed)).count();
        assert_eq!(frames.iter().map(crossings).sum::<usize>(), told, "{}", path.display());
    }
}

#[test]
fn the_slow_disk_is_the_published_chain() {
    let (frames, records) = named("slow-disk");
    let incidents = incidents(&frames);
    assert_eq!(incidents.len(), 1, "{incidents:?}");
    assert!(incidents[0].0.starts_with("UnmountSync"), "{incidents:?}");
    assert_eq!(incidents[0].1.first().map(String::as_str), Some("victim"), "{incidents:?}");
    let record = records.iter().find(|record| record.change == Some(Change::Crossed)).unwrap();
    let kinds: Vec<String> = record.chain.iter().map(|step| format!("{:?}", step.kind)).collect();
    assert!(kinds.len() >= 7, "{kinds:?}");
    assert_eq!(kinds.last().map(String::as_str), Some("Sync"), "{kinds:?}");
    assert_eq!(record.node.programs.len(), 2, "containerd and its shims: {:?}", record.node.programs);
    assert!(frames.iter().all(|frame| frame.losses.is_empty()));
    // What was before the incident is there, and was quiet.
    assert!(frames[0].diagnoses.is_empty());
    assert!(record.at - frames[0].now > 4_000_000_000);
}

#[test]
fn two_causes_are_two_incidents() {
    let (frames, _) = named("two-causes");
    let ends: BTreeSet<String> = incidents(&frames)
        .into_iter()
        .map(|(ends, _)| ends.split([' ', '{']).next().unwrap().to_owned())
        .collect();
    assert!(ends.len() >= 2, "{ends:?}");
}

#[test]
fn a_late_exit_is_told_as_one() {
    let (frames, _) = named("late-exit");
    let told: Vec<String> =
        frames.iter().flat_map(|frame| &frame.incidents).filter_map(text::change).collect();
    assert!(told.iter().any(|line| line.contains("exit")), "{told:#?}");
    assert!(!incidents(&frames).is_empty());
}

#[test]
fn nothing_is_stuck_on_a_healthy_node() {
    let (frames, records) = named("healthy");
    assert!(records.is_empty() && frames.len() > 20, "{}", frames.len());
    assert!(frames.iter().all(|frame| frame.incidents.is_empty()));
    assert!(frames.iter().any(|frame| frame.programs.len() >= 2), "containerd is seen in it");
}

/// The tour of the README.
#[test]
fn the_readme_s_capture_is_told_in_words() {
    let path = captures().into_iter().find(|path| path.ends_with("slow-disk.pleg")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_plegscope")).arg("replay").arg(&path).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    for words in
        ["STUCK", "held by CRI UpdateContainerResources", "held by shim Delete", "sync of /dev/loop", "ENDED"]
    {
        assert!(told.contains(words), "{words} is not in:\n{told}");
    }
}
