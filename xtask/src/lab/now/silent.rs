//! The disk with the programs does not answer any more: what of containerd and the shims is not in memory cannot be read.
//! plegscope and what it keeps lie on a tmpfs. It comes back in time, tells what it can, and says what it left out.

use super::judge;
use super::stall::Stall;
use super::{GRACE, Own, PARTLY_BLIND, Ran, WITHIN, mount, store};
use crate::lab::cleanup::Ledger;
use crate::lab::commands::look;
use crate::lab::containerd::Programs;
use crate::lab::harmless::{evicted, pages};
use crate::lab::kubelet_like::KubeletLike;
use crate::lab::pods;
use crate::lab::stories::checks::said::list;
use crate::lab::story::Truth;
use crate::lab::sys;
use crate::lab::tracer::Tracer;
use crate::lab::verdict::Verdict;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Rates of the slow disk until it stops, bytes per second.
const WRITES: u64 = 2_000_000;
const READS: u64 = 200_000;
/// What the victim writes: the stall lasts until the disk answers again.
const MEGABYTES: u64 = 30;

/// Plays the part.
pub async fn play(
    ledger: &Ledger,
    programs: Programs,
    binary: &Path,
    keep: Option<&Path>,
    say: &mut impl FnMut(&str),
) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let other = programs.containerd.clone();
    let mut node = evicted::prepare(ledger, programs, say).await?;
    let run = node.lab.run.clone();
    let (empty, filled) = (Own::new(binary, &run, "empty")?, Own::new(binary, &run, "filled")?);
    let ran = filled.run(ledger, &["now", "--json", "--within", "5s"]).await?;
    verdict.check("with all pages in memory", "exit code 0", ran.ended(), ran.code == Some(0));
    node.renew(ledger, &other).await?;
    let victim = pods::script(MEGABYTES);
    let victim =
        pods::start(&node.lab.client, "victim", &victim, Path::new(&ledger.name), &node.lab.run).await?;
    node.lab.pods.insert(0, victim);
    let log = node.lab.run.join("client.jsonl");
    let client = KubeletLike::start(&node.lab.containerd.socket, &log, Duration::from_secs(2))?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ballast = ballast(&node.lab.disk.mounted)?;
    node.lab.disk.slow_down(ledger, WRITES)?;
    node.lab.disk.slow_reads(ledger, READS)?;
    let stall = Stall::on(&node.lab, &client, say).await?;
    // It lasts: nothing is written any more.
    node.programs.iter().try_for_each(|program| pages::drop_clean(program))?;
    let out = node.resident()?.map(|pages| pages.iter().filter(|page| !**page).count());
    ensure!(out.iter().all(|pages| *pages > 100), "the pages of the programs stay in memory: {out:?}");
    node.lab.disk.stop()?;
    let read = Control::start(ballast);
    say(&format!("the disk has stopped; {} pages of containerd and {} of the shim are out", out[0], out[1]));
    // Since long before, whatever containerd has to read is slow.
    let facts = judge::Facts { prompt: false, ..stall.plain_facts()? };
    let truth = stall.truth(&client);
    for (own, which) in [(&filled, "known programs"), (&empty, "never seen programs")] {
        let ran = own.run(ledger, &["now", "--json"]).await?;
        store(keep, &format!("silent-{}.json", which.split(' ').next().unwrap_or_default()), &ran.out)?;
        say(&format!("{which}: {}", ran.ended()));
        partly(which, &truth, &facts, &ran, &mut verdict);
        if which == "known programs" {
            judge::chain(&truth, &facts, &ran.report()["frame"], &mut verdict);
        }
        let ran = own.run(ledger, &["now"]).await?;
        store(keep, &format!("silent-{}.txt", which.split(' ').next().unwrap_or_default()), &ran.out)?;
        let left = ran.out.lines().filter(|line| line.starts_with("not seen: ")).count();
        verdict.check(
            &format!("{which}: text"),
            "the container, its thread's kernel stack, and what was not seen",
            format!("{}; {left} things not seen", ran.out.lines().next().unwrap_or_default()),
            (ran.out.contains(&truth.pod) || ran.out.contains(&truth.container[..12]))
                && facts.kernel.first().is_some_and(|function| ran.out.contains(function))
                && (left > 0) == (ran.code == Some(PARTLY_BLIND)),
        );
    }
    killed(ledger, &empty, &mut verdict).await?;
    verdict.check(
        "control: a read of one page from that disk",
        "does not come back",
        if read.is_over() { "it came back" } else { "it waits" },
        !read.is_over(),
    );
    let lasts = !stall.is_over();
    verdict.check("control: the unmount", "lasts", if lasts { "lasts" } else { "is over" }, lasts);
    node.lab.disk.speed_up()?;
    ensure!(sys::until(Duration::from_secs(60), || stall.is_over()).await, "the unmount does not end");
    drop(stall);
    drop(client);
    node.lab.finish().await;
    Ok(verdict)
}

