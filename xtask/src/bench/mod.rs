//! `cargo xtask bench`: what plegscope costs, measured side by side with bpftrace.
//!
//! Times vary from machine to machine and from minute to minute, so every goal is a ratio, taken from rounds in which
//! all variants take turns (A B C A B C …); medians are compared and the spread is shown.

mod attach;
pub mod bpf;
pub mod contend;
mod events;
mod forks;
mod idle;
mod now;
mod peer;
mod probe_cost;
mod runtime;
mod screen;
pub mod soak;
mod table;

use crate::lab::containerd::Programs;
use crate::lab::{self, packages, sys, tracer};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    /// Only these benches
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["probe-cost", "runtime", "attach", "idle", "forks", "now", "screen", "throughput", "growth", "capture"])]
    only: Vec<Bench>,
    /// Rounds in which all variants take turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(3..))]
    rounds: u64,
    /// Pods of the runtime that is called
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pods: u64,
    /// Shims that run while plegscope attaches or looks
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..=1000))]
    shims: u64,
    /// How long the daemon runs in the long run
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(30..))]
    seconds: u64,
    /// Measure only the others, not plegscope
    #[arg(long)]
    without_plegscope: bool,
    /// Folder for the tables as JSON and Markdown
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// The benches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
pub enum Bench {
    /// B1: what a probe hit costs the target
    ProbeCost,
    /// B2: cost to the container runtime
    Runtime,
    /// B3: time until attached, and until the prompt is back
    Attach,
    /// B4: memory and CPU time when idle
    Idle,
    /// B11: harm to the node while attaching
    Forks,
    /// Time and memory of `now` beside many shims
    Now,
    /// B7: alerts of `watch` as a daemon: in time, none lost, none twice, memory flat
    Soak,
    /// B12: what the screen takes
    Screen,
    /// B5: how fast events are correlated
    Throughput,
    /// B6: how that grows
    Growth,
    /// B9: what a capture takes
    Capture,
}

impl Bench {
    /// Whether it needs neither root nor a node.
    fn is_pure(self) -> bool {
        matches!(self, Bench::Throughput | Bench::Growth | Bench::Capture)
    }
}

/// Runs the benches and writes their tables.
pub fn run(args: Args) -> Result<()> {
    let pure = args.only.iter().all(|bench| bench.is_pure());
    ensure!(pure || sys::is_root(), "probes need root: run the bench as root");
    if !pure {
        packages::ensure(&packages::BENCH)?;
    }
    let scope = if args.without_plegscope || pure { None } else { Some(tracer::binary()?) };
    let out = if args.out.is_absolute() { args.out.clone() } else { tracer::workspace().join(&args.out) };
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let mut results = Vec::new();
    for bench in &args.only {
        let result = match bench {
            Bench::ProbeCost => lab::run_interruptible(async |ledger| {
                probe_cost::measure(ledger, scope.as_deref(), args.rounds, &out).await
            })?,
            Bench::Attach => {
                packages::ensure(&packages::LAB)?;
                let programs = Programs::find(None)?;
                lab::run_interruptible(async |ledger| {
                    attach::measure(ledger, programs, scope.as_deref(), args.rounds).await
                })?
            }
            Bench::Runtime => {
                packages::ensure(&packages::LAB)?;
                let programs = Programs::find(None)?;
                lab::run_interruptible(async |ledger| {
                    let pods = args.pods as usize;
                    runtime::measure(ledger, programs, scope.as_deref(), args.rounds, pods).await
                })?
            }
            Bench::Forks => {
                packages::ensure(&packages::LAB)?;
                let programs = Programs::find(None)?;
                lab::run_interruptible(async |ledger| {
                    forks::measure(ledger, programs, scope.as_deref(), args.rounds, args.shims as usize).await
                })?
            }
            Bench::Now => {
                packages::ensure(&packages::LAB)?;
                let programs = Programs::find(None)?;
                lab::run_interruptible(async |ledger| {
                    now::measure(ledger, programs, scope.as_deref(), args.rounds, args.shims as usize).await
                })?
            }
            Bench::Screen => {
                packages::ensure(&packages::LAB)?;
                let programs = Programs::find(None)?;
                lab::run_interruptible(async |ledger| {
                    screen::measure(ledger, programs, scope.as_deref(), args.rounds).await
                })?
            }
            Bench::Soak => {
                packages::ensure(&packages::LAB)?;
                let programs = Programs::find(None)?;
                lab::run_interruptible(async |ledger| {
                    soak::measure(ledger, programs, scope.as_deref(), Duration::from_secs(args.seconds)).await
                })?
            }
            Bench::Throughput => events::throughput(args.rounds)?,
            Bench::Growth => events::growth(args.rounds)?,
            Bench::Capture => events::capture(args.rounds)?,
            Bench::Idle => {
                packages::ensure(&packages::LAB)?;
                let programs = Programs::find(None)?;
                lab::run_interruptible(async |ledger| {
                    idle::measure(ledger, programs, scope.as_deref(), args.rounds).await
                })?
            }
        };
        print!("{}", result.text());
        results.push(result);
    }
    let machine = table::machine();
    let json = serde_json::json!({ "machine": machine, "rounds": args.rounds, "results": results });
    write(&out.join("bench.json"), &serde_json::to_string_pretty(&json)?)?;
    let markdown: String = results.iter().map(table::Table::markdown).collect();
    write(&out.join("bench.md"), &format!("{machine}\n\n{markdown}"))?;
    println!("written: {0}/bench.json, {0}/bench.md", out.display());
    Ok(())
}

fn write(path: &std::path::Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
