//! What an administrator does in the middle of a stall: the daemon is killed and started again. What it says of its
//! containers afterwards is asked of it. While it is away, the bundle of another container is removed: its shim runs on
//! and nobody knows it any more, as the daemons of the field leave them behind.

use super::said::{consequences, list, now};
use super::{Played, RATE, SECOND, Stage, UPDATE_EVERY, exit_of, noted};
use crate::lab::Lab;
use crate::lab::cleanup::{Ledger, Leftover};
use crate::lab::kubelet_like::{Call, KubeletLike};
use crate::lab::states::{self, States};
use crate::lab::sys::{self, seconds};
use crate::lab::unmounts::{Stay, Watch};
use crate::lab::verdict::{Seen, Verdict};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use std::fs;
use std::time::Duration;

/// What the victim writes.
const MEGABYTES: u64 = 50;
/// How long the stall lasts before the daemon is killed.
const BEFORE: Duration = Duration::from_secs(6);

/// What happened, by the lab's own clocks (ns of CLOCK_MONOTONIC).
#[derive(Clone, Debug, Serialize)]
pub struct Truth {
    victim: String,
    victim_pod: String,
    victim_shim: u32,
    exited: u64,
    unmounts: Vec<Stay>,
    /// When the daemon was killed and its process before and after.
    killed: u64,
    pids: (u32, u32),
    /// When it answered again.
    up: u64,
    /// The container whose bundle was removed, its shim, and when.
    forgotten: (String, u32, u64),
    /// All shims of this lab at the end of the story.
    shims: Vec<u32>,
    /// Those that have no bundle then, with their container.
    leaked: Vec<(u32, String)>,
    states: States,
    calls: Vec<Call>,
}

/// Plays it.
pub async fn play(stage: &mut Stage<'_>) -> Result<Truth> {
    let victim = stage.pod("victim", MEGABYTES).await?;
    let forgotten = stage.pod("forgotten", 0).await?;
    stage.pod("neighbour", 0).await?;
    let socket = stage.lab.containerd.socket.clone();
    let states = states::Watch::start(&socket)?;
    let log = stage.lab.run.join("client.jsonl");
    let like = KubeletLike::start(&socket, &log, UPDATE_EVERY)?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stage.slow_down()?;
    stage.write(&victim).await?;
    let shim = stage.lab.containerd.shim_of(&victim.container)?;
    let unmounts = Watch::start(shim);
    let exit = exit_of(stage.lab.containerd.init_of(&victim.container)?);
    victim.tell("exit")?;
    let exited = noted(exit, Duration::from_secs(5)).await?;
    stage.say("pod victim has exited");
    let hangs = || {
        like.log.calls().into_iter().any(|call| {
            call.method == "ListContainers" && call.end.is_none() && call.age(sys::monotonic()) > SECOND
        })
    };
    ensure!(sys::until(Duration::from_secs(15), hangs).await, "no ListContainers hangs");
    tokio::time::sleep(BEFORE).await;

    let old = stage.lab.containerd.pid;
    let killed = sys::monotonic();
    stage.lab.containerd.end(libc::SIGKILL).await?;
    let leaked_shim = stage.lab.containerd.shim_of(&forgotten.container)?;
    forget(&stage.lab, stage.ledger, &forgotten.sandbox, &forgotten.container)?;
    let forgotten_at = sys::monotonic();
    stage.say(&format!("containerd is killed, and the bundle of pod {} is removed", forgotten.name));
    stage.lab.containerd.start_again(stage.ledger).await?;
    let up = sys::monotonic();
    stage.say(&format!("containerd answers again after {}", seconds(up - killed)));

    let over = || unmounts.stays().iter().all(|stay| stay.end.is_some());
    ensure!(sys::until(Duration::from_secs(90), over).await, "the unmount does not end");
    stage.say("the unmount is over");
    // A shim counts as left over after half a minute, looked for every ten seconds.
    let told = || sys::monotonic().saturating_sub(forgotten_at) > 44 * SECOND;
    sys::until(Duration::from_secs(60), told).await;
    Ok(Truth {
        victim: victim.container.clone(),
        victim_pod: victim.name.clone(),
        victim_shim: shim,
        exited,
        unmounts: unmounts.stays(),
        killed,
        pids: (old, stage.lab.containerd.pid),
        up,
        forgotten: (forgotten.container.clone(), leaked_shim, forgotten_at),
        shims: shims(stage).into_iter().map(|(pid, _)| pid).collect(),
        leaked: shims(stage)
            .into_iter()
            .filter(|(_, id)| !stage.lab.containerd.bundle(id).exists())
            .collect(),
        states: states.states(),
        calls: like.log.calls(),
    })
}

/// Removes the bundles of a pod, which its shim was started with. The shim's socket is remembered for the clean-up.
pub fn forget(lab: &Lab<'_>, ledger: &Ledger, sandbox: &str, container: &str) -> Result<()> {
    let remembered = lab.run.join("forgotten");
    ledger.record(Leftover::ShimSockets { state: remembered.clone() })?;
    for id in [container, sandbox] {
        let bundle = lab.containerd.bundle(id);
        let copy = remembered.join("io.containerd.runtime.v2.task/k8s.io").join(id);
        fs::create_dir_all(&copy).with_context(|| format!("creating {}", copy.display()))?;
        for name in ["address", "bootstrap.json"] {
            let _ = fs::copy(bundle.join(name), copy.join(name)); // one of them is there, by version
        }
        sys::run("umount", &["-l", &bundle.join("rootfs").to_string_lossy()])?;
        fs::remove_dir_all(&bundle).with_context(|| format!("removing {}", bundle.display()))?;
    }
    Ok(())
}

