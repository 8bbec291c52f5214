//! B4: memory and CPU time of plegscope on an idle node, and the memory it puts into the programs it looks at.

use super::peer::{self, Bpftrace};
use super::table::Table;
use crate::lab::cleanup::Ledger;
use crate::lab::commands::look;
use crate::lab::containerd::Programs;
use crate::lab::tracer::Tracer;
use crate::lab::{Lab, sys};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// All windows together last this long.
const TIME: Duration = Duration::from_secs(60);
/// Until a start is digested.
const SETTLE: Duration = Duration::from_secs(3);

/// Runs the bench beside a containerd with three idle pods.
pub async fn measure(
    ledger: &Ledger,
    programs: Programs,
    scope: Option<&Path>,
    rounds: u64,
) -> Result<Table> {
    let lab = Lab::prepare(ledger, programs, 0, &mut |text: &str| println!("{text}")).await?;
    let mut targets = vec![lab.containerd.pid];
    for pod in &lab.pods {
        targets.push(lab.containerd.shim_of(&pod.container)?);
    }
    let window = TIME / u32::try_from(rounds).unwrap_or(1);
    let mut table = Table {
        title: "B4: cost when idle (containerd with three pods)".to_owned(),
        rows: Vec::new(),
        goals: Vec::new(),
        notes: vec![format!("{rounds} windows of {:.0} s", window.as_secs_f64())],
    };
    let Some(scope) = scope else {
        table.notes.push("without plegscope there are no sites to hand to bpftrace".to_owned());
        return Ok(table);
    };
    let before = memory(&targets)?;
    let mut tracer = Tracer::start(ledger, scope, &["live", "--plain"], |_, _| {})?;
    table.notes.push(format!("plegscope said: {}", tracer.ready().await?.text));
    let warden = look::warden(tracer.pid()).context("plegscope has no child")?;
    let own = watch(&[tracer.pid(), warden], rounds, window).await;
    let during = memory(&targets)?;
    let script = peer::functions_script(warden, &targets[..2])?;
    let links = look::links(warden);
    tracer.quit().await?;
    gone(warden, &links).await?;
    let after = memory(&targets)?;

    let args = ["watch", "--config", "none", "--state-file"];
    let state = lab.run.join("state").to_string_lossy().into_owned();
    let store = lab.run.join("incidents").to_string_lossy().into_owned();
    let args: Vec<&str> = args.into_iter().chain([state.as_str(), "--store", store.as_str()]).collect();
    let mut daemon = Tracer::start(ledger, scope, &args, |_, _| {})?;
    daemon.ready().await?;
    let pids = sys::pids_of_tree(daemon.pid());
    let daemons = watch(&pids, rounds, window).await;
    let into_targets = memory(&targets)?;
    daemon.quit().await?;

    let bpftrace = Bpftrace::start(ledger, &script, &lab.run).await?;
    let peer = watch(&[bpftrace.pid()], rounds, window / 3).await;
    let theirs = memory(&targets)?;
    bpftrace.quit().await?;
    lab.finish().await;

    let steady = table.row("plegscope: steady RSS, parent and warden", &own.rss, "kB");
    table.row("plegscope: the same, what they share once", &own.share, "kB");
    table.row("plegscope: peak RSS, parent and warden", &[own.peak], "kB");
    table.row("plegscope: CPU of the parent", &own.cpu[0], "% of a core");
    table.row("plegscope: CPU of the warden", &own.cpu[1], "% of a core");
    let total: Vec<f64> = own.cpu[0].iter().zip(&own.cpu[1]).map(|(a, b)| a + b).collect();
    let cpu = table.row("plegscope: CPU of both", &total, "% of a core");
    let of_watch = format!("watch, {} processes", pids.len());
    table.row(format!("{of_watch}: steady RSS"), &daemons.rss, "kB");
    let watch_share = table.row(format!("{of_watch}: the same, what they share once"), &daemons.share, "kB");
    table.row(format!("{of_watch}: peak RSS"), &[daemons.peak], "kB");
    let windows = usize::try_from(rounds).unwrap_or(0);
    let total: Vec<f64> = (0..windows).map(|at| daemons.cpu.iter().map(|cpu| cpu[at]).sum()).collect();
    let watch_cpu = table.row(format!("{of_watch}: CPU"), &total, "% of a core");
    table.row("bpftrace at the begins of the same functions: steady RSS", &peer.rss, "kB");
    table.row("bpftrace at the begins of the same functions: peak RSS", &[peer.peak], "kB");
    table.row("bpftrace at the begins of the same functions: CPU", &peer.cpu[0], "% of a core");
    let added = |with: &[f64]| -> Vec<f64> { with.iter().zip(&before).map(|(a, b)| a - b).collect() };
    table.row("memory put into containerd", &added(&during)[..1], "kB");
    let shims = table.row("memory put into each shim", &added(&during)[1..], "kB");
    table.row("memory that stays in each target afterwards", &added(&after), "kB");
    table.row("memory that bpftrace puts into each shim", &added(&theirs)[1..], "kB");
    table.goal("steady RSS", 24.0, steady.median / 1024.0, "MiB");
    table.goal("peak RSS", 48.0, own.peak / 1024.0, "MiB");
    table.goal("peak RSS, plegscope / bpftrace", 0.25, own.peak / peer.peak, "");
    table.goal("CPU", 0.2, cpu.median, "% of a core");
    table.goal("watch: steady memory, what they share once", 24.0, watch_share.median / 1024.0, "MiB");
    table.goal("watch: CPU", 0.2, watch_cpu.median, "% of a core");
    let put = added(&into_targets).into_iter().zip(added(&after)).map(|(with, left)| with - left);
    table.goal("watch: memory put into a target", 40.0, put.fold(0.0, f64::max), "kB");
    table.goal("memory put into a shim", 40.0, shims.high, "kB");
    Ok(table)
}

