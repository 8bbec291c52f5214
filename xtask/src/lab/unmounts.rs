//! Ground truth for unmounts and syncs: which threads of a process are inside such a system call, read from
//! `/proc/PID/task/TID/syscall`.
//!
//! The number stays there until the thread is back in user space, also while the super block is shut down on the way
//! back. It needs no probe and no ptrace, so it is independent of everything that plegscope does.

use super::{machine, sys};
use serde::Serialize;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the threads are looked at: the uncertainty of each begin and end.
pub const EVERY: Duration = Duration::from_millis(5);
/// The same in a machine of our own, whose one emulated processor would have little else to do.
const EVERY_IN_A_BOX: Duration = Duration::from_millis(15);

/// How often the kernel stack of a thread that stays inside is read, ns.
const STACK_EVERY: u64 = 250_000_000;

/// The unmount.
pub const UNMOUNT: &[libc::c_long] = &[libc::SYS_umount2];
/// One stay of a thread in a system call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stay {
    /// Thread.
    pub tid: u32,
    /// Number of the call.
    pub call: libc::c_long,
    /// First time it was seen inside, ns of CLOCK_MONOTONIC.
    pub begin: u64,
    /// Last time it was seen inside: until then it was there for certain.
    pub last: u64,
    /// First time it was no longer seen inside; `None` while it lasts.
    pub end: Option<u64>,
    /// What it unmounts, read from the caller's memory; `None` for other calls.
    pub path: Option<String>,
    /// The kernel's functions it waits in, the deepest first, when it was looked at last; empty for a short stay.
    pub waits_in: Vec<String>,
    /// First and last time it was seen to queue for a mutex of a super block's sync (`s_sync_lock`), by that stack.
    pub queued: Option<(u64, u64)>,
}

impl Stay {
    /// Whether the thread was inside at that time for certain.
    pub fn surely_at(&self, at: u64) -> bool {
        (self.begin..=self.last).contains(&at)
    }
}

/// A shorter stay blocks nobody, ns.
pub const BLOCKS: u64 = 10_000_000;
/// Longest time that Go code takes between two unmounts of one call of containerd's `UnmountAll`, ns.
const BETWEEN: u64 = 500_000_000;

/// What blocks those that wait for a shim: its longest stay in an unmount, and the others of 10 ms and more with nothing but Go
/// code between them and it. One that comes later, when an exit is handled once more, is not of it.
pub fn blocked(stays: &[Stay]) -> Option<(u64, u64)> {
    let mut long: Vec<(u64, u64)> = stays.iter().filter_map(|stay| Some((stay.begin, stay.end?))).collect();
    long.retain(|(begin, end)| end - begin >= BLOCKS);
    let (mut begin, mut end) = long.iter().copied().max_by_key(|(begin, end)| end - begin)?;
    long.sort_unstable();
    for (from, to) in &long {
        if *from <= end + BETWEEN {
            end = end.max(*to);
        }
    }
    for (from, to) in long.iter().rev() {
        if *to + BETWEEN >= begin {
            begin = begin.min(*from);
        }
    }
    Some((begin, end))
}

/// Watches one process until dropped.
pub struct Watch {
    stays: Arc<Mutex<Vec<Stay>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to watch the threads of `pid` for unmounts.
    pub fn start(pid: u32) -> Watch {
        Watch::of(pid, UNMOUNT)
    }

    /// Starts to watch the threads of `pid` for these calls.
    pub fn of(pid: u32, calls: &'static [libc::c_long]) -> Watch {
        let stays = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, end) = (stays.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut inside: HashMap<u32, Inside> = HashMap::new();
            let mut files = Files::default();
            let every = if machine::is_around() { EVERY_IN_A_BOX } else { EVERY };
            while !end.load(Ordering::Relaxed) {
                look(pid, calls, &mut files, &mut inside, &seen);
                std::thread::sleep(every);
            }
        });
        Watch { stays, stop, thread: Some(thread) }
    }

    /// All stays so far.
    pub fn stays(&self) -> Vec<Stay> {
        self.stays.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A thread that was inside when it was seen last.
struct Inside {
    /// Its stay.
    index: usize,
    /// Since when it is not known to be inside, because it runs.
    running: Option<u64>,
    /// When its kernel stack was read.
    looked: u64,
}

/// The files of the threads that tell which call they are in, kept open: most of a look would be the way to them.
#[derive(Default)]
struct Files(HashMap<u32, fs::File>);

fn look(
    pid: u32,
    calls: &[libc::c_long],
    files: &mut Files,
    inside: &mut HashMap<u32, Inside>,
    stays: &Mutex<Vec<Stay>>,
) {
    let now = sys::monotonic();
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .map(|dir| {
            dir.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).collect()
        })
        .unwrap_or_else(|_| Vec::new());
    files.0.retain(|tid, _| threads.contains(tid));
    let mut stays = stays.lock().unwrap_or_else(PoisonError::into_inner);
    inside.retain(|tid, thread| match files.call_of(pid, *tid) {
        Some(call) if call == stays[thread.index].call => {
            thread.running = None;
            stays[thread.index].last = now;
            if now - thread.looked > STACK_EVERY {
                thread.looked = now;
                let stack = stack_of(pid, *tid);
                if queues(&stack) {
                    let since = stays[thread.index].queued.map_or(now, |(since, _)| since);
                    stays[thread.index].queued = Some((since, now));
                }
                if !stack.is_empty() {
                    stays[thread.index].waits_in = stack;
                }
            }
            true
        }
        Some(_) => {
            stays[thread.index].end = Some(thread.running.unwrap_or(now));
            false
        }
        // It may have left, or have woken up inside for a moment: the next look tells.
        None => {
            thread.running.get_or_insert(now);
            true
        }
    });
    for tid in threads {
        if !inside.contains_key(&tid)
            && let Some(call) = files.call_of(pid, tid).filter(|call| calls.contains(call))
        {
            inside.insert(tid, Inside { index: stays.len(), running: None, looked: now });
            let path = (call == libc::SYS_umount2).then(|| path_of(pid, tid)).flatten();
            stays.push(Stay { tid, call, begin: now, last: now, path, ..Stay::default() });
        }
    }
}

