//! Bounded reads of another process's memory through `/proc/PID/mem`. Read only, and never `process_vm_readv`: the
//! wait for that process's memory map lock can be killed here and cannot be there.
//!
//! A page that is not in memory is fetched by the read, from swap or from the disk the file lies on. Go's heap and
//! stacks are anonymous memory; what lies in the binary itself (its read-only data) may have to be read from a stuck
//! disk. So reads that the program can do without go through [`super::worker::Workers`].

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use super::ReadError;

/// One read never asks for more bytes than this.
pub const LARGEST_READ: usize = 1 << 20;

/// Why memory could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Fewer bytes than asked for are mapped, or the process is gone.
    #[error(
        "{got} of {wanted} bytes at {at:#x} could be read: the rest is not mapped, or the process has ended"
    )]
    Short {
        /// Address.
        at: u64,
        /// Bytes asked for.
        wanted: usize,
        /// Bytes read.
        got: usize,
    },
    /// More was asked for than is allowed: the address holds something else than expected.
    #[error("{len} bytes at {at:#x} are more than the {max} that can be right")]
    TooLong {
        /// Address.
        at: u64,
        /// Length found.
        len: u64,
        /// Length allowed.
        max: usize,
    },
    /// The kernel refused.
    #[error("reading memory at {at:#x} failed: {why}")]
    Refused {
        /// Address.
        at: u64,
        /// What it said.
        why: io::Error,
    },
}

/// Resident memory of a process, bytes; read from what the kernel counts anyway.
pub fn resident(pid: u32) -> Option<u64> {
    let text = super::read_file(&format!("/proc/{pid}/statm"), 4096).ok()?;
    let pages: u64 = super::number(text.split(|byte| *byte == b' ').nth(1)?)?;
    Some(pages * rustix::param::page_size() as u64)
}

/// A Go string header: where the bytes are, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringHeader {
    /// Address of the first byte.
    pub at: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Memory of a (64-bit, little-endian) process. A trait so that what is read from it can be tested without one.
