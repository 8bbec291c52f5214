//! This process itself: which parts of which files it is made of, and keeping all of it in memory.

use super::{ReadError, read_file};
use rustix::thread::CapabilitySet;
use std::{io, os::fd::AsRawFd};

/// More mappings than this program can come to have.
const SMALL: usize = 256 * 1024;

/// A part of a file that is mapped into this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Whether it may be read: what may not is only room between others.
    pub readable: bool,
    /// Where in the file it begins, bytes.
    pub offset: u64,
}

/// Parts of files (its program, its libraries) that are mapped into this process.
pub fn mappings() -> Result<Vec<Mapping>, ReadError> {
    Ok(parse(&String::from_utf8_lossy(&read_file("/proc/self/maps", SMALL)?)))
}

/// `START-END PERMISSIONS OFFSET DEVICE INODE PATH`; only what has a path.
fn parse(maps: &str) -> Vec<Mapping> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let permissions = words.next()?;
        let offset = words.next()?;
        words.nth(2).filter(|path| path.starts_with('/'))?;
        Some(Mapping {
            start: hex(start)?,
            end: hex(end)?,
            readable: permissions.starts_with('r'),
            offset: hex(offset)?,
        })
    };
    maps.lines().filter_map(line).collect()
}

/// Where in its file what lies at `address` is.
pub fn file_offset(address: u64) -> Option<u64> {
    let mappings = mappings().ok()?;
    let of = mappings.iter().find(|m| (m.start..m.end).contains(&address))?;
    Some(address - of.start + of.offset)
}

/// Keeps this process in memory: what it is made of is read now and locked; all else (heap, stacks, also those to come)
/// is locked as it is touched. A page that was reclaimed, or that was never read, would have to come from the disk that
/// may be stuck.
pub fn lock() -> io::Result<()> {
    const ON_FAULT: i32 = 4;
    let done = |result: i32| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: takes flags only.
    done(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | ON_FAULT) })?;
    for part in mappings().map_err(io::Error::other)?.iter().filter(|part| part.readable) {
        let len = usize::try_from(part.end - part.start).map_err(io::Error::other)?;
        // SAFETY: a range that is mapped in this process; locking changes none of its contents.
        done(unsafe { libc::mlock(part.start as *const libc::c_void, len) })?;
    }
    Ok(())
}

/// What locked memory needs, also what is allocated later.
pub const MEMORY: CapabilitySet = CapabilitySet::IPC_LOCK;

/// Gives up all capabilities but these, for the calling thread and those it starts.
pub fn keep_capabilities(keep: CapabilitySet) -> io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective &= keep;
    sets.permitted &= keep;
    sets.inheritable = CapabilitySet::empty();
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Lets go of everything the caller may wait for or want to take away: its terminal and pipes (standard input, output and
/// error become `/dev/null`), every descriptor it has passed on, its working folder.
pub fn leave_all_but(keep: &impl AsRawFd) -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for fd in 0..3 {
        // SAFETY: both descriptors are valid; dup2 replaces the second.
        if unsafe { libc::dup2(null.as_raw_fd(), fd) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let kept = [null.as_raw_fd(), keep.as_raw_fd()];
    let folder = std::fs::read_dir("/proc/self/fd")?;
    let open: Vec<i32> =
        folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && !kept.contains(fd)) {
        // SAFETY: the process has one thread and no other owner of a descriptor but the two that are kept: what was
        // opened before the fork belongs to the parent's copy, which this process never drops (it ends by `_exit`).
        unsafe { libc::close(fd) };
    }
    std::env::set_current_dir("/")
}

/// What a process of ours has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Time on a processor, of all its threads, in nanoseconds; the kernel tells it in hundredths of a second.
    pub cpu: u64,
    /// Resident memory in bytes.
    pub resident: u64,
}

/// What a process of ours has taken so far. Reads what never waits for a disk.
pub fn usage(pid: u32) -> Option<Usage> {
    let stat = read_file(&format!("/proc/{pid}/stat"), SMALL).ok()?;
    // SAFETY: takes a number and gives one.
    let (ticks, page) = unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
    usage_of(&String::from_utf8_lossy(&stat), u64::try_from(ticks).ok()?, u64::try_from(page).ok()?)
}

/// Fields 14, 15 (times in ticks) and 24 (pages) of `stat`; the second is a name in parentheses that may contain anything.
fn usage_of(stat: &str, ticks: u64, page: u64) -> Option<Usage> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
    let cpu = (field(14)? + field(15)?).checked_mul(1_000_000_000)?.checked_div(ticks)?;
    Some(Usage { cpu, resident: field(24)?.checked_mul(page)? })
}

/// The first child of this process's main thread: the warden. `None` where the kernel does not list children.
pub fn child() -> Option<u32> {
    let pid = std::process::id();
    let children = read_file(&format!("/proc/{pid}/task/{pid}/children"), SMALL).ok()?;
    String::from_utf8_lossy(&children).split_ascii_whitespace().next()?.parse().ok()
}

