//! The systemd unit, run by systemd: a user manager of root in a control group of its own applies every line of the unit
//! to a real `watch`, beside a real stall. What it attaches, which capabilities its processes have left, and what it delivers
//! are held against a `watch` that root has started.

use super::{RATE, stall, store};
use crate::bench::soak::receiver;
use crate::lab::cleanup::{Ledger, Leftover, cgroup_roots};
use crate::lab::commands::{self, look};
use crate::lab::tracer::{Tracer, workspace};
use crate::lab::verdict::Verdict;
use crate::lab::{Lab, sys};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::process::{Child, Command};

/// The manager.
const SYSTEMD: &str = "/lib/systemd/systemd";
/// By this folder it knows that it may run at all.
const BOOTED: &str = "/run/systemd/system";
/// The name of the unit.
const UNIT: &str = "plegscope.service";
/// The threshold in force.
const THRESHOLD: &str = "3s";
/// Longest until it looks, and until it is gone.
const PATIENCE: Duration = Duration::from_secs(40);
/// Capabilities by their numbers.
const CAPABILITIES: [(&str, u32); 6] = [
    ("CAP_DAC_READ_SEARCH", 2),
    ("CAP_IPC_LOCK", 14),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

/// Why it cannot be played here, if it cannot.
pub fn cannot() -> Option<String> {
    if !Path::new(SYSTEMD).exists() || sys::which("systemd-analyze").is_none() {
        return Some("there is no systemd to run a unit: apt-get install systemd".to_owned());
    }
    let of_systemd = |root: &PathBuf| root.ends_with("systemd") || root.join("cgroup.controllers").exists();
    (!cgroup_roots().iter().any(of_systemd))
        .then(|| "there is no control group that systemd could use".to_owned())
}

/// Plays it.
pub async fn play(
    lab: &Lab<'_>,
    binary: &Path,
    keep: Option<&Path>,
    say: &mut impl FnMut(&str),
) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let unit = Unit::read(binary)?;
    unit.verify(lab, &mut verdict)?;
    let groups = own_groups();
    for probes in ["all", "auto"] {
        let free = attached_by_root(lab, binary, probes).await?;
        say(&format!("started by root with --probes {probes}: {free}"));
        let folder = lab.run.join(format!("unit-{probes}"));
        let (url, posted) = receiver()?;
        let executed = folder.join("executed.jsonl");
        let mut service = Service::start(lab.ledger, &folder, &unit, probes, &url, &executed).await?;
        let ready = sys::until(PATIENCE, || attached(&service.said()).is_some()).await;
        let said = service.said();
        let restricted = attached(&said).unwrap_or_default();
        let restricted = format!("{restricted}, {} bytes of code", changed(lab)?);
        say(&format!("started by the unit: {restricted}"));
        verdict.check(
            &format!("--probes {probes}: attached"),
            free.as_str(),
            if ready { restricted.as_str() } else { said.trim() },
            ready && free == restricted,
        );
        processes(&service, &unit, &mut verdict)?;
        if probes == "auto" {
            lab.disk.slow_down(lab.ledger, RATE)?;
            beside_a_stall(lab, binary, &service, &mut verdict, say).await?;
            let got = posted.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let ran: Vec<Value> = fs::read_to_string(&executed)
                .unwrap_or_default()
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            for (what, alerts) in [("the receiver got", got), ("the program got", ran)] {
                let events: Vec<&str> = alerts
                    .iter()
                    .filter(|alert| alert["containers"].to_string().contains(&lab.victim().container))
                    .filter_map(|alert| alert["event"].as_str())
                    .collect();
                let whole = events.first() == Some(&"crossed") && events.last() == Some(&"ended");
                verdict.check(what, "crossed, …, ended", events.join(", "), whole);
            }
            store(keep, "state.txt", &fs::read_to_string(service.state()).unwrap_or_default())?;
        }
        let left = service.stop().await?;
        store(keep, &format!("messages-{probes}.txt"), &service.said())?;
        store(keep, &format!("systemd-{probes}.txt"), &left)?;
        let lines: Vec<&str> =
            left.lines().filter(|line| line.contains(UNIT) && line.contains("Fail")).collect();
        verdict.check("systemd says", "nothing has failed", lines.join("; "), lines.is_empty());
    }
    // The manager would move all processes of the group that it is started in.
    let same = own_groups() == groups;
    verdict.check("control groups of others", "as before", if same { "as before" } else { "changed" }, same);
    Ok(verdict)
}

