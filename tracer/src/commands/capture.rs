//! `capture`: all that is seen, to a file.

use super::follow::{self, Follower, Moment, Why};
use super::output::Streams;
use crate::{
    capture::{
        Recorder, Redactor, place,
        recorder::{Ended, Options, Status},
    },
    cli::Capture,
    correlator::{Change, Frame, words},
    exit::Exit,
    node::worker::Workers,
    sinks::{sanitise, text},
    source::Source,
    thresholds::{SECOND, Thresholds},
};
use anyhow::Context;
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::time::{Duration, Instant};

/// On a terminal the progress is told this often, elsewhere seldom.
const PROGRESS: Duration = Duration::from_secs(1);
const SELDOM: Duration = Duration::from_secs(60);
/// How long the end waits until all is written.
const PATIENCE: Duration = Duration::from_secs(3);
/// A key is not longer.
const LONGEST_KEY: u64 = 64 << 10;

/// Runs the verb.
pub fn run(options: &Capture) -> anyhow::Result<Exit> {
    let redactor =
        if options.redact { Some(Redactor::new(&key(options.redact_key.as_deref())?)) } else { None };
    let node = follow::Node {
        settings: options.probing.settings(),
        thresholds: Thresholds::default(),
        duration: options.probing.duration,
        redactor,
    };
    let on_terminal = std::io::stderr().is_terminal();
    let mut capturing = Capturing {
        options,
        began: Instant::now(),
        // That nothing is there yet is worth a line that goes away, and no other.
        told: (!on_terminal).then(Instant::now),
        incidents: 0,
        on_terminal,
    };
    follow::node(node, &mut capturing)
}

/// What names are hashed with.
fn key(file: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    let path = file.unwrap_or(Path::new("/etc/machine-id")).to_owned();
    let shown = path.display().to_string();
    // It may lie on the stuck disk.
    let read = Workers::new(1).run(PATIENCE, move || {
        let mut key = Vec::new();
        File::open(path)?.take(LONGEST_KEY).read_to_end(&mut key)?;
        Ok::<_, std::io::Error>(key)
    });
    let key = read.with_context(|| shown.clone())?.with_context(|| {
        format!("{shown}: the key that names are hashed with; --redact-key takes it from another file")
    })?;
    let key = key.trim_ascii();
    anyhow::ensure!(key.len() >= 16, "{shown}: a key of at least 16 bytes is needed, this has {}", key.len());
    Ok(key.to_vec())
}

/// Writes, and tells how far it is.
struct Capturing<'a> {
    options: &'a Capture,
    began: Instant,
    /// When the progress was told last.
    told: Option<Instant>,
    incidents: u64,
    on_terminal: bool,
}

