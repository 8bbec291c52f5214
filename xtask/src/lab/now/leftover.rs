//! Shims that outlive their bundles or their tasks: `now` lists them with their age and memory.

use super::{run, store};
use crate::lab::cleanup::Ledger;
use crate::lab::commands::look;
use crate::lab::containerd::Programs;
use crate::lab::stories::checks::said::list;
use crate::lab::stories::watch::forget;
use crate::lab::sys::{self, seconds};
use crate::lab::verdict::{self, Verdict};
use crate::lab::{Lab, cri};
use anyhow::{Context as _, Result};
use std::path::Path;
use std::time::Duration;

/// How old a shim without a bundle must be to count as left over, with some time to spare; a younger one may be starting.
const OLD: u64 = 40_000_000_000;

/// Plays the part.
pub async fn play(
    ledger: &Ledger,
    programs: Programs,
    binary: &Path,
    keep: Option<&Path>,
    say: &mut impl FnMut(&str),
) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut lab = Lab::prepare(ledger, programs, 0, say).await?;
    let before = run(ledger, binary, &["now", "--json"]).await?.report();
    let shims: Vec<u32> = lab
        .pods
        .iter()
        .map(|pod| lab.containerd.shim_of(&pod.container))
        .collect::<Result<_>>()
        .context("the shims of the pods")?;
    let own = |report: &serde_json::Value| -> Vec<serde_json::Value> {
        let all = list(&report["summary"], "leaked");
        all.filter(|one| shims.iter().any(|pid| one["pid"] == *pid)).cloned().collect()
    };
    let leaked = own(&before);
    verdict.check("left over: before", "none", format!("{leaked:?}"), leaked.is_empty());

    let forgotten = lab.pods.remove(1);
    let (shim, idle) = (shims[1], shims[0]);
    let without_task = lab.pods[0].clone();
    let processes: Vec<u32> =
        without_task.ids().iter().map(|id| lab.containerd.init_of(id)).collect::<Result<_>>()?;
    lab.containerd.end(libc::SIGKILL).await?;
    // Nobody is there to tell its shim to end.
    processes.iter().for_each(|pid| sys::signal(*pid, libc::SIGKILL));
    let old = Duration::from_nanos(OLD.saturating_sub(age(idle)?));
    say(&format!(
        "containerd is gone, and all processes of pod {}; its shim {idle} runs on",
        without_task.name
    ));
    tokio::time::sleep(old).await;
    let ran = run(ledger, binary, &["now", "--json"]).await?;
    store(keep, "without-task.json", &ran.out)?;
    let (true_age, memory) = (age(idle)?, look::kilobytes(idle, "VmRSS") * 1024);
    let without: Vec<_> = own(&ran.report());
    verdict.check(
        "without a task: shims",
        format!("{idle} of {}", without_task.sandbox),
        format!("{without:?}"),
        without.len() == 1
            && without[0]["pid"] == idle
            && without[0]["lacks"] == "Task"
            && without[0]["id"] == without_task.sandbox.as_str(),
    );
    let one = without.first().cloned().unwrap_or_default();
    verdict.duration("without a task: age", Some(true_age), one["age"].as_u64());
    let said = one["resident"].as_u64().unwrap_or(0);
    verdict.check(
        "without a task: memory",
        format!("{} kB", memory / 1024),
        format!("{} kB", said / 1024),
        verdict::close(memory, said),
    );
    forget(&lab, ledger, &forgotten.sandbox, &forgotten.container)?;
    lab.containerd.start_again(ledger).await?;
    lab.client = cri::Client::connect(&lab.containerd.socket, cri::SHORT).await?;
    say(&format!("the bundle of pod {} is gone, its shim {shim} runs on", forgotten.name));
    let left = OLD.saturating_sub(age(shim)?);
    tokio::time::sleep(Duration::from_nanos(left)).await;

    let ran = run(ledger, binary, &["now", "--json"]).await?;
    let (true_age, memory) = (age(shim)?, look::kilobytes(shim, "VmRSS") * 1024);
    store(keep, "leftover.json", &ran.out)?;
    // containerd has found out meanwhile about the other.
    let mut leaked = own(&ran.report());
    leaked.retain(|one| one["lacks"] == "Bundle");
    let one = leaked.first().cloned().unwrap_or_default();
    let told: Vec<String> =
        leaked.iter().map(|one| format!("{} of {}", one["pid"], one["id"].as_str().unwrap_or("-"))).collect();
    verdict.check(
        "left over: shims",
        // One shim serves all of a pod, and was started for its sandbox.
        format!("{shim} of {}", forgotten.sandbox),
        told.join(", "),
        leaked.len() == 1 && one["pid"] == shim && one["id"] == forgotten.sandbox.as_str(),
    );
    verdict.duration("left over: age", Some(true_age), one["age"].as_u64());
    let said = one["resident"].as_u64().unwrap_or(0);
    verdict.check(
        "left over: memory",
        format!("{} kB", memory / 1024),
        format!("{} kB", said / 1024),
        verdict::close(memory, said),
    );
    verdict.check("left over: exit code", "0", ran.ended(), ran.code == Some(0));
    let ran = run(ledger, binary, &["now"]).await?;
    store(keep, "leftover.txt", &ran.out)?;
    let line = ran.out.lines().find(|line| line.starts_with("left over: shim")).unwrap_or_default();
    verdict.check(
        "left over: in the text",
        format!("shim {shim}, {}, and that nothing is stuck", seconds(true_age)),
        line,
        line.contains(&format!("shim {shim} ")) && ran.out.starts_with("nothing is stuck"),
    );
    sys::signal(shim, libc::SIGKILL);
    lab.finish().await;
    Ok(verdict)
}

/// How long a process has run, ns.
fn age(pid: u32) -> Result<u64> {
    // SAFETY: sysconf has no preconditions.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as u64;
    let started = sys::start_time(pid).with_context(|| format!("process {pid} is gone"))?;
    Ok(sys::since_boot().saturating_sub(started * 1_000_000_000 / ticks))
}
