//! The node in a box: a real containerd with real containers, blocked for real, beside the machine's own.
//!
//! ```text
//! Lab::prepare   folders, slow disk, containerd, three pods         (every step written to the ledger first)
//! Lab::play      healthy | disk | strace, while a client calls the runtime like the kubelet
//! Truth          what happened by clocks that have nothing to do with plegscope
//! drop           everything is taken away again
//! ```

pub mod attached;
pub mod checks;
pub mod cleanup;
pub mod commands;
pub mod containerd;
pub mod containerd_log;
pub mod cri;
pub mod disk;
pub mod fuse;
pub mod group;
pub mod harm;
pub mod harmless;
pub mod hold;
pub mod image;
pub mod kubelet;
pub mod kubelet_like;
pub mod kubelet_log;
pub mod machine;
pub mod now;
pub mod packages;
pub mod pods;
pub mod states;
pub mod stopped_root;
pub mod stories;
pub mod story;
pub mod strace;
pub mod sys;
pub mod tracer;
pub mod unmounts;
pub mod verdict;
pub mod watching;

use anyhow::{Context, Result, bail};
use cleanup::{Ledger, Leftover};
use containerd::{Containerd, Programs};
use std::fs;
use std::path::{Path, PathBuf};

/// Quitting plegscope may take this long until the prompt is back, ns.
pub const QUIT_WITHIN: u64 = 300_000_000;

/// How a node is made.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// File system of the disk below the snapshots, as `mount` calls it.
    pub file_system: &'static str,
    /// Snapshotter, as containerd calls it.
    pub snapshotter: &'static str,
    /// Whether overlays are mounted `volatile`.
    pub volatile: bool,
    /// Whether containerd's own databases and status files lie on the slow disk, as on most nodes.
    pub daemon_on_disk: bool,
    /// Whether runc is called through a script by which its commands can be held.
    pub hold_runc: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            file_system: "ext4",
            snapshotter: "overlayfs",
            volatile: false,
            daemon_on_disk: false,
            hold_runc: false,
        }
    }
}

/// A node with three running pods; the first is the victim.
pub struct Lab<'a> {
    /// Folder on tmpfs: sockets, state, logs, the mounted disk.
    pub run: PathBuf,
    /// The slow disk, still fast.
    pub disk: disk::SlowDisk,
    /// The daemon.
    pub containerd: Containerd,
    /// A connection for set-up and end.
    pub client: cri::Client,
    /// The pods.
    pub pods: Vec<pods::Pod>,
    /// The kubelet that runs them, when a real one was asked for.
    pub kubelet: Option<kubelet::Kubelet>,
    /// What takes it all away.
    pub ledger: &'a Ledger,
}

