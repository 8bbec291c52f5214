//! The language of scenario files: events as lines that people read. For tests and demonstrations.
//!
//! One line is one event: seconds since the start, a verb, words and `key=value` fields. `#` begins a comment.
//!
//! ```text
//! 10.0 process 100 containerd go1.19.8 [comm=containerd] [started=1.0] [version=1.6.20]      roles: kubelet containerd shim other
//! 10.0 gone 100
//! 10.0 container aa prod/job-7/main [shim=300] [upper=259:1:ext4] [volatile=yes|no] [sandbox=yes]
//! 10.0 op NAME KIND[:METHOD] PID:TID[:gG[#GOID]] [since=9.5] [object=0x..] [container=aa] [path=..] [device=259:1]
//!                           [fs=ext4] [by=fentry] [found=yes]               in flight; NAME is for this file only;
//!                                                 `found`: by looking at memory, it may have begun before
//! 10.0 again NAME..                                                         reported once more
//! 10.0 end NAME [outcome=ok|error|errno:16]      or   end NAME KIND.. fields  (an end without a begin)
//! 10.0 forget NAME..                                its end is never reported; polls do not mention it any more
//! 10.0 poll KINDS [older-than=9.9] [not=NAME,..]    reports all named operations of these kinds that have not ended,
//!                                                 except those in `not`, then completes the poll; KINDS: all, or a,b
//! 10.0 look PID                                    reports all named operations of this process that were found so and
//!                                                 have not ended
//! 10.0 gosite ACTOR STATE FUNCTION..                where a goroutine sits in Go
//! 10.0 complete KINDS [older-than=9.9]              completes a poll that reported nothing by itself
//! 10.0 woken BY WAITER semaphore=0x..             actors as in `op`
//! 10.0 lock PID BASE status|init CONTAINER
//! 10.0 site PID:TID STATE [syscall=166] [stack=a,b,c]
//! 10.0 device 259:1 /dev/nvme1n1 sectors=1000
//! 10.0 memory dirty=1000 writeback=10
//! 10.0 pressure io|memory|cpu [some=1000] [full=10] [reason=..]      microseconds since boot
//! 10.0 lost ring|map|queue|late COUNT
//! 10.0 pins PATH PID:COMM:HOW[:CONTAINER]..           who keeps a mount busy; `_` in HOW stands for a space
//!                           [reason=..]
//! 10.0 writers [CGROUP:CONTAINER:BYTES[:gone][:MAJOR/MINOR/WRITTEN]].. [reason=..]     who has BYTES dirty; CONTAINER
//!                                                 `-`: of none
//! 10.0 kubelet PID [threshold=600] [policy=none] [timeout=120] [source=..]
//! 10.0 leaked PID CONTAINER                        a shim whose bundle is gone and that still runs
//! 10.0 blind WHAT = REASON                        words up to `=`; nothing behind it means it can be seen again
//! 10.0 tick                                       asks for a frame
//! 10.0 until 20.0 [every=0.1]                     polls everything and ticks on a grid, frames are not shown
//! ```
//!
//! The method of a `stalled` operation is a sentence, with `_` for each space: `stalled:frozen_by_its_cgroup`.
//!
//! Container ids are hex and are repeated up to 64 digits: `aa` stands for `aaaa…`.

use crate::event::{
    Actor, Began, Body, Container, Device, DeviceFacts, Event, GoroutineSite, Kind, KubeletFacts, LockName,
    LossPoint, Ns, Operation, Outcome, Pin, Pins, PressureFacts, Process, Resource, Role, SeenBy, ThreadSite,
    Writer, Writers,
};
use std::collections::BTreeMap;

/// A step of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something happens.
    Event(Event),
    /// Time passes; whether the frame is to be shown.
    Tick(Ns, bool),
}

/// A whole scenario in the order of its file.
pub fn parse(text: &str) -> Result<Vec<Step>, String> {
    let mut reader = Reader::default();
    for (number, line) in text.lines().enumerate() {
        let line = line.split(" #").next().unwrap_or("").trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        reader.line(line).map_err(|e| format!("line {}: {e}: {line}", number + 1))?;
    }
    Ok(reader.steps)
}

#[derive(Default)]
struct Reader {
    steps: Vec<Step>,
    /// Named operations, and whether they have ended.
    named: BTreeMap<String, (Operation, bool)>,
}

