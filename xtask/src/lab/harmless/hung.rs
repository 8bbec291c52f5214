//! A containerd runs from a file system that does not answer any more. plegscope cannot read its program; it says so,
//! looks at the rest, and can be ended and killed like any other program. What hangs is the warden.

use super::hanging::Hanging;
use super::{REASONS, pages, reasons};
use crate::lab::cleanup::{Ledger, Leftover};
use crate::lab::commands::look;
use crate::lab::containerd::Programs;
use crate::lab::tracer::Tracer;
use crate::lab::verdict::Verdict;
use crate::lab::{Lab, sys};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Longest that `doctor` may take.
const DOCTOR: Duration = Duration::from_secs(45);
/// Longest until the rest is attached.
const REST: Duration = Duration::from_secs(30);
/// Plays the part.
pub async fn play(
    ledger: &Ledger,
    programs: Programs,
    binary: &Path,
    say: &mut impl FnMut(&str),
) -> Result<Verdict> {
    let program = programs.containerd.clone();
    let lab = Lab::prepare(ledger, programs, 0, say).await?;
    let mut verdict = Verdict::default();
    let hanging = Hanging::mount(ledger, &program, &lab.run.join("hung"))?;
    let target = second_containerd(ledger, &lab, &hanging).await?;
    pages::evict(&hanging.program)?;
    let resident = pages::resident(&hanging.program)?;
    let out = resident.iter().filter(|page| !**page).count();
    ensure!(out > 100, "the pages of {} stay in memory", hanging.program.display());
    say(&format!(
        "a second containerd, pid {target}, runs from a FUSE file system; {out} of its {} pages are out",
        resident.len()
    ));
    hanging.hang();
    let reader = Command::new("dd")
        .arg(format!("if={}", hanging.program.display()))
        .args(["of=/dev/null", "bs=64k"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("starting dd")?
        .id();
    ledger.record_process(reader, Duration::ZERO)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    sys::signal(reader, libc::SIGKILL);
    tokio::time::sleep(Duration::from_millis(300)).await;
    verdict.check(
        "control: a reader of that file that is killed with -9",
        "waits in uninterruptible sleep",
        format!("state {:?}, {} requests wait", sys::state(reader), hanging.waiting()),
        sys::state(reader) == Some('D'),
    );
    say("the file system does not answer any more");

    let mut wardens = Vec::new();
    for kill in [false, true] {
        let begin = sys::monotonic();
        let mut tracer = Tracer::start(ledger, binary, &["live", "--plain", "--verbose"], |_, _| {})?;
        let pid = tracer.pid();
        let ready = tokio::time::timeout(REST, tracer.ready()).await.ok().and_then(Result::ok);
        let said = ready.as_ref().map_or("nothing is attached".to_owned(), |line| line.text.clone());
        let warden = look::warden(pid).context("plegscope has no child")?;
        let probed = !look::changes(lab.containerd.pid)?.is_empty();
        let took = ready.as_ref().map_or(0, |line| line.at - begin);
        if !kill {
            verdict.check(
                "the rest",
                format!("is probed within {REST:?}"),
                format!("{said}; after {}", sys::seconds(took)),
                probed && ready.is_some(),
            );
            // Blind spots are told within a scan or two.
            let told = || !reasons(&tracer.lines(), &tracer.messages()).is_empty();
            sys::until(Duration::from_secs(15), told).await;
            let told = reasons(&tracer.lines(), &tracer.messages());
            verdict.check(
                "what cannot be read is said",
                "with the reason",
                told.join("; "),
                !told.is_empty(),
            );
        }
        let links = look::links(warden);
        let begin = sys::monotonic();
        if kill {
            sys::signal(pid, libc::SIGKILL);
            let dead = || matches!(sys::state(pid), None | Some('Z'));
            let dead = sys::until(Duration::from_secs(5), dead).await;
            let took = sys::monotonic() - begin;
            verdict.check(
                "kill -9",
                "dies at once",
                format!("state {:?} after {}", sys::state(pid), sys::seconds(took)),
                dead && took < 300_000_000,
            );
        } else {
            let (code, took, ..) = tracer.quit().await?;
            verdict.ended(code, took, crate::lab::QUIT_WITHIN);
        }
        let detached = sys::until(Duration::from_secs(20), || look::left(&links) == 0).await;
        let took = sys::monotonic() - begin;
        verdict.check(
            &format!("its {} links then", links.len()),
            "all gone, although a thread of the warden hangs",
            format!(
                "{} are left after {}; the warden is in state {}",
                look::left(&links),
                sys::seconds(took),
                sys::state(warden).unwrap_or('-')
            ),
            detached && !links.is_empty(),
        );
        wardens.push((warden, links));
    }
    doctor(ledger, binary, &mut verdict).await?;

    hanging.abort();
    for (warden, links) in &wardens {
        let over = super::gone(*warden, links).await;
        verdict.check(
            "after the file system is aborted",
            "the warden is gone, nothing stays attached",
            over.map_or(format!("state {:?}", sys::state(*warden)), |ns| {
                format!("gone after {}", sys::seconds(ns))
            }),
            over.is_some(),
        );
    }
    let changes = look::changes(lab.containerd.pid)?.len();
    verdict.check(
        "code of the other containerd",
        "equals its file",
        format!("{changes} bytes differ"),
        changes == 0,
    );
    drop(hanging);
    lab.finish().await;
    Ok(verdict)
}

/// A daemon without containers that runs from the file system.
async fn second_containerd(ledger: &Ledger, lab: &Lab<'_>, hanging: &Hanging) -> Result<u32> {
    let home = lab.run.join("second");
    fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
    let socket = home.join("containerd.sock");
    let config = home.join("config.toml");
    let text = format!(
        "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
         \"io.containerd.nri.v1.nri\"]\n[ttrpc]\n  address = \"{0}/ttrpc.sock\"\n",
        home.display()
    );
    fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
    ledger.record(Leftover::ProcessesWith { argument: socket.clone() })?;
    let child = Command::new(&hanging.program)
        .arg("--config")
        .arg(&config)
        .arg("--address")
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("starting a second containerd")?;
    ledger.record_process(child.id(), Duration::ZERO)?;
    let up = sys::until(Duration::from_secs(20), || socket.exists()).await;
    ensure!(up && sys::state(child.id()) != Some('Z'), "the second containerd does not come up");
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(child.id())
}

/// `doctor` in the same situation comes back and says it too.
async fn doctor(ledger: &Ledger, binary: &Path, verdict: &mut Verdict) -> Result<()> {
    let begin = sys::monotonic();
    let mut child = tokio::process::Command::new(binary)
        .arg("doctor")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("starting plegscope")?;
    let pid = child.id().context("plegscope ended at once")?;
    ledger.record_process(pid, Duration::from_secs(2))?;
    let mut out = child.stdout.take().context("standard output")?;
    let reading = tokio::spawn(async move {
        let mut text = String::new();
        let _ = tokio::io::AsyncReadExt::read_to_string(&mut out, &mut text).await;
        text
    });
    let status = tokio::time::timeout(DOCTOR, child.wait()).await;
    let took = sys::monotonic() - begin;
    if status.is_err() {
        sys::signal(pid, libc::SIGKILL);
    }
    let text = tokio::time::timeout(Duration::from_secs(2), reading).await;
    let text = text.ok().and_then(Result::ok).unwrap_or_default();
    let line = text.lines().find(|line| REASONS.iter().any(|word| line.contains(word))).unwrap_or_default();
    let code = status.ok().and_then(Result::ok).and_then(|status| status.code());
    verdict.check(
        "doctor",
        format!("comes back within {DOCTOR:?} and says why"),
        format!("exit code {code:?} after {}: {}", sys::seconds(took), line.trim()),
        code.is_some() && !line.is_empty(),
    );
    Ok(())
}
