//! What the correlator says at one moment: plain data for every sink, nothing in it refers back to the correlator.
//!
//! All strings that come from workloads (paths, comm, container and pod names) are as they were seen: a sink passes
//! them through [`crate::sinks::sanitise`] before they reach a terminal, a label or a log. All lists are bounded by the
//! constants in [`super::limits`]; where a list is cut, a number beside it says how many there are in all.

use super::dirtiers::Dirtier;
use super::exits::Attempts;
use super::outlook::{NotReady, Outlook};
use crate::event::{
    Began, Device, GoroutineSite, LossPoint, Ns, Operation, OperationId, ProgramCost, Resource, Role,
    ThreadSite,
};
use serde::{Deserialize, Serialize};

/// Everything that is known at `now`. Immutable once made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The time of the tick.
    pub now: Ns,
    /// One for each distinct thing that stuck calls end in: relists first, then the oldest first.
    pub diagnoses: Vec<Diagnosis>,
    /// How many diagnoses there are in all.
    pub diagnoses_total: u64,
    /// Incidents that are open, and those that ended at this tick, by id.
    pub incidents: Vec<Incident>,
    /// Operations in flight that are older than their floor, oldest first.
    pub in_flight: Vec<InFlight>,
    /// How many operations are in flight in all.
    pub in_flight_total: u64,
    /// How the relists fared.
    pub relists: RelistSummary,
    /// Records lost since the start, by place; places without loss are absent.
    pub losses: Vec<Loss>,
    /// What the correlator itself had to leave out because a collection was at its bound; all zero on a healthy node.
    pub dropped: Vec<Dropped>,
    /// Operations whose end was never reported and that were taken for ended on other grounds, since the start.
    pub uncertain_ends: u64,
    /// What cannot be seen right now, and why.
    pub blind_spots: Vec<BlindSpot>,
    /// How long things took that have ended.
    pub distributions: Vec<Distribution>,
    /// Memory waiting to be written, where it is known.
    pub memory: Option<Memory>,
    /// How much of the time everybody waited for what the node is short of; empty where nothing was told.
    #[serde(default)]
    pub pressures: Vec<Pressure>,
    /// Block devices that are known, with their rate of writing.
    pub devices: Vec<DeviceState>,
    /// What looking costs the programs that are probed.
    pub costs: Vec<ProgramCost>,
    /// Shims that are left over: process, and the container it was started for; bounded by
    /// [`super::limits::SUBJECTS_SHOWN`].
    pub leaked_shims: Vec<(u32, Subject)>,
    /// The programs that take part, by role and version; at most [`super::limits::PROGRAMS_SHOWN`].
    #[serde(default)]
    pub programs: Vec<Program>,
}

/// A program that takes part, in one version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Program {
    /// What it is.
    pub role: Role,
    /// Its version, where it can be told, for instance `1.6.20`.
    pub version: Option<String>,
    /// Version of the Go that built it, for instance `go1.19.8`.
    pub go_version: String,
    /// How many processes run it.
    pub processes: u32,
}

