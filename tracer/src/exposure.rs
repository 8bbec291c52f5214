//! How exposed a node is before anything has happened: how long one unmount could take at worst, against the time after
//! which its kubelet calls itself unhealthy. Pure: [`crate::node::exposure`] reads, this judges.
//!
//! An overlay that is not volatile syncs its whole upper file system when it is unmounted, also what others have dirtied
//! there. So at worst it writes as much as the kernel lets be dirty, at the rate of the disk.

use crate::event::{Device, KubeletFacts, Ns, Process, Role};
use crate::golang::offsets;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// What was read of the node. What is empty is not known, and why is in [`Facts::not_known`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Whether all that can be found out was tried.
    pub complete: bool,
    /// How much memory may be dirty.
    pub limit: Option<DirtyLimit>,
    /// File systems that hold the upper folders of running containers.
    pub uppers: Vec<Upper>,
    /// Running containers whose root file system is not known, or no overlay.
    pub other_containers: u32,
    /// What lies on which device.
    pub places: Vec<Place>,
    /// The kubelets.
    pub kubelets: Vec<KubeletFacts>,
    /// Daemons, shims and kubelets.
    pub processes: Vec<Process>,
    /// Idle shims without a bundle: process and container.
    pub leaked_shims: Vec<(u32, String)>,
    /// What could not be found out, and why.
    pub not_known: Vec<(String, String)>,
}

/// How much memory may be dirty, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirtyLimit {
    /// Above this, writers are held back.
    pub bytes: u64,
    /// Above this, writing begins in the background.
    pub background: u64,
    /// The settings it comes from.
    pub from: String,
}

/// A file system with upper folders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upper {
    /// Its device.
    pub device: Device,
    /// Name of the device, where it has one.
    pub name: Option<String>,
    /// File-system type.
    pub fs_type: String,
    /// Running containers whose unmount syncs it.
    pub syncing: u32,
    /// Running containers that are volatile.
    pub volatile: u32,
    /// Bytes per second of time in which the device was busy, since boot; `None` where it has no counters or wrote less
    /// than [`FEWEST_BYTES`].
    pub average: Option<u64>,
}

/// What lies where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// What it is, for instance `the kubelet's root`.
    pub what: String,
    /// Its path.
    pub path: String,
    /// Device and file-system type of the mount it lies in.
    pub on: (Device, String),
    /// Name of the device, where it has one.
    pub name: Option<String>,
}

/// An average over less is no rate.
pub const FEWEST_BYTES: u64 = 256 << 20;
/// The threshold where no kubelet tells: that of Kubernetes up to now without EventedPLEG.
const USUAL_THRESHOLD: Ns = 180_000_000_000;

/// How exposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// One unmount can outlast the threshold.
    AtRisk,
    /// It would by the rate that was seen, which may be lower than what the disk can do.
    MayBe,
    /// It would not by the rate that was seen, which holds as long as the disk is not slower than it was.
    ProbablySafe,
    /// It cannot.
    Safe,
    /// It cannot be told.
    NotKnown,
}

/// The judgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// How exposed.
    pub level: Level,
    /// The same in one sentence, with the numbers.
    pub sentence: String,
    /// Worst-case time of one unmount, ns.
    pub worst: Option<Ns>,
    /// The threshold it was held against, ns, and where that was read.
    pub threshold: (Ns, String),
    /// The disk must write as many bytes per second to stay below the threshold.
    pub needed: Option<u64>,
}

