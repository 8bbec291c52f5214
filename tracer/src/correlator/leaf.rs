//! What a chain ends in: told from its last operation, from where its thread sits, and from the mount table.

use super::exits::Attempts;
use super::facts::Facts;
use super::frame::{Confidence, DeviceName, EndsIn, Pinner};
use super::graph::{Graph, Next};
use super::{limits, stalls, words};
use crate::event::{Kind, Ns, Operation, Pin, Role, SeenBy, ThreadSite};
use std::collections::BTreeMap;

/// The end of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// What it ends in.
    pub ends_in: EndsIn,
    /// How sure that is.
    pub confidence: Confidence,
    /// What that rests on.
    pub evidence: String,
}

/// Unmounts that failed in a row with EBUSY, by process and actor.
pub type FailedUnmounts = BTreeMap<(u32, u64), Busy>;

/// An actor's unmounts that failed in a row.
#[derive(Clone, Debug)]
pub struct Busy {
    /// How often.
    pub failures: u64,
    /// When last.
    pub last: Ns,
    /// What it tried to unmount last, where the probe can tell.
    pub path: Option<String>,
}

/// Kernel functions that tell what a thread waits for, innermost matching first.
const SYNCS: [&str; 10] = [
    "sync_inodes_sb",
    "wb_wait_for_completion",
    "folio_wait_writeback",
    "wait_on_page_writeback",
    "filemap_fdatawait",
    "jbd2_log_wait_commit",
    "jbd2_journal_destroy",
    "xfs_log_force",
    "xfs_ail_push_all_sync",
    "sync_filesystem",
];

/// Kernel functions of a thread that waits until what it wrote itself is on the disk.
const WRITES: [&str; 4] = ["fsync", "jbd2", "xfs_log", "folio_wait"];

/// The end of a chain whose last operation is `tip`; `path` is the whole chain.
pub fn leaf_of(graph: &Graph<'_>, path: &[usize], facts: &Facts, failed: &FailedUnmounts, now: Ns) -> Leaf {
    let Some(&tip) = path.last() else {
        return not_visible("nothing is in flight".to_owned());
    };
    let node = &graph.nodes[tip];
    let op = &node.flight.op;
    if op.kind == Kind::Stalled {
        return stalls::leaf(op);
    }
    let site = site_of(graph, tip, facts, now);
    if let Some((site, _)) = &site
        && let Some(by) = stopped_by(site)
    {
        let evidence = format!("thread {} is in state {}", site.tid, site.state);
        return Leaf { ends_in: EndsIn::Frozen { by }, confidence: Confidence::Inferred, evidence };
    }
    match &node.next {
        Next::Unseen { because } => return not_visible(because.clone()),
        Next::Returned { method } => {
            return not_visible(format!("its {method} call has come back in containerd just now"));
        }
        Next::Leaf | Next::To { .. } => {}
    }
    if node.flight.released_at.is_some() {
        return not_visible("it has let go of its lock and is about to return".to_owned());
    }
    match op.kind {
        Kind::Sync => sync_leaf(graph, path, facts),
        Kind::Unmount | Kind::SuperShutdown => unmount_leaf(graph, path, facts, site.map(|(s, _)| s)),
        Kind::InitMethod | Kind::ShimServe => shim_leaf(graph, tip, facts, failed, site, now),
        Kind::StatusUpdate => {
            if let Some(reason) = facts.blind_to("shim call") {
                return not_visible(reason);
            }
            let frame = site.and_then(|(s, _)| frame_of(s, &WRITES));
            let evidence = match (frame, graph.doubt(tip)) {
                (Some(frame), _) => format!("it makes no call to the shim, and its thread sits in {frame}"),
                (None, Some(doubt)) => return not_visible(doubt.to_owned()),
                (None, None) => {
                    "it makes no call to the shim; what is left under the lock is the write of the state"
                        .to_owned()
                }
            };
            Leaf { ends_in: EndsIn::StatusWrite, confidence: Confidence::Inferred, evidence }
        }
        Kind::ExitHandling => match &node.exit {
            Some(Attempts { begun, next: Some(next), .. }) => Leaf {
                ends_in: EndsIn::ExitRetry { attempts: *begun, next: *next },
                confidence: Confidence::Inferred,
                evidence: "no attempt is in flight, nor a Delete or unmount of this container; when it tries again is an estimate by containerd's back-off rule".to_owned(),
            },
            _ => drain_leaf(facts, op).unwrap_or_else(|| {
                not_visible(graph.doubt(tip).unwrap_or("in a call that was not recorded").to_owned())
            }),
        },
        Kind::Stalled => stalls::leaf(op),
        Kind::LockHold => held_leaf(op, facts, site.map(|(s, _)| s)),
        Kind::CriCall | Kind::CriClient | Kind::Relist | Kind::ShimCall | Kind::LockWait => {
            if op.kind == Kind::CriCall
                && let Some(leaf) = busy_leaf(op, facts, failed, now)
            {
                return leaf;
            }
            let blind = match op.kind {
                Kind::CriCall => facts.blind_to("lock").or_else(|| facts.blind_to("containerd")),
                _ => None,
            };
            let sits = || match facts.goroutine_of(&op.actor, op.begin) {
                Some(site) => format!("its goroutine is in {}", words::place(site)),
                None => "nothing that it waits for was recorded".to_owned(),
            };
            not_visible(blind.unwrap_or_else(sits))
        }
    }
}

