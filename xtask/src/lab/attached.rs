//! What is attached to the kernel, by the kernel's own lists, beside what plegscope's plan promises before it attaches
//! anything.

use super::sys;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What the plan promises and what the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The kernel's release.
    pub kernel: String,
    /// Version of the node's control groups: `v1`, `v2`; both together are v1, where the controllers are.
    #[serde(default)]
    pub cgroup: String,
    /// What `plegscope doctor` promised, before anything was attached.
    pub planned: Vec<Planned>,
    /// Descriptors of plegscope's processes for what is attached, by their kind in `/proc/PID/fdinfo`: `tracing`,
    /// `perf_event`, `uprobe_multi`; perf events without a link are `perf`.
    pub links: BTreeMap<String, u32>,
    /// Lines of the kernel's list of kprobes.
    pub kprobes: u32,
    /// Operations that were seen in flight, by kind and by what saw them.
    #[serde(default)]
    pub seen_by: BTreeMap<String, Vec<String>>,
}

/// A probe of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// What it sees.
    pub what: String,
    /// How; `None` when it cannot be had.
    pub how: Option<String>,
    /// At how many places.
    pub sites: u32,
    /// What is said of it.
    #[serde(default)]
    pub note: String,
}

impl Attached {
    /// Asks for the plan; `without` are arguments that leave ways out.
    pub fn plan(binary: &Path, without: &[&str]) -> Result<Attached> {
        // Its exit code says whether anything cannot be seen, which is no error here.
        let output = std::process::Command::new(binary)
            .args(["doctor", "--json"])
            .args(without)
            .output()
            .context("starting plegscope doctor")?;
        let said: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("what plegscope doctor says")?;
        let planned =
            serde_json::from_value(said["survey"]["probes"].clone()).context("the probes of doctor")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the release")?;
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").is_file();
        let cgroup = if unified { "v2" } else { "v1" }.to_owned();
        Ok(Attached { kernel: kernel.trim().to_owned(), cgroup, planned, ..Attached::default() })
    }

    /// Looks at what a plegscope has attached.
    pub fn look(&mut self, pid: u32) {
        self.links.clear();
        for process in sys::pids_of_tree(pid) {
            let folder = format!("/proc/{process}/fdinfo");
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                let target = fs::read_link(Path::new(&format!("/proc/{process}/fd")).join(&name));
                let is_perf = target.is_ok_and(|target| target.to_string_lossy().contains("[perf_event]"));
                if let Some(kind) = kind_of(&text, is_perf) {
                    *self.links.entry(kind).or_default() += 1;
                }
            }
        }
        let kprobes = fs::read_to_string("/sys/kernel/debug/kprobes/list").unwrap_or_default();
        self.kprobes = kprobes.lines().count() as u32;
    }

    /// Places that the plan has of one way.
    pub fn sites(&self, how: &str) -> u32 {
        self.planned.iter().filter(|probe| probe.how.as_deref() == Some(how)).map(|probe| probe.sites).sum()
    }

    /// In a few words: what is attached how often.
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        for (how, there) in [
            ("fentry", self.count("tracing")),
            ("kprobe", self.kprobes),
            ("tracepoint", self.sites("Tracepoint")),
            ("uprobe", self.sites("Uprobe")),
        ] {
            if there > 0 {
                words.push(format!("{how} {there}"));
            }
        }
        words.join(", ")
    }

    /// What saw which operations, in a few words.
    pub fn seen_by_words(&self) -> String {
        let each = self.seen_by.iter().map(|(kind, how)| format!("{kind}: {}", how.join(", ")));
        each.collect::<Vec<_>>().join("; ")
    }

    /// Links of one kind.
    pub fn count(&self, kind: &str) -> u32 {
        self.links.get(kind).copied().unwrap_or(0)
    }
}

/// Of what kind a descriptor is.
fn kind_of(fdinfo: &str, is_perf: bool) -> Option<String> {
    let link = fdinfo.lines().find_map(|line| line.strip_prefix("link_type:"));
    link.map(|kind| kind.trim().to_owned()).or(is_perf.then(|| "perf".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_told_from_a_perf_event() {
        assert_eq!(kind_of("pos:\t0\nlink_type:\ttracing\nlink_id:\t3\n", false).as_deref(), Some("tracing"));
        assert_eq!(kind_of("pos:\t0\nflags:\t02000002\n", true).as_deref(), Some("perf"));
        assert_eq!(kind_of("pos:\t0\nflags:\t02000002\n", false), None);
    }
}
