//! The story of arriving late: the node is stuck already when plegscope is started for the first time. What `now` says
//! then, and what `live` and `watch` make of a stall whose begin they have not seen, is held against clocks and stacks
//! that have nothing to do with it.

mod calls;
pub mod dump;
pub mod goroutines;
mod judge;
mod late;
mod leftover;
mod silent;
mod stall;

use super::cleanup::Ledger;
use super::containerd::Programs;
use super::verdict::Verdict;
use super::{run_interruptible, sys};
use anyhow::{Context, Result};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// What `now` may take where nothing else is asked for (`--within`), and how much longer it may take until it has given
/// up on what does not answer, ns.
const WITHIN: u64 = 1_000_000_000;
const GRACE: u64 = 500_000_000;
/// Longest that a run is waited for.
const LIMIT: Duration = Duration::from_secs(30);
/// Exit status: something that matters could not be seen.
const PARTLY_BLIND: i32 = 4;

/// One part of the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// A healthy node, then a stall on a slow disk.
    Stall,
    /// The disk with the programs does not answer any more.
    Silent,
    /// Shims that are left over.
    Leftover,
}

/// Plays a part. Standard output gets a line for each step, the folder `keep` what plegscope said.
pub fn play(programs: &Programs, binary: &Path, part: Part, keep: Option<&Path>) -> Result<Verdict> {
    let begin = sys::monotonic();
    let mut say = move |text: &str| println!("{:>6.1} s  {text}", (sys::monotonic() - begin) as f64 / 1e9);
    if let Some(folder) = keep {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let programs = programs.clone();
    let played = run_interruptible(async |ledger| match part {
        Part::Stall => stall::play(ledger, programs, binary, keep, &mut say).await,
        Part::Silent => silent::play(ledger, programs, binary, keep, &mut say).await,
        Part::Leftover => leftover::play(ledger, programs, binary, keep, &mut say).await,
    });
    played.with_context(|| format!("playing the part {part:?}"))
}

/// How a run of `now` went, by the lab's own clock.
struct Ran {
    code: Option<i32>,
    /// From its start until it was gone, ns.
    took: u64,
    out: String,
    messages: String,
}

impl Ran {
    /// The report, when it was asked for JSON.
    fn report(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_default()
    }

    /// How it ended and how long it took.
    fn ended(&self) -> String {
        let code = self.code.map_or("-".to_owned(), |code| code.to_string());
        let mut text = format!("exit code {code} after {}", sys::seconds(self.took));
        if !self.messages.trim().is_empty() {
            text += &format!("; {}", self.messages.trim());
        }
        text
    }
}

/// Runs a program, mostly plegscope, to its end.
async fn run(ledger: &Ledger, program: &Path, args: &[impl AsRef<OsStr>]) -> Result<Ran> {
    let begin = sys::monotonic();
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    ledger.record_process(child.id().context("it ended at once")?, Duration::from_secs(1))?;
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
    let output = output.with_context(|| format!("{} does not end within {LIMIT:?}", program.display()))??;
    let took = sys::monotonic() - begin;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ran { code: output.status.code(), took, out: text(&output.stdout), messages: text(&output.stderr) })
}

/// A plegscope of the lab's own, on its tmpfs, that finds another folder where `/run` is otherwise: there lies what it
/// keeps of program files between its runs.
struct Own {
    /// The folder that it finds.
    index: PathBuf,
    /// Name of the lab's folder in `/run`. It is there as well, without what is mounted in it.
    lab: String,
}

impl Own {
    /// One that has kept nothing yet.
    fn new(binary: &Path, run: &Path, name: &str) -> Result<Own> {
        let own = run.join("plegscope");
        if !own.exists() {
            fs::copy(binary, &own).with_context(|| format!("copying to {}", own.display()))?;
        }
        let lab = run.file_name().context("a folder without a name")?.to_string_lossy().into_owned();
        let index = run.join(format!("index-{name}"));
        let inner = index.join(&lab);
        fs::create_dir_all(&inner).with_context(|| format!("creating {}", inner.display()))?;
        Ok(Own { index, lab })
    }

    /// Arguments of `unshare` for a run. Meanwhile it keeps all mounts of this moment from being shut down.
    fn arguments<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let script = r#"mount --bind "/run/$1" "$0/$1" && mount --rbind "$0" /run && own="/run/$1/plegscope" && shift &&
                        exec "$own" "$@""#;
        let index = self.index.to_str().unwrap_or_default();
        let before = ["--mount", "--propagation", "private", "sh", "-c", script, index, &self.lab];
        before.into_iter().chain(args.iter().copied()).collect()
    }

    /// Runs it to its end.
    async fn run(&self, ledger: &Ledger, args: &[&str]) -> Result<Ran> {
        run(ledger, Path::new("unshare"), &self.arguments(args)).await
    }
}

/// The path of a container's root file system, shortened for a table.
fn mount(path: &str) -> String {
    let parts: Vec<&str> = path.rsplit('/').take(2).collect();
    match parts[..] {
        [last, id] if id.len() > 12 && id.is_ascii() => format!("…/{}…/{last}", &id[..12]),
        _ => path.to_owned(),
    }
}

/// Keeps what was said for people to read.
fn store(keep: Option<&Path>, name: &str, text: &str) -> Result<()> {
    let Some(folder) = keep else { return Ok(()) };
    let file = folder.join(name);
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
}
