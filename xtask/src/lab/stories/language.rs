//! The language of stories: one TOML file each in `xtask/stories/`, played by [`super::engine`], judged by [`super::judge`].
//!
//! ```toml
//! about = "A container exits on a slow disk while another call wants its lock."
//! containerd = ["1.4", "1.6", "1.7", "2.1"]   # versions it makes sense with; the first that is there is played
//!
//! [node]                        # everything has a default
//! file-system = "ext4"          # below the snapshots: ext4, xfs
//! snapshotter = "overlayfs"     # overlayfs, native
//! volatile = false              # overlay's mount option
//! daemon-files = "apart"        # containerd's own files: apart from the slow disk, or together with the snapshots
//! caller = "client"             # who relists: client (like a kubelet), kubelet (a real one), none
//! update-every = 2.0            # seconds between updates of all containers; 0 means none
//! gives-up-after = 120.0         # seconds after which a real kubelet gives up a call
//! watch-states = false          # also ask for the containers ten times a second, to know when they are reported
//!
//! [[pods]]
//! name = "victim"
//! writes = 32                   # MB, when told to
//! syncs = false                 # whether it syncs them before it says that they are written
//!
//! steps = [                     # one after the other; `Step` has them all
//!     { wait = 3.0 },
//!     { slow-disk = 2.0 },      # MB/s
//!     { write = "victim" },
//!     { exit = ["victim"] },
//!     { until = "list-hangs" },
//!     { until = "quiet" },
//! ]
//!
//! [expect]
//! slow-relist = true            # whether a relist lasted a second or longer, by the caller's clock
//! incidents = 1                 # how many about this lab's containers or processes, or [1, 3]; no word means 0
//! blame = ["victim"]            # pods that a chain may end at, or an incident be about first; nobody else
//! writers = ["victim"]          # pods that may be named first as the writer, and one must be; no word: nothing is held
//! never = ["unmount of other"]  # links that no chain may have
//! harm = ["ExitLate of victim"] # what must be told to have come of it; nothing else may be told but what `may-harm` has
//!
//! [[expect.chains]]             # what must be shown while it lasts, in order; others may stand between
//! links = ["call ListContainers", "lock Status of victim", "shim State|Update of victim", "unmount of victim"]
//! ends-in = ["UnmountSync", "Unmount"]
//! within = 1.0                  # first shown, seconds after all of it has begun by the lab's clocks
//!
//! checks = ["late-exit"]        # what a program holds beyond that
//! ```
//!
//! What a link is, `WHAT [of POD]`:
//!
//! | words | |
//! |---|---|
//! | `relist` | the kubelet's relist |
//! | `client METHOD` | the kubelet's side of a call |
//! | `call METHOD` | a CRI call in containerd |
//! | `exit` | containerd's handling of an exit |
//! | `lock NAME` | a wait for the lock `Status`, `Init` or `Other` |
//! | `shim METHOD` | a call to a shim, either side |
//! | `task METHOD` | a method of the shim that holds the container's lock: `Delete` |
//! | `unmount` | an unmount in the pod's own shim; `daemon-unmount`: in containerd itself |
//! | `sync` | a sync or shutdown of a super block |
//! | `stalled` | a process that does not run |
//!
//! `METHOD` may be several, `State|Update`. A link as a table, `{ is = "lock Init of victim", or-blind = "words" }`, may be
//! missing where plegscope says, in these words, what it cannot see.

use crate::lab::{harmless, now, watching};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};

/// A story as its file tells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Story {
    /// Name of the file.
    #[serde(skip)]
    pub name: String,
    /// One sentence.
    pub about: String,
    /// Versions of containerd with which it makes sense; empty when none is started by it.
    #[serde(default)]
    pub containerd: Vec<String>,
    /// The node.
    #[serde(default)]
    pub node: Node,
    /// The pods that run from the beginning.
    #[serde(default)]
    pub pods: Vec<Pod>,
    /// What happens.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// What must come of it.
    #[serde(default)]
    pub expect: Expect,
    /// Programs that hold more against what happened.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// A program that plays and judges it, where it is not about what `live` says of a stall.
    pub program: Option<Program>,
}

