//! The attach plan: what should be probed, in which ways, best first, and why not. Pure: features in, plan out.
//! `doctor` prints it, the loader executes it.

use super::{features::Features, known_bad, load::word};
use crate::event::SeenBy;
use serde::{Deserialize, Serialize};

/// Something in the kernel that can be seen in several ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// What is seen, in words; also the name of the blind spot when it is not.
    pub what: &'static str,
    /// Ways that this kernel offers, best first.
    pub ways: Vec<Way>,
    /// Ways that it does not offer, and why.
    pub refused: Vec<(SeenBy, String)>,
    /// What it means when no way is left.
    pub loss: &'static str,
}

impl Sight {
    /// What it would be like, on a kernel of this release; nothing is attached.
    pub fn planned(&self, release: &str) -> Probe {
        let first = self.ways.first();
        let mut notes: Vec<String> =
            self.refused.iter().map(|(how, why)| format!("{}: {why}", word(*how))).collect();
        let weaker = first.map_or("", |way| way.weaker);
        notes.extend((!weaker.is_empty()).then(|| weaker.to_owned()));
        let (since, doubt) = SYNCFS_IN_DOUBT;
        let old = known_bad::version(release).is_some_and(|version| version < since);
        if old
            && first.is_some_and(|way| [SYNC_FENTRY.programs, SYNC_KPROBE.programs].contains(&way.programs))
        {
            notes.push(doubt.to_owned());
        }
        Probe {
            what: self.what.into(),
            target: first.map(Way::target).unwrap_or_default(),
            how: first.map(|way| way.how),
            sites: first.map_or(0, |way| way.programs.len() as u32),
            emulated: 0,
            loss: if first.is_none() { self.loss.into() } else { String::new() },
            note: notes.join("; "),
        }
    }
}

/// One way to see something: all its programs are attached, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// By what means.
    pub how: SeenBy,
    /// Programs of the BPF object and what each is attached to.
    pub programs: &'static [(&'static str, &'static str)],
    /// What it sees less than the first way; empty for that.
    pub weaker: &'static str,
}

impl Way {
    /// What its programs are attached to, in words.
    pub fn target(&self) -> String {
        let mut targets: Vec<&str> = self.programs.iter().map(|(_, target)| *target).collect();
        targets.dedup();
        targets.join(", ")
    }
}

/// A probe as it turned out, for `doctor`, the status line and the capture header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What it sees.
    pub what: String,
    /// Where it sits: a kernel function, or a function of an executable.
    pub target: String,
    /// How it is attached; `None` when it is off.
    pub how: Option<SeenBy>,
    /// Sites in use.
    pub sites: u32,
    /// Of these, how many the kernel emulates (about a tenth of the cost of the others).
    pub emulated: u32,
    /// What is not seen because it is off, in a few words; empty when it is on.
    pub loss: String,
    /// Why it is off, or what is weaker than the first choice; empty when there is nothing to say.
    pub note: String,
}

impl Probe {
    /// Adds what it does not see.
    pub fn weaken(&mut self, what: &str) {
        if !self.note.is_empty() {
            self.note += "; ";
        }
        self.note += what;
    }
}

const UNMOUNT: &str = "unmount";
const SUPER_SHUTDOWN: &str = "super-block shutdown";
const SYNC: &str = "sync with device";
const PROCESS: &str = "process exit and exec";

/// Name of the sight of processes that end or replace themselves.
pub const PROCESS_SIGHT: &str = PROCESS;
/// Name of the sight of syncs.
pub const SYNC_SIGHT: &str = SYNC;
/// Name of the sight whose last resort taxes every system call; the loader attaches it only when asked to.
pub const UNMOUNT_SIGHT: &str = UNMOUNT;
/// What its absence means.
pub const UNMOUNT_LOSS: &str = "unmounts of programs other than containerd and its shims are not seen";

/// What the tracepoints of unmounts cannot tell.
const UNMOUNT_ASKED: &str = "its end is found by asking the thread ten times a second";
/// What the tracepoints of syncs cannot tell.
const SYNC_INSIDE: &str = "only the first sync inside an unmount is seen, syncfs(2) is not, and it is told to end when the unmount does";
/// What fentry and fexit cannot tell on a kernel that preempts itself.
const MAY_BE_SKIPPED: &str =
    "this kernel preempts itself and then skips fentry programs now and then; how often is counted as a loss";
