//! `cargo xtask vm`: boots Debian's kernels in QEMU and proves the kernel half on each; with `--story`, `--containerd`,
//! `--diagonal` or `--all` the machine is a whole node, see [`node`].
//!
//! The test `kernel` of the tracer is the machine's first process. It loads modules, mounts two slow disks, plays unmounts
//! and locks, compares what plegscope tells with its own clock and log, and switches the machine off. There is no network
//! and nothing else in the machine.

mod cost;
mod initramfs;
mod kernel;
pub mod node;
mod qemu;
mod qmp;

use crate::lab::packages::{self, BUSYBOX, Need, need};
use crate::packages::fresh_folder;
use crate::{lab, shell};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Boot other kernels in QEMU and prove the kernel half on each.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Which kernel: 5.10, 6.1, 6.12 or newest; may be given several times. All when left out.
    #[arg(long, value_name = "LINE")]
    pub kernel: Vec<String>,
    /// Run only tests whose name contains this, or one of these, with commas between.
    #[arg(long, value_name = "PART")]
    pub only: Option<String>,
    /// Write what the verifier looked at into docs/verifier-cost.md (with all kernels), or what a node has shown into
    /// docs/box.md.
    #[arg(long)]
    pub record: bool,
    /// Prove that a machine that panics, says nothing or lives too long is noticed and ended, and its console kept.
    #[arg(long, conflicts_with_all = ["only", "record"])]
    pub prove: bool,
    /// What is played on a whole node.
    #[command(flatten)]
    pub node: node::Wanted,
}

/// Bytes per second that each disk may write.
const RATE: u32 = 1_500_000;

/// How long a machine may live and be silent.
#[derive(Clone, Copy)]
struct Patience {
    limit: Duration,
    silence: Duration,
}

/// A machine takes some minutes when nothing else runs. Each test has a limit of its own, below that of silence.
const PATIENCE: Patience = Patience { limit: Duration::from_secs(2400), silence: Duration::from_secs(660) };

/// What is needed beside Rust.
const NEEDS: [Need; 6] = [
    BUSYBOX,
    need("qemu-system-x86_64", "qemu-system-x86"),
    need("mkfs.ext4", "e2fsprogs"),
    need("mkfs.xfs", "xfsprogs"),
    need("xz", "xz-utils"),
    need("go", "golang-go"),
];

/// Whether all is installed.
pub fn is_ready() -> bool {
    packages::all_there(&NEEDS)
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    packages::ensure(&NEEDS)?;
    if args.node.is_node() {
        return node::run(&args.node, &args.kernel, args.record);
    }
    if args.record && !args.kernel.is_empty() {
        bail!("the table of docs/verifier-cost.md is written with all kernels, without --kernel");
    }
    let lines: Vec<&str> = if args.kernel.is_empty() {
        kernel::LINES.iter().map(|(line, _)| *line).collect()
    } else {
        args.kernel.iter().map(String::as_str).collect()
    };
    let programs = Programs::build()?;
    if args.prove {
        return lines.into_iter().try_for_each(|line| prove(line, &programs));
    }
    let mut costs = Vec::new();
    let mut failed = Vec::new();
    for line in lines {
        let begin = Instant::now();
        let result = boot(line, &programs, args.only.as_deref(), PATIENCE);
        let took = begin.elapsed().as_secs();
        match result {
            Ok((version, said)) if said.failed.is_empty() => {
                println!("vm {line} ({version}): {} passed in {took} s", said.passed);
                costs.push((line.to_owned(), said.costs));
            }
            Ok((version, said)) => {
                println!(
                    "vm {line} ({version}): {} passed, {} FAILED in {took} s; console: {}",
                    said.passed,
                    said.failed.len(),
                    folder(line).join("console.log").display()
                );
                failed.extend(said.failed.into_iter().map(|what| format!("{line}: {what}")));
            }
            Err(error) => {
                let console = folder(line).join("console.log");
                println!("vm {line}: FAILED in {took} s: {error:#}; console: {}", console.display());
                failed.push(format!("{line}: {error:#}"));
            }
        }
    }
    if !failed.is_empty() {
        bail!("{} failed:\n{}", failed.len(), failed.join("\n"));
    }
    // Another selection of tests may not have asked the verifier.
    costs.retain(|(_, costs)| !costs.is_empty());
    cost::compare(&costs, args.record)
}

