//! What happened on the node, in typed form: the only thing the correlator ever sees.
//!
//! An event is made by [`crate::decode`] from a record of the kernel half, by the node context from `/proc`, or read
//! back from a capture. All of them carry plain values; nothing here refers to the machine the program runs on.

use compact_str::CompactString;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub type Ns = u64;

/// One thing that happened, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened: kernel time for records of the kernel half, time of reading for context and polls.
    pub at: Ns,
    /// What happened.
    pub body: Body,
}

/// The kinds of things that can happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// A poll saw this operation in flight. Sent again by every poll as long as it lasts, so it is idempotent.
    InFlight(Operation),
    /// The operation ended at the event's time.
    Ended(Operation, Outcome),
    /// A goroutine made a waiter runnable (`runtime.readyWithTime`).
    Woken {
        /// Who released the semaphore.
        by: Actor,
        /// Who was waiting.
        waiter: Actor,
        /// The semaphore's address in that process.
        semaphore: u64,
    },
    /// A poll is complete: every operation of `kinds` that was in flight at the event's time and began before
    /// `older_than` has been reported as [`Body::InFlight`] since the previous poll was complete.
    PollComplete {
        /// The kinds this poll covered.
        kinds: Vec<Kind>,
        /// Operations that began after this were below the floor and may be missing.
        older_than: Ns,
    },
    /// A process that takes part (daemon, shim, kubelet) is there. Sent at first sight.
    Process(Process),
    /// That process has exited or replaced itself by exec. All it did is over.
    ProcessGone {
        /// Which.
        pid: u32,
    },
    /// What is known of a container, from its runtime bundle. Sent at first sight and when more is known.
    Container(Container),
    /// The lock at `base` belongs to this container's status (containerd) or init process (shim). Holds only while an
    /// operation that refers to the lock is in flight.
    LockIdentity {
        /// The process the address belongs to.
        pid: u32,
        /// Base address of the `sync.Mutex` or `sync.RWMutex`.
        base: u64,
        /// Whose lock.
        lock: LockName,
    },
    /// Where a flagged thread sits in the kernel.
    ThreadSite(ThreadSite),
    /// What is known of a block device.
    Device(DeviceFacts),
    /// Memory waiting to be written, node-wide.
    Memory {
        /// Dirty bytes (`Dirty` of `/proc/meminfo`).
        dirty: u64,
        /// Bytes under writeback (`Writeback`).
        writeback: u64,
    },
    /// How much everybody waits for what the node is short of: one for each resource.
    Pressure(Vec<PressureFacts>),
    /// Who has memory waiting to be written, by cgroup. Sampled only while something is blocked on a disk.
    Writers(Writers),
    /// What a kubelet really uses.
    Kubelet(KubeletFacts),
    /// Who keeps a mount busy that was not to be unmounted.
    Pins(Pins),
    /// A shim whose bundle is gone and that still runs.
    LeakedShim {
        /// Which.
        pid: u32,
        /// The container or sandbox it was started for.
        id: String,
    },
    /// What looking costs a program that is probed; replaces an earlier one of the same program.
    Cost(ProgramCost),
    /// The memory of a process was looked at: every operation of it that was found that way ([`SeenBy::Memory`]) and is
    /// still in flight at the event's time has been reported since the previous such event.
    Looked {
        /// Which.
        pid: u32,
    },
    /// Where a goroutine sits in the Go program.
    GoroutineSite(GoroutineSite),
    /// Something was lost on the way here.
    Lost {
        /// Where.
        at: LossPoint,
        /// How many records since the last such event.
        count: u64,
    },
    /// Something cannot be seen, from now on, and why. Replaces an earlier one with the same `what`.
    BlindSpot {
        /// What cannot be seen, for instance `sync with device`.
        what: String,
        /// Why, in words; empty when it can be seen again.
        reason: String,
    },
}

/// A blind spot whose reason says this is none for what containerd and its shims do themselves.
pub const OTHERS_ONLY: &str = "of programs other than containerd and its shims";

/// Who does something: a thread, or a goroutine on a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Actor {
    /// Process id in the root pid namespace.
    pub pid: u32,
    /// Thread id at the time of the event. A goroutine may move to another thread between operations.
    pub tid: u32,
    /// Address of the goroutine's `g`, its identity while it lives; `None` for a plain thread.
    pub g: Option<u64>,
    /// The goroutine's number as Go prints it, for display.
    pub goid: Option<u64>,
}

