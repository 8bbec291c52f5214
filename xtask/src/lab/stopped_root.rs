//! The root disk of the node stops completely, with nothing of it left in memory but what is in use: plegscope lies there, and
//! so do containerd and all that it writes. Only in a machine of its own, whose root disk QEMU can stop.

use super::commands::look;
use super::containerd::Programs;
use super::kubelet_like::KubeletLike;
use super::stories::checks::said::list;
use super::tracer::Tracer;
use super::verdict::{self, Verdict};
use super::{Lab, image, machine, run_interruptible, sys};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// Name of the root disk.
pub const ROOT: &str = "root";
/// Where plegscope is put, on the root disk.
const HOME: &str = "/usr/local/bin/plegscope";
/// A large file of the root disk that nobody has read: who reads it now waits for the disk.
const NEVER_READ: &str = "/usr/bin/containerd-stress";
/// What the victim writes, MB, and the rate of the disk below it, bytes per second.
const MEGABYTES: u64 = 24;
const RATE: u64 = 2_000_000;
/// How long the root disk is looked at while it is stopped.
const STOPPED: Duration = Duration::from_secs(20);
/// Longest pause between two frames while something is stuck, ns.
const PAUSE: u64 = 5_000_000_000;
/// How long `now` may take, its start included.
const NOW: Duration = Duration::from_secs(40);
/// How long a process may live after `kill -9`, ns.
const DIES_WITHIN: u64 = 2_000_000_000;

/// Plays it.
pub fn play(programs: &Programs, binary: &Path) -> Result<Verdict> {
    ensure!(
        machine::is_around(),
        "the root disk of this very machine is not stopped: cargo xtask vm --story stopped-root"
    );
    run_interruptible(async |ledger| {
        let begin = sys::monotonic();
        let mut say =
            move |text: &str| println!("{:>6.1} s  {text}", (sys::monotonic() - begin) as f64 / 1e9);
        let lab = Lab::prepare(ledger, programs.clone(), MEGABYTES, &mut say).await?;
        let home = install(binary)?;
        let every = Duration::from_secs(5);
        let client = KubeletLike::start(&lab.containerd.socket, &lab.run.join("client.jsonl"), every)?;
        let mut live = Tracer::start(ledger, &home, &["live", "--json"], |_, _| {})?;
        say(&live.ready().await?.text);
        let file = lab.run.join("stopped.capture");
        let output = file.to_string_lossy().into_owned();
        let mut capture = Tracer::start(ledger, &home, &["capture", "--output", &output], |_, _| {})?;
        say(&capture.ready().await?.text);

        lab.disk.slow_down(ledger, RATE)?;
        lab.victim().tell("write")?;
        lab.victim().wait_for("written", Duration::from_secs(120)).await?;
        machine::free_at_the_end(ledger, ROOT)?;
        sys::run("sync", &[])?;
        machine::throttle(ROOT, 1, 1)?;
        fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the caches")?;
        // From here to the end of the stop nothing may be started from the root disk but what is being tested.
        let stopped = sys::monotonic();
        let reader = std::thread::spawn(|| fs::read(NEVER_READ).map(|bytes| bytes.len()));
        say("the root disk is stopped, its caches are dropped");
        lab.victim().tell("exit")?;
        tokio::time::sleep(STOPPED / 2).await;
        let size = |file: &Path| fs::metadata(file).map_or(0, |about| about.len());
        let half = size(&file);
        let now = look_now(home.clone());
        tokio::time::sleep(STOPPED / 2).await;
        let looked = sys::until(NOW, || now.is_finished()).await;
        if !looked {
            waiting().iter().for_each(|line| say(line));
        }
        let took = sys::monotonic() - stopped;
        let whole = size(&file);
        let mut verdict = Verdict::default();
        verdict.check(
            "the root disk does not answer",
            format!("a read of {NEVER_READ} lasts for all of {}", sys::seconds(took)),
            if reader.is_finished() { "it has ended" } else { "it waits" },
            !reader.is_finished(),
        );
        frames(&live, stopped, &lab, &mut verdict);
        verdict.check(
            "capture, to a tmpfs",
            "grows all the time",
            format!("{half} bytes, then {whole}"),
            whole > half && half > 0,
        );
        say("kill -9");
        let (pid, warden) = (live.pid(), look::warden(live.pid()));
        let killed = sys::monotonic();
        sys::signal(pid, libc::SIGKILL);
        let gone = |pid: u32| matches!(sys::state(pid), None | Some('Z'));
        let died = sys::until(Duration::from_secs(30), || gone(pid)).await;
        let after = sys::monotonic() - killed;
        verdict.check(
            "kill -9",
            format!("gone within {}", sys::seconds(DIES_WITHIN)),
            if died { format!("gone after {}", sys::seconds(after)) } else { "it stays".to_owned() },
            died && after <= DIES_WITHIN,
        );
        if let Some(warden) = warden {
            let died = sys::until(Duration::from_secs(30), || gone(warden)).await;
            let after = sys::seconds(sys::monotonic() - killed);
            let said = if died { format!("gone after {after}") } else { format!("there after {after}") };
            verdict.check("its warden", "goes by itself", said, died);
        }
        verdict.check("all that", "while the root disk was stopped", "", !reader.is_finished());
        machine::throttle(ROOT, 0, 0)?;
        say("the root disk answers again");
        let back = sys::until(Duration::from_secs(60), || reader.is_finished()).await;
        verdict.check("afterwards", "the read ends", if back { "it has" } else { "it has not" }, back);
        told(now, looked, image::is_static(&home), &mut verdict)?;
        let (exit, took, ..) = capture.quit().await?;
        verdict.ended(exit, took, 10 * super::QUIT_WITHIN);
        let replayed = sys::run(&home.to_string_lossy(), &["replay", "--json", &output])?;
        verdict.check(
            "the capture, played",
            "frames",
            format!("{} lines", replayed.lines().count()),
            replayed.lines().count() > 10,
        );
        drop(client);
        lab.disk.speed_up()?;
        lab.finish().await;
        Ok(verdict)
    })
}