/// Why stuck calls are stuck: what they all end in, and the way there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// What everything here waits for, in the end.
    pub ends_in: EndsIn,
    /// How sure it is that it ends there.
    pub confidence: Confidence,
    /// What that rests on.
    pub evidence: String,
    /// The chain that is drawn: of the oldest relist (or of the list call that stands for it), else of the oldest
    /// stuck call.
    pub chain: Chain,
    /// What the first link of the chain is.
    pub head: Head,
    /// All stuck calls that end here, the drawn one first, then the oldest first; at most
    /// [`super::limits::STUCK_CALLS_SHOWN`]. When nobody is seen to wait ([`Head::Alone`]): the slow operations
    /// themselves.
    pub stuck_calls: Vec<StuckCall>,
    /// How many stuck calls end here; 0 when nobody is seen to wait.
    pub stuck_calls_total: u64,
    /// Containers and pods that are named anywhere on the way, the one at the end first.
    pub containers: Vec<Subject>,
    /// Whether all of the node waits here. `None` when no relist, and no call that stands for one, does.
    pub not_ready: Option<NotReady>,
    /// How many pods the stuck calls are about (a relist is about all and counts for none).
    pub pods_waiting: u64,
    /// Whether, and about when, it ends by itself.
    pub outlook: Outlook,
    /// Who has memory waiting to be written to the device it ends in, the most first; at most
    /// [`super::limits::DIRTIERS_SHOWN`]. Empty where it ends in no device.
    pub dirtied_by: Vec<Dirtier>,
    /// Why nobody is named in `dirtied_by`, where somebody should be.
    pub dirtied_unknown: Option<String>,
    /// What has come of it so far; at most [`super::limits::CONSEQUENCES_SHOWN`], the gravest first.
    pub consequences: Vec<Consequence>,
    /// Why this is not the chain of an unmount under the shim's lock, where it is another: `no unmount is in flight`.
    pub not_this_chain: Option<String>,
    /// The same for the same cause on other nodes: ends-in, device class, versions.
    pub signature: String,
    /// What could not be seen and may have changed this diagnosis.
    pub blind_spots: Vec<String>,
    /// What helps.
    pub advice: Advice,
    /// The incident this belongs to, once a threshold has been passed.
    pub incident: Option<String>,
}

impl Diagnosis {
    /// Whether anything is stuck; what is only left over is not.
    pub fn is_stuck(&self) -> bool {
        !matches!(self.ends_in, EndsIn::LeakedShims { .. })
    }
}

/// What kind of symptom a chain begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Head {
    /// The kubelet's own relist.
    Relist,
    /// A list call in containerd that stands for the relist because no kubelet is seen.
    ListCall,
    /// A container has exited and containerd has not finished handling it.
    LateExit,
    /// Another CRI call.
    CriCall,
    /// Nobody is known to wait for it: a slow operation by itself (no Go probe, or its caller was not recorded).
    Alone,
}

/// The path from a stuck call to what it waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// From the symptom to the leaf; empty only for what is left over and that nobody does ([`EndsIn::LeakedShims`]).
    /// The [`Link::critical`] of all links sum to [`Chain::age`].
    pub links: Vec<Link>,
    /// Age of the stuck call; see [`Chain::at_least`].
    pub age: Ns,
}

impl Chain {
    /// Whether the stuck call may be older.
    pub fn at_least(&self) -> bool {
        self.links.first().is_some_and(Link::at_least)
    }
}

/// One operation on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Why the link before waits for this one; `None` for the first.
    pub edge: Option<Edge>,
    /// The operation.
    pub operation: Operation,
    /// Who does it.
    pub who: Who,
    /// The container it is done for or to.
    pub subject: Option<Subject>,
    /// The device of a sync or shutdown, by name.
    pub device: Option<DeviceName>,
    /// Whose lock it is, for a lock wait.
    pub lock: Option<Lock>,
    /// How far containerd has got with a container's exit, for its handling.
    pub exit: Option<Attempts>,
    /// Where its goroutine sat when it was last looked at.
    pub goroutine: Option<GoroutineSite>,
    /// Where its thread sits in the kernel, where that was looked at lately and is certain.
    #[serde(default)]
    pub thread: Option<ThreadSite>,
    /// Since when it lasts: its begin, or the begin of the first of several merged lock waits, or that of the first
    /// attempt to handle an exit.
    pub since: Ns,
    /// How long it has lasted.
    pub age: Ns,
    /// The part of the stuck call's age during which this was the deepest operation reached.
    pub critical: Ns,
}

impl Link {
    /// Whether it may have lasted longer than its age: it was found in progress, or what it is about has begun before.
    pub fn at_least(&self) -> bool {
        // A container had exited before the first attempt to handle that.
        self.operation.began == Began::ThenOrBefore || self.exit.as_ref().is_some_and(|e| e.failed.is_some())
    }
}

/// Why one operation waits for another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// Its kind.
    pub kind: EdgeKind,
    /// How sure it is.
    pub confidence: Confidence,
    /// What that rests on, in words.
    pub evidence: String,
}

