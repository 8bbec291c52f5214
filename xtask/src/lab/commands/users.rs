//! What users do: run it without rights, with wrong options, into pipes that close or stall, kill it.

use super::{look, run};
use crate::lab::tracer::Tracer;
use crate::lab::verdict::Verdict;
use crate::lab::{Lab, sys};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command as StdCommand, Stdio};
use std::time::Duration;
use tokio::process::Command;

/// User and group `nobody`.
const NOBODY: u32 = 65534;
/// Longest that a run which can do nothing may take.
const LIMIT: Duration = Duration::from_secs(30);

/// As user nobody, and with what the command line does not know.
pub async fn without_rights(lab: &Lab<'_>, binary: &Path, verdict: &mut Verdict) -> Result<()> {
    // The build folder may be closed to others.
    let copy = lab.run.join("plegscope");
    fs::copy(binary, &copy).with_context(|| format!("copying to {}", copy.display()))?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).context("making it executable")?;
    for args in [&["live", "--plain"][..], &["watch"], &["live", "--plain", "--probes", "kernel"]] {
        let (code, _, said) =
            run(lab.ledger, Command::new(&copy).args(args).uid(NOBODY).gid(NOBODY).current_dir("/"), LIMIT)
                .await?;
        verdict.check(
            &format!("nobody: {}", args.join(" ")),
            "exit code 3 and the cure",
            format!("exit code {code:?}: {}", said.trim()),
            code == Some(3) && said.contains("sudo plegscope") && !said.contains("panicked"),
        );
    }
    for args in [&["doctor"][..], &["doctor", "--json"]] {
        let (code, out, said) =
            run(lab.ledger, Command::new(&copy).args(args).uid(NOBODY).gid(NOBODY).current_dir("/"), LIMIT)
                .await?;
        let honest =
            out.contains("cannot be read (not permitted)") && !out.contains("no containerd runs here");
        let whole = args.len() == 1 || serde_json::from_str::<Value>(&out).is_ok();
        verdict.check(
            &format!("nobody: {}", args.join(" ")),
            "exit code 3, what it can see, and that containerd may be there",
            format!("exit code {code:?}, {} lines {}", out.lines().count(), said.trim()),
            code == Some(3) && honest && whole && said.is_empty(),
        );
    }
    let mut command = Command::new(&copy);
    command
        .args(["live", "--plain", "--probes", "none", "--for", "1s"])
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/");
    let (code, _, said) = run(lab.ledger, &mut command, LIMIT).await?;
    verdict.check(
        "nobody: --probes none",
        "exit code 0, and that it cannot see containerd",
        format!("exit code {code:?}: {}", said.trim()),
        code == Some(0) && said.contains("no containerd is seen"),
    );
    for args in [&["live", "--no-such-option"][..], &["no-such-verb"], &["watch", "--umount-over", "soon"]] {
        let (code, ..) = run(lab.ledger, Command::new(binary).args(args), LIMIT).await?;
        verdict.check(&args.join(" "), "exit code 2", format!("exit code {code:?}"), code == Some(2));
    }
    for (probes, sites) in [("none", false), ("kernel", true)] {
        let mut command = Command::new(binary);
        command.args(["live", "--plain", "--for", "2s", "--probes", probes]);
        let (code, _, said) = run(lab.ledger, &mut command, LIMIT).await?;
        let none = said.contains("attached 0 probes");
        verdict.check(
            &format!("--probes {probes}"),
            "exit code 0, and our containerd is seen",
            format!("exit code {code:?}: {}", said.lines().next().unwrap_or_default()),
            code == Some(0) && none != sites && !said.contains("watching 0 containerd"),
        );
    }
    Ok(())
}

/// Readers that go away, and readers that do not read.
pub async fn pipes(lab: &Lab<'_>, binary: &Path, verdict: &mut Verdict) -> Result<()> {
    // Nobody reads from the start, neither output nor messages.
    for args in [&["doctor"][..], &["doctor", "--json"], &["live", "--plain"]] {
        let (read, write) = pipe()?;
        drop(read);
        let mut child = Command::new(binary)
            .args(args)
            .stdin(Stdio::null())
            .stdout(write.try_clone().context("duplicating a pipe")?)
            .stderr(write)
            .process_group(0)
            .spawn()
            .context("starting plegscope")?;
        lab.ledger.record_process(child.id().context("pid")?, Duration::from_secs(2))?;
        let ended = tokio::time::timeout(LIMIT, child.wait()).await;
        let code = ended.ok().and_then(Result::ok).and_then(|status| status.code());
        verdict.check(
            &format!("{} into a closed pipe", args.join(" ")),
            "ends with exit code 0",
            format!("{code:?}"),
            code == Some(0),
        );
    }
    Ok(())
}

