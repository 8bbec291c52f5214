//! Who has memory waiting to be written, by control group: the containers that fill the disk, and what those that are
//! gone have left.
//!
//! Pages of a group that was removed stay charged to it, and its parent goes on counting them. So what a parent counts
//! and none of its children does, and no process of its own can have made, is of groups that are gone: of the container,
//! for instance, whose unmount is just being waited for.
//!
//! Groups with the most are looked into first, those without anything not at all. Each read makes the kernel sum up its
//! counters, and files of control groups can wait for locks: for a worker ([`super::worker::Workers`]).

use std::collections::{BTreeMap, BinaryHeap};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::cgroups::{self, DEEPEST, Hierarchies, Version};
use super::disk::Unwritten;
use super::{ReadError, clock, number, read_file};
use crate::event::{Device, Ns, Writer, Writers};

/// Groups read at most in one look.
const MOST_GROUPS: usize = 1024;
/// Time after which no further group is read.
const LONGEST: Ns = 1_500_000_000;
/// Groups told.
const MOST_TOLD: usize = 16;
/// Groups whose writes are subtracted from their parent's, at most.
const MOST_CHILDREN: usize = 64;
/// `memory.stat` has some 2 KiB, `io.stat` a line for each device.
const SMALL: usize = 256 * 1024;
/// The kernel sums up a group's counters only once they may be off by this many pages for each CPU
/// (`MEMCG_CHARGE_BATCH`, mm/memcontrol.c); less than that says nothing.
const BATCH: u64 = 64 * 4096;

/// Where to look.
struct Place {
    root: PathBuf,
    version: Version,
    /// Whether the groups tell what they wrote to each device.
    io: bool,
    /// Below this a difference of two groups says nothing, bytes.
    noise: u64,
}

/// One group that was read.
struct Group {
    path: PathBuf,
    parent: Option<usize>,
    depth: usize,
    /// Of it and all below it; `None` where the root does not tell.
    all: Option<Unwritten>,
    /// What its children count together; `None` if they were not looked at.
    below: Option<Unwritten>,
    children: Vec<usize>,
    /// Not all children could be read, so nothing follows from what they count.
    unread: bool,
    container: Option<String>,
}

/// Who has memory waiting to be written.
pub fn read(hierarchies: &Hierarchies) -> Writers {
    let unknown = |reason: &str| Writers { of: Vec::new(), left_out: 0, reason: reason.into() };
    let Some(memory) = hierarchies.with("memory") else {
        return unknown("no mounted control groups count memory");
    };
    if !hierarchies.whole {
        return unknown("plegscope sees only the control groups of its own namespace");
    }
    let hierarchical = match memory.version {
        Version::V2 => true,
        // Always so since kernel 5.11.
        Version::V1 => read_file(&memory.point.join("memory.use_hierarchy").to_string_lossy(), SMALL)
            .map_or(true, |text| text.trim_ascii() != b"0"),
    };
    if !hierarchical {
        return unknown("memory.use_hierarchy is off, so groups do not count what is below them");
    }
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    look(&Place {
        root: memory.point.clone(),
        version: memory.version,
        io: memory.version == Version::V2 && memory.has("io"),
        noise: BATCH * cpus,
    })
}

