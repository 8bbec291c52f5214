//! `cargo xtask test`: everything that must pass, in one command.
//!
//! All steps are run even when one fails, so that one run tells all. What this machine cannot do is skipped, never
//! silently: the reason is printed where it happens and again at the end.

use crate::lab::packages;
use crate::{binaries, bpf, kubelet, readers, shell, tidy, toolchains, vm};
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

/// Run all checks and tests.
#[derive(clap::Args)]
pub struct Args {
    /// Only what needs neither root nor network: a minute or two when the tree is built.
    #[arg(long)]
    fast: bool,
    /// All stories, with each containerd they make sense with and a real kubelet, ten times each: many hours.
    #[arg(long, conflicts_with = "fast")]
    all: bool,
}

/// How a step ended when it did not fail.
enum Outcome {
    Passed,
    /// Not done, or not wholly, because of this.
    Skipped(String),
}

/// What the steps know of each other.
struct Run {
    fast: bool,
    all: bool,
    /// The folder of Go programs, once it is filled.
    go_binaries: Option<PathBuf>,
    /// Where tests find every Go, and keep what they build with it.
    go_toolchains: Vec<(&'static str, OsString)>,
    /// A Python with Perfetto's classes.
    perfetto: Option<PathBuf>,
    /// The build of the program that the stories and the other kernels run, beside the steps that wait for the network.
    release: Option<JoinHandle<Result<String>>>,
    /// The other kernels, beside `cargo test`: each keeps about one processor busy.
    kernels: Option<JoinHandle<Result<()>>>,
    /// Name, seconds and result of the steps so far.
    results: Vec<(&'static str, f64, Result<Outcome>)>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let mut run = Run {
        fast: args.fast,
        all: args.all,
        go_binaries: None,
        go_toolchains: Vec::new(),
        perfetto: None,
        release: None,
        kernels: None,
        results: Vec::new(),
    };
    run.step("tools", tools);
    run.step("format", |_| format());
    run.step("tidy", |_| tidy::run(&tidy::Args {}).map(|()| Outcome::Passed));
    run.step("kernel half: record", |_| bpf::check(true).map(|_| Outcome::Passed));
    run.step("kernel half: rebuild", rebuild);
    if !run.fast && shell::is_root() {
        run.release = Some(std::thread::spawn(release));
    }
    run.step("clippy", |_| {
        shell::run(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--keep-going",
            "--",
            "-D",
            "warnings",
        ]))
        .map(|()| Outcome::Passed)
    });
    run.step("Go binaries", go_binaries);
    run.step("Go toolchains", go_toolchains);
    run.step("browser and Perfetto", other_readers);
    // Its end is waited for here, so that no test is disturbed by it.
    if let Some(build) = run.release.take() {
        run.step("release build", |_| match build.join() {
            Ok(built) => built.map(|_| Outcome::Passed),
            Err(_) => bail!("the thread that built it has panicked"),
        });
    }
    run.kernels = start_other_kernels(&run);
    run.step("cargo test", |run| {
        let mut test = cargo();
        test.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
        // A snapshot that differs is a failure here, not a file to be reviewed.
        test.env("INSTA_UPDATE", "no");
        test.envs(run.go_binaries.iter().map(|folder| (binaries::VARIABLE, folder)));
        test.envs(run.go_toolchains.iter().map(|(name, value)| (name, value)));
        test.envs(run.perfetto.iter().map(|python| (readers::VARIABLE, python)));
        shell::run(&mut test).map(|()| Outcome::Passed)
    });
    // Before the stories, which are about moments.
    run.step("other kernels", other_kernels);
    run.step("stories", stories);
    run.finish()
}

impl Run {
    fn step(&mut self, name: &'static str, work: impl FnOnce(&mut Run) -> Result<Outcome>) {
        println!("\n=== {name}");
        let start = Instant::now();
        let result = work(self);
        match &result {
            Ok(Outcome::Passed) => {}
            Ok(Outcome::Skipped(reason)) => println!("SKIPPED {name}: {reason}"),
            Err(error) => println!("FAILED {name}: {error:#}"),
        }
        self.results.push((name, start.elapsed().as_secs_f64(), result));
    }

