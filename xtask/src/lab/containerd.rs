//! A containerd of our own, beside whatever containerd the machine has: own root, state, sockets, runc root.

use super::cleanup::{Ledger, Leftover, folders_not_there};
use super::{Settings, hold, image, machine, sys};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Folders that containerd and its shims make whatever their own root and state are.
const OUTSIDE: [&str; 5] = [
    "/run/containerd",
    "/run/containerd/fifo",
    "/run/containerd/runc",
    "/run/containerd/runc/k8s.io",
    "/run/containerd/s",
];

/// Which programs to run: another version of containerd can be unpacked anywhere.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The daemon.
    pub containerd: PathBuf,
    /// Folders searched for the shim and `ctr` before PATH.
    pub folder: Option<PathBuf>,
}

impl Programs {
    /// Those of the machine, or the folder's when one is given.
    pub fn find(folder: Option<&Path>) -> Result<Programs> {
        let containerd = match folder {
            Some(folder) => Some(folder.join("containerd")).filter(|path| path.is_file()),
            None => sys::which("containerd"),
        };
        let containerd =
            containerd.context("containerd is not installed: apt-get install containerd runc")?;
        Ok(Programs { containerd, folder: folder.map(Path::to_owned) })
    }

    /// The daemon's version, as it says: `1.6.20~ds1`.
    pub fn version(&self) -> Option<String> {
        let out = sys::run(&self.containerd.to_string_lossy(), &["--version"]).ok()?;
        out.split_whitespace().nth(2).map(|version| version.trim_start_matches('v').to_owned())
    }

    /// Whether the daemon speaks CRI's v1alpha2, in which the kubelet that there is asks; containerd 2 does not any more.
    pub fn understand_the_kubelet(&self) -> bool {
        self.version().is_none_or(|version| !version.starts_with("2."))
    }

    /// The shim that the daemon starts.
    pub fn shim(&self) -> Result<PathBuf> {
        let name = "containerd-shim-runc-v2";
        let own = self.folder.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
        own.or_else(|| sys::which(name)).with_context(|| format!("{name} is not installed"))
    }

    fn path(&self) -> String {
        let own = self.folder.iter().map(|folder| folder.display().to_string());
        let system = std::env::var("PATH").unwrap_or_default();
        own.chain([system, "/usr/sbin:/usr/bin:/sbin:/bin".to_owned()]).collect::<Vec<_>>().join(":")
    }
}

/// A running daemon. Stopped by the ledger.
pub struct Containerd {
    /// Its CRI and containerd socket.
    pub socket: PathBuf,
    /// Its process.
    pub pid: u32,
    /// What it logs.
    pub log: PathBuf,
    /// Its state folder; the bundles are below.
    pub state: PathBuf,
    programs: Programs,
    config: PathBuf,
}

