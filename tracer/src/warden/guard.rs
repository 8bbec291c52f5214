//! Looks before anything is attached: whether a process is in the middle of something that would make the attaching
//! wait, and how long it has taken so far.
//!
//! To attach, the kernel takes the memory lock (`mmap_lock`) of each process that maps the file, one after the other, and
//! meanwhile holds a lock that every `fork()` on the node needs. A thread that waits for the disk with that memory lock
//! held (a page fault, an `mmap`) would so stop the whole node until the disk answers.

use crate::node::threads::{self, Site};
use std::time::{Duration, Instant};

/// Threads that are looked at before one attaching.
const MOST_THREADS: usize = 20_000;

/// A batch should take a few ms. One that takes longer has met something; the next one might meet it too.
const BATCH_PATIENCE: Duration = Duration::from_millis(250);
/// All batches of one look at the node together.
const PATIENCE: Duration = Duration::from_secs(5);
/// After that nothing is attached for this long.
const REST: Duration = Duration::from_secs(10);

/// Kernel functions below which a thread holds its process's memory lock, or may.
const HOLDERS: [&str; 27] = [
    "asm_exc_page_fault",
    "exc_page_fault",
    "do_user_addr_fault",
    "do_page_fault",
    "__do_page_fault",
    "handle_mm_fault",
    "__handle_mm_fault",
    "filemap_fault",
    "__do_fault",
    "do_swap_page",
    "fixup_user_fault",
    "faultin_page",
    "__get_user_pages",
    "__mm_populate",
    "vm_mmap_pgoff",
    "mmap_region",
    "do_mmap",
    "__vm_munmap",
    "do_vmi_munmap",
    "do_munmap",
    "do_mprotect_pkey",
    "do_madvise",
    "__do_sys_brk",
    "__do_sys_mremap",
    "do_mlock",
    "dup_mmap",
    "exit_mmap",
];

/// System calls that take the memory lock for themselves: mmap, mprotect, munmap, brk, mremap, msync, madvise, mlock,
/// munlock, mlockall, remap_file_pages, mlock2.
const MEMORY_CALLS: [i64; 12] = [9, 10, 11, 12, 25, 26, 28, 149, 150, 151, 216, 325];
/// System calls that wait for the disk without touching the caller's memory: fsync, fdatasync, sync, umount2, syncfs; and
/// those in which a parent waits for its child to exec: clone, vfork, clone3.
const HARMLESS_CALLS: [i64; 8] = [74, 75, 162, 166, 306, 56, 58, 435];

/// Whether a thread in uninterruptible sleep may hold its process's memory lock: why.
pub fn holds_memory_lock(site: &Site) -> Option<String> {
    if site.site.state != 'D' {
        return None;
    }
    let thread = format!("thread {} of process {} waits for the disk", site.site.tid, site.site.pid);
    if let Some(function) = site.site.kernel_stack.iter().find(|f| HOLDERS.contains(&f.as_str())) {
        return Some(format!("{thread} in {function}"));
    }
    if !site.site.kernel_stack.is_empty() {
        return None;
    }
    // Without its stack, the system call must do.
    match site.site.syscall {
        Some(call) if HARMLESS_CALLS.contains(&call) => None,
        Some(call) if MEMORY_CALLS.contains(&call) => {
            Some(format!("{thread} in a change of its memory (system call {call})"))
        }
        Some(call) => Some(format!("{thread} in system call {call}, and its kernel stack cannot be read")),
        None => Some(format!("{thread} outside of a system call: a page fault")),
    }
}

/// Looks at all threads of processes. May wait where a process is in the middle of an exec: for a worker.
pub fn look(pids: &[u32]) -> Result<(), String> {
    let mut room = MOST_THREADS;
    for pid in pids {
        let Ok(tids) = threads::of_process(*pid, room) else { continue };
        room -= tids.len().min(room);
        for tid in tids {
            // Gone is harmless, and so is one that runs again.
            if threads::state(*pid, tid) != Some('D') {
                continue;
            }
            let stuck = threads::look(*pid, tid).ok().filter(|site| site.site.state == 'D');
            if let Some(why) = stuck.as_ref().and_then(holds_memory_lock) {
                return Err(format!(
                    "{why}; attaching would wait for it and hold up every fork() on the node"
                ));
            }
        }
    }
    Ok(())
}

