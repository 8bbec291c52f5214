//! What was found in program files, kept on a tmpfs: a start in the middle of a stall, when the tables of those files may
//! be gone from memory and their disk does not answer, still knows where to probe.
//!
//! An entry is found by what the kernel keeps of the file in memory (device, inode, size, times), so that looking for it
//! reads nothing. It is believed only if root alone can have written it, if this very build of plegscope did, and if it
//! is whole; and each of its sites only if the file has the same bytes there (see `attach/fasten.rs`).

use super::{
    binaries::Examined,
    kept::{Folder, checksum, writer},
};
use rustix::fs::{AtFlags, StatxFlags};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::File,
    io::{Read, Write},
};

/// The folder's name.
const FOLDER: &str = "plegscope-symbols";
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
    folder: Folder,
    writer: String,
}

impl Index {
    /// Opens it, and makes it where it is not there. An error says why there is none.
    pub fn open() -> Result<Index, String> {
        Ok(Index { folder: Folder::open(FOLDER)?, writer: writer()? })
    }

    #[cfg(test)]
    fn open_in(base: &std::path::Path, name: &str, writer: String) -> Result<Index, String> {
        Ok(Index { folder: Folder::open_in(base, name)?, writer })
    }

    /// What is known of a file; an error says why an entry that is there is not believed.
    pub fn find(&self, identity: &Identity) -> Result<Option<Examined>, String> {
        let Some(name) = self.folder.named(&format!(".{identity}")).into_iter().next() else {
            return Ok(None);
        };
        self.read(&name).map_err(|why| format!("the entry {name} is ignored: {why}"))
    }

    fn read(&self, name: &str) -> Result<Option<Examined>, String> {
        let mut bytes = Vec::new();
        self.folder
            .file(name)?
            .take(LARGEST as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| e.to_string())?;
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
        self.folder.make_room(MOST - 1, u64::MAX);
        self.folder.write(&format!("{build_id}.{identity}"), |mut file| file.write_all(&bytes))
    }

    /// What is known of this file is wrong.
    pub fn forget(&self, identity: &Identity) {
        self.folder.named(&format!(".{identity}")).iter().for_each(|name| self.folder.remove(name));
    }
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
        assert!(Index::open_in(std::path::Path::new("/proc"), "nothing", String::new()).is_err());
        let why = Index::open_in(std::path::Path::new("/"), "proc", String::new()).unwrap_err();
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
        assert_eq!(index.folder.named("").len(), MOST);
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
