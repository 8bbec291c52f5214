//! What happens in the middle of a stall: plegscopes are told to end or killed, nobody reads, a shim dies.

use super::{look, shows, users};
use crate::lab::cleanup::Ledger;
use crate::lab::story::{Script, Truth};
use crate::lab::strace::Strace;
use crate::lab::tracer::{Line, Tracer};
use crate::lab::unmounts::Watch;
use crate::lab::verdict::Verdict;
use crate::lab::{self, Lab, sys};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const SECOND: u64 = 1_000_000_000;
/// What is left of a shim that was killed must be forgotten within this time.
const PURGED: u64 = 2 * SECOND;
/// How late the lab's sampler, which looks every 5 ms, may see an unmount on a busy machine.
const SEEN_WITHIN: u64 = SECOND / 20;

/// Plays the slow disk, with two watchers and some plegscopes that end in the middle of it.
pub async fn while_stuck(
    ledger: &Ledger,
    lab: &Lab<'_>,
    binary: &Path,
    script: &Script,
    verdict: &mut Verdict,
    say: &mut impl FnMut(&str),
) -> Result<Truth> {
    let quiet = |_: &str, _| {};
    let mut text = Tracer::start(ledger, binary, &["watch", "--umount-over", "2s"], quiet)?;
    let mut json = Tracer::start(ledger, binary, &["watch", "--umount-over", "2s", "--json"], quiet)?;
    text.ready().await?;
    json.ready().await?;
    let middle = async {
        let shim = lab.containerd.shim_of(&lab.victim().container)?;
        let unmounts = Watch::start(shim);
        let stuck = || {
            let old = |begin: u64| sys::monotonic().saturating_sub(begin) > 4 * SECOND;
            unmounts.stays().iter().any(|stay| stay.end.is_none() && old(stay.begin))
        };
        // They start before the stall, since the programs' pages need not be in memory later.
        let mut ending = Vec::new();
        for _ in 0..4 {
            let mut tracer = Tracer::start(ledger, binary, &["live", "--json"], quiet)?;
            tracer.ready().await?;
            ending.push(tracer);
        }
        let (unread, write) = users::pipe()?;
        // SAFETY: takes a valid descriptor and a size; a small pipe is full at once.
        unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
        let mut stalled = tokio::process::Command::new(binary)
            .args(["live", "--json"])
            .stdin(Stdio::null())
            .stdout(write.try_clone().context("duplicating a pipe")?)
            .stderr(write)
            .process_group(0)
            .spawn()
            .context("starting plegscope")?;
        let stalled_pid = stalled.id().context("plegscope ended at once")?;
        ledger.record_process(stalled_pid, Duration::from_secs(2))?;
        ensure!(sys::until(Duration::from_secs(120), stuck).await, "the unmount does not hang");

        let mut verdict = Verdict::default();
        for (signal, name) in [(libc::SIGINT, "SIGINT"), (libc::SIGTERM, "SIGTERM"), (libc::SIGHUP, "SIGHUP")]
        {
            let Some(tracer) = ending.pop() else { continue };
            let (exit, took, ..) = tracer.quit_by(signal).await?;
            verdict.check(
                &format!("{name} in the stall"),
                "exit code 0 within 300 ms",
                format!("exit code {exit:?} after {}", sys::seconds(took)),
                exit == Some(0) && took <= lab::QUIT_WITHIN && stuck(),
            );
        }
        if let Some(killed) = ending.pop() {
            let warden = look::warden(killed.pid()).context("plegscope has no child")?;
            let links = look::links(warden);
            let begin = sys::monotonic();
            sys::signal(killed.pid(), libc::SIGKILL);
            let gone = || matches!(sys::state(warden), None | Some('Z')) && look::left(&links) == 0;
            let gone = sys::until(Duration::from_secs(10), gone).await;
            let took = sys::monotonic() - begin;
            verdict.check(
                "kill -9 in the stall",
                "the warden goes, nothing stays attached",
                format!("{} links gone after {}", links.len(), sys::seconds(took)),
                gone && !links.is_empty(),
            );
        }
        let warden = look::warden(stalled_pid).context("plegscope has no child")?;
        let (cpu, begin) = (look::cpu_time(warden), sys::monotonic());
        sys::until(Duration::from_secs(5), || look::cpu_time(warden) > cpu).await;
        let works = look::cpu_time(warden) > cpu;
        let memory = look::kilobytes(warden, "VmRSS");
        let waited = sys::monotonic() - begin;
        let begin = sys::monotonic();
        sys::signal(stalled_pid, libc::SIGINT);
        let status = tokio::time::timeout(Duration::from_secs(10), stalled.wait()).await;
        let took = sys::monotonic() - begin;
        let code = status.ok().and_then(Result::ok).and_then(|status| status.code());
        drop(unread);
        verdict.check(
            "a reader that does not read",
            "the warden goes on; exit code 0 within 300 ms",
            format!(
                "works after {}, {memory} kB; exit code {code:?} after {}",
                sys::seconds(waited),
                sys::seconds(took)
            ),
            works && code == Some(0) && took <= lab::QUIT_WITHIN,
        );
        Ok::<Verdict, anyhow::Error>(verdict)
    };
    let (truth, middle) = tokio::join!(lab.play(script, say), middle);
    let truth = truth?;
    verdict.0.extend(middle?.0);
    let lines = json.quit().await?.2;
    watched(&truth, &text.quit().await?.2, &lines, verdict);
    Ok(truth)
}