/// The node it is played on.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Node {
    /// On the disk that holds the snapshots.
    pub file_system: FileSystem,
    /// Which snapshotter.
    pub snapshotter: Snapshotter,
    /// Whether overlays are mounted `volatile`.
    pub volatile: bool,
    /// Where containerd keeps its own files.
    pub daemon_files: DaemonFiles,
    /// Who relists and updates.
    pub caller: Caller,
    /// Seconds between updates; 0 for none.
    pub update_every: f64,
    /// Seconds after which a real kubelet gives up a call.
    pub gives_up_after: f64,
    /// Whether the runtime is asked for the states of its containers all the time.
    pub watch_states: bool,
}

impl Default for Node {
    fn default() -> Node {
        Node {
            file_system: FileSystem::Ext4,
            snapshotter: Snapshotter::Overlayfs,
            volatile: false,
            daemon_files: DaemonFiles::Apart,
            caller: Caller::Client,
            update_every: 2.0,
            gives_up_after: 120.0,
            watch_states: false,
        }
    }
}

/// A file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSystem {
    /// ext4.
    #[default]
    Ext4,
    /// XFS.
    Xfs,
}

impl FileSystem {
    /// What makes it on a disk, such that all kernels we know can mount it. All metadata is written now: lazy
    /// initialisation would compete with the lab for the slow disk later.
    pub fn mkfs(self) -> &'static [&'static str] {
        match self {
            FileSystem::Ext4 => {
                &["mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
            }
            FileSystem::Xfs => &["mkfs.xfs", "-q", "-f", "-m", "reflink=0,bigtime=0,inobtcount=0"],
        }
    }

    /// As `mount` and `mkfs` call it.
    pub fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        }
    }
}

/// A snapshotter of containerd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Snapshotter {
    /// Overlay mounts.
    #[default]
    Overlayfs,
    /// Copies, and bind mounts of them.
    Native,
}

impl Snapshotter {
    /// As containerd calls it.
    pub fn name(self) -> &'static str {
        match self {
            Snapshotter::Overlayfs => "overlayfs",
            Snapshotter::Native => "native",
        }
    }
}

/// Where containerd keeps its databases and status files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DaemonFiles {
    /// On another disk than the snapshots.
    Apart,
    /// With the snapshots.
    Together,
}

/// Who calls the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Caller {
    /// A client that relists and updates as the kubelet does.
    Client,
    /// A real kubelet.
    Kubelet,
    /// A real kubelet where one is built, else the client.
    KubeletOrClient,
    /// Nobody.
    None,
}

/// A pod with one container.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// What it writes when it is told to, MB.
    #[serde(default)]
    pub writes: u64,
    /// Whether it syncs that.
    #[serde(default)]
    pub syncs: bool,
}

