//! `watch --capture-on-incident` beside a real stall: a capture with what was before and after, within its bounds; and none
//! on the disk that is stuck, where it says so and goes on.

use super::{RATE, Stall, alerts, join, stall, store, told};
use crate::lab::commands;
use crate::lab::tracer::Tracer;
use crate::lab::verdict::Verdict;
use crate::lab::{Lab, QUIT_WITHIN, sys};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

/// The threshold in force, ns.
const THRESHOLD: u64 = 2_000_000_000;
/// What was before is kept for this long, ns.
const BEFORE: u64 = 8_000_000_000;
/// All captures together, bytes.
const BYTES: u64 = 8 << 20;
/// What comes after an incident is recorded for 5 s.
const AFTER: u64 = 5_000_000_000;
/// An alert comes this soon on a machine that does other things as well, ns.
const SOON: u64 = 1_000_000_000;

/// Plays it.
pub async fn play(
    lab: &Lab<'_>,
    binary: &Path,
    keep: Option<&Path>,
    say: &mut impl FnMut(&str),
) -> Result<Verdict> {
    let (folder, on_disk) = (lab.run.join("captures"), lab.disk.mounted.join("captures"));
    let mut daemons = Vec::new();
    for folder in [&folder, &on_disk] {
        let folder = folder.to_string_lossy().into_owned();
        let args = [
            "watch",
            "--config",
            "none",
            "--json",
            "--umount-over",
            "2s",
            "--state-file",
            "none",
            "--store",
            "none",
            "--capture-on-incident",
            &folder,
            "--capture-before",
            "8s",
            "--capture-bytes",
            "8MiB",
        ];
        let mut daemon = Tracer::start(lab.ledger, binary, &args, |_, _| {})?;
        daemon.ready().await?;
        daemons.push(daemon);
    }
    say("two daemons keep captures, one of them on the disk that will be slow");
    tokio::time::sleep(Duration::from_nanos(BEFORE + BEFORE / 2)).await;
    lab.disk.slow_down(lab.ledger, RATE)?;
    let stall = stall(lab, say, || {}).await?;
    // Other labs on this machine may have had incidents of their own before; while one of theirs lasts, so does the capture.
    let before = captures(&folder);
    sys::until(Duration::from_secs(60), || captures(&folder) > before).await;
    let mut ended = Vec::new();
    for daemon in daemons {
        ended.push(daemon.quit().await?);
    }
    let [(_, _, lines, messages), (_, _, other_lines, other_messages)] = &ended[..] else {
        anyhow::bail!("two daemons were started");
    };
    for (name, text) in [
        ("alerts.tsv", join(lines)),
        ("messages.tsv", join(messages)),
        ("on-the-disk-alerts.tsv", join(other_lines)),
        ("on-the-disk-messages.tsv", join(other_messages)),
    ] {
        store(keep, name, &text)?;
    }

    let mut verdict = Verdict::default();
    let names = names(&folder);
    let whole = !names.is_empty() && captures(&folder) == names.len();
    verdict.check("captures", "of the incident, and no other file", format!("{names:?}"), whole);
    let alerts_said = alerts(lines, &lab.victim().container);
    if let (Some(name), true) = (names.last(), whole) {
        let file = folder.join(name);
        if let Some(keep) = keep {
            fs::copy(&file, keep.join("incident.pleg")).context("keeping the capture")?;
        }
        capture(lab, binary, &file, &stall, &alerts_said, &mut verdict).await?;
    }
    let lost: Vec<&str> = messages
        .iter()
        .map(|line| line.text.as_str())
        .filter(|line| line.contains("not delivered"))
        .collect();
    verdict.check("what could not be kept", "nothing", format!("{lost:?}"), lost.is_empty());

    let there = self::names(&on_disk);
    verdict.check("files on the stuck disk", "none", format!("{there:?}"), there.is_empty());
    let why = other_messages.iter().find(|line| line.text.contains("capture: "));
    let why = why.map_or("nothing", |line| line.text.as_str());
    verdict.check(
        "it says why there is none",
        "it is on the disk that it must not write to",
        why,
        why.contains("must not write to"),
    );
    for (what, lines) in [("with captures", lines), ("without", other_lines)] {
        let said = alerts(lines, &lab.victim().container);
        let after = |at: Option<u64>, since: u64| at.map(|at| at.saturating_sub(since));
        let (crossed, over) =
            (after(told(&said, "crossed"), stall.begin + THRESHOLD), after(told(&said, "ended"), stall.end));
        let shown = |after: Option<u64>| after.map_or("never".to_owned(), sys::seconds);
        verdict.check(
            &format!("{what}: told"),
            format!("within {} of the crossing, and of the end", sys::seconds(SOON)),
            format!("{} after the crossing, {} after the end", shown(crossed), shown(over)),
            [crossed, over].iter().all(|after| after.is_some_and(|after| after <= SOON)),
        );
    }
    for (exit, took, ..) in &ended {
        verdict.ended(*exit, *took, QUIT_WITHIN);
    }
    Ok(verdict)
}