impl Actor {
    /// Whether both are the same goroutine, or the same thread where either is not known to be a goroutine.
    pub fn is(&self, other: &Actor) -> bool {
        self.pid == other.pid
            && match (self.g, other.g) {
                (Some(a), Some(b)) => {
                    a == b && (self.goid == other.goid || self.goid.is_none() || other.goid.is_none())
                }
                _ => self.tid == other.tid,
            }
    }
}

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// The kubelet's PLEG relist (`pleg.(*GenericPLEG).relist`).
    Relist,
    /// A CRI call as the kubelet makes it (client side).
    CriClient,
    /// A CRI call as containerd serves it (`(*instrumentedService).*`).
    CriCall,
    /// `(*statusStorage).Update` or `.UpdateSync`: holds, or waits for, the container's Status lock.
    StatusUpdate,
    /// containerd handles the exit of a container (`handleContainerExit`).
    ExitHandling,
    /// A ttrpc call to a shim, client side (`ttrpc.(*Client).Call` in containerd).
    ShimCall,
    /// The same call in the shim (`(*service).*`).
    ShimServe,
    /// A method of the shim's `process.(*Init)`: holds, or waits for, `Init.mu`.
    InitMethod,
    /// A goroutine waits for a `sync.Mutex` or `sync.RWMutex` (`runtime.semacquire1`).
    LockWait,
    /// A goroutine is between `sync.(*RWMutex).Lock` and `.Unlock`: it holds the write lock or waits for it.
    LockHold,
    /// An unmount, until the process is really back from it (not until the syscall's exit tracepoint).
    Unmount,
    /// A super block is shut down (`generic_shutdown_super`).
    SuperShutdown,
    /// A file system is synced (`sync_filesystem`; nested: overlay, then its upper file system).
    Sync,
    /// A whole process does not run although it should: frozen, stopped, or starved of CPU. Seen in `/proc`, never by a
    /// probe; the actor is the process (`tid` = `pid`, no goroutine) and [`Operation::method`] says in words how, as the
    /// rest of the sentence `it is …`. The first word decides what it is taken for, see [`Stall::of`].
    Stalled,
}

impl Kind {
    /// All kinds, in the order of a full chain.
    pub const ALL: [Kind; 14] = {
        let mut all = [Kind::Stalled; 14];
        let mut at = 0;
        while at < Kind::RECORDED.len() {
            all[at] = Kind::RECORDED[at];
            at += 1;
        }
        all
    };

    /// The kinds that the kernel half records, in the order of a full chain.
    pub const RECORDED: [Kind; 13] = [
        Kind::Relist,
        Kind::CriClient,
        Kind::CriCall,
        Kind::StatusUpdate,
        Kind::ExitHandling,
        Kind::ShimCall,
        Kind::ShimServe,
        Kind::InitMethod,
        Kind::LockWait,
        Kind::LockHold,
        Kind::Unmount,
        Kind::SuperShutdown,
        Kind::Sync,
    ];
}

/// Something an actor does that has a begin and an end.
///
/// In a capture the fields stand in this order: those that are the same in many lines together, a container before the process
/// that is its shim, times last. That makes it smaller by a twentieth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// What it is.
    pub kind: Kind,
    /// Which function or request: `ListContainers`, `Delete`, `UpdateSync`; empty where the kind says it all.
    pub method: String,
    /// Whether `begin` is when it began, or only the first that is known of it.
    pub began: Began,
    /// Path of the mount for [`Kind::Unmount`].
    pub path: Option<String>,
    /// Device for [`Kind::Sync`] and [`Kind::SuperShutdown`].
    pub device: Option<Device>,
    /// File-system type for [`Kind::Sync`] and [`Kind::SuperShutdown`].
    pub fs_type: Option<String>,
    /// How the probe knows (`uprobe`, `fentry`, `kprobe`, `tracepoint`, `poll`), shown as evidence.
    pub seen_by: SeenBy,
    /// Container or sandbox id, where the probe could read it.
    pub container: Option<String>,
    /// What it is done to, as an address: the semaphore for [`Kind::LockWait`], the lock's base for
    /// [`Kind::LockHold`] and [`Kind::StatusUpdate`], the receiver for [`Kind::InitMethod`], the super block for
    /// [`Kind::SuperShutdown`] and [`Kind::Sync`]; else 0.
    pub object: u64,
    /// Who does it.
    pub actor: Actor,
    /// When it began; see `began`.
    pub begin: Ns,
}

/// What is known of when an operation began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Began {
    /// Its begin was seen, or the program itself keeps the time.
    #[default]
    Then,
    /// It was in flight already when it was first looked at: it began then or before, so its age is *at least* that.
    ThenOrBefore,
}

