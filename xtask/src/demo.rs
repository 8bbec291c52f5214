//! `cargo xtask demo`: plays the incident on this machine and lets plegscope explain it.

use crate::lab::containerd::Programs;
use crate::lab::story::{Block, Script, Truth};
use crate::lab::tracer::{self, Tracer};
use crate::lab::{self, Lab, cleanup, packages, sys};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::time::Duration;

/// How the incident is played.
#[derive(clap::Args)]
pub struct Args {
    /// What blocks the unmount: a really slow disk, or strace as in the published reproduction
    #[arg(long, value_enum, default_value = "disk")]
    block: Block,
    /// About how long the relist shall hang
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(6..=110))]
    seconds: u64,
    /// Seconds between two updates of a container's resources (the kubelet's default is 10)
    #[arg(long, default_value_t = 2)]
    update_every: u64,
    /// Folder with another containerd, its shim and ctr
    #[arg(long, value_name = "FOLDER")]
    containerd: Option<PathBuf>,
    /// Play the incident without plegscope
    #[arg(long)]
    without_plegscope: bool,
    /// Only remove what a run that was killed has left behind
    #[arg(long)]
    clean: bool,
}

/// Runs the demo.
pub fn run(args: Args) -> Result<()> {
    let found = cleanup::clean_leftovers()?;
    found.iter().for_each(|line| println!("leftovers of an earlier run: {line}"));
    if args.clean {
        if found.is_empty() {
            println!("nothing is left behind");
        }
        return Ok(());
    }
    let binary = if args.without_plegscope { None } else { Some(tracer::binary()?) };
    packages::ensure(&packages::LAB)?;
    let programs = Programs::find(args.containerd.as_deref())?;
    let script = Script {
        block: args.block,
        stall: Duration::from_secs(args.seconds),
        rate: 2_000_000,
        update_every: Duration::from_secs(args.update_every),
        calm: Duration::from_secs(3),
    };
    let begin = sys::monotonic();
    let mut say = move |text: &str| println!("{:>6.1} s  {text}", (sys::monotonic() - begin) as f64 / 1e9);
    lab::run_interruptible(async |ledger| {
        let lab = Lab::prepare(ledger, programs, script.megabytes(), &mut say).await?;
        let mut scope = None;
        if let Some(binary) = &binary {
            let show = |line: &str, _| println!("  plegscope | {line}");
            let mut started = Tracer::start(ledger, binary, &["live", "--plain"], show)?;
            started.ready().await?;
            scope = Some(started);
        }
        let truth = lab.play(&script, &mut say).await?;
        if let Some(scope) = scope {
            let (code, took) = scope.quit().await?;
            say(&format!("plegscope ended with {} after {}", code.unwrap_or(-1), sys::seconds(took)));
        }
        print_truth(&truth).context("printing the truth")?;
        say("cleaning up");
        lab.finish().await;
        Ok(())
    })
}

fn print_truth(truth: &Truth) -> Result<()> {
    println!("\n{}", serde_json::to_string_pretty(&truth.unmounts)?);
    for method in ["relist", "ListContainers"] {
        println!("{method}: {:?}", truth.longest(method));
    }
    println!("update: {:?}", truth.update());
    println!("unmount: {:?}", truth.blocked_unmount().map(|(begin, end)| sys::seconds(end - begin)));
    Ok(())
}
