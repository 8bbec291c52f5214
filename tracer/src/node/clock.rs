//! The node's clocks: now, and how monotonic, boot and wall-clock time relate.

use rustix::time::{ClockId, Timespec, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{ReadError, read_file};
use crate::event::Ns;

/// Now, in nanoseconds of `CLOCK_MONOTONIC`: the clock of every [`crate::event::Event`].
pub fn monotonic() -> Ns {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// CPU time of the calling thread, in nanoseconds.
pub fn of_thread() -> Ns {
    nanoseconds(clock_gettime(ClockId::ThreadCPUTime))
}

/// The same moment on three clocks, and which boot it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// `CLOCK_MONOTONIC`: stands still during suspend.
    pub monotonic: Ns,
    /// `CLOCK_BOOTTIME`: goes on during suspend; what `/proc/PID/stat` counts start times in.
    pub boottime: Ns,
    /// `CLOCK_REALTIME`: nanoseconds since 1970, UTC.
    pub realtime: Ns,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl Anchor {
    /// Reads the clocks and the boot id.
    pub fn now() -> Result<Anchor, ReadError> {
        let path = "/proc/sys/kernel/random/boot_id";
        let boot_id = String::from_utf8_lossy(&read_file(path, 128)?).trim().to_owned();
        let (monotonic, boottime) = beside(ClockId::Boottime);
        let (monotonic_then, realtime) = beside(ClockId::Realtime);
        // Both pairs are brought to the first pair's moment.
        let realtime = realtime.saturating_sub(monotonic_then.saturating_sub(monotonic));
        Ok(Anchor { monotonic, boottime, realtime, boot_id })
    }
}

/// How far `CLOCK_BOOTTIME` is ahead of `CLOCK_MONOTONIC`, in nanoseconds: the time spent suspended.
pub fn boottime_ahead() -> Ns {
    let (monotonic, boottime) = beside(ClockId::Boottime);
    let ahead = boottime.saturating_sub(monotonic);
    // Two clocks cannot be read at once. What is below the reading error is no suspend.
    if ahead < 100_000 { 0 } else { ahead }
}

/// `CLOCK_MONOTONIC` and `clock` at the same moment, as exact as the tightest of a few tries.
fn beside(clock: ClockId) -> (Ns, Ns) {
    let attempt = || {
        let before = monotonic();
        let other = nanoseconds(clock_gettime(clock));
        let after = monotonic();
        (after - before, before + (after - before) / 2, other)
    };
    let first = attempt();
    let (_, at, other) =
        (0..4).map(|_| attempt()).fold(first, |best, next| if next.0 < best.0 { next } else { best });
    (at, other)
}

fn nanoseconds(time: Timespec) -> Ns {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_anchor_agrees_with_the_standard_library_and_uptime() {
        let before = std::time::SystemTime::now();
        let anchor = Anchor::now().unwrap();
        let wall = before.duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        assert!(anchor.realtime.abs_diff(wall) < 5_000_000_000, "{} vs {wall}", anchor.realtime);
        // /proc/uptime is CLOCK_BOOTTIME in hundredths.
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        assert!((anchor.boottime as f64 / 1e9 - seconds).abs() < 5.0, "{} vs {seconds}", anchor.boottime);
        assert_eq!(anchor.boot_id.len(), 36);
        assert!(anchor.boottime + 100_000 >= anchor.monotonic);
    }

    #[test]
    fn monotonic_does_not_go_back() {
        let first = monotonic();
        assert!(monotonic() >= first);
    }
}
