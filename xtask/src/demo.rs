//! `cargo xtask demo`: plays the incident on this machine and lets plegscope explain it.

use crate::lab::containerd::Programs;
use crate::lab::story::{Block, Script};
use crate::lab::tracer::{self, Line, Tracer};
use crate::lab::{self, Lab, cleanup, machine, packages, sys, verdict};
use crate::vm;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
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
    /// Let a real kubelet relist and update (see `cargo xtask kubelet`) instead of a client like it
    #[arg(long)]
    kubelet: bool,
    /// Folder with another containerd, its shim and ctr
    #[arg(long, value_name = "FOLDER")]
    containerd: Option<PathBuf>,
    /// Play the incident without plegscope
    #[arg(long)]
    without_plegscope: bool,
    /// Play it on a node in a machine of its own (QEMU), with all the probes that its kernel allows
    #[arg(long, conflicts_with_all = ["block", "kubelet", "containerd", "without_plegscope", "clean"])]
    vm: bool,
    /// The kernel of that machine: 5.10, 6.1, 6.12 or newest
    #[arg(long, value_name = "LINE", requires = "vm", default_value = "6.1")]
    kernel: String,
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
    if args.vm {
        return vm::node::demo(&args.kernel, args.seconds);
    }
    anyhow::ensure!(sys::is_root(), "the demo mounts disks and runs containers: run it as root");
    if !machine::is_around() {
        packages::ensure(&packages::LAB)?;
    }
    let programs = Programs::find(args.containerd.as_deref())?;
    let binary = if args.without_plegscope { None } else { Some(tracer::binary()?) };
    let kubelet = match args.kubelet {
        true => Some(crate::kubelet::built()?.context(crate::kubelet::NOT_BUILT)?),
        false => None,
    };
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
        let lab = match &kubelet {
            Some(kubelet) => Lab::prepare_with_kubelet(ledger, programs, kubelet, &script, &mut say).await?,
            None => Lab::prepare(ledger, programs, script.megabytes(), &mut say).await?,
        };
        let frames = lab.run.join("frames.jsonl");
        let mut scope = None;
        if let Some(binary) = &binary {
            let show = |line: &str, _| println!("         plegscope | {line}");
            let json = frames.to_string_lossy();
            let mut started = Tracer::start(ledger, binary, &["live", "--plain", "--json-to", &json], show)?;
            started.ready().await?;
            scope = Some(started);
        }
        let truth = lab.play(&script, &mut say).await?;
        let mut compared = None;
        if let Some(scope) = scope {
            let (exit, took, ..) = scope.quit().await?;
            let frames = read_frames(&frames)?;
            let mut verdict = match args.block {
                Block::None => verdict::healthy(&truth, &frames),
                Block::Disk | Block::Strace => verdict::incident(&truth, &frames),
            };
            verdict.ended(exit, took, lab::QUIT_WITHIN);
            compared = Some((verdict, verdict::summaries(&frames)));
        }
        say("cleaning up");
        lab.finish().await;
        println!("\nThe same by the clock of the client that was stuck:\n{}", verdict::truth(&truth).table());
        if let Some((verdict, summaries)) = compared {
            println!("What plegscope said, held against it:\n{}", verdict.table());
            summaries.iter().for_each(|summary| println!("The diagnosis: {summary}"));
        }
        Ok(())
    })
}

/// The frames plegscope wrote to a file. Their own time stands for the time they came: a file has no arrival times.
fn read_frames(path: &Path) -> Result<Vec<verdict::Seen>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let line = |text: &str| {
        let now = serde_json::from_str::<serde_json::Value>(text).ok()?["now"].as_u64()?;
        Some(Line { at: now, text: text.to_owned() })
    };
    Ok(verdict::frames(&text.lines().filter_map(line).collect::<Vec<_>>()))
}