/// Everything that the lab can do. `PROCESS` is `containerd`, `kubelet`, `plegscope` or `shim of POD`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Step {
    /// Waits so many seconds.
    Wait(f64),
    /// Limits the disk's writes to so many MB/s, and measures that.
    SlowDisk(f64),
    /// Lets next to nothing through to the disk any more.
    StopDisk,
    /// Lifts the limit.
    FreeDisk,
    /// Has a pod write what it writes, and waits until it has.
    Write(String),
    /// Has these pods exit, all at once, and waits until they have.
    Exit(Vec<String>),
    /// strace holds every umount2 of a pod's shim before it begins.
    Strace {
        /// Whose shim.
        of: String,
        /// For how long.
        seconds: f64,
    },
    /// Freezes a PROCESS.
    Freeze(String),
    /// Lets it go on.
    Thaw(String),
    /// Gives a PROCESS next to no CPU.
    Starve(String),
    /// Gives it what it wants.
    Feed(String),
    /// Kills a PROCESS with SIGKILL.
    Kill(String),
    /// Starts containerd or plegscope. A plegscope that no step starts runs from the beginning to the end.
    Start(String),
    /// So many more clients ask for the containers all the time.
    Ask(u64),
    /// They stop.
    AskNoMore,
    /// From now on a command of runc hangs for a pod's container before it does anything.
    Hold {
        /// `update`, `delete` or `kill`.
        runc: String,
        /// Whose.
        of: String,
    },
    /// What hangs so goes on.
    Release(String),
    /// One more client updates a pod's container, and is not waited for.
    Update(String),
    /// Something keeps a pod's root file system busy.
    Pin {
        /// Whose.
        pod: String,
        /// In which way.
        how: Pin,
    },
    /// It goes.
    Unpin(String),
    /// Unmounts a running pod's root file system lazily, as a person would.
    UnmountLazily(String),
    /// Removes the bundles of a pod, as if it had never been.
    Forget(String),
    /// Creates a pod whose image has a volume, which makes containerd unmount.
    Create(String),
    /// So many pods come, write 4 MB, exit and are removed.
    Churn {
        /// How many.
        pods: u64,
        /// How many of them at the same time.
        at_once: u64,
    },
    /// Waits until something is so.
    Until(Until),
}

/// How a root file system is kept busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pin {
    /// A process of the node has its working folder there.
    WorksIn,
    /// A process of the node has a file of it open.
    HasOpen,
    /// Something is mounted below it.
    MountBelow,
    /// A process of the node stays in the container's mount namespace.
    InNamespace,
    /// A process of the node holds the writing end of the container's output.
    HoldsOutput,
}

/// What can be waited for. Each has a limit, after which the story fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    /// A list of containers has hung for a second.
    ListHangs,
    /// No list hangs, no shim of ours is in an unmount, and two more relists have ended.
    Quiet,
    /// No shim of ours is in an unmount.
    Unmounted,
    /// The exits of all pods that have exited are reported by the runtime (needs `watch-states`).
    Reported,
    /// The kubelet has logged that its PLEG is not healthy.
    Unhealthy,
    /// A list call of the relist has ended with an error: the kubelet's two minutes are over.
    GaveUp,
}

/// What must come of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Expect {
    /// Whether a relist is slow; not held when it is not said.
    pub slow_relist: Option<bool>,
    /// How many incidents.
    pub incidents: Count,
    /// Pods that may be blamed.
    pub blame: Vec<String>,
    /// Pods that may be named first as writers.
    pub writers: Option<Vec<String>>,
    /// Links that no chain may have.
    pub never: Vec<String>,
    /// What must be told to have come of it.
    pub harm: Vec<String>,
    /// What may be told to have come of it.
    pub may_harm: Vec<String>,
    /// Chains that must be shown.
    pub chains: Vec<Chain>,
}

/// How many.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub enum Count {
    /// So many.
    Exactly(u64),
    /// From so many to so many.
    Between([u64; 2]),
}

impl Default for Count {
    fn default() -> Count {
        Count::Exactly(0)
    }
}

impl Count {
    /// The number that is meant and lies nearest.
    pub fn nearest(self, count: u64) -> u64 {
        match self {
            Count::Exactly(wanted) => wanted,
            Count::Between([least, most]) => count.min(most).max(least),
        }
    }

    /// In words.
    pub fn words(self) -> String {
        match self {
            Count::Exactly(wanted) => wanted.to_string(),
            Count::Between([least, most]) => format!("{least} to {most}"),
        }
    }
}

/// A chain that must be shown.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Chain {
    /// Its links.
    pub links: Vec<Link>,
    /// What it may end in; empty when that is not held.
    #[serde(default)]
    pub ends_in: Vec<String>,
    /// Seconds until it is shown.
    #[serde(default = "a_second")]
    pub within: f64,
    /// Two steps by their numbers, from 1: it is shown between the begin of the one and the begin of the other. Without, while
    /// its longest call lasts.
    pub between: Option<[usize; 2]>,
    /// Words of the sentence why it is not the chain of an unmount.
    pub not_this_chain: Option<String>,
    /// How sure it must be: `Proven`, `Inferred`.
    pub confidence: Option<String>,
}

