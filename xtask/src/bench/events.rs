//! How fast events are correlated, how that grows, and what a capture of them takes. Needs neither root nor a node: what is
//! measured is `tracer/benches/throughput.rs`.

use super::table::{Spread, Table};
use crate::shell;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::Command;

/// Runs a part of it so often; each gives objects with a name, `measurement`.
fn run(part: &str, rounds: u64) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for _ in 0..rounds {
        let mut bench = Command::new("cargo");
        bench.current_dir(shell::root()).args([
            "bench",
            "-q",
            "-p",
            "tracer",
            "--bench",
            "throughput",
            "--",
            part,
        ]);
        let said = shell::capture(&mut bench)?;
        for line in said.lines().filter(|line| line.starts_with('{')) {
            all.push(serde_json::from_str(line).with_context(|| format!("what the bench said: {line}"))?);
        }
    }
    ensure!(!all.is_empty(), "the bench measured nothing");
    Ok(all)
}

/// A number of all measurements of that name.
fn values(all: &[Value], measurement: &str, number: &str) -> Result<Vec<f64>> {
    let of = all.iter().filter(|value| value["measurement"] == measurement);
    let numbers: Vec<f64> = of.filter_map(|value| value[number].as_f64()).collect();
    ensure!(!numbers.is_empty(), "the bench did not measure {number} of {measurement}");
    Ok(numbers)
}

fn table(title: &str) -> Table {
    Table { title: title.to_owned(), rows: Vec::new(), goals: Vec::new(), notes: Vec::new() }
}

/// Nanoseconds for each event.
fn each(all: &[Value], measurement: &str) -> Result<Vec<f64>> {
    Ok(values(all, measurement, "events_per_second")?.into_iter().map(|rate| 1e9 / rate).collect())
}

/// B5: a synthetic day of a node.
pub fn throughput(rounds: u64) -> Result<Table> {
    let all = run("throughput", rounds)?;
    let day = "a node's day";
    let mut table =
        table("events: ordering and correlating a node's day, 1,000 containers, a stall each hour");
    let event = table.row("time for an event", &each(&all, day)?, "ns");
    let early =
        table.row("memory after a tenth of the day", &values(&all, day, "rss_after_a_tenth_kb")?, "kB");
    let late = table.row("memory at its end", &values(&all, day, "rss_at_the_end_kb")?, "kB");
    let incidents = table.row("incidents", &values(&all, day, "incidents")?, "");
    ensure!(incidents.low > 0.0, "no incident was found in the day: what was measured is not what it does");
    table.goal("time for an event (2 million a second)", 500.0, event.median, "ns");
    table.goal("memory at the end over memory after a tenth", 1.1, late.median / early.median, "");
    Ok(table)
}

/// B6: each ten times as much.
pub fn growth(rounds: u64) -> Result<Table> {
    let all = run("growth", rounds)?;
    let mut table = table("growth: time for an event, each time with ten times as much");
    let plain = table.row("plain", &each(&all, "plain")?, "ns");
    for what in ["the events", "the containers", "in flight", "the depth"] {
        let name = format!("ten times {what}");
        let grown: Spread = table.row(name.clone(), &each(&all, &name)?, "ns");
        table.goal(format!("{name} over plain"), 1.3, grown.median / plain.median, "");
    }
    Ok(table)
}

/// B9: a capture of a busy minute.
pub fn capture(rounds: u64) -> Result<Table> {
    let all = run("capture", rounds)?;
    let mut table = table("capture: a minute with 10,000 events a second");
    let of = |number| values(&all, "capture", number);
    let bytes = table.row("bytes for an event", &of("bytes_per_event")?, "B");
    table.row("writing an event", &of("write_ns_per_event")?, "ns");
    let times = table.row("replay, times as fast as it happened", &of("times_real_time")?, "x");
    table.row("opening a capture of 1 GiB", &of("open_ms")?, "ms");
    table.goal("bytes for an event", 20.0, bytes.median, "B");
    table.goal("time of a replay over real time", 0.05, 1.0 / times.median, "");
    table
        .notes
        .push("the events are made up, with ids and times at random: those of a node compress better".into());
    Ok(table)
}