pub trait Memory {
    /// Fills `into` from address `at`, or fails. Never a part.
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), MemoryError>;

    /// The 8-byte word at `at`.
    fn u64(&self, at: u64) -> Result<u64, MemoryError> {
        let mut word = [0; 8];
        self.read(at, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// The 4-byte word at `at`.
    fn u32(&self, at: u64) -> Result<u32, MemoryError> {
        let mut word = [0; 4];
        self.read(at, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    /// The Go string header at `at`: pointer, then length.
    fn string_header(&self, at: u64) -> Result<StringHeader, MemoryError> {
        let mut words = [0; 16];
        self.read(at, &mut words)?;
        let (pointer, len) = words.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        Ok(StringHeader { at: word(pointer), len: word(len) })
    }

    /// The bytes from `at` up to the first that is zero; `None` when they cannot be read or there are more than `max`.
    fn c_string(&self, at: u64, max: usize) -> Option<Vec<u8>> {
        const STEP: u64 = 256;
        let mut text = Vec::new();
        while text.len() <= max {
            let from = at.checked_add(text.len() as u64)?;
            // Never beyond a multiple of the step: what lies behind may not be mapped.
            let mut piece = vec![0; (STEP - from % STEP) as usize];
            self.read(from, &mut piece).ok()?;
            if let Some(end) = piece.iter().position(|byte| *byte == 0) {
                text.extend(&piece[..end]);
                return Some(text).filter(|text| text.len() <= max);
            }
            text.extend(piece);
        }
        None
    }

    /// The bytes of the Go string whose header is at `at`; an error when it is longer than `max`.
    fn string(&self, at: u64, max: usize) -> Result<Vec<u8>, MemoryError> {
        let header = self.string_header(at)?;
        let len = usize::try_from(header.len).ok().filter(|len| *len <= max);
        let len = len.ok_or(MemoryError::TooLong { at: header.at, len: header.len, max })?;
        let mut bytes = vec![0; len];
        if len > 0 {
            self.read(header.at, &mut bytes)?;
        }
        Ok(bytes)
    }
}

/// Memory of a running process. Bound to the program it ran when it was opened: after an exec or exit, every read fails.
#[derive(Debug)]
pub struct ProcessMemory(File);

impl ProcessMemory {
    /// Opens `/proc/PID/mem` for reading. Needs `CAP_SYS_PTRACE`, or the same user.
    pub fn open(pid: u32) -> Result<Self, ReadError> {
        let path = format!("/proc/{pid}/mem");
        let file = File::options().read(true).custom_flags(libc::O_CLOEXEC).open(&path);
        Ok(ProcessMemory(file.map_err(|e| ReadError::new(path, e))?))
    }
}

impl Memory for ProcessMemory {
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let wanted = into.len();
        if wanted > LARGEST_READ {
            return Err(MemoryError::TooLong { at, len: wanted as u64, max: LARGEST_READ });
        }
        let mut got = 0;
        while got < wanted {
            let rest = into.get_mut(got..).unwrap_or_default();
            match self.0.read_at(rest, at.wrapping_add(got as u64)) {
                Ok(0) => return Err(MemoryError::Short { at, wanted, got }),
                Ok(more) => got += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // EIO is what the kernel says when the first byte is not mapped; EINVAL when `at` is no offset at all.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EFAULT)) => {
                    return Err(MemoryError::Short { at, wanted, got });
                }
                Err(why) => return Err(MemoryError::Refused { at, why }),
            }
        }
        Ok(())
    }
}

/// Reads for [`crate::golang::goroutines`], which takes what can be read of a piece.
impl crate::golang::unwind::Memory for ProcessMemory {
    fn word(&mut self, address: u64) -> Option<u64> {
        Memory::u64(self, address).ok()
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> usize {
        let wanted = into.len().min(LARGEST_READ);
        match Memory::read(self, at, into.get_mut(..wanted).unwrap_or_default()) {
            Ok(()) => wanted,
            Err(MemoryError::Short { got, .. }) => got,
            Err(_) => 0,
        }
    }
}

/// Memory made up by a test: pieces at addresses, nothing between them.
#[cfg(test)]
pub(crate) struct Pieces(pub Vec<(u64, Vec<u8>)>);

#[cfg(test)]
impl Memory for Pieces {
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let found = self.0.iter().find_map(|(start, bytes)| {
            let from = usize::try_from(at.checked_sub(*start)?).ok()?;
            bytes.get(from..from.checked_add(into.len())?)
        });
        let missing = MemoryError::Short { at, wanted: into.len(), got: 0 };
        into.copy_from_slice(found.ok_or(missing)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> ProcessMemory {
        ProcessMemory::open(std::process::id()).unwrap()
    }

    #[test]
    fn a_c_string_ends_at_its_zero_and_has_a_bound() {
        let path = [b"/a".repeat(400), b"\0junk".to_vec()].concat();
        for skew in [0, 1, 255] {
            let memory = Pieces(vec![(0x1000 + skew, [path.clone(), vec![7; 300]].concat())]);
            assert_eq!(memory.c_string(0x1000 + skew, 4096).as_deref(), Some(&path[..800]), "{skew}");
            assert_eq!(memory.c_string(0x1000 + skew, 800).as_deref(), Some(&path[..800]));
            assert_eq!(memory.c_string(0x1000 + skew, 799), None);
            assert_eq!(memory.c_string(0x5000, 10), None);
        }
    }

    #[test]
    fn own_memory_reads_back() {
        let words: [u64; 2] = [0x0123_4567_89ab_cdef, 42];
        let at = words.as_ptr() as u64;
        assert_eq!(own().u64(at).unwrap(), words[0]);
        assert_eq!(own().u32(at).unwrap(), 0x89ab_cdef);
        let text = "a container id";
        let header: [u64; 2] = [text.as_ptr() as u64, text.len() as u64];
        let at = header.as_ptr() as u64;
        assert_eq!(own().string_header(at).unwrap(), StringHeader { at: header[0], len: 14 });
        assert_eq!(own().string(at, 14).unwrap(), text.as_bytes());
        let error = own().string(at, 13).unwrap_err().to_string();
        assert!(error.contains("14 bytes") && error.contains("13"), "{error}");
    }

    #[test]
    fn what_is_not_mapped_is_said_in_words() {
        for at in [0, 8, u64::MAX - 7, 1 << 63] {
            let error = own().u64(at).unwrap_err();
            assert!(matches!(error, MemoryError::Short { got: 0, .. }), "{at:#x}: {error:?}");
        }
        // Two pages over a file of one: the second is mapped and cannot be read.
        let page = rustix::param::page_size();
        let file = rustix::fs::memfd_create("short", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, page as u64).unwrap();
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
            libc::mmap(std::ptr::null_mut(), 2 * page, libc::PROT_READ, libc::MAP_SHARED, fd, 0)
        };
        assert_ne!(start, libc::MAP_FAILED);
        let edge = start as u64 + page as u64 - 8;
        assert_eq!(own().u64(edge).unwrap(), 0);
        let error = own().read(edge, &mut [0; 16]).unwrap_err();
        assert!(matches!(error, MemoryError::Short { wanted: 16, got: 8, .. }), "{error:?}");
        assert!(error.to_string().starts_with("8 of 16 bytes at 0x"), "{error}");
        // SAFETY: the mapping made above, to which nothing points any more.
        unsafe { libc::munmap(start, 2 * page) };
    }

    #[test]
    fn a_read_is_bounded() {
        let mut large = vec![0; LARGEST_READ + 1];
        let at = large.as_ptr() as u64;
        assert!(matches!(own().read(at, &mut large), Err(MemoryError::TooLong { .. })));
    }

    #[test]
    fn an_ended_process_has_no_memory() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let memory = ProcessMemory::open(child.id()).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(matches!(memory.u64(0x1000), Err(MemoryError::Short { got: 0, .. })));
    }
}
