//! A control group for one process of the lab, to freeze it or to take most of the CPU from it. v1 and v2.

use super::cleanup::{Ledger, Leftover, cgroup_roots};
use super::sys;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Length of the periods in which CPU time is given out, microseconds.
const PERIOD: u64 = 500_000;

/// A control file with what switches it on and off.
struct Switch {
    file: PathBuf,
    on: String,
    off: String,
}

/// A group with one process in it, below the lab's own in the hierarchies that are needed.
pub struct Group {
    frozen: Switch,
    starved: Switch,
    /// Where the kernel counts how long it had to wait for CPU time (`cpu.stat`).
    stat: PathBuf,
}

impl Group {
    /// Puts a process into a group of its own, called so; `share` is what it gets of one CPU when it is starved, in thousandths.
    pub fn of(ledger: &Ledger, name: &str, pid: u32, share: u64) -> Result<Group> {
        let below = Path::new(&ledger.name).join(name);
        ledger.record(Leftover::Cgroup { path: below.clone() })?;
        let quota = PERIOD * share / 1000;
        let roots = cgroup_roots();
        let v1 = |name: &str| roots.iter().find(|root| root.join(name).exists());
        let group = match (v1("cpu.cfs_quota_us").or(v1("cpu.shares")), freezer(&roots)) {
            (Some(cpu), Some(freezer)) => {
                let (cpu, freezer) = (join(cpu, &below, pid)?, join(freezer, &below, pid)?);
                fs::write(cpu.join("cpu.cfs_period_us"), PERIOD.to_string())
                    .context("setting the period in which CPU time is given out")?;
                Group {
                    frozen: Switch::new(freezer.join("freezer.state"), "FROZEN", "THAWED"),
                    starved: Switch::new(cpu.join("cpu.cfs_quota_us"), &quota.to_string(), "-1"),
                    stat: cpu.join("cpu.stat"),
                }
            }
            _ => {
                let root = roots.iter().find(|root| root.join("cgroup.controllers").exists());
                let root = root.context("no control groups that can freeze a process and limit its CPU")?;
                // A group with children of its own may hold no process, so the controller goes down step by step.
                fs::create_dir_all(root.join(&ledger.name)).context("creating the lab's group")?;
                for folder in [root.clone(), root.join(&ledger.name)] {
                    fs::write(folder.join("cgroup.subtree_control"), "+cpu").with_context(|| {
                        format!("switching on the cpu controller in {}", folder.display())
                    })?;
                }
                let group = join(root, &below, pid)?;
                Group {
                    frozen: Switch::new(group.join("cgroup.freeze"), "1", "0"),
                    starved: Switch::new(
                        group.join("cpu.max"),
                        &format!("{quota} {PERIOD}"),
                        &format!("max {PERIOD}"),
                    ),
                    stat: group.join("cpu.stat"),
                }
            }
        };
        for switch in [&group.frozen, &group.starved] {
            ledger.record(Leftover::Setting { file: switch.file.clone(), line: switch.off.clone() })?;
        }
        Ok(group)
    }

    /// Stops the process until [`Group::thaw`].
    pub fn freeze(&self) -> Result<()> {
        self.frozen.set(true)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.frozen.set(false)
    }

    /// Gives it its small share of a CPU until [`Group::feed`].
    pub fn starve(&self) -> Result<()> {
        self.starved.set(true)
    }

    /// Gives it all it wants.
    pub fn feed(&self) -> Result<()> {
        self.starved.set(false)
    }

    /// For how many periods, and how long in all, it had to wait for CPU time because of the limit, by the kernel.
    pub fn throttled(&self) -> Result<(u64, Duration)> {
        let text =
            fs::read_to_string(&self.stat).with_context(|| format!("reading {}", self.stat.display()))?;
        let value = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        };
        let time = value("throttled_time ")
            .map(Duration::from_nanos)
            .or_else(|| value("throttled_usec ").map(Duration::from_micros));
        Ok((value("nr_throttled ").unwrap_or(0), time.unwrap_or_default()))
    }
}

impl Switch {
    fn new(file: PathBuf, on: &str, off: &str) -> Switch {
        Switch { file, on: on.to_owned(), off: off.to_owned() }
    }

    fn set(&self, on: bool) -> Result<()> {
        let value = if on { &self.on } else { &self.off };
        fs::write(&self.file, value).with_context(|| format!("writing {value} to {}", self.file.display()))
    }
}

/// The hierarchy of the v1 freezer; its root has no file that tells it, so it goes by the mount's options.
fn freezer(roots: &[PathBuf]) -> Option<&PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    roots.iter().find(|root| {
        text.lines().any(|line| {
            line.split(' ').nth(4).is_some_and(|point| Path::new(point) == *root)
                && line.rsplit(' ').next().is_some_and(|last| last.split(',').any(|word| word == "freezer"))
        })
    })
}

/// Makes a group in one hierarchy and puts the process there.
fn join(root: &Path, below: &Path, pid: u32) -> Result<PathBuf> {
    let folder = root.join(below);
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let procs = folder.join("cgroup.procs");
    fs::write(&procs, pid.to_string()).with_context(|| format!("writing {pid} to {}", procs.display()))?;
    anyhow::ensure!(sys::state(pid).is_some(), "process {pid} is gone");
    Ok(folder)
}