/// `doctor` tells the plan and attaches nothing.
pub async fn doctor(lab: &Lab<'_>, binary: &Path, verdict: &mut Verdict) -> Result<()> {
    let mut child = StdCommand::new(binary)
        .args(["doctor", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting plegscope")?;
    let pid = child.id();
    lab.ledger.record_process(pid, Duration::from_secs(2))?;
    let mut out = child.stdout.take().context("standard output")?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    let mut links = std::collections::BTreeSet::new();
    let mut looks = 0;
    let ended = sys::wait_until(LIMIT, || {
        for process in sys::pids_of_tree(pid) {
            links.extend(look::links(process));
            looks += 1;
        }
        !matches!(child.try_wait(), Ok(None))
    });
    ensure!(ended, "doctor does not end within {LIMIT:?}");
    let code = child.wait().context("waiting for doctor")?.code();
    let text = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    let report: Value = serde_json::from_str(&text).context("doctor --json is not JSON")?;
    verdict.check(
        "doctor attaches nothing",
        format!("no BPF link in {looks} looks"),
        format!("{links:?}"),
        links.is_empty() && looks > 1,
    );
    let empty = Vec::new();
    let probes = report["survey"]["probes"].as_array().unwrap_or(&empty);
    let silent = probes
        .iter()
        .filter(|probe| probe["how"].is_null())
        .filter(|probe| {
            ["loss", "note"].iter().all(|field| probe[*field].as_str().unwrap_or_default().is_empty())
        })
        .count();
    let ours = report["survey"]["programs"].as_array().unwrap_or(&empty).iter().any(|program| {
        program["role"] == "Containerd"
            && program["pids"]
                .as_array()
                .is_some_and(|pids| pids.iter().any(|pid| *pid == lab.containerd.pid))
    });
    let findings = report["findings"].as_array().map_or(0, Vec::len);
    verdict.check(
        "doctor --json",
        "our containerd, all probes, a reason for each that is off",
        format!(
            "exit code {code:?}, {} probes, {silent} without a reason, {findings} findings",
            probes.len()
        ),
        ours && !probes.is_empty() && silent == 0 && code == Some(if findings == 0 { 0 } else { 4 }),
    );
    Ok(())
}

/// Killed with -9, it leaves nothing attached, and no pipe of its caller open.
pub async fn leaves_nothing(lab: &Lab<'_>, binary: &Path, verdict: &mut Verdict) -> Result<()> {
    let containerd = lab.containerd.pid;
    let alone = !look::other_tracers(&[]);
    let before = look::changed_bytes(containerd)?;
    // A pipe that the caller passes on by mistake, as `plegscope live | cat` passes on the terminal.
    let (read, write) = pipe()?;
    // SAFETY: takes a valid descriptor and a flag; lets the one child started below inherit it.
    unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETFD, 0) };
    let started = Tracer::start(lab.ledger, binary, &["live", "--plain"], |_, _| {});
    drop(write);
    let mut tracer = started?;
    tracer.ready().await?;
    let warden = look::warden(tracer.pid()).context("plegscope has no child")?;
    let links = look::links(warden);
    let during = look::changed_bytes(containerd)?;
    verdict.check(
        "probes in containerd",
        "its code differs from the file",
        format!("{} BPF links; {before} bytes before, {during} now", links.len()),
        !links.is_empty() && during > before || !alone,
    );
    let parent_holds = look::attached(tracer.pid());
    verdict.check(
        "the parent holds nothing of BPF",
        "",
        format!("{parent_holds:?} of {}", look::descriptors(tracer.pid()).len()),
        parent_holds.is_empty(),
    );
    let pipes: Vec<String> =
        look::descriptors(warden).into_values().filter(|target| target.starts_with("pipe:")).collect();
    verdict.check("the warden holds no pipe", "", format!("{pipes:?}"), pipes.is_empty());

    let (pid, begin) = (tracer.pid(), sys::monotonic());
    sys::signal(pid, libc::SIGKILL);
    // The pipe ends when the last who holds it is gone: that must not wait for the warden.
    let closed = tokio::task::spawn_blocking(move || {
        let mut file = fs::File::from(read);
        let _ = file.read(&mut [0; 1]);
        sys::monotonic()
    });
    let closed = closed.await.context("waiting for the pipe")? - begin;
    let gone = sys::until(Duration::from_secs(15), || {
        matches!(sys::state(warden), None | Some('Z')) && look::left(&links) == 0
    });
    let gone = gone.await;
    let took = sys::monotonic() - begin;
    verdict.check(
        "kill -9",
        "the caller's pipe closes, the warden goes, nothing stays attached",
        format!("pipe after {}, all gone after {}", sys::seconds(closed), sys::seconds(took)),
        gone && closed < 1_000_000_000,
    );
    let after = look::changed_bytes(containerd)?;
    verdict.check(
        "code of containerd afterwards",
        format!("{before} bytes differ"),
        format!("{after}{}", if alone { "" } else { " (other tracers run here: not judged)" }),
        after == before || !alone || look::other_tracers(&[]),
    );
    drop(tracer);
    let begin = sys::monotonic();
    let mut again = Tracer::start(lab.ledger, binary, &["live", "--plain"], |_, _| {})?;
    let mut beside = Tracer::start(lab.ledger, binary, &["watch"], |_, _| {})?;
    again.ready().await?;
    beside.ready().await?;
    let both = sys::monotonic() - begin;
    let (first, took_first, ..) = again.quit_by(libc::SIGTERM).await?;
    let (second, took_second, ..) = beside.quit().await?;
    verdict.check(
        "two more at the same time",
        "both attach, both end",
        format!("{}, exit codes {first:?} and {second:?}", sys::seconds(both)),
        first == Some(0) && second == Some(0),
    );
    verdict.ended(first, took_first, crate::lab::QUIT_WITHIN);
    verdict.ended(second, took_second, crate::lab::QUIT_WITHIN);
    let alive = sys::state(containerd).is_some_and(|state| state != 'Z');
    verdict.check("containerd", "lives", if alive { "lives" } else { "is dead" }, alive);
    Ok(())
}

