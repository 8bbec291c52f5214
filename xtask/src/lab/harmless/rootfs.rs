//! Containers do not notice: nothing below their root file systems is opened or held, and their unmounts take as long
//! as they take without plegscope.

use super::opens::Opens;
use crate::lab::cleanup::Ledger;
use crate::lab::commands::look;
use crate::lab::containerd::Programs;
use crate::lab::pods::{self, Pod};
use crate::lab::tracer::Tracer;
use crate::lab::unmounts::Watch;
use crate::lab::verdict::Verdict;
use crate::lab::{Lab, Settings};
use crate::lab::{cleanup, sys};
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How much each victim writes, and how fast the disk takes it: ten seconds that only the disk decides.
const MEGABYTES: u64 = 20;
const RATE: u64 = 2_000_000;
/// Unmounts with and without plegscope agree within this part.
const TOLERANCE: f64 = 0.10;
/// An unmount with nothing to write back takes less, ns. The clock is read every 5 ms.
const QUICK: u64 = 100_000_000;
/// Pods of each kind: as many as there are turns.
const TURNS: usize = 4;

/// Plays the part.
pub async fn play(
    ledger: &Ledger,
    programs: Programs,
    binary: &Path,
    say: &mut impl FnMut(&str),
) -> Result<Verdict> {
    let mut lab = Lab::without_pods(ledger, programs, &Settings::default(), say).await?;
    let mut verdict = Verdict::default();
    let cgroup = Path::new(&ledger.name);
    let mut start = async |name: String, megabytes| -> Result<Pod> {
        let pod = pods::start(&lab.client, &name, &pods::script(megabytes), cgroup, &lab.run).await?;
        lab.pods.push(pod.clone());
        Ok(pod)
    };
    let (mut clean, mut dirty) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        clean.push(start(format!("clean-{turn}"), 0).await?);
        dirty.push(start(format!("dirty-{turn}"), MEGABYTES).await?);
    }
    say(&format!("{} pods run", lab.pods.len()));
    let opens = Opens::watch(&lab)?;
    let held = traced(ledger, binary, Duration::from_secs(5), &lab).await?;
    let opened = opens.finish();
    held.tell(&mut verdict);
    verdict.check(
        "files of containers opened by plegscope",
        "none, by the kernel's own notifications",
        if opened.is_empty() { "none".to_owned() } else { format!("{}: {}", opened.len(), join(&opened)) },
        opened.is_empty(),
    );

    say("unmounts of containers that have written nothing, without and with plegscope");
    let (mut bare, mut with) = (Vec::new(), Vec::new());
    for (turn, pod) in clean.iter().enumerate() {
        let into = if turn % 2 == 0 { &mut bare } else { &mut with };
        into.push(unmount(ledger, &lab, pod, (turn % 2 == 1).then_some(binary)).await?);
    }
    verdict.check(
        "unmount of a clean container",
        format!("{} without plegscope", list(&bare)),
        format!("{} with it", list(&with)),
        with.iter().all(|took| *took < QUICK),
    );
    say("unmounts of containers that have written, from a slow disk, without and with plegscope");
    lab.disk.slow_down(ledger, RATE)?;
    let (mut bare, mut with) = (Vec::new(), Vec::new());
    for (turn, pod) in dirty.iter().enumerate() {
        let into = if turn % 2 == 0 { &mut bare } else { &mut with };
        into.push(unmount(ledger, &lab, pod, (turn % 2 == 1).then_some(binary)).await?);
    }
    let mean = |all: &[u64]| all.iter().sum::<u64>() as f64 / all.len() as f64;
    let ratio = mean(&with) / mean(&bare);
    verdict.check(
        &format!("unmount of {MEGABYTES} MB at {} MB/s", RATE / 1_000_000),
        format!("{} without plegscope", list(&bare)),
        format!("{} with it: {ratio:.3} of it", list(&with)),
        (ratio - 1.0).abs() <= TOLERANCE && mean(&bare) > 5e9,
    );
    lab.finish().await;
    Ok(verdict)
}

fn list(all: &[u64]) -> String {
    all.iter().map(|took| sys::seconds(*took)).collect::<Vec<_>>().join(", ")
}

fn join(all: &BTreeSet<String>) -> String {
    all.iter().cloned().collect::<Vec<_>>().join(", ")
}

