//! Is a piece of a program file in memory? A uprobe on a page that is not makes the kernel read it from the disk while
//! it holds the lock that every fork() on the node needs; so a site is probed only when the answer here is yes.
//!
//! `mincore` on a mapping of the file looks without touching. The mapping is inaccessible (`PROT_NONE`), so that it is
//! not filled even when all future mappings of this process are locked (`mlockall(MCL_FUTURE)` would read the page).
//!
//! `preadv2` with `RWF_NOWAIT` is no way to ask: where a page is missing the kernel starts to read it before it answers
//! `EAGAIN` (measured on 6.18: in 600 of 600 tries the page was there 10 ms later, in 2 at once), and to find the
//! block on the disk that start itself may wait.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{AtFlags, OFlags, StatxFlags};

use super::ReadError;

/// Whether all of a piece of a file is in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Residency {
    /// All of it is in memory and up to date.
    Resident,
    /// At least one page is not.
    NotResident,
    /// It cannot be told, and why.
    Unknown(String),
}

/// The largest piece that is asked about at once.
const LARGEST: u64 = 1 << 20;

/// Opens the program file of a process for [`residency`]. Does not change its access time, which would be a write to
/// the disk that may be stuck. A network file system is asked, so run it on a worker.
pub fn open_exe(pid: u32) -> Result<File, ReadError> {
    let path = format!("/proc/{pid}/exe");
    let flags = libc::O_NOATIME | libc::O_NONBLOCK | libc::O_CLOEXEC;
    File::options().read(true).custom_flags(flags).open(&path).map_err(|error| {
        let error = match error.raw_os_error() {
            Some(libc::EPERM) => std::io::Error::new(
                error.kind(),
                format!(
                    "{error}: to open another user's file without changing its access time needs CAP_FOWNER"
                ),
            ),
            _ => error,
        };
        ReadError::new(path, error)
    })
}

/// Whether the bytes from `offset` to `offset + len` of a file opened by [`open_exe`] are in memory. Reads nothing.
pub fn residency(file: &File, offset: u64, len: u64) -> Residency {
    match look(file.as_fd(), offset, len) {
        Ok(true) => Residency::Resident,
        Ok(false) => Residency::NotResident,
        Err(why) => Residency::Unknown(why),
    }
}

fn look(file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<bool, String> {
    // Only the owner of a file, or root, may open it without access time, and only they get a true answer from
    // mincore; for all others it calls every page resident.
    let flags = rustix::fs::fcntl_getfl(file).map_err(|e| format!("its open flags cannot be read: {e}"))?;
    if !flags.contains(OFlags::NOATIME) {
        return Err("the file was not opened with O_NOATIME, so mincore may not tell the truth".into());
    }
    let in_memory = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let size = rustix::fs::statx(file, "", in_memory, StatxFlags::SIZE)
        .map_err(|e| format!("its size cannot be read: {e}"))?
        .stx_size;
    let end = offset.checked_add(len).filter(|end| len > 0 && *end <= size);
    let Some(end) = end else {
        return Err(format!("{len} bytes at {offset:#x} do not lie in a file of {size} bytes"));
    };
    let page = rustix::param::page_size();
    let start = offset - offset % page as u64;
    let span = end - start;
    let Some(span) = usize::try_from(span).ok().filter(|_| span <= LARGEST) else {
        return Err(format!("{len} bytes are more than is asked about at once ({LARGEST})"));
    };
    let mapping = Mapping::new(file, start, span).map_err(|e| format!("it cannot be mapped: {e}"))?;
    let mut pages = vec![0u8; span.div_ceil(page)];
    // SAFETY: `mapping` covers `span` bytes from a page boundary, and `pages` has one byte for each of its pages.
    if unsafe { libc::mincore(mapping.start, span, pages.as_mut_ptr()) } != 0 {
        return Err(format!("mincore failed: {}", std::io::Error::last_os_error()));
    }
    // Only the lowest bit has a meaning.
    Ok(pages.iter().all(|page| page & 1 == 1))
}

/// A piece of a file that stays in memory for as long as this lives: it is locked, and can be neither reclaimed nor
/// dropped by anybody.
#[derive(Debug)]
pub struct Pinned {
    mapping: Mapping,
    /// Where in the mapping the piece begins.
    skip: usize,
    len: usize,
}

// SAFETY: a read-only mapping that nobody else knows of; it may be read and unmapped by any thread.
unsafe impl Send for Pinned {}

/// Pins the bytes from `offset` to `offset + len`, or to the end of the file where that comes first, if they are in memory.
/// Should they be reclaimed in the very moment between the look and the lock, this waits for the disk (holding nothing
/// that anybody else needs): for a worker.
pub fn pin(file: &File, offset: u64, len: u64) -> Result<Pinned, Residency> {
    let unknown = |why: String| Residency::Unknown(why);
    let size = file.metadata().map_err(|e| unknown(format!("its size cannot be read: {e}")))?.len();
    let len = len.min(size.saturating_sub(offset));
    match residency(file, offset, len) {
        Residency::Resident => {}
        other => return Err(other),
    }
    let page = rustix::param::page_size() as u64;
    let start = offset - offset % page;
    let (skip, len) = ((offset - start) as usize, len as usize);
    let mapping = Mapping::with(file.as_fd(), start, skip + len, libc::PROT_READ)
        .map_err(|e| unknown(format!("it cannot be mapped: {e}")))?;
    // SAFETY: exactly the range that was just mapped.
    if unsafe { libc::mlock(mapping.start, mapping.len) } != 0 {
        return Err(unknown(format!("it cannot be locked: {}", std::io::Error::last_os_error())));
    }
    Ok(Pinned { mapping, skip, len })
}

impl Pinned {
    /// The bytes, as the file has them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping covers `skip + len` bytes of a file that is being executed, so it cannot be truncated.
        unsafe { std::slice::from_raw_parts(self.mapping.start.cast::<u8>().add(self.skip), self.len) }
    }
}

