//! What helps, by what a chain ends in. A table in prose: measured or sourced, each with its price.

use super::frame::{Advice, DeviceName, EndsIn, Fix};
use super::words;
use crate::event::Kind;

/// What is known beyond the end itself.
pub struct Circumstances<'a> {
    /// Whether somebody waits for a lock on the way.
    pub through_locks: bool,
    /// Whether an UpdateContainerResources call is on the way.
    pub through_update: bool,
    /// Whether the container's overlay is known to be volatile.
    pub volatile: bool,
    /// Whether it is containerd's own temporary mount that is unmounted: it is never volatile.
    pub temporary: bool,
    /// Operation kinds on the way.
    pub kinds: &'a [Kind],
}

fn fix(what: &str, effect: &str, since: &str, side_effects: &str) -> Fix {
    Fix {
        what: what.into(),
        effect: effect.into(),
        saves: None,
        how: String::new(),
        since: since.into(),
        side_effects: side_effects.into(),
    }
}

/// What helps against this.
pub fn advice(ends_in: &EndsIn, on: &Circumstances<'_>) -> Advice {
    let mut a = Advice::default();
    let in_runtime = on.kinds.iter().any(|k| !super::operations::is_kernel(*k));
    match ends_in {
        EndsIn::UnmountSync { device, .. } | EndsIn::Unmount { device: device @ Some(_), .. } => {
            disk(&mut a, device.as_ref(), on);
        }
        EndsIn::Sync { device, .. } => {
            a.do_now.push(limit_writer(device.as_ref()));
            a.fixes.push(dirty_bytes());
        }
        EndsIn::Unmount { device: None, .. } => {
            a.do_now.push("run `plegscope doctor`: it says which kernel probe is off and why; look at dirty memory and the disks' write rates".into());
            if on.temporary {
                a.fixes.push(read_only_temporary());
            } else if !on.volatile {
                a.fixes.push(volatile());
            }
        }
        EndsIn::MountBusy { pins, .. } if !pins.is_empty() => {
            let who: Vec<String> =
                pins.iter().take(3).map(|p| format!("{} (pid {})", p.comm, p.pid)).collect();
            a.do_now.push(format!("end {} or unmount it there; the unmount is tried again", who.join(", ")));
            a.fixes.push(no_host_root());
        }
        EndsIn::MountBusy { .. } => {
            a.do_now.push("find who keeps the mount: grep the path in /proc/*/mountinfo; end that process or unmount it there".into());
            a.fixes.push(no_host_root());
        }
        EndsIn::RemoteFileSystem { what } => {
            a.do_now
                .push(format!("see why the {what} server does not answer; the unmount goes on when it does"));
            a.fixes.push(fix(
                "mount it soft, or with a time-out",
                "the wait is bounded",
                "",
                "writes may fail with EIO",
            ));
        }
        EndsIn::IoDrain => {
            a.do_now.push("find who holds the container's output pipe open (a child that outlived it, or a stuck log reader)".into());
            a.do_now.push("know the limit: Delete waits 2s for output (10s since containerd 1.7.29, 2.0.7, 2.1.5); beyond that look for a runc child of the shim".into());
        }
        EndsIn::StatusWrite => {
            a.do_now.push(
                "limit who writes to the disk that holds containerd's root and state (io.max of its cgroup)"
                    .into(),
            );
            a.fixes.push(fix(
                "put containerd's root on another disk than the pods' writable layers",
                "status writes no longer queue behind the pods' dirty pages",
                "",
                "a second disk",
            ));
            a.fixes.push(dirty_bytes());
        }
        EndsIn::CgroupOrDbus => {
            a.do_now.push("see whether systemd answers: `busctl status` and `systemctl list-jobs`; see `ps` for runc children of the shim".into());
            a.fixes.push(fix(
                "fewer systemd units and mounts on the node, or the cgroupfs driver",
                "D-Bus calls answer in time",
                "",
                "the cgroup driver must be the same in kubelet and containerd",
            ));
        }
        EndsIn::Frozen { by } => {
            a.do_now.push(format!("let it go on: it is {by}"));
        }
        EndsIn::Starved { by } => {
            a.do_now.push(format!("give it what it needs: it is {by}"));
        }
        EndsIn::ExitRetry { .. } => {
            a.do_now.push("wait: nothing blocks it any more, and containerd tries again by itself, five minutes after the last attempt at most".into());
        }
        EndsIn::LeakedShims { .. } => {
            a.do_now.push("nothing waits for them, they only hold memory: see that their containers are gone (`crictl ps -a`), then end them one by one, by pid".into());
            a.fixes.push(fix(
                "upgrade containerd: it deletes the shim even when the Delete was given up",
                "a slow unmount leaves no shim behind",
                "containerd 1.6.24, 1.7.4",
                "",
            ));
        }
        EndsIn::Cycle => {
            a.do_now.push("save the evidence (`plegscope now --json`): this does not end by itself; report it to the program's authors".into());
            a.fixes.push(fix("upgrade the program named in the chain", "a deadlock is a bug", "", ""));
        }
        EndsIn::NotVisible { .. } => {
            a.do_now
                .push("run `plegscope doctor`: it says what cannot be seen and how to change that".into());
        }
    }
    if in_runtime && !matches!(ends_in, EndsIn::Cycle) {
        a.do_not.push(
            "do not restart containerd (containers turn Unknown, pods are recreated, shims leak)".into(),
        );
        a.do_not.push("do not signal or kill the shim".into());
    }
    if on.through_update {
        a.fixes.push(fix(
            "CPU-manager policy none",
            "no UpdateContainerResources every 10s, so the lock chain does not form",
            "",
            "no exclusive CPUs for pods",
        ));
    }
    a
}

