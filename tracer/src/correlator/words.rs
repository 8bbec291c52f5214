//! How things are called when people read them: durations, operations, containers, and what a chain ends in.

use super::dirtiers::Source;
use super::exits::Attempts;
use super::frame::{
    Confidence, Consequence, DeviceName, Diagnosis, EndsIn, Harm, Head, Link, Lock, LockKind, Pinner, Subject,
};
use super::ground::confidence_word;
use super::operations::is_temporary;
use super::outlook::Outlook;
use crate::event::{GoroutineSite, Kind, Ns, Operation, Role};
use crate::thresholds::{MILLISECOND, SECOND};

/// A duration at a glance: `340ms`, `5.2s`, `42s`, `1m48s`, `2h05m`.
pub fn duration(ns: Ns) -> String {
    let seconds = ns / SECOND;
    match seconds {
        0 if ns == 0 => "0s".to_owned(),
        0 if ns < MILLISECOND => format!("{}us", ns / 1_000),
        0 => format!("{}ms", ns / MILLISECOND),
        1..10 => format!("{}.{}s", seconds, ns % SECOND / (100 * MILLISECOND)),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// What stands before a duration that may be longer.
pub fn least(at_least: bool) -> &'static str {
    if at_least { "at least " } else { "" }
}

/// How long a link has lasted.
fn age(l: &Link) -> String {
    format!("{}{}", least(l.at_least()), duration(l.age))
}

/// Where a goroutine sits: the innermost function of the program itself, and why it does not run.
pub fn place(site: &GoroutineSite) -> String {
    /// Packages that every Go program waits through.
    const THROUGH: [&str; 6] = ["runtime.", "internal/", "sync.", "syscall.", "os.", "golang.org/x/sys/"];
    let own = site.functions.iter().find(|f| !THROUGH.iter().any(|p| f.starts_with(p)));
    let function = own.or(site.functions.first()).map(|f| f.rsplit('/').next().unwrap_or(f));
    match function {
        Some(function) if site.state.is_empty() => function.to_owned(),
        Some(function) => format!("{function} ({})", site.state),
        None => site.state.clone(),
    }
}

/// Bytes at a glance: `0 B`, `80 MB`, `2.4 GB` (powers of ten, as disks are sold and throttled).
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{} kB", n / 1_000),
        1_000_000..1_000_000_000 => format!("{} MB", n / 1_000_000),
        _ => format!("{}.{} GB", n / 1_000_000_000, n % 1_000_000_000 / 100_000_000),
    }
}

/// The first twelve characters of a container id.
pub fn short_id(id: &str) -> String {
    id.chars().take(12).collect()
}

/// At most `most` characters: the middle of what is longer gives way.
pub fn clip(text: &str, most: usize) -> String {
    let length = text.chars().count();
    if length <= most {
        return text.to_owned();
    }
    let head = most / 2;
    let tail = most.saturating_sub(head + 1);
    text.chars().take(head).chain(['…']).chain(text.chars().skip(length - tail)).collect()
}

/// The most characters of one name, so that a line about three of them can be read.
const NAME: usize = 48;

fn name<const N: usize>(parts: [&String; N]) -> String {
    parts.map(|part| clip(part, NAME)).join("/")
}

/// A container in few words: `prod/job-7/main`, `prod/job-7 (sandbox)`, or the short id.
pub fn subject(s: &Subject) -> String {
    match (&s.namespace, &s.pod) {
        (Some(namespace), Some(pod)) => match &s.container {
            _ if s.sandbox => format!("{} (sandbox)", name([namespace, pod])),
            Some(container) => name([namespace, pod, container]),
            None => name([namespace, pod]),
        },
        _ => short_id(&s.id),
    }
}

/// A container with its short id: `prod/job-7/main [0123456789ab]`.
pub fn subject_with_id(s: &Subject) -> String {
    match s.pod {
        Some(_) => format!("{} [{}]", subject(s), short_id(&s.id)),
        None => format!("[{}]", short_id(&s.id)),
    }
}