/// A shared mapping of a piece of a file. A private one would get the breakpoints that anybody has in the file (the kernel
/// takes it for a program that might run): its bytes would not be the file's, and mapping it would bring their pages in.
#[derive(Debug)]
struct Mapping {
    start: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes from `offset`, a multiple of the page size, so that nothing can touch them.
    fn new(file: BorrowedFd<'_>, offset: u64, len: usize) -> std::io::Result<Mapping> {
        Mapping::with(file, offset, len, libc::PROT_NONE)
    }

    /// The same with these rights.
    fn with(file: BorrowedFd<'_>, offset: u64, len: usize, rights: i32) -> std::io::Result<Mapping> {
        let offset = libc::off_t::try_from(offset).map_err(std::io::Error::other)?;
        // SAFETY: the kernel chooses a free range, so no existing mapping is touched; the memory is never accessed.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), len, rights, libc::MAP_SHARED, file.as_raw_fd(), offset)
        };
        if start == libc::MAP_FAILED {
            Err(std::io::Error::last_os_error())
        } else {
            Ok(Mapping { start, len })
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped; nothing refers to it any more.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::Advice;
    use std::io::Write;
    use std::num::NonZeroU64;
    use std::path::PathBuf;

    const PAGES: u64 = 64;

    /// A file of [`PAGES`] pages beside the test binary: a real file system, where tests are built. Removed when dropped.
    struct Sample(PathBuf, File);

    impl Sample {
        fn new(name: &str) -> Sample {
            let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
            let path = folder.join(format!("residency-{name}-{}", std::process::id()));
            let mut file = File::create(&path).unwrap();
            file.write_all(&vec![7; PAGES as usize * rustix::param::page_size()]).unwrap();
            file.sync_all().unwrap();
            let file = File::options().read(true).custom_flags(libc::O_NOATIME).open(&path).unwrap();
            Sample(path, file)
        }

        /// Drops all its pages from memory. False where the file system keeps them there for good (tmpfs).
        fn evict(&self) -> bool {
            rustix::fs::fadvise(&self.1, 0, None, Advice::DontNeed).unwrap();
            const TMPFS: u64 = 0x0102_1994;
            rustix::fs::fstatfs(&self.1).unwrap().f_type as u64 != TMPFS
        }

        /// The second opinion, from another part of the kernel: how many pages of the whole file are in the page
        /// cache (`cachestat`, since 6.5). `None` on older kernels.
        fn cached_pages(&self) -> Option<u64> {
            const CACHESTAT: libc::c_long = 451;
            let (range, mut counts) = ([0u64; 2], [0u64; 5]);
            // SAFETY: both point to structures of the size that cachestat(2) expects: 2 and 5 words.
            let status = unsafe {
                libc::syscall(CACHESTAT, self.1.as_raw_fd(), range.as_ptr(), counts.as_mut_ptr(), 0)
            };
            (status == 0).then_some(counts[0])
        }
    }

    impl Drop for Sample {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn written_pages_are_resident_evicted_ones_are_not() {
        let sample = Sample::new("evict");
        let page = rustix::param::page_size() as u64;
        assert_eq!(residency(&sample.1, 0, PAGES * page), Residency::Resident);
        assert!(sample.cached_pages().is_none_or(|pages| pages == PAGES));

        if !sample.evict() {
            return;
        }
        for at in [0, 10 * page, PAGES * page - 1] {
            assert_eq!(residency(&sample.1, at, 1), Residency::NotResident);
        }
        // Looking does not bring it in.
        assert_eq!(residency(&sample.1, 10 * page, 1), Residency::NotResident);
        assert!(sample.cached_pages().is_none_or(|pages| pages == 0));
    }

    #[test]
    fn one_missing_page_is_enough() {
        let sample = Sample::new("edge");
        let page = rustix::param::page_size() as u64;
        if !sample.evict() {
            return;
        }
        rustix::fs::fadvise(&sample.1, 0, NonZeroU64::new(PAGES * page), Advice::Random).unwrap();
        let mut byte = [0u8; 1];
        rustix::io::pread(&sample.1, &mut byte, 4 * page).unwrap();
        assert_eq!(residency(&sample.1, 4 * page, page), Residency::Resident);
        // An instruction of 8 bytes that reaches into the next page.
        assert_eq!(residency(&sample.1, 5 * page - 4, 4), Residency::Resident);
        assert_eq!(residency(&sample.1, 5 * page - 4, 8), Residency::NotResident);
    }

    #[test]
    fn a_pinned_page_stays_and_a_missing_one_is_not_read() {
        let sample = Sample::new("pin");
        let page = rustix::param::page_size() as u64;
        let pinned = pin(&sample.1, 3 * page - 8, 16).unwrap();
        assert_eq!(pinned.bytes(), [7; 16]);
        assert_eq!(pin(&sample.1, PAGES * page - 4, 16).unwrap().bytes(), [7; 4], "the file ends there");
        if !sample.evict() {
            return;
        }
        assert_eq!(residency(&sample.1, 2 * page, 2 * page), Residency::Resident);
        // Pages that were written together may be kept together; those that are gone stay so.
        let gone = (0..PAGES).filter(|at| residency(&sample.1, at * page, 1) == Residency::NotResident);
        for at in gone.collect::<Vec<_>>() {
            assert_eq!(pin(&sample.1, at * page, 16).unwrap_err(), Residency::NotResident);
            assert_eq!(residency(&sample.1, at * page, 1), Residency::NotResident);
        }
        assert_eq!(pinned.bytes(), [7; 16]);
        drop(pinned);
        sample.evict();
        assert_eq!(residency(&sample.1, 2 * page, 2 * page), Residency::NotResident);
    }

    #[test]
    fn no_answer_is_a_reason() {
        let sample = Sample::new("unknown");
        let page = rustix::param::page_size() as u64;
        for (at, len) in [(PAGES * page, 1), (0, PAGES * page + 1), (0, 0), (u64::MAX, 1)] {
            let Residency::Unknown(why) = residency(&sample.1, at, len) else { panic!("{at} {len}") };
            assert!(why.contains("do not lie in a file"), "{why}");
        }
        let plain = File::open(&sample.0).unwrap();
        assert!(matches!(residency(&plain, 0, 1), Residency::Unknown(why) if why.contains("O_NOATIME")));
    }

    #[test]
    fn the_code_that_runs_is_resident() {
        let exe = open_exe(std::process::id()).unwrap();
        assert_eq!(residency(&exe, 0, 64), Residency::Resident);
    }

    /// Locks all memory of the test process, so it runs alone: `cargo test -p tracer locked_memory -- --ignored`.
    #[test]
    #[ignore = "locks the memory of the whole test process; needs root"]
    fn looking_reads_nothing_under_locked_memory() {
        let sample = Sample::new("locked");
        if !sample.evict() {
            return;
        }
        // SAFETY: changes only how this process's memory is kept.
        assert_eq!(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) }, 0);
        assert_eq!(residency(&sample.1, 0, 1), Residency::NotResident);
        assert_eq!(residency(&sample.1, 0, 1), Residency::NotResident);
        // SAFETY: undoes the above.
        unsafe { libc::munlockall() };
    }
}
