//! What containerd writes in its log about exits that it could not handle: the ground truth for its attempts.
//!
//! Pure. The lines are those of containerd 1.6 and before with the time zone UTC:
//!
//! ```text
//! time="2026-11-23T19:55:03.123456789Z" level=error msg="failed to handle container TaskExit event &TaskExit{…}" error="…"
//! time="2026-11-23T19:55:04.2Z" level=info msg="TaskExit event &TaskExit{ContainerID:…,…}"
//! time="2026-11-23T19:55:14.2Z" level=error msg="Failed to handle backOff event &TaskExit{…} for …" error="…"
//! ```
//!
//! Since 1.7 an event is written as `container_id:\"…\" id:\"…\" pid:…` instead.

use super::sys;
use serde::{Deserialize, Serialize};

/// Nanoseconds of a day.
const DAY: u64 = 86_400_000_000_000;

/// One attempt to handle an exit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Whose exit.
    pub container: String,
    /// When it began, ns of CLOCK_MONOTONIC; `None` for the first, which is not logged and begins with the exit.
    pub begin: Option<u64>,
    /// When it was given up; `None` while it lasts, and when it did what it should.
    pub failed: Option<u64>,
    /// Why.
    pub error: Option<String>,
}

/// All attempts that a log tells of, in the order they began.
pub fn attempts(text: &str) -> Vec<Attempt> {
    let (monotonic, realtime) = (sys::monotonic(), sys::realtime());
    attempts_until(text, monotonic, realtime)
}

fn attempts_until(text: &str, monotonic: u64, realtime: u64) -> Vec<Attempt> {
    let mut attempts: Vec<Attempt> = Vec::new();
    for line in text.lines().filter(|line| line.contains("TaskExit") || line.contains("backOff event")) {
        let Some(time) = time_of_day(line) else { continue };
        let at = monotonic.saturating_sub((realtime % DAY + DAY - time) % DAY);
        let id = after(line, ",ID:").or_else(|| after(line, " ID:"));
        let Some(id) = id.or_else(|| after(line, " id:\\\"")) else { continue };
        let container: String = id.chars().take_while(char::is_ascii_alphanumeric).collect();
        let error =
            line.split_once(" error=\"").map(|(_, rest)| rest.trim_end_matches('"').replace("\\\"", "\""));
        let last = attempts.iter_mut().rfind(|one| one.container == container && one.failed.is_none());
        let failed = line.contains("failed to handle container TaskExit event")
            || line.contains("Failed to handle backOff event");
        match (failed, last) {
            (true, Some(open)) => (open.failed, open.error) = (Some(at), error),
            (true, None) => attempts.push(Attempt { container, begin: None, failed: Some(at), error }),
            (false, _) => attempts.push(Attempt { container, begin: Some(at), failed: None, error: None }),
        }
    }
    attempts
}

fn after<'l>(line: &'l str, mark: &str) -> Option<&'l str> {
    line.split_once(mark).map(|(_, rest)| rest)
}

/// Nanoseconds since midnight of a line's `time="2026-11-23T19:55:03.123456789Z"`.
fn time_of_day(line: &str) -> Option<u64> {
    let time = after(line, "time=\"")?.split('"').next()?;
    let clock = time.split_once('T')?.1.trim_end_matches('Z');
    let (whole, part) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut seconds = 0;
    for part in whole.split(':') {
        seconds = seconds * 60 + part.parse::<u64>().ok()?;
    }
    let nanos: u64 = format!("{part:0<9}").get(..9)?.parse().ok()?;
    Some(seconds * 1_000_000_000 + nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_read_from_the_daemons_lines() {
        let second = 1_000_000_000;
        let text = r#"
time="2026-11-23T00:00:13.500000000Z" level=error msg="failed to handle container TaskExit event &TaskExit{ContainerID:aa1,ID:aa1,Pid:7,ExitStatus:0,ExitedAt:2026-11-23 00:00:03 +0000 UTC,XXX_unrecognized:[],}" error="failed to stop container: \"x\": context deadline exceeded"
time="2026-11-23T00:00:14.5Z" level=info msg="TaskExit event &TaskExit{ContainerID:aa1,ID:aa1,Pid:7,}"
time="2026-11-23T00:00:15Z" level=info msg="TaskExit event &TaskExit{ContainerID:bb2,ID:bb2,Pid:8,}"
time="2026-11-23T00:00:24.5Z" level=error msg="Failed to handle backOff event &TaskExit{ContainerID:aa1,ID:aa1,Pid:7,} for aa1" error="failed"
time="2026-11-23T00:00:25Z" level=info msg="shim disconnected" id=aa1
time="2026-11-23T00:00:26Z" level=info msg="received exit event container_id:\"cc3\"  id:\"cc3\"  pid:9"
time="2026-11-23T00:00:27Z" level=error msg="failed to handle container TaskExit event container_id:\"cc3\"  id:\"cc3\"  pid:9" error="failed"
time="2026-11-23T00:00:28Z" level=info msg="TaskExit event container_id:\"cc3\"  id:\"cc3\"  pid:9"
"#;
        let found = attempts_until(text, 1000 * second, 60 * second);
        let short: Vec<_> = found
            .iter()
            .map(|one| {
                let seconds = |at: Option<u64>| at.map(|at| at / (second / 10));
                (one.container.as_str(), seconds(one.begin), seconds(one.failed))
            })
            .collect();
        assert_eq!(
            short,
            [
                ("aa1", None, Some(9535)),
                ("aa1", Some(9545), Some(9645)),
                ("bb2", Some(9550), None),
                ("cc3", None, Some(9670)),
                ("cc3", Some(9680), None),
            ]
        );
        assert_eq!(
            found[0].error.as_deref(),
            Some("failed to stop container: \"x\": context deadline exceeded")
        );
    }
}