/// The words of a line and its fields.
struct Line<'a> {
    words: Vec<&'a str>,
    fields: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn word(&self, i: usize) -> Result<&'a str, String> {
        self.words.get(i).copied().ok_or_else(|| format!("word {} is missing", i + 1))
    }

    fn field(&self, key: &str) -> Option<&'a str> {
        self.fields.get(key).copied()
    }
}

impl Reader {
    fn event(&mut self, at: Ns, body: Body) {
        self.steps.push(Step::Event(Event { at, body }));
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let mut words = Vec::new();
        let mut fields = BTreeMap::new();
        for token in line.split_whitespace() {
            match token.split_once('=') {
                Some((key, value)) if !key.is_empty() => {
                    fields.insert(key, value);
                }
                _ => words.push(token),
            }
        }
        let l = Line { words, fields };
        let at = seconds(l.word(0)?)?;
        match l.word(1)? {
            "process" => {
                let role = match l.word(3)? {
                    "kubelet" => Role::Kubelet,
                    "containerd" => Role::Containerd,
                    "shim" => Role::Shim,
                    "other" => Role::Other,
                    other => return Err(format!("unknown role {other}")),
                };
                let comm = l.field("comm").unwrap_or(match role {
                    Role::Shim => "containerd-shim",
                    _ => l.word(3)?,
                });
                let process = Process {
                    version: l.field("version").map(str::to_owned),
                    pid: number(l.word(2)?)?,
                    started: l.field("started").map_or(Ok(0), seconds)?,
                    role,
                    comm: comm.to_owned(),
                    go_version: l.word(4)?.to_owned(),
                };
                self.event(at, Body::Process(process));
            }
            "gone" => self.event(at, Body::ProcessGone { pid: number(l.word(2)?)? }),
            "container" => {
                let body = Body::Container(container(&l)?);
                self.event(at, body);
            }
            "op" => {
                let op = operation(&l, 3, at)?;
                self.named.insert(l.word(2)?.to_owned(), (op.clone(), false));
                self.event(at, Body::InFlight(op));
            }
            "again" => {
                for name in l.words.iter().skip(2) {
                    let (op, _) = self.named.get(*name).ok_or_else(|| format!("no operation {name}"))?;
                    let op = op.clone();
                    self.event(at, Body::InFlight(op));
                }
            }
            "end" => {
                let name = l.word(2)?;
                let op = if l.words.len() > 3 {
                    operation(&l, 3, at)?
                } else {
                    self.named
                        .get(name)
                        .map(|(op, _)| op.clone())
                        .ok_or_else(|| format!("no operation {name}"))?
                };
                self.named.insert(name.to_owned(), (op.clone(), true));
                let outcome = match l.field("outcome") {
                    None | Some("ok") => Outcome::Done,
                    Some("error") => Outcome::Error,
                    Some(o) => match o.strip_prefix("errno:") {
                        Some(n) => Outcome::Errno(n.parse().map_err(|_| format!("no errno: {n}"))?),
                        None => return Err(format!("unknown outcome {o}")),
                    },
                };
                self.event(at, Body::Ended(op, outcome));
            }
            "forget" => {
                for name in l.words.iter().skip(2) {
                    self.named.get_mut(*name).ok_or_else(|| format!("no operation {name}"))?.1 = true;
                }
            }
            "poll" => {
                let not: Vec<&str> = l.field("not").map(|n| n.split(',').collect()).unwrap_or_default();
                let older_than = l.field("older-than").map_or(Ok(at), seconds)?;
                self.poll(at, &kinds(l.word(2)?)?, older_than, &not);
            }
            "look" => self.look(at, number(l.word(2)?)?),
            "gosite" => {
                let site = GoroutineSite {
                    actor: actor(l.word(2)?)?,
                    state: spaced(l.word(3)?),
                    functions: l.words.iter().skip(4).map(|&f| f.to_owned()).collect(),
                };
                self.event(at, Body::GoroutineSite(site));
            }
            "complete" => {
                let older_than = l.field("older-than").map_or(Ok(at), seconds)?;
                self.event(at, Body::PollComplete { kinds: kinds(l.word(2)?)?, older_than });
            }
            "until" => {
                let end = seconds(l.word(2)?)?;
                let every = l.field("every").map_or(Ok(100_000_000), seconds)?.max(1);
                let mut t = at;
                while t <= end {
                    self.poll(t, &Kind::ALL, t, &[]);
                    let found: std::collections::BTreeSet<u32> = self
                        .named
                        .values()
                        .filter(|(op, _)| is_found(op))
                        .map(|(op, _)| op.actor.pid)
                        .collect();
                    found.into_iter().for_each(|pid| self.look(t, pid));
                    self.steps.push(Step::Tick(t, false));
                    t = t.saturating_add(every);
                }
            }
            "woken" => {
                let semaphore = hex(l.field("semaphore").ok_or("semaphore= is missing")?)?;
                let body = Body::Woken { by: actor(l.word(2)?)?, waiter: actor(l.word(3)?)?, semaphore };
                self.event(at, body);
            }
            "lock" => {
                let id = container_id(l.word(5)?);
                let lock = match l.word(4)? {
                    "status" => LockName::Status(id),
                    "init" => LockName::Init(id),
                    other => return Err(format!("unknown lock {other}")),
                };
                let body = Body::LockIdentity { pid: number(l.word(2)?)?, base: hex(l.word(3)?)?, lock };
                self.event(at, body);
            }
            "site" => {
                let who = actor(l.word(2)?)?;
                let site = ThreadSite {
                    pid: who.pid,
                    tid: who.tid,
                    state: l.word(3)?.chars().next().unwrap_or('?'),
                    syscall: l.field("syscall").and_then(|s| s.parse().ok()),
                    arguments: Vec::new(),
                    kernel_stack: l
                        .field("stack")
                        .map(|s| s.split(',').map(str::to_owned).collect())
                        .unwrap_or_default(),
                };
                self.event(at, Body::ThreadSite(site));
            }
            "device" => {
                let facts = DeviceFacts {
                    device: device(l.word(2)?)?,
                    name: l.word(3)?.to_owned(),
                    sectors_written: number(l.field("sectors").unwrap_or("0"))?,
                };
                self.event(at, Body::Device(facts));
            }
            "memory" => {
                let dirty = number(l.field("dirty").unwrap_or("0"))?;
                let writeback = number(l.field("writeback").unwrap_or("0"))?;
                self.event(at, Body::Memory { dirty, writeback });
            }
            "pressure" => {
                let facts = PressureFacts {
                    of: match l.word(2)? {
                        "io" => Resource::Io,
                        "memory" => Resource::Memory,
                        "cpu" => Resource::Cpu,
                        other => return Err(format!("unknown resource {other}")),
                    },
                    some: l.field("some").map(number).transpose()?,
                    full: l.field("full").map(number).transpose()?,
                    reason: spaced(l.field("reason").unwrap_or_default()),
                };
                self.event(at, Body::Pressure(vec![facts]));
            }
            "lost" => {
                let point = match l.word(2)? {
                    "ring" => LossPoint::Ring,
                    "map" => LossPoint::Map,
                    "skipped" => LossPoint::Skipped,
                    "queue" => LossPoint::Queue,
                    "late" => LossPoint::Late,
                    other => return Err(format!("unknown loss point {other}")),
                };
                let count = number(l.word(3)?)?;
                self.event(at, Body::Lost { at: point, count });
            }
            "blind" => {
                let rest = line.split_once("blind").map(|(_, r)| r).unwrap_or_default();
                let (what, reason) = rest.split_once('=').ok_or("`=` is missing")?;
                let body = Body::BlindSpot { what: what.trim().to_owned(), reason: reason.trim().to_owned() };
                self.event(at, body);
            }
            "writers" => {
                let of =
                    l.words.iter().skip(2).map(|w| writer(w)).collect::<Result<Vec<Writer>, String>>()?;
                let reason = spaced(l.field("reason").unwrap_or_default());
                self.event(at, Body::Writers(Writers { of, left_out: 0, reason }));
            }
            "kubelet" => {
                let source = spaced(l.field("source").unwrap_or("its_own_code"));
                let limit = |name: &str| l.field(name).map(seconds).transpose();
                let facts = KubeletFacts {
                    pid: number(l.word(2)?)?,
                    pleg_threshold: limit("threshold")?.map(|threshold| (threshold, source.clone())),
                    cpu_manager_policy: l.field("policy").map(|policy| (policy.to_owned(), source.clone())),
                    request_timeout: limit("timeout")?,
                };
                self.event(at, Body::Kubelet(facts));
            }
            "pins" => {
                let of = l.words.iter().skip(3).map(|w| pin(w)).collect::<Result<Vec<Pin>, String>>()?;
                let reason = spaced(l.field("reason").unwrap_or_default());
                self.event(at, Body::Pins(Pins { path: whole_path(l.word(2)?), of, reason }));
            }
            "leaked" => {
                let body = Body::LeakedShim { pid: number(l.word(2)?)?, id: container_id(l.word(3)?) };
                self.event(at, body);
            }
            "tick" => self.steps.push(Step::Tick(at, true)),
            other => return Err(format!("unknown verb {other}")),
        }
        Ok(())
    }