/// The kinds of edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EdgeKind {
    /// The same actor does both, one within the other.
    Contains,
    /// The first waits for a lock that the second holds.
    WaitsForHolder,
    /// The first is the client's side of a call, the second the server's.
    Calls,
    /// Both sync the same super block; the later waits for the earlier.
    SameSuperBlock,
    /// Both sync the same device; the later waits for the earlier.
    SameDevice,
    /// One goroutine does both, one after the other; the first waits for its turn.
    Behind,
    /// The process that does the first does not run; the second is that.
    RunsIn,
}

/// How sure something is. A table decides (docs/wait-graph.md), not a mood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Confidence {
    /// It cannot be otherwise.
    Proven,
    /// The sole candidate.
    Inferred,
    /// Not seen; the reason is said.
    NotVisible,
}

/// An actor with its process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Who {
    /// Process id.
    pub pid: u32,
    /// Thread id when the operation began.
    pub tid: u32,
    /// The goroutine's number, where it is known.
    pub goid: Option<u64>,
    /// `comm` of the process, where it is known.
    pub comm: Option<String>,
    /// What the process is, where it is known.
    pub role: Option<Role>,
}

/// A container by name, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subject {
    /// Full container id.
    pub id: String,
    /// Pod namespace.
    pub namespace: Option<String>,
    /// Pod name.
    pub pod: Option<String>,
    /// Container name in the pod.
    pub container: Option<String>,
    /// Whether it is the pod's sandbox.
    pub sandbox: bool,
}

/// A lock that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// The process the address belongs to.
    pub pid: u32,
    /// Base address, where it could be told from the semaphore.
    pub base: Option<u64>,
    /// What it is.
    pub name: LockKind,
    /// Whose.
    pub subject: Option<Subject>,
}

/// What a lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockKind {
    /// A container's Status lock in containerd.
    Status,
    /// `Init.mu` of a container in its shim.
    Init,
    /// Another `sync.Mutex` or `sync.RWMutex`.
    Other,
}

/// What a chain ends in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndsIn {
    /// An unmount (or super-block shutdown) that syncs a file system.
    UnmountSync {
        /// The device that is written to.
        device: Option<DeviceName>,
        /// File-system type.
        fs_type: Option<String>,
    },
    /// A sync that belongs to no unmount.
    Sync {
        /// The device that is written to.
        device: Option<DeviceName>,
        /// File-system type.
        fs_type: Option<String>,
    },
    /// An unmount; what it does in the kernel is not visible.
    Unmount {
        /// Where it would sync to, from the mount table.
        device: Option<DeviceName>,
        /// Why there is nothing below it.
        because: String,
    },
    /// An unmount that fails with EBUSY again and again: somebody keeps the mount busy.
    MountBusy {
        /// How often in a row.
        failures: u64,
        /// Who keeps it busy, as far as that was seen.
        pins: Vec<Pinner>,
    },
    /// A remote or user-space file system that does not answer.
    RemoteFileSystem {
        /// `NFS`, `FUSE`, …
        what: String,
    },
    /// The shim's Delete waits for the container's output to drain, or for `runc delete`.
    IoDrain,
    /// containerd writes its own state (status file or bolt database).
    StatusWrite,
    /// runc or the shim writes a cgroup file or asks systemd over D-Bus.
    CgroupOrDbus,
    /// The thread, or the whole process, is stopped: by a tracer, a signal, or a frozen cgroup.
    Frozen {
        /// By what.
        by: String,
    },
    /// A process does not get the CPU (or memory) that it needs to go on.
    Starved {
        /// What it lacks, and how much it gets.
        by: String,
    },
    /// An exit that containerd will try again to handle; nothing is seen to block it meanwhile.
    ExitRetry {
        /// Attempts that have failed so far.
        attempts: u32,
        /// About when it tries again.
        next: Ns,
    },
    /// Shims that are left over: their containers are gone.
    LeakedShims {
        /// How many.
        count: u64,
    },
    /// Operations that wait for each other in a circle.
    Cycle,
    /// The end is not visible.
    NotVisible {
        /// Why.
        because: String,
    },
}

