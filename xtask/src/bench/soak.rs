//! B7 and the long run: `plegscope watch` as a daemon beside a containerd whose disk is slow and whose pods keep exiting.
//! Every unmount that took longer than the threshold was told once while it lasted and once when it was over, on each
//! way; what was told in between is measured against the lab's own clock; memory stays flat.

use super::table::{Spread, Table};
use crate::lab::cleanup::Ledger;
use crate::lab::commands::look;
use crate::lab::containerd::Programs;
use crate::lab::kubelet_like::KubeletLike;
use crate::lab::tracer::Tracer;
use crate::lab::unmounts::{EVERY, Watch};
use crate::lab::{Lab, pods, sys};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The threshold in force, ns.
const THRESHOLD: u64 = 2_000_000_000;
/// What the disk writes, bytes per second.
const RATE: u64 = 4_000_000;
/// What a pod writes before it exits, megabytes: some stalls are below the threshold, most are not.
const MEGABYTES: [u64; 4] = [16, 2, 12, 24];
/// Unmounts that are nearer to the threshold than this may be told or not, ns: the clock of the lab looks so often.
const EITHER: u64 = 100_000_000;
/// A crossing that is told later than this is named, ns.
const LATE: u64 = 100_000_000;
/// An unmount begins this soon after its container was told to exit, ns.
const UNSEEN: u64 = 15_000_000_000;
/// An end is told this soon, ns.
const SOON: u64 = 1_500_000_000;

/// Stalls that may fail to come about in the lab, which is no fault of plegscope.
const MOST_FAILURES: usize = 5;

/// An unmount that blocked, by the lab's clock.
struct Stall {
    container: String,
    begin: u64,
    end: u64,
}