fn a_second() -> f64 {
    1.0
}

/// A link that a chain must have.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Link {
    /// It must be there.
    Must(String),
    /// It must be there, or it is said why it cannot be seen.
    OrBlind {
        /// The link.
        is: String,
        /// Words of a blind spot.
        #[serde(rename = "or-blind")]
        or_blind: String,
    },
}

impl Link {
    /// What it is.
    pub fn words(&self) -> &str {
        match self {
            Link::Must(words) | Link::OrBlind { is: words, .. } => words,
        }
    }
}

/// A program that holds more against a story.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// The published chain, link by link, ages and names; what failed for it; the kubelet's own relist.
    PublishedChain,
    /// Exits that are handled late: attempts, waits, ages.
    LateExit,
    /// Unmounts that fail: how often, by whom.
    Busy,
    /// An unmount in the daemon.
    Create,
    /// A daemon that does not run.
    Stalled,
    /// The daemon's own writes.
    StatusWrite,
    /// A restart in a stall, and what is left over.
    Restart,
}

/// A story that is a program: it does not run `live` beside a stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Program {
    /// What users and operating systems do to plegscope.
    Commands,
    /// A program that pays more for its probes than is allowed.
    Fuse,
    /// What plegscope does to the node: `{ harmless = "evicted" }`.
    Harmless(harmless::Part),
    /// It is started when the node is stuck already: `{ now = "stall" }`.
    Now(now::Part),
    /// The root disk of a machine of its own stops.
    StoppedRoot,
    /// The daemon, unattended: `{ watch = "unit" }`.
    Watch(watching::Part),
}

impl Program {
    /// Whether it can be played in a machine of `cargo xtask vm`, which has no Go and no network.
    pub fn is_for_machines(self) -> bool {
        self == Program::StoppedRoot
    }
}

/// Environment variable that names another folder of stories: where there is no source tree.
pub const VARIABLE: &str = "PLEGSCOPE_STORIES";

/// Where the stories lie.
pub fn folder() -> PathBuf {
    let other = std::env::var_os(VARIABLE).map(PathBuf::from);
    other.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("stories"))
}

/// The names of all stories.
pub fn names() -> Result<Vec<String>> {
    let folder = folder();
    let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let files = entries.flatten().map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "toml"));
    let name = |path: PathBuf| Some(path.file_stem()?.to_string_lossy().into_owned());
    let mut names: Vec<String> = files.filter_map(name).collect();
    names.sort();
    Ok(names)
}

/// The story of that name.
pub fn load(name: &str) -> Result<Story> {
    let file = folder().join(format!("{name}.toml"));
    let text = fs::read_to_string(&file)
        .with_context(|| format!("there is no story {name}; `cargo xtask story --list` has them all"))?;
    parse(name, &text).with_context(|| file.display().to_string())
}

/// Reads one, and refuses what could not be played or held.
pub fn parse(name: &str, text: &str) -> Result<Story> {
    let mut story: Story = toml::from_str(text)?;
    story.name = name.to_owned();
    if story.program.is_some() {
        ensure!(story.steps.is_empty(), "a program and steps: which of them plays it?");
        return Ok(story);
    }
    ensure!(!story.steps.is_empty(), "nothing happens in it");
    ensure!(!story.containerd.is_empty(), "with which containerd?");
    for step in &story.steps {
        story.sound(step)?;
    }
    let expect = &story.expect;
    let links = expect.chains.iter().flat_map(|chain| &chain.links).map(Link::words);
    for words in links.chain(expect.never.iter().map(String::as_str)) {
        if let Some(pod) = super::links::Pattern::parse(words)?.of {
            story.knows(&pod)?;
        }
    }
    let named = expect.blame.iter().chain(expect.writers.iter().flatten());
    named.into_iter().try_for_each(|pod| story.knows(pod))?;
    for chain in &expect.chains {
        ensure!(!chain.links.is_empty(), "a chain without links");
        for step in chain.between.iter().flatten() {
            ensure!((1..=story.steps.len()).contains(step), "there is no step {step}");
        }
    }
    Ok(story)
}