/// The pod of a container, or its short id: `prod/job-7`.
pub fn pod(s: &Subject) -> String {
    match (&s.namespace, &s.pod) {
        (Some(namespace), Some(pod)) => name([namespace, pod]),
        _ => short_id(&s.id),
    }
}

/// A device by name, else by number.
pub fn device(d: &DeviceName) -> String {
    d.name.clone().unwrap_or_else(|| format!("device {}", d.device))
}

/// What an operation is called.
pub fn operation(op: &Operation, device_name: Option<&DeviceName>) -> String {
    let method = op.method.as_str();
    match op.kind {
        Kind::Relist => "PLEG relist".to_owned(),
        Kind::CriClient => format!("CRI {method} (client)"),
        Kind::CriCall => format!("CRI {method}"),
        Kind::StatusUpdate => format!("Status.{}", if method.is_empty() { "Update" } else { method }),
        Kind::ExitHandling => "handling of a container's exit".to_owned(),
        Kind::ShimCall => format!("call to the shim: {method}"),
        Kind::ShimServe => format!("shim {method}"),
        Kind::InitMethod => format!("Init.{method}"),
        Kind::LockWait => "wait for a lock".to_owned(),
        Kind::LockHold => "hold of a lock".to_owned(),
        Kind::Unmount if is_temporary(op) => {
            "unmount of containerd's own temporary mount at create".to_owned()
        }
        Kind::Unmount => match &op.path {
            Some(path) => format!("unmount of {}", clip(path, 3 * NAME)),
            None => "unmount".to_owned(),
        },
        Kind::SuperShutdown => match &op.fs_type {
            Some(fs) => format!("unmount, shutting down {fs}"),
            None => "unmount, shutting down the file system".to_owned(),
        },
        Kind::Stalled => format!("a process that is {method}"),
        Kind::Sync => {
            let what = match device_name {
                Some(d) => device(d),
                None => {
                    op.device.map(|d| format!("device {d}")).unwrap_or_else(|| "a file system".to_owned())
                }
            };
            match &op.fs_type {
                Some(fs) if fs == "overlay" => "sync of the overlay".to_owned(),
                Some(fs) => format!("sync of {what} ({fs})"),
                None => format!("sync of {what}"),
            }
        }
    }
}

/// What a link is about: the operation, and whose lock or container it is.
pub fn link(l: &Link) -> String {
    let of = l.subject.as_ref().map(|s| format!(" of {}", subject_with_id(s))).unwrap_or_default();
    match (l.operation.kind, &l.lock) {
        (Kind::LockWait, Some(of)) => format!("wait for {}", lock(of)),
        (Kind::ExitHandling, _) if l.subject.is_some() => format!("handling of the exit{of}"),
        (Kind::Unmount, _) if l.subject.is_some() => format!("unmount{of}"),
        (Kind::Sync | Kind::Relist | Kind::LockWait, _) => operation(&l.operation, l.device.as_ref()),
        _ => operation(&l.operation, None) + &of,
    }
}

/// How far containerd has got with an exit at `now`; `None` while it is at its first attempt.
pub fn attempts(exit: &Attempts, now: Ns) -> Option<String> {
    let failed = exit.failed.as_ref()?;
    let why = match (failed.deadline, failed.seen) {
        (true, true) => ": deadline exceeded",
        (true, false) => ": deadline exceeded, by its length",
        (false, _) => "",
    };
    let failed = format!("after {}{why}", duration(failed.took));
    Some(match exit.next {
        None => {
            let more = if exit.more { " or later" } else { "" };
            format!("attempt {}{more}, the one before failed {failed}", exit.begun)
        }
        Some(next) => {
            let count = match (exit.begun, exit.more) {
                (1, _) => "1 attempt has failed,".to_owned(),
                (n, false) => format!("{n} attempts have failed, the last"),
                (n, true) => format!("at least {n} attempts have failed, the last"),
            };
            let when = match next.checked_sub(now) {
                Some(left) if left > 0 => format!("the next in about {}", duration(left)),
                _ => "the next is due".to_owned(),
            };
            format!("{count} {failed}; {when}")
        }
    })
}

