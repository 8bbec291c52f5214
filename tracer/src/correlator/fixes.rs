//! The fixes that are known: what to do, how, since when, and what it costs. `docs/fixes.md` has a section for each, with what
//! it rests on; `advice.rs` knows where each applies and what it would have saved.

use super::frame::Fix;
use crate::event::Ns;

/// A fix that is known, with what does not depend on where it is offered.
pub struct Known {
    /// Its heading in `docs/fixes.md`.
    pub id: &'static str,
    /// What to do, in a few words.
    pub title: &'static str,
    /// What it changes.
    pub effect: &'static str,
    /// How to apply it.
    pub how: &'static str,
    /// Since which version; empty when any.
    pub since: &'static str,
    /// What it costs.
    pub side_effects: &'static str,
    /// The first release of each line of containerd that has it; empty when it needs none.
    pub containerd: &'static [Version],
}

/// `major.minor.patch`.
pub type Version = [u32; 3];

pub(super) const VOLATILE: Known = Known {
    id: "volatile",
    title: "overlay option volatile",
    effect: "the unmount does not sync: seconds become milliseconds",
    how: r#"mount_options = ["volatile"] under [plugins."io.containerd.snapshotter.v1.overlayfs"] in /etc/containerd/config.toml, and restart containerd when nothing is stuck; it holds for containers made from then on"#,
    since: "kernel 5.10, containerd 1.6.24 or 1.7.4",
    side_effects: "a later sync pays; pulled layers can be lost on power failure; images with a VOLUME do not start before containerd 1.6.34 or 1.7.19",
    containerd: &[[1, 6, 24], [1, 7, 4]],
};

pub(super) const READ_ONLY_TEMPORARY: Known = Known {
    id: "read-only-temporary-mounts",
    title: "upgrade containerd: its temporary mounts are read-only",
    effect: "the unmount of what it mounts to look up the image's user does not sync; volatile is taken off this mount and does not help",
    how: "upgrade containerd, and restart it when nothing is stuck",
    since: "containerd 1.6.21 or 1.7.1 (volumes of an image: 1.5)",
    side_effects: "those of an upgrade",
    containerd: &[[1, 6, 21], [1, 7, 1]],
};

pub(super) const CPU_MANAGER_NONE: Known = Known {
    id: "cpu-manager-none",
    title: "CPU-manager policy none",
    effect: "no UpdateContainerResources every 10s, so nobody waits behind the unmount, which lasts as long",
    how: "drain the node, stop the kubelet, cpuManagerPolicy: none in /var/lib/kubelet/config.yaml, rm /var/lib/kubelet/cpu_manager_state, start the kubelet",
    since: "",
    side_effects: "no exclusive CPUs for pods; an in-place resize still updates",
    containerd: &[],
};

pub(super) const REFUSE_UPDATES: Known = Known {
    id: "refuse-updates",
    title: "an own build of containerd that refuses updates of exiting containers",
    effect: "the update fails at once instead of holding the Status lock, and the unmount lasts as long",
    how: "build containerd with its pull request 9771, which was closed without being merged",
    since: "no release has it",
    side_effects: "the kubelet may see Unknown and run finished jobs again; a build of one's own to maintain",
    containerd: &[],
};

pub(super) const DIRTY_BYTES: Known = Known {
    id: "dirty-bytes",
    title: "vm.dirty_bytes below 60s of the disk's write rate",
    effect: "bounds the longest sync to about 60s",
    how: "in /etc/sysctl.d: vm.dirty_bytes = 60 x the bytes per second that the disk writes, vm.dirty_background_bytes = a quarter of that; then sysctl --system",
    since: "",
    side_effects: "writers are held back earlier; replaces vm.dirty_ratio and vm.dirty_background_ratio",
    containerd: &[],
};

pub(super) const IO_MAX: Known = Known {
    id: "io-max",
    title: "io.max, with memory.high, on the writer's cgroup",
    effect: "leaves the disk to the others; memory.high bounds what a sync waits for on its account",
    how: r#"echo "MAJOR:MINOR wbps=BYTES" > io.max and echo BYTES > memory.high in the pod's cgroup below /sys/fs/cgroup"#,
    since: "cgroup v2 (on v1 it does not hold back buffered writes)",
    side_effects: "a sync waits for the writer's pages at that rate: without memory.high it takes longer, not shorter",
    containerd: &[],
};

pub(super) const DISK_SPLIT: Known = Known {
    id: "disk-split",
    title: "containerd's root on another disk than the pods' writable layers",
    effect: "status writes no longer queue behind the pods' dirty pages",
    how: r#"drain the node; root = "/other/disk" in /etc/containerd/config.toml, with root_path under [plugins."io.containerd.snapshotter.v1.overlayfs"] on the old one; images are pulled again"#,
    since: "",
    side_effects: "a second disk; does not shorten an unmount's sync",
    containerd: &[],
};

pub(super) const DRAIN_WAIT: Known = Known {
    id: "drain-wait",
    title: "no process may keep a container's output open when it has ended",
    effect: "Delete goes on at once",
    how: "no hostPID or shareProcessNamespace for pods whose children outlive them, and a log disk that keeps up",
    since: "Delete waits 2s at most, 10s since containerd 1.7.29, 2.0.7, 2.1.5",
    side_effects: "",
    containerd: &[],
};

