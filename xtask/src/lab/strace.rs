//! The published reproduction: strace holds the shim's threads before every `umount2`, and measures it.
//!
//! `delay_enter` keeps the thread in a ptrace stop, so nothing is synced and kernel tracepoints see nothing of the
//! delay; it plays the lock chain alone. `UnmountAll` calls `umount2` until it fails, so each delay counts twice.

use super::cleanup::Ledger;
use super::sys;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// strace, attached to a process.
pub struct Strace {
    child: Child,
    output: PathBuf,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, ns.
    offset: i64,
}

/// One `umount2` as strace saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Traced {
    /// Thread.
    pub tid: u32,
    /// When the thread entered, before the delay; ns of CLOCK_MONOTONIC.
    pub begin: u64,
    /// How long it took with the delay, ns.
    pub took: u64,
    /// Which path.
    pub path: String,
    /// What it returned, with the name of the error.
    pub result: String,
}

impl Strace {
    /// Attaches to all threads of `pid` and delays each of their `umount2` calls by `delay`. To be called when the
    /// containers run: strace follows children, and the runtime's own unmounts at start would be delayed too.
    pub async fn attach(ledger: &Ledger, pid: u32, delay: Duration, folder: &Path) -> Result<Strace> {
        let output = folder.join("strace.out");
        let errors = folder.join("strace.err");
        let inject = format!("inject=umount2:delay_enter={}", delay.as_micros());
        let strace = sys::which("strace").context("strace is not installed: apt-get install strace")?;
        let mut child = Command::new(strace)
            .args(["-f", "-T", "-ttt", "-e", "trace=umount2", "-e", &inject, "-p", &pid.to_string(), "-o"])
            .arg(&output)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&errors).with_context(|| format!("creating {}", errors.display()))?)
            .process_group(0)
            .spawn()
            .context("starting strace")?;
        ledger.record_process(child.id(), Duration::from_secs(3))?;
        let said = || fs::read_to_string(&errors).unwrap_or_default();
        let mut ended = false;
        sys::until(Duration::from_secs(10), || {
            ended = !matches!(child.try_wait(), Ok(None));
            ended || said().contains("attached")
        })
        .await;
        if ended || !said().contains("attached") {
            bail!("strace could not attach to pid {pid}: {}", said().trim());
        }
        Ok(Strace { child, output, offset: sys::realtime() as i64 - sys::monotonic() as i64 })
    }

    /// Ends it the hard way: a thread that has been killed while strace held it dies only then.
    pub fn kill(mut self) {
        sys::signal(self.child.id(), libc::SIGKILL);
        sys::wait_until(Duration::from_secs(3), || !matches!(self.child.try_wait(), Ok(None)));
    }

    /// Detaches, so that nothing is delayed any more, and returns what strace has measured.
    pub fn finish(mut self) -> Vec<Traced> {
        // SIGTERM makes strace detach; the ledger sees to one that does not obey.
        sys::signal(self.child.id(), libc::SIGTERM);
        sys::wait_until(Duration::from_secs(3), || !matches!(self.child.try_wait(), Ok(None)));
        parse(&fs::read_to_string(&self.output).unwrap_or_default(), self.offset)
    }
}

/// Reads lines like `1234  1700000000.123456 umount2("/x", 0) = 0 (DELAYED) <10.000321>`. Calls that strace cut in two
/// (`<unfinished ...>`, `<... umount2 resumed>`) are joined by thread.
fn parse(text: &str, offset: i64) -> Vec<Traced> {
    let mut open: std::collections::HashMap<u32, (u64, String)> = Default::default();
    let mut calls = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(Ok(tid)), Some(Ok(at))) =
            (words.next().map(str::parse::<u32>), words.next().map(str::parse::<f64>))
        else {
            continue;
        };
        let begin = ((at * 1e9).round() as i64 - offset).max(0) as u64;
        let path = || line.split('"').nth(1).unwrap_or_default().to_owned();
        if line.contains("<unfinished ...>") && line.contains("umount2(") {
            open.insert(tid, (begin, path()));
            continue;
        }
        let Some(took) =
            line.rsplit_once('<').and_then(|(_, took)| took.trim_end_matches('>').parse::<f64>().ok())
        else {
            continue;
        };
        let (begin, path) = if line.contains("umount2 resumed>") {
            match open.remove(&tid) {
                Some(begun) => begun,
                None => continue,
            }
        } else if line.contains("umount2(") {
            (begin, path())
        } else {
            continue;
        };
        let result = line.rsplit_once(" = ").map_or("", |(_, rest)| rest);
        let result = result.split(" <").next().unwrap_or_default().replace(" (DELAYED)", "");
        calls.push(Traced {
            tid,
            begin,
            took: (took * 1e9).round() as u64,
            path,
            result: result.trim().to_owned(),
        });
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_and_cut_lines_are_read() {
        let text = "\
71  1000.500000 umount2(\"/run/a/rootfs\", 0) = 0 (DELAYED) <2.000250>
72  1001.000000 umount2(\"/run/b\", 0 <unfinished ...>
71  1002.600000 umount2(\"/run/a/rootfs\", 0) = -1 EINVAL (Invalid argument) (DELAYED) <2.000100>
72  1003.000000 <... umount2 resumed>)   = 0 (DELAYED) <2.000000>
73  1003.500000 +++ exited with 0 +++
";
        let calls = parse(text, 1_000_000_000_000);
        let short: Vec<_> =
            calls.iter().map(|call| (call.tid, call.path.as_str(), call.result.as_str())).collect();
        assert_eq!(
            short,
            [
                (71, "/run/a/rootfs", "0"),
                (71, "/run/a/rootfs", "-1 EINVAL (Invalid argument)"),
                (72, "/run/b", "0"),
            ]
        );
        assert_eq!(calls[0].begin, 500_000_000);
        assert_eq!(calls[0].took, 2_000_250_000);
        assert_eq!(calls[2].begin, 1_000_000_000);
    }
}