/// What holds a lock without any operation of ours: containerd's own databases are written under locks of their own. Only the
/// thread on which it took the lock counts: that another one is the only one to wait for the disk says nothing of the holder.
fn held_leaf(op: &Operation, facts: &Facts, site: Option<&ThreadSite>) -> Leaf {
    let containerd = facts.process_of(op.actor.pid).is_some_and(|process| process.role == Role::Containerd);
    let own = site.filter(|site| containerd && site.tid == op.actor.tid);
    match own.and_then(|site| frame_of(site, &WRITES)) {
        Some(frame) => Leaf {
            ends_in: EndsIn::StatusWrite,
            confidence: Confidence::Inferred,
            evidence: format!("its thread sits in {frame} while it holds the lock"),
        },
        None => not_visible("it holds the lock, what it does is not recorded".to_owned()),
    }
}

fn not_visible(because: String) -> Leaf {
    Leaf {
        ends_in: EndsIn::NotVisible { because: because.clone() },
        confidence: Confidence::NotVisible,
        evidence: because,
    }
}

/// Where the operation's thread sits, and whether that is certain: a kernel operation is pinned to its thread, a
/// goroutine may have left the thread it began on.
pub fn site_of<'f>(
    graph: &Graph<'_>,
    tip: usize,
    facts: &'f Facts,
    now: Ns,
) -> Option<(&'f ThreadSite, bool)> {
    let op = &graph.nodes[tip].flight.op;
    let since = op.begin.max(now.saturating_sub(limits::SITE_FRESH));
    let pinned = super::operations::is_kernel(op.kind);
    let own = facts.site_of(op.actor.pid, op.actor.tid, since);
    if pinned || op.kind == Kind::LockWait {
        return own.filter(|_| pinned).map(|s| (s, true));
    }
    // A goroutine that waits in the kernel does so on some thread of its process. Only if just one sits there is it
    // told which.
    let mut blocked = facts.sites_of(op.actor.pid, since).filter(|s| s.state == 'D');
    match (blocked.next(), blocked.next()) {
        (Some(site), None) => Some((site, false)),
        _ => own.filter(|s| s.state == 'D').map(|s| (s, false)),
    }
}

fn stopped_by(site: &ThreadSite) -> Option<String> {
    match site.state {
        't' => Some("held by a tracer such as strace or a debugger".to_owned()),
        'T' => Some("stopped by a signal".to_owned()),
        _ => frame_of(site, &["cgroup_freeze", "do_freezer_trap", "__refrigerator", "cgroup_enter_frozen"])
            .map(|_| "its cgroup is frozen".to_owned()),
    }
}

/// The first frame of the site's stack that contains one of these names, as a name only (no offset).
fn frame_of(site: &ThreadSite, names: &[&str]) -> Option<String> {
    site.kernel_stack
        .iter()
        .find(|frame| names.iter().any(|n| frame.contains(n)))
        .map(|frame| frame.split('+').next().unwrap_or(frame).to_owned())
}

/// Whether the chain comes through an unmount or a super block's shutdown.
fn through_unmount(graph: &Graph<'_>, path: &[usize]) -> bool {
    path.iter().any(|&i| matches!(graph.nodes[i].flight.op.kind, Kind::Unmount | Kind::SuperShutdown))
        // The one that is waited for may be reached at its sync: its own unmount counts too.
        || path.last().is_some_and(|&tip| {
            graph.stacks[graph.nodes[tip].stack]
                .members
                .iter()
                .any(|&m| matches!(graph.nodes[m].flight.op.kind, Kind::Unmount | Kind::SuperShutdown))
        })
}

fn seen_by(by: SeenBy) -> &'static str {
    match by {
        SeenBy::Uprobe => "uprobe",
        SeenBy::Fentry => "fentry",
        SeenBy::Kprobe => "kprobe",
        SeenBy::Tracepoint => "tracepoint",
        SeenBy::Proc => "/proc",
        SeenBy::Memory => "its stack",
    }
}

