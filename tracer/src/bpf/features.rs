//! What this kernel and this user may do, found out by trying, once. Versions are not looked at, since vendors backport; only
//! whether the kernel preempts itself cannot be tried.

use super::{btf::Btf, known_bad, sys};
use serde::{Deserialize, Serialize};
use std::{io, path::Path};

/// An answer to "can it be had?".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Yes.
    Yes,
    /// No, because.
    No(String),
    /// Could not be found out, because. Treated like no, told differently.
    Unknown(String),
}

impl Answer {
    /// Whether it can be had.
    pub fn yes(&self) -> bool {
        matches!(self, Answer::Yes)
    }
    /// The reason when it cannot.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Answer::Yes => None,
            Answer::No(reason) | Answer::Unknown(reason) => Some(reason),
        }
    }
}

/// Everything the attach plan depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Release of the running kernel, for people.
    pub kernel: String,
    /// Whether it preempts itself, as far as that can be told.
    #[serde(default)]
    pub preempts: bool,
    /// Whether this process may load BPF programs at all.
    pub bpf: Answer,
    /// The kernel's type description, for struct offsets.
    pub btf: Answer,
    /// fentry and fexit programs.
    pub trampolines: Answer,
    /// kprobes.
    pub kprobes: Answer,
    /// uprobes.
    pub uprobes: Answer,
    /// Attaching all uprobes of a binary with one call (kernel 6.6).
    pub uprobe_multi: Answer,
    /// Attach cookies (kernel 5.15).
    pub cookies: Answer,
    /// Ring buffers (kernel 5.8).
    pub ring_buffer: Answer,
    /// Reading kernel memory from BPF (not under lockdown=confidentiality).
    pub kernel_memory: Answer,
    /// Tracepoints of system calls, through tracefs.
    pub syscall_tracepoints: Answer,
    /// Offsets in kernel structs, by the name of the read-only global that takes them.
    pub offsets: Vec<(String, u32)>,
}

/// Kernel struct members that the kernel half needs: global, struct, member.
const OFFSETS: &[(&str, &str, &str)] = &[
    ("OFF_FSBASE", "task_struct", "thread.fsbase"),
    ("OFF_S_DEV", "super_block", "s_dev"),
    ("OFF_S_TYPE", "super_block", "s_type"),
    ("OFF_FS_NAME", "file_system_type", "name"),
    ("OFF_REGS_DI", "pt_regs", "di"),
    ("OFF_REGS_ORIG_AX", "pt_regs", "orig_ax"),
    ("OFF_WORK_SB", "wb_writeback_work", "sb"),
    ("OFF_WORK_REASON", "wb_writeback_work", "reason"),
];

impl Features {
    /// Offset for a global, if the kernel's description has it.
    pub fn offset(&self, global: &str) -> Option<u32> {
        self.offsets.iter().find(|(name, _)| name == global).map(|(_, offset)| *offset)
    }

    /// Asks the running kernel. Loads and closes a few programs of two instructions; attaches nothing.
    pub fn detect() -> Features {
        sys::lift_memory_limit();
        let vmlinux = std::fs::read("/sys/kernel/btf/vmlinux");
        let parsed = vmlinux.as_ref().ok().map(|bytes| Btf::parse(bytes));
        let btf = match (&vmlinux, &parsed) {
            (Err(error), _) => Answer::No(format!(
                "/sys/kernel/btf/vmlinux cannot be read ({error}); the kernel needs CONFIG_DEBUG_INFO_BTF=y"
            )),
            (_, Some(Err(error))) => Answer::No(format!("/sys/kernel/btf/vmlinux: {error}")),
            _ => Answer::Yes,
        };
        let parsed = parsed.and_then(Result::ok);
        let offsets = parsed.iter().flat_map(|btf| {
            OFFSETS
                .iter()
                .filter_map(|(global, of, member)| Some(((*global).to_owned(), btf.offset_of(of, member)?)))
        });
        let kernel = kernel_release();
        Features {
            preempts: preempts(
                &kernel,
                &read_line("/proc/sys/kernel/version"),
                &read_line("/proc/cmdline"),
                &read_line("/sys/kernel/debug/sched/preempt"),
            ),
            kernel,
            bpf: bpf_allowed(),
            trampolines: trampolines(parsed.as_ref()),
            offsets: offsets.collect(),
            btf,
            kprobes: kprobes(),
            uprobes: probe_type("uprobe"),
            uprobe_multi: uprobe_multi(),
            cookies: cookies(),
            ring_buffer: match sys::create_ring_buffer() {
                Ok(_) => Answer::Yes,
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    Answer::No("this kernel has no BPF ring buffers; 5.8 or later is needed, or `plegscope now`, which needs no BPF".into())
                }
                Err(error) => match (refused("creating a ring buffer", &error), sys::memory_limit_hint()) {
                    (Answer::No(why), hint) if !hint.is_empty() => Answer::No(format!("{why}; {hint}")),
                    (answer, _) => answer,
                },
            },
            kernel_memory: kernel_memory(),
            syscall_tracepoints: syscall_tracepoints(),
        }
    }
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".into(), |s| s.trim().to_owned())
}

