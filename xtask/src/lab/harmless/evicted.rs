//! The worst moment to attach: containerd and its shims run from a disk that is stuck, and most of their pages have been
//! evicted. A uprobe on such a page makes the kernel read it while it holds a lock that every `fork()` of the node needs.

use super::forks::{Forker, Forks};
use super::{gone, pages, reasons, start_with_index};
use crate::bench::bpf::{EmptyProbes, uprobes_of};
use crate::lab::cleanup::{Ledger, Leftover};
use crate::lab::commands::look;
use crate::lab::containerd::Programs;
use crate::lab::disk::SlowDisk;
use crate::lab::verdict::Verdict;
use crate::lab::{Lab, Settings, cri, pods, sys};
use anyhow::{Context, Result, ensure};
use object::{Object as _, ObjectSection as _};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Rates of the stuck disk, bytes per second.
const WRITES: u64 = 1_000_000;
const READS: u64 = 200_000;
/// Longer than plegscope waits for the reads of two programs.
const LOOKING: Duration = Duration::from_secs(24);
/// No fork may take longer while plegscope attaches, ns. Generous: a machine that is busy otherwise is slow too.
const FORK_WITHIN: u64 = 250_000_000;
/// How long the control may hold up the forks of this machine.
const CONTROL: Duration = Duration::from_millis(1500);

/// containerd with its pods, running from the disk.
pub struct OnDisk<'a> {
    /// Its node.
    pub lab: Lab<'a>,
    /// The files of containerd and of the shim.
    pub programs: [PathBuf; 2],
}

impl OnDisk<'_> {
    async fn add_pods(&mut self, ledger: &Ledger, names: &[&str]) -> Result<()> {
        for name in names {
            let pod =
                pods::start(&self.lab.client, name, &pods::script(0), Path::new(&ledger.name), &self.lab.run)
                    .await?;
            self.lab.pods.push(pod);
        }
        Ok(())
    }

    /// Replaces all processes by new ones of the same files. These find nothing in memory and read page by page what they
    /// run, so what they have never run is not in memory afterwards.
    pub async fn renew(&mut self, ledger: &Ledger, other: &Path) -> Result<()> {
        for pod in std::mem::take(&mut self.lab.pods) {
            pods::remove(&self.lab.client, &pod).await;
        }
        self.lab.containerd.restart(ledger, other).await?;
        let ahead = PathBuf::from(format!("/sys/dev/block/{}/queue/read_ahead_kb", self.lab.disk.device));
        let was = fs::read_to_string(&ahead).with_context(|| format!("reading {}", ahead.display()))?;
        ledger.record(Leftover::Setting { file: ahead.clone(), line: was.trim().to_owned() })?;
        fs::write(&ahead, "0").with_context(|| format!("writing {}", ahead.display()))?;
        self.programs.iter().try_for_each(|program| pages::evict(program))?;
        self.lab.containerd.restart(ledger, &self.programs[0]).await?;
        self.lab.client = cri::Client::connect(&self.lab.containerd.socket, cri::SHORT).await?;
        self.add_pods(ledger, &["four", "five", "six"]).await
    }

    fn processes(&self) -> Result<Vec<u32>> {
        let mut pids = vec![self.lab.containerd.pid];
        for pod in &self.lab.pods {
            pids.push(self.lab.containerd.shim_of(&pod.container)?);
        }
        Ok(pids)
    }

    fn signal(&self, signal: libc::c_int) -> Result<()> {
        self.processes()?.into_iter().for_each(|pid| sys::signal(pid, signal));
        Ok(())
    }

    /// Whether each page of each program is in memory.
    pub fn resident(&self) -> Result<[Vec<bool>; 2]> {
        let [first, second] = &self.programs;
        Ok([pages::resident(first)?, pages::resident(second)?])
    }
}