impl Files {
    /// The call a thread is in, -1 when it is in none; `None` while it runs on a CPU, when the file says no more than that.
    fn call_of(&mut self, pid: u32, tid: u32) -> Option<libc::c_long> {
        let mut line = [0; 256];
        let read = match self.0.entry(tid) {
            Entry::Occupied(file) => file.get().read_at(&mut line, 0),
            Entry::Vacant(none) => fs::File::open(format!("/proc/{pid}/task/{tid}/syscall"))
                .and_then(|file| none.insert(file).read_at(&mut line, 0)),
        };
        match read {
            Ok(length) => number_in(&String::from_utf8_lossy(&line[..length])),
            Err(_) => Some(-1), // the thread is gone
        }
    }
}

/// The path that a thread has given to umount2.
fn path_of(pid: u32, tid: u32) -> Option<String> {
    let line = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    let pointer = line.split_whitespace().nth(1)?.strip_prefix("0x")?;
    let pointer = u64::from_str_radix(pointer, 16).ok()?;
    let mut bytes = [0; 512];
    let memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let read = memory.read_at(&mut bytes, pointer).ok()?;
    let length = bytes[..read].iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// The functions on a thread's kernel stack.
fn stack_of(pid: u32, tid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stack")).unwrap_or_default();
    text.lines().filter_map(function_in).take(24).collect()
}

/// Whether a stack is that of a thread that wants to sync a super block while another does. The kernel leaves its own waiting
/// for a mutex out of the stack, so the function that takes it comes first; what waits for the disk has more below it.
fn queues(stack: &[String]) -> bool {
    stack.first().is_some_and(|function| function == "sync_inodes_sb")
}

/// The function of a line like `[<0>] folio_wait_writeback+0x2b/0xa0`, or with a module behind it.
fn function_in(line: &str) -> Option<String> {
    line.split_once("] ")?.1.split(['+', ' ']).next().map(str::to_owned)
}

fn number_in(line: &str) -> Option<libc::c_long> {
    let number = line.split_whitespace().next()?;
    (number != "running").then(|| number.parse().unwrap_or(-1))
}

#[cfg(test)]
mod tests {
    use super::{Stay, blocked, function_in, number_in, queues};

    #[test]
    fn an_unmount_that_comes_later_is_another_one() {
        let stay = |begin: u64, end: Option<u64>| Stay {
            begin: begin * 1_000_000,
            end: end.map(|end| end * 1_000_000),
            ..Stay::default()
        };
        // What `UnmountAll` calls at once is one, as long as it takes; an attempt a second and a half after it is not.
        let all = [
            stay(100, Some(120)),
            stay(358, Some(9_000)),
            stay(9_001, Some(16_648)),
            stay(18_164, Some(18_179)),
        ];
        assert_eq!(blocked(&all), Some((100_000_000, 16_648_000_000)));
        assert_eq!(blocked(&[stay(1, Some(3)), stay(5, None)]), None);
    }

    #[test]
    fn between_the_last_look_inside_and_the_first_outside_nothing_is_certain() {
        let stay = Stay { begin: 10, last: 20, end: Some(25), ..Stay::default() };
        assert_eq!([9, 10, 20, 21, 25].map(|at| stay.surely_at(at)), [false, true, true, false, false]);
    }

    #[test]
    fn a_queue_is_known_by_who_wants_the_mutex() {
        let of =
            |functions: &[&str]| queues(&functions.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>());
        assert!(of(&["sync_inodes_sb", "sync_filesystem", "ovl_sync_fs"]));
        assert!(!of(&["folio_wait_writeback", "sync_inodes_sb"]));
        assert!(!of(&[]));
    }

    #[test]
    fn a_thread_that_runs_is_neither_inside_nor_outside() {
        assert_eq!(number_in("166 0xc000 0x0 0x0 0x0 0x0 0x0 0x7ffd 0x46\n"), Some(166));
        assert_eq!(number_in("202 0xc000 0x80 0x0 0x0 0x0 0x0 0x7ffd 0x46\n"), Some(202));
        assert_eq!(number_in("-1 0x7ffd 0x46\n"), Some(-1));
        assert_eq!(number_in("running\n"), None);
    }

    #[test]
    fn functions_are_read_from_a_stack() {
        let of = |line| function_in(line).unwrap_or_default();
        assert_eq!(of("[<0>] folio_wait_writeback+0x2b/0xa0"), "folio_wait_writeback");
        assert_eq!(of("[<0>] ovl_sync_fs+0x3a/0x70 [overlay]"), "ovl_sync_fs");
        assert_eq!(function_in(""), None);
    }
}
