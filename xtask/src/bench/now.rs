//! How long `now` takes on a node with many pods: one containerd, one kubelet, and shims by the hundred.

use super::forks::Shims;
use super::table::Table;
use crate::kubelet;
use crate::lab::cleanup::Ledger;
use crate::lab::commands::look;
use crate::lab::containerd::Programs;
use crate::lab::story::{Block, Script};
use crate::lab::{Lab, sys};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;

/// Until the shims are at rest.
const SETTLE: Duration = Duration::from_secs(5);
/// It may take longer than the goal; then it shall say by how much, and not leave out the rest.
const WITHIN: &str = "20s";

/// Runs the bench.
pub async fn measure(
    ledger: &Ledger,
    programs: Programs,
    scope: Option<&Path>,
    rounds: u64,
    count: usize,
) -> Result<Table> {
    let mut say = |text: &str| println!("{text}");
    let script = Script {
        block: Block::None,
        stall: Duration::ZERO,
        rate: 0,
        update_every: Duration::from_secs(10),
        calm: Duration::ZERO,
    };
    let shim = programs.shim()?;
    let kubelet = kubelet::built()?;
    let lab = match &kubelet {
        Some(kubelet) => Lab::prepare_with_kubelet(ledger, programs, kubelet, &script, &mut say).await?,
        None => Lab::prepare(ledger, programs, 0, &mut say).await?,
    };
    let mut table = Table {
        title: format!("now: what is blocked among containerd, a kubelet and {count} shims"),
        rows: Vec::new(),
        goals: Vec::new(),
        notes: Vec::new(),
    };
    if kubelet.is_none() {
        table.notes.push(format!("without a kubelet: {}", kubelet::NOT_BUILT));
    }
    let shims = Shims::start(ledger, &shim, &lab.run.join("shims"), count, None)?;
    tokio::time::sleep(SETTLE).await;
    let Some(scope) = scope else {
        table.notes.push("without plegscope there is nothing to measure".to_owned());
        return Ok(table);
    };
    let mut first = None;
    let mut seen: Vec<Seen> = Vec::new();
    for _ in 0..=rounds {
        let one = once(ledger, scope).await?;
        println!("{:.0} ms", one.took);
        // The first finds nothing kept of these programs, unless an earlier run has.
        match &first {
            None => first = Some(one),
            Some(_) => seen.push(one),
        }
    }
    let first = first.context("no first run")?;
    let of = |value: fn(&Seen) -> f64| -> Vec<f64> { seen.iter().map(value).collect() };
    table.row("the first run", &[first.took], "ms");
    let took = table.row("the next runs", &of(|one| one.took), "ms");
    table.row("of that, the look by its own clock", &of(|one| one.own), "ms");
    table.row("CPU time of both processes", &of(|one| one.cpu), "ms");
    table.row("peak RSS of the parent", &of(|one| one.peak[0]), "kB");
    table.row("peak RSS of the warden", &of(|one| one.peak[1]), "kB");
    let both: Vec<f64> = seen.iter().map(|one| one.peak.iter().sum::<f64>() / 1024.0).collect();
    let both = table.row("peak RSS of both", &both, "MiB");
    table.row("processes looked at", &of(|one| one.looked), "");
    table.goal("time, median", 500.0, took.median, "ms");
    table.goal("time, longest", 500.0, took.high, "ms");
    table.goal("peak RSS", 48.0, both.high, "MiB");
    let left = seen.last().map_or(String::new(), |one| one.left.clone());
    table.notes.push(format!("left out: {}", if left.is_empty() { "nothing" } else { &left }));
    drop(shims);
    lab.finish().await;
    Ok(table)
}

/// One run.
struct Seen {
    /// From its start until it was gone, ms.
    took: f64,
    /// What it says of that itself, ms.
    own: f64,
    /// CPU time of both processes together as last seen, ms.
    cpu: f64,
    /// Of the parent and of the warden, kB.
    peak: [f64; 2],
    /// Processes whose goroutines were seen.
    looked: f64,
    left: String,
}

async fn once(ledger: &Ledger, scope: &Path) -> Result<Seen> {
    let begin = sys::monotonic();
    let mut child = tokio::process::Command::new(scope)
        .args(["now", "--json", "--within", WITHIN])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", scope.display()))?;
    let pid = child.id().context("plegscope ended at once")?;
    ledger.record_process(pid, Duration::from_secs(1))?;
    // The kernel keeps the peak; it has to be read before the process is gone.
    let watching = std::thread::spawn(move || {
        let (mut peak, mut cpu, mut warden) = ([0.0f64; 2], 0.0f64, None);
        while sys::state(pid).is_some_and(|state| state != 'Z') {
            warden = warden.or_else(|| look::warden(pid));
            let pids = [Some(pid), warden];
            for (peak, pid) in peak.iter_mut().zip(pids) {
                *peak = peak.max(pid.map_or(0.0, |pid| look::kilobytes(pid, "VmHWM") as f64));
            }
            let used: u64 = pids.into_iter().flatten().map(look::cpu_time).sum();
            cpu = cpu.max(used as f64 / 1e6);
            std::thread::sleep(Duration::from_millis(3));
        }
        (peak, cpu)
    });
    let mut out = String::new();
    let mut pipe = child.stdout.take().context("standard output")?;
    pipe.read_to_string(&mut out).await.context("reading what plegscope says")?;
    let status = child.wait().await.context("waiting for plegscope")?;
    let took = (sys::monotonic() - begin) as f64 / 1e6;
    let (peak, cpu) = watching.join().map_err(|_| anyhow::anyhow!("the thread that watched it died"))?;
    let report: Value = serde_json::from_str(&out).context("reading what plegscope says")?;
    ensure!(status.code().is_some(), "plegscope died: {status}");
    let summary = &report["summary"];
    let list = |name: &str| summary[name].as_array().cloned().unwrap_or_default();
    let looked: u64 = list("roles").iter().filter_map(|role| role["looked_at"].as_u64()).sum();
    let left: Vec<String> = list("left_out").iter().map(Value::to_string).collect();
    let own = summary["took"].as_f64().unwrap_or(f64::NAN) / 1e6;
    Ok(Seen { took, own, cpu, peak, looked: looked as f64, left: left.join("; ") })
}
