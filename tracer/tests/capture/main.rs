//! Captures: written, damaged, read, played.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

mod files;
mod format;
mod player;
mod reader;
mod real;
mod recorder;

use std::path::{Path, PathBuf};
use tracer::capture::line::Clock;
use tracer::capture::{End, Header, Line, VERSION, writer::Writer};
use tracer::correlator::scenario::{Step, parse};
use tracer::thresholds::{LATENESS, Thresholds};

/// A folder that goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("plegscope-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn header() -> Header {
    Header {
        version: VERSION,
        plegscope: env!("CARGO_PKG_VERSION").into(),
        host: "node".into(),
        kernel: "6.12".into(),
        boot_id: "b".into(),
        clock: Clock { monotonic: 0, boottime: 0, realtime: 1_700_000_000_000_000_000, offset: 3_600 },
        zone: "Europe/Berlin".into(),
        thresholds: Thresholds::DEFAULT,
        redacted: false,
    }
}

/// The lines of a capture of this story.
fn story(name: &str) -> Vec<Line> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(format!("{name}.txt"));
    let content = std::fs::read_to_string(path).unwrap();
    let steps = parse(content.split("\n---- expected ----\n").next().unwrap()).unwrap();
    let mut lines: Vec<Line> = steps
        .into_iter()
        .map(|step| match step {
            Step::Event(event) => Line::Event(event),
            Step::Tick(now, _) => Line::Heard(now + LATENESS),
        })
        .collect();
    let at = lines.iter().rev().find_map(|line| match line {
        Line::Heard(at) => Some(*at),
        _ => None,
    });
    let reason = "interrupted".to_owned();
    lines.push(Line::End(End { at: at.unwrap(), reason, events: 0, lost: 0 }));
    lines
}

/// A file of these lines, with a frame for every so many.
fn file(lines: &[Line], each: usize) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).unwrap();
    writer.line(&Line::Header(header())).unwrap();
    writer.flush().unwrap();
    for some in lines.chunks(each) {
        some.iter().for_each(|line| writer.line(line).unwrap());
        writer.flush().unwrap();
    }
    writer.into_inner()
}