/// A device with the name it has in `/dev`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceName {
    /// Its number.
    pub device: Device,
    /// For instance `/dev/nvme1n1`; `None` when it is not known.
    pub name: Option<String>,
}

/// A process that keeps a mount busy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinner {
    /// Which.
    pub pid: u32,
    /// Its `comm`.
    pub comm: String,
    /// The container it runs in, where it does.
    pub subject: Option<Subject>,
    /// How, in words: `has it mounted too`.
    pub how: String,
}

/// A stuck call, short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StuckCall {
    /// What kind of symptom.
    pub head: Head,
    /// Identity of the operation.
    pub id: OperationId,
    /// Who does it.
    pub who: Who,
    /// The container it is about.
    pub subject: Option<Subject>,
    /// How long it has lasted.
    pub age: Ns,
    /// Whether it may have lasted longer.
    pub at_least: bool,
    /// How far containerd has got with it, for an exit.
    pub exit: Option<Attempts>,
    /// Index of the link of the drawn chain where this call's own chain joins it; `None` when they share none.
    pub joins: Option<usize>,
}

/// What has come of an incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consequence {
    /// What.
    pub what: Harm,
    /// How sure it is.
    pub confidence: Confidence,
    /// What that rests on.
    pub evidence: String,
}

/// The kinds of consequences.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Harm {
    /// A container that containerd does not know the state of any more.
    Unknown {
        /// Which.
        of: Subject,
    },
    /// A container was made anew while the old one was still there.
    Recreated {
        /// The old one.
        of: Subject,
        /// Id of the new one.
        by: String,
    },
    /// The exit of a container was, or is, reported late.
    ExitLate {
        /// Which.
        of: Subject,
        /// How late, so far if it still is not.
        late: Ns,
        /// Attempts of containerd so far.
        attempts: u32,
        /// Whether it is reported by now.
        reported: bool,
    },
    /// Updates of a container failed after they had waited.
    UpdatesFailed {
        /// Which.
        of: Subject,
        /// How many.
        count: u64,
    },
    /// containerd was restarted in the stall.
    Restarted {
        /// Its new process.
        pid: u32,
    },
    /// A shim outlived its bundle.
    ShimLeaked {
        /// Its process.
        pid: u32,
        /// The container it was started for.
        of: Subject,
    },
}

/// What helps, in a first form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// What eases it now.
    pub do_now: Vec<String>,
    /// What makes it worse.
    pub do_not: Vec<String>,
    /// What prevents it next time.
    pub fixes: Vec<Fix>,
}

/// Something that prevents it for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fix {
    /// Its heading in `docs/fixes.md`.
    pub id: String,
    /// What to do.
    pub what: String,
    /// What it changes.
    pub effect: String,
    /// How many of the stuck call's seconds it would have saved, where that can be told from the chain.
    pub saves: Option<Ns>,
    /// How to apply it: a command, or the setting with its file.
    pub how: String,
    /// Since which version; empty when any.
    pub since: String,
    /// What it costs.
    pub side_effects: String,
}

/// A diagnosis over time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// Stable for as long as it lasts, and the same in every replay: made of the root cause's identity.
    pub id: String,
    /// When the first threshold was passed.
    pub opened: Ns,
    /// Begin of the oldest stuck operation.
    pub since: Ns,
    /// When all of it was over.
    pub ended: Option<Ns>,
    /// Which threshold was passed first, in words: `unmount over 5s`.
    pub crossed_by: String,
    /// What it ends in, as known last.
    pub ends_in: EndsIn,
    /// The same for the same cause on other nodes: ends-in, versions, device class.
    pub signature: String,
    /// The one sentence, as known last: `STUCK 5.0s · …`.
    pub summary: String,
    /// The culprit in that sentence: `sync of /dev/nvme1n1 in the unmount of prod/job-7 (5.0s)`.
    pub cause: String,
    /// Doublings of the threshold so far.
    pub level: u32,
    /// Greatest age of a stuck call.
    pub longest: Ns,
    /// Greatest number of stuck calls at once.
    pub stuck_calls: u64,
    /// Containers it was about, the culprit first.
    pub containers: Vec<Subject>,
    /// What has come of it so far, the gravest first; at most [`super::limits::CONSEQUENCES_SHOWN`].
    pub consequences: Vec<Consequence>,
    /// What changed at this tick, if anything did.
    pub change: Option<Change>,
    /// Why the end is not certain; `None` when it is, or when it has not ended.
    pub uncertain_end: Option<String>,
    /// The last diagnosis, only in the frame in which the incident ended.
    pub last: Option<Box<Diagnosis>>,
}