/// What has come of an incident.
pub fn harm(c: &Consequence) -> String {
    let sure = if c.confidence == Confidence::Proven { "" } else { " (inferred)" };
    let what = match &c.what {
        Harm::Unknown { of } => format!("{} is Unknown to containerd", subject(of)),
        Harm::Recreated { of, by } => {
            format!("{} was made anew as {} while the old one was still there", subject(of), short_id(by))
        }
        Harm::ExitLate { of, late, attempts, reported } => {
            let tries = if *attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
            let late = duration(*late);
            match reported {
                true => format!("exit of {} reported at least {late} late ({tries})", subject(of)),
                false => format!("exit of {} not reported for at least {late} ({tries} so far)", subject(of)),
            }
        }
        Harm::UpdatesFailed { of, count: 1 } => format!("an update of {} failed", subject(of)),
        Harm::UpdatesFailed { of, count } => format!("{count} updates of {} failed", subject(of)),
        Harm::Restarted { pid } => format!("containerd was restarted in it (now {pid})"),
        Harm::ShimLeaked { pid, of } => format!("shim {pid} of {} is left over", subject(of)),
    };
    what + sure
}

/// What a lock is called.
pub fn lock(lock: &Lock) -> String {
    let whose = lock.subject.as_ref().map(|s| format!(" of {}", subject(s))).unwrap_or_default();
    match lock.name {
        LockKind::Status => format!("the Status lock{whose}"),
        LockKind::Init => format!("the Init lock{whose}"),
        LockKind::Other => match lock.base {
            Some(base) => format!("the lock at {base:#x}"),
            None => "a lock".to_owned(),
        },
    }
}

/// What a process is called by its role.
pub fn role(role: Option<Role>) -> &'static str {
    match role {
        Some(Role::Containerd) => "containerd",
        Some(Role::Shim) => "shim",
        Some(Role::Kubelet) => "kubelet",
        Some(Role::Other) | None => "process",
    }
}

/// The unmount, or super-block shutdown, on the way of a chain.
pub fn unmount_of(links: &[Link]) -> Option<&Link> {
    links
        .iter()
        .rev()
        .find(|l| l.operation.kind == Kind::Unmount)
        .or_else(|| links.iter().rev().find(|l| l.operation.kind == Kind::SuperShutdown))
}

/// What a chain ends in, as part of a sentence.
pub fn ends_in(ends_in: &EndsIn) -> String {
    let on = |device_name: &Option<DeviceName>| match device_name {
        Some(d) => device(d),
        None => "a file system (device not visible)".to_owned(),
    };
    match ends_in {
        EndsIn::UnmountSync { device, .. } | EndsIn::Sync { device, .. } => format!("sync of {}", on(device)),
        EndsIn::Unmount { device: Some(d), .. } => format!("unmount from {}", device(d)),
        EndsIn::Unmount { device: None, .. } => "unmount".to_owned(),
        EndsIn::MountBusy { failures, pins } => {
            format!("unmount that fails with EBUSY ({failures} times){}", kept_busy(pins))
        }
        EndsIn::RemoteFileSystem { what } => format!("{what} that does not answer"),
        EndsIn::IoDrain => "container output that does not drain, or runc delete".to_owned(),
        EndsIn::StatusWrite => "containerd's write of its own state".to_owned(),
        EndsIn::CgroupOrDbus => "runc: a cgroup write or a D-Bus call to systemd".to_owned(),
        EndsIn::Frozen { by } => format!("a thread or process that does not run ({by})"),
        EndsIn::Starved { by } => format!("a process that is {by}"),
        EndsIn::ExitRetry { attempts, .. } => {
            let failed =
                if *attempts == 1 { "1 has failed".to_owned() } else { format!("{attempts} have failed") };
            format!("containerd's next attempt to handle an exit ({failed})")
        }
        EndsIn::LeakedShims { count: 1 } => "a shim that is left over".to_owned(),
        EndsIn::LeakedShims { count } => format!("{count} shims that are left over"),
        EndsIn::Cycle => "operations that wait for each other (deadlock)".to_owned(),
        EndsIn::NotVisible { .. } => "not visible".to_owned(),
    }
}

