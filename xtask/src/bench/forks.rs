//! B11: harm while attaching. Many shims run, some come and go; how long does `fork()` take on the node while plegscope
//! attaches and detaches, with an idle and with a stuck disk below the programs, and what does it put into each target?

use super::idle;
use super::table::Table;
use crate::lab::cleanup::{Ledger, Leftover};
use crate::lab::commands::look;
use crate::lab::containerd::Programs;
use crate::lab::harmless::evicted::{self, Busy};
use crate::lab::harmless::forks::{Forker, Forks};
use crate::lab::harmless::{pages, start_with_index};
use crate::lab::sys;
use anyhow::{Context, Result, ensure};
use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two starts of shims: 100 a minute.
const START_EVERY: Duration = Duration::from_millis(600);
/// How long forks are measured in each part of a turn.
const TIME: Duration = Duration::from_secs(6);

/// Shims without containers: they run the shim's server, which is what is probed.
pub struct Shims {
    running: Arc<Mutex<VecDeque<Child>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Shims {
    /// Starts so many; then one comes and the oldest goes as often as `every` says.
    pub fn start(
        ledger: &Ledger,
        program: &Path,
        folder: &Path,
        count: usize,
        every: Option<Duration>,
    ) -> Result<Shims> {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let address = folder.join("none.sock");
        ledger.record(Leftover::ProcessesWith { argument: address.clone() })?;
        let log = folder.join("log");
        let path = CString::new(log.as_os_str().as_bytes()).context("path with a zero byte")?;
        // SAFETY: a path that outlives the call.
        ensure!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) } == 0, "mkfifo {}", log.display());
        // A shim logs into a pipe of its containerd; somebody must read it.
        let mut pipe = File::options().read(true).write(true).open(&log).context("opening the shims' log")?;
        std::thread::spawn(move || {
            let mut room = [0; 4096];
            while pipe.read(&mut room).is_ok() {}
        });
        let mut all = VecDeque::new();
        for number in 0..count {
            all.push_back(shim(program, folder, &address, number)?);
        }
        let (running, stop) = (Arc::new(Mutex::new(all)), Arc::new(AtomicBool::new(false)));
        let (shims, end) = (running.clone(), stop.clone());
        let (program, folder) = (program.to_owned(), folder.to_owned());
        let Some(every) = every else { return Ok(Shims { running, stop, threads: Vec::new() }) };
        let churn = std::thread::spawn(move || {
            for number in count.. {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(new) = shim(&program, &folder, &address, number) else { return };
                let old = {
                    let mut all = shims.lock().unwrap_or_else(PoisonError::into_inner);
                    all.push_back(new);
                    all.pop_front()
                };
                if let Some(mut old) = old {
                    let _ = old.kill();
                    let _ = old.wait();
                }
                std::thread::sleep(every);
            }
        });
        Ok(Shims { running, stop, threads: vec![churn] })
    }

    /// The youngest but some: they live until the end of a turn.
    fn pids(&self, count: usize) -> Vec<u32> {
        let all = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().rev().skip(2).take(count).map(Child::id).collect()
    }
}

impl Drop for Shims {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        for mut child in self.running.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn shim(program: &Path, folder: &Path, address: &Path, number: usize) -> Result<Child> {
    let socket: PathBuf = folder.join(format!("{number}.sock"));
    Command::new(program)
        .args(["-namespace", "plegscope-bench", "-id", &format!("shim-{number}"), "-address"])
        .arg(address)
        .arg("-socket")
        .arg(socket)
        .env("TTRPC_ADDRESS", folder.join("none.ttrpc"))
        .env("GOMAXPROCS", "2")
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))
}

/// Forks of all turns in ms, and what else was seen.
#[derive(Default)]
struct Seen {
    /// p99 and longest: bare, attached to, detached from.
    p99: [Vec<f64>; 3],
    longest: [Vec<f64>; 3],
    /// Memory put into each target, kB.
    memory: Vec<f64>,
    /// The same once it is detached.
    stays: Vec<f64>,
    /// ms until the kernel has let go of everything.
    detach: Vec<f64>,
    said: String,
}

impl Seen {
    fn add(&mut self, part: usize, forks: &Forks) {
        self.p99[part].push(forks.p99() as f64 / 1e6);
        self.longest[part].push(forks.longest() as f64 / 1e6);
    }
}

