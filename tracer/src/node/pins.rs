//! Who keeps a mount busy that was not to be unmounted (EBUSY): mounts below it, processes that work in it or have a file
//! open in it, and the copies of it in other mount namespaces, which keep the file system alive.
//!
//! Read are links of `/proc`, which come from memory whatever they point to, and one `mountinfo` per mount namespace.
//! The latter waits for that namespace's lock, so all of it runs on a worker. Nothing below the mount is touched.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::mounts::{Mount, Mounts};
use super::{ReadError, read_file};
use crate::event::{Pin, Pins};

/// Processes looked at.
const MOST_PROCESSES: usize = 8192;
/// Mount namespaces whose mounts are read.
const MOST_NAMESPACES: usize = 1024;
/// Open files looked at, of one process and of all.
const MOST_FILES: (usize, usize) = (512, 65_536);
/// Pins told.
const MOST_PINS: usize = 16;

/// Finds who keeps the mount at `path`, as process `by` sees it, busy. May wait: for a worker.
pub fn find(path: &Path, by: u32) -> Pins {
    let mut pins = Pins { path: path.display().to_string(), of: Vec::new(), reason: String::new() };
    if let Err(why) = look(path, by, &mut pins) {
        pins.reason = why;
    }
    let left = pins.of.len().saturating_sub(MOST_PINS);
    if left > 0 {
        // The ones that matter come first: what merely keeps the file system alive is last.
        pins.of.truncate(MOST_PINS);
        pins.reason = format!("{left} more");
    }
    pins
}

/// A mount namespace and who is in it.
struct Namespace {
    members: Vec<u32>,
}

fn look(path: &Path, by: u32, pins: &mut Pins) -> Result<(), String> {
    let own = namespace_of(by).map_err(|e| format!("its mounts cannot be told: {e}"))?;
    let mounts = Mounts::of(by).map_err(|e| e.to_string())?;
    let target = mounts.at(path).ok_or_else(|| "nothing is mounted there any more".to_owned())?;
    let mut namespaces: BTreeMap<OsString, Namespace> = BTreeMap::new();
    let processes = processes(MOST_PROCESSES).map_err(|e| e.to_string())?;
    let mut reasons = Vec::new();
    if processes.len() == MOST_PROCESSES {
        reasons.push(format!("only {MOST_PROCESSES} processes were looked at"));
    }
    for pid in processes {
        let Ok(namespace) = namespace_of(pid) else { continue };
        namespaces.entry(namespace).or_insert_with(|| Namespace { members: Vec::new() }).members.push(pid);
    }
    let mut files = MOST_FILES.1;
    let mut elsewhere = Vec::new();
    let skipped = namespaces.len().saturating_sub(MOST_NAMESPACES);
    if skipped > 0 {
        reasons.push(format!("{skipped} mount namespaces were not looked at"));
    }
    // The namespace of who unmounts first: only what is there is sure to be in the way.
    let order = namespaces.remove_entry(&own).into_iter().chain(namespaces).take(MOST_NAMESPACES);
    for (name, namespace) in order {
        let here = name == own;
        let Some(reader) = namespace.members.first().copied() else { continue };
        let Some(seen) = namespace.members.iter().take(3).find_map(|pid| Mounts::of(*pid).ok()) else {
            continue;
        };
        let copies: Vec<&Mount> = if here {
            seen.iter().filter(|mount| mount.id == target.id).collect()
        } else {
            seen.iter()
                .filter(|mount| mount.device == target.device && mount.fs_type == target.fs_type)
                .collect()
        };
        if copies.is_empty() {
            continue;
        }
        for below in seen
            .iter()
            .filter(|mount| copies.iter().any(|copy| copy.id == mount.parent && copy.id != mount.id))
        {
            let where_ = if here { "" } else { " in its own mount namespace" };
            // Whoever mounted it may be gone: told is a process that has it, here the one that unmounts.
            let how = format!("has a mount below it, {}{where_}", below.point.display());
            pins.of.push(pin(if here { by } else { reader }, how));
        }
        for pid in &namespace.members {
            if let Some(how) = use_of(*pid, &seen, &copies, &mut files) {
                let how = if here { how } else { format!("{how}, in its own copy of the mount") };
                pins.of.push(pin(*pid, how));
            }
        }
        if !here {
            let how =
                "has it mounted too: this keeps the file system alive, and does not cause EBUSY by itself";
            elsewhere.push(pin(reader, how.to_owned()));
        }
    }
    if files == 0 {
        reasons.push(format!("only {} open files were looked at", MOST_FILES.1));
    }
    pins.of.append(&mut elsewhere);
    pins.reason = reasons.join("; ");
    Ok(())
}

