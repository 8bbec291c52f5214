//! What an administrator does in the middle of a stall: the daemon is killed and started again. What it says of its
//! containers afterwards is asked of it. While it is away, the bundle of another container is removed: its shim runs on
//! and nobody knows it any more, as the daemons of the field leave them behind.

use super::said::{consequences, list, now};
use super::{Beyond, RATE, SECOND};
use crate::lab::kubelet_like::Call;
use crate::lab::states::States;
use crate::lab::stories::record::Record;
use crate::lab::sys::seconds;
use crate::lab::unmounts::Stay;
use crate::lab::verdict::{Seen, Verdict};
use anyhow::{Context as _, Result};
use serde_json::Value;

/// What happened, by the lab's own clocks (ns of CLOCK_MONOTONIC).
#[derive(Clone, Debug)]
pub struct Truth {
    victim: String,
    /// MB that it writes.
    writes: u64,
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

impl Truth {
    /// What the record has of it.
    pub fn of(record: &Record) -> Result<Truth> {
        let victim = record.pod("victim").context("there is no victim")?;
        let forgotten = record.pod("forgotten").context("no pod is forgotten")?;
        let [before, after] = record.containerd[..] else { anyhow::bail!("one restart makes two daemons") };
        Ok(Truth {
            victim: victim.container.clone(),
            writes: victim.writes,
            exited: victim.exited.context("the victim has not exited")?,
            unmounts: victim.unmounts.clone(),
            killed: record.mark("Kill")?.begin,
            pids: (before, after),
            up: record.mark("Start")?.end,
            forgotten: (forgotten.container.clone(), forgotten.shim, record.mark("Forget")?.end),
            shims: record.shims.clone(),
            leaked: record.leaked.clone(),
            states: record.states.clone(),
            calls: record.calls.clone(),
        })
    }
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

impl Beyond for Truth {
    fn truth(&self, verdict: &mut Verdict) {
        let takes = self.writes * (1 << 20) * SECOND / RATE;
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
