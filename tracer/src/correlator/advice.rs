//! What helps, by what a chain ends in: what eases it now, what makes it worse, and which known fix would have saved how
//! many of the stuck call's seconds.

use super::facts::Facts;
use super::fixes::{
    CGROUPFS, CPU_MANAGER_NONE, DIRTY_BYTES, DISK_SPLIT, DRAIN_WAIT, IO_MAX, Known, NO_FREEZER, NO_HOST_ROOT,
    READ_ONLY_TEMPORARY, REFUSE_UPDATES, RESERVE, SOFT_NFS, UPGRADE, UPGRADE_LEAKED_SHIMS, VOLATILE,
};
use super::frame::{Advice, DeviceName, Diagnosis, EndsIn, Fix, Link};
use super::operations::{is_kernel, is_temporary};
use super::words;
use crate::event::{Kind, Ns, Role};
use crate::thresholds::SECOND;
use std::cmp::Reverse;

/// A sync that lasts this long leaves time enough before the node is called NotReady.
const BOUND: Ns = 60 * SECOND;

/// No smaller limit is proposed, however little a disk has just written: writers would do nothing but wait.
const LEAST_DIRTY: u64 = 64 << 20;

/// What is known beyond the end itself.
#[derive(Default)]
pub struct Circumstances<'a> {
    /// The drawn chain, with what each link has cost.
    pub links: &'a [Link],
    /// Whether the container's overlay is known to be volatile.
    pub volatile: bool,
    /// The kubelet's CPU-manager policy, where it is known.
    pub cpu_manager: Option<&'a str>,
    /// The version of the containerd on the way, or of the node's only one, where it is known.
    pub containerd: Option<&'a str>,
    /// What the device writes, in bytes per second, where it is known.
    pub rate: Option<u64>,
}

impl<'a> Circumstances<'a> {
    fn of(ends_in: &EndsIn, links: &'a [Link], facts: &'a Facts) -> Circumstances<'a> {
        let on_the_way =
            |role: Role| links.iter().map(|l| &l.who).find(|w| w.role == Some(role)).map(|w| w.pid);
        let sole_daemon = || {
            let mut pids = facts.pids_of(Role::Containerd);
            pids.next().filter(|_| pids.next().is_none())
        };
        let culprit = links.iter().rev().find_map(|l| l.subject.as_ref());
        let device = match ends_in {
            EndsIn::UnmountSync { device, .. }
            | EndsIn::Sync { device, .. }
            | EndsIn::Unmount { device, .. } => device.as_ref(),
            _ => None,
        };
        Circumstances {
            links,
            volatile: culprit.and_then(|s| facts.container_of(&s.id)).and_then(|c| c.volatile) == Some(true),
            cpu_manager: facts
                .kubelet_of(on_the_way(Role::Kubelet))
                .and_then(|k| k.cpu_manager_policy.as_ref())
                .map(|(policy, _)| policy.as_str()),
            containerd: on_the_way(Role::Containerd)
                .or_else(sole_daemon)
                .and_then(|pid| facts.process_of(pid))
                .and_then(|p| p.version.as_deref()),
            rate: device.and_then(|d| facts.device_rate(d.device)).filter(|rate| *rate > 0),
        }
    }

    /// What the links that are such have cost.
    fn cost(&self, is_such: impl Fn(Kind) -> bool) -> Ns {
        self.links.iter().filter(|l| is_such(l.operation.kind)).map(|l| l.critical).sum()
    }

    /// What the unmount and what it waits for in the kernel have cost.
    fn unmounting(&self) -> Ns {
        self.cost(is_kernel)
    }

    /// What the last link has cost.
    fn tip(&self) -> Option<Ns> {
        self.links.last().map(|l| l.critical)
    }

    /// Whether the last link is containerd's own handling of an exit.
    fn in_the_daemon(&self) -> bool {
        self.links.last().is_some_and(|l| l.operation.kind == Kind::ExitHandling)
    }

    fn last_pid(&self) -> Option<u32> {
        self.links.last().map(|l| l.who.pid)
    }

    /// Whether it is containerd's own temporary mount that is unmounted: it is never volatile.
    fn temporary(&self) -> bool {
        self.links.iter().any(|l| is_temporary(&l.operation))
    }

    /// What would not have been waited for without the update of the container's resources: everything from the lock
    /// that it holds downwards; `None` when no update is on the way.
    fn behind_update(&self) -> Option<Ns> {
        let update = self.links.iter().position(|l| l.operation.method == "UpdateContainerResources")?;
        let lock = self.links[..update].iter().rposition(|l| l.operation.kind == Kind::LockWait);
        Some(self.links[lock.unwrap_or(update)..].iter().map(|l| l.critical).sum())
    }
}