    fn poll(&mut self, at: Ns, kinds: &[Kind], older_than: Ns, not: &[&str]) {
        let alive: Vec<Operation> = self
            .named
            .iter()
            .filter(|(name, (op, ended))| {
                !ended
                    && !is_found(op)
                    && kinds.contains(&op.kind)
                    && op.begin <= at
                    && !not.contains(&name.as_str())
            })
            .map(|(_, (op, _))| op.clone())
            .collect();
        for op in alive {
            self.event(at, Body::InFlight(op));
        }
        self.event(at, Body::PollComplete { kinds: kinds.to_vec(), older_than });
    }

    fn look(&mut self, at: Ns, pid: u32) {
        let alive: Vec<Operation> = self
            .named
            .values()
            .filter(|(op, ended)| !ended && is_found(op) && op.actor.pid == pid && op.begin <= at)
            .map(|(op, _)| op.clone())
            .collect();
        alive.into_iter().for_each(|op| self.event(at, Body::InFlight(op)));
        self.event(at, Body::Looked { pid });
    }
}

fn is_found(op: &Operation) -> bool {
    op.seen_by == SeenBy::Memory
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("not a number: {text}"))
}

fn hex(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").ok_or_else(|| format!("not 0x…: {text}"))?;
    u64::from_str_radix(digits, 16).map_err(|_| format!("not a hex number: {text}"))
}