impl Containerd {
    /// Starts the daemon: state and sockets in `run` (tmpfs), root in `scratch`, overlay snapshots in `snapshots`.
    pub async fn start(
        ledger: &Ledger,
        programs: Programs,
        run: &Path,
        scratch: &Path,
        snapshots: &Path,
        settings: &Settings,
    ) -> Result<Containerd> {
        let socket = run.join("containerd.sock");
        let state = run.join("state");
        let log = run.join("containerd.log");
        let config = run.join("config.toml");
        fs::write(&config, config_text(run, scratch, snapshots, settings))
            .with_context(|| format!("writing {}", config.display()))?;
        for leftover in folders_not_there(&OUTSIDE) {
            ledger.record(leftover)?;
        }
        // Where the snapshotter looks that knows no `root_path` (containerd 1.4).
        let default = scratch.join(format!("root/io.containerd.snapshotter.v1.{}", settings.snapshotter));
        for folder in [snapshots, &default] {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        ledger.record(Leftover::Mounts { below: default.clone() })?;
        sys::run("mount", &["--bind", &snapshots.to_string_lossy(), &default.to_string_lossy()])?;
        if settings.hold_runc {
            hold::prepare(run)?;
        }
        ledger.record(Leftover::ShimSockets { state: state.clone() })?;
        ledger.record(Leftover::ProcessesWith { argument: socket.clone() })?;
        File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut daemon = Containerd { socket, pid: 0, log, state, programs, config };
        daemon.launch(ledger, &daemon.programs.containerd.clone()).await?;
        Ok(daemon)
    }

    /// Ends the daemon, not the containers, and starts it again from `executable`, as a restart or an upgrade does.
    pub async fn restart(&mut self, ledger: &Ledger, executable: &Path) -> Result<()> {
        self.end(libc::SIGTERM).await?;
        self.launch(ledger, executable).await
    }

    /// Ends the daemon alone by a signal.
    pub async fn end(&self, signal: libc::c_int) -> Result<()> {
        let old = self.pid;
        sys::signal(old, signal);
        let ended = || matches!(sys::state(old), None | Some('Z'));
        anyhow::ensure!(sys::until(Duration::from_secs(20), ended).await, "containerd {old} does not end");
        let _ = fs::remove_file(&self.socket);
        Ok(())
    }

    /// Starts it again after [`Containerd::end`].
    pub async fn start_again(&mut self, ledger: &Ledger) -> Result<()> {
        self.launch(ledger, &self.programs.containerd.clone()).await
    }

    async fn launch(&mut self, ledger: &Ledger, executable: &Path) -> Result<()> {
        let output = File::options().append(true).open(&self.log);
        let output = output.with_context(|| format!("opening {}", self.log.display()))?;
        let mut command = Command::new(executable);
        command
            .arg("--config")
            .arg(&self.config)
            .arg("--address")
            .arg(&self.socket)
            .env("PATH", self.programs.path())
            // The times in its log are read.
            .env("TZ", "UTC")
            .stdin(Stdio::null())
            .stderr(output.try_clone().context("duplicating the log's descriptor")?)
            .stdout(output)
            // Ctrl-C shall reach only the lab, which then ends the others in the right order.
            .process_group(0);
        let child = command.spawn().with_context(|| format!("starting {}", executable.display()))?;
        let pid = child.id();
        self.pid = pid;
        ledger.record_process(pid, Duration::ZERO)?;
        let up = sys::until(Duration::from_secs(30), || {
            self.socket.exists() && self.ctr(&["version"]).is_ok() || sys::state(pid) == Some('Z')
        });
        if !up.await || sys::state(pid) == Some('Z') {
            bail!("containerd did not come up; the end of its log:\n{}", self.log_tail(15));
        }
        Ok(())
    }

    /// Imports the lab's image of that name.
    pub fn import_image(&self, run: &Path, name: &str) -> Result<()> {
        let tar = run.join("image.tar");
        if machine::is_around() && name == image::NAME {
            fs::copy(machine::IMAGE, &tar).with_context(|| format!("copying {}", machine::IMAGE))?;
        } else {
            image::write(&tar, name)?;
        }
        self.ctr(&["-n", "k8s.io", "images", "import", &tar.to_string_lossy()])?;
        fs::remove_file(&tar).with_context(|| format!("removing {}", tar.display()))
    }

    /// Its version, as it says: `1.6.20~ds1`.
    pub fn version(&self) -> Option<String> {
        self.programs.version()
    }

    /// The last lines of the daemon's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// The shim of a running container: the parent of its init process.
    pub fn shim_of(&self, container: &str) -> Result<u32> {
        let init = self.init_of(container)?;
        let status = fs::read_to_string(format!("/proc/{init}/status"))
            .with_context(|| format!("reading the parent of {init}"))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
            .with_context(|| format!("no parent of {init}"))
    }

    /// The init process of a running container.
    pub fn init_of(&self, container: &str) -> Result<u32> {
        let file = self.bundle(container).join("init.pid");
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        text.trim().parse().with_context(|| format!("{} holds {text:?}", file.display()))
    }

    /// The bundle of a container: what the daemon and the shim know of it, and its root file system.
    pub fn bundle(&self, container: &str) -> PathBuf {
        self.state.join("io.containerd.runtime.v2.task/k8s.io").join(container)
    }

    fn ctr(&self, args: &[&str]) -> Result<String> {
        let ctr =
            self.programs.folder.as_ref().map(|folder| folder.join("ctr")).filter(|path| path.is_file());
        let ctr = ctr.unwrap_or_else(|| PathBuf::from("ctr"));
        let socket = self.socket.to_string_lossy();
        let args: Vec<&str> = ["--address", &socket].iter().chain(args).copied().collect();
        sys::run(&ctr.to_string_lossy(), &args)
    }
}

fn config_text(run: &Path, scratch: &Path, snapshots: &Path, settings: &Settings) -> String {
    let snapshotter = settings.snapshotter;
    let options = if settings.volatile { r#"mount_options = ["volatile"]"# } else { "" };
    let program = match settings.hold_runc {
        true => format!("BinaryName = \"{}\"", hold::script(run).display()),
        false => String::new(),
    };
    let (run, scratch, snapshots, image) =
        (run.display(), scratch.display(), snapshots.display(), image::NAME);
    format!(
        r#"version = 2
root = "{scratch}/root"
state = "{run}/state"

[grpc]
  address = "{run}/containerd.sock"

[ttrpc]
  address = "{run}/containerd.sock.ttrpc"

[plugins."io.containerd.grpc.v1.cri"]
  # A process below OOM score 0 may not lower it again inside an unprivileged outer container.
  restrict_oom_score_adj = true
  sandbox_image = "{image}"

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "{snapshotter}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  Root = "{run}/runc"
  SystemdCgroup = false
  {program}

# Only the snapshots lie on the slow disk: the daemon's own databases stay fast, as on a node with a separate disk.
[plugins."io.containerd.snapshotter.v1.{snapshotter}"]
  root_path = "{snapshots}"
  {options}

# From containerd 1.7 on: it would listen in /run/nri, where the machine's own daemon may listen.
[plugins."io.containerd.nri.v1.nri"]
  disable = true
"#
    )
}
