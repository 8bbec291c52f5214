//! What was found in program files, kept on a tmpfs: a start in the middle of a stall, when the tables of those files may
//! be gone from memory and their disk does not answer, still knows where to probe.
//!
//! An entry is found by what the kernel keeps of the file in memory (device, inode, size, times), so that looking for it
//! reads nothing. It is believed only if root alone can have written it, if this very build of plegscope did, and if it
//! is whole; and each of its sites only if the file has the same bytes there (see `attach/fasten.rs`).

use super::binaries::Examined;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxFlags};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    path::Path,
};

/// Where it is kept; gone after a reboot, like the inode numbers.
const FOLDER: (&str, &str) = ("/run", "plegscope-symbols");
/// Entries kept at most; the oldest goes.
const MOST: usize = 64;
/// Bytes of one entry at most. Those of containerd and the kubelet have 5 to 10 kB.
const LARGEST: usize = 128 * 1024;

/// What tells one file from all others since the node has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: (u32, u32),
    inode: u64,
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

impl Identity {
    /// Of an open file; asks no disk and no server.
    pub fn of(file: &File) -> Option<Identity> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let facts = rustix::fs::statx(file, "", flags, StatxFlags::BASIC_STATS).ok()?;
        Some(Identity {
            device: (facts.stx_dev_major, facts.stx_dev_minor),
            inode: facts.stx_ino,
            size: facts.stx_size,
            modified: (facts.stx_mtime.tv_sec, facts.stx_mtime.tv_nsec),
            changed: (facts.stx_ctime.tv_sec, facts.stx_ctime.tv_nsec),
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((major, minor), (modified, m), (changed, c)) = (self.device, self.modified, self.changed);
        let (inode, size) = (self.inode, self.size);
        write!(f, "{major:x}-{minor:x}-{inode:x}-{size:x}-{modified:x}-{m:x}-{changed:x}-{c:x}")
    }
}

/// One file's entry, as it is written behind its checksum.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// Version and build of the plegscope that wrote it.
    writer: String,
    examined: Examined,
}

/// The folder.
#[derive(Debug)]
pub struct Index {
    folder: OwnedFd,
    writer: String,
}

impl Index {
    /// Opens it, and makes it where it is not there. An error says why there is none.
    pub fn open() -> Result<Index, String> {
        let build = crate::node::own::build_id().ok_or("this plegscope has no build id")?;
        Index::open_in(Path::new(FOLDER.0), FOLDER.1, format!("{} {build}", env!("CARGO_PKG_VERSION")))
    }

    fn open_in(base: &Path, name: &str, writer: String) -> Result<Index, String> {
        const TMPFS: u64 = 0x0102_1994;
        const RAMFS: u64 = 0x8584_58f6;
        let path = base.join(name);
        let told = |what: &str| format!("{} {what}", path.display());
        let failed = |error: rustix::io::Errno| told(&format!("cannot be used: {error}"));
        let on_tmpfs = |folder: &OwnedFd| match rustix::fs::fstatfs(folder).map_err(failed)?.f_type as u64 {
            TMPFS | RAMFS => Ok(()),
            _ => Err(told("would not be on a tmpfs, and might wait for the disk itself")),
        };
        if !rustix::process::geteuid().is_root() {
            return Err(told("is for root"));
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let base = rustix::fs::open(base, flags, Mode::empty()).map_err(failed)?;
        on_tmpfs(&base)?;
        match rustix::fs::mkdirat(&base, name, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(failed(error)),
        }
        let folder = rustix::fs::openat(&base, name, flags, Mode::empty()).map_err(failed)?;
        on_tmpfs(&folder)?;
        let facts = rustix::fs::fstat(&folder).map_err(failed)?;
        if facts.st_uid != 0 || facts.st_mode & 0o077 != 0 {
            return Err(told("does not belong to root alone, so it is not believed"));
        }
        Ok(Index { folder, writer })
    }

    /// What is known of a file; an error says why an entry that is there is not believed.
    pub fn find(&self, identity: &Identity) -> Result<Option<Examined>, String> {
        let ending = format!(".{identity}");
        let Some((name, _)) = self.names().into_iter().find(|(name, _)| name.ends_with(&ending)) else {
            return Ok(None);
        };
        self.read(&name).map_err(|why| format!("the entry {name} is ignored: {why}"))
    }

    fn read(&self, name: &str) -> Result<Option<Examined>, String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.folder, name, flags, Mode::empty()).map_err(|e| e.to_string())?;
        let facts = rustix::fs::fstat(&file).map_err(|e| e.to_string())?;
        let regular = FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile;
        if !regular || facts.st_uid != 0 || facts.st_mode & 0o077 != 0 || facts.st_nlink != 1 {
            return Err("it does not belong to root alone".into());
        }
        let mut bytes = Vec::new();
        File::from(file).take(LARGEST as u64 + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        let entry = unpack(&bytes).ok_or("it is damaged")?;
        // Another version looks for other functions and writes other cookies: its entry is of no use, and no damage.
        Ok((entry.writer == self.writer).then_some(entry.examined))
    }

