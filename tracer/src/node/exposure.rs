//! Reads what [`crate::exposure`] judges: limits of dirty memory, rates of disks, what the root file systems of running
//! containers are made of, and what lies where. Nothing is written and no disk is measured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::mounts::Mounts;
use super::worker::Workers;
use super::{bundle, disk, kubelet, number, read_file, shims};
use crate::event::{Device, Process, Role};
use crate::exposure::{DirtyLimit, FEWEST_BYTES, Facts, Place, Upper};

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// A daemon's configuration is not larger.
const LARGEST: usize = 1 << 20;

/// What waits for nothing.
pub fn of_node() -> Facts {
    let mut facts = Facts::default();
    match dirty_limit() {
        Ok(limit) => facts.limit = Some(limit),
        Err(why) => facts.not_known.push(("limit of dirty memory".into(), why)),
    }
    facts
}

/// The limits as the kernel has computed them from its settings and the memory that is available now.
fn dirty_limit() -> Result<DirtyLimit, String> {
    let text = read_file("/proc/vmstat", LARGEST).map_err(|e| e.to_string())?;
    let page = rustix::param::page_size() as u64;
    let pages = |name: &str| vmstat(&text, name).ok_or_else(|| format!("/proc/vmstat has no {name}"));
    let setting = |name: &str| {
        let text = read_file(&format!("/proc/sys/vm/{name}"), 4096).ok()?;
        number::<u64>(text.trim_ascii())
    };
    let from = match (setting("dirty_bytes"), setting("dirty_ratio")) {
        (Some(bytes), _) if bytes > 0 => format!("vm.dirty_bytes {bytes}"),
        (_, Some(ratio)) => format!("vm.dirty_ratio {ratio}, of the memory available now"),
        _ => "/proc/vmstat".into(),
    };
    Ok(DirtyLimit {
        bytes: pages("nr_dirty_threshold")?.saturating_mul(page),
        background: pages("nr_dirty_background_threshold")?.saturating_mul(page),
        from,
    })
}

fn vmstat(text: &[u8], name: &str) -> Option<u64> {
    let mut lines = text.split(|b| *b == b'\n');
    number(lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b" "))?)
}

/// What the runtimes run and where. Waits for each answer at most a few seconds. `wanted` are further places: what, whose
/// (a process), and the path as that process sees it.
pub fn of_runtimes(
    facts: &mut Facts,
    processes: Vec<Process>,
    mut wanted: Vec<(String, u32, PathBuf)>,
    workers: &Workers,
) {
    let pids = |role| processes.iter().filter(move |p| p.role == role).map(|p| p.pid).collect::<Vec<u32>>();
    let shims = pids(Role::Shim);
    let left = shims::without_bundle(&shims);
    facts.leaked_shims = left.into_iter().map(|(pid, bundle)| (pid, bundle.id)).collect();
    for pid in pids(Role::Containerd) {
        match workers.run(PATIENCE, move || folders_of(pid)) {
            Ok(Ok(folders)) => wanted.extend(folders.map(|(what, path)| (what.to_owned(), pid, path))),
            Ok(Err(why)) => facts.not_known.push(("containerd's folders".into(), why)),
            Err(why) => facts.not_known.push(("containerd's folders".into(), why.to_string())),
        }
    }
    let rates = disk::stats().unwrap_or_default();
    let average = |device: Device| {
        let stat = rates.iter().find(|stat| stat.device == device)?;
        let bytes = stat.sectors_written.saturating_mul(512);
        // Reading makes it busy too: its share of the time is taken off.
        let writing = u128::from(stat.busy_ms) * u128::from(stat.writing_ms)
            / u128::from(stat.writing_ms.saturating_add(stat.reading_ms)).max(1);
        let rate = u128::from(bytes) * 1000 / writing.max(1);
        (bytes >= FEWEST_BYTES && writing > 0).then(|| u64::try_from(rate).unwrap_or(u64::MAX))
    };
    // All mounts of a namespace are seen by whoever is in it; shims share that of their daemon.
    let mut namespaces: BTreeMap<PathBuf, Option<Mounts>> = BTreeMap::new();
    let mut troubles = Vec::new();
    let mut mounts_of = |pid: u32| -> Option<PathBuf> {
        let name = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?;
        let read = namespaces.entry(name.clone()).or_insert_with(|| {
            let read = workers.run(PATIENCE, move || Mounts::of(pid));
            let read =
                read.map_err(|why| why.to_string()).and_then(|read| read.map_err(|why| why.to_string()));
            read.map_err(|why| troubles.push((format!("mounts of process {pid}"), why))).ok()
        });
        read.is_some().then_some(name)
    };
    let seen: Vec<(PathBuf, u32)> = shims.iter().filter_map(|pid| Some((mounts_of(*pid)?, *pid))).collect();
    let wanted: Vec<_> = wanted.into_iter().filter_map(|want| Some((mounts_of(want.1)?, want))).collect();
    facts.not_known.append(&mut troubles);
    let mut uppers: BTreeMap<Device, Upper> = BTreeMap::new();
    let names: std::collections::BTreeSet<&PathBuf> = seen.iter().map(|(name, _)| name).collect();
    for mounts in names.iter().filter_map(|name| namespaces.get(*name)?.as_ref()) {
        let roots = mounts.iter().filter(|mount| {
            mount.point.file_name().is_some_and(|name| name == "rootfs")
                && bundle::BundleId::of_path(&mount.point).is_some()
        });
        for root in roots {
            match mounts.overlay_at(&root.point).and_then(|overlay| Some((overlay.upper?, overlay.volatile)))
            {
                Some(((device, fs_type), volatile)) => {
                    let upper = uppers.entry(device).or_insert_with(|| Upper {
                        device,
                        name: disk::node(device).ok(),
                        fs_type,
                        syncing: 0,
                        volatile: 0,
                        average: average(device),
                    });
                    if volatile { upper.volatile += 1 } else { upper.syncing += 1 }
                }
                None => facts.other_containers += 1,
            }
        }
    }
    facts.uppers = uppers.into_values().collect();
    let states = seen.iter().filter_map(|(name, pid)| Some((name, bundle::of_shim(*pid).ok()?.state)));
    let mut places: Vec<(String, &PathBuf, PathBuf)> =
        states.map(|(name, state)| ("bundles (state)".to_owned(), name, state)).collect();
    places.extend(wanted.iter().map(|(name, (what, _, path))| (what.clone(), name, path.clone())));
    places.sort();
    places.reverse();
    // The bundles lie in containerd's state folder, where that is known.
    let mut told = std::collections::BTreeSet::new();
    places.retain(|(_, name, path)| told.insert((*name, path.clone())));
    for (what, name, path) in places {
        let Some(mount) = namespaces.get(name).and_then(|m| m.as_ref()?.holding(&path)) else { continue };
        let name = disk::node(mount.device).ok();
        let on = (mount.device, mount.fs_type.clone());
        facts.places.push(Place { what, path: path.display().to_string(), on, name });
    }
    facts.places.dedup();
    facts.processes = processes;
}