fn own_groups() -> String {
    fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// `N probes at M sites` of what it says when it is ready.
fn attached(said: &str) -> Option<String> {
    let line = said.lines().find(|line| line.contains("attached ") && line.contains(" sites"))?;
    let from = line.split_once("attached ")?.1;
    Some(from.split_once(" sites")?.0.to_owned() + " sites")
}

/// How many bytes of containerd's and a shim's code are probes.
fn changed(lab: &Lab<'_>) -> Result<usize> {
    let shim = lab.containerd.shim_of(&lab.pods[1].container)?;
    [lab.containerd.pid, shim].map(look::changed_bytes).into_iter().sum()
}

/// What a `watch` attaches that root has started.
async fn attached_by_root(lab: &Lab<'_>, binary: &Path, probes: &str) -> Result<String> {
    let args = ["watch", "--config", "none", "--state-file", "none", "--store", "none", "--probes", probes];
    let mut free = Tracer::start(lab.ledger, binary, &args, |_, _| {})?;
    let ready = free.ready().await?.text;
    let bytes = changed(lab)?;
    free.quit().await?;
    let gone = sys::until(PATIENCE, || changed(lab).is_ok_and(|bytes| bytes == 0)).await;
    ensure!(gone, "the probes of the one that root has started are not taken off");
    let attached = attached(&ready).with_context(|| format!("what it attached: {ready}"))?;
    Ok(format!("{attached}, {bytes} bytes of code"))
}

/// The unit as it is delivered.
struct Unit {
    text: String,
    binary: PathBuf,
}

impl Unit {
    fn read(binary: &Path) -> Result<Unit> {
        let file = workspace().join("deploy").join(UNIT);
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(Unit { text, binary: binary.to_owned() })
    }

    /// The value of a setting.
    fn value(&self, name: &str) -> Result<&str> {
        let line = self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.with_context(|| format!("{UNIT} has no {name}="))
    }

    /// What it starts, with the program that is tested.
    fn command(&self) -> Result<String> {
        let (_, arguments) =
            self.value("ExecStart")?.split_once(' ').context("ExecStart has no arguments")?;
        Ok(format!("{} {arguments}", self.binary.display()))
    }

    /// The capabilities that it leaves, as bits.
    fn capabilities(&self) -> Result<u64> {
        self.value("CapabilityBoundingSet")?.split(' ').try_fold(0, |bits, name| {
            let of = CAPABILITIES.iter().find(|(known, _)| *known == name);
            Ok(bits | 1 << of.with_context(|| format!("the number of {name}"))?.1)
        })
    }

    /// What systemd makes of it without running it.
    fn verify(&self, lab: &Lab<'_>, verdict: &mut Verdict) -> Result<()> {
        let file = lab.run.join(UNIT);
        let command = self.command()?;
        let line = |line: &str| {
            if line.starts_with("ExecStart=") {
                format!("ExecStart={command}\n")
            } else {
                format!("{line}\n")
            }
        };
        fs::write(&file, self.text.lines().map(line).collect::<String>())
            .with_context(|| format!("writing {}", file.display()))?;
        let output = std::process::Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&file)
            .output()
            .context("starting systemd-analyze")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // It tells of other units of this machine as well.
        let said: Vec<&str> = said.lines().filter(|line| line.contains(UNIT)).collect();
        verdict.check("systemd-analyze verify", "nothing to say", said.join("; "), said.is_empty());
        Ok(())
    }
}

/// The unit, run by a manager of its own.
struct Service {
    manager: Child,
    folder: PathBuf,
    binary: PathBuf,
}