/// Puts plegscope on the root disk.
fn install(binary: &Path) -> Result<PathBuf> {
    let home = PathBuf::from(HOME);
    fs::create_dir_all(home.parent().unwrap_or(&home)).context("creating its folder")?;
    fs::copy(binary, &home).with_context(|| format!("copying to {HOME}"))?;
    Ok(home)
}

/// Runs `now` in a thread of its own: its very start may wait for the disk.
fn look_now(home: PathBuf) -> JoinHandle<std::io::Result<Output>> {
    std::thread::spawn(move || {
        Command::new(home).args(["now", "--json", "--within", "10s"]).stdin(Stdio::null()).output()
    })
}

/// Threads that wait for a disk, each with what the kernel does for it: why something does not answer.
fn waiting() -> Vec<String> {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let mut lines = Vec::new();
    for pid in sys::pids() {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let stat = read(&task.path().join("stat"));
            if stat.rsplit_once(')').is_none_or(|(_, rest)| !rest.trim_start().starts_with('D')) {
                continue;
            }
            let stack = read(&task.path().join("stack"));
            let functions = stack.lines().filter_map(|line| line.split_once("] ")?.1.split('+').next());
            let functions = functions.take(16).collect::<Vec<_>>().join(" < ");
            lines.push(format!("{} ({pid}): {functions}", read(&task.path().join("comm")).trim()));
        }
    }
    lines
}

/// What `now` has told, and whether in time: it must when nothing else is needed to start it. A program that is linked to shared
/// libraries waits for its loader, before it has said a word.
fn told(
    now: JoinHandle<std::io::Result<Output>>,
    looked: bool,
    is_static: bool,
    verdict: &mut Verdict,
) -> Result<()> {
    let output =
        now.join().map_err(|_| anyhow::anyhow!("the thread of `now` died"))?.context("starting `now`")?;
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let goroutines = said.to_string().matches("\"goid\"").count();
    let right = said.is_object() && goroutines > 0;
    let text = format!("{}, {} bytes, {goroutines} goroutines named", output.status, output.stdout.len());
    let limit = sys::seconds(NOW.as_nanos() as u64);
    match (is_static, looked) {
        (true, _) => verdict.check("now", format!("an answer within {limit}"), text, right && looked),
        (false, true) => verdict.check("now", "an answer", text, right),
        (false, false) => {
            verdict.note(
                "now, linked to shared libraries",
                "its loader lies on the stopped disk",
                format!("not within {limit}"),
            );
            verdict.check("now, once the disk answers", "an answer", text, right);
        }
    }
    Ok(())
}

/// Frames of `live` since the disk stopped: they go on, and tell of this node.
fn frames(live: &Tracer, stopped: u64, lab: &Lab<'_>, verdict: &mut Verdict) {
    let now = sys::monotonic();
    let frames = verdict::frames(&live.lines());
    let since: Vec<_> = frames.iter().filter(|seen| seen.at >= stopped).collect();
    let stuck = since.iter().find(|seen| list(&seen.frame, "diagnoses").next().is_some());
    let Some(first) = stuck else {
        verdict.check("live", "shows what is stuck", format!("nothing in {} frames", since.len()), false);
        return;
    };
    let times: Vec<u64> =
        since.iter().map(|seen| seen.at).filter(|at| *at >= first.at).chain([now]).collect();
    let pause = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(u64::MAX);
    let own: Vec<String> = lab.pods.iter().flat_map(super::pods::Pod::ids).collect();
    let about = since.iter().rev().find_map(|seen| {
        let text = seen.frame["diagnoses"].to_string();
        own.iter()
            .any(|id| text.contains(id))
            .then(|| list(&seen.frame, "diagnoses").next().map(verdict::words).unwrap_or_default())
    });
    verdict.check(
        "live",
        format!("frames go on, at most {} apart", sys::seconds(PAUSE)),
        format!("{} frames, at most {} apart", times.len() - 1, sys::seconds(pause)),
        pause <= PAUSE,
    );
    verdict.check(
        "what it shows",
        "a chain of this node",
        about.clone().unwrap_or_else(|| "none".to_owned()),
        about.is_some(),
    );
}
