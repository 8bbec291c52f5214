//! What the engine looks at, and lays hands on, outside of containerd and plegscope: processes, control groups, bundles.

use super::language::Pin;
use crate::lab::cleanup::{Ledger, Leftover, cgroup_roots};
use crate::lab::cri::{self, Client};
use crate::lab::kubelet_like::Call;
use crate::lab::unmounts::Stay;
use crate::lab::{Lab, pods, sys};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A daemon's call that writes and is shorter than this is no news, ns.
const LONG: u64 = 100_000_000;

/// What is so for as long as this stays so, ns.
const LASTING: u64 = 1_000_000_000;

/// How long one more client waits for its update: longer than a kubelet.
const PATIENT: Duration = Duration::from_secs(600);

/// The calls of a daemon that wait for a disk: the unmount, and what writes.
pub const DAEMON: &[libc::c_long] = &[
    libc::SYS_umount2,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_write,
    libc::SYS_pwrite64,
];

/// The stays of a daemon that tell something.
pub fn of_daemon(stays: impl Iterator<Item = Stay>) -> Vec<Stay> {
    let tells =
        |stay: &Stay| stay.call == libc::SYS_umount2 || stay.end.is_none_or(|end| end - stay.begin > LONG);
    stays.filter(tells).collect()
}

/// Notes when a process exits (a zombie has exited), to 5 ms.
pub fn exit_of(pid: u32) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        while !matches!(sys::state(pid), None | Some('Z')) {
            std::thread::sleep(Duration::from_millis(5));
        }
        sys::monotonic()
    })
}

/// The time an exit was noted at, once it was.
pub async fn noted(exit: JoinHandle<u64>, limit: Duration) -> Result<u64> {
    anyhow::ensure!(
        sys::until(limit, || exit.is_finished()).await,
        "the process does not exit within {limit:?}"
    );
    exit.join().map_err(|_| anyhow::anyhow!("the thread that watched a process died"))
}

/// Bytes dirty and under writeback in a container's group, by the kernel; 0 when there is no such file.
pub fn unwritten(below: &Path, container: &str) -> u64 {
    let folders = cgroup_roots();
    let groups =
        folders.iter().flat_map(|root| fs::read_dir(root.join(below)).into_iter().flatten().flatten());
    let stat = groups.map(|pod| pod.path().join(container).join("memory.stat"));
    let Some(text) = stat.filter_map(|file| fs::read_to_string(file).ok()).next() else { return 0 };
    let value = |names: [&str; 2]| -> u64 {
        let line = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            names.contains(&name).then(|| value.parse().ok())?
        };
        text.lines().find_map(line).unwrap_or(0)
    };
    value(["dirty", "file_dirty"]) + value(["writeback", "file_writeback"])
}

/// Keeps a root file system busy; the process that does, if one does.
pub fn pin(ledger: &Ledger, rootfs: &Path, init: u32, how: Pin) -> Result<Option<u32>> {
    let mut command = Command::new("sleep");
    match how {
        Pin::MountBelow => {
            let below = rootfs.join("lab");
            fs::create_dir_all(&below).with_context(|| format!("creating {}", below.display()))?;
            sys::run("mount", &["-t", "tmpfs", "plegscope-lab-below", &below.to_string_lossy()])?;
            return Ok(None);
        }
        Pin::InNamespace => {
            command = Command::new("nsenter");
            command.arg(format!("--mount=/proc/{init}/ns/mnt")).arg("/bin/sleep");
        }
        Pin::WorksIn => drop(command.current_dir(rootfs)),
        Pin::HasOpen | Pin::HoldsOutput => {}
    }
    command.arg("3600").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    match how {
        Pin::HasOpen => {
            let file = rootfs.join("bin/busybox");
            command.stdin(File::open(&file).with_context(|| format!("opening {}", file.display()))?);
        }
        Pin::HoldsOutput => {
            let file = format!("/proc/{init}/fd/1");
            let output = File::options().write(true).open(&file);
            command.stdout(output.with_context(|| format!("opening {file}"))?);
        }
        _ => {}
    }
    let pid = command.spawn().context("starting sleep")?.id();
    ledger.record_process(pid, Duration::from_secs(1))?;
    Ok(Some(pid))
}

/// Removes the bundles of a pod, which its shim was started with. The shim's socket is remembered for the clean-up.
pub fn forget(lab: &Lab<'_>, ledger: &Ledger, sandbox: &str, container: &str) -> Result<()> {
    let remembered = lab.run.join("forgotten");
    ledger.record(Leftover::ShimSockets { state: remembered.clone() })?;
    for id in [container, sandbox] {
        let bundle = lab.containerd.bundle(id);
        let copy = remembered.join("io.containerd.runtime.v2.task/k8s.io").join(id);
        fs::create_dir_all(&copy).with_context(|| format!("creating {}", copy.display()))?;
        for name in ["address", "bootstrap.json"] {
            let _ = fs::copy(bundle.join(name), copy.join(name)); // one of them is there, by version
        }
        sys::run("umount", &["-l", &bundle.join("rootfs").to_string_lossy()])?;
        fs::remove_dir_all(&bundle).with_context(|| format!("removing {}", bundle.display()))?;
    }
    Ok(())
}

/// The shims of this lab, each with the container or sandbox it was started for.
pub fn shims(lab: &Lab<'_>) -> Vec<(u32, String)> {
    let argument = |pid: u32, name: &str| -> Option<String> {
        let cmdline = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let mut arguments = cmdline.split('\0');
        arguments.find(|one| *one == name)?;
        arguments.next().map(str::to_owned)
    };
    sys::pids_with_argument(&lab.containerd.socket)
        .into_iter()
        .filter_map(|pid| Some((pid, argument(pid, "-id")?)))
        .collect()
}

/// Whether something has been so for a while: an unmount does not begin in the moment of the exit.
pub fn lasting(mut is: impl FnMut() -> bool) -> impl FnMut() -> bool {
    let mut since = None;
    move || {
        since = if is() { since.or(Some(sys::monotonic())) } else { None };
        since.is_some_and(|since| sys::monotonic() - since > LASTING)
    }
}

/// Updates a container once; the call is written down at its begin and at its end.
pub async fn update(client: Client, container: String, calls: Arc<Mutex<Vec<Call>>>) {
    let lock = || calls.lock().unwrap_or_else(PoisonError::into_inner);
    let index = lock().len();
    lock().push(Call {
        method: "UpdateContainerResources".to_owned(),
        container: Some(container.clone()),
        begin: sys::monotonic(),
        end: None,
        error: None,
    });
    let request =
        cri::UpdateContainerResourcesRequest { container_id: container, linux: Some(pods::resources()) };
    let answer: Result<cri::Empty, _> = client.call("UpdateContainerResources", request, PATIENT).await;
    let mut calls = lock();
    calls[index].end = Some(sys::monotonic());
    calls[index].error = answer.err().map(|status| format!("{:?}: {}", status.code(), status.message()));
}