/// Writes what helps into a diagnosis whose chain has its seconds.
pub fn advise(diagnosis: &mut Diagnosis, facts: &Facts) {
    let on = Circumstances::of(&diagnosis.ends_in, &diagnosis.chain.links, facts);
    diagnosis.advice = advice(&diagnosis.ends_in, &on);
}

/// What helps against this.
pub fn advice(ends_in: &EndsIn, on: &Circumstances<'_>) -> Advice {
    let mut fixes = fixes(ends_in, on);
    if let Some(saves) = on.behind_update() {
        fixes.extend(cpu_manager_none(on, Some(saves)));
        // The container is exiting: its Delete is on the way.
        if on.links.iter().any(|l| l.operation.method == "Delete") {
            fixes.push(REFUSE_UPDATES.saving(Some(saves)));
        }
    }
    fixes.sort_by_key(|fix| rank(&fix.id, fix.saves));
    Advice { do_now: do_now(ends_in, on), do_not: do_not(ends_in, on), fixes }
}

/// In which order fixes are told. What no release has comes last, whatever it saves. Where others save the same seconds, the
/// table knows which is easier to have.
pub fn rank(id: &str, saves: Option<Ns>) -> impl Ord + use<> {
    (id == REFUSE_UPDATES.id, Reverse(saves.map(|s| s / SECOND)), Known::place(id))
}

/// The fixes that would help against this end before there is a chain that ends so.
pub fn in_advance(ends_in: &EndsIn, on: &Circumstances<'_>) -> Vec<Fix> {
    let mut fixes = fixes(ends_in, on);
    fixes.extend(cpu_manager_none(on, None));
    fixes.sort_by_key(|fix| Known::place(&fix.id));
    fixes
}

fn cpu_manager_none(on: &Circumstances<'_>, saves: Option<Ns>) -> Option<Fix> {
    match on.cpu_manager {
        Some("none") => None,
        Some(_) => Some(CPU_MANAGER_NONE.saving(saves)),
        // Without knowing the policy it is not known either who asks for the updates.
        None => Some(CPU_MANAGER_NONE.saving(None)),
    }
}

/// The fixes that apply here against the end itself.
fn fixes(ends_in: &EndsIn, on: &Circumstances<'_>) -> Vec<Fix> {
    match ends_in {
        EndsIn::UnmountSync { device, .. } => {
            let saves = on.unmounting();
            let mut fixes: Vec<Fix> = against_unmount(on, Some(saves)).into_iter().collect();
            fixes.extend([dirty_bytes(on), io_max(device.as_ref())]);
            fixes
        }
        // What the unmount does is not visible: it may wait for something else than its sync.
        EndsIn::Unmount { device, .. } => {
            let mut fixes: Vec<Fix> = against_unmount(on, None).into_iter().collect();
            if device.is_some() {
                fixes.push(DIRTY_BYTES.saving(None));
            }
            fixes
        }
        EndsIn::Sync { device, .. } => vec![dirty_bytes(on), io_max(device.as_ref())],
        EndsIn::MountBusy { .. } => vec![NO_HOST_ROOT.saving(None)],
        EndsIn::RemoteFileSystem { what } if what == "NFS" => vec![SOFT_NFS.saving(None)],
        EndsIn::IoDrain => vec![DRAIN_WAIT.saving(None)],
        EndsIn::StatusWrite => vec![DISK_SPLIT.saving(on.tip()), DIRTY_BYTES.saving(None)],
        EndsIn::CgroupOrDbus => vec![CGROUPFS.saving(None)],
        EndsIn::Frozen { .. } => vec![NO_FREEZER.saving(on.tip())],
        // How much faster it would have been with all it needs is not known.
        EndsIn::Starved { .. } => vec![RESERVE.saving(None)],
        EndsIn::LeakedShims { .. } => unless_there(&UPGRADE_LEAKED_SHIMS, on, None).into_iter().collect(),
        EndsIn::Cycle => vec![UPGRADE.saving(None)],
        EndsIn::ExitRetry { .. } | EndsIn::RemoteFileSystem { .. } | EndsIn::NotVisible { .. } => Vec::new(),
    }
}

