//! Ground truth for unmounts: which threads of a process are inside `umount2`, read from `/proc/PID/task/TID/syscall`.
//!
//! The number stays there until the thread is back in user space, also while the super block is shut down on the way
//! back. It needs no probe and no ptrace, so it is independent of everything that plegscope does.

use super::sys;
use serde::Serialize;
use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the threads are looked at: the uncertainty of each begin and end.
pub const EVERY: Duration = Duration::from_millis(5);

/// One stay of a thread in `umount2`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stay {
    /// Thread.
    pub tid: u32,
    /// First time it was seen inside, ns of CLOCK_MONOTONIC.
    pub begin: u64,
    /// First time it was no longer seen inside; `None` while it lasts.
    pub end: Option<u64>,
}

/// Watches one process until dropped.
pub struct Watch {
    stays: Arc<Mutex<Vec<Stay>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to watch the threads of `pid`.
    pub fn start(pid: u32) -> Watch {
        let stays = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, end) = (stays.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut inside: HashMap<u32, usize> = HashMap::new();
            while !end.load(Ordering::Relaxed) {
                look(pid, &mut inside, &seen);
                std::thread::sleep(EVERY);
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

fn look(pid: u32, inside: &mut HashMap<u32, usize>, stays: &Mutex<Vec<Stay>>) {
    let now = sys::monotonic();
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .map(|dir| {
            dir.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).collect()
        })
        .unwrap_or_else(|_| Vec::new());
    let mut stays = stays.lock().unwrap_or_else(PoisonError::into_inner);
    inside.retain(|tid, index| {
        // One that happens to be on the CPU does not say where it is; it is asked again.
        let still = in_umount(pid, *tid).unwrap_or(true);
        if !still {
            stays[*index].end = Some(now);
        }
        still
    });
    for tid in threads {
        if !inside.contains_key(&tid) && in_umount(pid, tid) == Some(true) {
            inside.insert(tid, stays.len());
            stays.push(Stay { tid, begin: now, end: None });
        }
    }
}

/// Whether a thread is inside `umount2`; `None` when it runs, so that the kernel does not say. A thread that is gone is
/// not inside.
fn in_umount(pid: u32, tid: u32) -> Option<bool> {
    let line = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
    if line.starts_with("running") {
        return None;
    }
    Some(line.split(' ').next().and_then(|number| number.parse().ok()) == Some(libc::SYS_umount2))
}