/// Memory and CPU time with three pods and nothing to do.
pub async fn at_rest(live: &Tracer, verdict: &mut Verdict) -> Result<()> {
    /// Goal for both processes together, kB. They run the same program: what they share is there once.
    const MOST: u64 = 24 << 10;
    const MOST_AT_PEAK: u64 = 48 << 10;
    const TIME: Duration = Duration::from_secs(20);
    let pids = [live.pid(), look::warden(live.pid()).context("plegscope has no child")?];
    tokio::time::sleep(Duration::from_secs(3)).await;
    let cpu = || pids.map(look::cpu_time);
    let (before, begin) = (cpu(), sys::monotonic());
    tokio::time::sleep(TIME).await;
    let (after, took) = (cpu(), sys::monotonic() - begin);
    let percent = |at: usize| (after[at] - before[at]) as f64 * 100.0 / took as f64;
    let rss = pids.map(|pid| look::kilobytes(pid, "VmRSS"));
    let together: u64 = pids.iter().map(|pid| look::share_of_memory(*pid)).sum();
    let peak = pids.map(|pid| look::kilobytes(pid, "VmHWM"));
    let kinds = pids.map(|pid| {
        ["RssAnon", "RssFile", "RssShmem"]
            .map(|field| look::kilobytes(pid, field))
            .map(|kb| kb.to_string())
            .join("/")
    });
    verdict.check(
        "memory",
        format!("at most {MOST} kB, at the peak {MOST_AT_PEAK} kB"),
        format!(
            "{together} kB (resident {} + {}; anonymous/file/shared {kinds:?}), peak {}",
            rss[0],
            rss[1],
            peak[0] + peak[1]
        ),
        (1..=MOST).contains(&together) && peak[0] + peak[1] <= MOST_AT_PEAK,
    );
    // Other work on the machine makes CPU time vary: it is told, and not judged here.
    verdict.note(
        "CPU time",
        "at most 0.2 % of a core when idle",
        format!("{:.2} % + {:.2} %", percent(0), percent(1)),
    );
    Ok(())
}

/// A pipe whose ends are not passed on.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` takes two descriptors, which nobody else owns.
    unsafe {
        ensure!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) == 0, std::io::Error::last_os_error());
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}