/// Plays the part.
pub async fn play(
    ledger: &Ledger,
    programs: Programs,
    binary: &Path,
    say: &mut impl FnMut(&str),
) -> Result<Verdict> {
    let other = programs.containerd.clone();
    let mut node = prepare(ledger, programs, say).await?;
    let mut verdict = Verdict::default();
    // With all pages in memory: what it can attach to at best. It keeps what it has found in the programs.
    let (empty, filled) = (node.lab.run.join("index-empty"), node.lab.run.join("index-filled"));
    let mut tracer = start_with_index(ledger, binary, &filled, &["live", "--plain"])?;
    verdict.note("attached with all pages in memory", "", tracer.ready().await?.text);
    let warden = look::warden(tracer.pid()).context("plegscope has no child")?;
    let links = look::links(warden);
    tracer.quit().await?;
    ensure!(gone(warden, &links).await.is_some(), "the first plegscope does not detach");
    node.renew(ledger, &other).await?;

    // Stopped programs fault nothing in: whatever comes into memory from now on, they did not bring.
    node.signal(libc::SIGSTOP)?;
    node.programs.iter().try_for_each(|program| pages::evict(program))?;
    let before = node.resident()?;
    let out = before.each_ref().map(|pages| pages.iter().filter(|page| !**page).count());
    say(&format!(
        "evicted: {} of {} pages of containerd, {} of {} of the shim",
        out[0],
        before[0].len(),
        out[1],
        before[1].len()
    ));
    ensure!(out.iter().all(|pages| *pages > 100), "the pages of the programs stay in memory: {out:?}");
    let busy = Busy::start(&node.lab.disk, ledger)?;
    say("the disk is stuck");
    let bare = Forker::during(Duration::from_secs(3)).await?;
    verdict.note("fork() with the disk stuck, bare", "", bare.text());

    for (index, which) in [(&empty, "never seen programs"), (&filled, "known programs")] {
        let attached = attach(ledger, binary, index, &node, which, &bare, &mut verdict).await?;
        let after = node.resident()?;
        for (at, name) in ["containerd", "the shim"].iter().enumerate() {
            let came = pages::came(&before[at], &after[at]);
            let code = text_pages(&node.programs[at], &before[at])?;
            let read = came.iter().filter(|page| code.contains(page)).count();
            verdict.check(
                &format!("{which}: pages of {name} read from the stuck disk"),
                "no page of its code",
                format!("{read} of its code, {} in all", came.len()),
                read == 0,
            );
            let sites = &attached.sites[at];
            let absent = sites.iter().filter(|site| !before[at][(**site / pages::PAGE) as usize]).count();
            verdict.check(
                &format!("{which}: sites in {name}"),
                if index == &filled {
                    "some, none on a page that was out"
                } else {
                    "none on a page that was out"
                },
                format!("{}, {absent} of them on such a page", sites.len()),
                absent == 0 && (index == &empty || !sites.is_empty()),
            );
        }
        let said = attached.said.join("; ");
        verdict.check(
            &format!("{which}: what could not be read is said"),
            "with the reason",
            said.clone(),
            !said.is_empty(),
        );
    }
    busy.check("after attaching", &mut verdict);

    // Now they run, and get stuck themselves, in the middle of calls.
    node.signal(libc::SIGCONT)?;
    let client = node.lab.client.clone();
    let ids: Vec<String> = node.lab.pods.iter().map(|pod| pod.container.clone()).collect();
    let calls: Vec<_> = ids
        .into_iter()
        .map(|id| {
            let client = client.clone();
            tokio::spawn(async move {
                let request =
                    cri::UpdateContainerResourcesRequest { container_id: id, linux: Some(pods::resources()) };
                let _ = client.call::<_, cri::Empty>("UpdateContainerResources", request, cri::LONG).await;
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let which = "programs that hang themselves";
    let said = attach(ledger, binary, &filled, &node, which, &bare, &mut verdict).await?.said.join("; ");
    verdict.note("said then", "", said);
    busy.check("at the end", &mut verdict);

    control(&node, &mut verdict).await?;
    drop(busy);
    calls.into_iter().for_each(|call| call.abort());
    node.lab.finish().await;
    Ok(verdict)
}

/// A lab whose containerd and shims run from files on its disk.
pub async fn prepare<'a>(
    ledger: &'a Ledger,
    programs: Programs,
    say: &mut impl FnMut(&str),
) -> Result<OnDisk<'a>> {
    // The lab's disk will be there; until the copies are, the machine's own are found in PATH.
    let folder = Path::new("/run").join(&ledger.name).join("disk/bin");
    let shim = "containerd-shim-runc-v2";
    let from = [programs.containerd.clone(), programs.shim()?];
    let programs = Programs { containerd: programs.containerd, folder: Some(folder.clone()) };
    let mut lab = Lab::without_pods(ledger, programs, &Settings::default(), say).await?;
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let copies = [folder.join("containerd"), folder.join(shim)];
    for (from, to) in from.iter().zip(&copies) {
        fs::copy(from, to).with_context(|| format!("copying to {}", to.display()))?;
    }
    sys::run("sync", &["-f", &folder.to_string_lossy()])?;
    lab.containerd.restart(ledger, &copies[0]).await?;
    lab.client = cri::Client::connect(&lab.containerd.socket, cri::SHORT).await?;
    let mut node = OnDisk { lab, programs: copies };
    node.add_pods(ledger, &["one", "two", "three"]).await?;
    for (at, pid) in node.processes()?.into_iter().enumerate() {
        let exe = fs::read_link(format!("/proc/{pid}/exe")).context("reading a program's name")?;
        let should = &node.programs[usize::from(at > 0)];
        ensure!(exe == *should, "{} runs instead of {}", exe.display(), should.display());
    }
    say("containerd and its shims run from the disk");
    Ok(node)
}

/// What one plegscope did.
struct Attached {
    /// File offsets at which it had probes in containerd and in the shim, by the kernel's list.
    sites: [Vec<u64>; 2],
    /// What it said about what it cannot read.
    said: Vec<String>,
}

/// One plegscope from start to end, with forks beside it.
async fn attach(
    ledger: &Ledger,
    binary: &Path,
    index: &Path,
    node: &OnDisk<'_>,
    which: &str,
    bare: &Forks,
    verdict: &mut Verdict,
) -> Result<Attached> {
    let forker = Forker::start();
    let tracer = start_with_index(ledger, binary, index, &["live", "--plain", "--verbose"])?;
    let ran = async {
        tokio::time::sleep(LOOKING).await;
        let warden = look::warden(tracer.pid()).context("plegscope has no child")?;
        let links = look::links(warden);
        let sites = node.programs.each_ref().map(|program| uprobes_of(&[warden], program));
        let lines = tracer.lines();
        let (code, took, _, messages) = tracer.quit().await?;
        // It detaches behind the prompt.
        let detached = gone(warden, &links).await;
        Ok::<_, anyhow::Error>((links.len(), code, took, detached, sites, reasons(&lines, &messages)))
    };
    let ran = ran.await;
    let forks = tokio::task::spawn_blocking(|| forker.finish()).await.context("waiting for the forks")??;
    let (links, code, took, detached, sites, said) = ran?;
    verdict.check(
        &format!("fork() while attaching to {which}, and detaching"),
        format!("none longer than {} (bare: {})", sys::seconds(FORK_WITHIN), sys::seconds(bare.longest())),
        forks.text(),
        forks.longest() <= FORK_WITHIN,
    );
    let running = node.processes()?.len();
    verdict.check(
        &format!("{which}: end"),
        "exit code 0 within 300 ms, and all is detached",
        format!(
            "exit code {code:?} after {}, {links} links {}; {running} programs",
            sys::seconds(took),
            detached.map_or("are left".to_owned(), |ns| format!("gone after {}", sys::seconds(ns))),
        ),
        code == Some(0) && took <= crate::lab::QUIT_WITHIN && detached.is_some(),
    );
    Ok(Attached { sites, said })
}

/// The pages of a program that hold its code.
fn text_pages(program: &Path, all: &[bool]) -> Result<std::ops::Range<usize>> {
    // The copy is not read: what it was made from is the same.
    let name = program.file_name().context("a program without a name")?;
    let twin = sys::which(&name.to_string_lossy()).context("the program's twin")?;
    let bytes = fs::read(&twin).with_context(|| format!("reading {}", twin.display()))?;
    let file = object::File::parse(&*bytes).context("reading a program")?;
    let (start, size) =
        file.section_by_name(".text").and_then(|text| text.file_range()).context("no .text")?;
    let end = ((start + size).div_ceil(pages::PAGE) as usize).min(all.len());
    Ok((start / pages::PAGE) as usize..end)
}

/// That forks are measured rightly: an empty uprobe on a page that is not in memory does hold them up.
async fn control(node: &OnDisk<'_>, verdict: &mut Verdict) -> Result<()> {
    node.signal(libc::SIGSTOP)?;
    let shim = node.programs[1].clone();
    let resident = pages::resident(&shim)?;
    let code = text_pages(&shim, &resident)?;
    let Some(page) = code.clone().rev().find(|page| !resident[*page]) else {
        verdict.note(
            "control: a uprobe on a page that is not in memory",
            "",
            "every page is in memory by now",
        );
        return node.signal(libc::SIGCONT);
    };
    let forker = Forker::start();
    let attaching =
        std::thread::spawn(move || EmptyProbes::attach(&shim, &[page as u64 * pages::PAGE + 64]).is_ok());
    tokio::time::sleep(CONTROL).await;
    node.lab.disk.speed_up()?;
    let forks = tokio::task::spawn_blocking(|| forker.finish()).await.context("waiting for the forks")??;
    let attached = tokio::task::spawn_blocking(|| attaching.join().unwrap_or(false)).await.unwrap_or(false);
    node.signal(libc::SIGCONT)?;
    verdict.check(
        "control: a uprobe on a page that is not in memory",
        "holds up fork(), as long as the disk is stuck",
        format!("{}{}", forks.text(), if attached { "" } else { "; it could not be attached" }),
        forks.longest() > FORK_WITHIN,
    );
    Ok(())
}

/// Opens a file for reads that always ask the disk.
fn direct(path: &Path) -> std::io::Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECT).open(path)
}