/// Lets a container write and exit; how long its shim then stays in `umount2`, ns.
async fn unmount(ledger: &Ledger, lab: &Lab<'_>, pod: &Pod, binary: Option<&Path>) -> Result<u64> {
    let mut tracer = None;
    if let Some(binary) = binary {
        let mut started = Tracer::start(ledger, binary, &["live", "--plain", "--probes", "all"], |_, _| {})?;
        started.ready().await?;
        tracer = Some(started);
    }
    pod.tell("write")?;
    pod.wait_for("written", Duration::from_secs(60)).await?;
    let watch = Watch::start(lab.containerd.shim_of(&pod.container)?);
    let rootfs = lab.containerd.state.join("io.containerd.runtime.v2.task/k8s.io").join(&pod.container);
    let rootfs = rootfs.join("rootfs");
    ensure!(!cleanup::mounts_below(&rootfs)?.is_empty(), "{} is not mounted", rootfs.display());
    pod.tell("exit")?;
    // The name of the mount goes before its data is written: only the thread inside umount2 tells the end.
    let mut quiet = 0;
    let over = || {
        let left = cleanup::mounts_below(&rootfs).map_or(true, |mounts| !mounts.is_empty());
        let inside = watch.stays().iter().any(|stay| stay.end.is_none());
        quiet = if left || inside { 0 } else { quiet + 1 };
        quiet > 25
    };
    let ended = sys::until(Duration::from_secs(60), over).await;
    ensure!(ended, "the unmount of {} does not end: {:?}", pod.name, watch.stays());
    if let Some(tracer) = tracer {
        tracer.quit().await?;
    }
    Ok(watch.stays().iter().filter_map(|stay| Some(stay.end? - stay.begin)).sum())
}

/// What plegscope and its warden held while containers ran, came and went.
struct Held {
    looks: usize,
    below: BTreeSet<String>,
    namespaces: bool,
    folders: BTreeSet<String>,
}

impl Held {
    fn tell(&self, verdict: &mut Verdict) {
        verdict.check(
            "descriptors and mappings below a container's root",
            format!("none in {} looks", self.looks),
            if self.below.is_empty() { "none".to_owned() } else { join(&self.below) },
            self.below.is_empty() && self.looks > 20,
        );
        verdict.check(
            "mounts of plegscope",
            "those of the node: the same namespace",
            if self.namespaces { "the same" } else { "others" },
            self.namespaces,
        );
        verdict.note("working folder and root of plegscope", "", join(&self.folders));
    }
}

/// Runs plegscope for a while and looks at all it holds, every few milliseconds; meanwhile a pod comes and goes.
async fn traced(ledger: &Ledger, binary: &Path, time: Duration, lab: &Lab<'_>) -> Result<Held> {
    let mut tracer = Tracer::start(ledger, binary, &["live", "--plain", "--probes", "all"], |_, _| {})?;
    let pid = tracer.pid();
    let places = [lab.containerd.state.clone(), lab.disk.mounted.clone()];
    let stop = Arc::new(AtomicBool::new(false));
    let end = stop.clone();
    let looking = std::thread::spawn(move || {
        let mut held = Held { looks: 0, below: BTreeSet::new(), namespaces: true, folders: BTreeSet::new() };
        let ours = fs::read_link("/proc/self/ns/mnt").ok();
        while !end.load(Ordering::Relaxed) {
            for process in sys::pids_of_tree(pid) {
                look_at(process, &places, ours.as_deref(), &mut held);
            }
            held.looks += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        held
    });
    tracer.ready().await?;
    let cgroup = Path::new(&ledger.name);
    let guest = pods::start(&lab.client, "guest", &pods::script(1), cgroup, &lab.run).await?;
    guest.tell("write")?;
    guest.wait_for("written", Duration::from_secs(20)).await?;
    tokio::time::sleep(time).await;
    guest.tell("exit")?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    pods::remove(&lab.client, &guest).await;
    tracer.quit().await?;
    stop.store(true, Ordering::Relaxed);
    looking.join().map_err(|_| anyhow::anyhow!("the looking thread panicked"))
}

fn look_at(pid: u32, places: &[PathBuf], mounts: Option<&Path>, held: &mut Held) {
    let below = |path: &str| places.iter().any(|place| Path::new(path).starts_with(place));
    held.below.extend(look::descriptors(pid).into_values().filter(|path| below(path)));
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mapped = maps.lines().filter_map(|line| line.splitn(6, ' ').nth(5)).map(str::trim);
    held.below.extend(mapped.filter(|path| below(path)).map(|path| format!("mapped: {path}")));
    for name in ["cwd", "root"] {
        if let Ok(path) = fs::read_link(format!("/proc/{pid}/{name}")) {
            let path = path.to_string_lossy().into_owned();
            if below(&path) {
                held.below.insert(format!("{name}: {path}"));
            }
            held.folders.insert(format!("{name} {path}"));
        }
    }
    if let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) {
        held.namespaces &= Some(namespace.as_path()) == mounts;
    }
}