pub(super) const UPGRADE_LEAKED_SHIMS: Known = Known {
    id: "upgrade-leaked-shims",
    title: "upgrade containerd: it ends the shim even when the Delete was given up",
    effect: "a slow unmount leaves no shim behind",
    how: "upgrade containerd, and restart it when nothing is stuck",
    since: "containerd 1.6.24 or 1.7.4",
    side_effects: "those of an upgrade",
    containerd: &[[1, 6, 24], [1, 7, 4]],
};

pub(super) const UPGRADE: Known = Known {
    id: "upgrade",
    title: "upgrade the program named in the chain",
    effect: "a deadlock is a bug",
    how: "look for it in the program's list of issues, with the chain",
    since: "",
    side_effects: "those of an upgrade",
    containerd: &[],
};

pub(super) const NO_HOST_ROOT: Known = Known {
    id: "no-host-root",
    title: "agent pods without the host's root, or with mountPropagation: HostToContainer",
    effect: "unmounts are not refused any more",
    how: "remove the hostPath / from the pod, or set mountPropagation: HostToContainer at its volumeMount",
    since: "",
    side_effects: "the agent sees less of the host",
    containerd: &[],
};

pub(super) const SOFT_NFS: Known = Known {
    id: "soft-nfs",
    title: "mount it soft, with a time-out",
    effect: "the wait is bounded",
    how: "mountOptions: [soft, timeo=100, retrans=3] of the PersistentVolume or in fstab, and mount again",
    since: "",
    side_effects: "writes may fail with EIO and data be lost",
    containerd: &[],
};

pub(super) const CGROUPFS: Known = Known {
    id: "cgroupfs",
    title: "fewer systemd units and mounts on the node, or the cgroupfs driver",
    effect: "no D-Bus call to wait for",
    how: "drain the node; SystemdCgroup = false in containerd's runc options and cgroupDriver: cgroupfs in the kubelet's config; restart both",
    since: "",
    side_effects: "must be the same in kubelet and containerd; two managers of one cgroup tree on a systemd host",
    containerd: &[],
};

pub(super) const RESERVE: Known = Known {
    id: "reserve",
    title: "CPU and memory kept for containerd and the kubelet",
    effect: "they go on when pods want everything",
    how: "systemctl set-property containerd.service CPUQuota= CPUWeight=1000 MemoryMin=512M, the same for kubelet.service; kubeReserved and systemReserved in the kubelet's config",
    since: "",
    side_effects: "less is left for pods",
    containerd: &[],
};

pub(super) const NO_FREEZER: Known = Known {
    id: "no-freezer",
    title: "nothing may freeze, stop or trace containerd, its shims or the kubelet",
    effect: "they go on",
    how: "keep them in cgroups that no checkpoint, snapshot or backup job freezes; no strace or debugger on them",
    since: "",
    side_effects: "",
    containerd: &[],
};

/// All fixes that are known. Of fixes that save as much, the one that comes first here is named first.
pub const FIXES: [&Known; 15] = [
    &VOLATILE,
    &READ_ONLY_TEMPORARY,
    &CPU_MANAGER_NONE,
    &DIRTY_BYTES,
    &DISK_SPLIT,
    &REFUSE_UPDATES,
    &IO_MAX,
    &NO_HOST_ROOT,
    &DRAIN_WAIT,
    &SOFT_NFS,
    &CGROUPFS,
    &RESERVE,
    &NO_FREEZER,
    &UPGRADE_LEAKED_SHIMS,
    &UPGRADE,
];

impl Known {
    /// As it is offered, with the seconds that it would have saved.
    pub(super) fn saving(&self, saves: Option<Ns>) -> Fix {
        Fix {
            id: self.id.into(),
            what: self.title.into(),
            effect: self.effect.into(),
            saves: saves.filter(|ns| *ns > 0),
            how: self.how.into(),
            since: self.since.into(),
            side_effects: self.side_effects.into(),
        }
    }

    /// Its place in the table.
    pub(super) fn place(id: &str) -> usize {
        FIXES.iter().position(|known| known.id == id).unwrap_or(FIXES.len())
    }

    /// Whether this version of containerd has it; `None` when the version cannot be told.
    pub fn is_in(&self, containerd: Option<&str>) -> Option<bool> {
        let this = version(containerd?)?;
        let own_line = self.containerd.iter().find(|first| first[..2] == this[..2]);
        Some(match own_line {
            Some(first) => this >= *first,
            None => self.containerd.last().is_none_or(|newest| this > *newest),
        })
    }
}

/// The numbers of `1.6.20`, `v1.7.24`, `1.6.20~ds1` or `2.1.9+unknown`.
fn version(text: &str) -> Option<Version> {
    let mut numbers = text.trim_start_matches('v').splitn(3, '.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().ok()
    });
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCS: &str = include_str!("../../../docs/fixes.md");

    #[test]
    fn the_docs_have_a_section_for_each_fix_with_what_it_rests_on() {
        let sections: Vec<&str> = DOCS.split("\n## ").skip(1).collect();
        let ids: Vec<&str> = sections.iter().filter_map(|s| s.lines().next()).collect();
        let table: Vec<&str> = FIXES.iter().map(|known| known.id).collect();
        assert_eq!(ids, table, "headings of docs/fixes.md and the table");
        for (section, known) in sections.iter().zip(FIXES) {
            assert_eq!(section.lines().nth(2), Some(format!("**{}**", known.title).as_str()));
            let says = |what: &str| {
                let start = format!("* **{what}:** ");
                section.lines().any(|line| line.len() > start.len() && line.starts_with(&start))
            };
            assert!(says("Tested") || says("Cited"), "{} rests on nothing", known.id);
            assert!(says("Saves") && says("Apply"), "{} says too little", known.id);
        }
    }
}
