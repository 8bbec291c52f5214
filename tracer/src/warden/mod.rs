//! The warden: a child process, forked before anything else starts, that owns attaching, detaching and every read that
//! could hang on the stuck disk. A thread in uninterruptible sleep cannot be killed and keeps its process alive; so the
//! process that talks to the user never does such a thing and can always exit. When it does, the socket closes and the
//! warden goes too, by itself, as soon as the kernel lets it.

mod attach;
mod binaries;
mod causes;
mod child;
mod context;
mod cost;
mod events;
mod facts;
mod fuse;
mod guard;
mod index;
mod kept;
mod look;
mod outbox;
mod price;
pub mod protocol;
mod verify;

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

/// Which probes may be attached: how high on the ladder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ladder {
    /// None: what `/proc` tells.
    None,
    /// Kernel probes only.
    Kernel,
    /// Kernel probes, and uprobes in containerd, its shims and the kubelet.
    #[default]
    All,
}

/// What the warden shall do.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// How high on the ladder.
    pub ladder: Ladder,
    /// Look at containerd and the kubelet now and then, also while no probe tells that anything is blocked there.
    pub patrol: bool,
    /// Find out and tell, attach nothing, and exit.
    pub survey_only: bool,
    /// Look once into the memory of Go programs, tell, and exit; nothing is attached.
    pub look: Option<LookOnce>,
    /// Other Go processes whose lock waits are traced too.
    pub also: Vec<u32>,
    /// What probes may take from a program at most, in millionths of a core; `None` for no limit.
    pub max_target_cost: Option<u32>,
    /// What is an incident: what is in flight is read once more as soon as it may be one.
    pub thresholds: crate::thresholds::Thresholds,
    /// Let the kernel half tell its refusals in its own log.
    pub diagnostics: bool,
    /// Attach uprobes one by one also where the kernel takes many at once: how a test forces that.
    pub one_by_one: bool,
    /// Ways that the kernel offers and that are not to be used; uprobes only where they stand in for the kernel's own probes: as
    /// what sees the unmounts of Go programs.
    pub without: Vec<crate::event::SeenBy>,
}

/// One look at the node.
#[derive(Clone, Debug)]
pub struct LookOnce {
    /// Only these processes, whatever Go program they run; with none, all containerds, shims and kubelets.
    pub pids: Vec<u32>,
    /// How long it may take. What was not looked at by then is left out.
    pub within: std::time::Duration,
}

/// Forks the warden and gives the parent's end of the socket.
///
/// Must be called while the process has one thread: the child goes on from here with a copy of all memory.
pub fn fork(settings: Settings) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    // SAFETY: no other thread exists yet (see above), so the child's copy of memory has no lock held by a thread that is
    // not there.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(ours);
            child::run(OwnedFd::from(theirs).into(), settings)
        }
        _ => {
            drop(theirs);
            Ok(ours)
        }
    }
}

/// Keeps this process in memory: see [`crate::node::own::lock`].
pub fn lock_memory() -> io::Result<()> {
    crate::node::own::lock()
}

/// Makes the allocator return large blocks to the system at once: with its own moving limit, the type description of the
/// kernel and the programs that were read stay in its heap for good.
pub fn return_memory_early() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets parameters of the allocator; called while the process has one thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        // Each further arena keeps what its threads have freed.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives what is free in the heap back to the system; to be called after something large was read.
fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the number of bytes to keep; locks the heap by itself.
    unsafe {
        libc::malloc_trim(64 << 10);
    }
}