/// Readers and writers that keep the disk busy, and one whose reads are timed.
pub struct Busy<'a> {
    disk: &'a SlowDisk,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    timed: JoinHandle<()>,
    began: u64,
    done: Arc<std::sync::Mutex<Vec<u64>>>,
}

impl<'a> Busy<'a> {
    /// Makes the disk slow and keeps it busy until dropped.
    pub fn start(disk: &'a SlowDisk, ledger: &Ledger) -> Result<Busy<'a>> {
        const SIZE: usize = 32 << 20;
        let ballast = disk.mounted.join("ballast");
        fs::write(&ballast, vec![7u8; SIZE]).context("writing the ballast")?;
        pages::evict(&ballast)?;
        disk.slow_down(ledger, WRITES)?;
        disk.slow_reads(ledger, READS)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for reader in 0..4u64 {
            let (path, end) = (ballast.clone(), stop.clone());
            threads.push(std::thread::spawn(move || {
                let Ok(file) = direct(&path) else { return };
                let mut room = vec![0u8; (256 << 10) + 4096];
                let start = room.as_ptr().align_offset(4096);
                for round in 0.. {
                    if end.load(Ordering::Relaxed) {
                        return;
                    }
                    let at = ((reader * 31 + round) % 100) * (256 << 10);
                    let _ = file.read_at(&mut room[start..start + (256 << 10)], at);
                }
            }));
        }
        let (path, end) = (disk.mounted.join("writes"), stop.clone());
        threads.push(std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let _ = fs::write(&path, vec![7u8; 1 << 20]);
                let _ = pages::evict(&path);
            }
        }));
        std::thread::sleep(Duration::from_millis(500));
        let (end, done) = (stop.clone(), Arc::new(std::sync::Mutex::new(Vec::new())));
        let into = done.clone();
        let timed = std::thread::spawn(move || {
            let Ok(file) = direct(&ballast) else { return };
            let mut room = vec![0u8; 2 * pages::PAGE as usize];
            let start = room.as_ptr().align_offset(pages::PAGE as usize);
            while !end.load(Ordering::Relaxed) {
                let begin = sys::monotonic();
                let _ = file.read_at(&mut room[start..start + pages::PAGE as usize], 28 << 20);
                let took = sys::monotonic() - begin;
                into.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(took);
            }
        });
        Ok(Busy { disk, stop, threads, timed, began: sys::monotonic(), done })
    }

    /// How long the slowest read of one page took that has come back; before, how long it has waited. ns.
    pub fn slowest(&self) -> u64 {
        let done = self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        done.iter().copied().max().unwrap_or_else(|| sys::monotonic() - self.began)
    }

    /// Reads from the disk take seconds.
    fn check(&self, when: &str, verdict: &mut Verdict) {
        let done = self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let longest = done.iter().max().copied();
        let time = sys::monotonic() - self.began;
        verdict.check(
            &format!("a read of one page from that disk, {when}"),
            "takes seconds",
            match longest {
                Some(took) => {
                    format!("{} reads came back, the slowest after {}", done.len(), sys::seconds(took))
                }
                None => format!("none has come back after {}", sys::seconds(time)),
            },
            longest.unwrap_or(time) > 2_000_000_000,
        );
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.disk.speed_up();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let _ = &self.timed;
    }
}