fn look(place: &Place) -> Writers {
    let until = clock::monotonic().saturating_add(LONGEST);
    let root = place.unwritten(Path::new("")).ok();
    let first = Group {
        path: PathBuf::new(),
        parent: None,
        depth: 0,
        all: root,
        below: None,
        children: Vec::new(),
        unread: false,
        container: None,
    };
    let mut groups = vec![first];
    let mut next = BinaryHeap::from([(u64::MAX, 0)]);
    let mut left_out = 0u32;
    while let Some((_, at)) = next.pop() {
        let (path, depth, container) =
            (groups[at].path.clone(), groups[at].depth, groups[at].container.clone());
        let mut below = Unwritten { dirty: 0, writeback: 0 };
        for name in children(&place.root.join(&path)) {
            if groups.len() >= MOST_GROUPS || depth >= DEEPEST || clock::monotonic() >= until {
                groups[at].unread = true;
                left_out = left_out.saturating_add(1);
                continue;
            }
            let path = path.join(&name);
            // Gone by now, or without this controller.
            let Ok(all) = place.unwritten(&path) else {
                groups[at].unread = true;
                continue;
            };
            below.dirty = below.dirty.saturating_add(all.dirty);
            below.writeback = below.writeback.saturating_add(all.writeback);
            let container = cgroups::container(&name).map(str::to_owned).or_else(|| container.clone());
            let child = groups.len();
            if sum(all) > 0 {
                next.push((sum(all), child));
            }
            groups[at].children.push(child);
            groups.push(Group {
                path,
                parent: Some(at),
                depth: depth + 1,
                all: Some(all),
                below: None,
                children: Vec::new(),
                unread: false,
                container,
            });
        }
        groups[at].below = Some(below);
        // Read again after its children: what was written meanwhile was not left by anybody.
        if let Some(before) = groups[at].all
            && sum(before) > sum(below)
            && !groups[at].children.is_empty()
            && let Ok(after) = place.unwritten(&path)
            && sum(after) < sum(before)
        {
            groups[at].all = Some(after);
        }
    }
    if groups.len() == 1 && root.is_none() {
        let reason = place.unwritten(Path::new("")).err().map(|e| e.to_string()).unwrap_or_default();
        return Writers { of: Vec::new(), left_out, reason };
    }
    Writers { of: place.tell(&groups), left_out, reason: String::new() }
}

impl Place {
    fn unwritten(&self, path: &Path) -> Result<Unwritten, ReadError> {
        let file = self.root.join(path).join("memory.stat");
        let file = file.to_string_lossy();
        let text = read_file(&file, SMALL)?;
        parse_memory_stat(self.version, &text)
            .ok_or_else(|| ReadError::malformed(&*file, "it does not count what is dirty"))
    }

    /// The groups that have the most, from all that was read.
    fn tell(&self, groups: &[Group]) -> Vec<Writer> {
        // By the group it is told of, and whether it was left by groups that are gone.
        let mut sums: BTreeMap<(usize, bool), Unwritten> = BTreeMap::new();
        for (at, group) in groups.iter().enumerate() {
            let Some(all) = group.all else { continue };
            let below = group.below.unwrap_or(Unwritten { dirty: 0, writeback: 0 });
            let own = Unwritten {
                dirty: all.dirty.saturating_sub(below.dirty),
                writeback: all.writeback.saturating_sub(below.writeback),
            };
            // Pages may have gone from dirty to under writeback between the reads, so only the sum counts.
            let rest = sum(all).saturating_sub(sum(below));
            let name = group.path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let (owner, gone) = if group.container.is_some() {
                (outermost(groups, at), false)
            } else {
                let parent = !group.children.is_empty() || cgroups::is_pod(name);
                let empty = parent && at != 0 && !group.unread && !self.has_processes(&group.path);
                if empty && rest < self.noise {
                    continue;
                }
                (at, empty)
            };
            if sum(own) > 0 && rest > 0 {
                let of = sums.entry((owner, gone)).or_insert(Unwritten { dirty: 0, writeback: 0 });
                let dirty = own.dirty.min(rest);
                of.dirty = of.dirty.saturating_add(dirty);
                of.writeback = of.writeback.saturating_add(own.writeback.min(rest - dirty));
            }
        }
        let mut most: Vec<_> = sums.into_iter().collect();
        most.sort_by_key(|(_, of)| std::cmp::Reverse(sum(*of)));
        most.truncate(MOST_TOLD);
        let writer = |((at, gone), of): ((usize, bool), Unwritten)| {
            let group = &groups[at];
            let name = group.path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let container = if gone && cgroups::is_pod(name) {
                group.children.iter().find_map(|child| groups[*child].container.clone())
            } else {
                group.container.clone()
            };
            Writer {
                cgroup: format!("/{}", group.path.display()),
                container,
                gone,
                dirty: of.dirty,
                writeback: of.writeback,
                written: self.written(groups, at),
            }
        };
        most.into_iter().map(writer).collect()
    }

    /// Whether processes are in this very group; so it is taken to be where that cannot be read.
    fn has_processes(&self, path: &Path) -> bool {
        let Ok(mut file) = File::open(self.root.join(path).join("cgroup.procs")) else { return true };
        // The first few bytes are enough; a list may have a million lines.
        file.read(&mut [0; 16]).map_or(true, |len| len > 0)
    }