/// How a process uses one of these mounts.
fn use_of(pid: u32, mounts: &Mounts, copies: &[&Mount], files: &mut usize) -> Option<String> {
    let inside = |path: PathBuf| {
        // Resolving is dear, and most paths lie elsewhere.
        let may = copies.iter().any(|copy| path.starts_with(&copy.point));
        may && mounts.holding(&path).is_some_and(|mount| copies.iter().any(|copy| copy.id == mount.id))
    };
    let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}"));
    if link("cwd").is_ok_and(inside) {
        return Some("works in it".into());
    }
    // A container's root is its rootfs in its own namespace, which is no use of it beyond being mounted.
    if link("root").is_ok_and(|root| root != Path::new("/") && inside(root)) {
        return Some("has its root in it".into());
    }
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    for entry in entries.flatten().take(MOST_FILES.0.min(*files)) {
        *files -= 1;
        if std::fs::read_link(entry.path()).is_ok_and(inside) {
            return Some("has a file open in it".into());
        }
    }
    None
}

fn pin(pid: u32, how: String) -> Pin {
    let comm = read_file(&format!("/proc/{pid}/comm"), 4096).unwrap_or_default();
    Pin {
        pid,
        comm: String::from_utf8_lossy(comm.trim_ascii_end()).into_owned(),
        container: container_of(pid),
        how,
    }
}

/// The container a process runs in: 64 hex digits in the path of its control group.
fn container_of(pid: u32) -> Option<String> {
    container_in(&read_file(&format!("/proc/{pid}/cgroup"), 64 * 1024).ok()?)
}

fn container_in(text: &[u8]) -> Option<String> {
    let words = text.split(|b| !b.is_ascii_alphanumeric());
    let id = words
        .filter(|word| word.len() == 64)
        .find(|word| word.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
    Some(String::from_utf8_lossy(id?).into_owned())
}

fn namespace_of(pid: u32) -> Result<OsString, ReadError> {
    let path = format!("/proc/{pid}/ns/mnt");
    std::fs::read_link(&path).map(PathBuf::into_os_string).map_err(|e| ReadError::new(path, e))
}

fn processes(limit: usize) -> Result<Vec<u32>, ReadError> {
    let entries = std::fs::read_dir("/proc").map_err(|e| ReadError::new("/proc", e))?;
    Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).take(limit).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn containers_by_control_group() {
        let id = "ab".repeat(32);
        let v2 = format!("0::/kubepods.slice/pod1/cri-containerd-{id}.scope\n");
        assert_eq!(container_in(v2.as_bytes()), Some(id.clone()));
        let v1 = format!("3:cpu:/kubepods/pod1/{id}\n2:freezer:/\n");
        assert_eq!(container_in(v1.as_bytes()), Some(id));
        assert_eq!(container_in(b"0::/system.slice/containerd.service\n"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = container_in(&bytes);
        }
    }

    /// The kernel's own word: umount says EBUSY while the child is there, and goes through once it is gone.
    #[test]
    fn a_real_mount_that_a_child_keeps_busy() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: mounting needs root");
            return;
        }
        let folder = std::env::temp_dir().join(format!("pins-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let script = r#"set -e; mount -t tmpfs none "$1"; mkdir "$1/in" "$1/below"
            sh -c 'cd "$1/in"; echo works $$; exec sleep 1000' sh "$1" & works=$!
            sh -c 'exec 9>"$1/file"; echo opens $$; exec sleep 1000' sh "$1" & opens=$!
            mount -t tmpfs none "$1/below"
            sleep 0.2; if umount "$1" 2>/dev/null; then echo not busy; fi
            echo ready $$; read nothing || true
            kill $works $opens; wait || true; umount "$1/below"; umount "$1" && echo gone"#;
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut pids = BTreeMap::new();
        while !pids.contains_key("ready") {
            let line = lines.next().unwrap();
            let (what, pid) = line.split_once(' ').unwrap();
            assert_ne!(what, "not", "the kernel unmounted it");
            pids.insert(what.to_owned(), pid.parse::<u32>().unwrap());
        }
        let pins = find(&folder, pids["ready"]);
        drop(child.stdin.take());
        assert_eq!(lines.last().as_deref(), Some("gone"), "without them it can be unmounted");
        child.wait().unwrap();
        std::fs::remove_dir(&folder).unwrap();
        let how =
            |pid: u32| pins.of.iter().filter(|p| p.pid == pid).map(|p| p.how.clone()).collect::<Vec<_>>();
        assert_eq!(how(pids["works"]), ["works in it"], "{pins:?}");
        assert_eq!(how(pids["opens"]), ["has a file open in it"], "{pins:?}");
        let below = format!("has a mount below it, {}", folder.join("below").display());
        assert!(pins.of.iter().any(|p| p.how == below), "{pins:?}");
        assert_eq!(pins.of.len(), 3, "{pins:?}");
        assert_eq!(pins.reason, "");
        assert_eq!(find(&folder, std::process::id()).reason, "nothing is mounted there any more");
    }
}
