//! What a daemon and its shims tell of their own goroutines: both print all stacks into the daemon's log when they get
//! SIGUSR1. Go prints them, so the numbers, states and functions are the truth that a reader of memory is held against.

use super::goroutines::{self, Goroutine};
use crate::lab::containerd::Containerd;
use crate::lab::sys;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::time::Duration;

/// Between these the stacks stand in the log.
const BEGIN: &str = "=== BEGIN goroutine stack dump ===";
const END: &str = "=== END goroutine stack dump ===";

/// Has a daemon or one of its shims print its stacks, and reads them.
pub async fn of(daemon: &Containerd, pid: u32) -> Result<Vec<Goroutine>> {
    let before = fs::read_to_string(&daemon.log).unwrap_or_default().len();
    sys::signal(pid, libc::SIGUSR1);
    let mut text = None;
    let came = sys::until(Duration::from_secs(5), || {
        text = between(fs::read_to_string(&daemon.log).unwrap_or_default().get(before..).unwrap_or_default());
        text.is_some()
    });
    ensure!(came.await, "process {pid} prints no stacks; the log ends:\n{}", daemon.log_tail(3));
    if pid == daemon.pid {
        // The daemon also writes them to a file.
        let _ = fs::remove_file(std::env::temp_dir().join(format!("containerd.{pid}.stacks.log")));
    }
    goroutines::parse(&text.unwrap_or_default()).with_context(|| format!("the stacks of process {pid}"))
}

/// What stands between the marks. The log has it in one line, with escapes.
fn between(log: &str) -> Option<String> {
    let (_, rest) = log.split_once(BEGIN)?;
    let (text, _) = rest.split_once(END)?;
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(one) = characters.next() {
        out.push(match one {
            '\\' => match characters.next()? {
                'n' => '\n',
                't' => '\t',
                other => other,
            },
            one => one,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_in_one_line_of_the_log_is_read() {
        let log = format!(
            "a\ntime=\"x\" msg=\"{BEGIN}\\ngoroutine 7 [select]:\\nmain.f(\\\"a\\\")\\n\\t/a.go:1 +0x2\\n\\n{END}\" b"
        );
        let all = goroutines::parse(&between(&log).unwrap()).unwrap();
        assert_eq!((all[0].id, all[0].functions()), (7, vec!["main.f"]));
        assert!(between(&log[..60]).is_none());
    }
}