/// Who keeps a mount busy: `, kept busy by node_exporter 700 of monitoring/agent-x (has it mounted too) and 1 more`.
fn kept_busy(pins: &[Pinner]) -> String {
    let Some(first) = pins.first() else { return String::new() };
    let of = first.subject.as_ref().map(|s| format!(" of {}", pod(s))).unwrap_or_default();
    let more = match pins.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    format!(", kept busy by {} {}{of} ({}){more}", first.comm, first.pid, first.how)
}

/// Why the end is not visible, where it is not.
pub fn because(ends_in: &EndsIn) -> Option<&str> {
    match ends_in {
        EndsIn::Unmount { because, .. } | EndsIn::NotVisible { because } => Some(because),
        _ => None,
    }
}

/// The class of what a chain ends in, the same on every node.
pub fn class(ends_in: &EndsIn) -> &'static str {
    match ends_in {
        EndsIn::UnmountSync { .. } => "unmount-sync",
        EndsIn::Sync { .. } => "sync",
        EndsIn::Unmount { .. } => "unmount",
        EndsIn::MountBusy { .. } => "mount-busy",
        EndsIn::RemoteFileSystem { .. } => "remote-file-system",
        EndsIn::IoDrain => "io-drain",
        EndsIn::StatusWrite => "status-write",
        EndsIn::CgroupOrDbus => "cgroup-or-dbus",
        EndsIn::Frozen { .. } => "frozen",
        EndsIn::Starved { .. } => "starved",
        EndsIn::ExitRetry { .. } => "exit-retry",
        EndsIn::LeakedShims { .. } => "leaked-shims",
        EndsIn::Cycle => "cycle",
        EndsIn::NotVisible { .. } => "not-visible",
    }
}

/// The kind of a device, from its name: `nvme`, `sd`, `dm`, …
pub fn device_class(name: &str) -> String {
    let base = name.rsplit('/').next().unwrap_or(name);
    let class: String = base.chars().take_while(|c| c.is_ascii_alphabetic()).collect();
    match class.as_str() {
        "sda" | "sdb" | "sdc" => "sd".to_owned(),
        c if c.starts_with("sd") && c.len() <= 4 => "sd".to_owned(),
        c if c.starts_with("xvd") => "xvd".to_owned(),
        c if c.starts_with("vd") && c.len() <= 4 => "vd".to_owned(),
        _ => class,
    }
}

/// The whole diagnosis in one sentence, for somebody woken at 3 am.
pub fn sentence(d: &Diagnosis, now: Ns) -> String {
    if let EndsIn::LeakedShims { .. } = d.ends_in {
        let of: Vec<String> = d.containers.iter().take(3).map(pod).collect();
        return format!("LEFT OVER · {} · of {} · nobody waits", ends_in(&d.ends_in), of.join(", "));
    }
    // Of calls that were found in progress, another may be known to be older.
    let of_calls = d.stuck_calls.iter().map(|c| c.age).max().unwrap_or(0);
    let stuck = if d.chain.at_least() { d.chain.age.max(of_calls) } else { d.chain.age };
    let mut parts = vec![format!("STUCK {}{}", least(d.chain.at_least()), duration(stuck))];
    parts.extend(d.not_ready.as_ref().map(|n| when("NotReady", n.at, n.latest, now)));
    parts.push(cause(d));
    parts.push(match (d.stuck_calls_total, d.head) {
        (_, Head::Alone) => "no waiting call seen".to_owned(),
        (1, _) => format!("1 call waits{}", of_pods(d)),
        (n, _) => format!("{n} calls wait{}", of_pods(d)),
    });
    parts.join(" · ")
}

/// What comes, or has come, at a time: `NotReady in 1m12s`. Where it is the latest time: `NotReady in at most 1m12s`.
fn when(what: &str, at: Ns, latest: bool, now: Ns) -> String {
    match at.checked_sub(now) {
        Some(left) if left > 0 => {
            format!("{what} in {}{}", if latest { "at most " } else { "" }, duration(left))
        }
        _ => format!("{what} since {}{}", least(latest), duration(now.saturating_sub(at))),
    }
}