/// What changed about an incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A threshold was passed, it is still blocked.
    Crossed,
    /// It has grown to the next doubling of the threshold.
    Grew,
    /// All of it is over.
    Ended,
    /// It is over, and something more has come of it.
    Aftermath,
    /// It turned out to be the same as this other incident.
    MergedInto(String),
}

/// An operation in flight, for lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// The operation.
    pub operation: Operation,
    /// Who does it.
    pub who: Who,
    /// The container it is about.
    pub subject: Option<Subject>,
    /// How long it has lasted.
    pub age: Ns,
}

/// Slow relists, or list calls that stand for them, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelistSummary {
    /// Whether these are containerd's list calls because no kubelet is seen.
    pub stand_in: bool,
    /// Age of the one in flight, if it is older than the floor.
    pub in_flight: Option<Ns>,
    /// Slow ones that have ended and whose chain reached a leaf, or that are explained in hindsight.
    pub explained: u64,
    /// Slow ones that have ended and whose cause was not visible.
    pub unexplained: u64,
    /// The longest that has ended.
    pub longest: Ns,
    /// Those that count as explained from this frame on: by what became known after their end. They were unexplained before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hindsight: Vec<Hindsight>,
}

/// A slow relist that was explained after its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hindsight {
    /// Its begin.
    pub begin: Ns,
    /// By what.
    pub explained: String,
}

/// Records lost at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Where.
    pub at: LossPoint,
    /// How many since the start.
    pub count: u64,
}

/// A collection of the correlator that was at its bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// What was left out.
    pub what: String,
    /// The bound.
    pub limit: u64,
    /// How many were left out since the start.
    pub count: u64,
}

/// What cannot be seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlindSpot {
    /// What.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// How long things took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    /// Of what: `unmount`, `sync`, `lock wait`, `CRI call`, `relist`, `exit handling` (one attempt), or a CRI method.
    pub of: String,
    /// Shorter ones are not in it: 'of at least this'.
    pub at_least: Ns,
    /// How many.
    pub count: u64,
    /// Median.
    pub p50: Ns,
    /// 90th percentile.
    pub p90: Ns,
    /// 99th percentile.
    pub p99: Ns,
    /// The longest.
    pub max: Ns,
    /// How many lasted at least so long and shorter than the next step: five steps to each power of ten, up to 400 s; steps
    /// without any are left out, and what is shorter than the first counts as the first.
    #[serde(default)]
    pub counts: Vec<(Ns, u64)>,
}

/// Memory waiting to be written, node-wide, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Dirty.
    pub dirty: u64,
    /// Under writeback.
    pub writeback: u64,
}

/// How much of the time everybody waited for a resource, over the last ten seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// For what.
    pub of: Resource,
    /// Millionths of the time in which at least one thread waited; `None` before the second sample, and when not known.
    pub some_ppm: Option<u32>,
    /// Millionths of the time in which all that had something to do waited; never known of processors.
    pub full_ppm: Option<u32>,
    /// Why it is not known; empty when it is, or will be with the next sample.
    pub reason: String,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Number and name.
    pub device: DeviceName,
    /// Bytes written per second over the last ten seconds; `None` before the second sample.
    pub bytes_per_second: Option<u64>,
}
