//! Does something that may hang in a process of its own, so that who waits for it can give up: a thread that waits for a
//! stuck disk would keep its process.

use super::own;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};
use std::{
    fs::File,
    io::{self, Read, Write},
    time::{Duration, Instant},
};

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Aside {
    /// Its answer.
    Answer(Vec<u8>),
    /// It has not come back in time; it goes when it can.
    Hangs,
}

/// Runs `work` in a child, and waits for its answer of at most `most` bytes for at most `limit`.
///
/// Must be called while this process has one thread.
pub fn aside(limit: Duration, most: usize, work: impl FnOnce() -> Vec<u8>) -> io::Result<Aside> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: no other thread exists (see above), so the child's copy of memory has no lock held by a thread that is not
    // there.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            drop(read);
            // Who started us may wait until nobody has its pipes any more.
            if own::leave_all_but(&write).is_ok() {
                let _ = File::from(write).write_all(&work());
            }
            // SAFETY: ends this process without running exit handlers that belong to the parent's copy of memory.
            unsafe { libc::_exit(0) }
        }
        child => child,
    };
    drop(write);
    let end = Instant::now() + limit;
    let mut read = File::from(read);
    let mut answer = Vec::new();
    let mut chunk = [0; 16 << 10];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let patience = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(&read, PollFlags::IN)], Some(&patience)) {
            Ok(0) => {
                // A child of ours, which nobody has waited for yet. It goes when the disk lets it.
                // SAFETY: takes numbers.
                unsafe { libc::kill(child, libc::SIGKILL) };
                return Ok(Aside::Hangs);
            }
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        let length = read.read(&mut chunk)?;
        if length == 0 || answer.len() + length > most {
            answer.extend_from_slice(&chunk[..length.min(most - answer.len())]);
            break;
        }
        answer.extend_from_slice(&chunk[..length]);
    }
    drop(read);
    // It has said all; it ends now, if it has not.
    // SAFETY: waits for a child of ours, and only if it has ended.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG) };
    Ok(Aside::Answer(answer))
}
