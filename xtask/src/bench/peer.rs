//! bpftrace, the tool a user would take instead.

use super::contend::Binary;
use crate::lab::cleanup::Ledger;
use crate::lab::sys;
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What bpftrace prints once all is attached: BEGIN runs after that.
const READY: &str = "all attached";

/// A running bpftrace.
pub struct Bpftrace {
    child: Child,
    /// From its start until all was attached, ns.
    pub attached_after: u64,
}

impl Bpftrace {
    /// Runs a script, and waits until all its probes are attached. Its output goes to `folder`.
    pub async fn start(ledger: &Ledger, script: &str, folder: &Path) -> Result<Bpftrace> {
        let file = folder.join("peer.bt");
        let output = folder.join("peer.out");
        std::fs::write(&file, format!("BEGIN {{ printf(\"{READY}\\n\"); }}\n{script}"))
            .with_context(|| format!("writing {}", file.display()))?;
        let out = std::fs::File::create(&output).with_context(|| format!("creating {}", output.display()))?;
        let begin = sys::monotonic();
        let mut child = Command::new("bpftrace")
            // For a stripped file it takes a number as file offset, and only with --unsafe, as it cannot check it.
            .args(["--unsafe", "-B", "line"])
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(out.try_clone().context("duplicating a descriptor")?)
            .stdout(out)
            .process_group(0)
            .spawn()
            .context("starting bpftrace")?;
        ledger.record_process(child.id(), Duration::from_secs(10))?;
        let said = || std::fs::read_to_string(&output).unwrap_or_default();
        loop {
            if said().contains(READY) {
                return Ok(Bpftrace { child, attached_after: sys::monotonic() - begin });
            }
            if !matches!(child.try_wait(), Ok(None)) || sys::monotonic() - begin > 60_000_000_000 {
                let _ = child.kill();
                bail!("bpftrace did not attach:\n{}\nthe script was:\n{script}", said());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as Ctrl-C does; returns how long that took, ns.
    pub async fn quit(mut self) -> Result<u64> {
        let begin = sys::monotonic();
        sys::signal(self.child.id(), libc::SIGINT);
        let mut ended = false;
        sys::until(Duration::from_secs(60), || {
            ended = !matches!(self.child.try_wait(), Ok(None));
            ended
        })
        .await;
        anyhow::ensure!(ended, "bpftrace does not end within 60 s of SIGINT");
        Ok(sys::monotonic() - begin)
    }
}

/// A script that collects what plegscope collects about locks: how long each goroutine waits (entry and every return of
/// `semacquire1`), who was woken, and how long each write lock is held.
pub fn lock_script(binary: &Binary) -> Result<String> {
    let path = binary.path.display();
    let lock = binary.function("sync.(*RWMutex).Lock")?.offset;
    let unlock = binary.function("sync.(*RWMutex).Unlock")?.offset;
    let acquire = binary.function("runtime.semacquire1")?;
    let ready = binary.function("runtime.readyWithTime")?.offset;
    let mut script = format!(
        r#"uprobe:{path}:{lock:#x} {{ @hold[pid, reg("r14"), reg("ax")] = nsecs; }}
uprobe:{path}:{unlock:#x} /@hold[pid, reg("r14"), reg("ax")]/ {{
  @held = hist(nsecs - @hold[pid, reg("r14"), reg("ax")]); delete(@hold[pid, reg("r14"), reg("ax")]);
}}
uprobe:{path}:{:#x} {{ @begin[pid, reg("r14")] = nsecs; @lock[pid, reg("r14")] = reg("ax"); }}
uprobe:{path}:{ready:#x} {{ @woken[pid, reg("r14")] = nsecs; }}
"#,
        acquire.offset
    );
    for offset in &acquire.returns {
        let _ = writeln!(
            script,
            r#"uprobe:{path}:{offset:#x} /@begin[pid, reg("r14")]/ {{
  @waited = hist(nsecs - @begin[pid, reg("r14")]); delete(@begin[pid, reg("r14")]); delete(@lock[pid, reg("r14")]);
}}"#
        );
    }
    Ok(script)
}

/// A script for the programs in which plegscope has sites, by the kernel's list: a time is stored and a count kept at the
/// begin of each function. The ends are left out: bpftrace refuses sites inside functions that the file names, and its
/// own way to see returns breaks Go's stacks.
pub fn functions_script(warden: u32, targets: &[u32]) -> Result<String> {
    let mut script = String::new();
    for pid in targets {
        let path = std::fs::read_link(format!("/proc/{pid}/exe")).context("reading a program's name")?;
        let sites = super::bpf::uprobes_of(&[warden], &path);
        for address in super::attach::functions_of(&path, &sites)? {
            let path = path.display();
            let _ = writeln!(
                script,
                r#"uprobe:{path}:{address:#x} {{ @begin[pid, reg("r14"), {address}] = nsecs; @calls[{address}] = count(); }}"#
            );
        }
    }
    Ok(script)
}