/// Boots machines with a defect each, and demands that it is noticed as what it is.
fn prove(line: &str, programs: &Programs) -> Result<()> {
    let seconds = Duration::from_secs;
    let quick = Patience { limit: seconds(600), silence: seconds(90) };
    let short = Patience { limit: seconds(60), silence: seconds(90) };
    for (defect, patience, words) in [
        ("defect: panic", PATIENCE, "the kernel complained: "),
        ("defect: hang", quick, "it said nothing for 90 s"),
        ("defect: hang", short, "it was not done after 60 s"),
    ] {
        let begin = Instant::now();
        let noticed = match boot(line, programs, Some(defect), patience) {
            Ok(_) => bail!("vm {line}: {defect} was not noticed"),
            Err(error) => format!("{error:#}"),
        };
        anyhow::ensure!(noticed.contains(words), "vm {line}: {defect} was taken for this: {noticed}");
        let console = folder(line).join("console.log");
        let kept = fs::read_to_string(&console).with_context(|| format!("reading {}", console.display()))?;
        anyhow::ensure!(kept.contains("Linux version"), "{} is no console", console.display());
        println!("vm {line}: {defect}: noticed after {} s: {noticed}", begin.elapsed().as_secs());
    }
    Ok(())
}

/// Where a machine's files lie while it runs; its console stays there.
fn folder(line: &str) -> PathBuf {
    shell::root().join("target/vm").join(line)
}

/// What the machines run.
struct Programs {
    test: PathBuf,
    plegscope: PathBuf,
    locks: PathBuf,
    shim: PathBuf,
}

impl Programs {
    fn build() -> Result<Programs> {
        let plegscope = lab::tracer::binary()?;
        let mut build = Command::new("cargo");
        // The whole workspace has the same features as for all tests: nothing is built twice.
        build.args(["test", "--locked", "--workspace", "--test", "kernel", "--no-run"]);
        let test = shell::built(build.current_dir(shell::root()), "kernel")?;
        // One of each kind: at a fixed address, and wherever the kernel puts it.
        Ok(Programs { test, plegscope, locks: go("locks", "pie")?, shim: go("shim", "exe")? })
    }
}

/// Builds one of our Go programs, which need nothing but Go.
fn go(name: &str, mode: &str) -> Result<PathBuf> {
    let out = shell::root().join("target/vm/go");
    fs::create_dir_all(&out)?;
    let program = out.join(name);
    let mut go = Command::new("go");
    go.args(["build", "-buildmode", mode, "-ldflags", "-s -w", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(shell::root().join("xtask/vm").join(name))
        .envs([("GOTOOLCHAIN", "local"), ("GOPROXY", "off"), ("GO111MODULE", "auto")])
        .envs([("GOFLAGS", ""), ("CGO_ENABLED", "0")])
        .env("GOCACHE", out.join("cache"));
    shell::run(&mut go)?;
    Ok(program)
}

fn boot(
    line: &str,
    programs: &Programs,
    only: Option<&str>,
    patience: Patience,
) -> Result<(String, qemu::Said)> {
    let kernel = kernel::fetch(line)?;
    let folder = fresh_folder(&folder(kernel.line))?;
    println!("vm {line}: booting {}", kernel.version);
    let mut archive = initramfs::Archive::default();
    for mount_point in ["proc", "sys", "dev", "run", "mnt", "tmp"] {
        archive.folder(mount_point);
    }
    archive.program("init", &programs.test)?;
    archive.program("plegscope", &programs.plegscope)?;
    archive.program("locks", &programs.locks)?;
    archive.program("containerd-shim-runc-v2", &programs.shim)?;
    for (at, (name, content)) in kernel.modules()?.into_iter().enumerate() {
        archive.file(&format!("modules/{at:02}-{name}.ko"), &content);
    }
    let initramfs = folder.join("initramfs");
    fs::write(&initramfs, archive.finish())?;
    let (ext4, xfs) = (folder.join("ext4.img"), folder.join("xfs.img"));
    let eager = "lazy_itable_init=0,lazy_journal_init=0";
    kernel::disk(&ext4, 300, &["mkfs.ext4", "-q", "-m", "0", "-E", eager])?;
    kernel::disk(&xfs, 400, &["mkfs.xfs", "-q", "-f", "-m", "reflink=0,bigtime=0,inobtcount=0"])?;
    let machine = qemu::Machine {
        image: &kernel.image,
        initramfs: &initramfs,
        disks: &[
            qemu::Disk { file: &ext4, name: "ext4", rate: Some(RATE), throw_away: false },
            qemu::Disk { file: &xfs, name: "xfs", rate: Some(RATE), throw_away: false },
        ],
        // A blank would end the word.
        words: &only.map(|only| format!("plegscope.only={}", only.replace(' ', "_"))).unwrap_or_default(),
        console: &folder.join("console.log"),
        limit: patience.limit,
        silence: patience.silence,
    };
    let said = machine.run(|text| {
        if !text.starts_with("cost ") {
            println!("  {text}");
        }
    });
    for large in [&initramfs, &ext4, &xfs] {
        remove(large);
    }
    Ok((kernel.version, said?))
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        eprintln!("{} stays: {error}", path.display());
    }
}
