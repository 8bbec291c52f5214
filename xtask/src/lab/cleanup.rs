//! What a lab run leaves on the machine, written down before it is made, and taken away again.
//!
//! Every run keeps a ledger file of JSON lines. The ledger is undone when it is dropped (normal end, error, panic,
//! Ctrl-C); after a kill -9 `cargo xtask demo --clean` finds the file and undoes it.

use super::sys;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Folder of the ledger files, one per run.
const LEDGERS: &str = "/run/plegscope-lab";

/// One thing a run made. Undone in the order of the variants: first what keeps others stuck, last the folders.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Leftover {
    /// A line to write to a control file: `MAJ:MIN 0` lifts a throttle. Comes first: the others wait
    /// for the disk.
    Setting {
        /// The control file.
        file: PathBuf,
        /// What to write.
        line: String,
    },
    /// A process by pid and start time: SIGTERM, then SIGKILL after `patience_ms`. Tracers, which must go
    /// before what they are attached to, and the daemon, which would start helpers when it sees its shims die.
    Process {
        /// Process id.
        pid: u32,
        /// Start time in clock ticks, so that a reused pid is left alone.
        started: u64,
        /// How long SIGTERM may take.
        patience_ms: u64,
    },
    /// All processes in this cgroup (path below each hierarchy's root) and the empty cgroups themselves.
    Cgroup {
        /// Path without a leading slash.
        path: PathBuf,
    },
    /// All processes that carry this argument: containerd and its shims carry the path of our socket.
    ProcessesWith {
        /// The whole argument.
        argument: PathBuf,
    },
    /// Shim sockets outside of our folders: the addresses in the bundles below this state folder.
    ShimSockets {
        /// containerd's state folder.
        state: PathBuf,
    },
    /// Every mount at or below this path, innermost first.
    Mounts {
        /// The path.
        below: PathBuf,
    },
    /// The loop device made from this file.
    Loop {
        /// The backing file.
        image: PathBuf,
    },
    /// Symbolic links in `folder` that lead to something below `into`.
    Links {
        /// Where the links are.
        folder: PathBuf,
        /// Where they lead.
        into: PathBuf,
    },
    /// A folder and all in it, without crossing into mounts (they are gone by then).
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// A folder that was not there before, and that others may have begun to use: removed only when it is empty.
    EmptyFolder {
        /// The folder.
        path: PathBuf,
    },
}

/// The list of leftovers of one run.
///
/// Owned outside of the runtime that the run lives in, so that all tasks and the files they hold are gone before it is
/// undone.
pub struct Ledger {
    /// Name of the run; its folders and cgroups are called so.
    pub name: String,
    file: PathBuf,
    written: RefCell<Written>,
}

struct Written {
    log: File,
    entries: Vec<Leftover>,
}

#[derive(Serialize, Deserialize)]
struct Owner {
    pid: u32,
    started: u64,
}

impl Ledger {
    /// Opens a ledger for a new run.
    pub fn open() -> Result<Ledger> {
        // Pid and time together are unique on one machine.
        let name = format!("plegscope-lab-{}-{:x}", std::process::id(), sys::realtime() / 1_000_000_000);
        fs::create_dir_all(LEDGERS).with_context(|| format!("creating {LEDGERS}"))?;
        let file = Path::new(LEDGERS).join(format!("{name}.jsonl"));
        let mut log = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(&file)
            .with_context(|| format!("creating {}", file.display()))?;
        let pid = std::process::id();
        let owner = Owner { pid, started: sys::start_time(pid).unwrap_or(0) };
        writeln!(log, "{}", serde_json::to_string(&owner)?)?;
        Ok(Ledger { name, file, written: RefCell::new(Written { log, entries: Vec::new() }) })
    }

    /// Writes down what is about to be made.
    pub fn record(&self, leftover: Leftover) -> Result<()> {
        let mut written = self.written.borrow_mut();
        if !written.entries.contains(&leftover) {
            writeln!(written.log, "{}", serde_json::to_string(&leftover)?)
                .with_context(|| format!("writing {}", self.file.display()))?;
            written.entries.push(leftover);
        }
        Ok(())
    }

    /// Writes down a process that was just started.
    pub fn record_process(&self, pid: u32, patience: Duration) -> Result<()> {
        let started = sys::start_time(pid).unwrap_or(0);
        self.record(Leftover::Process { pid, started, patience_ms: patience.as_millis() as u64 })
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        finish(&self.file, &self.written.borrow().entries);
    }
}

