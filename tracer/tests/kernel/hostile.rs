//! Settings that take something away: plegscope starts, says what it lost and why, and does the rest.

use super::{
    machine::{self, mount, umount, unshare_mounts},
    restarts::Plegscope,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    os::unix::process::CommandExt as _,
    process::{Command, Output},
};

/// What doctor says, and how it ended.
fn doctor(command: &mut Command) -> Result<(serde_json::Value, Output)> {
    let output = command.args(["doctor", "--json"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let json = serde_json::from_str(&text).with_context(|| format!("doctor said {text} {output:?}"))?;
    Ok((json, output))
}

/// The entry of a probe.
fn probe<'a>(doctor: &'a serde_json::Value, what: &str) -> Result<&'a serde_json::Value> {
    let all = doctor["survey"]["probes"].as_array().context("no probes")?;
    all.iter().find(|probe| probe["what"] == what).with_context(|| format!("no probe {what} in {doctor}"))
}

fn means(doctor: &serde_json::Value, what: &str) -> Result<(Option<String>, String)> {
    let probe = probe(doctor, what)?;
    let words = format!("{} {}", probe["note"], probe["loss"]);
    Ok((probe["how"].as_str().map(str::to_owned), words))
}

/// Expects what `doctor` plans (a means, or none, and a word of the reason), and that `live` starts and ends.
fn expect(prepare: impl Fn() -> Command, expected: &[(&str, Option<&str>, &str)]) -> Result<()> {
    let (doctor, _) = doctor(&mut prepare())?;
    for (what, how, word) in expected {
        let (found, words) = means(&doctor, what)?;
        ensure!(
            found.as_deref() == *how && words.contains(word),
            "{what}: expected {how:?} and {word:?}, doctor says {found:?} {words}"
        );
    }
    let mut command = prepare();
    let plegscope = Plegscope::start(command.args(["live", "--plain"]).stdout(std::process::Stdio::null()))?;
    println!("note {}", plegscope.said.lines().next().unwrap_or_default());
    plegscope.end(libc::SIGINT)?;
    machine::no_probe_is_left()
}

fn plain() -> Command {
    Command::new("/plegscope")
}

pub fn no_tracefs() -> Result<()> {
    unshare_mounts()?;
    let _ = umount("/sys/kernel/debug/tracing", libc::MNT_DETACH);
    let _ = umount("/sys/kernel/debug", libc::MNT_DETACH);
    ensure!(umount("/sys/kernel/tracing", libc::MNT_DETACH) == 0, "tracefs stays");
    expect(
        plain,
        &[
            ("unmount", Some("Fentry"), "tracefs is not mounted"),
            ("sync with device", Some("Fentry"), ""),
            ("process exit and exec", Some("Tracepoint"), ""),
        ],
    )
}

pub fn tracefs_read_only() -> Result<()> {
    unshare_mounts()?;
    let _ = umount("/sys/kernel/debug", libc::MNT_DETACH);
    mount("none", "/sys/kernel/tracing", "none", libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY, "")?;
    expect(plain, &[("unmount", Some("Fentry"), ""), ("sync with device", Some("Fentry"), "")])
}

pub fn no_btf() -> Result<()> {
    unshare_mounts()?;
    mount("tmpfs", "/sys/kernel/btf", "tmpfs", 0, "")?;
    expect(
        plain,
        &[
            ("unmount", Some("Tracepoint"), "BTF"),
            ("super-block shutdown", None, "CONFIG_DEBUG_INFO_BTF"),
            ("sync with device", None, "CONFIG_DEBUG_INFO_BTF"),
            ("process exit and exec", Some("Tracepoint"), ""),
        ],
    )
}

pub fn restrictive_sysctls() -> Result<()> {
    for (name, value) in [("kptr_restrict", "2"), ("perf_event_paranoid", "4")] {
        let path = format!("/proc/sys/kernel/{name}");
        fs::write(&path, value).with_context(|| path)?;
    }
    expect(
        plain,
        &[
            ("unmount", Some("Fentry"), ""),
            ("super-block shutdown", Some("Fentry"), ""),
            ("sync with device", Some("Fentry"), ""),
        ],
    )
}

/// CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE, of a user who is not root.
pub fn few_capabilities() -> Result<()> {
    const KEPT: [u32; 3] = [19, 38, 39];
    let prepare = || {
        let mut command = plain();
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                #[repr(C)]
                struct Header {
                    version: u32,
                    pid: i32,
                }
                let fail = || Err(std::io::Error::last_os_error());
                if libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0
                    || libc::setgid(1000) != 0
                    || libc::setuid(1000) != 0
                {
                    return fail();
                }
                let mut sets = [[0u32; 3]; 2];
                for cap in KEPT {
                    sets[cap as usize / 32] = sets[cap as usize / 32].map(|set| set | 1 << (cap % 32));
                }
                let header = Header { version: 0x2008_0522, pid: 0 };
                if libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) != 0 {
                    return fail();
                }
                for cap in KEPT {
                    if libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, cap, 0, 0) != 0 {
                        return fail();
                    }
                }
                Ok(())
            });
        }
        command
    };
    expect(
        prepare,
        &[
            ("unmount", Some("Fentry"), ""),
            ("sync with device", Some("Fentry"), ""),
            ("process exit and exec", Some("Tracepoint"), ""),
        ],
    )
}

pub fn lockdown() -> Result<()> {
    fs::write("/sys/kernel/security/lockdown", "confidentiality").context("locking down")?;
    expect(plain, &[("super-block shutdown", None, "lockdown"), ("sync with device", None, "lockdown")])
}