fn disk(a: &mut Advice, device: Option<&DeviceName>, on: &Circumstances<'_>) {
    a.do_now.push(limit_writer(device));
    if on.temporary {
        a.fixes.push(read_only_temporary());
    } else if !on.volatile {
        a.fixes.push(volatile());
    }
    a.fixes.push(dirty_bytes());
    if on.through_locks {
        a.do_not.push(
            "do not expect a disk split to help: the sync writes what the pods dirtied, wherever that is"
                .into(),
        );
    }
}

fn limit_writer(device: Option<&DeviceName>) -> String {
    match device {
        Some(d) => format!(
            "limit who writes to {} (io.max of its cgroup, or stop that pod); the sync ends when the dirty pages are written",
            words::device(d)
        ),
        None => "limit who writes to the disk (io.max of its cgroup, or stop that pod); the sync ends when the dirty pages are written".into(),
    }
}

fn volatile() -> Fix {
    fix(
        "overlay option volatile: mount_options = [\"volatile\"] of the overlayfs snapshotter",
        "the unmount does not sync: seconds become milliseconds",
        "kernel 5.10, containerd 1.6.24 or 1.7.24 (1.6.20 ignores it silently)",
        "a later sync pays; pulled layers can be lost on power failure",
    )
}

fn no_host_root() -> Fix {
    fix(
        "do not mount the host's root into agent pods, or mount it with propagation HostToContainer",
        "unmounts are not refused any more",
        "",
        "",
    )
}

fn read_only_temporary() -> Fix {
    fix(
        "upgrade containerd: it mounts the image read-only to look up its user; volatile is taken off this mount and does not help",
        "the unmount does not sync",
        "containerd 1.6.21 or 1.7.1 (volumes of an image: 1.5)",
        "",
    )
}

fn dirty_bytes() -> Fix {
    fix(
        "vm.dirty_bytes and vm.dirty_background_bytes below 60s of the disk's write rate",
        "bounds the longest sync",
        "",
        "writers are throttled earlier",
    )
}
