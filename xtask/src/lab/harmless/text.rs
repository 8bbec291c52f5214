//! The code of containerd, the shims and the kubelet, read from their memory, equals their files before and after
//! plegscope, however it ends; meanwhile it differs at the sites that the kernel lists, by one breakpoint each.

use super::gone;
use crate::bench::bpf;
use crate::lab::cleanup::Ledger;
use crate::lab::commands::look;
use crate::lab::containerd::Programs;
use crate::lab::story::{Block, Script};
use crate::lab::tracer::Tracer;
use crate::lab::verdict::Verdict;
use crate::lab::{Lab, pods, sys};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// The breakpoint instruction of x86.
const BREAKPOINT: u8 = 0xcc;

/// Plegscopes that end while they attach.
const EARLY: usize = 4;

/// How a plegscope ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Interrupt,
    KillParent,
    KillWarden,
    /// As a container or a service is ended: what has not gone by itself is killed.
    InterruptAndKill,
}

/// Plays the part.
pub async fn play(
    ledger: &Ledger,
    programs: Programs,
    kubelet: Option<&Path>,
    binary: &Path,
    say: &mut impl FnMut(&str),
) -> Result<Verdict> {
    let script = Script {
        block: Block::None,
        stall: Duration::ZERO,
        rate: 0,
        update_every: Duration::from_secs(2),
        calm: Duration::ZERO,
    };
    let lab = match kubelet {
        Some(kubelet) => Lab::prepare_with_kubelet(ledger, programs, kubelet, &script, say).await?,
        None => Lab::prepare(ledger, programs, 0, say).await?,
    };
    let mut verdict = Verdict::default();
    if kubelet.is_none() {
        verdict.note("a kubelet", "", "none is built here: containerd and shims only");
    }
    say("the code of every target, by plegscopes that end in every way");
    if look::other_tracers(&[]) {
        verdict.check("no other plegscope runs", "", "one does, and probes the same programs", false);
    }
    same("code before", &lab, &mut verdict)?;
    for probes in ["none", "kernel"] {
        let mut tracer = Tracer::start(ledger, binary, &["live", "--plain", "--probes", probes], |_, _| {})?;
        tracer.ready().await?;
        let warden = look::warden(tracer.pid()).context("plegscope has no child")?;
        let sites: usize = targets(&lab).iter().map(|pid| sites(warden, *pid).len()).sum();
        verdict.check(&format!("--probes {probes}: uprobes in targets"), "0", sites.to_string(), sites == 0);
        same(&format!("--probes {probes}: code meanwhile"), &lab, &mut verdict)?;
        let (code, took, ..) = tracer.quit().await?;
        verdict.ended(code, took, crate::lab::QUIT_WITHIN);
    }
    for end in [End::Interrupt, End::KillParent, End::KillWarden, End::InterruptAndKill] {
        ends(ledger, &lab, binary, end, &mut verdict).await?;
    }
    ends_while_attaching(ledger, &lab, binary, &mut verdict).await?;
    // A shim that comes while the probes are there gets them too, and must lose them too.
    if kubelet.is_none() {
        let mut tracer = Tracer::start(ledger, binary, &["live", "--plain"], |_, _| {})?;
        tracer.ready().await?;
        let late =
            pods::start(&lab.client, "late", &pods::script(0), Path::new(&ledger.name), &lab.run).await?;
        let shim = lab.containerd.shim_of(&late.container)?;
        let during = look::changes(shim)?.len();
        let warden = look::warden(tracer.pid()).context("plegscope has no child")?;
        let links = look::links(warden);
        tracer.quit().await?;
        let over = gone(warden, &links).await.is_some();
        let after = look::changes(shim)?.len();
        verdict.check(
            "a shim that comes later",
            "breakpoints meanwhile, none afterwards",
            format!("{during}, then {after}"),
            over && during > 0 && after == 0,
        );
        pods::remove(&lab.client, &late).await;
    }
    lab.finish().await;
    Ok(verdict)
}

/// The processes that plegscope probes here.
fn targets(lab: &Lab<'_>) -> Vec<u32> {
    let all = sys::pids_with_argument(&lab.containerd.socket).into_iter();
    let lives = |pid: &u32| sys::state(*pid).is_some_and(|state| state != 'Z');
    let go = |pid: &u32| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.starts_with("containerd") || comm.starts_with("kubelet")
    };
    let mut pids: BTreeSet<u32> = all.filter(lives).filter(go).collect();
    pids.extend(lab.kubelet.as_ref().map(|kubelet| kubelet.pid));
    pids.into_iter().collect()
}

/// File offsets at which the kernel says that this warden has uprobes in the program of a process.
fn sites(warden: u32, pid: u32) -> BTreeSet<u64> {
    let Ok(path) = std::fs::read_link(format!("/proc/{pid}/exe")) else { return BTreeSet::new() };
    bpf::uprobes_of(&[warden], &path).into_iter().collect()
}

/// All code equals its file.
fn same(what: &str, lab: &Lab<'_>, verdict: &mut Verdict) -> Result<()> {
    let pids = targets(lab);
    let mut changed = Vec::new();
    for pid in &pids {
        let changes = look::changes(*pid)?;
        if !changes.is_empty() {
            changed.push(format!("{} bytes of {pid}, the first at {:#x}", changes.len(), changes[0].0));
        }
    }
    // It may have come in the meantime, and would put in breakpoints of its own.
    if !changed.is_empty() && look::other_tracers(&[]) {
        changed.push("while some plegscope runs".to_owned());
    }
    let said = if changed.is_empty() { "equal".to_owned() } else { changed.join(", ") };
    verdict.check(
        what,
        format!("equals the files of {} processes", pids.len()),
        said,
        changed.is_empty() && pids.len() > lab.pods.len(),
    );
    Ok(())
}

