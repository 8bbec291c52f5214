//! What a capture comes to: a pure summary of its header, its lines and the frames of its replay, for every format alike.
//!
//! ```text
//! reader ─> line ─┬────────────> collector ─> Report ─┬─> sinks/report (text, json, markdown, html)
//!                 └─> replay ──> frame ──┘            └─> Comparison with that of an older capture
//! ```
//!
//! All lists are bounded by the constants beside them; where one is cut, a number beside it says how many there are in
//! all. Strings from workloads are as they were seen: a sink makes them safe for where it writes.

mod collect;
mod compare;
mod logs;
mod relists;
mod timeline;

pub use collect::Collector;
pub use compare::{Comparison, Quantity, Row, Side};
pub use logs::LogSearch;
pub use relists::{Relist, Relists};
pub use timeline::{Sample, Timeline};

use crate::capture::line::Clock;
use crate::capture::record::{Node, Record};
use crate::capture::replay::Replay;
use crate::capture::{ReadError, Reader};
use crate::correlator::{Diagnosis, Dropped, Subject};
use crate::event::{LossPoint, Ns};
use crate::thresholds::Thresholds;
use serde::Serialize;
use std::io::Read;

/// Version of the JSON. New fields do not change it.
pub const VERSION: u32 = 1;
/// Incidents told one by one: the longest, in the order of their times.
pub const INCIDENTS: usize = 200;
/// Changes told of one incident.
pub const CHANGES: usize = 64;
/// Slow relists told one by one.
pub const RELISTS: usize = 200;
/// Late exits told one by one.
pub const EXITS: usize = 200;
/// Gaps told one by one.
pub const GAPS: usize = 100;
/// Blind spots told one by one.
pub const BLIND_SPOTS: usize = 256;

/// What a capture comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// [`VERSION`] of the JSON.
    pub version: u32,
    /// Where it was captured.
    pub node: Node,
    /// A moment by all clocks, to tell the time of day of every other.
    pub clock: Clock,
    /// Whether names were replaced by their hashes.
    pub redacted: bool,
    /// The thresholds that were in force.
    pub thresholds: Thresholds,
    /// What was captured, and what of it is missing.
    pub captured: Captured,
    /// All of it in a few numbers.
    pub totals: Totals,
    /// Incidents, in the order in which they began; at most [`INCIDENTS`].
    pub incidents: Vec<Reported>,
    /// Slow relists.
    pub relists: Relists,
    /// Exits that were reported late, the latest first; at most [`EXITS`].
    pub late_exits: Vec<LateExit>,
    /// How long things took.
    pub latencies: Vec<Latency>,
    /// What would have helped, in the order in which to try it.
    pub fixes: Vec<FixTotal>,
    /// What was not seen.
    pub blind: Blind,
    /// How it went over time, for a picture.
    pub timeline: Timeline,
}

impl Report {
    /// The time of day with the node's offset, RFC 3339.
    pub fn time_of(&self, at: Ns) -> String {
        self.clock.rfc3339(at)
    }
}

/// A moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// `CLOCK_MONOTONIC`.
    pub at: Ns,
    /// The time of day with the node's offset, RFC 3339.
    pub time: String,
}

/// What was captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Captured {
    /// Begin of what was heard.
    pub from: Moment,
    /// End of it.
    pub to: Moment,
    /// From begin to end, without gaps, in nanoseconds: what rates are told of.
    pub covered: Ns,
    /// Where nothing is known, or not all of it; at most [`GAPS`].
    pub gaps: Vec<Gap>,
    /// How many of these there are.
    pub gaps_total: u64,
    /// How it ended, in words; `None` when it was cut off, or is still being written.
    pub ended: Option<String>,
    /// Things that happened, one a line.
    pub events: u64,
    /// What of the file could not be read, in words.
    pub unread: Option<String>,
}

/// A stretch of which nothing, or not all, is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The last that was heard before.
    pub from: Moment,
    /// The first that was heard after it; `None` when that was the end.
    pub to: Option<Moment>,
    /// Lines that are missing, as far as they were counted.
    pub lines: u64,
    /// Why.
    pub reason: String,
}

