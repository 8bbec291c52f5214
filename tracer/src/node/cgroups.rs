//! Control groups: where their hierarchies are mounted (version 1, version 2, or both side by side), and what the group
//! of a process says about it: frozen, or held back by a CPU quota.
//!
//! Files of control groups wait for locks that somebody may hold for long (`cgroup_mutex`), so all of this is for a
//! worker ([`super::worker::Workers`]).

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::mounts::{Mount, Mounts};
use super::{ReadError, number, read_file};

/// Every file that is read here is a few lines.
const SMALL: usize = 64 * 1024;
/// `PROC_CGROUP_INIT_INO`: the inode of the root control group namespace, the same on every boot.
const ROOT_NAMESPACE: &str = "cgroup:[4026531835]";
/// Groups lie within each other at most this deep, as far as we look.
pub const DEEPEST: usize = 32;

/// The two interfaces of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy for each controller, or for a few together.
    V1,
    /// One hierarchy for all controllers that no hierarchy of version 1 has.
    V2,
}

/// One hierarchy that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its interface.
    pub version: Version,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The group that is mounted there, as `/proc/PID/cgroup` names groups: `/` for the root, `/../..` for one above our
    /// own namespace.
    root: Vec<u8>,
    /// `memory`, `io`, …; options such as `rw` may be among them.
    controllers: Vec<String>,
}

/// The hierarchies of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies {
    all: Vec<Hierarchy>,
    /// Whether they begin at the node's root. If not, groups outside of our own namespace are missing.
    pub whole: bool,
}

/// A group of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its path below the hierarchy's root: `/system.slice/containerd.service`.
    pub path: String,
    /// Its folder.
    pub folder: PathBuf,
}

impl Hierarchy {
    /// Whether groups of this hierarchy have that controller.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }

    /// The folder of a group that `/proc/PID/cgroup` names.
    fn group(&self, path: &[u8]) -> Option<Group> {
        let below = match self.root.as_slice() {
            b"/" => path,
            root => path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with(b"/"))?,
        };
        let below = String::from_utf8_lossy(below.strip_prefix(b"/").unwrap_or(below)).into_owned();
        // A group outside of what is mounted here.
        if Path::new(&below).components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
            return None;
        }
        Some(Group { folder: self.point.join(&below), path: format!("/{below}") })
    }
}

impl Hierarchies {
    /// Finds them in our own mounts.
    pub fn read() -> Result<Hierarchies, ReadError> {
        let mounts = Mounts::of(std::process::id())?;
        // A kernel without namespaces of control groups has one root only.
        let root = fs::read_link("/proc/self/ns/cgroup").map_or(true, |ns| ns.as_os_str() == ROOT_NAMESPACE);
        Ok(Hierarchies::of(&mounts, root, |point| {
            let text =
                read_file(&point.join("cgroup.controllers").to_string_lossy(), SMALL).unwrap_or_default();
            String::from_utf8_lossy(&text).split_ascii_whitespace().map(str::to_owned).collect()
        }))
    }

    /// Finds them among `mounts`. `in_root` says whether we are in the root namespace; `controllers` reads
    /// `cgroup.controllers` of a hierarchy of version 2.
    pub fn of(mounts: &Mounts, in_root: bool, controllers: impl Fn(&Path) -> Vec<String>) -> Hierarchies {
        let candidate = |mount: &Mount| {
            let version = match mount.fs_type.as_str() {
                "cgroup" => Version::V1,
                "cgroup2" => Version::V2,
                _ => return None,
            };
            let root = mount.root.as_os_str().as_bytes().to_vec();
            let controllers = match version {
                Version::V1 => mount.options.iter().map(|o| o.to_string_lossy().into_owned()).collect(),
                Version::V2 => controllers(&mount.point),
            };
            Some(Hierarchy { version, point: mount.point.clone(), root, controllers })
        };
        let mut all: Vec<Hierarchy> = mounts.iter().filter_map(candidate).collect();
        // A pod may have its own part mounted, and the node's beside it: what begins highest comes first.
        let up = |h: &Hierarchy| h.root.split(|b| *b == b'/').filter(|part| *part == b"..").count();
        let above = |h: &Hierarchy| h.root.split(|b| *b == b'/').all(|part| part.is_empty() || part == b"..");
        all.retain(above);
        all.sort_by_key(|h| std::cmp::Reverse(up(h)));
        let whole = !all.is_empty() && (in_root || all.iter().any(|h| up(h) > 0));
        Hierarchies { all, whole }
    }