fn against_unmount(on: &Circumstances<'_>, saves: Option<Ns>) -> Option<Fix> {
    if on.temporary() {
        return unless_there(&READ_ONLY_TEMPORARY, on, saves);
    }
    if on.volatile {
        return None;
    }
    let mut fix = VOLATILE.saving(saves);
    if let (Some(false), Some(this)) = (VOLATILE.is_in(on.containerd), on.containerd) {
        fix.since.push_str(&format!("; needs an upgrade first: this is {this}"));
    }
    Some(fix)
}

/// An upgrade, unless the node has it.
fn unless_there(upgrade: &Known, on: &Circumstances<'_>, saves: Option<Ns>) -> Option<Fix> {
    let there = upgrade.is_in(on.containerd);
    let mut fix = (there != Some(true)).then(|| upgrade.saving(saves))?;
    if let Some(this) = on.containerd {
        fix.since.push_str(&format!("; this is {this}"));
    }
    Some(fix)
}

/// It saves only what exceeds the bound that it is set to.
fn dirty_bytes(on: &Circumstances<'_>) -> Fix {
    let mut fix = DIRTY_BYTES.saving(on.unmounting().checked_sub(BOUND));
    if let Some(rate) = on.rate {
        let bytes = rate.saturating_mul(BOUND / SECOND).max(LEAST_DIRTY);
        fix.how = format!(
            "sysctl -w vm.dirty_bytes={bytes} vm.dirty_background_bytes={} (60s of the {} that it writes per second now), and the same in /etc/sysctl.d",
            bytes / 4,
            words::bytes(rate),
        );
    }
    fix
}

fn io_max(device: Option<&DeviceName>) -> Fix {
    let mut fix = IO_MAX.saving(None);
    if let Some(d) = device {
        fix.how = fix.how.replace("MAJOR:MINOR", &format!("{}:{}", d.device.major, d.device.minor));
    }
    fix
}

/// What eases it now.
fn do_now(ends_in: &EndsIn, on: &Circumstances<'_>) -> Vec<String> {
    let step = match ends_in {
        EndsIn::UnmountSync { device, .. }
        | EndsIn::Sync { device, .. }
        | EndsIn::Unmount { device: device @ Some(_), .. } => {
            let disk = device.as_ref().map_or_else(|| "the disk".to_owned(), words::device);
            format!("pause who writes to {disk} (kill -STOP; -CONT when it is over): the sync ends when the dirty pages are written")
        }
        EndsIn::Unmount { device: None, .. } => "run `plegscope doctor`: it says which kernel probe is off and why; look at dirty memory and the disks' write rates".into(),
        EndsIn::MountBusy { pins, .. } if !pins.is_empty() => {
            let steps: Vec<String> = pins
                .iter()
                .take(3)
                .map(|p| match p.how.strip_prefix("has a mount below it, ") {
                    Some(point) => format!("unmount {point}"),
                    None => format!("end {} (pid {}), it {}", p.comm, p.pid, p.how),
                })
                .collect();
            format!("{}; the unmount is tried again", steps.join("; "))
        }
        EndsIn::MountBusy { .. } => "find who keeps the mount: grep the path in /proc/*/mountinfo; end that process or unmount it there".into(),
        EndsIn::RemoteFileSystem { what } if what == "FUSE" => "start the file system's server again, or give it up: echo 1 > /sys/fs/fuse/connections/*/abort (of that mount only); the unmount then goes on".into(),
        EndsIn::RemoteFileSystem { what } => {
            format!("see why the {what} server does not answer; the unmount goes on when it does")
        }
        EndsIn::IoDrain => "find who holds the container's output pipe open (a child that outlived it, or a stuck log reader)".into(),
        EndsIn::StatusWrite => "pause who writes to the disk that holds containerd's root and state (kill -STOP; -CONT when it is over)".into(),
        EndsIn::CgroupOrDbus => "see whether systemd answers: `busctl status` and `systemctl list-jobs`; see `ps` for runc children of the shim".into(),
        EndsIn::Frozen { by } => format!("let it go on{}: it is {by}", go_on(by, on.last_pid())),
        EndsIn::Starved { by } => {
            format!("give it what it needs (lift its limit: systemctl set-property --runtime UNIT CPUQuota=, or end what takes it): it is {by}")
        }
        EndsIn::ExitRetry { .. } => "wait: nothing blocks it any more, and containerd tries again by itself, five minutes after the last attempt at most".into(),
        EndsIn::LeakedShims { .. } => "nothing waits for them, they only hold memory: see that their containers are gone (`crictl ps -a`), then end them one by one, by pid".into(),
        EndsIn::Cycle => "save the evidence (`plegscope now --json`), then restart that program: this does not end by itself; report it to the program's authors".into(),
        EndsIn::NotVisible { .. } => "run `plegscope doctor`: it says what cannot be seen and how to change that".into(),
    };
    let mut steps = vec![step];
    if *ends_in == EndsIn::IoDrain && !on.in_the_daemon() {
        steps.push("know the limit: Delete waits 2s for output (10s since containerd 1.7.29, 2.0.7, 2.1.5); beyond that look for a runc child of the shim".into());
    }
    steps
}