/// Runs the bench.
pub async fn measure(
    ledger: &Ledger,
    programs: Programs,
    scope: Option<&Path>,
    rounds: u64,
    count: usize,
) -> Result<Table> {
    let node = evicted::prepare(ledger, programs, &mut |text: &str| println!("{text}")).await?;
    let shims =
        Shims::start(ledger, &node.programs[1], &node.lab.run.join("shims"), count, Some(START_EVERY))?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("{count} shims run, 100 start in a minute");
    let mut table = Table {
        title: format!("B11: fork() while plegscope attaches to and detaches from {count} shims"),
        rows: Vec::new(),
        goals: Vec::new(),
        notes: Vec::new(),
    };
    let index = node.lab.run.join("index");
    let mut idle_disk = Seen::default();
    for round in 0..rounds {
        turn(ledger, scope, &index, &shims, &mut idle_disk).await?;
        println!("disk idle: round {} of {rounds}", round + 1);
    }
    tell(&mut table, "disk idle", &idle_disk);

    node.programs.iter().try_for_each(|program| pages::evict(program))?;
    let before = node.resident()?;
    let busy = Busy::start(&node.lab.disk, ledger)?;
    let mut stuck = Seen::default();
    for round in 0..rounds {
        turn(ledger, scope, &index, &shims, &mut stuck).await?;
        println!("disk stuck: round {} of {rounds}", round + 1);
    }
    let slowest = busy.slowest();
    let after = node.resident()?;
    let out: usize = before.iter().map(|pages| pages.iter().filter(|page| !**page).count()).sum();
    let came: usize = before.iter().zip(&after).map(|(before, after)| pages::came(before, after).len()).sum();
    table.notes.push(format!(
        "disk stuck: {out} pages of the programs were out, {came} came in (running programs and new shims read them too); \
         a read of one page took up to {}",
        sys::seconds(slowest)
    ));
    drop(busy);
    tell(&mut table, "disk stuck", &stuck);
    drop(shims);
    node.lab.finish().await;
    Ok(table)
}

/// One turn: bare, attaching, detaching.
async fn turn(
    ledger: &Ledger,
    scope: Option<&Path>,
    index: &Path,
    shims: &Shims,
    seen: &mut Seen,
) -> Result<()> {
    seen.add(0, &Forker::during(TIME).await?);
    let Some(scope) = scope else { return Ok(()) };
    let forker = Forker::start();
    let mut tracer = start_with_index(ledger, scope, index, &["live", "--plain"])?;
    // With a stuck disk the programs may not be readable: it may never have attached all it wants.
    if let Ok(Ok(ready)) = tokio::time::timeout(TIME, tracer.ready()).await {
        seen.said = ready.text;
    }
    tokio::time::sleep(TIME / 2).await;
    seen.add(1, &finish(forker).await?);
    let pids = shims.pids(20);
    seen.memory.extend(memory(&pids));
    let warden = look::warden(tracer.pid()).context("plegscope has no child")?;
    let links = look::links(warden);
    let forker = Forker::start();
    let begin = sys::monotonic();
    tracer.quit().await?;
    idle::gone(warden, &links).await?;
    seen.detach.push((sys::monotonic() - begin) as f64 / 1e6);
    tokio::time::sleep(Duration::from_secs(1)).await;
    seen.add(2, &finish(forker).await?);
    seen.stays.extend(memory(&pids));
    Ok(())
}

/// Memory that the code of each of these processes has of its own, kB.
fn memory(pids: &[u32]) -> Vec<f64> {
    pids.iter().filter_map(|pid| look::own_code(*pid).ok()).map(|kb| kb as f64).collect()
}

async fn finish(forker: Forker) -> Result<Forks> {
    tokio::task::spawn_blocking(|| forker.finish()).await.context("waiting for the forks")?
}

fn tell(table: &mut Table, disk: &str, seen: &Seen) {
    let mut longest = Vec::new();
    for (part, name) in ["bare", "attaching and attached", "detaching"].iter().enumerate() {
        if !seen.p99[part].is_empty() {
            table.row(format!("{disk}, {name}: fork(), p99"), &seen.p99[part], "ms");
            longest.push(table.row(format!("{disk}, {name}: fork(), longest"), &seen.longest[part], "ms"));
        }
    }
    if let [bare, attaching, detaching] = longest[..] {
        let over = attaching.high.max(detaching.high) - bare.high;
        table.row(format!("{disk}: until all is detached"), &seen.detach, "ms");
        let memory = table.row(format!("{disk}: memory put into each shim"), &seen.memory, "kB");
        table.row(format!("{disk}: memory that stays in each shim"), &seen.stays, "kB");
        table.goal(format!("{disk}: longest fork() over bare"), 10.0, over, "ms");
        table.goal(format!("{disk}: memory put into a shim"), 40.0, memory.high, "kB");
        table.notes.push(format!("{disk}: {}", seen.said));
    }
}
