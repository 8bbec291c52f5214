//! Lets go of probes in a process that is ending, so that no `kill -9` leaves breakpoints behind.
//!
//! Whoever closes the last descriptor of a uprobe restores the code of all processes that map the file. The kernel gives
//! up on that (`__get_user_pages` fails with EINTR) as soon as this thread has been sent SIGKILL, and says "failed to
//! unregister, leaking uprobe": the breakpoint stays in running programs, and the kernel's record of it for good. Letting
//! go of all probes takes seconds.
//!
//! A process that is ending cannot be sent a signal any more. So a child gets a copy of all descriptors, the caller closes
//! its own, and the end of the child is what restores the code.

use std::{
    io::{ErrorKind, Read},
    os::{fd::RawFd, unix::net::UnixStream},
};

/// A child that lets go of what its parent has closed.
#[must_use = "it ends by itself, but stays a zombie for as long as its parent lives"]
pub struct Heir(Option<libc::pid_t>);

impl Heir {
    /// Waits until it is gone, and with it what it had to let go of.
    pub fn wait(self) {
        let Some(pid) = self.0 else { return };
        // SAFETY: our own child, not waited for yet; its status is not wanted. An error but EINTR means that it is gone.
        while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } < 0
            && std::io::Error::last_os_error().kind() == ErrorKind::Interrupted
        {}
    }
}

/// Runs `close`. What it closes an heir lets go of right afterwards, or in the moment in which this process ends. Where
/// there can be no heir, the caller does it. The heir does not get `without`, so that the other end sees when we end.
pub fn close_by_heir<T>(without: Option<RawFd>, close: impl FnOnce() -> T) -> (T, Heir) {
    let Ok((ours, theirs)) = UnixStream::pair() else { return (close(), Heir(None)) };
    // SAFETY: the child has one thread, allocates nothing, takes no lock and never returns.
    match unsafe { libc::fork() } {
        -1 => (close(), Heir(None)),
        0 => {
            drop(ours);
            if let Some(fd) = without {
                // SAFETY: the child's copy, which nothing of the child uses.
                unsafe { libc::close(fd) };
            }
            end_after(theirs)
        }
        child => {
            drop(theirs);
            let result = close();
            drop(ours);
            (result, Heir(Some(child)))
        }
    }
}

/// Ends this process as soon as the other end is closed.
fn end_after(mut other: UnixStream) -> ! {
    while other.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::Interrupted) {}
    loop {
        // By a signal, and not by an exit that could be met by one: the kernel forgets all others when it acts on this.
        // SAFETY: system calls that take numbers only.
        unsafe {
            libc::kill(libc::getpid(), libc::SIGKILL);
            libc::pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::fd::AsRawFd, time::Duration};

    #[test]
    fn what_is_closed_is_let_go_of_afterwards_by_somebody_else() {
        let (mut far, near) = UnixStream::pair().unwrap();
        far.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let ((), heir) = close_by_heir(None, || {
            drop(near);
            // Closed here, and still held by the heir.
            assert_eq!(far.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        });
        heir.wait();
        far.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn what_an_heir_is_not_to_have_ends_with_us() {
        let (mut far, near) = UnixStream::pair().unwrap();
        far.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let ((), heir) = close_by_heir(Some(near.as_raw_fd()), || {
            drop(near);
            assert_eq!(far.read(&mut [0]).unwrap(), 0);
        });
        heir.wait();
    }
}