/// Judges; `given` is a write rate in bytes per second that the user knows.
pub fn judge(facts: &Facts, given: Option<u64>) -> Verdict {
    let lowest = facts.kubelets.iter().filter_map(|k| k.pleg_threshold.clone()).min();
    let threshold =
        lowest.unwrap_or_else(|| (USUAL_THRESHOLD, "no kubelet is seen; 3 minutes is usual".into()));
    let seconds = threshold.0 / 1_000_000_000;
    let mut verdict =
        Verdict { level: Level::NotKnown, sentence: String::new(), worst: None, threshold, needed: None };
    let not_known = |why: &str| format!("Not known: {why}");
    if !facts.complete {
        verdict.sentence = not_known("the node did not answer in time; what was read is below");
        return verdict;
    }
    let (syncing, volatile) = (sum(facts, |u| u.syncing), sum(facts, |u| u.volatile));
    if syncing + volatile == 0 {
        verdict.sentence =
            not_known("no running container with an overlay is seen, so whether unmounts sync is not");
        return verdict;
    }
    if syncing == 0 {
        let all = if facts.other_containers == 0 { "all" } else { "all that are seen" };
        verdict.level = Level::Safe;
        verdict.sentence = format!(
            "Safe from this: overlays are volatile ({all}, {volatile} containers), so their unmounts do not sync"
        );
        return verdict;
    }
    let Some(limit) = &facts.limit else {
        verdict.sentence = not_known("the limit of dirty memory could not be read");
        return verdict;
    };
    verdict.needed = Some(limit.bytes / seconds.max(1));
    // The slowest of those that are synced; one whose rate is not known may be slower than any.
    let mut slowest: Option<(&Upper, u64)> = None;
    for upper in facts.uppers.iter().filter(|u| u.syncing > 0) {
        let Some(rate) = given.or(upper.average).filter(|rate| *rate > 0) else {
            verdict.sentence = format!(
                "Not known: {} may be dirty, and how fast {} writes is not; it is at risk below {} (give --write-rate)",
                size(limit.bytes),
                device(upper),
                rate_of(verdict.needed.unwrap_or(0)),
            );
            return verdict;
        };
        if slowest.is_none_or(|(_, least)| rate < least) {
            slowest = Some((upper, rate));
        }
    }
    let Some((upper, rate)) = slowest else { return verdict };
    let worst = limit.bytes / rate;
    verdict.worst = Some(worst.saturating_mul(1_000_000_000));
    let sum = format!("{} / {} = {worst} s", size(limit.bytes), rate_of(rate));
    let on = device(upper);
    let from = if given.is_some() { "" } else { ", its average while busy since boot" };
    // Without updates nobody asks a shim while it holds a container's lock, as far as is known.
    let none = !facts.kubelets.is_empty()
        && facts.kubelets.iter().all(|k| k.cpu_manager_policy.as_ref().is_some_and(|(p, _)| p == "none"));
    let milder = if none {
        "; the CPU-manager policy is none, so no periodic update waits for it, but exits are told late and in-place resizes can block"
    } else {
        ""
    };
    (verdict.level, verdict.sentence) = if worst <= seconds && given.is_none() {
        let words = format!(
            "Probably safe: {sum} <= {seconds} s ({on}{from}; a throttle or spent burst credits can make it slower)"
        );
        (Level::ProbablySafe, words)
    } else if worst <= seconds {
        (Level::Safe, format!("Safe from this: {sum} <= {seconds} s ({on})"))
    } else if given.is_some() {
        (Level::AtRisk, format!("At risk: {sum} > {seconds} s ({on}): this node can go NotReady{milder}"))
    } else {
        let needed = rate_of(verdict.needed.unwrap_or(0));
        let words = format!(
            "May be at risk: {sum} > {seconds} s ({on}{from}, which small writes make lower than what it can do); safe only if it writes {needed} or more (measure, then give --write-rate){milder}"
        );
        (Level::MayBe, words)
    };
    verdict
}

fn sum(facts: &Facts, of: impl Fn(&Upper) -> u32) -> u32 {
    facts.uppers.iter().map(of).sum()
}

fn device(upper: &Upper) -> String {
    upper.name.clone().unwrap_or_else(|| format!("{} {}", upper.fs_type, upper.device))
}

/// Bytes in decimal units, as disks are sold: `51 GB`.
pub fn size(bytes: u64) -> String {
    match bytes {
        10_000_000_000.. => format!("{} GB", bytes / 1_000_000_000),
        1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
        1_000_000.. => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} kB", bytes / 1000),
    }
}

fn rate_of(bytes: u64) -> String {
    format!("{}/s", size(bytes))
}

/// `150MB/s`, `2GB/s`, `800kB`, `1GiB/s`, or plain bytes per second.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let text = text.trim().trim_end_matches("/s");
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = match unit.trim() {
        "" | "B" => 1.0,
        "k" | "kB" | "KB" => 1e3,
        "M" | "MB" => 1e6,
        "G" | "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        other => return Err(format!("'{other}' is no unit; say for instance 150MB/s")),
    };
    let bytes = number.parse::<f64>().map_err(|_| "say for instance 150MB/s".to_owned())? * unit;
    if (1.0..1e15).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err("a rate is at least one byte per second".into())
    }
}

/// Versions that were tested, as `major.minor`; the one table. Go: [`offsets::OLDEST`] to [`offsets::NEWEST`].
const TESTED: [(Role, &[&str], &str); 3] = [
    (Role::Containerd, &["1.4", "1.6", "1.7", "2.1"], "1.4.13, 1.6.20, 1.7.24, 2.1.9"),
    (Role::Shim, &["1.4", "1.6", "1.7", "2.1"], "1.4.13, 1.6.20, 1.7.24, 2.1.9"),
    (Role::Kubelet, &["1.20"], "1.20.2"),
];

