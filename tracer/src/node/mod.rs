//! The node context: what this node is, read from `/proc`, `/sys` and runtime bundles by the child process only.
//!
//! Everything here is synchronous and bounded. What can wait for a stuck disk (`mountinfo`, bundles that are not on a
//! memory-backed file system, another process's memory) goes through [`worker::Workers`]; what cannot is read in
//! place. Parsers are functions from bytes to values, so they are tested and fuzzed with recorded text.
//!
//! Never read here: `environ` and `maps` of other processes (they wait for that process's memory map lock; `cmdline` does
//! too and is read of daemons only, on a worker, while no thread of theirs is stuck),
//! and anything below a container's rootfs or an overlay's upper folder (it would pin what is to be unmounted).

pub mod alive;
pub mod aside;
pub mod bundle;
pub mod cgroups;
pub mod clock;
pub mod contained;
pub mod containers;
pub mod disk;
pub mod exposure;
pub mod kubelet;
pub mod locks;
pub mod memory;
pub mod mounts;
pub mod own;
pub mod pins;
pub mod pressure;
pub mod procs;
pub mod residency;
pub mod shims;
pub mod stalls;
pub mod threads;
pub mod worker;
pub mod writers;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// Why something about the node could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what}: {why}{}", hint(.why))]
pub struct ReadError {
    /// The file, as a person would type it.
    pub what: String,
    /// What the kernel, or a bound of ours, said.
    pub why: io::Error,
}

impl ReadError {
    /// `what` could not be read because of `why`.
    pub fn new(what: impl Into<String>, why: impl Into<io::Error>) -> Self {
        ReadError { what: what.into(), why: why.into() }
    }

    /// `what` was read and is not what it should be.
    pub fn malformed(what: impl Into<String>, seen: impl Into<String>) -> Self {
        ReadError { what: what.into(), why: io::Error::new(io::ErrorKind::InvalidData, seen.into()) }
    }

    /// Whether the process or file is not there (any more): `ENOENT` or `ESRCH`.
    pub fn is_gone(&self) -> bool {
        self.why.kind() == io::ErrorKind::NotFound || self.why.raw_os_error() == Some(libc::ESRCH)
    }

    /// Whether the kernel does not do that: `EOPNOTSUPP`.
    pub fn is_unsupported(&self) -> bool {
        self.why.raw_os_error() == Some(libc::EOPNOTSUPP)
    }

    /// Whether the kernel refused it: `EACCES` or `EPERM`.
    pub fn is_refused(&self) -> bool {
        self.why.kind() == io::ErrorKind::PermissionDenied
    }
}

/// The cure, where there is one.
fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "; run it as root (sudo plegscope …)",
        _ => "",
    }
}

/// Reads a whole file of at most `limit` bytes. A larger one is an error, never a silent cut.
fn read_file(path: &str, limit: usize) -> Result<Vec<u8>, ReadError> {
    let file = File::open(path).map_err(|e| ReadError::new(path, e))?;
    read_open(file, limit).map_err(|e| ReadError::new(path, e))
}

/// Like [`read_file`], below an open folder. The folder of a process in `/proc`, once open, never becomes another
/// process: after its exit every read fails with `ESRCH`.
fn read_below(folder: impl AsFd, name: &str, limit: usize) -> io::Result<Vec<u8>> {
    let file = rustix::fs::openat(folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    read_open(File::from(file), limit)
}

/// Reads what is left of an open file, at most `limit` bytes.
fn read_open(file: File, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// The folder of a process in `/proc`, pinned to that process.
fn proc_folder(pid: u32) -> Result<OwnedFd, ReadError> {
    let path = format!("/proc/{pid}");
    rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| ReadError::new(path, e))
}

/// The decimal number that `bytes` consist of, nothing else.
fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_over_the_limit_is_an_error_not_a_cut() {
        let whole = read_file("/proc/self/stat", 4096).unwrap();
        assert!(whole.len() > 50);
        let error = read_file("/proc/self/stat", 20).unwrap_err();
        assert!(error.to_string().contains("larger than 20 bytes"), "{error}");
    }

    #[test]
    fn a_missing_process_is_gone() {
        // Above the largest pid_max the kernel allows (4194304).
        assert!(read_file("/proc/4999999/stat", 4096).unwrap_err().is_gone());
        assert!(proc_folder(4_999_999).unwrap_err().is_gone());
    }

    #[test]
    fn the_cure_is_named() {
        let error = ReadError::new("/proc/1/exe", io::Error::from_raw_os_error(libc::EACCES));
        assert!(error.is_refused());
        assert!(error.to_string().contains("sudo"), "{error}");
    }
}