    /// The hierarchy that has this controller.
    pub fn with(&self, controller: &str) -> Option<&Hierarchy> {
        self.all.iter().find(|h| h.has(controller))
    }

    /// The groups of a process, with their hierarchies.
    fn groups(&self, pid: u32) -> Result<Vec<(&Hierarchy, Group)>, ReadError> {
        let text = read_file(&format!("/proc/{pid}/cgroup"), SMALL)?;
        let lines = text.split(|b| *b == b'\n').filter_map(parse_membership);
        let find = |(names, path): (Vec<&str>, &[u8])| {
            let hierarchy = match names.as_slice() {
                [] => self.all.iter().find(|h| h.version == Version::V2)?,
                [first, ..] => self.all.iter().find(|h| h.version == Version::V1 && h.has(first))?,
            };
            Some((hierarchy, hierarchy.group(path)?))
        };
        Ok(lines.filter_map(find).collect())
    }

    /// The group that freezes a process, if one does: it is frozen, or being frozen.
    pub fn frozen(&self, pid: u32) -> Result<Option<Group>, ReadError> {
        for (hierarchy, group) in self.groups(pid)? {
            let text =
                |name: &str| read_file(&group.folder.join(name).to_string_lossy(), SMALL).unwrap_or_default();
            let frozen = match hierarchy.version {
                // FREEZING lasts as long as one thread is held up in the kernel: all others stand still.
                Version::V1 if hierarchy.has("freezer") => {
                    matches!(text("freezer.state").trim_ascii(), b"FROZEN" | b"FREEZING")
                }
                Version::V1 => false,
                Version::V2 => {
                    value(&text("cgroup.events"), b"frozen") == Some(1)
                        || text("cgroup.freeze").trim_ascii() == b"1"
                }
            };
            if frozen {
                return Ok(Some(group));
            }
        }
        Ok(None)
    }

    /// How often the CPU quotas of a process's group and of those above it have held it back, innermost first. Empty
    /// where there are none; an error where its groups cannot be seen.
    pub fn quotas(&self, pid: u32) -> Result<Vec<Quota>, ReadError> {
        let mut quotas = Vec::new();
        let groups = self.groups(pid)?;
        let Some((hierarchy, group)) = groups.into_iter().find(|(h, _)| h.has("cpu")) else {
            return Err(ReadError::new(format!("CPU group of process {pid}"), std::io::ErrorKind::NotFound));
        };
        let above = Path::new(&group.path).ancestors().zip(group.folder.ancestors()).take(DEEPEST);
        for (path, folder) in above.take_while(|(_, folder)| folder.starts_with(&hierarchy.point)) {
            // The root, and groups for which the controller is not switched on, have no such file.
            let text = match read_file(&folder.join("cpu.stat").to_string_lossy(), SMALL) {
                Ok(text) => text,
                Err(error) if error.is_gone() => continue,
                Err(error) => return Err(error),
            };
            if let Some((periods, throttled)) = parse_quota(&text) {
                quotas.push(Quota { path: path.to_string_lossy().into_owned(), periods, throttled });
            }
        }
        Ok(quotas)
    }
}

/// How often a CPU quota has held back a group, since it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The group's path.
    pub path: String,
    /// Periods in which it wanted to run (`nr_periods`).
    pub periods: u64,
    /// Periods in which its quota was used up (`nr_throttled`).
    pub throttled: u64,
}

