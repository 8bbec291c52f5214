//! What happened in a story, by the lab's own clocks: the ground truth. All times are ns of CLOCK_MONOTONIC.

use super::language::Pin;
use super::links::{Pattern, Pods, What};
use crate::lab::attached::Attached;
use crate::lab::containerd_log::Attempt;
use crate::lab::kubelet_like::Call;
use crate::lab::states::States;
use crate::lab::story::Kubelet;
use crate::lab::strace::Traced;
use crate::lab::tracer::Line;
use crate::lab::unmounts::{self, BLOCKS, Stay};
use serde::Serialize;

/// A step that was done.
#[derive(Clone, Debug, Serialize)]
pub struct Mark {
    /// Which.
    pub step: String,
    /// From when.
    pub begin: u64,
    /// Until when.
    pub end: u64,
}

/// A pod of the story.
#[derive(Clone, Debug, Serialize)]
pub struct Pod {
    /// As the story calls it.
    pub name: String,
    /// As the runtime calls it.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// Its container's name.
    pub container_name: String,
    /// Its container.
    pub container: String,
    /// Its sandbox.
    pub sandbox: String,
    /// Its shim.
    pub shim: u32,
    /// Its container's first process.
    pub init: u32,
    /// Its container's root file system.
    pub rootfs: String,
    /// MB that it writes.
    pub writes: u64,
    /// When it was told to exit.
    pub told_to_exit: Option<u64>,
    /// When its first process was gone, by `/proc`.
    pub exited: Option<u64>,
    /// Its unwritten bytes when the first pod was told to exit, by its group's `memory.stat`.
    pub unwritten: u64,
    /// Stays of its shim's threads in umount2.
    pub unmounts: Vec<Stay>,
    /// What the daemon logged of its attempts to handle the exit.
    pub attempts: Vec<Attempt>,
    /// What kept its root file system busy, with the process that did.
    pub pins: Vec<(Pin, Option<u32>)>,
    /// When those processes were killed, and when they were gone.
    pub unpinned: Vec<(u64, u64)>,
}

/// A container that was created in a step.
#[derive(Clone, Debug, Serialize)]
pub struct Created {
    /// Its pod.
    pub pod: String,
    /// Its id.
    pub container: String,
    /// The sandbox it was created in.
    pub sandbox: String,
    /// Begin and end of the call.
    pub call: (u64, u64),
}

/// One run of plegscope.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// When it was started.
    pub started: u64,
    /// When all its probes were attached.
    pub ready: u64,
    /// When it was told to end, or killed.
    pub ended: u64,
    /// Exit code; `None` when it was killed.
    pub exit: Option<i32>,
    /// Whether the story killed it.
    pub killed: bool,
    /// How long quitting took.
    pub quit_took: u64,
    /// What it said.
    #[serde(skip)]
    pub lines: Vec<Line>,
    /// What it warned of.
    #[serde(skip)]
    pub messages: Vec<Line>,
}

/// Everything.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Record {
    /// Version of containerd, as it tells it.
    pub version: String,
    /// Processes of the daemon, one after the other.
    pub containerd: Vec<u32>,
    /// The real kubelet.
    pub kubelet: Option<Kubelet>,
    /// When it logged that its PLEG is not healthy.
    pub unhealthy: Vec<u64>,
    /// Device number of the disk below the snapshots.
    pub device: String,
    /// All steps.
    pub marks: Vec<Mark>,
    /// The pods.
    pub pods: Vec<Pod>,
    /// Ids of all containers and sandboxes, also of those that came and went.
    pub own: Vec<String>,
    /// All calls of the client or the kubelet.
    pub calls: Vec<Call>,
    /// Whether others than that caller list containers, so that a list call cannot be told by its begin.
    pub others_list: bool,
    /// What the runtime said of its containers, where it was asked.
    pub states: States,
    /// Stays of the daemon's threads in umount2 and, 100 ms and more, in calls that write.
    pub daemon: Vec<Stay>,
    /// Calls that strace held.
    pub traced: Vec<Traced>,
    /// Periods in which a starved process had to wait for CPU time, and how long in all.
    pub throttled: (u64, u64),
    /// Containers created in steps.
    pub created: Vec<Created>,
    /// Shims of this lab that were left at the end.
    pub shims: Vec<u32>,
    /// Those that have no bundle then, with their container.
    pub leaked: Vec<(u32, String)>,
    /// What is attached to the kernel, where that was asked.
    pub attached: Option<Attached>,
    /// The runs of plegscope.
    pub runs: Vec<Run>,
}