/// What a program's versions are outside of; empty when they were tested.
pub fn untested(process: &Process) -> String {
    let mut words = Vec::new();
    let go = crate::golang::buildinfo::GoVersion::parse(&process.go_version).map(|v| v.minor);
    if !go.is_ok_and(|minor| (offsets::OLDEST..=offsets::NEWEST).contains(&minor)) {
        words.push(format!("Go was tested from 1.{} to 1.{}", offsets::OLDEST, offsets::NEWEST));
    }
    if let Some((_, minors, tested)) = TESTED.iter().find(|row| row.0 == process.role) {
        let minor = process.version.as_deref().map(|v| v.split('.').take(2).collect::<Vec<_>>().join("."));
        match minor {
            Some(minor) if minors.contains(&&*minor) => {}
            Some(_) => words.push(format!("not tested on this version (tested: {tested})")),
            None => words.push(format!("its version is not known (tested: {tested})")),
        }
    }
    words.join("; ")
}

/// The facts as sections of text; strings from workloads are for the caller to sanitise line by line.
pub fn text(facts: &Facts, verdict: &Verdict) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut out, facts, verdict);
    out
}

fn write_text(out: &mut String, facts: &Facts, verdict: &Verdict) -> std::fmt::Result {
    writeln!(out, "exposure")?;
    if let Some(limit) = &facts.limit {
        let (all, background) = (size(limit.bytes), size(limit.background));
        writeln!(out, "  dirty memory at most      {all}, written from {background} on ({})", limit.from)?;
    }
    if let Some(needed) = verdict.needed {
        let seconds = verdict.threshold.0 / 1_000_000_000;
        writeln!(out, "  the disk must write       {} to stay below {seconds} s", rate_of(needed))?;
    }
    writeln!(
        out,
        "  PLEG threshold            {} s: {}",
        verdict.threshold.0 / 1_000_000_000,
        verdict.threshold.1
    )?;
    for kubelet in &facts.kubelets {
        match &kubelet.cpu_manager_policy {
            Some((policy, from)) => writeln!(out, "  CPU-manager policy        {policy} ({from})")?,
            None => writeln!(
                out,
                "  CPU-manager policy        not set where it was looked for; the default is none"
            )?,
        }
    }
    for upper in &facts.uppers {
        let average = upper
            .average
            .map_or("rate not known".into(), |r| format!("{} on average while busy", rate_of(r)));
        let (name, on) = (device(upper), &upper.fs_type);
        writeln!(
            out,
            "  upper folders             {name} ({on}): {} sync at unmount, {} volatile; {average}",
            upper.syncing, upper.volatile
        )?;
    }
    for place in &facts.places {
        let on = place.name.clone().unwrap_or_else(|| place.on.0.to_string());
        writeln!(out, "  {:<25} {} on {on} ({})", place.what, place.path, place.on.1)?;
    }
    if !facts.leaked_shims.is_empty() {
        let some: Vec<String> = facts.leaked_shims.iter().take(8).map(|(pid, _)| pid.to_string()).collect();
        writeln!(
            out,
            "  left-over shims           {} (pid {}): idle, their bundles are gone",
            facts.leaked_shims.len(),
            some.join(" ")
        )?;
    }
    let mut told = std::collections::BTreeMap::new();
    for p in &facts.processes {
        let version = p.version.clone().unwrap_or_else(|| "version not known".into());
        let words = untested(p);
        let words = if words.is_empty() { words } else { format!("; {words}") };
        *told.entry(format!("{} {version}, {}{words}", p.comm, p.go_version)).or_insert(0) += 1;
    }
    for (line, count) in told {
        writeln!(out, "  runs                      {count} x {line}")?;
    }
    for (what, why) in &facts.not_known {
        writeln!(out, "  not known                 {what}: {why}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(average: Option<u64>) -> Facts {
        let device = Device { major: 259, minor: 1 };
        let process = |role, comm: &str, version: &str, go: &str| Process {
            pid: 7,
            started: 0,
            role,
            comm: comm.into(),
            go_version: go.into(),
            version: Some(version.into()),
        };
        Facts {
            complete: true,
            limit: Some(DirtyLimit {
                bytes: 51_000_000_000,
                background: 25_000_000_000,
                from: "vm.dirty_ratio 20".into(),
            }),
            uppers: vec![Upper {
                device,
                name: Some("/dev/nvme1n1".into()),
                fs_type: "ext4".into(),
                syncing: 30,
                volatile: 0,
                average,
            }],
            kubelets: vec![KubeletFacts {
                pid: 9,
                pleg_threshold: Some((180_000_000_000, "the code".into())),
                cpu_manager_policy: Some(("static".into(), "/var/lib/kubelet/cpu_manager_state".into())),
                request_timeout: None,
            }],
            places: vec![Place {
                what: "the kubelet's root".into(),
                path: "/var/lib/kubelet".into(),
                on: (device, "ext4".into()),
                name: Some("/dev/nvme1n1".into()),
            }],
            processes: vec![
                process(Role::Containerd, "containerd", "1.6.20", "go1.19.8"),
                process(Role::Kubelet, "kubelet", "1.31.2", "go1.23.1"),
            ],
            ..Facts::default()
        }
    }

    #[test]
    fn the_node_of_51_gb() {
        let verdict = judge(&node(None), Some(150_000_000));
        assert_eq!(verdict.level, Level::AtRisk);
        assert_eq!(
            verdict.sentence,
            "At risk: 51 GB / 150 MB/s = 340 s > 180 s (/dev/nvme1n1): this node can go NotReady"
        );
        assert_eq!((verdict.worst, verdict.needed), (Some(340_000_000_000), Some(283_333_333)));
        insta::assert_snapshot!(text(&node(None), &verdict), @r"
        exposure
          dirty memory at most      51 GB, written from 25 GB on (vm.dirty_ratio 20)
          the disk must write       283 MB/s to stay below 180 s
          PLEG threshold            180 s: the code
          CPU-manager policy        static (/var/lib/kubelet/cpu_manager_state)
          upper folders             /dev/nvme1n1 (ext4): 30 sync at unmount, 0 volatile; rate not known
          the kubelet's root        /var/lib/kubelet on /dev/nvme1n1 (ext4)
          runs                      1 x containerd 1.6.20, go1.19.8
          runs                      1 x kubelet 1.31.2, go1.23.1; not tested on this version (tested: 1.20.2)
        ");
    }

    #[test]
    fn an_average_proves_nothing() {
        assert_eq!(judge(&node(Some(150_000_000)), None).level, Level::MayBe);
        assert_eq!(judge(&node(Some(300_000_000)), None).level, Level::ProbablySafe);
        assert_eq!(judge(&node(Some(1)), Some(300_000_000)).level, Level::Safe);
        assert_eq!(judge(&node(None), None).level, Level::NotKnown);
        assert!(judge(&node(None), None).sentence.contains("below 283 MB/s"));
    }

    #[test]
    fn what_makes_it_safe_or_unknown() {
        let mut facts = node(Some(1_000_000));
        facts.uppers[0].volatile = std::mem::take(&mut facts.uppers[0].syncing);
        assert!(judge(&facts, None).sentence.starts_with("Safe from this: overlays are volatile"));
        facts.uppers.clear();
        assert_eq!(judge(&facts, Some(1)).level, Level::NotKnown);
        assert_eq!(judge(&Facts { complete: false, ..node(None) }, Some(1)).level, Level::NotKnown);
        assert_eq!(judge(&Facts { limit: None, ..node(None) }, Some(1)).level, Level::NotKnown);
        // A longer threshold, as with EventedPLEG.
        let mut facts = node(None);
        facts.kubelets[0].pleg_threshold = Some((600_000_000_000, "its memory".into()));
        assert_eq!(judge(&facts, Some(150_000_000)).level, Level::Safe);
        let mut facts = node(None);
        facts.kubelets[0].cpu_manager_policy = Some(("none".into(), "x".into()));
        assert!(judge(&facts, Some(150_000_000)).sentence.contains("policy is none"));
    }

    #[test]
    fn rates() {
        for (text, bytes) in
            [("150MB/s", 150_000_000), ("2 GB/s", 2_000_000_000), ("1MiB", 1 << 20), ("42", 42)]
        {
            assert_eq!(parse_rate(text), Ok(bytes), "{text}");
        }
        for text in ["", "fast", "-1MB/s", "0", "1 Mbit/s"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_numbers_are_judged(bytes: u64, average: Option<u64>, given: Option<u64>, threshold: u64, text in "\\PC{0,12}") {
            let mut facts = node(average);
            facts.limit.as_mut().unwrap().bytes = bytes;
            facts.kubelets[0].pleg_threshold = Some((threshold, String::new()));
            let verdict = judge(&facts, given);
            prop_assert!(!verdict.sentence.is_empty());
            let _ = (super::text(&facts, &verdict), parse_rate(&text));
        }
    }
}