/// One line when the unmount has lasted two seconds, while it still lasts, one at its end; both ways of output.
fn watched(truth: &Truth, text: &[Line], json: &[Line], verdict: &mut Verdict) {
    let Some((begin, end)) = truth.blocked_unmount() else {
        verdict.check("the unmount hung", "", "it did not", false);
        return;
    };
    let incidents: Vec<(u64, Value)> = json
        .iter()
        .filter_map(|line| Some((line.at, serde_json::from_str::<Value>(&line.text).ok()?)))
        .filter(|(_, incident)| incident["containers"].to_string().contains(&truth.container))
        .collect();
    let of = |change: &str| incidents.iter().filter(|(_, i)| i["change"] == change).collect::<Vec<_>>();
    let (crossed, ended) = (of("Crossed"), of("Ended"));
    let late = |at: u64| format!("{} after the unmount began", sys::seconds(at.saturating_sub(begin)));
    // The lab has seen the unmount when it next looked, which is after it began.
    let in_time = |at: u64| (begin + 2 * SECOND - SEEN_WITHIN..=begin + 3 * SECOND).contains(&at) && at < end;
    verdict.check(
        "watch --json: crossed",
        "once, within 1 s after 2 s",
        crossed
            .iter()
            .map(|(at, i)| format!("{} ({})", late(*at), i["crossed_by"]))
            .collect::<Vec<_>>()
            .join(", "),
        matches!(crossed[..], [(at, _)] if in_time(*at)),
    );
    let lasted = |i: &Value| Some(i["ended"].as_u64()?.saturating_sub(i["since"].as_u64()?));
    verdict.check("watch --json: ended", "once", format!("{} times", ended.len()), ended.len() == 1);
    verdict.duration("watch --json: how long", Some(end - begin), ended.first().and_then(|(_, i)| lasted(i)));
    // An id ends in the time of the begin, which each plegscope measures by itself.
    let id = |i: &Value| Some(i["id"].as_str()?.rsplit_once('-')?.0.to_owned());
    let ids: Vec<String> = incidents.iter().filter_map(|(_, i)| id(i)).collect();
    let of = |word: &str| {
        text.iter()
            .filter(|line| line.text.contains(word) && ids.iter().any(|id| line.text.contains(id.as_str())))
            .collect::<Vec<_>>()
    };
    let (crossed, ended) = (of(" CROSSED "), of(" ENDED "));
    verdict.check(
        "watch: crossed",
        "once, within 1 s after 2 s",
        if crossed.is_empty() {
            format!("not among {:?}", text.iter().map(|line| &line.text).collect::<Vec<_>>())
        } else {
            crossed
                .iter()
                .map(|line| format!("{}: {}", late(line.at), line.text))
                .collect::<Vec<_>>()
                .join(", ")
        },
        matches!(crossed[..], [line] if in_time(line.at)),
    );
    verdict.check(
        "watch: ended",
        format!("once, after {}", sys::seconds(end - begin)),
        ended.iter().map(|line| line.text.clone()).collect::<Vec<_>>().join(", "),
        matches!(ended[..], [line] if line.at >= end),
    );
}