/// Empty when it cannot be read.
fn read_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Whether a kernel can take the processor from a thread that is inside it. `scheduler` is `sched/preempt` of debugfs, which
/// marks the mode in force: `none voluntary (full) lazy`. Without it, and without a word on the command line, a kernel
/// whose mode is chosen at boot (`PREEMPT_DYNAMIC`) is taken for what distributions make it: voluntary before 7.0, where
/// that mode and `none` were removed.
fn preempts(release: &str, version: &str, command_line: &str, scheduler: &str) -> bool {
    let mode = scheduler.split_whitespace().find_map(|word| word.strip_prefix('(')?.strip_suffix(')'));
    let asked = command_line.split_whitespace().rev().find_map(|word| word.strip_prefix("preempt="));
    let built = |word: &str| version.split_whitespace().any(|other| other == word);
    let modern = known_bad::version(release).is_some_and(|version| version >= [7, 0, 0]);
    let is = |mode: &str| matches!(mode, "full" | "lazy");
    match (mode, asked) {
        _ if built("PREEMPT") || built("PREEMPT_RT") => true,
        _ if !built("PREEMPT_DYNAMIC") => false,
        (Some(mode), _) => is(mode),
        (None, Some(asked)) if !modern => is(asked),
        _ => modern,
    }
}

fn refused(what: &str, error: &io::Error) -> Answer {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Answer::No(format!("{what} was refused (not permitted)")),
        _ => Answer::Unknown(format!("{what} failed ({error})")),
    }
}

/// One instruction: operation, destination register, source register, number.
fn instruction(code: u8, to: u8, from: u8, imm: i32) -> sys::Instruction {
    sys::Instruction {
        code,
        _bitfield_align_1: [],
        _bitfield_1: sys::Instruction::new_bitfield_1(to, from),
        off: 0,
        imm,
    }
}

/// `call helper`, `r0 = number`, `exit`.
const CALL: u8 = 0x85;
const SET: u8 = 0xb7;
const EXIT: u8 = 0x95;

/// `r0 = 0; exit`, optionally with a call of a helper first.
fn trivial(helper: Option<i32>) -> Vec<sys::Instruction> {
    let call = helper.map(|helper| instruction(CALL, 0, 0, helper));
    call.into_iter().chain([instruction(SET, 0, 0, 0), instruction(EXIT, 0, 0, 0)]).collect()
}

fn bpf_allowed() -> Answer {
    let code = trivial(None);
    match sys::load(&sys::Program { kind: sys::PROGRAM_KPROBE, attach: 0, code: &code, function: 0 }) {
        Ok(_) => Answer::Yes,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Answer::No(
            "loading BPF programs was refused; run as root (sudo plegscope), or with CAP_BPF, CAP_PERFMON, \
             CAP_SYS_PTRACE and CAP_SYS_ADMIN"
                .into(),
        ),
        Err(error) => refused("loading a BPF program", &error),
    }
}

fn trampolines(btf: Option<&Btf<'_>>) -> Answer {
    let Some(btf) = btf else { return Answer::No("needs the kernel's type description (BTF)".into()) };
    let Some(function) = btf.function_id("sync_filesystem") else {
        return Answer::No("the kernel's type description has no sync_filesystem".into());
    };
    let code = trivial(None);
    let program =
        sys::Program { kind: sys::PROGRAM_TRACING, attach: sys::ATTACH_FENTRY, code: &code, function };
    match sys::load(&program) {
        Ok(_) => Answer::Yes,
        Err(error) => refused("loading a BPF tracing program", &error),
    }
}

/// Dynamic probes are perf event sources.
fn probe_type(name: &str) -> Answer {
    let path = format!("/sys/bus/event_source/devices/{name}/type");
    match std::fs::metadata(&path) {
        Ok(_) => Answer::Yes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Answer::No(format!("{name}s are not built into this kernel (no {path})"))
        }
        Err(error) => Answer::Unknown(format!("{path}: {error}")),
    }
}

/// Asked for a function that does not exist: who may attach is told that there is none.
fn kprobes() -> Answer {
    let there = probe_type("kprobe");
    if !there.yes() {
        return there;
    }
    let asked = sys::probe_events("kprobe").and_then(|events| sys::open_kprobe(events, c"plegscope_may_it"));
    match asked {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
            Answer::No(format!(
                "perf_event_open was refused (kernel.perf_event_paranoid is {}); CAP_SYS_ADMIN is needed",
                read_line("/proc/sys/kernel/perf_event_paranoid")
            ))
        }
        _ => Answer::Yes,
    }
}

fn cookies() -> Answer {
    const GET_ATTACH_COOKIE: i32 = 174;
    let code = trivial(Some(GET_ATTACH_COOKIE));
    match sys::load(&sys::Program { kind: sys::PROGRAM_KPROBE, attach: 0, code: &code, function: 0 }) {
        Ok(_) => Answer::Yes,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Answer::No(
            "this kernel has no attach cookies (5.15); sites are told apart by their address".into(),
        ),
        Err(error) => refused("loading a program that asks for its cookie", &error),
    }
}