    /// What a group wrote to each device: a container with all below it, others without their children.
    fn written(&self, groups: &[Group], at: usize) -> Vec<(Device, u64)> {
        let of = |at: usize| {
            let file = self.root.join(&groups[at].path).join("io.stat");
            read_file(&file.to_string_lossy(), SMALL).map(|text| parse_io_stat(&text)).unwrap_or_default()
        };
        if !self.io {
            return Vec::new();
        }
        let children = &groups[at].children;
        if groups[at].container.is_some() || children.is_empty() {
            return of(at);
        }
        if children.len() > MOST_CHILDREN || groups[at].unread {
            return Vec::new();
        }
        let mut written: BTreeMap<Device, u64> = of(at).into_iter().collect();
        for (device, bytes) in children.iter().flat_map(|child| of(*child)) {
            if let Some(all) = written.get_mut(&device) {
                *all = all.saturating_sub(bytes);
            }
        }
        written.into_iter().filter(|(_, bytes)| *bytes > 0).collect()
    }
}

/// The group of the container that this group belongs to.
fn outermost(groups: &[Group], mut at: usize) -> usize {
    while let Some(parent) = groups[at].parent
        && groups[parent].container == groups[at].container
    {
        at = parent;
    }
    at
}

fn sum(of: Unwritten) -> u64 {
    of.dirty.saturating_add(of.writeback)
}

/// Names of the groups right below a folder.
fn children(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let group = |entry: fs::DirEntry| {
        let is = entry.file_type().is_ok_and(|kind| kind.is_dir());
        is.then(|| entry.file_name().into_string().ok()).flatten()
    };
    entries.flatten().filter_map(group).collect()
}

/// What is dirty and what is under writeback in a group and all below it, from `memory.stat`: `file_dirty` and
/// `file_writeback` in version 2, `total_dirty` and `total_writeback` in version 1, bytes in both.
pub fn parse_memory_stat(version: Version, text: &[u8]) -> Option<Unwritten> {
    let (dirty, writeback): (&[u8], &[u8]) = match version {
        Version::V1 => (b"total_dirty", b"total_writeback"),
        Version::V2 => (b"file_dirty", b"file_writeback"),
    };
    Some(Unwritten { dirty: cgroups::value(text, dirty)?, writeback: cgroups::value(text, writeback)? })
}

