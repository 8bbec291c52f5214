//! `/proc/PID/mountinfo`: which mount holds a path, and what an overlay is made of.
//!
//! Reading the file takes the lock of that mount namespace, so it is read through a worker only. Nothing under any mount
//! is touched: paths are resolved on the text alone.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{ReadError, number, read_file};
use crate::event::Device;

/// A node with 250 containers of 30 layers has about 1 MiB.
const LARGEST: usize = 16 << 20;

/// One line of `mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its number.
    pub id: u32,
    /// The mount it lies in.
    pub parent: u32,
    /// Device of the super block (`0:N` for file systems without one of their own).
    pub device: Device,
    /// Which folder of its file system is mounted; usually `/`.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// File-system type.
    pub fs_type: String,
    /// Options of the super block, as `name` or `name=value` each.
    pub options: Vec<OsString>,
}

impl Mount {
    /// Whether the super block has this option (without a value).
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }

    /// The value of the super block's option `name=value`.
    pub fn value(&self, name: &str) -> Option<OsString> {
        self.options.iter().find_map(|option| {
            let value = option.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(OsString::from_vec(value.to_vec()))
        })
    }
}

/// The mounts a process sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    mounts: Vec<Mount>,
    /// Lines that could not be understood.
    pub malformed: usize,
}

impl Mounts {
    /// Reads the mounts that process sees. May wait: run it on a worker.
    pub fn of(pid: u32) -> Result<Mounts, ReadError> {
        read_file(&format!("/proc/{pid}/mountinfo"), LARGEST).map(|text| Mounts::parse(&text))
    }

    /// Reads `mountinfo` text.
    pub fn parse(text: &[u8]) -> Mounts {
        let mut mounts = Mounts::default();
        for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            match parse_line(line) {
                Some(mount) => mounts.mounts.push(mount),
                None => mounts.malformed += 1,
            }
        }
        mounts
    }

    /// All mounts, covered ones included.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter()
    }

    /// The mount that is visible at exactly `point`: the topmost one, if several are stacked there.
    pub fn at(&self, point: &Path) -> Option<&Mount> {
        self.holding(point).filter(|mount| mount.point == point)
    }

    /// The mount that holds `path`: what a lookup would arrive in, with mounts that are covered by others left out.
    /// `path` must be absolute and free of `..` and symbolic links, as the kernel shows it.
    pub fn holding(&self, path: &Path) -> Option<&Mount> {
        if !path.is_absolute() {
            return None;
        }
        // The lowest mount is the one that lies in no other.
        let lowest = |mount: &&Mount| !self.mounts.iter().any(|m| m.id == mount.parent && m.id != mount.id);
        let mut current = self.mounts.iter().filter(lowest).find(|mount| mount.point == Path::new("/"))?;
        // Every step goes one mount deeper, so there are no more steps than mounts even if the text is nonsense.
        for _ in 0..self.mounts.len() {
            let inside = |mount: &&Mount| {
                mount.parent == current.id
                    && mount.id != current.id
                    && mount.point.starts_with(&current.point)
                    && path.starts_with(&mount.point)
            };
            match self.mounts.iter().filter(inside).min_by_key(|mount| mount.point.as_os_str().len()) {
                Some(next) => current = next,
                None => break,
            }
        }
        Some(current)
    }
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = parse_device(fields.next()?)?;
    let root = PathBuf::from(unescape(fields.next()?));
    let point = PathBuf::from(unescape(fields.next()?));
    let _mount_options = fields.next()?;
    // Any number of optional fields, then a lone hyphen.
    fields.by_ref().find(|field| *field == b"-")?;
    let fs_type = String::from_utf8_lossy(unescape(fields.next()?).as_bytes()).into_owned();
    let _source = fields.next()?;
    // Commas inside of a value are escaped, so it is split first.
    let options = fields.next()?.split(|b| *b == b',').map(unescape).collect();
    point.is_absolute().then_some(Mount { id, parent, device, root, point, fs_type, options })
}