/// A capture in a few numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Incidents; those that turned out to be part of another do not count.
    pub incidents: u64,
    /// Of these, how many had not ended when the capture did.
    pub open: u64,
    /// How long at least one incident lasted, in nanoseconds.
    pub blocked: Ns,
    /// How long at least one slow relist (or list call that stands for it) was in flight, in nanoseconds.
    pub stalled: Ns,
    /// Exits that were reported late, or not at all.
    pub late_exits: u64,
    /// How late the latest was, in nanoseconds.
    pub latest_exit: Ns,
}

/// An incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reported {
    /// All that is known of it, at its end or at that of the capture: the record that an alert carries.
    pub record: Record,
    /// When it changed, and how; at most [`CHANGES`].
    pub changes: Vec<Changed>,
    /// The incident that it turned out to be part of.
    pub merged_into: Option<String>,
    /// Where the logs tell of it.
    pub logs: Vec<LogSearch>,
    /// The diagnosis that the record is of, for those who draw it.
    #[serde(skip)]
    pub diagnosis: Option<Box<Diagnosis>>,
}

impl Reported {
    /// When it was over, as time of day; `None` when the capture ended before.
    pub fn over(&self) -> Option<&str> {
        // The record is of the frame in which it ended.
        self.record.ended.map(|_| self.record.time.as_str())
    }
}

/// A change of an incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// When.
    pub when: Moment,
    /// What, in words.
    pub what: String,
    /// Greatest age of a stuck call by then, in nanoseconds.
    pub longest: Ns,
}

/// An exit that was reported late.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LateExit {
    /// Of which container.
    pub of: Subject,
    /// How late, in nanoseconds; so far, if it still is not reported.
    pub late: Ns,
    /// Attempts of containerd to handle it.
    pub attempts: u32,
    /// Whether it was reported by the end of the capture.
    pub reported: bool,
    /// The incident it came of.
    pub incident: String,
}

/// How long one kind of thing took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Of what: `unmount`, `sync`, `lock wait`, `CRI call`, `relist`, `exit handling` (one attempt), or a CRI method.
    pub of: String,
    /// Shorter ones are not in it, in nanoseconds.
    pub at_least: Ns,
    /// How many ended.
    pub count: u64,
    /// Median of those, in nanoseconds.
    pub p50: Ns,
    /// 90th percentile.
    pub p90: Ns,
    /// 99th percentile.
    pub p99: Ns,
    /// The longest that ended.
    pub max: Ns,
    /// How many had not ended when the capture did: they are in none of the numbers above.
    pub in_flight: u64,
    /// Age of the oldest of these, in nanoseconds.
    pub oldest: Ns,
}

/// What would have helped, over all incidents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FixTotal {
    /// Its heading in docs/fixes.md.
    pub id: String,
    /// What to do.
    pub what: String,
    /// Nanoseconds it would have saved of the calls that are drawn, one for each incident, summed up; `None` where that
    /// cannot be told.
    pub saves: Option<Ns>,
    /// Incidents it would have helped in.
    pub incidents: u64,
    /// How to apply it.
    pub how: String,
    /// Since which version; empty when any.
    pub since: String,
    /// What it costs.
    pub side_effects: String,
}

/// What was not seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Blind {
    /// What could not be seen, when, and why; at most [`BLIND_SPOTS`].
    pub spots: Vec<Spot>,
    /// Probes that were attached, and those that were not.
    pub probes: Option<(u64, u64)>,
    /// Records lost on the node, by place.
    pub losses: Vec<(LossPoint, u64)>,
    /// What the correlator had to leave out because a collection was at its bound.
    pub dropped: Vec<Dropped>,
    /// Operations whose end was never reported.
    pub uncertain_ends: u64,
    /// Lines lost on the way to the file.
    pub lines_lost: u64,
}

/// Something that could not be seen for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Spot {
    /// What.
    pub what: String,
    /// Why, as said last.
    pub reason: String,
    /// The first frame with it.
    pub from: Moment,
    /// The first frame without it again; `None` when there was none.
    pub until: Option<Moment>,
}

/// Reads a capture to its end, or to the first thing that cannot be read.
pub fn of<R: Read>(reader: &mut Reader<R>) -> Result<Report, ReadError> {
    let header = reader.header().clone();
    let mut replay = Replay::new(header.thresholds.clone());
    let mut collector = Collector::new(header);
    for line in reader.by_ref() {
        let line = line?;
        collector.line(&line);
        replay.line(line, |told| collector.told(told));
    }
    Ok(collector.finish(reader.unread().words()))
}