impl Follower for Capturing<'_> {
    fn begin(&mut self, source: &mut Source, streams: &Streams) -> anyhow::Result<()> {
        let live = source.live().context("only a node can be captured")?;
        let header = live.header().clone();
        // Names of the node's own clock, so that files sort as they were made.
        let time = header.clock.zoned(header.clock.monotonic).strftime("%Y%m%d-%H%M%S").to_string();
        let name = format!("{}-{time}.pleg", file_name(&header.host));
        let (place, warnings) = place::create(self.options.output.as_deref(), &name, self.options.force)?;
        for warning in warnings {
            streams.messages.line(format_args!("plegscope: {}", sanitise(&warning)));
        }
        let before = u64::try_from(self.options.before.as_nanos()).unwrap_or(u64::MAX);
        let options = Options {
            before: self.options.until_incident.then_some(before),
            most: self.options.max_size,
            until_incident: self.options.until_incident,
            force: self.options.force,
            ..Options::new(header)
        };
        let recorder = Recorder::start(place, options, live.known()).context("starting to write")?;
        let path = recorder.status().path;
        live.record(recorder);
        let what = match self.options.until_incident {
            true => format!(
                "waiting for an incident; the {} before it are kept in memory, for",
                humantime::format_duration(self.options.before)
            ),
            false => "capturing to".to_owned(),
        };
        streams.messages.line(format_args!("plegscope: {what} {}", path.display()));
        Ok(())
    }

    fn frame(&mut self, frame: Frame, moment: &Moment<'_>) -> anyhow::Result<()> {
        for incident in &frame.incidents {
            self.incidents += u64::from(incident.change == Some(Change::Crossed));
            if let Some(line) = text::change(incident) {
                moment.streams.messages.line(format_args!("{} {line}", moment.time(frame.now)));
            }
        }
        Ok(())
    }

    fn enough(&mut self, source: &mut Source, streams: &Streams) -> Option<Why> {
        let recorder = source.live()?.recorder()?;
        let every = if self.on_terminal { PROGRESS } else { SELDOM };
        if self.told.is_none_or(|told| told.elapsed() >= every) {
            self.told = Some(Instant::now());
            let line = progress(self.began.elapsed(), &recorder.status());
            if self.on_terminal {
                // Stays on its line: what comes next is written over it.
                streams.messages.write(format!("\r\u{1b}[2K{line}\r").into_bytes());
            } else {
                streams.messages.line(format_args!("plegscope: {line}"));
            }
        }
        recorder.is_over().map(|_| Why::Enough)
    }

    fn end(&mut self, source: &mut Source, why: Why, streams: &Streams) -> anyhow::Result<Exit> {
        let Some(mut recorder) = source.live().and_then(|live| live.take_recorder()) else {
            return Ok(Exit::Failed);
        };
        let reason = match why {
            Why::Interrupted => "interrupted".to_owned(),
            Why::TimeIsUp => "the time is up".to_owned(),
            Why::Enough | Why::Over => recorder.is_over().unwrap_or_else(|| "it could not go on".into()),
        };
        let waited_in_vain = self.options.until_incident && !recorder.is_triggered();
        if waited_in_vain && why == Why::Interrupted {
            // Who stops it has seen something, or has had enough: what is kept costs nothing.
            recorder.trigger();
        }
        let status = recorder.stop(&reason, PATIENCE);
        if self.on_terminal {
            streams.messages.write(b"\r\x1b[2K".to_vec());
        }
        let (exit, said) = last_words(&status, &reason, waited_in_vain, self.incidents);
        for line in said {
            streams.messages.line(format_args!("plegscope: {line}"));
        }
        streams.out.line(format_args!("{}", status.path.display()));
        Ok(exit)
    }
}

/// A line for who waits.
fn progress(since: Duration, status: &Status) -> String {
    let since = humantime::format_duration(Duration::from_secs(since.as_secs()));
    let lost = match status.lost {
        0 => String::new(),
        lost => format!(" · {lost} lines lost"),
    };
    let bytes = words::bytes(status.bytes);
    match &status.ring {
        None => format!("{since} · {bytes} · {} events{lost}", status.events),
        Some(ring) => {
            let cut = if ring.cut { ", all that fits" } else { "" };
            let (held, most) = (words::bytes(ring.bytes), words::bytes(ring.most));
            let reach = ring.reach / SECOND;
            format!("{since} · waiting · {held} of {most} in memory, the last {reach} s{cut}{lost}")
        }
    }
}

/// How it has ended, and what is to be said of that.
fn last_words(status: &Status, reason: &str, in_vain: bool, incidents: u64) -> (Exit, Vec<String>) {
    let path = status.path.display();
    let mut said = Vec::new();
    let (exit, why) = match &status.ended {
        Some(Ended::Whole(why)) => (Exit::Done, why.as_str()),
        Some(Ended::Failed(why)) => {
            said.push(format!("{why}: what was written before is whole"));
            (Exit::File, why.as_str())
        }
        Some(Ended::OnTheDisk(why)) => {
            said.push(format!(
                "{why}; stopped. Name a file on another disk (without -o it goes to a tmpfs), or use --force"
            ));
            (Exit::File, why.as_str())
        }
        None => {
            said.push(format!("{path}: its disk does not keep up; the last lines may not be in it"));
            (Exit::File, reason)
        }
    };
    if status.lost > 0 {
        said.push(format!("{} lines were lost; where, is said in the file", status.lost));
    }
    let s = |n: u64| if n == 1 { "" } else { "s" };
    let (events, bytes) = (status.events, words::bytes(status.bytes));
    let found = match (in_vain, incidents) {
        (true, _) => "no incident came".to_owned(),
        (false, n) => format!("{n} incident{}", s(n)),
    };
    said.push(format!("{why}: {found}, {events} event{}, {bytes} (plegscope replay {path})", s(events)));
    (exit, said)
}

/// The name of a node as a part of a file name.
fn file_name(host: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' };
    let name: String = host.chars().map(plain).take(64).collect();
    if name.is_empty() { "node".to_owned() } else { name }
}