/// `254:0`
fn parse_device(text: &[u8]) -> Option<Device> {
    let colon = text.iter().position(|b| *b == b':')?;
    Some(Device { major: number(text.get(..colon)?)?, minor: number(text.get(colon + 1..)?)? })
}

/// Undoes the kernel's `\ooo` escapes (space, tab, newline, backslash, comma, hash).
fn unescape(text: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let value = digits
            .filter(|d| d.iter().all(|b| matches!(b, b'0'..=b'7')))
            .map(|d| d.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0')));
        match value.and_then(|value| u8::try_from(value).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain)
}

/// What an overlay mount is made of, as far as its unmount is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The file system that holds the upper folder, which an unmount syncs: device and type. `None` when the overlay
    /// is read-only or the folder is on no mount that the process sees.
    pub upper: Option<(Device, String)>,
    /// Mounted `volatile`: its unmount does not sync.
    pub volatile: bool,
}

impl Mounts {
    /// The overlay mounted at `point`; `None` when nothing or something else is mounted there.
    pub fn overlay_at(&self, point: &Path) -> Option<Overlay> {
        let mount = self.at(point).filter(|mount| mount.fs_type == "overlay")?;
        let upper = mount.value("upperdir").map(PathBuf::from);
        let holder = upper.as_deref().and_then(|upper| self.holding(upper));
        Some(Overlay {
            upper: holder.map(|holder| (holder.device, holder.fs_type.clone())),
            // Newer kernels print the option as `fsync=volatile` (containerd issue 13256).
            volatile: mount.has("volatile") || mount.has("fsync=volatile"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NODE: &[u8] = br"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
23 22 0:21 / /proc rw,relatime shared:2 - proc proc rw
30 22 0:24 / /run rw,nosuid,nodev shared:5 master:3 propagate_from:2 - tmpfs tmpfs rw,size=814000k,mode=755
40 22 259:1 / /var/lib/containerd rw,relatime shared:9 - xfs /dev/nvme1n1 rw,attr2,inode64
41 40 7:0 / /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs rw - ext4 /dev/loop0 rw
90 30 0:55 / /run/containerd/io.containerd.runtime.v2.task/k8s.io/aa/rootfs rw,relatime - overlay overlay rw,lowerdir=/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs,upperdir=/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/9/fs,workdir=/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/9/work
91 30 0:56 / /run/containerd/io.containerd.runtime.v2.task/k8s.io/bb/rootfs rw,relatime - overlay overlay rw,lowerdir=/l,upperdir=/var/lib/containerd/x\040y\054z/fs,workdir=/w,volatile
92 30 0:57 / /run/containerd/io.containerd.runtime.v2.task/k8s.io/cc/rootfs ro - overlay overlay ro,lowerdir=/a:/b
93 22 254:0 /data /mnt/with\040space\011tab\134back rw - ext4 /dev/vda rw
";

    fn rootfs(id: &str) -> PathBuf {
        format!("/run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/rootfs").into()
    }

    fn device(major: u32, minor: u32) -> Device {
        Device { major, minor }
    }

    #[test]
    fn overlays_of_a_node() {
        let mounts = Mounts::parse(NODE);
        assert_eq!(mounts.malformed, 0);
        let upper = Some((device(7, 0), "ext4".to_owned()));
        assert_eq!(mounts.overlay_at(&rootfs("aa")), Some(Overlay { upper, volatile: false }));
        let upper = Some((device(259, 1), "xfs".to_owned()));
        assert_eq!(mounts.overlay_at(&rootfs("bb")), Some(Overlay { upper, volatile: true }));
        assert_eq!(mounts.overlay_at(&rootfs("cc")), Some(Overlay { upper: None, volatile: false }));
        assert_eq!(mounts.overlay_at(&rootfs("dd")), None);
        assert_eq!(mounts.overlay_at(Path::new("/var/lib/containerd")), None);
    }

    #[test]
    fn escapes_and_bytes_that_are_no_text() {
        let mounts = Mounts::parse(NODE);
        let path = Path::new("/mnt/with space\ttab\\back");
        assert_eq!(mounts.at(path).unwrap().id, 93);
        let upper = mounts.at(&rootfs("bb")).unwrap().value("upperdir").unwrap();
        assert_eq!(upper, "/var/lib/containerd/x y,z/fs");
        let raw = Mounts::parse(b"1 1 8:1 / / rw - ext4 d rw\n2 1 8:2 / /\xff\xfe\\040 rw - e\xfft4 d rw");
        assert_eq!(raw.at(Path::new(std::ffi::OsStr::from_bytes(b"/\xff\xfe "))).unwrap().id, 2);
        // No escape: not octal, too large, cut off.
        for odd in [&br"/a\04"[..], br"/a\899", br"/a\777", br"/a\"] {
            assert_eq!(unescape(odd).as_bytes(), odd);
        }
    }

    #[test]
    fn covered_mounts_do_not_count() {
        let text = b"1 0 8:1 / / rw - ext4 d rw\n2 1 8:2 / /a/b rw - ext4 d rw\n3 1 8:3 / /a rw - xfs d rw\n\
            4 3 8:4 / /a rw - btrfs d rw\n";
        let mounts = Mounts::parse(text);
        // /a was mounted over after /a/b, and over again.
        assert_eq!(mounts.holding(Path::new("/a/b/c")).unwrap().id, 4);
        assert_eq!(mounts.at(Path::new("/a")).unwrap().id, 4);
        assert_eq!(mounts.at(Path::new("/a/b")), None);
        // A name that merely begins alike is another folder.
        assert_eq!(mounts.holding(Path::new("/ab")).unwrap().id, 1);
        assert_eq!(mounts.holding(Path::new("a")), None);
    }

    #[test]
    fn malformed_lines_are_counted() {
        let mounts = Mounts::parse(b"1 0 8:1 / / rw - ext4 d rw\n36 35 98:0 /mnt1 /mnt2 rw\n1 2 x y\n");
        assert_eq!((mounts.mounts.len(), mounts.malformed), (1, 2));
    }

    proptest! {
        #[test]
        fn parsing_and_resolving_never_panic(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b' '), Just(b'/'), Just(b'\\'), Just(b'1')], 0..200),
            tail in "[ -~]{0,40}",
        ) {
            let mut text = b"1 1 8:1 / / rw - ext4 d rw\n".to_vec();
            text.extend_from_slice(&bytes);
            let mounts = Mounts::parse(&text);
            let _ = mounts.overlay_at(Path::new(&format!("/{tail}")));
        }

        #[test]
        fn any_tree_resolves_and_ends(parents in proptest::collection::vec((0u32..12, 0usize..4), 0..12)) {
            let points = ["/", "/a", "/a/b", "/c"];
            let mut text = String::new();
            for (id, (parent, point)) in parents.iter().enumerate() {
                text += &format!("{id} {parent} 8:{id} / {} rw - ext4 d rw\n", points[*point]);
            }
            let mounts = Mounts::parse(text.as_bytes());
            if let Some(mount) = mounts.holding(Path::new("/a/b/x")) {
                prop_assert!(Path::new("/a/b/x").starts_with(&mount.point));
            }
        }
    }

    #[test]
    fn own_mounts_agree_with_stat() {
        use std::os::linux::fs::MetadataExt;
        let mounts = Mounts::of(std::process::id()).unwrap();
        assert_eq!(mounts.malformed, 0);
        // Stacked mounts among them on many machines, where findmnt names the lower one.
        for path in ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/sys", "/sys/fs/cgroup", "/run", "/tmp"] {
            let Ok(path) = std::fs::canonicalize(path) else { continue };
            let number = std::fs::metadata(&path).unwrap().st_dev();
            let ours = mounts.holding(&path).unwrap();
            let stat = device(libc::major(number), libc::minor(number));
            assert_eq!(ours.device, stat, "{}: {ours:?}", path.display());
        }
    }
}
