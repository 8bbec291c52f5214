//! Whether a process lives, asked for one at a time.

use super::procs::parse_stat;
use super::read_file;
use crate::event::Ns;

/// `/proc/PID/stat` has some 300 bytes.
const SMALL: usize = 4096;

/// When the process with this pid was started (ns of CLOCK_MONOTONIC, to 10 ms); `None` when there is none, or only
/// what is left of one.
pub fn alive_since(pid: u32) -> Option<Ns> {
    let text = read_file(&format!("/proc/{pid}/stat"), SMALL).ok()?;
    parse_stat(&text).filter(|stat| !stat.is_over()).map(|stat| stat.started())
}

/// Whether the first thread of the process with this pid lives: it has not exited, even if others have stayed.
pub fn leader_lives(pid: u32) -> bool {
    let text = read_file(&format!("/proc/{pid}/stat"), SMALL).ok();
    text.and_then(|text| parse_stat(&text)).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X' | 'x'))
}