/// Undoes runs whose owner is dead. Returns what was found, in words.
pub fn clean_leftovers() -> Result<Vec<String>> {
    let mut report = Vec::new();
    let Ok(files) = fs::read_dir(LEDGERS) else { return Ok(report) };
    for file in files.flatten().map(|entry| entry.path()) {
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let mut lines = text.lines();
        let owner: Option<Owner> = lines.next().and_then(|line| serde_json::from_str(line).ok());
        if let Some(owner) = owner
            && sys::start_time(owner.pid) == Some(owner.started)
        {
            report.push(format!("{}: still running as pid {}, left alone", file.display(), owner.pid));
            continue;
        }
        // A run that was killed while writing leaves a half line: what is not whole was not made yet.
        let entries: Vec<Leftover> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
        report.push(format!("{}: {} entries undone", file.display(), entries.len()));
        finish(&file, &entries);
    }
    Ok(report)
}

/// Undoes all entries; the ledger file stays when something could not be undone.
fn finish(file: &Path, entries: &[Leftover]) {
    let mut entries = entries.to_vec();
    entries.sort_by(order);
    let mut failed = false;
    for entry in &entries {
        if let Err(error) = undo(entry) {
            failed = true;
            eprintln!("clean-up: {error:#}");
        }
    }
    if failed {
        eprintln!("clean-up is incomplete; `cargo xtask demo --clean` tries again ({})", file.display());
    } else {
        let _ = fs::remove_file(file);
        let _ = fs::remove_dir(LEDGERS); // fails while another run has its ledger there, rightly
    }
}

/// By kind, and within a kind the deeper path first.
fn order(a: &Leftover, b: &Leftover) -> std::cmp::Ordering {
    match (a, b) {
        (Leftover::EmptyFolder { path: a }, Leftover::EmptyFolder { path: b }) => b.cmp(a),
        _ => a.cmp(b),
    }
}

fn undo(entry: &Leftover) -> Result<()> {
    match entry {
        Leftover::Process { pid, started, patience_ms } => {
            let gone = || sys::start_time(*pid) != Some(*started) || sys::state(*pid) == Some('Z');
            if !gone() {
                sys::signal(*pid, libc::SIGTERM);
                if !sys::wait_until(Duration::from_millis(*patience_ms), gone) {
                    sys::signal(*pid, libc::SIGKILL);
                    sys::wait_until(Duration::from_secs(20), gone);
                }
            }
            anyhow::ensure!(gone(), "process {pid} does not die (state {:?})", sys::state(*pid));
            reap(*pid);
            Ok(())
        }
        Leftover::Setting { file, line } => match fs::write(file, line) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result.with_context(|| format!("writing `{line}` to {}", file.display())),
        },
        Leftover::Cgroup { path } => remove_cgroups(path),
        Leftover::ProcessesWith { argument } => {
            let alive = || -> Vec<u32> {
                let pids = sys::pids_with_argument(argument).into_iter();
                pids.filter(|pid| sys::state(*pid) != Some('Z') && *pid != std::process::id()).collect()
            };
            let mut killed = std::collections::BTreeSet::new();
            let gone = sys::wait_until(Duration::from_secs(90), || {
                let pids = alive();
                pids.iter().for_each(|pid| sys::signal(*pid, libc::SIGKILL));
                killed.extend(pids.iter().copied());
                pids.is_empty()
            });
            killed.iter().for_each(|pid| reap(*pid));
            anyhow::ensure!(gone, "processes {:?} with {} do not die", alive(), argument.display());
            Ok(())
        }
        Leftover::ShimSockets { state } => {
            for socket in shim_sockets(state) {
                let _ = fs::remove_file(socket);
            }
            Ok(())
        }
        Leftover::Mounts { below } => unmount_all(below),
        Leftover::Loop { image } => {
            for line in sys::run("losetup", &["-n", "-O", "NAME,BACK-FILE", "-l"])?.lines() {
                if let Some((device, file)) = line.split_once(char::is_whitespace)
                    && Path::new(file.trim().trim_end_matches(" (deleted)")) == image
                {
                    sys::run("losetup", &["-d", device])?;
                }
            }
            Ok(())
        }
        Leftover::Links { folder, into } => {
            for link in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if fs::read_link(&link).is_ok_and(|target| target.starts_with(into)) {
                    fs::remove_file(&link).with_context(|| format!("removing {}", link.display()))?;
                }
            }
            Ok(())
        }
        Leftover::Folder { path } => {
            let busy = mounts_below(path)?;
            anyhow::ensure!(busy.is_empty(), "{} still has mounts: {busy:?}", path.display());
            match fs::remove_dir_all(path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                result => result.with_context(|| format!("removing {}", path.display())),
            }
        }
        Leftover::EmptyFolder { path } => {
            let _ = fs::remove_dir(path); // refused when somebody else has put something there, rightly
            Ok(())
        }
    }
}