/// The GNU build id of this program, from memory.
pub fn build_id() -> Option<String> {
    /// # Safety
    /// For `dl_iterate_phdr` with an `Option<String>` as `data`.
    unsafe extern "C" fn first(info: *mut libc::dl_phdr_info, _: usize, data: *mut libc::c_void) -> i32 {
        // SAFETY: valid for the call, as dl_iterate_phdr promises.
        let info = unsafe { &*info };
        // SAFETY: the program headers of an object that is loaded.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        let notes = headers.iter().filter(|header| header.p_type == libc::PT_NOTE).map(|header| {
            let start = (info.dlpi_addr + header.p_vaddr) as *const u8;
            // SAFETY: a segment of notes is loaded, readable, and never changed.
            unsafe { std::slice::from_raw_parts(start, header.p_memsz as usize) }
        });
        // SAFETY: what the caller below passes.
        unsafe { *data.cast::<Option<String>>() = notes.filter_map(gnu_build_id).next() };
        // The first object is the program itself: enough.
        1
    }
    let mut found: Option<String> = None;
    // SAFETY: the callback gets `found`, which lives through the call.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut found).cast()) };
    found
}

/// `NT_GNU_BUILD_ID` (3) of the owner `GNU` among ELF notes: lengths of name and content, type, then both, padded to 4.
fn gnu_build_id(mut notes: &[u8]) -> Option<String> {
    loop {
        let word = |at: usize| Some(u32::from_le_bytes(notes.get(at..at + 4)?.try_into().ok()?) as usize);
        let (name, content, kind) = (word(0)?, word(4)?, word(8)?);
        let body = 12 + name.checked_next_multiple_of(4)?;
        let end = body.checked_add(content)?;
        if kind == 3 && notes.get(12..12 + name)? == b"GNU\0" {
            return Some(notes.get(body..end)?.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        notes = notes.get(end.checked_next_multiple_of(4)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0a0000000-55d0a0021000 r--p 00000000 08:01 1234                       /run/plegscope
55d0a0021000-55d0a0421000 r-xp 00021000 08:01 1234                       /run/plegscope
7f0000000000-7f0000021000 rw-p 00000000 00:00 0
7f0000100000-7f0000101000 ---p 001c3000 08:01 99                         /usr/lib/lib c.so (deleted)
7f0000200000-7f0000201000 rw-s 00000000 00:0e 1057                       anon_inode:bpf-map
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
";

    #[test]
    fn only_parts_of_files_count() {
        let parts = parse(MAPS);
        let brief: Vec<(u64, bool, u64)> = parts.iter().map(|m| (m.start, m.readable, m.offset)).collect();
        assert_eq!(
            brief,
            [
                (0x55d0_a000_0000, true, 0),
                (0x55d0_a002_1000, true, 0x21000),
                (0x7f00_0010_0000, false, 0x1c_3000)
            ]
        );
    }

    #[test]
    fn capabilities_that_are_given_up_are_gone_for_this_thread_and_those_it_starts() {
        let effective = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        let before = effective();
        let alone = std::thread::spawn(move || {
            keep_capabilities(MEMORY).unwrap();
            (effective(), std::thread::spawn(effective).join().unwrap())
        });
        const IPC_LOCK: u64 = 1 << 14;
        assert_eq!(alone.join().unwrap(), (before & IPC_LOCK, before & IPC_LOCK));
        assert_eq!(effective(), before, "others keep theirs");
    }

    #[test]
    fn what_a_process_takes_is_told_whatever_its_name() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 4 0 99 1000000 300 18446744073709551615 1";
        assert_eq!(usage_of(stat, 100, 4096), Some(Usage { cpu: 2_000_000_000, resident: 300 * 4096 }));
        assert_eq!(usage_of("7 (a", 100, 4096), None);
        let own = usage(std::process::id()).unwrap();
        assert!(own.resident > 1 << 20, "{own:?}");
    }

    #[test]
    fn the_build_id_is_found_among_other_notes() {
        let note = |name: &[u8], kind: u32, content: &[u8]| {
            let mut note = Vec::new();
            [name.len() as u32, content.len() as u32, kind]
                .iter()
                .for_each(|word| note.extend(word.to_le_bytes()));
            for part in [name, content] {
                note.extend(part);
                note.resize(note.len().next_multiple_of(4), 0);
            }
            note
        };
        let notes =
            [note(b"GNU\0", 1, &[0; 16]), note(b"Go\0\0", 4, b"abcde"), note(b"GNU\0", 3, &[0xab, 1, 0xff])];
        assert_eq!(gnu_build_id(&notes.concat()), Some("ab01ff".into()));
        assert_eq!(gnu_build_id(&notes[..2].concat()), None);
        let whole = notes.concat();
        for cut in 0..whole.len() - 1 {
            assert_eq!(gnu_build_id(&whole[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn own_code_is_found_in_its_file() {
        let address = parse as *const () as u64;
        let offset = file_offset(address).unwrap();
        let file = std::fs::read("/proc/self/exe").unwrap();
        // SAFETY: 16 bytes of our own code.
        let here = unsafe { std::slice::from_raw_parts(address as *const u8, 16) };
        assert_eq!(&file[offset as usize..offset as usize + 16], here);
    }
}