/// The shims of this lab, each with the container or sandbox it was started for.
fn shims(stage: &Stage<'_>) -> Vec<(u32, String)> {
    let argument = |pid: u32, name: &str| -> Option<String> {
        let cmdline = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let mut arguments = cmdline.split('\0');
        arguments.find(|one| *one == name)?;
        arguments.next().map(str::to_owned)
    };
    sys::pids_with_argument(&stage.lab.containerd.socket)
        .into_iter()
        .filter_map(|pid| Some((pid, argument(pid, "-id")?)))
        .collect()
}

impl Truth {
    fn leaked(&self) -> Vec<(u64, &str)> {
        self.leaked.iter().map(|(pid, id)| (u64::from(*pid), id.as_str())).collect()
    }
}

fn pairs(shims: &[(u64, &str)]) -> String {
    let short: Vec<String> = shims.iter().map(|(pid, id)| format!("{pid} of {}", &id[..12])).collect();
    short.join(", ")
}

impl Played for Truth {
    fn truth(&self, verdict: &mut Verdict) {
        let takes = MEGABYTES * (1 << 20) * SECOND / RATE;
        let (begin, end) = (
            self.unmounts.iter().map(|stay| stay.begin).min().unwrap_or(0),
            self.unmounts.iter().filter_map(|stay| stay.end).max().unwrap_or(0),
        );
        verdict.check(
            "unmount",
            format!("about {}, the restart in the middle of it", seconds(takes)),
            format!("{}, restart {} after its begin", seconds(end - begin), seconds(self.killed - begin)),
            begin < self.killed && self.up < end,
        );
        let changes: Vec<String> = self
            .states
            .changes
            .iter()
            .filter(|one| one.container == self.victim)
            .map(|one| {
                format!("{} {} after the exit", one.state, seconds(one.at.saturating_sub(self.exited)))
            })
            .collect();
        verdict.note("the runtime says of the victim", changes.join(", "), "");
        let failed: Vec<&str> = self
            .calls
            .iter()
            .filter(|call| call.container.as_ref() == Some(&self.victim))
            .filter_map(|call| call.error.as_deref())
            .collect();
        verdict.note("failed updates of the victim", failed.join(", "), "");
        verdict.check(
            "shims without a bundle",
            format!("{} of {}", self.forgotten.1, &self.forgotten.0[..12]),
            pairs(&self.leaked()),
            self.leaked.iter().any(|(pid, _)| *pid == self.forgotten.1),
        );
    }

    fn said(&self, frames: &[Seen], verdict: &mut Verdict) {
        let told = |what: &'static str| -> Vec<&Value> {
            frames.iter().flat_map(|seen| consequences(&seen.frame, what)).collect()
        };
        let restarted = told("Restarted");
        verdict.check(
            "restarted",
            format!("containerd is {} now", self.pids.1),
            restarted.last().map_or("-".to_owned(), |one| one.to_string()),
            !restarted.is_empty() && restarted.iter().all(|one| one["pid"] == self.pids.1),
        );
        // What the runtime itself calls Unknown must be called so, and nothing else.
        let unknown: Vec<&str> = self
            .states
            .changes
            .iter()
            .filter(|one| one.state == "UNKNOWN")
            .map(|one| one.container.as_str())
            .collect();
        let mut said: Vec<&str> = told("Unknown").iter().filter_map(|one| one["of"]["id"].as_str()).collect();
        said.sort_unstable();
        said.dedup();
        let short = |ids: &[&str]| ids.iter().map(|id| &id[..12]).collect::<Vec<_>>().join(", ");
        verdict.check(
            "Unknown",
            short(&unknown),
            short(&said),
            said.len() == unknown.len() && said.iter().all(|id| unknown.contains(id)),
        );
        let last = frames.last().map_or(&Value::Null, |seen| &seen.frame);
        let leaked: Vec<(u64, &str)> = list(last, "leaked_shims")
            .filter_map(|one| Some((one[0].as_u64()?, one[1]["id"].as_str()?)))
            .collect();
        // Other shims of the machine may be left over as well; this lab's must be told apart.
        let own = |pid: u64| self.shims.iter().any(|own| u64::from(*own) == pid);
        let mut ours: Vec<(u64, &str)> = leaked.into_iter().filter(|(pid, _)| own(*pid)).collect();
        let mut right: Vec<(u64, &str)> = self.leaked();
        ours.sort_unstable();
        right.sort_unstable();
        verdict.check("shims left over", pairs(&right), pairs(&ours), ours == right);
        let early = frames
            .iter()
            .filter(|seen| now(seen) < self.forgotten.2)
            .any(|seen| list(&seen.frame, "leaked_shims").next().is_some());
        verdict.check("before that", "none", if early { "some" } else { "none" }, !early);
    }
}