/// Names of the files of a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// How many captures there are.
fn captures(folder: &Path) -> usize {
    names(folder).iter().filter(|name| name.starts_with("incident-")).count()
}

/// What is in the capture.
async fn capture(
    lab: &Lab<'_>,
    binary: &Path,
    file: &Path,
    stall: &Stall,
    alerts: &[(u64, Value)],
    verdict: &mut Verdict,
) -> Result<()> {
    let is = fs::metadata(file).with_context(|| format!("looking at {}", file.display()))?;
    verdict.check(
        "its size, and who may read it",
        format!("at most {} bytes, its owner", BYTES / 4),
        format!("{} bytes, mode {:o}", is.len(), is.mode() & 0o777),
        is.len() <= BYTES / 4 && is.mode() & 0o077 == 0,
    );
    let run = async |args: &[&str]| {
        let mut command = Command::new(binary);
        command.args(args).arg(file);
        commands::run(lab.ledger, &mut command, Duration::from_secs(60)).await
    };
    let (code, out, said) = &run(&["replay", "--json"]).await?;
    let again = run(&["replay", "--json"]).await?;
    verdict.check(
        "it is replayed",
        "twice, to the same bytes",
        format!("exit code {code:?}, {} bytes and {}", out.len(), again.1.len()),
        *code == Some(0) && (code, out, said) == (&again.0, &again.1, &again.2),
    );
    let (_, lines, _) = run(&["export", "--format", "jsonl"]).await?;
    let heard = |line: &str| serde_json::from_str::<Value>(line).ok()?["heard"].as_u64();
    let times: Vec<u64> = lines.lines().filter_map(heard).collect();
    let (first, last) = (times.first().copied().unwrap_or(0), times.last().copied().unwrap_or(0));
    let frames: Vec<Value> = out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let crossing = stall.begin + THRESHOLD;
    verdict.check(
        "it has what was before",
        format!("about {} before the crossing", sys::seconds(BEFORE)),
        sys::seconds(crossing.saturating_sub(first)),
        first > 0 && first + BEFORE - 1_500_000_000 <= crossing,
    );
    verdict.check(
        "and what was after",
        format!("about {} after the end", sys::seconds(AFTER)),
        sys::seconds(last.saturating_sub(stall.end)),
        last >= stall.end + AFTER - 1_500_000_000,
    );
    let id = alerts.iter().find(|(_, alert)| alert["event"] == "crossed").map(|(_, alert)| &alert["id"]);
    let of_frame = |frame: &Value| -> Option<(u64, bool)> {
        let mut incidents = frame["incidents"].as_array()?.iter();
        let incident = incidents.find(|incident| Some(&incident["id"]) == id)?;
        Some((frame["now"].as_u64()?, !incident["ended"].is_null()))
    };
    let states: Vec<(u64, bool)> = frames.iter().filter_map(of_frame).collect();
    let shown = states.first().map_or(0, |(now, _)| *now);
    // The lab's own eye opens every few milliseconds.
    let early = shown < crossing.saturating_sub(20_000_000);
    verdict.check(
        "it is not in it before the crossing",
        sys::seconds(crossing),
        sys::seconds(shown),
        !early && shown < crossing + SOON,
    );
    verdict.check(
        "the incident that was told",
        "is in it, open and then over",
        format!("{}: {} frames", id.unwrap_or(&Value::Null), states.len()),
        states.first().is_some_and(|(_, over)| !over) && states.last().is_some_and(|(_, over)| *over),
    );
    Ok(())
}
