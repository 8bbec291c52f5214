//! What a line of a capture can be. The schema: a change that an older reader would misread needs another [`VERSION`];
//! new kinds of lines and new fields do not, since readers pass over what they do not know.

use crate::correlator::Incident;
use crate::event::{Event, Ns};
use crate::thresholds::Thresholds;
use crate::warden::protocol::{Level, Survey};
use serde::{Deserialize, Serialize};

/// Version of the schema.
pub const VERSION: u32 = 1;

/// One line: a JSON object with one key, which says what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// What was captured, where and when; the first line of every capture. Repeated now and then and before the end, for
    /// the case that the first is damaged.
    Header(Header),
    /// Something that happened, in the order in which it was heard of.
    Event(Event),
    /// Something that was known before what stands below: written where a capture, or what follows on a gap in it,
    /// begins in the middle, so that every name in it is known. Its time is that of the knowledge.
    Known(Event),
    /// All that was heard until this time stands above: a replay lets its clock go on to here.
    Heard(Ns),
    /// What is attached, and what is not and why; replaces the one before.
    Survey(Survey),
    /// What plegscope itself had to say.
    Log {
        /// When.
        at: Ns,
        /// How important.
        level: Level,
        /// What.
        text: String,
    },
    /// What was known of an incident when it changed: enough by itself, without the rest of the file.
    Incident(Incident),
    /// Something is missing here.
    Loss(Loss),
    /// The capture has ended by itself: the last line of a whole one.
    End(End),
}

/// What was captured, where and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`] of the schema.
    pub version: u32,
    /// Version of the plegscope that wrote it.
    pub plegscope: String,
    /// Name of the node.
    pub host: String,
    /// Release of its kernel, for instance `6.12.9`.
    pub kernel: String,
    /// Id of the boot (`/proc/sys/kernel/random/boot_id`): times of `CLOCK_MONOTONIC` compare within one.
    pub boot_id: String,
    /// A moment by both clocks, to tell the time of day of every other.
    pub clock: Clock,
    /// The node's zone, for instance `Europe/Berlin`; empty when it is not known.
    pub zone: String,
    /// The thresholds in force.
    pub thresholds: Thresholds,
    /// Whether names were replaced by their hashes.
    pub redacted: bool,
}

/// A moment by two clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// `CLOCK_MONOTONIC`.
    pub monotonic: Ns,
    /// Nanoseconds since 1970-01-01T00:00:00Z (`CLOCK_REALTIME`).
    pub realtime: i64,
    /// What the node's clock on the wall was ahead of UTC, in seconds.
    pub offset: i32,
}

/// Something is missing, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// When it was noticed.
    pub at: Ns,
    /// Lines that are missing.
    pub lines: u64,
    /// Why, in words: `the disk was full`, `the disk did not keep up`.
    pub reason: String,
}

/// How a capture ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// When.
    pub at: Ns,
    /// Why, in words: `interrupted`, `the time is up`, `the file has its size`.
    pub reason: String,
    /// Events that were written.
    pub events: u64,
    /// Lines that were lost on the way to the file; each is also told by a [`Line::Loss`] where the file allowed it.
    pub lost: u64,
}