/// Empty folders among the paths that a containerd makes outside of its own root and state; call it before one starts.
pub fn folders_not_there(paths: &[&str]) -> Vec<Leftover> {
    paths
        .iter()
        .filter(|path| !Path::new(path).exists())
        .map(|path| Leftover::EmptyFolder { path: path.into() })
        .collect()
}

/// Collects the exit status of a child of ours, so that it does not stay as a zombie.
fn reap(pid: u32) {
    // SAFETY: a null status pointer is allowed; WNOHANG never blocks; a pid that is no child of ours gives ECHILD.
    unsafe { libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), libc::WNOHANG) };
}

/// Mount points at or below `path`, in the order they were mounted.
pub fn mounts_below(path: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(path))
        .collect())
}

fn unmount_all(path: &Path) -> Result<()> {
    for point in mounts_below(path)?.iter().rev() {
        let point = point.to_string_lossy();
        // A process that was just killed may hold its working folder for a moment.
        if !sys::wait_until(Duration::from_secs(5), || sys::run("umount", &[&point]).is_ok()) {
            // Somebody else sits in there: the mount goes when they leave, the name goes now.
            sys::run("umount", &["-l", &point])?;
        }
    }
    Ok(())
}

/// Sockets of the shims whose bundles lie below a containerd state folder.
fn shim_sockets(state: &Path) -> Vec<PathBuf> {
    let tasks = state.join("io.containerd.runtime.v2.task");
    let folders = |path: &Path| -> Vec<PathBuf> {
        fs::read_dir(path).map(|dir| dir.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
    };
    let mut sockets = Vec::new();
    for bundle in folders(&tasks).iter().flat_map(|namespace| folders(namespace)) {
        for name in ["address", "bootstrap.json"] {
            let Ok(text) = fs::read_to_string(bundle.join(name)) else { continue };
            let address = serde_json::from_str::<serde_json::Value>(&text)
                .ok()
                .and_then(|json| json.get("address")?.as_str().map(str::to_owned))
                .unwrap_or(text);
            if let Some(path) = address.trim().strip_prefix("unix://") {
                sockets.push(PathBuf::from(path));
            }
        }
    }
    sockets
}

/// The roots of the cgroup hierarchies of this machine, v1 and v2.
pub fn cgroup_roots() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter(|line| line.contains(" - cgroup ") || line.contains(" - cgroup2 "))
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .collect()
}

fn remove_cgroups(path: &Path) -> Result<()> {
    let folders: Vec<PathBuf> =
        cgroup_roots().iter().map(|root| root.join(path)).filter(|folder| folder.is_dir()).collect();
    let mut left = Vec::new();
    for folder in folders {
        let removed = sys::wait_until(Duration::from_secs(20), || {
            kill_and_remove(&folder);
            !folder.exists()
        });
        if !removed {
            left.push(folder);
        }
    }
    anyhow::ensure!(left.is_empty(), "cgroups could not be emptied: {left:?}");
    Ok(())
}

/// One attempt: kills what runs in a cgroup and below, removes what is empty.
fn kill_and_remove(folder: &Path) {
    if let Ok(entries) = fs::read_dir(folder) {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            kill_and_remove(&entry.path());
        }
    }
    if let Ok(procs) = fs::read_to_string(folder.join("cgroup.procs")) {
        // 0 stands for a process of another pid namespace, and would signal our own group.
        let pids = procs.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1);
        pids.for_each(|pid: u32| sys::signal(pid, libc::SIGKILL));
    }
    let _ = fs::remove_dir(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_undone_from_the_cause_to_the_folder() {
        let setting = Leftover::Setting { file: "/x".into(), line: "7:0 0".into() };
        let process = Leftover::Process { pid: 7, started: 1, patience_ms: 1 };
        let folder = Leftover::Folder { path: "/a".into() };
        let mounts = Leftover::Mounts { below: "/z".into() };
        let image = Leftover::Loop { image: "/b".into() };
        let mut entries = [
            Leftover::EmptyFolder { path: "/run/c".into() },
            Leftover::EmptyFolder { path: "/run/c/s".into() },
            folder.clone(),
            image.clone(),
            mounts.clone(),
            setting.clone(),
            process.clone(),
        ];
        entries.sort_by(order);
        assert_eq!(entries[..5], [setting, process, mounts, image, folder]);
        assert_eq!(entries[5], Leftover::EmptyFolder { path: "/run/c/s".into() });
    }

    #[test]
    fn a_ledger_survives_as_json_lines() {
        let entry = Leftover::ProcessesWith { argument: "/run/x/containerd.sock".into() };
        let line = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<Leftover>(&line).unwrap(), entry);
    }
}