impl Pods for Record {
    fn ids(&self, pod: &str) -> Vec<String> {
        self.pod(pod).map(|pod| vec![pod.container.clone(), pod.sandbox.clone()]).unwrap_or_default()
    }

    fn shim(&self, pod: &str) -> Option<u32> {
        self.pod(pod).map(|pod| pod.shim)
    }

    fn is_daemon(&self, pid: u64) -> bool {
        self.containerd.iter().any(|own| u64::from(*own) == pid)
    }
}

/// Since when something lasted, and until when, by a clock that plegscope has no part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// First moment.
    pub begin: u64,
    /// Last; the end of time when it has not ended.
    pub end: u64,
}

impl Record {
    /// The first step of that kind.
    pub fn mark(&self, kind: &str) -> anyhow::Result<&Mark> {
        let mark = self.marks.iter().find(|mark| mark.step.starts_with(kind));
        mark.ok_or_else(|| anyhow::anyhow!("the story has no step {kind}"))
    }

    /// A pod by the story's name for it.
    pub fn pod(&self, name: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.name == name)
    }

    /// All processes that belong to this lab.
    pub fn is_own_process(&self, pid: u64) -> bool {
        let kubelet = self.kubelet.map(|kubelet| kubelet.pid);
        let shims = self.pods.iter().map(|pod| pod.shim);
        self.containerd.iter().copied().chain(kubelet).chain(shims).any(|own| u64::from(own) == pid)
    }

    /// The calls of that name, for that container if one is given.
    pub fn calls_of<'r>(&'r self, method: &'r str, of: Option<&'r Pod>) -> impl Iterator<Item = &'r Call> {
        self.calls.iter().filter(move |call| {
            call.method == method && of.is_none_or(|pod| call.container.as_ref() == Some(&pod.container))
        })
    }

    /// The longest of them.
    pub fn longest(&self, method: &str) -> Option<&Call> {
        self.calls.iter().filter(|call| call.method == method).max_by_key(|call| call.age(call.begin))
    }

    /// When a link lasted, where the lab has a clock for it: `None` where it has none.
    pub fn intervals(&self, link: &Pattern) -> Option<Vec<Interval>> {
        let pod = link.of.as_deref().and_then(|name| self.pod(name));
        // What lasted when all was over has lasted until then.
        let over = self.marks.last().map_or(u64::MAX, |mark| mark.end);
        let of_call =
            |call: &Call| Interval { begin: call.begin, end: call.end.unwrap_or(over.max(call.begin)) };
        let of_stay =
            |stay: &Stay| Interval { begin: stay.begin, end: stay.end.unwrap_or(over.max(stay.begin)) };
        let all = match link.what {
            What::Relist => self.calls_of("relist", None).map(of_call).collect(),
            What::Call if !self.created.is_empty() && link.names == ["CreateContainer"] => {
                self.created.iter().map(|one| Interval { begin: one.call.0, end: one.call.1 }).collect()
            }
            What::Call if self.others_list && link.names == ["ListContainers"] => return None,
            // A kubelet's log is no clock for containerd's side of calls that it makes all the time.
            What::Call | What::Client => {
                let calls = link.names.iter().flat_map(|name| self.calls_of(name, pod));
                calls.map(of_call).collect()
            }
            What::Exit => {
                let begin = pod?.exited?;
                let said = self.states.first(&pod?.container, "EXITED");
                vec![Interval { begin, end: said.unwrap_or(over.max(begin)) }]
            }
            What::Unmount => {
                // strace knows best when a call began that it holds.
                let id = pod?.container.as_str();
                let traced = self.traced.iter().filter(|one| one.path.contains(id));
                let traced = traced.map(|one| Interval { begin: one.begin, end: one.begin + one.took });
                let stays = pod?.unmounts.iter().map(of_stay);
                traced.chain(stays).filter(|one| one.end - one.begin >= BLOCKS).collect()
            }
            What::DaemonUnmount => {
                let unmounts = self.daemon.iter().filter(|stay| stay.call == libc::SYS_umount2);
                unmounts.map(of_stay).filter(|one| one.end - one.begin >= BLOCKS).collect()
            }
            What::Lock | What::Shim | What::Task | What::Sync | What::Stalled => return None,
        };
        Some(all)
    }

    /// Whether plegscope was ready all the time from `begin` to `end`.
    pub fn watched(&self, begin: u64, end: u64) -> bool {
        self.runs.iter().any(|run| run.ready <= begin && end <= run.ended)
    }

    /// A pod's unmount that others wait for.
    pub fn blocked_unmount(&self, pod: &Pod) -> Option<Interval> {
        unmounts::blocked(&pod.unmounts).map(|(begin, end)| Interval { begin, end })
    }
}
