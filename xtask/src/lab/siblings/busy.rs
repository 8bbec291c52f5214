//! An unmount that fails because somebody is in there: a process that works in the container's root file system, one
//! that has a file of it open, a mount below it. The runtime tries fifty times in 2.5 s, gives up, tries the exit again.

use super::said::{between, list, now};
use super::{Played, SECOND, Stage, exit_of, noted};
use crate::lab::containerd_log::{self, Attempt};
use crate::lab::states::{self, States};
use crate::lab::sys::{self, seconds};
use crate::lab::verdict::{Seen, Verdict};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long the mounts are kept busy after the exits.
const KEPT: Duration = Duration::from_secs(14);

/// How often the runtime calls umount2 in one attempt.
const CALLS: u64 = 50;

/// How a root file system is kept busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum How {
    WorksIn,
    HasOpen,
    MountBelow,
}

/// A container whose root file system is kept busy.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    how: How,
    pod: String,
    container: String,
    shim: u32,
    rootfs: PathBuf,
    /// The lab's process that is in there; `None` for a mount.
    by: Option<u32>,
    exited: u64,
    reported: u64,
    attempts: Vec<Attempt>,
}

/// What happened, by the lab's own clocks (ns of CLOCK_MONOTONIC).
#[derive(Clone, Debug, Serialize)]
pub struct Truth {
    kept: Vec<Kept>,
    released: u64,
    states: States,
}

/// Plays it.
pub async fn play(stage: &mut Stage<'_>) -> Result<Truth> {
    let mut pods = Vec::new();
    for (name, how) in
        [("works-in", How::WorksIn), ("has-open", How::HasOpen), ("mount-below", How::MountBelow)]
    {
        pods.push((stage.pod(name, 0).await?, how));
    }
    let states = states::Watch::start(&stage.lab.containerd.socket)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut kept = Vec::new();
    let mut exits = Vec::new();
    for (pod, how) in &pods {
        let rootfs = stage.lab.containerd.bundle(&pod.container).join("rootfs");
        let by = keep_busy(stage, &rootfs, *how)?;
        exits.push(exit_of(stage.lab.containerd.init_of(&pod.container)?));
        kept.push(Kept {
            how: *how,
            pod: pod.name.clone(),
            container: pod.container.clone(),
            shim: stage.lab.containerd.shim_of(&pod.container)?,
            rootfs,
            by,
            exited: 0,
            reported: 0,
            attempts: Vec::new(),
        });
    }
    for (pod, _) in &pods {
        stage.write(pod).await?;
        pod.tell("exit")?;
    }
    for (one, exit) in kept.iter_mut().zip(exits) {
        one.exited = noted(exit, Duration::from_secs(5)).await?;
    }
    stage.say("three pods exit; somebody is in the root file system of each");
    tokio::time::sleep(KEPT).await;
    let released = sys::monotonic();
    for one in &kept {
        match one.by {
            Some(pid) => sys::signal(pid, libc::SIGKILL),
            None => drop(sys::run("umount", &[&one.rootfs.join("lab").to_string_lossy()])?),
        }
    }
    stage.say("they have left");
    let reported = |container: &str| states.states().first(container, "EXITED");
    let limit = Duration::from_secs(60);
    ensure!(
        sys::until(limit, || kept.iter().all(|one| reported(&one.container).is_some())).await,
        "the exits are not reported within {limit:?}; containerd's log ends:\n{}",
        stage.lab.containerd.log_tail(8)
    );
    let attempts = containerd_log::attempts(&stage.log());
    for one in &mut kept {
        one.reported = reported(&one.container).unwrap_or(u64::MAX);
        one.attempts = attempts.iter().filter(|other| other.container == one.container).cloned().collect();
    }
    Ok(Truth { kept, released, states: states.states() })
}

fn keep_busy(stage: &Stage<'_>, rootfs: &Path, how: How) -> Result<Option<u32>> {
    if how == How::MountBelow {
        let below = rootfs.join("lab");
        fs::create_dir_all(&below).with_context(|| format!("creating {}", below.display()))?;
        sys::run("mount", &["-t", "tmpfs", "plegscope-lab-below", &below.to_string_lossy()])?;
        return Ok(None);
    }
    let mut command = Command::new("sleep");
    command.arg("3600").stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    match how {
        How::WorksIn => drop(command.current_dir(rootfs)),
        _ => {
            let file = rootfs.join("bin/busybox");
            command.stdin(File::open(&file).with_context(|| format!("opening {}", file.display()))?);
        }
    }
    let pid = command.spawn().context("starting sleep")?.id();
    stage.ledger.record_process(pid, Duration::from_secs(1))?;
    Ok(Some(pid))
}