fn sync_leaf(graph: &Graph<'_>, path: &[usize], facts: &Facts) -> Leaf {
    let Some(&tip) = path.last() else { return not_visible(String::new()) };
    let op = &graph.nodes[tip].flight.op;
    let overlay = op.fs_type.as_deref() == Some("overlay");
    let (device, fs_type, confidence, evidence) = match op.device {
        Some(d) if !overlay => (
            Some(facts.device_name(d)),
            op.fs_type.clone(),
            Confidence::Proven,
            format!("the sync is in flight, seen by {}", seen_by(op.seen_by)),
        ),
        // An overlay has no device of its own; its upper file system has.
        _ => match upper_of(graph, tip, facts) {
            Some((device, fs, from)) => {
                (Some(device), Some(fs), Confidence::Inferred, format!("the sync is in flight; {from}"))
            }
            None => (None, op.fs_type.clone(), Confidence::Inferred, "the sync is in flight".to_owned()),
        },
    };
    let ends_in = if through_unmount(graph, path) {
        EndsIn::UnmountSync { device, fs_type }
    } else {
        EndsIn::Sync { device, fs_type }
    };
    Leaf { ends_in, confidence, evidence }
}

/// Device and type of the upper file system of the operation's container, unless its unmount does not sync, and how that
/// is known. A mount that is being undone is in no table any more; containerd keeps all upper layers on one file system.
fn upper_of(graph: &Graph<'_>, node: usize, facts: &Facts) -> Option<(DeviceName, String, &'static str)> {
    let id = graph.nodes[node].container.as_deref()?;
    let own = facts.container_of(id).and_then(|container| container.upper.as_ref());
    let (upper, from) = match own {
        Some(upper) => (upper, "the device is from the mount table"),
        None => (facts.only_upper()?, "the device is that of all other containers"),
    };
    Some((facts.device_name(upper.0), upper.1.clone(), from))
}

fn unmount_leaf(graph: &Graph<'_>, path: &[usize], facts: &Facts, site: Option<&ThreadSite>) -> Leaf {
    let Some(&tip) = path.last() else { return not_visible(String::new()) };
    let node = &graph.nodes[tip];
    let volatile = node.container.as_deref().and_then(|id| facts.container_of(id)).and_then(|c| c.volatile)
        == Some(true);
    let upper = if volatile { None } else { upper_of(graph, tip, facts) };
    let own = node.flight.op.device.filter(|_| node.flight.op.fs_type.as_deref() != Some("overlay"));
    if let Some(site) = site {
        if let Some(what) = remote(site) {
            let evidence = format!("kernel stack of thread {}", site.tid);
            return Leaf {
                ends_in: EndsIn::RemoteFileSystem { what: what.to_owned() },
                confidence: Confidence::Inferred,
                evidence,
            };
        }
        if let Some(frame) = frame_of(site, &SYNCS) {
            let (device, fs_type, from) = match (own, upper) {
                (Some(d), _) => (Some(facts.device_name(d)), node.flight.op.fs_type.clone(), String::new()),
                (None, Some((d, fs, from))) => (Some(d), Some(fs), format!("; {from}")),
                (None, None) => (None, None, String::new()),
            };
            let evidence = format!("kernel stack of thread {}: {frame}{from}", site.tid);
            return Leaf {
                ends_in: EndsIn::UnmountSync { device, fs_type },
                confidence: Confidence::Inferred,
                evidence,
            };
        }
    }
    let because = facts.blind_to("sync").unwrap_or_else(|| match site {
        Some(s) => match s.kernel_stack.first() {
            Some(frame) => format!("its thread sits in {}", frame.split('+').next().unwrap_or(frame)),
            None => "no sync below it was seen".to_owned(),
        },
        None if volatile => "its overlay is volatile, so it does not sync".to_owned(),
        None => "no sync below it was seen".to_owned(),
    });
    let (device, evidence) = match (own, upper) {
        (Some(d), _) => (
            Some(facts.device_name(d)),
            format!("the shutdown is in flight, seen by {}", seen_by(node.flight.op.seen_by)),
        ),
        (None, Some((d, _, from))) => (Some(d), from.to_owned()),
        (None, None) => {
            (None, format!("the unmount is in flight, seen by {}", seen_by(node.flight.op.seen_by)))
        }
    };
    let confidence =
        if own.is_none() && device.is_some() { Confidence::Inferred } else { Confidence::Proven };
    Leaf { ends_in: EndsIn::Unmount { device, because }, confidence, evidence }
}

/// A file system that is not a local disk, from kernel functions.
fn remote(site: &ThreadSite) -> Option<&'static str> {
    [("nfs", "NFS"), ("rpc_wait", "NFS"), ("fuse", "FUSE"), ("cifs", "CIFS"), ("ceph", "Ceph")]
        .iter()
        .find(|(prefix, _)| site.kernel_stack.iter().any(|f| f.trim_start_matches('_').starts_with(prefix)))
        .map(|(_, name)| *name)
}