    /// Prints the summary; its last line is the count of steps.
    fn finish(self) -> Result<()> {
        println!("\n=== summary");
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for (name, seconds, result) in &self.results {
            let (count, word, reason) = match result {
                Ok(Outcome::Passed) => (&mut passed, "passed", String::new()),
                Ok(Outcome::Skipped(reason)) => (&mut skipped, "SKIPPED", reason.clone()),
                Err(error) => (&mut failed, "FAILED", format!("{error:#}")),
            };
            *count += 1;
            println!("{word:8} {seconds:6.1} s  {name}");
            for line in reason.lines() {
                println!("         {line}");
            }
        }
        println!("\n{passed} passed, {failed} failed, {skipped} skipped");
        if failed > 0 {
            bail!("{failed} of {} steps failed", self.results.len());
        }
        Ok(())
    }
}

fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(shell::root());
    command
}

/// One processor is busy with this for minutes, at the end of it.
fn release() -> Result<String> {
    shell::capture(cargo().args(["build", "--release", "--locked", "--package", "tracer"]))
}

fn format() -> Result<Outcome> {
    let cure = "put it right: cargo fmt --all && cargo fmt --manifest-path tracer-ebpf/Cargo.toml";
    shell::run(cargo().args(["fmt", "--all", "--check"])).context(cure)?;
    shell::run(cargo().args(["fmt", "--check", "--manifest-path", "tracer-ebpf/Cargo.toml"]))
        .context(cure)?;
    Ok(Outcome::Passed)
}

fn rebuild(run: &mut Run) -> Result<Outcome> {
    if run.fast {
        return Ok(Outcome::Skipped("NOT VERIFIED that the object is what its source gives (--fast)".into()));
    }
    Ok(match bpf::check(false)? {
        bpf::Verified::Rebuilt => Outcome::Passed,
        bpf::Verified::RecordOnly(reason) => {
            Outcome::Skipped(format!("NOT VERIFIED that the object is what its source gives: {reason}"))
        }
    })
}

fn go_binaries(run: &mut Run) -> Result<Outcome> {
    let found = if run.fast { binaries::cached()? } else { binaries::gather(false)? };
    println!("{}", found.folder.display());
    run.go_binaries = Some(found.folder);
    if found.missing.is_empty() {
        return Ok(Outcome::Passed);
    }
    Ok(Outcome::Skipped(format!("tests of these programs are not run:\n{}", found.missing.join("\n"))))
}

fn go_toolchains(run: &mut Run) -> Result<Outcome> {
    let found = toolchains::gather(!run.fast);
    if !found.roots.is_empty() {
        let roots = std::env::join_paths(&found.roots)?;
        let builds = toolchains::builds()?.into_os_string();
        run.go_toolchains = vec![(toolchains::VARIABLE, roots), (toolchains::BUILDS, builds)];
    }
    run.go_toolchains.extend(found.panicparse.map(|tool| (toolchains::PANICPARSE, tool.into())));
    if found.missing.is_empty() {
        return Ok(Outcome::Passed);
    }
    Ok(Outcome::Skipped(format!("tests go without these:\n{}", found.missing.join("\n"))))
}

fn other_readers(run: &mut Run) -> Result<Outcome> {
    let found = readers::gather(!run.fast)?;
    run.perfetto = found.python;
    if found.missing.is_empty() {
        return Ok(Outcome::Passed);
    }
    Ok(Outcome::Skipped(format!("what we write is not read by these:\n{}", found.missing.join("\n"))))
}

