//! Runs every file in `scenarios/`: events above the separator, the expected text below it.
//!
//! `UPDATE_SCENARIOS=1 cargo test -p tracer --test scenarios` writes what comes out; review the difference.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use tracer::correlator::scenario::{Step, parse};
use tracer::correlator::{Correlator, Frame, limits};
use tracer::event::Body;
use tracer::sinks::text;
use tracer::thresholds::Thresholds;

const SEPARATOR: &str = "\n---- expected ----\n";

fn files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("scenarios/ is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|p| p.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    files
}

/// Runs the steps; the frames that are to be shown, and lines about changes at the ticks between them.
fn run(steps: &[Step]) -> (String, Vec<Frame>) {
    let mut correlator = Correlator::new(Thresholds::default());
    let mut out = String::new();
    let mut frames = Vec::new();
    for step in steps {
        match step {
            Step::Event(event) => correlator.apply(event),
            Step::Tick(now, shown) => {
                let frame = correlator.tick(*now);
                let lines = if *shown {
                    text::frame(&frame)
                } else {
                    frame.incidents.iter().filter_map(text::change).collect()
                };
                if *shown || !lines.is_empty() {
                    writeln!(out, "== {}.{:03}", now / 1_000_000_000, now % 1_000_000_000 / 1_000_000)
                        .unwrap();
                }
                for line in lines {
                    writeln!(out, "{line}").unwrap();
                }
                frames.push(frame);
            }
        }
    }
    (out, frames)
}