/// Runs the daemon beside stalls for about this time.
pub async fn measure(
    ledger: &Ledger,
    programs: Programs,
    scope: Option<&Path>,
    time: Duration,
) -> Result<Table> {
    let mut table = Table {
        title: format!("B7: watch as a daemon for {} s, alerts while it is blocked", time.as_secs()),
        rows: Vec::new(),
        goals: Vec::new(),
        notes: Vec::new(),
    };
    let Some(scope) = scope else {
        table.notes.push("without plegscope nothing is told".to_owned());
        return Ok(table);
    };
    let lab = Lab::prepare(ledger, programs, 0, &mut |text: &str| println!("{text}")).await?;
    let client =
        KubeletLike::start(&lab.containerd.socket, &lab.run.join("client.jsonl"), Duration::from_secs(1))?;
    let (url, posted) = receiver()?;
    let (log, state, store) =
        (lab.run.join("exec.jsonl"), lab.run.join("watch-state"), lab.run.join("watch-incidents"));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let append = format!("exec cat >> {}", log.display());
    let args = [
        "watch",
        "--config",
        "none",
        "--json",
        "--umount-over",
        "2s",
        "--hold-off",
        "none",
        "--state-file",
        &text(&state),
        "--store",
        &text(&store),
        "--webhook",
        &url,
        "--exec-at-once",
        "1",
        "--exec",
        "/bin/sh",
        "-c",
        &append,
    ]
    .map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut tracer = Tracer::start(ledger, scope, &args, |_, _| {})?;
    table.notes.push(format!("plegscope said: {}", tracer.ready().await?.text));
    lab.disk.slow_down(ledger, RATE)?;
    let end = sys::monotonic() + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let (mut stalls, mut memory, mut problems, mut failures) = (Vec::new(), Vec::new(), 0, 0);
    for index in 0.. {
        if sys::monotonic() >= end {
            break;
        }
        let megabytes = MEGABYTES[index % MEGABYTES.len()];
        match stall(&lab, index, megabytes).await {
            Ok(stall) => stalls.extend(stall),
            // A pod of an hour that does not start is no reason to lose the hour.
            Err(error) => {
                table.notes.push(format!("stall {index} could not be brought about: {error:#}"));
                failures += 1;
                ensure!(failures <= MOST_FAILURES, "{failures} stalls could not be brought about: {error:#}");
            }
        }
        let pids = sys::pids_of_tree(tracer.pid());
        memory.push(pids.iter().map(|pid| look::kilobytes(*pid, "VmRSS")).sum::<u64>() as f64);
        let line = std::fs::read_to_string(&state).unwrap_or_default();
        problems += usize::from(!line.starts_with("OK "));
        if index % 20 == 0 {
            println!("{} stalls so far, {:.1} MB", stalls.len(), memory.last().unwrap_or(&0.0) / 1024.0);
        }
    }
    let cpu: u64 = sys::pids_of_tree(tracer.pid()).iter().map(|pid| look::cpu_time(*pid)).sum();
    let ran = sys::monotonic() - tracer.started;
    drop(client);
    let (exit, _, lines, messages) = tracer.quit().await?;
    ensure!(exit == Some(0), "plegscope ended with {exit:?}: {messages:?}");
    // The courier brings away what it has.
    tokio::time::sleep(Duration::from_secs(2)).await;

    let said: Vec<(u64, Value)> =
        lines.iter().filter_map(|line| Some((line.at, serde_json::from_str(&line.text).ok()?))).collect();
    let executed: Vec<Value> = std::fs::read_to_string(&log)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let posted = posted.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let kept = std::fs::read_dir(&store).map_or(0, Iterator::count);
    lab.finish().await;

    let mut late = Vec::new();
    let (mut lost, mut twice, mut ends_late) = (0, 0, 0);
    for stall in &stalls {
        table.notes.extend(why_late(stall, &said));
        let of = |event: &str| -> Vec<u64> {
            let is = |(at, alert): &&(u64, Value)| {
                alert["event"] == event
                    && alert["containers"].to_string().contains(&stall.container)
                    && *at >= stall.begin
                    && *at <= stall.end + 2 * SOON
            };
            said.iter().filter(is).map(|(at, _)| *at).collect()
        };
        let lasted = stall.end - stall.begin;
        let (crossed, ended) = (of("crossed"), of("ended"));
        let due = lasted >= THRESHOLD + EITHER;
        lost += usize::from(due && crossed.is_empty()) + usize::from(due && ended.is_empty());
        if due && ended.first().is_none_or(|at| *at > stall.end + SOON) {
            let after = ended.first().map_or("never".to_owned(), |at| sys::seconds(at - stall.end));
            table.notes.push(format!(
                "the end of {:.12}, which lasted {}, was told after: {after}",
                stall.container,
                sys::seconds(lasted)
            ));
        }
        twice += crossed.len().saturating_sub(1) + ended.len().saturating_sub(1);
        if lasted + EITHER < THRESHOLD && !crossed.is_empty() {
            twice += 1;
        }
        late.extend(
            crossed
                .first()
                .filter(|_| due)
                .map(|at| (at.saturating_sub(stall.begin + THRESHOLD)) as f64 / 1e6),
        );
        ends_late += usize::from(due && ended.first().is_some_and(|at| *at > stall.end + SOON));
    }
    let ids = |alerts: &[Value]| -> BTreeMap<String, usize> {
        let mut ids = BTreeMap::new();
        alerts
            .iter()
            .for_each(|alert| *ids.entry(format!("{} {}", alert["id"], alert["event"])).or_default() += 1);
        ids
    };
    let told = ids(&said.iter().map(|(_, alert)| alert.clone()).collect::<Vec<_>>());
    table.notes.push(format!(
        "{} stalls by the lab's clock (to {EVERY:?}), {} alerts on standard output, {} by the program, {} by the \
         receiver, {kept} incidents kept; the state was a problem {problems} times just after a stall",
        stalls.len(),
        said.len(),
        executed.len(),
        posted.len()
    ));
    table.notes.extend(messages.iter().map(|line| format!("it said: {}", line.text)));
    let latency = table.row("told after the crossing", &late, "ms");
    let p99 = percentile(&late, 0.99);
    table.row("the same, 99th percentile", &[p99], "ms");
    let quarter = (memory.len() / 4).max(1);
    let first = table.row(
        "resident memory of all processes, first quarter",
        &memory[..quarter.min(memory.len())],
        "kB",
    );
    let last = table.row("the same, last quarter", &memory[memory.len().saturating_sub(quarter)..], "kB");
    table.row("CPU of all processes", &[cpu as f64 * 100.0 / ran as f64], "% of a core");
    table.goal("told after the crossing, median", 50.0, latency.median, "ms");
    table.goal("told after the crossing, 99th percentile", 150.0, p99, "ms");
    table.goal("alerts lost", 0.0, lost as f64, "");
    table.goal("alerts that are one too many", 0.0, twice as f64, "");
    table.goal(
        "ends told later than 1.5 s",
        0.0,
        f64::from(u32::try_from(ends_late).unwrap_or(u32::MAX)),
        "",
    );
    table.goal("resident memory, last quarter over first", 1.05, last.median / first.median, "");
    let same = |other: &[Value]| if ids(other) == told { 0.0 } else { 1.0 };
    table.goal("differences between what was said and what the program got", 0.0, same(&executed), "");
    table.goal("differences between what was said and what the receiver got", 0.0, same(&posted), "");
    ensure!(!stalls.is_empty(), "no unmount blocked: the disk is not slow");
    Ok(table)
}