/// How fast attaching goes. Pure.
#[derive(Debug, Default)]
pub struct Pace {
    spent: Duration,
    rest: Option<(Instant, String)>,
}

impl Pace {
    /// Why nothing is attached now.
    pub fn refusal(&mut self, now: Instant) -> Option<&str> {
        if self.rest.as_ref().is_some_and(|(until, _)| now >= *until) {
            *self = Pace::default();
        }
        self.rest.as_ref().map(|(_, why)| why.as_str())
    }

    /// A batch of `what` was attached in this time.
    pub fn took(&mut self, what: &str, took: Duration, now: Instant) {
        self.spent += took;
        let (ms, all) = (took.as_millis(), self.spent.as_millis());
        let why = if took > BATCH_PATIENCE {
            format!("attaching to {what} took {ms} ms, which holds up every fork() on the node")
        } else if self.spent > PATIENCE {
            format!("attaching has taken {all} ms by now")
        } else {
            return;
        };
        self.rest = Some((now + REST, why));
    }

    /// Another look at the node begins.
    pub fn begin(&mut self) {
        self.spent = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ThreadSite;

    fn site(state: char, syscall: Option<i64>, stack: &[&str]) -> Site {
        let kernel_stack: Vec<String> = stack.iter().map(|f| (*f).to_owned()).collect();
        let stack_refused = kernel_stack.is_empty().then(|| "refused".to_owned());
        Site {
            site: ThreadSite { pid: 7, tid: 8, state, syscall, arguments: Vec::new(), kernel_stack },
            wchan: None,
            stack_refused,
        }
    }

    #[test]
    fn a_thread_in_an_unmount_does_not_keep_us_from_attaching() {
        // The incident itself, as a shim's thread shows it.
        let unmount = [
            "folio_wait_writeback",
            "sync_inodes_sb",
            "sync_filesystem",
            "generic_shutdown_super",
            "cleanup_mnt",
        ];
        assert_eq!(holds_memory_lock(&site('D', Some(166), &unmount)), None);
        assert_eq!(holds_memory_lock(&site('D', Some(166), &[])), None);
        // Go's fork: the parent sleeps until its child execs.
        assert_eq!(holds_memory_lock(&site('D', Some(56), &["wait_for_vfork_done", "kernel_clone"])), None);
    }

    #[test]
    fn a_thread_in_a_page_fault_does() {
        let fault =
            ["folio_wait_bit_common", "filemap_fault", "__do_fault", "handle_mm_fault", "do_user_addr_fault"];
        let why = holds_memory_lock(&site('D', None, &fault)).unwrap();
        assert!(why.contains("thread 8 of process 7") && why.contains("filemap_fault"), "{why}");
        // In the middle of a read(), whose buffer is not in memory.
        assert!(holds_memory_lock(&site('D', Some(0), &fault)).is_some());
        assert!(holds_memory_lock(&site('D', None, &[])).unwrap().contains("page fault"));
        assert!(holds_memory_lock(&site('D', Some(9), &[])).is_some());
        assert!(holds_memory_lock(&site('D', Some(0), &[])).unwrap().contains("cannot be read"));
        // It has gone on since.
        assert_eq!(holds_memory_lock(&site('R', None, &fault)), None);
    }

    #[test]
    fn this_process_can_be_looked_at() {
        assert_eq!(look(&[std::process::id(), 4_999_999]), Ok(()));
    }

    #[test]
    fn a_slow_batch_stops_it_for_a_while_and_many_quick_ones_too() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.refusal(start), None);
        pace.took("containerd", Duration::from_millis(20), start);
        assert_eq!(pace.refusal(start), None);
        pace.took("containerd", Duration::from_millis(251), start);
        assert!(pace.refusal(start).unwrap().contains("251 ms"));
        assert!(pace.refusal(start + REST - Duration::from_millis(1)).is_some());
        assert_eq!(pace.refusal(start + REST), None);
        for _ in 0..25 {
            pace.took("shim", Duration::from_millis(200), start);
        }
        assert_eq!(pace.refusal(start), None);
        pace.took("shim", Duration::from_millis(200), start);
        assert!(pace.refusal(start).unwrap().contains("5200 ms"));
    }
}