/// Where the function that is probed has a copy of itself in syncfs(2).
pub const SYNCFS_UNSEEN: &str =
    "syncfs(2) is not seen: the compiler of this kernel has put a copy of sync_filesystem into it";
/// The same, before it was tried. That function has been too large for a copy since this version.
const SYNCFS_IN_DOUBT: ([u32; 3], &str) = (
    [5, 17, 0],
    "whether syncfs(2) is seen shows when probes are attached: compilers put a copy of sync_filesystem into it before 5.17",
);

const UNMOUNT_FENTRY: Way = Way {
    how: SeenBy::Fentry,
    programs: &[
        ("fexit_cleanup_mnt", "cleanup_mnt"),
        ("fentry_cleanup_mnt", "cleanup_mnt"),
        ("fexit_unmount", "__x64_sys_umount"),
        ("fentry_unmount", "__x64_sys_umount"),
    ],
    weaker: "",
};
const UNMOUNT_KPROBE: Way = Way {
    how: SeenBy::Kprobe,
    programs: &[
        ("kretprobe_cleanup_mnt", "cleanup_mnt"),
        ("kprobe_cleanup_mnt", "cleanup_mnt"),
        ("kretprobe_unmount", "__x64_sys_umount"),
        ("kprobe_unmount", "__x64_sys_umount"),
    ],
    weaker: "",
};
const UNMOUNT_TRACEPOINT: Way = Way {
    how: SeenBy::Tracepoint,
    programs: &[
        ("tracepoint_unmount_exit", "syscalls/sys_exit_umount"),
        ("tracepoint_unmount", "syscalls/sys_enter_umount"),
    ],
    weaker: UNMOUNT_ASKED,
};
const SHUTDOWN_FENTRY: Way = Way {
    how: SeenBy::Fentry,
    programs: &[
        ("fexit_super_shutdown", "generic_shutdown_super"),
        ("fentry_super_shutdown", "generic_shutdown_super"),
    ],
    weaker: "",
};
const SHUTDOWN_KPROBE: Way = Way {
    how: SeenBy::Kprobe,
    programs: &[
        ("kretprobe_super_shutdown", "generic_shutdown_super"),
        ("kprobe_super_shutdown", "generic_shutdown_super"),
    ],
    weaker: "",
};
const SYNC_FENTRY: Way = Way {
    how: SeenBy::Fentry,
    programs: &[("fexit_sync", "sync_filesystem"), ("fentry_sync", "sync_filesystem")],
    weaker: "",
};
const SYNC_KPROBE: Way = Way {
    how: SeenBy::Kprobe,
    programs: &[("kretprobe_sync", "sync_filesystem"), ("kprobe_sync", "sync_filesystem")],
    weaker: "",
};
const SYNC_TRACEPOINT: Way = Way {
    how: SeenBy::Tracepoint,
    programs: &[
        ("tracepoint_writeback_queue", "writeback_queue"),
        ("tracepoint_ext4_sync_fs", "ext4_sync_fs"),
    ],
    weaker: SYNC_INSIDE,
};
const PROCESS_TRACEPOINT: Way = Way {
    how: SeenBy::Tracepoint,
    programs: &[("tracepoint_exit", "sched_process_exit"), ("tracepoint_exec", "sched_process_exec")],
    weaker: "",
};

/// Why a way is not taken that the settings leave out.
pub const LEFT_OUT: &str = "left out by the settings (--without)";