/// A shim dies by -9 while its unmount hangs: what it was doing is forgotten. Before that, stopped processes.
pub async fn shim(ledger: &Ledger, lab: &Lab<'_>, live: &Tracer, verdict: &mut Verdict) -> Result<()> {
    let pod = &lab.pods[1];
    let shim = lab.containerd.shim_of(&pod.container)?;
    let strace = Strace::attach(ledger, shim, Duration::from_secs(20), &lab.run).await?;
    pod.tell("write")?;
    pod.wait_for("written", Duration::from_secs(30)).await?;
    pod.tell("exit")?;
    let shown = || shows(&live.lines(), &pod.container);
    let came = sys::until(Duration::from_secs(20), shown).await;
    verdict.check("a stall of the next shim", "is shown", if came { "yes" } else { "no" }, came);
    sys::signal(shim, libc::SIGKILL);
    strace.kill();
    // A leader is a zombie as soon as it has left its threads; the process is over when they are gone too.
    let threads = || std::fs::read_dir(format!("/proc/{shim}/task")).map_or(0, Iterator::count);
    let dead = || matches!(sys::state(shim), None | Some('Z')) && threads() <= 1;
    ensure!(
        sys::until(Duration::from_secs(10), dead).await,
        "the shim does not die (state {:?}, {} threads)",
        sys::state(shim),
        threads()
    );
    let begin = sys::monotonic();
    let phantom = |line: &Line| {
        let frame: Value = serde_json::from_str(&line.text).unwrap_or_default();
        let all = frame["in_flight"].as_array().cloned().unwrap_or_default();
        all.into_iter().any(|one| one["operation"]["actor"]["pid"] == shim)
    };
    let chain = |line: &Line| shows(std::slice::from_ref(line), &pod.container);
    let since = || live.lines().into_iter().filter(|line| line.at > begin).collect::<Vec<_>>();
    let purged = || since().last().is_some_and(|line| !phantom(line) && !chain(line));
    let over = sys::until(Duration::from_secs(15), purged).await;
    let lines = since();
    let until = |shown: &dyn Fn(&Line) -> bool| {
        let clean = lines.iter().rposition(shown).map_or(0, |last| last + 1);
        lines.get(clean).map_or(u64::MAX, |line| line.at - begin)
    };
    // containerd's own pause before it tries the exit again is no phantom.
    let blocked = |line: &Line| {
        let frame: Value = serde_json::from_str(&line.text).unwrap_or_default();
        let all = frame["diagnoses"].as_array().cloned().unwrap_or_default();
        all.iter()
            .any(|one| one.to_string().contains(&pod.container) && one["ends_in"]["ExitRetry"].is_null())
    };
    let (operations, drawn, retried) = (until(&phantom), until(&blocked), until(&chain));
    verdict.check(
        "its shim is killed",
        "the chain ends within 2 s, nothing of the shim is left",
        if over {
            let (drawn, operations) = (sys::seconds(drawn), sys::seconds(operations));
            let retried = sys::seconds(retried);
            format!(
                "the chain after {drawn}, what it did after {operations}, the exit handled after {retried}"
            )
        } else {
            format!("still there after {}", sys::seconds(sys::monotonic() - begin))
        },
        over && operations.max(drawn) <= PURGED,
    );
    Ok(())
}

/// A plegscope started while containerd is stopped attaches and ends like any other.
pub async fn stopped(ledger: &Ledger, lab: &Lab<'_>, binary: &Path, verdict: &mut Verdict) -> Result<()> {
    let pid = lab.containerd.pid;
    sys::signal(pid, libc::SIGSTOP);
    let tried = async {
        let mut tracer = Tracer::start(ledger, binary, &["live", "--plain"], |_, _| {})?;
        let ready = tracer.ready().await?;
        let took = ready.at - tracer.started;
        let (exit, quit, ..) = tracer.quit().await?;
        Ok::<_, anyhow::Error>((took, exit, quit))
    };
    let tried = tried.await;
    sys::signal(pid, libc::SIGCONT);
    let (took, exit, quit) = tried?;
    verdict.check(
        "containerd is stopped",
        "attaches, ends with exit code 0 within 300 ms",
        format!("attached after {}, exit code {exit:?} after {}", sys::seconds(took), sys::seconds(quit)),
        exit == Some(0) && quit <= lab::QUIT_WITHIN,
    );
    let answers = lab.client.call::<_, crate::lab::cri::ListContainersResponse>(
        "ListContainers",
        crate::lab::cri::Empty {},
        crate::lab::cri::SHORT,
    );
    let answers = answers.await;
    verdict.check("containerd goes on", "answers", format!("{:?}", answers.as_ref().err()), answers.is_ok());
    Ok(())
}