/// One line of `/proc/PID/cgroup`: `4:memory:/kubepods/…`, `0::/system.slice/…`. Controllers (none for version 2) and
/// path.
pub fn parse_membership(line: &[u8]) -> Option<(Vec<&str>, &[u8])> {
    let mut fields = line.splitn(3, |b| *b == b':');
    let (_, names, path) = (number::<u32>(fields.next()?)?, fields.next()?, fields.next()?);
    let names = std::str::from_utf8(names).ok()?.split(',').filter(|name| !name.is_empty()).collect();
    path.starts_with(b"/").then_some((names, path))
}

/// The value of a line `name value`.
pub fn value(text: &[u8], name: &[u8]) -> Option<u64> {
    let mut lines = text.split(|b| *b == b'\n');
    number(lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(b" "))?)
}

/// `nr_periods` and `nr_throttled` of `cpu.stat`, the same in both versions; `None` where a group cannot have a quota.
/// Both are 0 without one, and before its first period is over.
pub fn parse_quota(text: &[u8]) -> Option<(u64, u64)> {
    Some((value(text, b"nr_periods")?, value(text, b"nr_throttled")?))
}

/// The container whose group has this name: `cri-containerd-<id>.scope`, `<id>`; exactly 64 hex digits in a row.
pub fn container(name: &str) -> Option<&str> {
    name.split(|c: char| !matches!(c, '0'..='9' | 'a'..='f')).find(|part| part.len() == 64)
}