/// Where the time went of a crossing that was told late: how old what it tells of was by then.
fn why_late(stall: &Stall, said: &[(u64, Value)]) -> Option<String> {
    let is = |(_, alert): &&(u64, Value)| {
        alert["event"] == "crossed" && alert["containers"].to_string().contains(&stall.container)
    };
    let (told, alert) = said.iter().find(is)?;
    let crossing = stall.begin + THRESHOLD;
    let (after, as_of) = (told.saturating_sub(crossing), alert["at"].as_u64()?.saturating_sub(crossing));
    let due = stall.end - stall.begin >= THRESHOLD + EITHER;
    (due && after > LATE).then(|| {
        let (after, as_of) = (sys::seconds(after), sys::seconds(as_of));
        format!("the crossing of {:.12} was told after {after}, as of {as_of} after it", stall.container)
    })
}

fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1));
    sorted.get(at - 1).copied().unwrap_or(Spread::of(&[]).median)
}

/// A pod comes, writes, exits, and is removed once its unmount is over.
async fn stall(lab: &Lab<'_>, index: usize, megabytes: u64) -> Result<Option<Stall>> {
    let cgroup = Path::new(&lab.ledger.name);
    let name = format!("soak-{index}");
    let pod = pods::start(&lab.client, &name, &pods::script(megabytes), cgroup, &lab.run).await?;
    let shim = lab.containerd.shim_of(&pod.container)?;
    pod.tell("write")?;
    pod.wait_for("written", Duration::from_secs(120)).await?;
    let unmounts = Watch::start(shim);
    pod.tell("exit")?;
    let told = sys::monotonic();
    let over = || {
        let stays = unmounts.stays();
        // One that was too short for the lab's eye is none that blocked.
        let unseen = stays.is_empty() && sys::monotonic() - told > UNSEEN;
        let seen = !stays.is_empty()
            && stays.iter().all(|stay| stay.end.is_some_and(|end| sys::monotonic() > end + 500_000_000));
        unseen || seen
    };
    ensure!(sys::until(Duration::from_secs(120), over).await, "the unmount of {name} does not end");
    let long =
        |stay: &&crate::lab::unmounts::Stay| stay.end.is_some_and(|end| end - stay.begin >= 100_000_000);
    let stays = unmounts.stays();
    let longest = stays.iter().filter(long).max_by_key(|stay| stay.end.map(|end| end - stay.begin));
    let stall = longest
        .and_then(|stay| Some(Stall { container: pod.container.clone(), begin: stay.begin, end: stay.end? }));
    pods::remove(&lab.client, &pod).await;
    // What is told of the end comes before the next begins.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    Ok(stall)
}

/// A receiver on the loopback that answers every second request only, and what it got.
pub fn receiver() -> Result<(String, Arc<Mutex<Vec<Value>>>)> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listening on the loopback")?;
    let url = format!("http://{}/", listener.local_addr().context("the receiver's address")?);
    let got: Arc<Mutex<Vec<Value>>> = Arc::default();
    let theirs = Arc::clone(&got);
    std::thread::spawn(move || {
        for (index, stream) in listener.incoming().flatten().enumerate() {
            let mut reader = BufReader::new(&stream);
            let mut length = 0;
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
                    break;
                }
                let line = line.to_lowercase();
                length = line
                    .strip_prefix("content-length:")
                    .and_then(|n| n.trim().parse().ok())
                    .unwrap_or(length);
            }
            let mut body = vec![0; length];
            let whole = reader.read_exact(&mut body).is_ok();
            let takes = whole && index % 2 == 1;
            if let (true, Ok(alert)) = (takes, serde_json::from_slice(&body)) {
                theirs.lock().unwrap_or_else(PoisonError::into_inner).push(alert);
            }
            let status = if takes { "200 OK" } else { "503 Service Unavailable" };
            let _ = write!(&stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    Ok((url, got))
}