/// That it came back, told what it can and said what it cannot.
fn partly(which: &str, truth: &Truth, facts: &judge::Facts, ran: &Ran, verdict: &mut Verdict) {
    let report = ran.report();
    let left: Vec<String> = list(&report["summary"], "left_out")
        .map(|one| {
            format!("{} {}", one["comm"].as_str().unwrap_or("-"), one["reason"].as_str().unwrap_or("-"))
        })
        .collect();
    // Whoever sees all of it through what it has kept has left nothing out.
    let must = which != "known programs";
    let said = !left.is_empty() && left.iter().all(|reason| reason.len() > 10);
    let code = if left.is_empty() && !must { 0 } else { PARTLY_BLIND };
    verdict.check(
        &format!("{which}: comes back"),
        format!("exit code {code} within {}", sys::seconds(WITHIN + GRACE)),
        ran.ended(),
        ran.code == Some(code) && ran.took <= WITHIN + GRACE,
    );
    verdict.check(&format!("{which}: left out"), "with the reason", left.join("; "), said || !must);
    let shims = list(&report, "processes").filter(|one| one["process"]["pid"] == truth.shim);
    let sites: Vec<(&Value, Option<&str>)> = shims
        .flat_map(|one| {
            let look = &one["look"]["Ok"];
            let threads = list(look, "threads").map(|one| (&one["site"], path(one)));
            threads.chain(list(look, "goroutines").map(|one| (&one["thread"], path(one))))
        })
        .filter(|(site, _)| site["syscall"] == libc::SYS_umount2)
        .collect();
    let inside = |site: &Value| truth.unmounts.iter().any(|s| s.end.is_none() && site["tid"] == s.tid);
    let rootfs = facts.rootfs.to_string_lossy();
    let right = |(site, path): &(&Value, Option<&str>)| {
        let kernel: Vec<&str> = list(site, "kernel_stack").filter_map(Value::as_str).collect();
        let same = facts.kernel.iter().zip(&kernel).filter(|(a, b)| a == *b).count();
        inside(site) && *path == Some(&*rootfs) && same >= 3
    };
    let told: Vec<String> = sites
        .iter()
        .map(|(site, path)| format!("thread {}: {}", site["tid"], path.map_or("-".to_owned(), mount)))
        .collect();
    verdict.check(
        &format!("{which}: the thread in umount2"),
        format!("{}, and its kernel stack", mount(&rootfs)),
        told.join(", "),
        sites.iter().any(right),
    );
}

/// The path of the unmount that somebody is in.
fn path(sleeper: &Value) -> Option<&str> {
    list(sleeper, "calls").find_map(|call| call["path"].as_str())
}

/// Killed in the middle of it, it leaves nothing.
async fn killed(ledger: &Ledger, own: &Own, verdict: &mut Verdict) -> Result<()> {
    let all = own.arguments(&["now", "--within", "8s"]);
    let tracer = Tracer::start(ledger, Path::new("unshare"), &all, |_, _| {})?;
    let mut warden = None;
    // Before it is plegscope, it is the shell that starts it, which has other children.
    let comm = format!("/proc/{}/comm", tracer.pid());
    sys::until(Duration::from_secs(2), || {
        let own = fs::read_to_string(&comm).is_ok_and(|comm| comm.trim() == "plegscope");
        warden = look::warden(tracer.pid()).filter(|_| own);
        warden.is_some()
    })
    .await;
    let warden = warden.context("plegscope has no child")?;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let gone = |pid| matches!(sys::state(pid), None | Some('Z'));
    let lived = !gone(tracer.pid()) && !gone(warden);
    sys::signal(tracer.pid(), libc::SIGKILL);
    let begin = sys::monotonic();
    let over = sys::until(Duration::from_secs(3), || gone(tracer.pid()) && gone(warden)).await;
    verdict.check(
        "kill -9 in the middle",
        "both processes lived, and are gone at once",
        format!("{lived}; {:?} and {:?} after {}", sys::state(tracer.pid()), sys::state(warden), {
            sys::seconds(sys::monotonic() - begin)
        }),
        over && lived,
    );
    Ok(())
}

/// A file on the disk for a read that must ask it.
fn ballast(mounted: &Path) -> Result<File> {
    let path = mounted.join("ballast");
    fs::write(&path, vec![7u8; 1 << 20]).context("writing the ballast")?;
    pages::evict(&path)?;
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path);
    file.with_context(|| format!("opening {}", path.display()))
}

/// A read of one page that waits for the disk.
struct Control(Arc<AtomicBool>);

impl Control {
    fn start(file: File) -> Control {
        let over = Arc::new(AtomicBool::new(false));
        let done = over.clone();
        std::thread::spawn(move || {
            let mut room = vec![0u8; 2 * pages::PAGE as usize];
            let start = room.as_ptr().align_offset(pages::PAGE as usize);
            let _ = file.read_at(&mut room[start..start + pages::PAGE as usize], 0);
            done.store(true, Ordering::Relaxed);
        });
        Control(over)
    }

    fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