/// An unmount that its actor tries again and again, because somebody keeps the mount busy.
fn busy_leaf(op: &Operation, facts: &Facts, failed: &FailedUnmounts, now: Ns) -> Option<Leaf> {
    // The failed calls may have been recorded on the thread.
    let by = [op.actor.g, Some(u64::from(op.actor.tid))];
    let busy = by.iter().flatten().find_map(|&actor| failed.get(&(op.actor.pid, actor)))?;
    if busy.last < op.begin || busy.last.saturating_add(limits::RETRY_GAP) < now {
        return None;
    }
    let pins = busy.path.as_deref().and_then(|path| facts.pins_of(path, op.begin));
    let found = pins.map(|p| p.of.as_slice()).unwrap_or_default();
    let who = match pins {
        Some(p) if p.reason.is_empty() => "; who keeps it busy is read from /proc".to_owned(),
        Some(p) => format!("; who keeps it busy is read from /proc, perhaps not all: {}", p.reason),
        None => "; who keeps it busy was not looked up".to_owned(),
    };
    let pinner = |pin: &Pin| Pinner {
        pid: pin.pid,
        comm: pin.comm.clone(),
        subject: pin.container.as_deref().map(|id| facts.subject(id)),
        how: pin.how.clone(),
    };
    Some(Leaf {
        ends_in: EndsIn::MountBusy {
            failures: busy.failures,
            pins: found.iter().take(limits::PINS_SHOWN).map(pinner).collect(),
        },
        confidence: Confidence::Proven,
        evidence: format!("its last {} unmounts failed with EBUSY{who}", busy.failures),
    })
}

/// An exit whose handling waits in containerd itself for the container's output to end, which it does before it asks the
/// shim to delete anything (`(*task).Delete` in containerd's client), by the goroutine's stack.
fn drain_leaf(facts: &Facts, op: &Operation) -> Option<Leaf> {
    let site = facts.goroutine_of(&op.actor, op.begin)?;
    let waits = site.functions.iter().any(|function| function.ends_with(".(*ContainerIO).Wait"));
    waits.then(|| Leaf {
        ends_in: EndsIn::IoDrain,
        confidence: Confidence::Inferred,
        evidence: "its goroutine waits in (*ContainerIO).Wait for the container's output to end".to_owned(),
    })
}

/// A method of the shim below which nothing was seen.
fn shim_leaf(
    graph: &Graph<'_>,
    tip: usize,
    facts: &Facts,
    failed: &FailedUnmounts,
    site: Option<(&ThreadSite, bool)>,
    now: Ns,
) -> Leaf {
    let op = &graph.nodes[tip].flight.op;
    if let Some((site, _)) = site {
        let told = format!("a thread of this shim ({}) sits in ", site.tid);
        if let Some(frame) = frame_of(site, &["unix_stream_read", "unix_stream_recvmsg"]) {
            return Leaf {
                ends_in: EndsIn::CgroupOrDbus,
                confidence: Confidence::Inferred,
                evidence: format!("{told}{frame}: it reads from a local socket (D-Bus)"),
            };
        }
        if let Some(frame) = frame_of(site, &["cgroup_", "memcg", "mem_cgroup"]) {
            return Leaf {
                ends_in: EndsIn::CgroupOrDbus,
                confidence: Confidence::Inferred,
                evidence: format!("{told}{frame}"),
            };
        }
        if op.method == "Delete"
            && frame_of(site, &["cleanup_mnt", "path_umount", "generic_shutdown_super"]).is_some()
        {
            let leaf = unmount_leaf(graph, &[tip], facts, Some(site));
            let evidence = format!("{told}an unmount; {}", leaf.evidence);
            return Leaf { confidence: Confidence::Inferred, evidence, ..leaf };
        }
    }
    if op.method == "Delete"
        && let Some(leaf) = busy_leaf(op, facts, failed, now)
    {
        return leaf;
    }
    if let Some(doubt) = graph.doubt(tip) {
        return not_visible(doubt.to_owned());
    }
    match op.method.as_str() {
        "Delete" => match facts.blind_to("unmount") {
            Some(reason) => not_visible(format!("unmount, runc delete or draining output; {reason}")),
            None => Leaf {
                ends_in: EndsIn::IoDrain,
                confidence: Confidence::Inferred,
                evidence: "it is not in an unmount; what is left is draining output, or runc delete"
                    .to_owned(),
            },
        },
        "Update" | "Kill" | "KillAll" | "Start" | "Pause" | "Resume" | "Checkpoint" | "Create" | "Exec"
            if op.kind == Kind::InitMethod || op.method == "Create" =>
        {
            Leaf {
                ends_in: EndsIn::CgroupOrDbus,
                confidence: Confidence::Inferred,
                evidence: format!("it waits for no lock; what is left of {} is runc", op.method),
            }
        }
        method => not_visible(format!("what {method} does in the shim is not recorded")),
    }
}