/// How a process does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stall {
    /// Not one of its threads can run.
    Still,
    /// It runs, but gets less than it needs.
    Starved,
}

impl Stall {
    /// By the first word of the method of a [`Kind::Stalled`] operation: `frozen` (by its control group), `stopped` (by a
    /// signal) and `traced` (held by a tracer or debugger) say that it stands still, `starved` (of CPU or memory) and
    /// everything else that it is starved. Examples: `frozen by its cgroup /kubelet.slice`, `stopped by a signal`, `traced
    /// by strace (pid 7)`, `starved: its cgroup /system.slice is throttled`. It belongs to the identity, so no number that
    /// changes while it lasts may stand in it.
    pub fn of(method: &str) -> Stall {
        match method.split(|c: char| !c.is_ascii_alphabetic()).next() {
            Some("frozen" | "stopped" | "traced") => Stall::Still,
            _ => Stall::Starved,
        }
    }
}

/// Identity of an operation: two reports with the same identity are about the same operation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OperationId {
    /// Process.
    pub pid: u32,
    /// `g` of a goroutine, else the thread id.
    pub actor: u64,
    /// What it is.
    pub kind: Kind,
    /// Which function. Short, so that an identity is made without allocating.
    pub method: CompactString,
    /// What it is done to.
    pub object: u64,
    /// When it began.
    pub begin: Ns,
}

impl Operation {
    /// This operation's identity.
    pub fn id(&self) -> OperationId {
        OperationId {
            pid: self.actor.pid,
            actor: self.actor.g.unwrap_or(u64::from(self.actor.tid)),
            kind: self.kind,
            method: self.method.as_str().into(),
            object: self.object,
            begin: self.begin,
        }
    }
}

/// By what means something was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SeenBy {
    /// A probe in a user-space program.
    Uprobe,
    /// A BPF trampoline on a kernel function.
    Fentry,
    /// A kernel breakpoint.
    Kprobe,
    /// A kernel tracepoint.
    Tracepoint,
    /// Reading `/proc`.
    Proc,
    /// Reading the process's memory: its goroutines' stacks and the runtime's list of who waits for which lock.
    Memory,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It came back without an error, or the probe cannot tell.
    Done,
    /// It failed with this errno (positive).
    Errno(i32),
    /// It returned a Go error whose number is not known.
    Error,
}

/// What a process is on this node, told from the functions it contains, not from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// A containerd daemon.
    Containerd,
    /// A containerd shim (runc v2).
    Shim,
    /// A kubelet.
    Kubelet,
    /// Another Go process that was named by the user.
    Other,
}

/// A process that takes part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id in the root pid namespace.
    pub pid: u32,
    /// When it started; operations of this pid that began earlier belong to an earlier process.
    pub started: Ns,
    /// What it is.
    pub role: Role,
    /// Its `comm`.
    pub comm: String,
    /// Version of Go that built it, for instance `go1.19.8`.
    pub go_version: String,
    /// Version of the program itself, where it can be told, for instance `1.6.20`.
    pub version: Option<String>,
}

/// A container as the runtime bundle describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// containerd namespace, for instance `k8s.io`.
    pub runtime_namespace: String,
    /// Pod name, from the CRI annotations; `None` when it is not a CRI container or the bundle was gone.
    pub pod: Option<String>,
    /// Pod namespace.
    pub namespace: Option<String>,
    /// Container name inside the pod; `None` for the sandbox itself.
    pub name: Option<String>,
    /// Whether this is the pod's sandbox (pause) container.
    pub sandbox: bool,
    /// The shim that runs it.
    pub shim: Option<u32>,
    /// The overlay's upper file system: device and type.
    pub upper: Option<(Device, String)>,
    /// Whether the rootfs is an overlay mounted `volatile` (its unmount does not sync).
    pub volatile: Option<bool>,
}

/// A block device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// What is known of a block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// Its number.
    pub device: Device,
    /// Its node, for instance `/dev/nvme1n1`.
    pub name: String,
    /// Sectors written since boot (`/proc/diskstats` field 10), 512 bytes each.
    pub sectors_written: u64,
}

/// What a node can be short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Resource {
    /// Reading and writing.
    Io,
    /// Memory.
    Memory,
    /// Processor time.
    Cpu,
}

/// For how long everybody waited for a resource: what the kernel calls pressure stall information.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PressureFacts {
    /// For what.
    pub of: Resource,
    /// Microseconds since boot in which at least one thread waited (`some` of `/proc/pressure`); `None` when not known.
    pub some: Option<u64>,
    /// Microseconds since boot in which all that had something to do waited (`full`); `None` when not known, and of
    /// [`Resource::Cpu`], where the kernel does not tell that of a whole node.
    pub full: Option<u64>,
    /// Why it is not known; empty when it is.
    pub reason: String,
}