/// How many pods the calls that wait are about: ` (2 pods)`.
fn of_pods(d: &Diagnosis) -> String {
    match d.pods_waiting {
        0 => String::new(),
        1 => " (1 pod)".to_owned(),
        n => format!(" ({n} pods)"),
    }
}

/// What comes next: whether and about when it ends by itself, when the node is NotReady and pods are evicted.
pub fn ahead(d: &Diagnosis, now: Ns) -> String {
    let mut parts = vec![match &d.outlook {
        Outlook::Drains { bytes: left, bytes_per_second, at_most, likely, growing } => {
            let rate = bytes(*bytes_per_second);
            let grows = match growing {
                Some(by) => format!("; longer if it goes on growing, by {} lately", bytes(*by)),
                None => String::new(),
            };
            let (left, most) = (bytes(*left), duration(*at_most));
            match likely {
                Some((here, time)) => format!(
                    "ends in about {} (estimate: {} of groups on this device, {rate}/s; at most {most}, {left} dirty on \
                     the node{grows})",
                    duration(*time),
                    bytes(*here)
                ),
                None => {
                    format!("ends in at most {most} (estimate: {left} dirty on the node, {rate}/s{grows})")
                }
            }
        }
        Outlook::At { at, because } => match at.saturating_sub(now) {
            0 => format!("goes on any moment (estimate: {because})"),
            left => format!("goes on in {} (estimate: {because})", duration(left)),
        },
        Outlook::Never { because } => format!("does not end by itself: {because}"),
        Outlook::Unknown { because } => format!("end not known: {because}"),
    }];
    if let Some(n) = &d.not_ready {
        parts.push(format!(
            "{} (threshold {}, {}: {})",
            when("NotReady", n.at, n.latest, now),
            duration(n.threshold),
            confidence_word(n.confidence),
            n.evidence
        ));
        parts.push(format!("{} (default toleration)", when("evictions", n.evictions_from, n.latest, now)));
    }
    parts.join(" · ")
}

/// Who has memory waiting to be written to the disk that all wait for; `None` where it ends in no disk.
pub fn dirtied(d: &Diagnosis) -> Option<String> {
    if let Some(because) = &d.dirtied_unknown {
        return Some(format!("not visible: because {because}"));
    }
    let told: Vec<String> = d
        .dirtied_by
        .iter()
        .map(|one| {
            let rate = match one.bytes_per_second {
                Some(rate) if rate > 0 => format!(", {}/s", bytes(rate)),
                _ => String::new(),
            };
            let sure = confidence_word(one.confidence);
            format!("{} {}{rate} ({sure}: {})", source(&one.source), bytes(one.bytes), one.evidence)
        })
        .collect();
    let first = d.dirtied_by.first().filter(|one| one.confidence != Confidence::NotVisible);
    // Whose unmount it is, where that is another pod than the one that wrote the most.
    let unmounted = unmount_of(&d.chain.links).and_then(|l| l.subject.as_ref()).map(pod);
    let pays = match (first.and_then(|one| one.source.subject()).map(pod), unmounted) {
        (Some(writer), Some(payer)) if writer != payer => format!("; the unmount of {payer} pays for it"),
        _ => String::new(),
    };
    (!told.is_empty()).then(|| told.join(", ") + &pays)
}

/// Whom a control group belongs to.
pub fn source(of: &Source) -> String {
    match of {
        Source::Container(s) => subject(s),
        Source::GoneFrom(s) => format!("containers of {} that are gone", pod(s)),
        Source::GoneBelow(path) => format!("groups below {} that are gone", clip(path, 2 * NAME)),
        Source::Group(path) => clip(path, 2 * NAME),
    }
}