impl Service {
    /// Starts the manager, which starts the unit with these settings beside it.
    async fn start(
        ledger: &Ledger,
        folder: &Path,
        unit: &Unit,
        probes: &str,
        webhook: &str,
        executed: &Path,
    ) -> Result<Service> {
        let units = folder.join("config/systemd/user");
        let beside = units.join(format!("{UNIT}.d"));
        let runtime = folder.join("runtime");
        for folder in [&beside, &runtime] {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let write = |file: PathBuf, text: &str| {
            fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
        };
        write(units.join(UNIT), &unit.text)?;
        let state = runtime.join("plegscope");
        let settings = format!(
            "[Service]\nExecStart=\nExecStart={command}\nStandardError=append:{folder}/said\n\
             Environment=PLEGSCOPE_CONFIG=none PLEGSCOPE_PROBES={probes} PLEGSCOPE_UMOUNT_OVER={THRESHOLD}\n\
             Environment=PLEGSCOPE_STATE_FILE={state}/state PLEGSCOPE_STORE={state}/incidents\n\
             Environment=PLEGSCOPE_WEBHOOK={webhook}\n\
             Environment='PLEGSCOPE_EXEC=[\"/bin/sh\", \"-c\", \"exec cat >> {executed}\"]'\n",
            command = unit.command()?,
            folder = folder.display(),
            state = state.display(),
            executed = executed.display(),
        );
        write(beside.join("lab.conf"), &settings)?;

        let group = Path::new(&ledger.name).join("manager");
        ledger.record(Leftover::Cgroup { path: group.clone() })?;
        let groups: Vec<PathBuf> = cgroup_roots().iter().map(|root| root.join(&group)).collect();
        for folder in &groups {
            // A hierarchy that does not let it is none that the manager uses.
            let _ = fs::create_dir_all(folder);
        }
        let booted = Booted::pretend(ledger)?;
        let log = File::create(folder.join("systemd")).context("the log of the manager")?;
        let script = "for group; do echo $$ > $group/cgroup.procs; done 2>/dev/null; \
                      exec \"$0\" --user --unit=plegscope.service --log-target=console --log-level=info";
        let manager = Command::new("/bin/sh")
            .args(["-c", script, SYSTEMD])
            .args(&groups)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", folder)
            .env("XDG_RUNTIME_DIR", &runtime)
            .env("XDG_CONFIG_HOME", folder.join("config"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("starting a systemd of its own")?;
        ledger.record_process(manager.id().context("systemd ended at once")?, PATIENCE)?;
        let service = Service { manager, folder: folder.to_owned(), binary: unit.binary.clone() };
        let up = sys::until(Duration::from_secs(20), || service.main().is_some()).await;
        drop(booted);
        ensure!(up, "the unit is not started: {}", service.log());
        Ok(service)
    }

    /// What plegscope has said on standard error.
    fn said(&self) -> String {
        fs::read_to_string(self.folder.join("said")).unwrap_or_default()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("systemd")).unwrap_or_default()
    }

    fn state(&self) -> PathBuf {
        self.folder.join("runtime/plegscope/state")
    }

    /// Its processes: the one that watches, then its children.
    fn pids(&self) -> Vec<u32> {
        let Some(manager) = self.manager.id() else { return Vec::new() };
        let binary = fs::canonicalize(&self.binary).unwrap_or_default();
        let is = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == binary);
        sys::pids_of_tree(manager).into_iter().filter(is).collect()
    }

    fn main(&self) -> Option<u32> {
        self.pids().first().copied()
    }

    /// Ends it as a shutdown does; gives what systemd has said.
    async fn stop(&mut self) -> Result<String> {
        if let Some(pid) = self.manager.id() {
            sys::signal(pid, libc::SIGTERM);
        }
        let ended = tokio::time::timeout(PATIENCE, self.manager.wait()).await;
        ended.with_context(|| format!("the manager does not end: {}", self.log()))??;
        Ok(self.log())
    }
}

/// The folder by which systemd knows that it may run, for as long as a manager needs to start.
struct Booted {
    made: bool,
}

impl Booted {
    fn pretend(ledger: &Ledger) -> Result<Booted> {
        let made = !Path::new(BOOTED).exists();
        if made {
            for folder in ["/run/systemd", BOOTED] {
                if !Path::new(folder).exists() {
                    ledger.record(Leftover::EmptyFolder { path: folder.into() })?;
                    fs::create_dir(folder).with_context(|| format!("creating {folder}"))?;
                }
            }
        }
        Ok(Booted { made })
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        if self.made {
            let _ = fs::remove_dir(BOOTED); // the ledger tries again
        }
    }
}

/// A field of `/proc/PID/status`.
fn field(pid: u32, name: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("the state of a process")?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(value.with_context(|| format!("{name} of process {pid}"))?.trim().to_owned())
}

/// What the kernel says of the processes of the service.
fn processes(service: &Service, unit: &Unit, verdict: &mut Verdict) -> Result<()> {
    let pids = service.pids();
    let [main, children @ ..] = &pids[..] else {
        anyhow::bail!("the service has no process: {}", service.said())
    };
    let bits = |pid: u32, name: &str| Ok::<u64, anyhow::Error>(u64::from_str_radix(&field(pid, name)?, 16)?);
    let all = unit.capabilities()?;
    let memory = 1u64 << 14;
    verdict.check(
        "capabilities of watch",
        format!("{memory:x} (IPC_LOCK)"),
        format!("{:x}", bits(*main, "CapEff")?),
        bits(*main, "CapEff")? == memory && bits(*main, "CapPrm")? == memory,
    );
    let mut theirs = children.iter().map(|pid| bits(*pid, "CapEff")).collect::<Result<Vec<u64>>>()?;
    theirs.sort_unstable();
    verdict.check(
        "of the courier and the warden",
        format!("0, {all:x}"),
        format!("{theirs:x?}"),
        theirs == [0, all],
    );
    let own = fs::read_link("/proc/self/ns/mnt").context("our mount namespace")?;
    for pid in &pids {
        let space = fs::read_link(format!("/proc/{pid}/ns/mnt")).context("its mount namespace")?;
        let (filter, bound) = (field(*pid, "Seccomp")?, bits(*pid, "CapBnd")?);
        verdict.check(
            "a process of the service",
            format!("filtered, in the node's mount namespace, bounded by {all:x}"),
            format!("filter {filter}, {}, {bound:x}", space.display()),
            filter == "2" && space == own && bound == all && field(*pid, "NoNewPrivs")? == "1",
        );
    }
    Ok(())
}

/// A stall comes and goes: what health checks are told, and what is kept.
async fn beside_a_stall(
    lab: &Lab<'_>,
    binary: &Path,
    service: &Service,
    verdict: &mut Verdict,
    say: &mut impl FnMut(&str),
) -> Result<()> {
    let status = || {
        let output =
            std::process::Command::new(binary).args(["status", "--state-file"]).arg(service.state()).output();
        output.map_or((None, String::new()), |output| {
            (output.status.code(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
        })
    };
    sys::until(Duration::from_secs(10), || status().0 == Some(0)).await;
    let before = status();
    let mut worst = (None, String::new());
    let mut asked = sys::monotonic();
    stall(lab, say, || {
        if sys::monotonic() - asked > 500_000_000 {
            asked = sys::monotonic();
            let now = status();
            if now.0 == Some(1) {
                worst = now;
            }
        }
    })
    .await?;
    sys::until(Duration::from_secs(10), || status().0 == Some(0)).await;
    let after = status();
    verdict.check("status at first", "0", format!("{:?} {}", before.0, before.1), before.0 == Some(0));
    verdict.check("status in the stall", "1", format!("{:?} {}", worst.0, worst.1), worst.0 == Some(1));
    verdict.check("status at last", "0", format!("{:?} {}", after.0, after.1), after.0 == Some(0));
    // The courier tries again what the receiver has refused.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut incidents = Command::new(binary);
    incidents
        .args(["incidents", "--json", "--store"])
        .arg(service.folder.join("runtime/plegscope/incidents"));
    let (code, out, said) = commands::run(lab.ledger, &mut incidents, Duration::from_secs(20)).await?;
    let kept: Vec<Value> = out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let ours = kept.iter().find(|one| one["containers"].to_string().contains(&lab.victim().container));
    verdict.check(
        "what is kept",
        "the incident, by the pod's name, with the call that waited",
        ours.map_or(format!("{code:?} {said}"), |one| one["sentence"].to_string()),
        // The look at containerd's memory has found who waits, and the bundle could be read.
        ours.is_some_and(|one| {
            let names = one["sentence"].as_str().unwrap_or_default().contains(&lab.victim().name);
            names && one["chain"].to_string().contains("UpdateContainerResources")
        }),
    );
    Ok(())
}