fn uprobe_multi() -> Answer {
    use std::os::fd::AsFd;
    let code = trivial(None);
    let program = sys::Program {
        kind: sys::PROGRAM_KPROBE,
        attach: sys::ATTACH_UPROBE_MULTI,
        code: &code,
        function: 0,
    };
    let no =
        || Answer::No("this kernel attaches uprobes one by one (uprobe-multi links came with 6.6)".into());
    let program = match sys::load(&program) {
        Ok(program) => program,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return no(),
        Err(error) => return refused("loading a uprobe-multi program", &error),
    };
    // A directory cannot be probed: a kernel that knows the link says EBADF, one that does not says EINVAL.
    match sys::link_uprobe_multi(program.as_fd(), c"/", &[0], &[0]) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Answer::Yes,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => no(),
        Err(error) => refused("asking for a uprobe-multi link", &error),
        Ok(_) => Answer::Unknown("the kernel attached a uprobe to a directory".into()),
    }
}

/// Tried, too: the file that tells of lockdown may not be mounted, and other security modules can refuse as well.
fn kernel_memory() -> Answer {
    const PROBE_READ_KERNEL: i32 = 113;
    const COPY: u8 = 0xbf;
    const ADD: u8 = 0x07;
    // r1 = r10 - 8; r2 = 8; r3 = 0: read eight bytes from address 0 to the stack.
    let mut code = vec![
        instruction(COPY, 1, 10, 0),
        instruction(ADD, 1, 0, -8),
        instruction(SET, 2, 0, 8),
        instruction(SET, 3, 0, 0),
    ];
    code.extend(trivial(Some(PROBE_READ_KERNEL)));
    match sys::load(&sys::Program { kind: sys::PROGRAM_KPROBE, attach: 0, code: &code, function: 0 }) {
        Ok(_) => Answer::Yes,
        // The verifier does not know the helper: it is taken away under lockdown.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Answer::No(
            "BPF may not read the kernel's memory: the kernel is locked down (lockdown=confidentiality)"
                .into(),
        ),
        Err(error) => refused("loading a program that reads the kernel's memory", &error),
    }
}

/// Folders where tracefs may be mounted.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

fn syscall_tracepoints() -> Answer {
    let mut no = "tracefs is not mounted; mount -t tracefs nodev /sys/kernel/tracing".to_owned();
    for root in TRACEFS.map(Path::new) {
        let id = root.join("events/syscalls/sys_enter_umount/id");
        // Attaching reads this file; that it is there does not mean that it may be read.
        let Err(error) = std::fs::read(&id) else { return Answer::Yes };
        let id = id.display();
        match error.raw_os_error() {
            // The kernel refuses to open anything there, also to root.
            Some(libc::EPERM) => {
                no = format!(
                    "{id} cannot be read ({error}): under lockdown=confidentiality tracefs is closed"
                );
                break;
            }
            Some(libc::EACCES) => {
                no = format!("{id} cannot be read ({error}); run as root, or add CAP_DAC_READ_SEARCH");
                break;
            }
            Some(libc::ENOENT) if !root.join("events").exists() => {}
            Some(libc::ENOENT) => {
                no = "this kernel has no tracepoints of system calls (CONFIG_FTRACE_SYSCALLS)".to_owned();
            }
            _ => return Answer::Unknown(format!("{id}: {error}")),
        }
    }
    Answer::No(no)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_no_and_anything_else_is_not_known() {
        let no = refused("x", &io::Error::from_raw_os_error(libc::EPERM));
        assert!(matches!(no, Answer::No(ref r) if r.contains("x was refused")), "{no:?}");
        let unknown = refused("x", &io::Error::from_raw_os_error(libc::ENOMEM));
        assert!(matches!(unknown, Answer::Unknown(_)));
        assert!(!unknown.yes() && unknown.reason().is_some() && Answer::Yes.reason().is_none());
    }

    #[test]
    fn whether_a_kernel_preempts_itself() {
        let dynamic = "#1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1 (2026-01-01)";
        for (release, version, command_line, scheduler, is) in [
            ("5.10.0-32-cloud-amd64", "#1 SMP Debian 5.10.223-1 (2024-08-10)", "preempt=full", "", false),
            ("5.15.0-lowlatency", "#1 SMP PREEMPT Ubuntu", "", "", true),
            ("6.1.0-rt", "#1 SMP PREEMPT_RT Debian", "", "", true),
            ("6.12.117+deb13", dynamic, "quiet", "", false),
            ("6.12.117+deb13", dynamic, "preempt=full", "", true),
            ("6.12.117+deb13", dynamic, "preempt=full", "none (voluntary) full lazy", false),
            ("6.18.0", dynamic, "", "none voluntary full (lazy)", true),
            ("7.3.4+deb13", dynamic, "preempt=none", "", true),
            ("7.3.4+deb13", dynamic, "", "full (lazy)", true),
        ] {
            let said = preempts(release, version, command_line, scheduler);
            assert_eq!(said, is, "{release} {version} {command_line} {scheduler}");
        }
    }
}