/// The culprit of a diagnosis: what it ends in, in which unmount of whom, and for how long.
pub fn cause(d: &Diagnosis) -> String {
    let leaf = d.chain.links.last();
    let what = ends_in(&d.ends_in);
    let of = |l: &Link| match &l.subject {
        _ if is_temporary(&l.operation) => " of containerd's own temporary mount at create".to_owned(),
        Some(s) => format!(" of {}", pod(s)),
        None => String::new(),
    };
    if let Some(l) = leaf.filter(|l| l.operation.kind == Kind::Stalled) {
        return format!("{} that is {} ({})", role(l.who.role), l.operation.method, age(l));
    }
    match &d.ends_in {
        EndsIn::UnmountSync { .. }
        | EndsIn::Sync { .. }
        | EndsIn::Frozen { .. }
        | EndsIn::RemoteFileSystem { .. } => match (unmount_of(&d.chain.links), leaf) {
            (Some(u), _) => format!("{what} in the unmount{} ({})", of(u), age(u)),
            (None, Some(l)) => format!("{what}{} ({})", of(l), age(l)),
            _ => what,
        },
        EndsIn::Unmount { .. } => match unmount_of(&d.chain.links) {
            Some(u) => {
                let named = u.subject.is_some() || is_temporary(&u.operation);
                let place = u.operation.path.as_ref().filter(|_| !named);
                let place = place.map(|p| format!(" of {p}")).unwrap_or_default();
                let device = match &d.ends_in {
                    EndsIn::Unmount { device: Some(dev), .. } => format!(" on {}", device(dev)),
                    _ => String::new(),
                };
                format!("unmount{}{place}{device} ({})", of(u), age(u))
            }
            None => what,
        },
        EndsIn::MountBusy { failures, pins } => match leaf {
            Some(l) => {
                let busy = kept_busy(pins);
                format!("unmount{} that fails with EBUSY ({failures} times){busy} ({})", of(l), age(l))
            }
            None => what,
        },
        EndsIn::ExitRetry { .. } => match leaf {
            Some(l) => format!("{what}{}, not reported for {}", of(l), age(l)),
            None => what,
        },
        EndsIn::NotVisible { because } => match leaf {
            Some(l) => {
                let at = match &l.lock {
                    Some(lk) => format!("wait for {}", lock(lk)),
                    None => format!("{}{}", operation(&l.operation, None), of(l)),
                };
                format!("{at} ({}), below it not visible: {because}", age(l))
            }
            None => what,
        },
        _ => match leaf {
            Some(l) => {
                let at = match &l.lock {
                    Some(lk) => format!("wait for {}", lock(lk)),
                    None => format!("{}{}", operation(&l.operation, None), of(l)),
                };
                format!("{what}, {at} ({})", age(l))
            }
            None => what,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_at_a_glance() {
        let cases = [
            (0, "0s"),
            (1_500, "1us"),
            (340 * MILLISECOND, "340ms"),
            (SECOND - 1, "999ms"),
            (SECOND, "1.0s"),
            (9_990 * MILLISECOND, "9.9s"),
            (10 * SECOND, "10s"),
            (59_999 * MILLISECOND, "59s"),
            (108 * SECOND, "1m48s"),
            (3_600 * SECOND, "1h00m"),
            (7_500 * SECOND, "2h05m"),
        ];
        for (ns, expected) in cases {
            assert_eq!(duration(ns), expected);
        }
    }

    #[test]
    fn the_middle_of_a_long_name_gives_way() {
        assert_eq!(clip("short", 5), "short");
        assert_eq!(clip("abcdefghij", 5), "ab…ij");
        assert_eq!(clip("äöüßéèêëïî", 4), "äö…î");
        assert_eq!(clip("ab", 1), "…");
        assert_eq!(clip("ab", 0), "…");
    }

    #[test]
    fn bytes_at_a_glance() {
        let cases =
            [(0, "0 B"), (999, "999 B"), (80_000_000, "80 MB"), (2_400_000_000, "2.4 GB"), (1_000, "1 kB")];
        for (n, expected) in cases {
            assert_eq!(bytes(n), expected);
        }
    }

    #[test]
    fn device_classes() {
        let cases = [
            ("/dev/nvme1n1", "nvme"),
            ("/dev/sda", "sd"),
            ("/dev/sdaf2", "sd"),
            ("/dev/vda1", "vd"),
            ("/dev/xvdb", "xvd"),
            ("/dev/dm-3", "dm"),
            ("/dev/loop7", "loop"),
            ("/dev/md127", "md"),
        ];
        for (name, expected) in cases {
            assert_eq!(device_class(name), expected);
        }
    }
}