/// Whose lock an address is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockName {
    /// The Status lock of this container in containerd (`statusStorage`, a `sync.RWMutex`).
    Status(String),
    /// `Init.mu` of this container in its shim (a `sync.Mutex`).
    Init(String),
}

/// Who has memory waiting to be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writers {
    /// Control groups with something unwritten, the most first; bounded where they are read.
    pub of: Vec<Writer>,
    /// Groups that were not read because there are too many.
    pub left_out: u32,
    /// Why it is not known; empty when it is.
    pub reason: String,
}

/// One control group's unwritten memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Path of the group below the hierarchy's root.
    pub cgroup: String,
    /// The container, where the group is one's; for what is left of groups that are gone, a container that still is in
    /// the same pod (its sandbox).
    pub container: Option<String>,
    /// Whether this is what groups below `cgroup` have left behind that are gone (their pages still count there).
    pub gone: bool,
    /// Bytes dirty (`file_dirty`, or `dirty` of v1).
    pub dirty: u64,
    /// Bytes under writeback (`file_writeback`, or `writeback` of v1).
    pub writeback: u64,
    /// Bytes written to each device since the group was made (`io.stat`, v2 only: v1 charges the writer thread).
    pub written: Vec<(Device, u64)>,
}

/// What a kubelet really uses, as far as it could be found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubeletFacts {
    /// Which.
    pub pid: u32,
    /// The age of the last good relist from which it calls its PLEG unhealthy, and where that was read.
    pub pleg_threshold: Option<(Ns, String)>,
    /// `none`, `static`, …, and where that was read.
    pub cpu_manager_policy: Option<(String, String)>,
    /// After this it gives up a CRI call (`runtimeRequestTimeout`).
    pub request_timeout: Option<Ns>,
}

/// Who keeps a mount busy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// Where it is mounted, as the failing unmount names it.
    pub path: String,
    /// Who does; bounded where they are read.
    pub of: Vec<Pin>,
    /// Why the list may not be whole; empty when it is.
    pub reason: String,
}

/// One process that keeps a mount busy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Which.
    pub pid: u32,
    /// Its `comm`.
    pub comm: String,
    /// The container it runs in, where it does.
    pub container: Option<String>,
    /// How, in words: `has a mount below it`, `has it mounted too`, `works in it`, `has a file open in it`.
    pub how: String,
}

/// What looking costs a program that is probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramCost {
    /// Name of a process that runs it.
    pub comm: String,
    /// What it is.
    pub role: Role,
    /// Processes that run it.
    pub processes: u32,
    /// Hits of its probes since the start.
    pub hits: u64,
    /// Share of one core that the hits of the last interval took from it, in millionths: hits x measured ns per hit.
    pub share_ppm: u32,
    /// Bytes of memory that the probes have put into its processes (pages that are no longer shared).
    pub memory: u64,
}

/// Where a thread sits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadSite {
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// State letter of `/proc/PID/task/TID/stat`.
    pub state: char,
    /// Number of the system call it is in, if any.
    pub syscall: Option<i64>,
    /// Its arguments, as `/proc` tells them: six, or none.
    pub arguments: Vec<u64>,
    /// Kernel functions, innermost first; empty when the kernel does not let us see them.
    pub kernel_stack: Vec<String>,
}

/// Where a goroutine sits in the Go program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoroutineSite {
    /// Which.
    pub actor: Actor,
    /// Why it does not run, in Go's own words: `sync.Mutex.Lock`, `select`, `syscall`.
    pub state: String,
    /// Functions, innermost first, inlined ones included; bounded where they are read.
    pub functions: Vec<String>,
}

/// Where records can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LossPoint {
    /// The kernel half could not hand it out: the ring was full.
    Ring,
    /// The kernel half could not remember it: a map was full or memory could not be read.
    Map,
    /// The kernel did not run a probe, because the same one was interrupted in its middle on that processor.
    Skipped,
    /// Our own queue between child and parent was full.
    Queue,
    /// It came later than the orderer waits.
    Late,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_of_a_stall_decides() {
        for still in ["frozen by its cgroup /a", "stopped by a signal", "traced by strace (pid 7)", "frozen"]
        {
            assert_eq!(Stall::of(still), Stall::Still, "{still}");
        }
        for starved in ["starved: its cgroup is throttled", "unfrozen", "slow", ""] {
            assert_eq!(Stall::of(starved), Stall::Starved, "{starved}");
        }
    }
}