/// `12.345` seconds in nanoseconds, exactly.
fn seconds(text: &str) -> Result<Ns, String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let whole: u64 = number(whole)?;
    let padded: String = part.chars().chain(std::iter::repeat('0')).take(9).collect();
    let part: u64 = number(&padded)?;
    whole
        .checked_mul(1_000_000_000)
        .and_then(|w| w.checked_add(part))
        .ok_or_else(|| format!("too late: {text}"))
}

fn container_id(text: &str) -> String {
    text.chars().cycle().take(64).collect()
}

/// `a_b` for `a b`.
fn spaced(text: &str) -> String {
    text.replace('_', " ")
}

/// A path; `…/*aa/rootfs` writes the whole id.
fn whole_path(text: &str) -> String {
    match text.split_once('*') {
        Some((before, rest)) => {
            let (id, after) = rest.split_once('/').unwrap_or((rest, ""));
            format!("{before}{}/{after}", container_id(id))
        }
        None => text.to_owned(),
    }
}

fn pin(text: &str) -> Result<Pin, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let &[pid, comm, how, ref container @ ..] = parts.as_slice() else {
        return Err(format!("not PID:COMM:HOW[:CONTAINER]: {text}"));
    };
    Ok(Pin {
        pid: number(pid)?,
        comm: comm.to_owned(),
        container: container.first().map(|id| container_id(id)),
        how: spaced(how),
    })
}

/// `CGROUP:CONTAINER:BYTES[:gone][:MAJOR/MINOR/WRITTEN]`
fn writer(text: &str) -> Result<Writer, String> {
    let mut parts = text.split(':');
    let mut next = || parts.next().ok_or_else(|| format!("not CGROUP:CONTAINER:BYTES: {text}"));
    let (cgroup, container, dirty) = (next()?.to_owned(), next()?, number(next()?)?);
    let container = (container != "-").then(|| container_id(container));
    let mut writer = Writer { cgroup, container, gone: false, dirty, writeback: 0, written: Vec::new() };
    for part in parts {
        match part.splitn(3, '/').collect::<Vec<_>>().as_slice() {
            ["gone"] => writer.gone = true,
            &[major, minor, bytes] => {
                let device = Device { major: number(major)?, minor: number(minor)? };
                writer.written.push((device, number(bytes)?));
            }
            _ => return Err(format!("neither `gone` nor MAJOR/MINOR/WRITTEN: {part}")),
        }
    }
    Ok(writer)
}