/// containerd's root and state folders: flags, else its configuration file, else the defaults.
fn folders_of(pid: u32) -> Result<[(&'static str, PathBuf); 2], String> {
    let flags = kubelet::command_line(pid).map_err(|e| e.to_string())?;
    let file = kubelet::flag_of(&flags, "config")
        .or_else(|| flags.iter().skip_while(|f| *f != "-c").nth(1).cloned())
        .unwrap_or_else(|| "/etc/containerd/config.toml".into());
    let inside = Path::new(&format!("/proc/{pid}/root")).join(file.trim_start_matches('/'));
    let text = read_file(&inside.to_string_lossy(), LARGEST).unwrap_or_default();
    let folder = |name: &str, default: &str| {
        let set = kubelet::flag_of(&flags, name).or_else(|| top_level(&String::from_utf8_lossy(&text), name));
        PathBuf::from(set.unwrap_or_else(|| default.into()))
    };
    Ok([
        ("containerd's root", folder("root", "/var/lib/containerd")),
        ("containerd's state", folder("state", "/run/containerd")),
    ])
}

/// `name = "value"` before the first table of a TOML file.
fn top_level(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with('['));
    let value =
        lines.filter_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('=')).last()?.trim();
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    value.get(1..)?.split(quote).next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_top_of_a_configuration() {
        let text = "version = 2\nroot = \"/data/containerd\" # here\nrootless = 'x'\nstate='/run/c'\n[plugins]\nroot = \"/no\"\n";
        assert_eq!(top_level(text, "root").as_deref(), Some("/data/containerd"));
        assert_eq!(top_level(text, "state").as_deref(), Some("/run/c"));
        assert_eq!(top_level(text, "address"), None);
    }

    #[test]
    fn the_kernels_own_limit_follows_its_settings() {
        let limit = dirty_limit().unwrap();
        assert!(limit.background <= limit.bytes && limit.bytes > 0, "{limit:?}");
        // By another way: the share cannot exceed that of all memory.
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let total: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(limit.bytes < total * 1024, "{limit:?}");
        assert_eq!(vmstat(b"nr_dirty 5\nnr_dirty_threshold 17\n", "nr_dirty_threshold"), Some(17));
        assert_eq!(vmstat(b"nr_dirty 5\n", "nr_dirty_threshold"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "\\PC{0,80}") {
            let _ = (top_level(&text, "root"), vmstat(text.as_bytes(), "a"));
        }
    }
}
