//! The story of what plegscope does to the node: nothing. Each part has a node in a box of its own, and judges by what
//! the kernel tells of plegscope and of its targets, never by what plegscope tells of itself.

pub mod evicted;
pub mod forks;
mod hanging;
mod hung;
mod kernel_log;
mod opens;
pub mod pages;
mod rootfs;
mod text;

use super::cleanup::Ledger;
use super::containerd::Programs;
use super::tracer::{Line, Tracer};
use super::verdict::Verdict;
use super::{run_interruptible, sys};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// One part of the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The code of every target equals its file again, however plegscope ends.
    Text,
    /// Nothing of a container's root file system is held, and unmounts take as long as without plegscope.
    Rootfs,
    /// Programs whose pages are not in memory, on a disk that is stuck: no fork waits for that.
    Evicted,
    /// A program on a file system that does not answer: plegscope says so and can be ended.
    Hung,
}

/// Plays a part. Standard output gets a line for each step.
pub fn play(programs: &Programs, kubelet: Option<&Path>, binary: &Path, part: Part) -> Result<Verdict> {
    let begin = sys::monotonic();
    let mut say = move |text: &str| println!("{:>6.1} s  {text}", (sys::monotonic() - begin) as f64 / 1e9);
    let programs = programs.clone();
    let mut log = kernel_log::KernelLog::follow();
    let played = run_interruptible(async |ledger| match part {
        Part::Text => text::play(ledger, programs, kubelet, binary, &mut say).await,
        Part::Rootfs => rootfs::play(ledger, programs, binary, &mut say).await,
        Part::Hung => hung::play(ledger, programs, binary, &mut say).await,
        Part::Evicted => evicted::play(ledger, programs, binary, &mut say).await,
    });
    let mut verdict = played.with_context(|| format!("playing the part {part:?}"))?;
    let what = "probes that could not be taken off";
    match &mut log {
        Ok(log) => {
            let leaked = log.leaked()?;
            verdict.check(what, "none, by the kernel's own log", leaked.to_string(), leaked == 0);
        }
        // In a container of its own kind there may be no log to read.
        Err(why) => verdict.note(what, "", format!("not known: {why:#}")),
    }
    Ok(verdict)
}

/// Waits until a warden and all it had attached are gone; returns how long that took, ns, when they went.
async fn gone(warden: u32, links: &BTreeSet<u32>) -> Option<u64> {
    use super::commands::look;
    let begin = sys::monotonic();
    let over = || matches!(sys::state(warden), None | Some('Z')) && look::left(links) == 0;
    sys::until(Duration::from_secs(20), over).await.then(|| sys::monotonic() - begin)
}

/// Starts a plegscope that finds `folder` where `/run` is otherwise: what it keeps of program files between its runs lies
/// below, and nothing that other runs on this machine have kept.
pub fn start_with_index(ledger: &Ledger, binary: &Path, folder: &Path, args: &[&str]) -> Result<Tracer> {
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let script = r#"mount --bind "$0" /run && exec "$@""#;
    let folder = folder.to_string_lossy();
    let binary = binary.to_string_lossy();
    let unshare = ["--mount", "--propagation", "private", "sh", "-c", script, &folder, &binary];
    let all: Vec<&str> = unshare.into_iter().chain(args.iter().copied()).collect();
    Tracer::start(ledger, Path::new("unshare"), &all, |_, _| {})
}

/// Words for what is not read, because it is not in memory or whoever holds it does not answer.
const REASONS: [&str; 4] = ["not in memory", "no answer within", "has not answered", "stuck"];

/// What a plegscope said about that: the first few different lines.
fn reasons(lines: &[Line], messages: &[Line]) -> Vec<String> {
    const MOST: usize = 3;
    let all: BTreeSet<&str> = lines.iter().chain(messages).map(|line| line.text.as_str()).collect();
    let told: Vec<&str> =
        all.into_iter().filter(|text| REASONS.iter().any(|word| text.contains(word))).collect();
    let more = told.len().saturating_sub(MOST);
    let rest = (more > 0).then(|| format!("and {more} more"));
    told.into_iter().take(MOST).map(str::to_owned).chain(rest).collect()
}