impl Story {
    fn knows(&self, pod: &str) -> Result<()> {
        let created = |step: &Step| matches!(step, Step::Create(name) if name == pod);
        let known = self.pods.iter().any(|one| one.name == pod) || self.steps.iter().any(created);
        ensure!(known, "there is no pod {pod}");
        Ok(())
    }

    fn sound(&self, step: &Step) -> Result<()> {
        match step {
            Step::Write(pod)
            | Step::Update(pod)
            | Step::Unpin(pod)
            | Step::UnmountLazily(pod)
            | Step::Forget(pod) => self.knows(pod),
            Step::Strace { of: pod, .. } | Step::Pin { pod, .. } => self.knows(pod),
            Step::Exit(pods) => pods.iter().try_for_each(|pod| self.knows(pod)),
            Step::Freeze(who) | Step::Thaw(who) | Step::Starve(who) | Step::Feed(who) | Step::Kill(who) => {
                match who.as_str() {
                    "containerd" | "kubelet" | "plegscope" => Ok(()),
                    _ => self.knows(who.strip_prefix("shim of ").with_context(|| format!("who is {who}?"))?),
                }
            }
            Step::Start(who) => {
                ensure!(["containerd", "plegscope"].contains(&who.as_str()), "{who} cannot be started");
                Ok(())
            }
            Step::Hold { of, .. } => self.knows(of),
            Step::Release(command) => {
                let held = |step: &Step| matches!(step, Step::Hold { runc, .. } if runc == command);
                ensure!(self.steps.iter().any(held), "runc {command} is not held");
                Ok(())
            }
            Step::Until(Until::Reported) if !self.node.watch_states => bail!("`reported` needs watch-states"),
            _ => Ok(()),
        }
    }

    /// Whether plegscope runs from the beginning.
    pub fn begins_with_plegscope(&self) -> bool {
        let of_plegscope = self.steps.iter().find(|step| match step {
            Step::Start(who) | Step::Kill(who) => who == "plegscope",
            _ => false,
        });
        !matches!(of_plegscope, Some(Step::Start(_)))
    }

    /// The commands of runc that are held in it.
    pub fn holds_runc(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Hold { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_story_can_be_read() {
        let names = names().unwrap_or_else(|error| panic!("{error:#}"));
        assert!(names.len() > 10);
        for name in &names {
            let story = load(name).unwrap_or_else(|error| panic!("{error:#}"));
            assert!(!story.about.contains('\n'), "{}: one sentence", story.name);
        }
    }

    #[test]
    fn what_cannot_be_played_or_held_is_refused() {
        let head = "about = \"x\"\ncontainerd = [\"1.6\"]\n";
        let refused = |rest: &str| parse("x", &format!("{head}{rest}")).is_err();
        assert!(!refused("steps = [{ wait = 1.0 }]"));
        for wrong in [
            "steps = []",
            "steps = [{ wait = 1.0 }]\nextra = 1",
            "steps = [{ dance = 1.0 }]",
            "steps = [{ exit = [\"nobody\"] }]",
            "steps = [{ kill = \"shim of nobody\" }]",
            "steps = [{ until = \"reported\" }]",
            "steps = [{ wait = 1.0 }]\n[expect]\nblame = [\"nobody\"]",
            "steps = [{ wait = 1.0 }]\n[[expect.chains]]\nlinks = [\"dance\"]",
            "steps = [{ wait = 1.0 }]\n[[expect.chains]]\nlinks = [\"relist\"]\nbetween = [1, 2]",
        ] {
            assert!(refused(wrong), "{wrong}");
        }
    }
}