/// Whether a group of this name is a pod's, as kubelets name them: `pod<uid>` below `kubepods`, or
/// `kubepods-burstable-pod<uid>.slice`. A uid has 36 characters, that of a pod from a file 32 (kubelet
/// `pkg/kubelet/cm/pod_container_manager_linux.go`, `pkg/kubelet/config/common.go`).
pub fn is_pod(name: &str) -> bool {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let Some((before, uid)) = name.rsplit_once("pod") else { return false };
    (before.is_empty() || before.ends_with('-'))
        && matches!(uid.len(), 32 | 36)
        && uid.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    const HYBRID: &[u8] = b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";

    fn none(_: &Path) -> Vec<String> {
        Vec::new()
    }

    #[test]
    fn hybrid_hierarchies() {
        let found = Hierarchies::of(&Mounts::parse(HYBRID), true, |point| {
            assert_eq!(point, Path::new("/sys/fs/cgroup/unified"));
            vec!["hugetlb".into()]
        });
        assert!(found.whole);
        let memory = found.with("memory").unwrap();
        assert_eq!((memory.version, memory.point.to_str()), (Version::V1, Some("/sys/fs/cgroup/memory")));
        assert_eq!(found.with("cpu").unwrap().point.to_str(), Some("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(found.with("hugetlb").unwrap().version, Version::V2);
        assert_eq!(found.with("io"), None);
        let group = memory.group(b"/kubepods/pod1/x").unwrap();
        assert_eq!(group.folder.to_str(), Some("/sys/fs/cgroup/memory/kubepods/pod1/x"));
        assert_eq!(memory.group(b"/").unwrap().folder, Path::new("/sys/fs/cgroup/memory"));
        assert_eq!(memory.group(b"/../x"), None);
    }

    #[test]
    fn unified_and_seen_from_a_namespace() {
        let node =
            b"30 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        let controllers = |_: &Path| "cpu io memory".split(' ').map(str::to_owned).collect();
        let found = Hierarchies::of(&Mounts::parse(node), true, controllers);
        assert!(found.whole && found.with("memory") == found.with("io"));
        // Only our own part.
        assert!(!Hierarchies::of(&Mounts::parse(node), false, controllers).whole);
        // The node's part beside it, seen from a namespace three levels down.
        let both = b"30 22 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n\
            50 22 0:26 /../../.. /host/sys/fs/cgroup ro - cgroup2 cgroup2 rw\n\
            51 22 0:26 /../x /elsewhere ro - cgroup2 cgroup2 rw\n";
        let found = Hierarchies::of(&Mounts::parse(both), false, controllers);
        assert!(found.whole);
        let memory = found.with("memory").unwrap();
        assert_eq!(memory.point, Path::new("/host/sys/fs/cgroup"));
        let group = memory.group(b"/../../../system.slice/containerd.service").unwrap();
        assert_eq!(group.path, "/system.slice/containerd.service");
        assert_eq!(group.folder.to_str(), Some("/host/sys/fs/cgroup/system.slice/containerd.service"));
        assert_eq!(memory.group(b"/../../../../above"), None);
        assert_eq!(memory.group(b"/"), None);
        let nothing = Hierarchies::of(&Mounts::parse(b"1 0 8:1 / / rw - ext4 d rw\n"), true, none);
        assert!(!nothing.whole && nothing.with("memory").is_none());
    }

    #[test]
    fn memberships() {
        assert_eq!(parse_membership(b"4:memory:/a:b"), Some((vec!["memory"], &b"/a:b"[..])));
        assert_eq!(parse_membership(b"3:cpu,cpuacct:/"), Some((vec!["cpu", "cpuacct"], &b"/"[..])));
        assert_eq!(parse_membership(b"0::/x"), Some((vec![], &b"/x"[..])));
        assert_eq!(parse_membership(b""), None);
        assert_eq!(parse_membership(b"x::/"), None);
    }

    #[test]
    fn names_of_containers_and_pods() {
        assert_eq!(container(ID), Some(ID));
        assert_eq!(container(&format!("cri-containerd-{ID}.scope")), Some(ID));
        assert_eq!(container(&format!("kubepods-pod1.slice:cri-containerd:{ID}")), Some(ID));
        assert_eq!(container(&format!("{ID}0")), None);
        assert_eq!(container("containerd.service"), None);
        for pod in [
            "pod6f2f6b2e-6a3c-4b0e-9d5a-111111111111",
            "pod0123456789abcdef0123456789abcdef",
            "kubepods-pod6f2f6b2e_6a3c_4b0e_9d5a_111111111111.slice",
            "kubelet-kubepods-burstable-pod6f2f6b2e_6a3c_4b0e_9d5a_111111111111.slice",
        ] {
            assert!(is_pod(pod), "{pod}");
        }
        for other in [
            "kubepods",
            "kubepods-burstable.slice",
            "podman.slice",
            "pod",
            "tripod0123456789abcdef0123456789abcdef",
        ] {
            assert!(!is_pod(other), "{other}");
        }
    }

    #[test]
    fn recorded_cpu_stat() {
        let v1 = b"nr_periods 40\nnr_throttled 37\nthrottled_time 3893705515\nnr_bursts 0\nburst_time 0\n";
        assert_eq!(parse_quota(v1), Some((40, 37)));
        let v2 =
            b"usage_usec 8\nuser_usec 5\nsystem_usec 3\nnr_periods 10\nnr_throttled 9\nthrottled_usec 77\n";
        assert_eq!(parse_quota(v2), Some((10, 9)));
        assert_eq!(parse_quota(b"usage_usec 8\nnr_periods 0\nnr_throttled 0\n"), Some((0, 0)));
        assert_eq!(parse_quota(b"usage_usec 8\n"), None);
    }

    proptest! {
        #[test]
        fn parsers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), name in ".{0,90}") {
            let _ = (parse_membership(&bytes), parse_quota(&bytes), value(&bytes, b"x"), container(&name), is_pod(&name));
            let _ = Hierarchies::of(&Mounts::parse(HYBRID), true, none).with("memory").map(|h| h.group(&bytes));
        }
    }

    #[test]
    fn our_own_groups_are_where_the_kernel_says() {
        let found = Hierarchies::read().unwrap();
        let pid = std::process::id();
        for (hierarchy, group) in found.groups(pid).unwrap() {
            let procs = fs::read_to_string(group.folder.join("cgroup.procs")).unwrap();
            assert!(procs.lines().any(|line| line == pid.to_string()), "{hierarchy:?} {group:?}");
        }
        assert_eq!(found.frozen(pid).unwrap(), None);
    }
}