fn device(text: &str) -> Result<Device, String> {
    let (major, minor) = text.split_once(':').ok_or_else(|| format!("not a device: {text}"))?;
    Ok(Device { major: number(major)?, minor: number(minor)? })
}

/// `PID:TID`, `PID:TID:gG` or `PID:TID:gG#GOID`.
fn actor(text: &str) -> Result<Actor, String> {
    let mut parts = text.split(':');
    let mut next = || parts.next().ok_or_else(|| format!("not an actor: {text}"));
    let (pid, tid) = (number(next()?)?, number(next()?)?);
    let (g, goid) = match parts.next() {
        None => (None, None),
        Some(goroutine) => {
            let (g, goid) = match goroutine.split_once('#') {
                Some((g, goid)) => (g, Some(number(goid)?)),
                None => (goroutine, None),
            };
            let g = g.strip_prefix('g').ok_or_else(|| format!("not a goroutine: {goroutine}"))?;
            (Some(number(g)?), goid)
        }
    };
    Ok(Actor { pid, tid, g, goid })
}

fn kind(text: &str) -> Result<Kind, String> {
    Ok(match text {
        "relist" => Kind::Relist,
        "client" => Kind::CriClient,
        "cri" => Kind::CriCall,
        "status" => Kind::StatusUpdate,
        "exit" => Kind::ExitHandling,
        "call" => Kind::ShimCall,
        "serve" => Kind::ShimServe,
        "init" => Kind::InitMethod,
        "wait" => Kind::LockWait,
        "hold" => Kind::LockHold,
        "unmount" => Kind::Unmount,
        "shutdown" => Kind::SuperShutdown,
        "stalled" => Kind::Stalled,
        "sync" => Kind::Sync,
        other => return Err(format!("unknown kind {other}")),
    })
}

fn kinds(text: &str) -> Result<Vec<Kind>, String> {
    if text == "all" { Ok(Kind::ALL.to_vec()) } else { text.split(',').map(kind).collect() }
}

fn operation(l: &Line<'_>, first: usize, at: Ns) -> Result<Operation, String> {
    let (what, method) = match l.word(first)?.split_once(':') {
        Some((what, method)) => (what, method),
        None => (l.word(first)?, ""),
    };
    let kind = kind(what)?;
    let found = l.field("found") == Some("yes");
    let by = match l.field("by") {
        None if found => SeenBy::Memory,
        Some("uprobe") => SeenBy::Uprobe,
        Some("fentry") => SeenBy::Fentry,
        Some("kprobe") => SeenBy::Kprobe,
        Some("tracepoint") => SeenBy::Tracepoint,
        Some("proc") => SeenBy::Proc,
        Some(other) => return Err(format!("unknown by={other}")),
        None if matches!(kind, Kind::Unmount | Kind::SuperShutdown | Kind::Sync) => SeenBy::Fentry,
        None => SeenBy::Uprobe,
    };
    Ok(Operation {
        kind,
        method: if kind == Kind::Stalled { spaced(method) } else { method.to_owned() },
        actor: actor(l.word(first + 1)?)?,
        begin: l.field("since").map_or(Ok(at), seconds)?,
        object: l.field("object").map_or(Ok(0), hex)?,
        container: l.field("container").map(container_id),
        path: l.field("path").map(whole_path),
        device: l.field("device").map(device).transpose()?,
        fs_type: l.field("fs").map(str::to_owned),
        began: if found { Began::ThenOrBefore } else { Began::Then },
        seen_by: by,
    })
}

fn container(l: &Line<'_>) -> Result<Container, String> {
    let mut names = l.words.get(3).copied().unwrap_or_default().split('/').filter(|n| !n.is_empty());
    let (namespace, pod, name) = (names.next(), names.next(), names.next());
    Ok(Container {
        id: container_id(l.word(2)?),
        runtime_namespace: "k8s.io".to_owned(),
        pod: pod.map(str::to_owned),
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
        sandbox: l.field("sandbox") == Some("yes"),
        shim: l.field("shim").map(number).transpose()?,
        upper: match l.field("upper") {
            Some(upper) => {
                let (dev, fs) = upper.rsplit_once(':').ok_or("upper=MAJ:MIN:FS")?;
                Some((device(dev)?, fs.to_owned()))
            }
            None => None,
        },
        volatile: match l.field("volatile") {
            Some("yes") => Some(true),
            Some("no") => Some(false),
            _ => None,
        },
    })
}
