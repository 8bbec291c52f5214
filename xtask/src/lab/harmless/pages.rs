//! Which pages of a file are in memory (`mincore`), and how to get them out (`posix_fadvise`).

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// Size of a page on x86-64.
pub const PAGE: u64 = 4096;

/// For each page of the file whether it is in memory. Reads nothing of it.
pub fn resident(path: &Path) -> Result<Vec<bool>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let size = file.metadata().context("asking for its size")?.len();
    ensure!(size > 0, "{} is empty", path.display());
    let mut pages = vec![0u8; size.div_ceil(PAGE) as usize];
    // SAFETY: the kernel chooses the place of an inaccessible mapping that nobody else knows; `pages` has a byte for each
    // of its pages; it is unmapped with its own length.
    unsafe {
        let none = (libc::PROT_NONE, libc::MAP_PRIVATE);
        let start = libc::mmap(std::ptr::null_mut(), size as usize, none.0, none.1, file.as_raw_fd(), 0);
        ensure!(start != libc::MAP_FAILED, "mapping {}: {}", path.display(), io::Error::last_os_error());
        let asked = libc::mincore(start, size as usize, pages.as_mut_ptr());
        let error = io::Error::last_os_error();
        libc::munmap(start, size as usize);
        ensure!(asked == 0, "mincore of {}: {error}", path.display());
    }
    Ok(pages.iter().map(|page| page & 1 == 1).collect())
}

/// Drops the pages of a file that nobody uses from memory; what a process has mapped and touched stays.
pub fn evict(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    // What is not written yet stays.
    file.sync_all().with_context(|| format!("syncing {}", path.display()))?;
    drop_clean(path)
}

/// The same without waiting for the disk: what is not written yet stays.
pub fn drop_clean(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    // SAFETY: a valid descriptor; the call has no effect on memory of ours.
    let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    ensure!(result == 0, "evicting {}: {}", path.display(), io::Error::from_raw_os_error(result));
    Ok(())
}

/// Pages that are in memory in `after` and were not in `before`.
pub fn came(before: &[bool], after: &[bool]) -> Vec<usize> {
    (0..before.len()).filter(|page| !before[*page] && after.get(*page) == Some(&true)).collect()
}
