//! Who opens files of containers, by the kernel's own notifications (fanotify) on their file systems: also what is open
//! for a moment only, and what is reached through `/proc/PID/exe`.

use crate::lab::Lab;
use crate::lab::sys;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// `sizeof(struct fanotify_event_metadata)`.
const EVENT: usize = 24;

/// Opened files with the process that opened each.
type Seen = Arc<Mutex<BTreeSet<(u32, String)>>>;

/// Watches until finished.
pub struct Opens {
    seen: Seen,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Opens {
    /// Watches the root file systems of all containers of a lab. Fails when it does not see an open of its own.
    pub fn watch(lab: &Lab<'_>) -> Result<Opens> {
        // SAFETY: takes flags only.
        let fd = unsafe {
            libc::fanotify_init(
                libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK,
                (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE) as u32,
            )
        };
        ensure!(fd >= 0, "fanotify: {}", io::Error::last_os_error());
        // SAFETY: the kernel has just returned this descriptor and nobody else knows it.
        let queue = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        for pod in &lab.pods {
            let init = lab.containerd.init_of(&pod.container)?;
            let root = CString::new(format!("/proc/{init}/root/bin")).context("path with a zero byte")?;
            // SAFETY: a valid descriptor and a path that outlives the call.
            let marked = unsafe {
                libc::fanotify_mark(
                    queue.as_raw_fd(),
                    libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM,
                    libc::FAN_OPEN,
                    libc::AT_FDCWD,
                    root.as_ptr(),
                )
            };
            ensure!(marked == 0, "watching the files of {}: {}", pod.name, io::Error::last_os_error());
        }
        let (seen, stop) = (Seen::default(), Arc::new(AtomicBool::new(false)));
        let (into, end) = (seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                drain(&queue, &into);
                std::thread::sleep(Duration::from_millis(1));
            }
            drain(&queue, &into);
        });
        let opens = Opens { seen, stop, thread: Some(thread) };
        let pod = lab.pods.first().context("no pod")?;
        let init = lab.containerd.init_of(&pod.container)?;
        File::open(format!("/proc/{init}/exe")).context("opening the program of a container")?;
        let own = || opens.by(|pid| pid == std::process::id()).len() == 1;
        ensure!(
            sys::wait_until(Duration::from_secs(5), own),
            "an open of a container's file is not notified"
        );
        Ok(opens)
    }

    fn by(&self, who: impl Fn(u32) -> bool) -> BTreeSet<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|(pid, _)| who(*pid)).map(|(_, path)| path.clone()).collect()
    }

    /// What plegscopes have opened.
    pub fn finish(mut self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.by(|pid| pid == PLEGSCOPE)
    }
}

/// Stands for any process of a plegscope: it may be gone when it is asked about.
const PLEGSCOPE: u32 = 0;

fn drain(mut queue: &File, into: &Seen) {
    let mut buffer = [0u8; 64 * EVENT];
    while let Ok(length) = queue.read(&mut buffer) {
        if length == 0 {
            return;
        }
        for event in buffer[..length].chunks_exact(EVENT) {
            let word =
                |at: usize| i32::from_ne_bytes([event[at], event[at + 1], event[at + 2], event[at + 3]]);
            let (fd, pid) = (word(16), word(20) as u32);
            if fd < 0 {
                continue;
            }
            // SAFETY: the kernel has opened this descriptor for the reader of the event.
            let file = unsafe { OwnedFd::from_raw_fd(fd) };
            let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
            let path = path.map(|path| String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned());
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let who = if comm.starts_with("plegscope") { PLEGSCOPE } else { pid };
            if who == PLEGSCOPE || who == std::process::id() {
                into.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert((who, path.unwrap_or_else(|error| error.to_string())));
            }
        }
    }
}
