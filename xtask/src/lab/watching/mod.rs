//! The story of the daemon: what `watch` does unattended beside a real stall, each part with a node in a box of its own.

mod captures;
pub mod unit;

use super::containerd::Programs;
use super::kubelet_like::KubeletLike;
use super::tracer::Line;
use super::unmounts;
use super::verdict::Verdict;
use super::{Lab, run_interruptible, sys};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// What the slow disk writes, bytes per second.
const RATE: u64 = 2_000_000;
/// What the victim writes: the stall lasts about ten seconds.
const MEGABYTES: u64 = 20;

/// One part of the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// It keeps a capture of what was before and after.
    Captures,
    /// systemd runs it by its unit.
    Unit,
}

/// Plays a part. Standard output gets a line for each step, the folder `keep` what plegscope said.
pub fn play(programs: &Programs, binary: &Path, part: Part, keep: Option<&Path>) -> Result<Verdict> {
    let begin = sys::monotonic();
    let mut say = move |text: &str| println!("{:>6.1} s  {text}", (sys::monotonic() - begin) as f64 / 1e9);
    let programs = programs.clone();
    let played = run_interruptible(async |ledger| {
        let lab = Lab::prepare(ledger, programs, MEGABYTES, &mut say).await?;
        let log = lab.run.join("client.jsonl");
        let client = KubeletLike::start(&lab.containerd.socket, &log, Duration::from_secs(1))?;
        let verdict = match part {
            Part::Captures => captures::play(&lab, binary, keep, &mut say).await,
            Part::Unit => unit::play(&lab, binary, keep, &mut say).await,
        }?;
        drop(client);
        lab.finish().await;
        Ok(verdict)
    });
    played.with_context(|| format!("playing the part {part:?}"))
}

/// The unmount of the victim, by the lab's own clock.
struct Stall {
    begin: u64,
    end: u64,
}

/// Brings a stall about on a disk that is slow by then, asks `meanwhile` again and again while it lasts, and waits for its
/// end.
async fn stall(lab: &Lab<'_>, say: &mut impl FnMut(&str), mut meanwhile: impl FnMut()) -> Result<Stall> {
    let victim = lab.victim();
    let shim = lab.containerd.shim_of(&victim.container)?;
    victim.tell("write")?;
    victim.wait_for("written", Duration::from_secs(120)).await?;
    let unmounts = unmounts::Watch::start(shim);
    victim.tell("exit")?;
    say("the victim has written, and exits");
    let long = || unmounts.stays().into_iter().find(|stay| sys::monotonic() - stay.begin > 1_000_000_000);
    let over = || {
        meanwhile();
        long().is_some_and(|stay| stay.end.is_some())
    };
    ensure!(sys::until(Duration::from_secs(120), over).await, "no unmount blocks and ends");
    let stay = long().context("the unmount")?;
    let end = stay.end.context("the end of the unmount")?;
    say(&format!("the unmount is over after {}", sys::seconds(end - stay.begin)));
    Ok(Stall { begin: stay.begin, end })
}

/// The alerts among lines of JSON about this container: when each came, and what it says.
fn alerts(lines: &[Line], container: &str) -> Vec<(u64, Value)> {
    let parse = |line: &Line| Some((line.at, serde_json::from_str::<Value>(&line.text).ok()?));
    let about = |(_, alert): &(u64, Value)| alert["containers"].to_string().contains(container);
    lines.iter().filter_map(parse).filter(about).collect()
}

/// When it was told first, and last, that this has happened.
fn told(alerts: &[(u64, Value)], event: &str) -> Option<u64> {
    alerts.iter().find(|(_, alert)| alert["event"] == event).map(|(at, _)| *at)
}

/// Keeps what was said for people to read.
fn store(keep: Option<&Path>, name: &str, text: &str) -> Result<()> {
    let Some(folder) = keep else { return Ok(()) };
    let file = folder.join(name);
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
}

/// Lines with the time they came.
fn join(lines: &[Line]) -> String {
    lines.iter().map(|line| format!("{}\t{}\n", line.at, line.text)).collect()
}
