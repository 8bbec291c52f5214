//! What a line of a capture can be. The schema: a change that an older reader would misread needs another [`VERSION`];
//! new kinds of lines and new fields do not, since readers pass over what they do not know.

use super::Record;
use crate::event::{Event, Ns};
use crate::thresholds::Thresholds;
use crate::warden::protocol::{Level, Survey};
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use std::time::Duration;

/// Version of the schema.
pub const VERSION: u32 = 1;

/// One line: a JSON object with one key, which says what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "nearly every line is an event, and one is kept at a time")]
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
    /// The clocks at a later moment, where the time of day is not what the one before lets expect: the machine was
    /// suspended, or its clock was set. Holds for what stands below.
    Clock(Clock),
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
    Incident(Box<Record>),
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
    /// A moment by all clocks, to tell the time of day of every other.
    pub clock: Clock,
    /// The node's zone, for instance `Europe/Berlin`; empty when it is not known.
    pub zone: String,
    /// The thresholds in force.
    pub thresholds: Thresholds,
    /// Whether names were replaced by their hashes.
    pub redacted: bool,
}

/// A moment by all clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// `CLOCK_MONOTONIC`, which all times in a capture are of.
    pub monotonic: Ns,
    /// `CLOCK_BOOTTIME`, which goes on while the machine is suspended.
    pub boottime: Ns,
    /// Nanoseconds since 1970-01-01T00:00:00Z (`CLOCK_REALTIME`).
    pub realtime: i64,
    /// What the node's clock on the wall was ahead of UTC, in seconds.
    pub offset: i32,
}

impl Clock {
    /// Whether another moment of the same boot tells the same time of day, as exact as clocks are read.
    pub fn agrees(&self, other: &Clock) -> bool {
        const EXACT: u64 = 50_000_000;
        self.offset == other.offset && self.realtime_of(other.monotonic).abs_diff(other.realtime) <= EXACT
    }

    /// The time of day at `at`, in nanoseconds since 1970-01-01T00:00:00Z, as the node's clock told it when this was read.
    pub fn realtime_of(&self, at: Ns) -> i64 {
        let after = i128::from(at) - i128::from(self.monotonic);
        i64::try_from(i128::from(self.realtime) + after).unwrap_or(i64::MAX)
    }

    /// The time of day at `at` with the node's offset, to the millisecond: `2024-02-29T12:00:00.250+01:00`.
    pub fn rfc3339(&self, at: Ns) -> String {
        self.zoned(at).strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string()
    }

    /// The time of day at `at` as the node's clock on the wall showed it, without the date: `12:00:00`.
    pub fn time_of_day(&self, at: Ns) -> String {
        self.zoned(at).strftime("%H:%M:%S").to_string()
    }

    /// The time of day at `at` with the node's offset.
    pub fn zoned(&self, at: Ns) -> jiff::Zoned {
        use jiff::{Timestamp, tz::Offset};
        let time = Timestamp::from_nanosecond(i128::from(self.realtime_of(at))).unwrap_or_default();
        let offset = Offset::from_seconds(self.offset).unwrap_or(Offset::UTC);
        time.to_zoned(offset.to_time_zone())
    }
}

/// A moment of a capture, as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// So much after its beginning.
    After(Duration),
    /// By the node's clock on the wall: the first such time from the beginning on.
    TimeOfDay(jiff::civil::Time),
    /// By any clock.
    Time(jiff::Timestamp),
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<At, String> {
        humantime::parse_duration(text)
            .map(At::After)
            .or_else(|_| text.parse().map(At::Time))
            .or_else(|_| text.parse().map(At::TimeOfDay))
            .map_err(|_| "a time as 12:30:00 or 2024-02-29T12:30:00+01:00, or a duration as 90s".into())
    }
}

impl At {
    /// The same as a time of the capture; before its beginning where it was before.
    pub fn resolve(&self, clock: &Clock) -> Ns {
        let realtime = match self {
            At::After(time) => {
                let after = u64::try_from(time.as_nanos()).unwrap_or(Ns::MAX);
                return clock.monotonic.saturating_add(after);
            }
            At::Time(time) => time.as_nanosecond(),
            At::TimeOfDay(time) => {
                let begin = clock.zoned(clock.monotonic);
                let same_day = begin.date().to_datetime(*time).to_zoned(begin.time_zone().clone());
                let same_day = same_day.map_or(0, |time| time.timestamp().as_nanosecond());
                let day = 86_400_000_000_000;
                // A time to the second is within that second.
                let passed = same_day + 1_000_000_000 <= begin.timestamp().as_nanosecond();
                same_day + if passed { day } else { 0 }
            }
        };
        let at = i128::from(clock.monotonic) + realtime - i128::from(clock.realtime);
        u64::try_from(at.max(0)).unwrap_or(Ns::MAX)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_follow_from_the_clock() {
        let clock =
            Clock { monotonic: 5_000, boottime: 7_000, realtime: 1_709_204_400_000_000_000, offset: 3_600 };
        assert_eq!(clock.rfc3339(5_000), "2024-02-29T12:00:00.000+01:00");
        assert_eq!(clock.rfc3339(5_000 + 90_250_000_000), "2024-02-29T12:01:30.250+01:00");
        assert_eq!(clock.rfc3339(0), "2024-02-29T11:59:59.999+01:00");
        assert_eq!(Clock { offset: -19_800, ..clock }.rfc3339(5_000), "2024-02-29T05:30:00.000-05:30");
        let later = Clock { monotonic: 10_005_000, realtime: clock.realtime + 10_000_000, ..clock };
        assert!(clock.agrees(&later) && later.agrees(&clock));
        // Put back by a second; suspended for a second; summer.
        assert!(!clock.agrees(&Clock { realtime: later.realtime - 1_000_000_000, ..later }));
        assert!(!clock.agrees(&Clock { realtime: later.realtime + 1_000_000_000, ..later }));
        assert!(!clock.agrees(&Clock { offset: 7_200, ..later }));
        let hostile = Clock { realtime: i64::MAX, offset: i32::MAX, ..clock };
        assert!(!hostile.rfc3339(u64::MAX).is_empty());
    }

    #[test]
    fn a_moment_can_be_named_in_three_ways() {
        // 12:00:00.000+01:00 at 5 s.
        let clock = Clock {
            monotonic: 5_000_000_000,
            boottime: 0,
            realtime: 1_709_204_400_000_000_000,
            offset: 3_600,
        };
        let at = |text: &str| text.parse::<At>().unwrap().resolve(&clock) / 1_000_000;
        assert_eq!(at("90s"), 95_000);
        assert_eq!(at("2024-02-29T11:01:00Z"), 65_000);
        assert_eq!(at("2024-02-29T12:01:00.5+01:00"), 65_500);
        assert_eq!(at("2024-02-28T00:00:00Z"), 0, "before");
        assert_eq!(at("12:00:30"), 35_000);
        assert_eq!(at("12:00:00"), 5_000);
        assert_eq!(at("11:59:00"), 5_000 + 86_340_000, "the next day");
    }
}