impl Played for Truth {
    fn truth(&self, verdict: &mut Verdict) {
        for one in &self.kept {
            let failed: Vec<String> = one
                .attempts
                .iter()
                .filter_map(|attempt| Some(seconds(attempt.failed?.saturating_sub(one.exited))))
                .collect();
            let busy = one
                .attempts
                .iter()
                .filter(|attempt| attempt.error.as_ref().is_some_and(|error| error.contains("busy")))
                .count();
            verdict.note(
                &format!("{}: attempts failed", one.pod),
                failed.join(", "),
                one.attempts.first().and_then(|attempt| attempt.error.clone()).unwrap_or_default(),
            );
            verdict.check(
                &format!("exit of {} reported", one.pod),
                "only when nobody is in there any more",
                format!(
                    "{} after it, {} after that; {busy} attempts failed with EBUSY",
                    seconds(one.reported.saturating_sub(one.exited)),
                    seconds(one.reported.saturating_sub(self.released))
                ),
                one.reported > self.released && busy >= 2 && one.reported - self.released < 30 * SECOND,
            );
        }
    }

    fn said(&self, frames: &[Seen], verdict: &mut Verdict) {
        for one in &self.kept {
            one.said(self.released, frames, verdict);
        }
        let after = self.kept.iter().map(|one| one.reported).max().unwrap_or(0) + SECOND;
        let left = between(frames, after, u64::MAX)
            .filter(|(_, diagnosis)| self.kept.iter().any(|one| one.is_of(diagnosis)))
            .count();
        verdict.check("when all are reported", "nothing is stuck", format!("{left} diagnoses"), left == 0);
    }
}

impl Kept {
    fn is_of(&self, diagnosis: &Value) -> bool {
        list(diagnosis, "stuck_calls").any(|call| call["subject"]["id"] == self.container.as_str())
    }

    /// Whether the chain ends at this container; others may wait their turn behind its exit.
    fn ends_here(&self, diagnosis: &Value) -> bool {
        let last = diagnosis["chain"]["links"].as_array().and_then(|links| links.last());
        last.is_some_and(|link| link["subject"]["id"] == self.container.as_str())
    }

    fn said(&self, released: u64, frames: &[Seen], verdict: &mut Verdict) {
        let busy: Vec<(&Seen, &Value)> = between(frames, self.exited, released)
            .filter(|(_, diagnosis)| self.is_of(diagnosis) && self.ends_here(diagnosis))
            .map(|(seen, diagnosis)| (seen, &diagnosis["ends_in"]["MountBusy"]))
            .filter(|(_, busy)| !busy.is_null())
            .collect();
        let first = busy.first().map(|(seen, _)| now(seen).saturating_sub(self.exited));
        verdict.check(
            &format!("{}: the mount is busy", self.pod),
            "said within 2 s of the exit",
            first.map_or("never".to_owned(), |after| format!("{} after it", seconds(after))),
            first.is_some_and(|after| after <= 2 * SECOND),
        );
        // Fifty calls make an attempt; those in flight are not in the log yet.
        let most = |at: u64| {
            let begun = self.attempts.iter().filter(|one| one.begin.unwrap_or(0) <= at).count() as u64;
            begun * CALLS
        };
        let wrong = busy.iter().find(|(seen, busy)| {
            let failures = busy["failures"].as_u64().unwrap_or(0);
            failures < 1 || failures > most(now(seen))
        });
        verdict.check(
            "failures in a row",
            format!("at most {CALLS} for each of {} attempts", self.attempts.len()),
            match wrong {
                Some((seen, busy)) => {
                    format!("{} at {}", busy["failures"], seconds(now(seen).saturating_sub(self.exited)))
                }
                None => {
                    format!("up to {:?}", busy.iter().filter_map(|(_, one)| one["failures"].as_u64()).max())
                }
            },
            wrong.is_none() && !busy.is_empty(),
        );
        // Who it is is read from /proc after the first failures; each new attempt begins without knowing.
        let named = busy.iter().rev().find(|(_, busy)| list(busy, "pins").next().is_some());
        let pins: Vec<&Value> = named.map(|(_, busy)| list(busy, "pins").collect()).unwrap_or_default();
        let how = |pin: &Value| pin["how"].as_str().unwrap_or_default().to_owned();
        let right = pins.iter().any(|pin| match (self.how, self.by) {
            (How::WorksIn, Some(pid)) => pin["pid"] == pid && how(pin).contains("works in"),
            (How::HasOpen, Some(pid)) => pin["pid"] == pid && how(pin).contains("open"),
            _ => how(pin).contains("mount below"),
        });
        verdict.check(
            "by whom",
            format!("{:?}, process {:?}", self.how, self.by),
            pins.iter()
                .map(|pin| format!("{} {} {}", pin["pid"], pin["comm"], how(pin)))
                .collect::<Vec<_>>()
                .join(", "),
            right,
        );
    }
}
