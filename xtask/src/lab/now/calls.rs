//! Which system calls `now` makes, by strace: what it must not do to the processes that it looks at.

use crate::lab::cleanup::Ledger;
use crate::lab::sys;
use crate::lab::verdict::Verdict;
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What is traced, and so what may be found.
const CALLS: &str = "trace=bpf,perf_event_open,ptrace,kill,tkill,tgkill,pidfd_send_signal,rt_sigqueueinfo,\
                     rt_tgsigqueueinfo,process_vm_readv,process_vm_writev,open,openat,openat2";
/// Those that open a file.
const OPENS: [&str; 3] = ["open", "openat", "openat2"];
/// Those that send a signal.
const SIGNALS: [&str; 5] = ["kill", "tkill", "tgkill", "pidfd_send_signal", "rt_sigqueueinfo"];

/// What belongs to containers.
pub struct Containers {
    /// Folders of their root file systems.
    pub roots: Vec<PathBuf>,
    /// Processes in them.
    pub pids: Vec<u32>,
}

impl Containers {
    /// Whether a line of strace tells of a file of theirs.
    fn own(&self, line: &str) -> bool {
        let through = |pid: &u32| {
            ["/root", "/cwd", ">, \"root", ">, \"cwd"]
                .iter()
                .any(|rest| line.contains(&format!("/proc/{pid}{rest}")))
        };
        self.roots.iter().any(|root| line.contains(&*root.to_string_lossy())) || self.pids.iter().any(through)
    }
}

/// Runs `now` under strace and judges what it did.
pub async fn judge(
    ledger: &Ledger,
    binary: &Path,
    folder: &Path,
    containers: &Containers,
    verdict: &mut Verdict,
) -> Result<()> {
    let output = folder.join("calls.out");
    let strace = sys::which("strace").context("strace is not installed: apt-get install strace")?;
    let (binary, out) = (binary.to_string_lossy(), output.to_string_lossy());
    // It makes everything slow, so it gets more time.
    let args = ["-f", "-y", "-o", &out, "-e", CALLS, &binary, "now", "--within", "5s"];
    let ran = super::run(ledger, &strace, &args).await?;
    let text = fs::read_to_string(&output).with_context(|| format!("reading {}", output.display()))?;
    let seen = Seen::of(&text, containers);
    let list = |all: &[String]| match all {
        [] => "none".to_owned(),
        all => format!("{} of them: {}", all.len(), all[..all.len().min(3)].join("; ")),
    };
    verdict.check(
        "under strace",
        "memory of processes is opened, so it did what it does",
        format!("{}; {} memories, {} files opened", ran.ended(), seen.memories, seen.opened),
        seen.memories >= 4,
    );
    verdict.check("bpf, perf_event_open, ptrace, process_vm_*", "none", list(&seen.forbidden), {
        seen.forbidden.is_empty()
    });
    verdict.check("signals to others than itself", "none", list(&seen.signals), seen.signals.is_empty());
    verdict.check("opened below a container's root", "nothing", list(&seen.inside), seen.inside.is_empty());
    Ok(())
}

/// What strace saw.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    memories: usize,
    opened: usize,
    forbidden: Vec<String>,
    signals: Vec<String>,
    inside: Vec<String>,
}

impl Seen {
    fn of(text: &str, containers: &Containers) -> Seen {
        let mut seen = Seen::default();
        let lines: Vec<(&str, &str)> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(tid, rest)| (tid, rest.trim()))
            .collect();
        let own: BTreeSet<&str> = lines.iter().map(|(tid, _)| *tid).collect();
        for (_, line) in lines {
            let name = match line.strip_prefix("<... ") {
                // The rest of a call that was cut in two; its arguments stood before.
                Some(rest) if !line.contains("= -1") => {
                    let opened = rest.rsplit_once(" = ").map_or("", |(_, result)| result);
                    if containers.own(opened) {
                        seen.inside.push(line.to_owned());
                    }
                    continue;
                }
                Some(_) => continue,
                None => line.split('(').next().unwrap_or_default(),
            };
            if OPENS.contains(&name) {
                seen.opened += 1;
                seen.memories +=
                    usize::from(line.contains("mem\"") && line.contains("/proc") && !line.contains(" = -1"));
                if containers.own(line) {
                    seen.inside.push(line.to_owned());
                }
            } else if SIGNALS.contains(&name) {
                let to = line.split(['(', ',', ')']).nth(1).unwrap_or_default();
                if !own.contains(to.split('<').next().unwrap_or_default().trim()) {
                    seen.signals.push(line.to_owned());
                }
            } else if !name.is_empty()
                && name.chars().all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c))
            {
                seen.forbidden.push(line.to_owned());
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_must_not_do_is_found() {
        let containers =
            Containers { roots: vec![PathBuf::from("/run/lab/state/c1/rootfs")], pids: vec![33, 34] };
        let text = "\
70  openat(AT_FDCWD</>, \"/proc/33/mem\", O_RDONLY|O_CLOEXEC) = 5</proc/33/mem>
70  kill(71, SIGTERM) = 0
71  --- SIGTERM {si_signo=SIGTERM, si_code=SI_USER, si_pid=70, si_uid=0} ---
71  +++ exited with 0 +++
";
        let clean = Seen::of(text, &containers);
        assert_eq!(clean, Seen { memories: 1, opened: 1, ..Seen::default() });
        let text = format!(
            "{text}70  bpf(BPF_MAP_CREATE, {{}}, 72) = 3
70  kill(33, SIGUSR1) = 0
70  openat(6</proc/33/root>, \"etc\", O_PATH) = 7</proc/33/root/etc>
70  openat(AT_FDCWD</>, \"/run/lab/state/c1/rootfs/x\", O_RDONLY <unfinished ...>
70  <... openat resumed>) = 8</run/lab/state/c1/rootfs/x>
70  process_vm_readv(33, [], 1, [], 1, 0) = 4
"
        );
        let seen = Seen::of(&text, &containers);
        assert_eq!((seen.forbidden.len(), seen.signals.len(), seen.inside.len()), (2, 1, 3), "{seen:?}");
    }
}
