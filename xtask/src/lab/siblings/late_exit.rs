//! A container is gone, and the runtime goes on saying that it runs: its handler of the exit gives up after ten seconds,
//! waits, tries again. Nobody updates containers, so no lock makes a list call wait: only the exits are late. One pod has
//! written the data and stays; another one exits and pays; a third exits beside it and waits as well.

use super::{Played, RATE, SECOND, Stage, exit_of, noted};
use crate::lab::containerd_log::{self, Attempt};
use crate::lab::states::{self, States};
use crate::lab::sys::{self, seconds};
use crate::lab::unmounts::{Stay, Watch};
use crate::lab::verdict::{Seen, Verdict};
use anyhow::{Result, ensure};
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// What the writer writes: the disk is busy for about 37 s, three attempts and the waits between them.
const MEGABYTES: u64 = 70;
/// How long containerd gives one attempt (`handleEventTimeout`).
const ATTEMPT: u64 = 10 * SECOND;

/// A container that exits.
#[derive(Clone, Debug, Serialize)]
pub struct Exit {
    pod: String,
    container: String,
    shim: u32,
    /// When its init process was gone, by `/proc`.
    exited: u64,
    /// When the runtime first said so.
    reported: u64,
    /// What the daemon logged of its attempts.
    attempts: Vec<Attempt>,
    /// Stays of its shim's threads in umount2.
    unmounts: Vec<Stay>,
}

/// What happened, by the lab's own clocks (ns of CLOCK_MONOTONIC).
#[derive(Clone, Debug, Serialize)]
pub struct Truth {
    writer: String,
    writer_container: String,
    /// Unwritten bytes of the writer's pod and of the payer's when the payer was told to exit, by their `memory.stat`.
    dirty: [u64; 2],
    payer: Exit,
    bystander: Exit,
    device: String,
    states: States,
}

/// Plays it.
pub async fn play(stage: &mut Stage<'_>) -> Result<Truth> {
    let writer = stage.pod("writer", MEGABYTES).await?;
    let payer = stage.pod("payer", 0).await?;
    let bystander = stage.pod("bystander", 0).await?;
    let states = states::Watch::start(&stage.lab.containerd.socket)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    stage.slow_down()?;
    for pod in [&payer, &bystander, &writer] {
        stage.write(pod).await?;
    }
    let dirty = [&writer, &payer].map(|pod| unwritten(Path::new(&stage.ledger.name), &pod.container));
    stage.say(&format!("pod writer has written {MEGABYTES} MB and runs on; pod payer exits"));
    let mut leaving = Vec::new();
    for pod in [payer, bystander] {
        let shim = stage.lab.containerd.shim_of(&pod.container)?;
        let exit = exit_of(stage.lab.containerd.init_of(&pod.container)?);
        let unmounts = Watch::start(shim);
        pod.tell("exit")?;
        let exited = noted(exit, Duration::from_secs(5)).await?;
        leaving.push((pod, shim, exited, unmounts));
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let reported = |container: &str| states.states().first(container, "EXITED");
    let limit = Duration::from_secs(150);
    let all = || leaving.iter().all(|(pod, ..)| reported(&pod.container).is_some());
    ensure!(
        sys::until(limit, all).await,
        "the exits are not reported within {limit:?}; containerd's log ends:\n{}",
        stage.lab.containerd.log_tail(8)
    );
    stage.say("both exits are reported");
    let attempts = containerd_log::attempts(&stage.log());
    let mut exits = leaving.into_iter().map(|(pod, shim, exited, unmounts)| Exit {
        shim,
        exited,
        reported: reported(&pod.container).unwrap_or(u64::MAX),
        attempts: attempts.iter().filter(|one| one.container == pod.container).cloned().collect(),
        unmounts: unmounts.stays(),
        pod: pod.name,
        container: pod.container,
    });
    let (Some(payer), Some(bystander)) = (exits.next(), exits.next()) else {
        anyhow::bail!("two pods exit in this story");
    };
    Ok(Truth {
        writer: writer.name,
        writer_container: writer.container,
        dirty,
        payer,
        bystander,
        device: stage.lab.disk.device.clone(),
        states: states.states(),
    })
}

/// Bytes dirty and under writeback in a container's group, by the kernel; 0 when there is no such file.
fn unwritten(below: &Path, container: &str) -> u64 {
    let folders = crate::lab::cleanup::cgroup_roots();
    let groups =
        folders.iter().flat_map(|root| fs::read_dir(root.join(below)).into_iter().flatten().flatten());
    let stat = groups.map(|pod| pod.path().join(container).join("memory.stat"));
    let Some(text) = stat.filter_map(|file| fs::read_to_string(file).ok()).next() else { return 0 };
    let value = |names: [&str; 2]| -> u64 {
        let line = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            names.contains(&name).then(|| value.parse().ok())?
        };
        text.lines().find_map(line).unwrap_or(0)
    };
    value(["dirty", "file_dirty"]) + value(["writeback", "file_writeback"])
}

impl Exit {
    /// Attempts that had failed by then.
    fn failed_by(&self, at: u64) -> usize {
        self.attempts.iter().filter(|one| one.failed.is_some_and(|failed| failed <= at)).count()
    }

    /// When its last unmount was over.
    fn unmounted(&self) -> Option<u64> {
        self.unmounts.iter().filter_map(|stay| stay.end).max()
    }

    fn late(&self) -> u64 {
        self.reported.saturating_sub(self.exited)
    }
}

impl Played for Truth {
    fn truth(&self, verdict: &mut Verdict) {
        let takes = MEGABYTES * (1 << 20) * SECOND / RATE;
        for exit in [&self.payer, &self.bystander] {
            let attempts: Vec<String> = exit
                .attempts
                .iter()
                .map(|one| {
                    let since = |at: Option<u64>| {
                        at.map_or("-".to_owned(), |at| seconds(at.saturating_sub(exit.exited)))
                    };
                    format!("{} to {}", since(one.begin), since(one.failed))
                })
                .collect();
            verdict.note(
                &format!("attempts for {}", exit.pod),
                attempts.join(", "),
                exit.attempts.first().and_then(|one| one.error.clone()).unwrap_or_default(),
            );
            verdict.check(
                &format!("exit of {} reported", exit.pod),
                format!("late, about {} after it", seconds(takes)),
                format!(
                    "{} after it, {} after its unmount",
                    seconds(exit.late()),
                    exit.unmounted().map_or("-".to_owned(), |end| seconds(exit.reported.saturating_sub(end)))
                ),
                exit.late() > 2 * ATTEMPT && exit.failed_by(u64::MAX) >= 2,
            );
        }
        verdict.check(
            "lists meanwhile",
            "none is slow",
            format!("longest {}", seconds(self.states.longest)),
            self.states.longest < 2 * SECOND,
        );
        verdict.check(
            "unwritten",
            format!("most of {MEGABYTES} MB by {}", self.writer),
            format!("{} and {} MB", self.dirty[0] >> 20, self.dirty[1] >> 20),
            self.dirty[0] > (MEGABYTES << 20) / 2 && self.dirty[1] < 1 << 20,
        );
    }

    fn said(&self, frames: &[Seen], verdict: &mut Verdict) {
        let _ = (frames, verdict);
    }
}
