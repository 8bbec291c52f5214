//! `cargo xtask fuzz`: runs the targets below `fuzz/` under libFuzzer, with the stable compiler: what libFuzzer needs is
//! asked of LLVM directly, as cargo-fuzz does.

use crate::shell;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The targets, in the order in which they are run.
const TARGETS: [&str; 8] = ["capture", "lines", "record", "elf", "goroutines", "proc", "config", "btf"];

/// Coverage that libFuzzer sees, and checks that a release build leaves out.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks -Ccodegen-units=1";

/// The triple must be named, or build scripts would be built with these flags too.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The smallest Go program there is.
const GO: &str = "package main\n\nfunc main() { println(len(make([]int, 3))) }\n";

/// Fuzz the parsers of foreign bytes.
#[derive(clap::Args)]
pub struct Args {
    /// Which targets; without a name all
    targets: Vec<String>,
    /// How long each is run
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Runs the command. What was found lies in `target/fuzz/`; an error says where.
pub fn run(args: &Args) -> Result<()> {
    if let Some(unknown) = args.targets.iter().find(|name| !TARGETS.contains(&name.as_str())) {
        bail!("{unknown}: no such target; there are {}", TARGETS.join(", "));
    }
    let folder = shell::root().join("target/fuzz");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let build = |command: &mut Command| -> Result<()> {
        command
            .current_dir(shell::root())
            .args(["build", "--release", "--features", "fuzz", "--manifest-path", "fuzz/Cargo.toml"])
            .args(["--target", TRIPLE, "--target-dir"])
            .arg(&folder)
            .env("RUSTFLAGS", FLAGS);
        shell::run(command)
    };
    build(&mut Command::new("cargo"))
        .context("building the fuzz targets (g++ is needed: apt-get install g++)")?;
    let program = go(&folder)?;
    let mut found = Vec::new();
    for name in TARGETS {
        if !args.targets.is_empty() && !args.targets.iter().any(|wanted| wanted == name) {
            continue;
        }
        if matches!(name, "elf" | "goroutines") && program.is_none() {
            println!("SKIPPED {name}: a Go program is needed to begin with: apt-get install golang-go");
            continue;
        }
        println!("--- {name}");
        let corpus = folder.join("corpus").join(name);
        seed(name, &corpus, program.as_deref())?;
        let artifacts = folder.join("artifacts").join(name);
        fs::create_dir_all(&artifacts)?;
        let status = Command::new(folder.join(TRIPLE).join("release").join(name))
            .current_dir(&folder)
            .arg(format!("-max_total_time={}", args.seconds))
            .args([
                "-timeout=10",
                "-rss_limit_mb=1024",
                "-max_len=1500000",
                "-verbosity=0",
                "-print_final_stats=1",
            ])
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(&corpus)
            .envs(program.iter().map(|program| ("PLEGSCOPE_FUZZ_GO", program)))
            .status()
            .with_context(|| format!("starting the fuzz target {name}"))?;
        if !status.success() {
            found.push(format!("{name}: see {}", artifacts.display()));
        }
    }
    ensure!(
        found.is_empty(),
        "something was found; mend it and put the input into fuzz/regressions/TARGET/:\n{}",
        found.join("\n")
    );
    Ok(())
}

/// A small Go program, stripped, where there is a compiler.
fn go(folder: &Path) -> Result<Option<PathBuf>> {
    let (source, program) = (folder.join("hello.go"), folder.join("hello"));
    if !program.is_file() {
        if !shell::exists("go") {
            return Ok(None);
        }
        fs::write(&source, GO)?;
        let mut build = Command::new("go");
        build.args(["build", "-ldflags", "-s -w", "-o"]).arg(&program).arg(&source).env("CGO_ENABLED", "0");
        shell::run(build.env("GOCACHE", folder.join("go-cache"))).context("building a small Go program")?;
    }
    Ok(Some(program))
}

/// What a target begins with: without it a fuzzer would have to find out what a zstd frame is.
fn seed(name: &str, corpus: &Path, program: Option<&Path>) -> Result<()> {
    fs::create_dir_all(corpus)?;
    let put = |n: usize, bytes: &[u8]| fs::write(corpus.join(format!("seed-{n}")), bytes);
    let captures = shell::root().join("tracer/captures");
    let captures = fs::read_dir(&captures).into_iter().flatten().flatten().map(|entry| entry.path());
    let captures = captures.filter(|path| path.extension().is_some_and(|end| end == "pleg"));
    match name {
        "capture" => {
            for (n, path) in captures.enumerate() {
                put(n, &fs::read(path)?)?;
            }
        }
        "lines" => {
            for (n, path) in captures.enumerate() {
                let mut text = Vec::new();
                let file = fs::File::open(path)?;
                std::io::Read::read_to_end(&mut zstd::stream::read::Decoder::new(file)?, &mut text)?;
                // A few lines of each: behind the header, and from the middle.
                let lines: Vec<&[u8]> = text.split_inclusive(|b| *b == b'\n').collect();
                for (part, from) in [1, lines.len() / 3, lines.len() / 2].into_iter().enumerate() {
                    let some: Vec<u8> = lines.iter().skip(from).take(40).copied().flatten().copied().collect();
                    put(n * 10 + part, &some)?;
                }
            }
        }
        "elf" => {
            if let Some(program) = program {
                put(0, &fs::read(program)?)?;
            }
        }
        "proc" => {
            for (n, path) in ["self/mountinfo", "diskstats", "self/stat", "self/status", "meminfo", "pressure/io"]
                .iter()
                .enumerate()
            {
                put(n, &fs::read(Path::new("/proc").join(path)).unwrap_or_default())?;
            }
        }
        "btf" => put(0, &fs::read("/sys/kernel/btf/fuse").unwrap_or_default())?,
        "config" => put(0, br#"{"annotations":{"io.kubernetes.cri.sandbox-name":"a","io.kubernetes.cri.sandbox-namespace":"b"}}"#)?,
        _ => put(0, &[1; 400])?,
    }
    Ok(())
}
