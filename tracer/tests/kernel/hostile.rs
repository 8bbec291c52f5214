//! Settings that take something away: plegscope starts, says what it lost and why, and does the rest.

use super::{
    attach::best_way,
    locks::Program,
    machine::{self, Overlay, mount, umount, unshare_mounts},
    restarts::{Plegscope, SHIM},
};
use anyhow::{Context, Result, ensure};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Output},
};

/// What doctor says, and how it ended.
pub fn doctor(command: &mut Command) -> Result<(serde_json::Value, Output)> {
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

/// Stands for the means that the functions of this kernel are best seen by.
const BEST: &str = "the best";

fn by_name(how: &str) -> String {
    if how == BEST { format!("{:?}", best_way()) } else { how.to_owned() }
}

/// What a machine allows.
struct Machine {
    /// Each sight of the kernel: its means, or none, and a word of the reason.
    sights: [(&'static str, Option<&'static str>, &'static str); 4],
    /// Why nothing is attached to the shim; empty when it is.
    no_shim: &'static str,
    /// Kinds of operations in the chains that are told while a shim deletes, and their means.
    told: &'static [(&'static str, &'static str)],
    /// Kinds that cannot be told.
    untold: &'static [&'static str],
}

/// Everything can be seen.
const ALL: Machine = Machine {
    sights: [
        ("unmount", Some(BEST), ""),
        ("super-block shutdown", Some(BEST), ""),
        ("sync with device", Some(BEST), ""),
        ("process exit and exec", Some("Tracepoint"), ""),
    ],
    no_shim: "",
    told: &[("Unmount", BEST), ("Sync", BEST), ("InitMethod", "Uprobe"), ("LockWait", "Uprobe")],
    untold: &[],
};

/// Compares what `doctor` plans and gives as reasons with what the machine lacks, and what `live` tells of a shim that
/// unmounts for seconds, while others wait for its lock, with what is left.
fn expect(prepare: impl Fn() -> Command, machine: &Machine) -> Result<()> {
    let mut shim = Program::of(SHIM)?;
    let (doctor, _) = doctor(&mut prepare())?;
    for (what, how, word) in machine.sights {
        let (found, words) = means(&doctor, what)?;
        // Nothing may be said to be lost that is not.
        let doubt = machine::kernel() < (5, 17) && words.starts_with("\"whether syncfs(2) is seen");
        let quiet = how.is_none() || !word.is_empty() || words == "\"\" \"\"" || doubt;
        ensure!(
            found == how.map(by_name) && words.contains(word) && quiet,
            "{what}: expected {how:?} and {word:?}, doctor says {found:?} {words}"
        );
    }
    let text = doctor["findings"].to_string();
    let name = |probe: &serde_json::Value| probe["what"].as_str().unwrap_or_default().to_owned();
    let probes = doctor["survey"]["probes"].as_array().context("no probes")?;
    let of_shim: Vec<_> = probes.iter().filter(|probe| name(probe).contains("shim")).collect();
    let off = of_shim.iter().filter(|p| p["how"].is_null() && !p["note"].to_string().contains("not needed"));
    let off: Vec<String> = off.map(|probe| probe.to_string()).collect();
    if machine.no_shim.is_empty() {
        ensure!(of_shim.len() > 20 && off.is_empty(), "of the shim are off: {off:?}");
    } else {
        ensure!(
            of_shim.len() == off.len() && text.contains(machine.no_shim),
            "{} expected: {text}",
            machine.no_shim
        );
    }
    let told = Path::new("/run/told.json");
    let mut command = prepare();
    command.args(["live", "--json", "--verbose"]).stdout(fs::File::create(told)?);
    let plegscope = Plegscope::start(&mut command)?;
    let ready = plegscope.said.lines().find(|line| line.contains("attached")).unwrap_or_default().to_owned();
    let overlay = Overlay::new("ext4", &format!("hostile-{}", machine::now()), "")?;
    overlay.dirty(4_000_000)?;
    shim.tell(&overlay.at)?;
    shim.until("deleted")?;
    let said = plegscope.said.clone();
    plegscope.end(libc::SIGINT)?;
    let mut links = BTreeSet::new();
    let mut blind = String::new();
    for line in fs::read_to_string(told)?.lines() {
        let frame: serde_json::Value = serde_json::from_str(line)?;
        blind = frame["blind_spots"].to_string();
        let diagnoses = frame["diagnoses"].as_array().context("a frame without diagnoses")?;
        for link in diagnoses.iter().filter_map(|d| d["chain"]["links"].as_array()).flatten() {
            let word = |name: &str| link["operation"][name].as_str().unwrap_or_default().to_owned();
            links.insert((word("kind"), word("seen_by")));
        }
    }
    let has = |(kind, how): &(&str, &str)| links.contains(&((*kind).to_owned(), by_name(how)));
    ensure!(
        machine.told.iter().all(has),
        "told was {links:?}, not all of {:?}; {said} {blind}",
        machine.told
    );
    let lost = |(kind, _): &(String, String)| machine.untold.contains(&kind.as_str());
    ensure!(!links.iter().any(lost), "told was {links:?}, which cannot be told: {:?}", machine.untold);
    println!("note {ready}; told {links:?}");
    machine::no_probe_is_left()
}

pub fn plain() -> Command {
    Command::new("/plegscope")
}

pub fn no_tracefs() -> Result<()> {
    unshare_mounts()?;
    let _ = umount("/sys/kernel/debug/tracing", libc::MNT_DETACH);
    let _ = umount("/sys/kernel/debug", libc::MNT_DETACH);
    ensure!(umount("/sys/kernel/tracing", libc::MNT_DETACH) == 0, "tracefs stays");
    let mut machine = ALL;
    machine.sights[0].2 = "tracepoint: tracefs is not mounted";
    expect(plain, &machine)
}

pub fn tracefs_read_only() -> Result<()> {
    unshare_mounts()?;
    let _ = umount("/sys/kernel/debug", libc::MNT_DETACH);
    mount("none", "/sys/kernel/tracing", "none", libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY, "")?;
    expect(plain, &ALL)
}

/// Without types, only what needs none: unmounts by their tracepoint, where the shim does not tell of them itself.
const NO_TYPES: Machine = Machine {
    sights: [
        ("unmount", None, "CONFIG_DEBUG_INFO_BTF"),
        ("super-block shutdown", None, "CONFIG_DEBUG_INFO_BTF"),
        ("sync with device", None, "CONFIG_DEBUG_INFO_BTF"),
        ("process exit and exec", Some("Tracepoint"), ""),
    ],
    no_shim: "",
    told: &[("Unmount", "Uprobe"), ("InitMethod", "Uprobe"), ("LockWait", "Uprobe")],
    untold: &["Sync", "SuperShutdown"],
};

pub fn no_btf() -> Result<()> {
    unshare_mounts()?;
    mount("tmpfs", "/sys/kernel/btf", "tmpfs", 0, "")?;
    expect(plain, &NO_TYPES)
}

pub fn restrictive_sysctls() -> Result<()> {
    for (name, value) in [("kptr_restrict", "2"), ("perf_event_paranoid", "4")] {
        let path = format!("/proc/sys/kernel/{name}");
        fs::write(&path, value).with_context(|| path)?;
    }
    // Root is above both.
    expect(plain, &ALL)
}

/// Makes what it starts a user with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE, who may lock so many bytes of memory.
fn few(memory: u64) -> Command {
    const KEPT: [u32; 3] = [19, 38, 39];
    let mut command = plain();
    // SAFETY: only system calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            #[repr(C)]
            struct Header {
                version: u32,
                pid: i32,
            }
            let fail = || Err(std::io::Error::last_os_error());
            let limit = libc::rlimit { rlim_cur: memory, rlim_max: memory };
            if libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) != 0
                || libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0
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
}

/// These capabilities do for the kernel; a program of somebody else cannot be opened without leaving a trace, and tracefs
/// not at all.
pub fn few_capabilities() -> Result<()> {
    if machine::kernel() < (5, 11) {
        // There BPF counts against the limit of locked memory.
        let output = few(64 << 10).args(["live", "--plain", "--for", "30s"]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(3) && said.contains("RLIMIT_MEMLOCK"), "{output:?}");
        println!("note {}", said.trim());
    }
    let mut machine = ALL;
    // Debian's kernels want CAP_SYS_ADMIN for perf events of a user.
    for (_, how, word) in &mut machine.sights[..3] {
        (*how, *word) = (Some("Fentry"), "kprobe: perf_event_open was refused");
    }
    machine.no_shim = "CAP_FOWNER";
    machine.told = &[("Unmount", "Fentry"), ("Sync", "Fentry")];
    machine.untold = &["InitMethod", "LockWait"];
    expect(|| few(libc::RLIM_INFINITY), &machine)
}

pub fn lockdown() -> Result<()> {
    fs::write("/sys/kernel/security/lockdown", "confidentiality").context("locking down")?;
    let mut machine = NO_TYPES;
    for (_, how, word) in &mut machine.sights {
        if how.is_none() {
            *word = "lockdown=confidentiality";
        }
    }
    expect(plain, &machine)
}