/// What some processes used.
struct Usage {
    /// Together, kB, at the end of each window.
    rss: Vec<f64>,
    /// The same, what they share counted once.
    share: Vec<f64>,
    /// Together, kB.
    peak: f64,
    /// By process and window, percent of a core.
    cpu: Vec<Vec<f64>>,
}

async fn watch(pids: &[u32], windows: u64, window: Duration) -> Usage {
    tokio::time::sleep(SETTLE).await;
    let mut usage =
        Usage { rss: Vec::new(), share: Vec::new(), peak: 0.0, cpu: vec![Vec::new(); pids.len()] };
    for _ in 0..windows {
        let before: Vec<u64> = pids.iter().map(|pid| look::cpu_time(*pid)).collect();
        let begin = sys::monotonic();
        tokio::time::sleep(window).await;
        let took = (sys::monotonic() - begin) as f64;
        for (at, pid) in pids.iter().enumerate() {
            usage.cpu[at].push((look::cpu_time(*pid) - before[at]) as f64 * 100.0 / took);
        }
        let sum = |field| pids.iter().map(|pid| look::kilobytes(*pid, field)).sum::<u64>() as f64;
        usage.rss.push(sum("VmRSS"));
        usage.share.push(pids.iter().map(|pid| look::share_of_memory(*pid)).sum::<u64>() as f64);
        usage.peak = sum("VmHWM");
    }
    usage
}

/// For each process the memory that its code has of its own, kB.
fn memory(pids: &[u32]) -> Result<Vec<f64>> {
    pids.iter().map(|pid| Ok(look::own_code(*pid)? as f64)).collect()
}

/// Waits until a warden and all it had attached are gone.
pub async fn gone(warden: u32, links: &BTreeSet<u32>) -> Result<()> {
    let over = || matches!(sys::state(warden), None | Some('Z')) && look::left(links) == 0;
    ensure!(sys::until(Duration::from_secs(30), over).await, "the warden {warden} does not detach");
    Ok(())
}