#[test]
fn every_scenario_gives_what_it_says() {
    let update = std::env::var_os("UPDATE_SCENARIOS").is_some();
    let mut wrong = Vec::new();
    let files = files();
    assert!(update || files.len() >= 21, "scenarios are missing: {}", files.len());
    for file in files {
        let content = std::fs::read_to_string(&file).expect("readable");
        let (input, expected) = content.split_once(SEPARATOR).unwrap_or((content.trim_end(), ""));
        let steps = parse(input).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let (actual, _) = run(&steps);
        if actual != expected {
            if update {
                std::fs::write(&file, format!("{}{SEPARATOR}{actual}", input.trim_end())).expect("writable");
            } else {
                wrong.push(format!("==== {}\n-- expected\n{expected}\n-- actual\n{actual}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same events give the same frames, byte for byte; every chain's seconds sum to its age; no diagnosis is longer
/// than promised; frames survive JSON.
#[test]
fn every_scenario_keeps_the_promises() {
    for file in files() {
        let content = std::fs::read_to_string(&file).expect("readable");
        let input = content.split(SEPARATOR).next().expect("never empty");
        let steps = parse(input).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let (first, frames) = run(&steps);
        let (second, again) = run(&steps);
        assert_eq!(first, second, "{}", file.display());
        let json = serde_json::to_string(&frames).expect("serialises");
        assert_eq!(json, serde_json::to_string(&again).expect("serialises"), "{}", file.display());
        let back: Vec<Frame> = serde_json::from_str(&json).expect("deserialises");
        assert_eq!(back, frames, "{}", file.display());
        for frame in &frames {
            for d in &frame.diagnoses {
                let sum: u64 = d.chain.links.iter().map(|l| l.critical).sum();
                assert_eq!(sum, d.chain.age, "{} at {}", file.display(), frame.now);
                let lines = text::diagnosis(d, frame.now);
                assert!(lines.len() <= text::LINES, "{}: {} lines", file.display(), lines.len());
                assert!(lines.iter().all(|l| !l.contains(char::is_control)), "{}", file.display());
                assert!(lines.iter().all(|l| l.chars().count() <= text::WIDTH), "{}", file.display());
            }
        }
    }
}

/// The same with names as long as anybody may choose them.
#[test]
fn names_of_any_length_make_no_ticket_too_long() {
    let long = |text: &mut String| *text = format!("{text}{}", "-wide".repeat(800));
    for file in files() {
        let content = std::fs::read_to_string(&file).expect("readable");
        let mut steps = parse(content.split(SEPARATOR).next().expect("never empty")).expect("parses");
        for step in &mut steps {
            let Step::Event(event) = step else { continue };
            match &mut event.body {
                Body::Process(p) => long(&mut p.comm),
                Body::Container(c) => {
                    [&mut c.pod, &mut c.namespace, &mut c.name].into_iter().flatten().for_each(long);
                }
                Body::Device(d) => long(&mut d.name),
                Body::InFlight(op) | Body::Ended(op, _) => op.path.iter_mut().for_each(long),
                Body::Writers(w) => w.of.iter_mut().for_each(|w| long(&mut w.cgroup)),
                Body::Pins(p) => p.of.iter_mut().for_each(|p| long(&mut p.comm)),
                Body::BlindSpot { reason, .. } if !reason.is_empty() => long(reason),
                _ => {}
            }
        }
        for frame in run(&steps).1 {
            for lines in frame.diagnoses.iter().map(|d| text::diagnosis(d, frame.now)) {
                assert!(lines.len() <= text::LINES, "{}: {} lines", file.display(), lines.len());
                let widest = lines.iter().map(|l| l.chars().count()).max().expect("a sentence");
                assert!(widest <= text::WIDTH, "{}: {widest} characters", file.display());
            }
        }
    }
}

/// An update that began when hundreds of calls waited already, and that goes on when they are let go of, is a part of the
/// incident that they all waited for; so are the last of these calls, which were let go of and have not run yet or not come
/// back yet, and the exit that is to be tried again.
#[test]
fn the_last_of_a_crowd_belongs_to_its_incident() {
    let content = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join("late-exit-left.txt"),
    );
    let content = content.expect("readable");
    let (before, after) = content.split_once("22.1 until 29.9\n").expect("the crowd comes here");
    let (stall, _) = after.split_once("41.05 end sync\n").expect("the unmount ends here");
    let mut text = before.to_owned();
    // Two operations each: more than are remembered.
    let crowd = 10..10 + limits::INCIDENT_MEMBERS / 2;
    for i in crowd.clone() {
        writeln!(text, "22.1 op list{i} cri:ListContainers 100:120:g2{i}#1{i}").unwrap();
        writeln!(text, "22.1 op wait{i} wait 100:120:g2{i}#1{i} object=0xc00020000c").unwrap();
    }
    text.push_str(
        "22.2 op update2 cri:UpdateContainerResources 100:113:g13#13 container=aa
         22.2 op status2 status:UpdateSync 100:113:g13#13 object=0xc000200000 container=aa
         22.2 op wait2 wait 100:113:g13#13 object=0xc00020000c
         22.3 until 29.9\n",
    );
    text.push_str(&stall.replace("until 40.5", "until 40.5 every=1.0"));
    for name in ["sync", "unmount", "init-delete", "serve-delete", "wait-init", "init-update", "serve-update"]
    {
        writeln!(text, "41.05 end {name}").unwrap();
    }
    for name in ["call-update", "status", "wait-status", "update", "list", "wait2"] {
        writeln!(text, "41.06 end {name}").unwrap();
    }
    let (woken, running) = (crowd.end - 1, crowd.end - 2);
    for i in crowd {
        match i {
            i if i == woken => {
                writeln!(text, "41.06 woken 100:113:g13#13 100:120:g2{i}#1{i} semaphore=0xc00020000c")
            }
            i if i == running => writeln!(text, "41.06 end wait{i}"),
            i => writeln!(text, "41.06 end wait{i}\n41.06 end list{i}"),
        }
        .unwrap();
    }
    text.push_str(
        "41.1 tick
         41.15 end status2
         41.15 end update2\n",
    );
    writeln!(text, "41.15 end wait{woken}\n41.15 end list{woken}\n41.15 end list{running}").unwrap();
    text.push_str(
        "41.2 until 43.0
         43.5 op exit3 exit 100:110:g10#10 container=aa
         43.52 end exit3
         43.6 tick\n",
    );
    let (_, frames) = run(&parse(&text).unwrap_or_else(|e| panic!("{e}")));
    let of = |frame: &Frame, method: &str| {
        let links = frame.diagnoses.iter().flat_map(|d| &d.chain.links);
        links.filter(|link| link.operation.method == method).count()
    };
    let waiting = frames.iter().flat_map(|frame| &frame.diagnoses).map(|d| d.stuck_calls_total).max();
    assert!(waiting > Some(limits::INCIDENT_MEMBERS as u64 / 2), "{waiting:?}");
    let freed = frames.iter().find(|frame| frame.now == 41_100_000_000).expect("a tick");
    assert_eq!(of(freed, "UpdateSync"), 1, "it goes on, and nothing is seen below it");
    assert!(of(freed, "ListContainers") > 0, "they are shown while they have not come back");
    let ids: BTreeSet<&str> =
        frames.iter().flat_map(|frame| &frame.incidents).map(|one| one.id.as_str()).collect();
    assert_eq!(ids, BTreeSet::from(["unmount-300-aaaaaaaaaaaa"]));
}
