//! What administrators and the kubelet do: restart and upgrade containerd, start and remove pods.

use super::look;
use crate::lab::cleanup::Ledger;
use crate::lab::story::Truth;
use crate::lab::tracer::{Line, Tracer};
use crate::lab::verdict::{self, Verdict};
use crate::lab::{Lab, pods, sys};
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A new process is taken up within this time.
const TAKEN_UP: u64 = 2_000_000_000;
/// Pods that come and go.
const PODS: usize = 20;

/// Restarts containerd with the same program, then with a copy of another name at another place.
pub async fn restarted(
    ledger: &Ledger,
    lab: &mut Lab<'_>,
    live: &Tracer,
    verdict: &mut Verdict,
) -> Result<()> {
    let warden = look::warden(live.pid()).context("plegscope has no child")?;
    let same =
        fs::read_link(format!("/proc/{}/exe", lab.containerd.pid)).context("the program of containerd")?;
    let other = lab.run.join("runtime-daemon-next");
    fs::copy(&same, &other).with_context(|| format!("copying to {}", other.display()))?;
    for (what, program, new) in [("restarted", &same, false), ("upgraded and renamed", &other, true)] {
        let links = look::links(warden).len();
        lab.containerd.restart(ledger, program).await?;
        let (pid, seen_by) = (lab.containerd.pid, Duration::from_secs(10));
        let words = format!("process {pid} is taken up as Containerd");
        let taken_up = || live.messages().into_iter().find(|line| line.text.contains(&words));
        sys::until(seen_by, || taken_up().is_some()).await;
        let took = taken_up().and_then(|line| Some(line.at.saturating_sub(begin(pid)?)));
        let more = look::links(warden).len().saturating_sub(links);
        let changed = look::changed_bytes(pid)?;
        verdict.check(
            &format!("containerd is {what}"),
            format!("taken up within 2 s, {}", if new { "probed" } else { "nothing new attached" }),
            format!(
                "after {}, {more} more links, {changed} bytes probed",
                took.map_or("-".to_owned(), sys::seconds)
            ),
            // Program files of other labs may be taken up at the same time; one that is there already is not.
            took.is_some_and(|took| took <= TAKEN_UP) && changed > 0 && (more > 0) == new,
        );
    }
    Ok(())
}

/// When a process was started, ns of CLOCK_MONOTONIC (to 10 ms).
fn begin(pid: u32) -> Option<u64> {
    let uptime: f64 = fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
    let age = uptime - sys::start_time(pid)? as f64 / 100.0;
    Some(sys::monotonic().saturating_sub((age.max(0.0) * 1e9) as u64))
}

/// Pods come and go, and plegscope does not grow. Gives them for [`guests`].
pub async fn churn(lab: &Lab<'_>, live: &Tracer, verdict: &mut Verdict) -> Result<Vec<pods::Pod>> {
    let warden = look::warden(live.pid()).context("plegscope has no child")?;
    let anonymous = || look::kilobytes(warden, "RssAnon");
    let cgroup = Path::new(&lab.ledger.name);
    let mut gone = Vec::new();
    let mut early = 0;
    for index in 0..PODS {
        if index == PODS / 4 {
            early = anonymous();
        }
        let pod =
            pods::start(&lab.client, &format!("guest-{index}"), &pods::script(0), cgroup, &lab.run).await?;
        pods::remove(&lab.client, &pod).await;
        gone.push(pod);
    }
    let late = anonymous();
    verdict.check(
        "memory of the warden",
        format!("{early} kB after {} pods", PODS / 4),
        format!("{late} kB after {PODS}"),
        late <= early + 1024,
    );
    Ok(gone)
}

/// What was said of pods that came and went, and what is left in the end. Frames come only when something changes, so
/// all of the run is looked at; the stalls that came later gave the last ones.
pub fn guests(lines: &[Line], gone: &[pods::Pod], verdict: &mut Verdict) {
    let frames = verdict::frames(lines);
    let Some(last) = frames.last() else {
        verdict.check("frames", "some", "none", false);
        return;
    };
    let ours = |value: &Value| {
        let text = value.to_string();
        gone.iter().any(|pod| text.contains(&pod.container) || text.contains(&pod.sandbox))
    };
    let list =
        |frame: &Value, field: &str| -> Vec<Value> { frame[field].as_array().cloned().unwrap_or_default() };
    let incidents = frames.iter().flat_map(|seen| list(&seen.frame, "incidents")).filter(ours).count();
    verdict.check(
        "pods that come and go",
        "no incident",
        format!("{incidents} in {} frames", frames.len()),
        incidents == 0,
    );
    let wrong: Vec<String> = frames
        .iter()
        .flat_map(|seen| list(&seen.frame, "in_flight").into_iter().chain(list(&seen.frame, "diagnoses")))
        .flat_map(|value| subjects(&value))
        .filter_map(|subject| {
            let pod = gone.iter().find(|pod| subject["id"] == pod.container.as_str())?;
            let said = subject["pod"].as_str()?;
            (said != pod.name).then(|| format!("{} is called {said}", pod.name))
        })
        .collect();
    verdict.check("names of the pods", "right or unknown", format!("{wrong:?}"), wrong.is_empty());
    let left = list(&last.frame, "in_flight").iter().filter(|one| ours(one)).count();
    verdict.check("left in flight of them", "nothing", left.to_string(), left == 0);
    let dead: Vec<Value> = list(&last.frame, "in_flight")
        .into_iter()
        .filter(|one| {
            let pid = one["operation"]["actor"]["pid"].as_u64().unwrap_or(0) as u32;
            matches!(sys::state(pid), None | Some('Z')) && one["age"].as_u64() > Some(TAKEN_UP)
        })
        .map(|one| one["operation"].clone())
        .collect();
    verdict.check("left by processes that are gone", "nothing", format!("{dead:?}"), dead.is_empty());
    let losses = list(&last.frame, "losses");
    verdict.check("losses", "none", format!("{losses:?}"), losses.is_empty());
    verdict.check("left out", "nothing", last.frame["dropped"].to_string(), nothing(&last.frame["dropped"]));
}

fn nothing(dropped: &Value) -> bool {
    dropped.as_array().is_none_or(|all| all.iter().all(|one| one["count"].as_u64().unwrap_or(0) == 0))
}

/// All subjects (a container with its names) inside a value.
fn subjects(value: &Value) -> Vec<Value> {
    match value {
        Value::Object(map) => {
            let own = map.contains_key("id") && map.contains_key("pod");
            own.then(|| value.clone()).into_iter().chain(map.values().flat_map(subjects)).collect()
        }
        Value::Array(all) => all.iter().flat_map(subjects).collect(),
        _ => Vec::new(),
    }
}

/// The incident that came after the restarts is explained as if nothing had been. What other nodes in a box on this
/// machine make of their own is left out.
pub fn explained(lines: &[Line], truth: &Truth, verdict: &mut Verdict) {
    let mut frames = verdict::frames(lines);
    frames.retain(|seen| seen.at >= truth.told_to_exit);
    for seen in &mut frames {
        if let Some(incidents) = seen.frame["incidents"].as_array_mut() {
            incidents.retain(|incident| incident["containers"].to_string().contains(&truth.container));
        }
    }
    verdict.0.extend(verdict::truth(truth).0);
    verdict.0.extend(verdict::incident(truth, &frames).0);
}
