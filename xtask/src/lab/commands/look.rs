//! What can be seen of a process from outside, by means that have nothing to do with plegscope: descriptors, BPF links,
//! the bytes of its program in memory, memory and CPU time.

use crate::bench::bpf;
use crate::lab::sys;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

/// What each descriptor of a process points to.
pub fn descriptors(pid: u32) -> BTreeMap<u32, String> {
    let Ok(folder) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeMap::new() };
    folder
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
        })
        .collect()
}

/// Those of them with which something is attached or loaded.
pub fn attached(pid: u32) -> Vec<String> {
    let ours = |target: &String| {
        ["bpf_link", "bpf-link", "perf_event", "bpf-prog", "bpf-map"].iter().any(|word| target.contains(word))
    };
    descriptors(pid).into_values().filter(ours).collect()
}

/// Ids of the BPF links that a process holds.
pub fn links(pid: u32) -> BTreeSet<u32> {
    descriptors(pid).into_keys().filter_map(|fd| bpf::link_id(pid, fd)).collect()
}

/// How many of these links are still there.
pub fn left(links: &BTreeSet<u32>) -> usize {
    links.iter().filter(|id| bpf::link_exists(**id).unwrap_or(true)).count()
}

/// How many bytes of the program's code differ between the process's memory and its file: probes are breakpoints.
pub fn changed_bytes(pid: u32) -> Result<usize> {
    Ok(changes(pid)?.len())
}

/// File offset and present value of each byte of a process's executable mappings of its program that is not as in the
/// file.
pub fn changes(pid: u32) -> Result<Vec<(u64, u8)>> {
    let exe = format!("/proc/{pid}/exe");
    let data = fs::read(&exe).with_context(|| format!("reading {exe}"))?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("reading the memory map")?;
    let target = fs::read_link(&exe).context("reading the program's name")?;
    let target = target.to_string_lossy().into_owned();
    let memory = File::open(format!("/proc/{pid}/mem")).context("opening the memory")?;
    let (mut changed, mut compared) = (Vec::new(), 0);
    for line in maps.lines().filter(|line| line.ends_with(&target) && line.contains("r-x")) {
        let mut words = line.split_whitespace();
        let (Some(range), _, Some(at)) = (words.next(), words.next(), words.next()) else { continue };
        let Some((start, end)) = range.split_once('-') else { continue };
        let number = |text: &str| u64::from_str_radix(text, 16);
        let (Ok(start), Ok(end), Ok(at)) = (number(start), number(end), number(at)) else { continue };
        // The last page reaches beyond the end of the file.
        let to = (at + end - start).min(data.len() as u64);
        let mut bytes = vec![0; to.saturating_sub(at) as usize];
        memory.read_exact_at(&mut bytes, start).context("reading the code in memory")?;
        let same = &data[at as usize..to as usize];
        compared += same.len();
        let differing = (at..).zip(bytes.iter().zip(same)).filter(|(_, (is, should))| is != should);
        changed.extend(differing.map(|(at, (is, _))| (at, *is)));
    }
    ensure!(compared > 0, "process {pid} has no executable mapping of {target}");
    Ok(changed)
}

/// Other tracers on this machine: they may put breakpoints into the same programs.
pub fn other_tracers(ours: &[u32]) -> bool {
    // What is left of one that nobody collects is none.
    let alive = |pid: &u32| sys::state(*pid).is_some_and(|state| state != 'Z');
    sys::pids().into_iter().filter(|pid| !ours.contains(pid)).filter(alive).any(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.starts_with("plegscope"))
    })
}

/// Memory that is there because of a process, kB: pages that it shares count as its share of them.
pub fn share_of_memory(pid: u32) -> u64 {
    field_of(&format!("/proc/{pid}/smaps_rollup"), "Pss")
}

/// Field of `/proc/PID/status` in kB.
pub fn kilobytes(pid: u32, field: &str) -> u64 {
    field_of(&format!("/proc/{pid}/status"), field)
}

fn field_of(file: &str, field: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// Memory that the code of a process's program takes apart from its file, kB: each page with a breakpoint is a copy.
pub fn own_code(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).context("reading the memory map")?;
    let target = fs::read_link(format!("/proc/{pid}/exe")).context("reading the program's name")?;
    let target = target.to_string_lossy().into_owned();
    let (mut code, mut sum) = (false, 0);
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            code = line.contains("r-x") && line.ends_with(&target);
        } else if code && first == "Anonymous:" {
            sum += line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(sum)
}

/// CPU time of all threads of a process so far, ns.
pub fn cpu_time(pid: u32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    threads
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

/// The warden: the child of a plegscope.
pub fn warden(parent: u32) -> Option<u32> {
    sys::pids_of_tree(parent).get(1).copied()
}
