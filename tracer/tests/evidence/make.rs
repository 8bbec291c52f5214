//! Captures made of scenarios, and the program that reads them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tracer::capture::line::Clock;
use tracer::capture::writer::Writer;
use tracer::capture::{End, Header, Line, Reader, VERSION};
use tracer::correlator::scenario::{Step, parse};
use tracer::event::{Body, Ns};
use tracer::report::{self, Report};
use tracer::thresholds::{LATENESS, TICK_EVERY, Thresholds};

/// The header of all captures that are made here.
pub fn header() -> Header {
    Header {
        version: VERSION,
        plegscope: "0.1.0".into(),
        host: "node-7".into(),
        kernel: "6.12.9".into(),
        boot_id: "3a2b1c00-0000-4000-8000-00000000cafe".into(),
        clock: Clock { monotonic: 0, boottime: 0, realtime: 1_700_000_000_000_000_000, offset: 3_600 },
        zone: "Europe/Berlin".into(),
        thresholds: Thresholds::DEFAULT,
        redacted: false,
    }
}

/// All scenarios, by name.
pub fn scenarios() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut all: Vec<(String, String)> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, text.split("\n---- expected ----\n").next().unwrap().to_owned())
        })
        .collect();
    all.sort();
    assert!(all.len() > 40, "scenarios are missing");
    all
}

/// One scenario.
pub fn scenario(name: &str) -> String {
    scenarios().into_iter().find(|(of, _)| of == name).unwrap_or_else(|| panic!("no scenario {name}")).1
}

/// The lines of a capture of a scenario, without header and end.
pub fn lines(scenario: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut last = 0;
    for step in parse(scenario).unwrap() {
        match step {
            Step::Event(event) => {
                last = last.max(event.at);
                lines.push(Line::Event(event));
            }
            Step::Tick(now, _) => {
                last = last.max(now);
                lines.push(Line::Heard(now));
            }
        }
    }
    // Until what is known of the last moment has been told.
    lines.push(Line::Heard(last + LATENESS + TICK_EVERY));
    lines
}

/// A capture of lines.
pub fn written(header: Header, lines: &[Line]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut writer = Writer::new(&mut file).unwrap();
    writer.line(&Line::Header(header)).unwrap();
    let mut at = 0;
    for (n, line) in lines.iter().enumerate() {
        if let Line::Heard(now) = line {
            at = at.max(*now);
        }
        writer.line(line).unwrap();
        if n % 200 == 199 {
            writer.flush().unwrap();
        }
    }
    let events = lines.iter().filter(|line| matches!(line, Line::Event(_))).count() as u64;
    writer.line(&Line::End(End { at, reason: "the time is up".into(), events, lost: 0 })).unwrap();
    writer.flush().unwrap();
    drop(writer);
    file
}

/// A whole capture of a scenario.
pub fn capture(scenario: &str) -> Vec<u8> {
    written(header(), &lines(scenario))
}

/// The report of a capture.
pub fn report_of(capture: &[u8]) -> Report {
    report::of(&mut Reader::new(capture).unwrap()).unwrap()
}

/// The same lines, later.
pub fn later(lines: &[Line], by: Ns) -> Vec<Line> {
    let mut lines = lines.to_vec();
    for line in &mut lines {
        match line {
            Line::Event(event) => {
                event.at += by;
                match &mut event.body {
                    Body::InFlight(op) | Body::Ended(op, _) => op.begin += by,
                    Body::PollComplete { older_than, .. } => *older_than += by,
                    Body::Process(p) => p.started = p.started.saturating_add(by),
                    _ => {}
                }
            }
            Line::Heard(now) => *now += by,
            _ => {}
        }
    }
    lines
}

/// A small incident: a relist and an unmount that last for seven seconds.
pub const SMALL: &str = "10.0 process 50 kubelet go1.22.1
10.0 process 300 shim go1.19.8
20.0 op relist relist 50:51:g5#100
20.0 op unmount unmount 300:310 path=/run/x
20.5 until 26.9 every=0.5
27.0 end unmount
27.0 end relist
27.3 tick
28.0 tick
";

/// A folder of this test alone.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("evidence").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Runs the program as a user would.
pub fn plegscope(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plegscope")).args(arguments).output().unwrap()
}