impl<'a> Lab<'a> {
    /// Sets everything up; `say` gets a line for each step.
    pub async fn prepare(
        ledger: &'a Ledger,
        programs: Programs,
        megabytes: u64,
        say: &mut impl FnMut(&str),
    ) -> Result<Lab<'a>> {
        let mut lab = Lab::without_pods(ledger, programs, &Settings::default(), say).await?;
        for (pod, megabytes) in pods_of(megabytes) {
            let started =
                pods::start(&lab.client, pod, &pods::script(megabytes), Path::new(&ledger.name), &lab.run)
                    .await;
            let started =
                started.with_context(|| format!("containerd's log ends:\n{}", lab.containerd.log_tail(8)))?;
            lab.add(started, say);
        }
        Ok(lab)
    }

    /// The same with the pods run by a real kubelet, which updates their containers every `update_every`.
    pub async fn prepare_with_kubelet(
        ledger: &'a Ledger,
        programs: Programs,
        program: &Path,
        script: &story::Script,
        say: &mut impl FnMut(&str),
    ) -> Result<Lab<'a>> {
        let mut lab = Lab::without_pods(ledger, programs, &Settings::default(), say).await?;
        lab.run_kubelet(
            program,
            kubelet::Pace::updating(script.update_every),
            &pods_of(script.megabytes()),
            say,
        )
        .await?;
        Ok(lab)
    }

    /// Starts a real kubelet that runs these pods (name, megabytes to write) and updates them.
    pub async fn run_kubelet(
        &mut self,
        program: &Path,
        pace: kubelet::Pace,
        pods: &[(&str, u64)],
        say: &mut impl FnMut(&str),
    ) -> Result<()> {
        let (kubelet, pods) = kubelet::Kubelet::start(
            self.ledger,
            program,
            &self.containerd,
            &self.client,
            &self.run,
            pace,
            pods,
        )
        .await?;
        say(&format!("a kubelet of its own, pid {}", kubelet.pid));
        self.kubelet = Some(kubelet);
        for pod in pods {
            self.add(pod, say);
        }
        Ok(())
    }

    /// Adds a pod that runs.
    pub fn add(&mut self, pod: pods::Pod, say: &mut impl FnMut(&str)) {
        say(&format!("pod {}/{}, container {}", pod.namespace, pod.name, &pod.container[..12]));
        self.pods.push(pod);
    }

    /// The same, still without pods.
    pub async fn without_pods(
        ledger: &'a Ledger,
        programs: Programs,
        settings: &Settings,
        say: &mut impl FnMut(&str),
    ) -> Result<Lab<'a>> {
        if !sys::is_root() {
            bail!("the lab mounts disks and runs containers: run it as root (sudo -E cargo xtask …)");
        }
        raise_file_limit();
        let name = &ledger.name;
        let run = Path::new("/run").join(name);
        let scratch = Path::new("/var/tmp").join(name);
        let cgroup = PathBuf::from(name);
        for folder in [&run, &scratch] {
            ledger.record(Leftover::Folder { path: folder.clone() })?;
            fs::create_dir(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        ledger.record(Leftover::Mounts { below: run.clone() })?;
        // /run is not on tmpfs everywhere, and nothing of the daemon's state may wait for a disk by accident.
        sys::run(
            "mount",
            &["-t", "tmpfs", "-o", "mode=711,size=256m", "plegscope-lab", &run.to_string_lossy()],
        )?;

        let disk =
            disk::SlowDisk::create(ledger, &scratch, &run.join("disk"), &cgroup, settings.file_system)?;
        say(&format!("a disk of its own, device {}, mounted at {}", disk.device, disk.mounted.display()));
        let snapshots = disk.mounted.join("snapshots");
        ledger.record(Leftover::Cgroup { path: cgroup.clone() })?;
        let root = match settings.daemon_on_disk {
            false => scratch,
            true => disk.mounted.join("containerd"),
        };
        let containerd = Containerd::start(ledger, programs, &run, &root, &snapshots, settings).await?;
        let client = cri::Client::connect(&containerd.socket, cri::SHORT).await?;
        containerd.import_image(&run, image::NAME)?;
        say(&format!(
            "a containerd of its own, pid {}, socket {}",
            containerd.pid,
            containerd.socket.display()
        ));
        Ok(Lab { run, disk, containerd, client, pods: Vec::new(), kubelet: None, ledger })
    }

    /// The pod whose container exits.
    pub fn victim(&self) -> &pods::Pod {
        &self.pods[0]
    }

    /// Removes the pods in an orderly way; what is left after an error is the ledger's.
    pub async fn finish(self) {
        if let Some(kubelet) = self.kubelet {
            kubelet.stop().await;
        }
        for pod in &self.pods {
            pods::remove(&self.client, pod).await;
        }
    }
}

/// The pods and how much each writes; the first is the victim.
fn pods_of(megabytes: u64) -> [(&'static str, u64); 3] {
    [("victim", megabytes), ("neighbour-a", 0), ("neighbour-b", 0)]
}

/// containerd and its clients want many descriptors; the soft limit is often 1024.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit to read into and from; raising the soft limit to the hard one is always allowed.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Somebody has asked for the end, by this signal.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted(&'static str);

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "interrupted by {}", self.0)
    }
}

impl std::error::Error for Interrupted {}

/// Runs a lab to its end, or to SIGINT, SIGTERM or SIGHUP; then takes away all that is in its ledger. A second Ctrl-C
/// does not interrupt that. The error is an [`Interrupted`] then.
pub fn run_interruptible<T>(lab: impl AsyncFnOnce(&Ledger) -> Result<T>) -> Result<T> {
    let ledger = Ledger::open()?;
    // Declared after the ledger, so dropped before it, also by a panic: with it go all tasks and their open files.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt()).context("installing a signal handler")?;
        let mut terminate = signal(SignalKind::terminate()).context("installing a signal handler")?;
        let mut hangup = signal(SignalKind::hangup()).context("installing a signal handler")?;
        let by = tokio::select! {
            result = lab(&ledger) => return result,
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            _ = hangup.recv() => "SIGHUP",
        };
        eprintln!("\n{by}: cleaning up");
        Err(Interrupted(by).into())
    })
}
