//! The story of the fuse: a Go program contends a lock so hard that probing it costs more than is allowed. Its own CPU
//! time says what probes cost it and when they are gone; its memory says whether any is left.

use super::cleanup::Ledger;
use super::commands::look;
use super::tracer::{Line, Tracer};
use super::verdict::Verdict;
use super::{packages, run_interruptible, sys};
use crate::bench::contend::{self, Target};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// What is allowed, in percent of a core; the program pays several percent.
const ALLOWED: &str = "0.05";
/// Operations in a burst; ten a second make some thousand hits.
const BURST: u32 = 500;
/// The fuse waits three seconds; a second each for the counting and the detaching, and a machine under load.
const WITHIN: Duration = Duration::from_secs(15);

/// Plays it.
pub fn play(binary: &Path) -> Result<Verdict> {
    packages::ensure(&packages::GO)?;
    let out = super::tracer::workspace().join("target/fuse");
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let program = contend::build(&out)?;
    run_interruptible(async |ledger| {
        let mut verdict = Verdict::default();
        let daemon =
            ["watch", "--config", "none", "--state-file", "none", "--store", "none", "--probes", "all"];
        for verb in [&["live", "--plain"][..], &daemon] {
            blown(ledger, &program, binary, verb, &mut verdict).await?;
        }
        Ok(verdict)
    })
}

/// Has probes put into the program by this verb, and taken off by the fuse.
async fn blown(
    ledger: &Ledger,
    program: &contend::Binary,
    binary: &Path,
    verb: &[&str],
    verdict: &mut Verdict,
) -> Result<()> {
    let mut target = Target::start(program)?;
    target.run("wait", 200)?;
    let bare = target.run("wait", 10 * BURST)?;
    let pid = target.pid().to_string();
    verdict.note("by", "", verb[0]);
    let args = [verb, &["--verbose", "--also", &pid, "--max-target-cost", ALLOWED]].concat();
    let mut tracer = Tracer::start(ledger, binary, &args, |_, _| {})?;
    tracer.ready().await?;
    target.run("wait", 200)?;
    let probed = target.run("wait", BURST)?;
    let changed = look::changed_bytes(target.pid())?;
    verdict.check("probes are in the program", "some bytes", format!("{changed} bytes"), changed > 0);
    let begin = sys::monotonic();
    let mut now = probed;
    let limit = u64::try_from(WITHIN.as_nanos()).unwrap_or(u64::MAX);
    while look::changed_bytes(target.pid())? > 0 && sys::monotonic() - begin < limit {
        now = target.run("wait", BURST)?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = sys::monotonic() - begin;
    let left = look::changed_bytes(target.pid())?;
    verdict.check(
        "taken off by itself",
        "no byte is left",
        format!("{left} bytes, {}", sys::seconds(took)),
        left == 0,
    );
    verdict.check("not before three seconds", "3 s or more", sys::seconds(took), took >= 2_500_000_000);
    let after = target.run("wait", 10 * BURST)?;
    verdict.check(
        "the program is as fast as before",
        format!("{bare:.0} ns"),
        format!("{after:.0} ns, probed {now:.0} ns"),
        after < bare + (probed - bare) / 4.0,
    );
    tokio::time::sleep(Duration::from_secs(12)).await;
    let back = look::changed_bytes(target.pid())?;
    verdict.check("they do not come back", "no byte", format!("{back} bytes"), back == 0);
    let (exit, took, lines, messages) = tracer.quit().await?;
    verdict.ended(exit, took, super::QUIT_WITHIN);
    told(&messages, verdict);
    if verb[0] == "live" {
        is_blind(&lines, verdict);
        let price = messages.iter().any(|line| line.text.contains("measured now"));
        let said = if price { "here" } else { "not here" };
        verdict.check("what a hit costs was measured", "here", said, price);
    }
    Ok(())
}

/// What plegscope said of it.
fn told(messages: &[Line], verdict: &mut Verdict) {
    let line = messages.iter().find(|line| line.text.contains("taken off"));
    let said = line.map_or("nothing", |line| line.text.as_str());
    let whole = ["contend", "--max-target-cost 0.05 %", "lock waits"].iter().all(|word| said.contains(word));
    verdict.check("it says so", "the program, the limit, what is gone", said, whole);
}

/// What it shows from then on.
fn is_blind(lines: &[Line], verdict: &mut Verdict) {
    let spot = lines.iter().find(|line| line.text.contains("lock waits") && line.text.contains("taken off"));
    let said = spot.map_or("nothing", |line| line.text.as_str());
    verdict.check("it is a blind spot from then on", "lock waits", said, spot.is_some());
}