/// How a process that stands still goes on, in brackets.
fn go_on(by: &str, pid: Option<u32>) -> String {
    let pid = pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
    if by.contains("tracer") {
        format!(" (end the tracer: TracerPid in /proc/{pid}/status)")
    } else if by.contains("signal") {
        format!(" (kill -CONT {pid})")
    } else if by.contains("frozen") {
        format!(
            " (echo 0 > cgroup.freeze of its cgroup, see /proc/{pid}/cgroup; v1: echo THAWED > freezer.state)"
        )
    } else {
        String::new()
    }
}

/// What makes it worse.
fn do_not(ends_in: &EndsIn, on: &Circumstances<'_>) -> Vec<String> {
    let mut steps: Vec<&str> = Vec::new();
    let syncs = matches!(ends_in, EndsIn::UnmountSync { .. } | EndsIn::Sync { .. });
    if syncs {
        steps.push("do not set io.max on the writer now (the sync waits for its pages)");
    }
    let through_locks = on.links.iter().any(|l| l.operation.kind == Kind::LockWait);
    let unmounts = matches!(ends_in, EndsIn::UnmountSync { .. } | EndsIn::Unmount { device: Some(_), .. });
    if unmounts && through_locks {
        steps.push("do not expect a disk split to help (the sync goes where the pods wrote)");
    }
    match ends_in {
        EndsIn::Cycle => {}
        EndsIn::Frozen { .. } => {
            steps.push("do not restart or kill it: once it goes on nothing is lost");
        }
        EndsIn::Starved { .. } => {
            steps.push("do not restart it: starting takes more of what it lacks");
            steps.push("do not kill shims (exit codes are lost)");
        }
        EndsIn::ExitRetry { .. } => {
            steps.push("do not restart containerd to hurry it (containers whose shim is slow to answer turn Unknown)");
            steps.push("do not signal or kill the shim (the exit code is lost)");
        }
        EndsIn::LeakedShims { .. } => {
            steps.push("do not kill shims by name (those of running containers look the same)");
        }
        _ if on.links.iter().any(|l| !is_kernel(l.operation.kind)) => {
            steps.push("do not restart containerd (Unknown containers, recreated pods, leaked shims)");
            steps.push(if on.links.iter().any(|l| is_kernel(l.operation.kind)) {
                "do not signal or kill the shim (the unmount goes on, and the exit code is lost)"
            } else {
                "do not signal or kill the shim (the exit code is lost)"
            });
            steps.push("do not delete pods with --force (their containers run on)");
        }
        _ => {}
    }
    steps.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

    use super::*;
    use crate::correlator::frame::{Subject, Who};
    use crate::event::{Actor, Began, Device, KubeletFacts, Operation, Process, SeenBy};

    fn link(kind: Kind, method: &str, seconds: u64) -> Link {
        let actor = Actor { pid: 300, tid: 300, g: None, goid: None };
        Link {
            edge: None,
            operation: Operation {
                kind,
                method: method.into(),
                actor,
                begin: 0,
                object: 0,
                container: None,
                path: None,
                device: None,
                fs_type: None,
                began: Began::Then,
                seen_by: SeenBy::Proc,
            },
            who: Who { pid: 300, tid: 300, goid: None, comm: None, role: None },
            subject: None,
            device: None,
            lock: None,
            exit: None,
            goroutine: None,
            thread: None,
            since: 0,
            age: seconds * SECOND,
            critical: seconds * SECOND,
        }
    }

    /// A relist behind an update behind a Delete behind an unmount.
    fn chain(sync: u64) -> Vec<Link> {
        vec![
            link(Kind::Relist, "", 1),
            link(Kind::CriCall, "ListContainers", 2),
            link(Kind::LockWait, "", 3),
            link(Kind::CriCall, "UpdateContainerResources", 4),
            link(Kind::ShimCall, "Update", 5),
            link(Kind::LockWait, "", 6),
            link(Kind::InitMethod, "Delete", 7),
            link(Kind::Unmount, "", 8),
            link(Kind::SuperShutdown, "", 9),
            link(Kind::Sync, "", sync),
        ]
    }

    fn unmount_sync() -> EndsIn {
        let device = DeviceName { device: Device { major: 259, minor: 1 }, name: None };
        EndsIn::UnmountSync { device: Some(device), fs_type: None }
    }

    fn offered(ends_in: &EndsIn, on: &Circumstances<'_>) -> Vec<(String, Option<u64>)> {
        advice(ends_in, on).fixes.into_iter().map(|f| (f.id, f.saves.map(|ns| ns / SECOND))).collect()
    }

    fn named(list: &[(&str, Option<u64>)]) -> Vec<(String, Option<u64>)> {
        list.iter().map(|(id, saves)| ((*id).to_owned(), *saves)).collect()
    }

    #[test]
    fn each_fix_saves_the_seconds_of_the_links_that_it_takes_away() {
        let links = chain(100);
        let on = Circumstances { links: &links, cpu_manager: Some("static"), ..Circumstances::default() };
        // From the lock wait of the relist: 3+4+5+6+7+8+9+100. In the kernel: 8+9+100, of which 60 remain with a bound.
        let expected = [
            ("cpu-manager-none", Some(142)),
            ("volatile", Some(117)),
            ("dirty-bytes", Some(57)),
            ("io-max", None),
            ("refuse-updates", Some(142)),
        ];
        assert_eq!(offered(&unmount_sync(), &on), named(&expected));
    }

    #[test]
    fn what_cannot_be_told_saves_nothing_that_is_said() {
        let links = chain(10);
        let on = Circumstances { links: &links, ..Circumstances::default() };
        // 27 s in the kernel are within the bound, and nobody knows whether the CPU manager asked for the update.
        let expected = [
            ("volatile", Some(27)),
            ("cpu-manager-none", None),
            ("dirty-bytes", None),
            ("io-max", None),
            ("refuse-updates", Some(52)),
        ];
        assert_eq!(offered(&unmount_sync(), &on), named(&expected));
        let unseen = EndsIn::Unmount { device: None, because: String::new() };
        let expected = [("volatile", None), ("cpu-manager-none", None), ("refuse-updates", Some(52))];
        assert_eq!(offered(&unseen, &on), named(&expected));
    }

    #[test]
    fn what_the_node_has_is_not_offered() {
        let links = chain(100);
        let on = Circumstances {
            links: &links,
            volatile: true,
            cpu_manager: Some("none"),
            ..Circumstances::default()
        };
        let expected = [("dirty-bytes", Some(57)), ("io-max", None), ("refuse-updates", Some(142))];
        assert_eq!(offered(&unmount_sync(), &on), named(&expected));
        // Without a Delete on the way nobody exits.
        let on = Circumstances { links: &links[..5], cpu_manager: Some("none"), ..Circumstances::default() };
        let expected = [("disk-split", Some(5)), ("dirty-bytes", None)];
        assert_eq!(offered(&EndsIn::StatusWrite, &on), named(&expected));
    }

    #[test]
    fn a_version_that_is_too_old_needs_an_upgrade_first() {
        let links = chain(1);
        let since = |containerd| {
            let on = Circumstances { links: &links, containerd, ..Circumstances::default() };
            let fixes = advice(&unmount_sync(), &on).fixes;
            fixes.into_iter().find(|f| f.id == "volatile").map(|f| f.since).expect("offered")
        };
        for old in ["1.6.20", "v1.6.20~ds1", "1.4.13", "1.7.3"] {
            let needs = format!("{}; needs an upgrade first: this is {old}", VOLATILE.since);
            assert_eq!(since(Some(old)), needs);
        }
        for new in [Some("1.6.24"), Some("1.7.24~ds1"), Some("2.1.9+unknown"), Some("unknown"), None] {
            assert_eq!(since(new), VOLATILE.since);
        }
    }

    #[test]
    fn a_temporary_mount_is_never_volatile() {
        let mut links = vec![link(Kind::CriCall, "CreateContainer", 1), link(Kind::Unmount, "", 5)];
        links[1].operation.path = Some("/var/lib/containerd/tmpmounts/containerd-mount123".into());
        let ids = |containerd| {
            let on = Circumstances { links: &links, containerd, ..Circumstances::default() };
            offered(&unmount_sync(), &on)
        };
        let others = [("dirty-bytes", None), ("io-max", None)];
        for old in [None, Some("1.6.20")] {
            let upgrade = ("read-only-temporary-mounts", Some(5));
            assert_eq!(ids(old), named(&[&[upgrade], &others[..]].concat()));
        }
        assert_eq!(ids(Some("1.7.24")), named(&others));
    }

    #[test]
    fn circumstances_are_read_from_the_chain_and_the_facts() {
        let mut facts = Facts::default();
        let process = |pid, role, version: &str| Process {
            pid,
            started: 0,
            role,
            comm: String::new(),
            go_version: String::new(),
            version: Some(version.into()),
        };
        facts.process(&process(10, Role::Containerd, "1.6.20"), 1);
        facts.process(&process(50, Role::Kubelet, "1.28.0"), 1);
        facts.kubelet(&KubeletFacts {
            pid: 50,
            pleg_threshold: None,
            cpu_manager_policy: Some(("none".into(), "its state file".into())),
            request_timeout: None,
        });
        let mut links = chain(100);
        links[7].subject =
            Some(Subject { id: "aa".into(), namespace: None, pod: None, container: None, sandbox: false });
        let on = Circumstances::of(&unmount_sync(), &links, &facts);
        assert_eq!((on.containerd, on.cpu_manager, on.volatile), (Some("1.6.20"), Some("none"), false));
        // With two daemons only the one on the way counts.
        facts.process(&process(20, Role::Containerd, "1.7.24"), 1);
        assert_eq!(Circumstances::of(&unmount_sync(), &links, &facts).containerd, None);
        links[1].who = Who { pid: 20, role: Some(Role::Containerd), ..links[1].who.clone() };
        assert_eq!(Circumstances::of(&unmount_sync(), &links, &facts).containerd, Some("1.7.24"));
    }

    #[test]
    fn nobody_is_told_to_restart_what_only_stands_still() {
        let links = [link(Kind::CriCall, "ListContainers", 1), link(Kind::Stalled, "frozen", 9)];
        let on = Circumstances { links: &links, ..Circumstances::default() };
        for (by, step) in [
            ("frozen by its cgroup /system.slice", "cgroup.freeze"),
            ("stopped by a signal", "kill -CONT 300"),
            ("held by a tracer", "TracerPid"),
        ] {
            let advice = advice(&EndsIn::Frozen { by: by.into() }, &on);
            assert!(advice.do_now[0].contains(step), "{:?}", advice.do_now);
            assert!(advice.do_not.iter().any(|s| s.contains("restart")), "{:?}", advice.do_not);
            assert_eq!(advice.fixes[0].saves, Some(9 * SECOND));
        }
    }

    #[test]
    fn a_disk_split_is_no_help_against_an_unmount() {
        let links = chain(10);
        let on = Circumstances { links: &links, ..Circumstances::default() };
        let advice = advice(&unmount_sync(), &on);
        assert!(advice.do_not.iter().any(|s| s.contains("disk split")));
        assert!(!advice.fixes.iter().any(|f| f.id == "disk-split"));
        // And a limit on the writer makes the sync longer while it lasts.
        assert!(advice.do_not.iter().any(|s| s.contains("io.max")));
        assert!(!advice.do_now.iter().any(|s| s.contains("io.max")));
    }
}