/// The kernel side of the plan, without the ways that are not to be used although the kernel offers them.
pub fn kernel(features: &Features, without: &[SeenBy]) -> Vec<Sight> {
    let left_out = |way: &Way| without.contains(&way.how).then(|| LEFT_OUT.to_owned());
    let sight = |what, loss, ways: &[(Way, Option<String>)]| {
        let ways = ways.iter().map(|(way, no)| (*way, no.clone().or_else(|| left_out(way))));
        let (offered, refused): (Vec<_>, Vec<_>) = ways.partition(|(_, no)| no.is_none());
        Sight {
            what,
            loss,
            ways: offered.into_iter().map(|(way, _)| way).collect(),
            refused: refused.into_iter().filter_map(|(way, no)| Some((way.how, no?))).collect(),
        }
    };
    let no = |answer: &super::features::Answer| answer.reason().map(str::to_owned);
    let needs = |globals: &[&str]| {
        no(&features.kernel_memory).or_else(|| {
            let missing = globals.iter().find(|global| features.offset(global).is_none())?;
            Some(match no(&features.btf) {
                Some(reason) => reason,
                None => format!("the kernel's type description lacks what {missing} stands for"),
            })
        })
    };
    let block = ["OFF_S_DEV", "OFF_S_TYPE", "OFF_FS_NAME"];
    let fentry = no(&features.trampolines);
    let kprobe = no(&features.kprobes);
    let tracepoint = no(&features.bpf);
    let with = |first: &Option<String>, second: Option<String>| first.clone().or(second);
    // Trampolines are cheaper and leave the stack as it is, but a begin that is not seen is worse.
    let best = |trampoline: Way, probe: Way, needs: Option<String>| {
        let weaker = if features.preempts { MAY_BE_SKIPPED } else { "" };
        let mut ways =
            [(Way { weaker, ..trampoline }, with(&fentry, needs.clone())), (probe, with(&kprobe, needs))];
        if features.preempts {
            ways.reverse();
        }
        ways
    };
    let [unmount, shutdown, sync] = [
        best(UNMOUNT_FENTRY, UNMOUNT_KPROBE, needs(&["OFF_REGS_DI", "OFF_REGS_ORIG_AX"])),
        best(SHUTDOWN_FENTRY, SHUTDOWN_KPROBE, needs(&block)),
        best(SYNC_FENTRY, SYNC_KPROBE, needs(&block)),
    ];
    let and = |ways: [(Way, Option<String>); 2], last| ways.into_iter().chain([last]).collect::<Vec<_>>();
    vec![
        sight(UNMOUNT, UNMOUNT_LOSS, &and(unmount, (UNMOUNT_TRACEPOINT, no(&features.syscall_tracepoints)))),
        sight(
            SUPER_SHUTDOWN,
            "a super block that is shut down without an unmount call is not seen",
            &shutdown,
        ),
        sight(
            SYNC,
            "which device an unmount syncs is taken from the mount table",
            &and(
                sync,
                (SYNC_TRACEPOINT, with(&tracepoint, needs(&["OFF_S_DEV", "OFF_WORK_SB", "OFF_WORK_REASON"]))),
            ),
        ),
        sight(
            PROCESS,
            "what a dead process left unfinished is noticed a second late",
            &[(PROCESS_TRACEPOINT, tracepoint.clone())],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::features::Answer;
    use super::*;

    #[test]
    fn a_kernel_without_unmounts_leaves_those_of_containerd_visible() {
        assert!(UNMOUNT_LOSS.contains(crate::event::OTHERS_ONLY));
    }

    fn all() -> Features {
        let offsets = [
            "OFF_FSBASE",
            "OFF_S_DEV",
            "OFF_S_TYPE",
            "OFF_FS_NAME",
            "OFF_REGS_DI",
            "OFF_REGS_ORIG_AX",
            "OFF_WORK_SB",
            "OFF_WORK_REASON",
        ];
        Features {
            kernel: "6.12.0".into(),
            preempts: false,
            bpf: Answer::Yes,
            btf: Answer::Yes,
            trampolines: Answer::Yes,
            kprobes: Answer::Yes,
            uprobes: Answer::Yes,
            uprobe_multi: Answer::Yes,
            cookies: Answer::Yes,
            ring_buffer: Answer::Yes,
            kernel_memory: Answer::Yes,
            syscall_tracepoints: Answer::Yes,
            offsets: offsets.iter().map(|o| ((*o).to_owned(), 8)).collect(),
        }
    }

    fn first(features: &Features, what: &str) -> Option<SeenBy> {
        kernel(features, &[]).into_iter().find(|s| s.what == what)?.ways.first().map(|w| w.how)
    }

    #[test]
    fn each_fallback_comes_when_the_one_before_is_refused() {
        let mut features = all();
        assert_eq!(first(&features, UNMOUNT), Some(SeenBy::Fentry));
        features.preempts = true;
        assert_eq!(first(&features, UNMOUNT), Some(SeenBy::Kprobe));
        features.kprobes = Answer::No("not built in".into());
        assert_eq!(first(&features, UNMOUNT), Some(SeenBy::Fentry));
        let sync = kernel(&features, &[]).into_iter().find(|s| s.what == SYNC).unwrap();
        assert!(sync.planned("7.0.0").note.contains(MAY_BE_SKIPPED));
        features = all();
        features.trampolines = Answer::No("refused".into());
        assert_eq!(first(&features, UNMOUNT), Some(SeenBy::Kprobe));
        assert_eq!(first(&features, SYNC), Some(SeenBy::Kprobe));
        features.kprobes = Answer::No("not built in".into());
        assert_eq!(first(&features, UNMOUNT), Some(SeenBy::Tracepoint));
        assert_eq!(first(&features, SYNC), Some(SeenBy::Tracepoint));
        assert_eq!(first(&features, SUPER_SHUTDOWN), None);
        let off = kernel(&features, &[]).into_iter().find(|s| s.what == SUPER_SHUTDOWN).unwrap();
        assert_eq!(
            off.refused,
            [(SeenBy::Fentry, "refused".into()), (SeenBy::Kprobe, "not built in".into())]
        );
    }

    #[test]
    fn what_is_left_out_is_planned_as_if_the_kernel_refused_it() {
        let (mut refusing, why) = (all(), || Answer::No("not built in".into()));
        let mut without = Vec::new();
        let ways = |sights: Vec<Sight>| sights.into_iter().map(|s| (s.what, s.ways)).collect::<Vec<_>>();
        for how in [SeenBy::Fentry, SeenBy::Kprobe] {
            without.push(how);
            if how == SeenBy::Fentry {
                refusing.trampolines = why()
            } else {
                refusing.kprobes = why()
            }
            assert_eq!(ways(kernel(&all(), &without)), ways(kernel(&refusing, &[])));
        }
        let sync = kernel(&all(), &without).into_iter().find(|s| s.what == SYNC).unwrap();
        assert_eq!(sync.refused, [SeenBy::Fentry, SeenBy::Kprobe].map(|how| (how, LEFT_OUT.into())));
        // What the kernel says comes first.
        let sync = kernel(&refusing, &without).into_iter().find(|s| s.what == SYNC).unwrap();
        assert_eq!(sync.refused[1], (SeenBy::Kprobe, "not built in".into()));
        without.push(SeenBy::Tracepoint);
        assert!(kernel(&all(), &without).iter().all(|sight| sight.ways.is_empty()));
    }

    #[test]
    fn without_types_nothing_reads_kernel_structs() {
        let mut features = all();
        features.btf = Answer::No("no BTF".into());
        features.trampolines = Answer::No("no BTF".into());
        features.offsets.clear();
        assert_eq!(first(&features, UNMOUNT), Some(SeenBy::Tracepoint));
        assert_eq!(first(&features, SYNC), None);
        assert_eq!(first(&features, PROCESS), Some(SeenBy::Tracepoint));
        let sync = kernel(&features, &[]).into_iter().find(|s| s.what == SYNC).unwrap();
        assert!(sync.refused.iter().all(|(_, why)| why == "no BTF"), "{:?}", sync.refused);
    }

    #[test]
    fn what_a_way_sees_less_is_said_before_it_is_used() {
        let note = |features: &Features, release: &str| {
            kernel(features, &[]).into_iter().find(|s| s.what == SYNC).unwrap().planned(release).note
        };
        let mut features = all();
        assert_eq!(note(&features, "6.12.0"), "");
        assert_eq!(note(&features, "5.10.0-32-cloud-amd64"), SYNCFS_IN_DOUBT.1);
        features.trampolines = Answer::No("refused".into());
        features.kprobes = Answer::No("not built in".into());
        assert_eq!(
            note(&features, "5.10.0"),
            format!("fentry: refused; kprobe: not built in; {SYNC_INSIDE}")
        );
    }

    #[test]
    fn lockdown_turns_off_what_reads_kernel_memory_and_says_so() {
        let mut features = all();
        features.kernel_memory = Answer::No("locked down".into());
        assert_eq!(first(&features, SYNC), None);
        assert_eq!(first(&features, UNMOUNT), Some(SeenBy::Tracepoint));
    }
}