/// Bytes written to each device, from lines `8:0 rbytes=1 wbytes=2 …` of `io.stat`; devices without any are left out.
pub fn parse_io_stat(text: &[u8]) -> Vec<(Device, u64)> {
    let parse = |line: &[u8]| {
        let mut fields = line.split(|b| *b == b' ');
        let device = fields.next()?;
        let colon = device.iter().position(|b| *b == b':')?;
        let device = Device { major: number(&device[..colon])?, minor: number(&device[colon + 1..])? };
        let bytes = number(fields.find_map(|field| field.strip_prefix(b"wbytes="))?)?;
        (bytes > 0).then_some((device, bytes))
    };
    text.split(|b| *b == b'\n').filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const POD: &str = "pod6f2f6b2e-6a3c-4b0e-9d5a-111111111111";
    const MIB: u64 = 1 << 20;

    /// A tree of files as version 2 shows groups; removed when dropped.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Tree {
            let folder = std::env::temp_dir().join(format!("plegscope-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Tree(folder)
        }

        /// A group with so many MiB dirty and under writeback, and written to device 8:0.
        fn group(&self, path: &str, dirty: u64, writeback: u64, written: u64, procs: &str) {
            let folder = self.0.join(path);
            fs::create_dir_all(&folder).unwrap();
            let stat = format!(
                "anon 1\nfile 2\nfile_mapped 0\nfile_dirty {}\nfile_writeback {}\nswapcached 0\n",
                dirty * MIB,
                writeback * MIB
            );
            fs::write(folder.join("memory.stat"), stat).unwrap();
            let io = format!("8:0 rbytes=7 wbytes={} rios=1 wios=2 dbytes=0 dios=0\n", written * MIB);
            fs::write(folder.join("io.stat"), io).unwrap();
            fs::write(folder.join("cgroup.procs"), procs).unwrap();
        }

        fn look(&self) -> Writers {
            look(&Place { root: self.0.clone(), version: Version::V2, io: true, noise: MIB / 2 })
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Last part of its path, container, gone, MiB dirty, under writeback and written.
    type Brief = (String, Option<&'static str>, bool, u64, u64, Option<u64>);

    fn brief(writers: &Writers) -> Vec<Brief> {
        let brief = |w: &Writer| {
            let written = w.written.first().map(|(_, bytes)| bytes / MIB);
            let name = w.cgroup.rsplit('/').next().unwrap_or("").to_owned();
            (name, w.container.clone(), w.gone, w.dirty / MIB, w.writeback / MIB, written)
        };
        let ids = [A, B];
        let known = |id: Option<String>| id.and_then(|id| ids.into_iter().find(|known| *known == id));
        writers.of.iter().map(brief).map(|(n, c, g, d, w, io)| (n, known(c), g, d, w, io)).collect()
    }

    #[test]
    fn containers_and_what_the_gone_ones_left() {
        let tree = Tree::new("groups");
        tree.group("", 141, 21, 0, "1\n");
        tree.group("kubepods", 130, 20, 300, "");
        tree.group(&format!("kubepods/{POD}"), 130, 20, 300, "");
        tree.group(&format!("kubepods/{POD}/{A}"), 0, 0, 0, "10\n");
        tree.group(&format!("kubepods/{POD}/cri-containerd-{B}.scope"), 30, 10, 50, "");
        // systemd in a container: its groups are the container's.
        tree.group(&format!("kubepods/{POD}/cri-containerd-{B}.scope/system.slice"), 20, 10, 40, "11\n");
        tree.group("system.slice", 10, 1, 4, "");
        tree.group("system.slice/journald.service", 10, 1, 4, "12\n");
        let writers = tree.look();
        assert_eq!((writers.left_out, writers.reason.as_str()), (0, ""));
        let container = if writers.of[0].container.as_deref() == Some(A) { A } else { B };
        let expected = [
            (POD.to_owned(), Some(container), true, 100, 10, Some(250)),
            (format!("cri-containerd-{B}.scope"), Some(B), false, 30, 10, Some(50)),
            ("journald.service".to_owned(), None, false, 10, 1, Some(4)),
            (String::new(), None, false, 1, 0, None),
        ];
        assert_eq!(brief(&writers), expected);
        assert_eq!(writers.of[0].cgroup, format!("/kubepods/{POD}"));
    }

    #[test]
    fn nothing_is_called_gone_on_doubt() {
        let tree = Tree::new("doubt");
        tree.group("", 50, 0, 0, "1\n");
        // Its own processes may have made it.
        tree.group("own", 20, 0, 0, "5\n");
        tree.group("own/child", 5, 0, 0, "6\n");
        // A child that does not count memory may have made it.
        tree.group("partly", 20, 0, 0, "");
        fs::create_dir(tree.0.join("partly/uncounted")).unwrap();
        // From dirty to under writeback between two reads.
        tree.group("moved", 10, 0, 0, "");
        tree.group("moved/child", 5, 5, 0, "7\n");
        let writers = tree.look();
        assert!(writers.of.iter().all(|w| !w.gone), "{writers:?}");
        assert_eq!(brief(&writers).iter().map(|w| w.3 + w.4).sum::<u64>(), 50);
        // The pod of a container that is gone, and of its sandbox too.
        tree.group(POD, 9, 0, 0, "");
        assert!(tree.look().of.iter().any(|w| w.gone && w.container.is_none() && w.dirty == 9 * MIB));
    }

    #[test]
    fn too_many_groups_are_counted_and_those_with_the_most_are_read() {
        let tree = Tree::new("many");
        tree.group("", 2000, 0, 0, "1\n");
        tree.group("big", 900, 0, 0, "");
        tree.group("big/one", 900, 0, 0, "8\n");
        tree.group("small", 2, 0, 0, "");
        for n in 0..MOST_GROUPS {
            let _ = fs::create_dir(tree.0.join(format!("small/{n}")));
            fs::write(tree.0.join(format!("small/{n}/memory.stat")), "file_dirty 0\nfile_writeback 0\n")
                .unwrap();
        }
        let writers = tree.look();
        assert_eq!(writers.left_out, 4);
        assert!(writers.of.len() <= MOST_TOLD);
        assert!(writers.of.iter().any(|w| w.cgroup == "/big/one" && w.dirty == 900 * MIB));
        assert!(writers.of.iter().all(|w| !w.gone));
    }

    #[test]
    fn recorded_files() {
        let v1 = b"cache 12509184\ndirty 86016\nwriteback 0\ntotal_cache 5\ntotal_dirty 215838720\ntotal_writeback 4096\n";
        let unwritten = Unwritten { dirty: 215_838_720, writeback: 4096 };
        assert_eq!(parse_memory_stat(Version::V1, v1), Some(unwritten));
        assert_eq!(parse_memory_stat(Version::V2, v1), None);
        let v2 = b"anon 1\nfile_mapped 4\nfile_dirty 8192\nfile_writeback 12288\nfile_thp 0\n";
        let unwritten = Unwritten { dirty: 8192, writeback: 12288 };
        assert_eq!(parse_memory_stat(Version::V2, v2), Some(unwritten));
        let io = b"8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n8:0 rbytes=90 wbytes=0 rios=1\n254:0\n";
        assert_eq!(parse_io_stat(io), [(Device { major: 8, minor: 16 }, 314_773_504)]);
    }

    proptest! {
        #[test]
        fn parsers_never_panic(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b':'), Just(b'\n')], 0..300)) {
            let _ = (parse_io_stat(&bytes), parse_memory_stat(Version::V1, &bytes), parse_memory_stat(Version::V2, &bytes));
        }
    }

    /// A real group of version 1; removed when dropped.
    struct Real(PathBuf);

    impl Drop for Real {
        fn drop(&mut self) {
            for path in [format!("pod/{A}"), format!("pod/{B}"), "pod".into(), String::new()] {
                let _ = fs::remove_dir(self.0.join(path.replace("pod", POD)));
            }
        }
    }

    #[test]
    fn what_a_real_process_dirtied_is_its_groups_and_then_its_pods() {
        let found = Hierarchies::read().unwrap();
        let Some(memory) = found.with("memory").filter(|m| m.version == Version::V1) else {
            println!("skipped: no control groups of version 1 count memory here");
            return;
        };
        let real = Real(memory.point.join(format!("plegscope-test-{}", std::process::id())));
        let pod = real.0.join(POD);
        for id in [A, B] {
            if let Err(error) = fs::create_dir_all(pod.join(id)) {
                println!("skipped: control groups cannot be made: {error}");
                return;
            }
        }
        // On the disk of the build: what is written to a tmpfs is never dirty.
        let file = std::env::current_exe().unwrap().with_extension("dirtied");
        const SIZE: u64 = 24 * MIB;
        // Somebody may sync all disks at any time, so it is tried more than once.
        let dirty = || {
            let script = format!(
                "echo $$ > {}/cgroup.procs && exec dd if=/dev/zero of={} bs=1M count=24 2>/dev/null",
                pod.join(A).display(),
                file.display()
            );
            assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
        };
        let of = |gone: bool| read(&found).of.into_iter().find(|w| w.gone == gone && w.cgroup.contains(POD));
        // What the file system notes about the file is dirty too.
        let right = |w: &Writer| (SIZE..SIZE + MIB).contains(&(w.dirty + w.writeback));
        let alive = (0..5).find_map(|_| {
            dirty();
            of(false).filter(right)
        });
        let alive = alive.expect("24 MiB that were dirtied are told");
        assert_eq!((alive.container.as_deref(), alive.written.as_slice()), (Some(A), &[][..]));
        assert!(of(true).is_none());
        let left = (0..5).find_map(|_| {
            fs::create_dir_all(pod.join(A)).unwrap();
            dirty();
            fs::remove_dir(pod.join(A)).unwrap();
            of(true).filter(right)
        });
        let left = left.expect("what was left is told");
        assert_eq!(left.container.as_deref(), Some(B));
        assert!(left.cgroup.ends_with(POD), "{left:?}");
        fs::remove_file(&file).unwrap();
    }
}