    /// Keeps what was found in a file.
    pub fn keep(&self, identity: &Identity, examined: &Examined) -> Result<(), String> {
        let Some(build_id) = &examined.build_id else { return Err("the program has no build id".into()) };
        let build_id: String = build_id.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
        let entry = Entry { writer: self.writer.clone(), examined: examined.clone() };
        let bytes = pack(&entry).ok_or_else(|| format!("it would take more than {LARGEST} bytes"))?;
        self.prune(MOST - 1);
        let temporary = format!("new-{}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let write = || {
            let file = rustix::fs::openat(&self.folder, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
            File::from(file).write_all(&bytes)?;
            let name = format!("{build_id}.{identity}");
            rustix::fs::renameat(&self.folder, &temporary, &self.folder, &name)?;
            Ok::<_, std::io::Error>(())
        };
        write().map_err(|error| {
            self.remove(&temporary);
            error.to_string()
        })
    }

    /// What is known of this file is wrong.
    pub fn forget(&self, identity: &Identity) {
        let ending = format!(".{identity}");
        self.names()
            .iter()
            .filter(|(name, _)| name.ends_with(&ending))
            .for_each(|(name, _)| self.remove(name));
    }

    fn remove(&self, name: &str) {
        // Gone already is as good.
        let _ = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
    }

    /// Removes the oldest until `most` are left; what a killed plegscope left half-written is among them in time.
    fn prune(&self, most: usize) {
        let mut names = self.names();
        names.sort_by_key(|(_, written)| *written);
        let surplus = names.len().saturating_sub(most);
        names.iter().take(surplus).for_each(|(name, _)| self.remove(name));
    }

    /// All names, with the time each was written.
    fn names(&self) -> Vec<(String, (i64, i64))> {
        /// Only root can have put more there.
        const LOOKED_AT: usize = 4 * MOST;
        let Ok(folder) = Dir::read_from(&self.folder) else { return Vec::new() };
        let entries = folder.flatten().take(LOOKED_AT);
        let name = |entry: rustix::fs::DirEntry| {
            let name = entry.file_name().to_str().ok().filter(|name| !name.starts_with('.'))?.to_owned();
            let facts = rustix::fs::statat(&self.folder, &name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            Some((name, (facts.st_mtime, facts.st_mtime_nsec as i64)))
        };
        entries.filter_map(name).collect()
    }
}

/// FNV-1a. Not against an attacker (only root can write here), but against damage.
fn checksum(bytes: &[u8]) -> [u8; 8] {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step).to_le_bytes()
}

fn pack(entry: &Entry) -> Option<Vec<u8>> {
    let body = postcard::to_stdvec(entry).ok()?;
    let bytes = [checksum(&body).as_slice(), &body].concat();
    (bytes.len() <= LARGEST).then_some(bytes)
}

fn unpack(bytes: &[u8]) -> Option<Entry> {
    let (sum, body) = bytes.split_first_chunk::<8>()?;
    if bytes.len() > LARGEST || checksum(body) != *sum {
        return None;
    }
    match postcard::take_from_bytes(body).ok()? {
        (entry, []) => Some(entry),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bpf::load::{GoProgram, SITE_BYTES, SiteRequest},
        event::{Kind, Role},
        golang::{buildinfo::GoVersion, offsets::Offsets},
        warden::binaries::Target,
    };
    use proptest::prelude::*;
    use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

    fn examined() -> Examined {
        let site = SiteRequest {
            program: GoProgram::Operation,
            offset: 0x1234,
            address: 0x40_1234,
            cookie: 7 << 40,
            bytes: [0x76; SITE_BYTES],
            stepped: true,
        };
        let target = |sites| Target {
            kind: Kind::InitMethod,
            what: "shim: Init: Delete".into(),
            function: "process.(*Init).Delete".into(),
            sites,
            emulated: 1,
            note: String::new(),
        };
        Examined {
            role: Role::Shim,
            go_version: "go1.19.8".into(),
            version: Some("1.6.20".into()),
            health: None,
            all_goroutines: Some(0x1234),
            build_id: Some("abc123".into()),
            offsets: Offsets::of(GoVersion::parse("go1.19.8").unwrap()).ok(),
            entry: 0x40_0000,
            note: String::new(),
            targets: vec![target(Ok(vec![site; 3])), target(Err("the program does not have it".into()))],
        }
    }

    /// A folder on a tmpfs, removed when dropped. `None` where a test cannot have one.
    struct Memory(PathBuf);

    impl Memory {
        fn new(name: &str) -> Option<Memory> {
            if !rustix::process::geteuid().is_root() {
                eprintln!("not tried: only root has an index");
                return None;
            }
            let folder = PathBuf::from(format!("/dev/shm/plegscope-test-{name}-{}", std::process::id()));
            fs::create_dir(&folder).unwrap();
            Some(Memory(folder))
        }
        fn index(&self, writer: &str) -> Result<Index, String> {
            Index::open_in(&self.0, "index", writer.into())
        }
        fn only_file(&self) -> PathBuf {
            let mut files = fs::read_dir(self.0.join("index")).unwrap();
            let file = files.next().unwrap().unwrap().path();
            assert!(files.next().is_none());
            file
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn identity() -> Identity {
        Identity::of(&File::open("/proc/self/exe").unwrap()).unwrap()
    }

    #[test]
    fn what_was_kept_is_found_by_the_same_build_only() {
        let Some(memory) = Memory::new("keep") else { return };
        let index = memory.index("1 a").unwrap();
        assert_eq!(index.find(&identity()), Ok(None));
        index.keep(&identity(), &examined()).unwrap();
        assert_eq!(index.find(&identity()), Ok(Some(examined())));
        assert_eq!(memory.index("1 a").unwrap().find(&identity()), Ok(Some(examined())));
        assert_eq!(memory.index("1 b").unwrap().find(&identity()), Ok(None));
        for other in [
            Identity { inode: 1, ..identity() },
            Identity { changed: (identity().changed.0, identity().changed.1 ^ 1), ..identity() },
            Identity { size: identity().size + 1, ..identity() },
        ] {
            assert_eq!(index.find(&other), Ok(None));
        }
        let file = memory.only_file();
        assert!(file.file_name().unwrap().to_str().unwrap().starts_with("abc123."));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        index.forget(&identity());
        assert_eq!(index.find(&identity()), Ok(None));
        let without = Examined { build_id: None, ..examined() };
        assert!(index.keep(&identity(), &without).unwrap_err().contains("build id"));
    }

    #[test]
    fn nobody_but_root_can_put_anything_there() {
        let Some(memory) = Memory::new("trust") else { return };
        let index = memory.index("1 a").unwrap();
        index.keep(&identity(), &examined()).unwrap();
        let file = memory.only_file();
        let owner =
            |path: &std::path::Path, user: u32| std::os::unix::fs::chown(path, Some(user), None).unwrap();
        let mode = |path: &std::path::Path, bits: u32| {
            fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap()
        };
        let refused = || index.find(&identity()).is_err_and(|why| why.contains("ignored"));
        owner(&file, 65534);
        assert!(refused());
        owner(&file, 0);
        mode(&file, 0o620);
        assert!(refused());
        mode(&file, 0o600);
        assert_eq!(index.find(&identity()), Ok(Some(examined())));
        let elsewhere = memory.0.join("elsewhere");
        fs::rename(&file, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert!(refused(), "a link");
        let folder = memory.0.join("index");
        for (user, bits) in [(65534, 0o700), (0, 0o770), (0, 0o707)] {
            mode(&folder, bits);
            owner(&folder, user);
            assert!(memory.index("1 a").unwrap_err().contains("root alone"), "{user} {bits:o}");
        }
        owner(&folder, 0);
        mode(&folder, 0o700);
        fs::rename(&folder, memory.0.join("real")).unwrap();
        std::os::unix::fs::symlink(memory.0.join("real"), &folder).unwrap();
        assert!(memory.index("1 a").is_err(), "a link");
    }

    #[test]
    fn only_a_tmpfs_will_do() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not tried: only root has an index");
            return;
        }
        assert!(Index::open_in(Path::new("/proc"), "nothing", String::new()).is_err());
        let why = Index::open_in(Path::new("/"), "proc", String::new()).unwrap_err();
        assert!(why.contains("not be on a tmpfs"), "{why}");
    }

    #[test]
    fn it_does_not_grow() {
        let Some(memory) = Memory::new("bound") else { return };
        let index = memory.index("1 a").unwrap();
        index.keep(&Identity { inode: 0, ..identity() }, &examined()).unwrap();
        // Files that are written one after the other may get the same time.
        let first = File::options().write(true).open(memory.only_file()).unwrap();
        first.set_modified(std::time::UNIX_EPOCH).unwrap();
        for inode in 1..MOST as u64 + 20 {
            index.keep(&Identity { inode, ..identity() }, &examined()).unwrap();
        }
        assert_eq!(index.names().len(), MOST);
        assert_eq!(index.find(&Identity { inode: 0, ..identity() }), Ok(None), "the oldest has gone");
        let newest = Identity { inode: MOST as u64 + 19, ..identity() };
        assert_eq!(index.find(&newest), Ok(Some(examined())));
    }

    #[test]
    fn damage_is_not_believed() {
        let entry = Entry { writer: "1 a".into(), examined: examined() };
        let bytes = pack(&entry).unwrap();
        assert!(unpack(&bytes).is_some());
        for cut in 0..bytes.len() {
            assert!(unpack(&bytes[..cut]).is_none());
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(unpack(&changed).is_none(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_at_all_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = unpack(&[checksum(&bytes).as_slice(), &bytes].concat());
        }
    }
}
