//! Folders on a tmpfs in which plegscope keeps what it has found in program files. What is there is believed only if root
//! alone can have written it; it is gone after a reboot, like the inode numbers it is found by.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use std::{fs::File, os::fd::OwnedFd, path::Path};

/// Where the folders are.
const BASE: &str = "/run";
/// Files looked at in one folder; only root can have put more there.
const LOOKED_AT: usize = 256;

/// A folder that belongs to root alone.
#[derive(Debug)]
pub struct Folder(OwnedFd);

/// A file in it.
struct Entry {
    name: String,
    written: (i64, i64),
    /// Bytes of memory it takes.
    taken: u64,
}

impl Folder {
    /// Opens it, and makes it where it is not there. An error says why there is none.
    pub fn open(name: &str) -> Result<Folder, String> {
        Folder::open_in(Path::new(BASE), name)
    }

    pub(super) fn open_in(base: &Path, name: &str) -> Result<Folder, String> {
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
        Ok(Folder(folder))
    }

    /// Opens a file for reading, if it belongs to root alone.
    pub fn file(&self, name: &str) -> Result<File, String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, name, flags, Mode::empty()).map_err(|e| e.to_string())?;
        let facts = rustix::fs::fstat(&file).map_err(|e| e.to_string())?;
        let regular = FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile;
        if !regular || facts.st_uid != 0 || facts.st_mode & 0o077 != 0 || facts.st_nlink != 1 {
            return Err("it does not belong to root alone".into());
        }
        Ok(File::from(file))
    }

    /// Makes a file that is there as a whole or not at all.
    pub fn write(&self, name: &str, fill: impl FnOnce(&File) -> std::io::Result<()>) -> Result<(), String> {
        let temporary = format!("new-{}", std::process::id());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let write = || {
            let file = rustix::fs::openat(&self.0, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
            fill(&File::from(file))?;
            rustix::fs::renameat(&self.0, &temporary, &self.0, name)?;
            Ok::<_, std::io::Error>(())
        };
        write().map_err(|error| {
            self.remove(&temporary);
            error.to_string()
        })
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) {
        // Gone already is as good.
        let _ = rustix::fs::unlinkat(&self.0, name, AtFlags::empty());
    }

    /// Names with this ending.
    pub fn named(&self, ending: &str) -> Vec<String> {
        self.entries().into_iter().map(|entry| entry.name).filter(|name| name.ends_with(ending)).collect()
    }

    /// Removes the oldest until at most so many files are left, of so many bytes together; what a killed plegscope left
    /// half-written is among them in time.
    pub fn make_room(&self, most: usize, bytes: u64) {
        let mut entries = self.entries();
        entries.sort_by_key(|entry| entry.written);
        let (mut left, mut taken) = (entries.len(), entries.iter().map(|entry| entry.taken).sum::<u64>());
        for entry in entries {
            if left <= most && taken <= bytes {
                break;
            }
            self.remove(&entry.name);
            left -= 1;
            taken -= entry.taken;
        }
    }

    /// Bytes that the file system has left.
    pub fn free(&self) -> u64 {
        rustix::fs::fstatvfs(&self.0).map_or(0, |facts| facts.f_bavail.saturating_mul(facts.f_frsize))
    }

    fn entries(&self) -> Vec<Entry> {
        let Ok(folder) = Dir::read_from(&self.0) else { return Vec::new() };
        let entry = |entry: rustix::fs::DirEntry| {
            let name = entry.file_name().to_str().ok().filter(|name| !name.starts_with('.'))?.to_owned();
            let facts = rustix::fs::statat(&self.0, &name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            let taken = 512 * u64::try_from(facts.st_blocks).unwrap_or(0);
            Some(Entry { name, written: (facts.st_mtime, facts.st_mtime_nsec as i64), taken })
        };
        folder.flatten().take(LOOKED_AT).filter_map(entry).collect()
    }
}

/// Version and build of this plegscope: what another one has written is of no use.
pub fn writer() -> Result<String, String> {
    let build = crate::node::own::build_id().ok_or("this plegscope has no build id")?;
    Ok(format!("{} {build}", env!("CARGO_PKG_VERSION")))
}

/// FNV-1a. Not against an attacker (only root can write here), but against damage.
pub fn checksum(bytes: &[u8]) -> [u8; 8] {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step).to_le_bytes()
}