/// One plegscope from its start to what is left after its end.
async fn ends(ledger: &Ledger, lab: &Lab<'_>, binary: &Path, end: End, verdict: &mut Verdict) -> Result<()> {
    let mut tracer = Tracer::start(ledger, binary, &["live", "--plain"], |_, _| {})?;
    let ready = tracer.ready().await?;
    let warden = look::warden(tracer.pid()).context("plegscope has no child")?;
    let links = look::links(warden);
    let (mut total, mut wrong) = (0, Vec::new());
    for pid in targets(lab) {
        let listed = sites(warden, pid);
        let changes = look::changes(pid)?;
        let places: BTreeSet<u64> = changes.iter().map(|(at, _)| *at).collect();
        let foreign = changes.iter().filter(|(_, byte)| *byte != BREAKPOINT).count();
        total += places.len();
        if places != listed || listed.is_empty() || foreign > 0 {
            wrong.push(format!(
                "{pid}: {} bytes differ, {foreign} of them no breakpoints; the kernel lists {} sites, {} of these unchanged",
                places.len(),
                listed.len(),
                listed.difference(&places).count(),
            ));
        }
    }
    if end == End::Interrupt {
        let said = if wrong.is_empty() { "just there".to_owned() } else { wrong.join("; ") };
        verdict.note("attached", "", ready.text);
        verdict.check(
            "code meanwhile",
            format!("differs by {total} breakpoints, where the kernel lists uprobes"),
            said,
            wrong.is_empty(),
        );
    }
    let parent = tracer.pid();
    let (name, well) = match end {
        End::Interrupt => {
            let (code, took, ..) = tracer.quit().await?;
            verdict.ended(code, took, crate::lab::QUIT_WITHIN);
            ("Ctrl-C", true)
        }
        End::KillParent => {
            sys::signal(parent, libc::SIGKILL);
            ("kill -9 of plegscope", true)
        }
        End::KillWarden => {
            sys::signal(warden, libc::SIGKILL);
            let ended = || matches!(sys::state(parent), None | Some('Z'));
            let ended = sys::until(Duration::from_secs(10), ended).await;
            let said = sys::until(Duration::from_secs(1), || !told(&tracer).is_empty()).await;
            verdict.check(
                "kill -9 of the warden",
                "plegscope says so and ends",
                format!("{}; {}", if ended { "ended" } else { "goes on" }, told(&tracer)),
                ended && said,
            );
            ("kill -9 of the warden", ended)
        }
        End::InterruptAndKill => {
            tracer.quit().await?;
            let killed = kill_rest(warden).await;
            verdict.note("kill -9 of what is left after Ctrl-C", "", format!("{killed} signals"));
            ("Ctrl-C, then kill -9", killed > 0)
        }
    };
    let took = gone(warden, &links).await;
    verdict.check(
        &format!("{name}: {} links", links.len()),
        "all gone",
        took.map_or("some are left".to_owned(), |ns| format!("gone after {}", sys::seconds(ns))),
        took.is_some() && well && !links.is_empty(),
    );
    same(&format!("{name}: code afterwards"), lab, verdict)
}

/// Processes of a warden's session: itself, and whoever takes its probes off.
fn session(warden: u32) -> Vec<u32> {
    let of = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(3)?.parse().ok()
    };
    let lives = |pid: &u32| !matches!(sys::state(*pid), None | Some('Z'));
    sys::pids().into_iter().filter(lives).filter(|pid| of(*pid) == Some(warden)).collect()
}

/// Kills whatever there is of a warden's session until nothing is; returns how many signals that took.
async fn kill_rest(warden: u32) -> usize {
    let mut killed = 0;
    sys::until(Duration::from_secs(20), || {
        let left = session(warden);
        left.iter().for_each(|pid| sys::signal(*pid, libc::SIGKILL));
        killed += left.len();
        left.is_empty()
    })
    .await;
    killed
}

/// Plegscopes that are told to end right after the first of their probes is attached.
async fn ends_while_attaching(
    ledger: &Ledger,
    lab: &Lab<'_>,
    binary: &Path,
    verdict: &mut Verdict,
) -> Result<()> {
    let (mut early, mut over) = (0, true);
    for _ in 0..EARLY {
        let tracer = Tracer::start(ledger, binary, &["live", "--plain"], |_, _| {})?;
        let parent = tracer.pid();
        let mut some = BTreeSet::new();
        sys::until(Duration::from_secs(20), || {
            some = look::warden(parent).map(look::links).unwrap_or_default();
            !some.is_empty()
        })
        .await;
        let warden = look::warden(parent).context("plegscope has no child")?;
        early += usize::from(!tracer.messages().iter().any(|line| line.text.starts_with("attached ")));
        tracer.quit().await?;
        over &= sys::until(Duration::from_secs(20), || session(warden).is_empty()).await;
        over &= look::left(&some) == 0;
    }
    verdict.check(
        "Ctrl-C while it attaches",
        format!("{EARLY} times, and nothing of it is left"),
        format!("{early} times, and {}", if over { "nothing is left" } else { "something is left" }),
        over && early > 0,
    );
    same("Ctrl-C while it attaches: code afterwards", lab, verdict)
}

/// What a plegscope said of its warden.
fn told(tracer: &Tracer) -> String {
    let messages = tracer.messages().into_iter().filter(|line| line.text.contains("warden"));
    messages.map(|line| line.text).collect::<Vec<_>>().join(", ")
}