/// The lab's stories on a real containerd, by our own other command.
fn stories(run: &mut Run) -> Result<Outcome> {
    if run.fast {
        return Ok(Outcome::Skipped("needs root (--fast)".into()));
    }
    if !shell::is_root() {
        return Ok(Outcome::Skipped("needs root: sudo -E env PATH=\"$PATH\" cargo xtask story".into()));
    }
    // Not the executable's path: an earlier step may have put a newer one there.
    let mut play = Command::new(format!("/proc/{}/exe", process::id()));
    play.arg("story");
    if run.all {
        play.args(["--all", "--repeat", "10"]);
    }
    shell::run_hearing_errors(&mut play)?;
    Ok(match kubelet::built()? {
        Some(_) => Outcome::Passed,
        None => {
            Outcome::Skipped(format!("stories with a real kubelet were not played: {}", kubelet::NOT_BUILT))
        }
    })
}

/// Why the other kernels are not booted, if they are not.
fn no_other_kernels(run: &Run) -> Option<&'static str> {
    if run.fast {
        return Some("takes minutes, and kernels from the network (--fast)");
    }
    (!shell::is_root() && !vm::is_ready()).then_some("needs root to install QEMU, or QEMU: cargo xtask vm")
}

/// Boots the oldest kernel and a new one in virtual machines, with what takes a few minutes where nothing is accelerated, and
/// plays the incident on a whole node there: one pair of kernel and containerd, or all, and the other stories. All tests, on four
/// kernels, are `cargo xtask vm`. What they say goes to a file.
fn start_other_kernels(run: &Run) -> Option<JoinHandle<Result<()>>> {
    const TESTS: &str = "features,plan,verifier,links,unmounts by fentry,unmounts by kprobe,unmounts by wrapper,lock log,lock phantoms,no ring buffers";
    if no_other_kernels(run).is_some() {
        return None;
    }
    // What a whole node plays.
    const USUAL: &[&str] = &["--story slow-disk --kernel 6.1"];
    const ALL: &[&str] = &[
        "--story slow-disk --all",
        "--story kubelet --story stopped-root --kernel 6.1",
        "--story convoy --story namespace --story volatile --story xfs --kernel 6.12",
        "--story slow-disk --kernel 6.1 --cgroup v1",
        "--story slow-disk --kernel 6.1 --without fentry",
        "--story slow-disk --kernel 6.1 --without fentry,kprobe",
        "--story slow-disk --kernel 6.1 --without fentry,kprobe,uprobe",
    ];
    let mut commands = vec![vec!["vm", "--only", TESTS, "--kernel", "5.10", "--kernel", "6.12"]];
    let nodes = if run.all { ALL } else { USUAL };
    commands.extend(nodes.iter().map(|words| ["vm"].into_iter().chain(words.split(' ')).collect()));
    Some(std::thread::spawn(move || {
        let log = File::create(kernels_log()).context("creating a log")?;
        let mut result = Ok(());
        // One that fails keeps no other from being played.
        for words in commands {
            let mut vm = Command::new(format!("/proc/{}/exe", process::id()));
            vm.args(words).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
            result = result.and(shell::run(&mut vm));
        }
        result
    }))
}

fn kernels_log() -> PathBuf {
    shell::root().join("target/other-kernels.log")
}

fn other_kernels(run: &mut Run) -> Result<Outcome> {
    let Some(kernels) = run.kernels.take() else {
        return Ok(Outcome::Skipped(no_other_kernels(run).unwrap_or("they were not started").into()));
    };
    let Ok(result) = kernels.join() else { bail!("the thread that booted them has panicked") };
    let log = kernels_log();
    let said = std::fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
    print!("{said}");
    // The summary is what is read first.
    let reason = said.rfind("error: ").map(|at| said[at..].trim().to_owned());
    result.with_context(|| reason.unwrap_or_default()).map(|()| Outcome::Passed)
}

/// What the other steps run. The end-to-end test installs what it needs by itself.
fn tools(run: &mut Run) -> Result<Outcome> {
    for (verb, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if shell::capture(cargo().args([verb, "--version"])).is_err() {
            shell::run(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    if !run.fast && shell::is_root() {
        packages::ensure(&[
            packages::need("git", "git"),
            packages::need("dpkg-deb", "dpkg"),
            packages::need("tmux", "tmux"),
        ])?;
    }
    Ok(Outcome::Passed)
}
