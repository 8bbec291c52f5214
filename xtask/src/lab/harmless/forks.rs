//! How long `fork()` takes on this node, by the clock of the one who forks. Attaching uprobes takes a lock that every
//! fork needs.

use crate::lab::sys;
use anyhow::{Context, Result, ensure};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Time between two forks.
const EVERY: Duration = Duration::from_millis(4);
/// `SCHED_FIFO`, with children that have an ordinary priority: a busy machine does not count as a held lock.
const POLICY: libc::c_int = libc::SCHED_FIFO | 0x4000_0000;

/// A thread that forks until it is finished.
pub struct Forker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<u64>>>,
}

/// How long each fork of some time took, ns.
pub struct Forks(pub Vec<u64>);

impl Forker {
    /// Starts to fork.
    pub fn start() -> Forker {
        let stop = Arc::new(AtomicBool::new(false));
        let end = stop.clone();
        let thread = std::thread::spawn(move || {
            let priority = libc::sched_param { sched_priority: 10 };
            // SAFETY: a valid parameter; changes this thread only. Where it is refused the figures are noisier.
            unsafe { libc::sched_setscheduler(0, POLICY, &priority) };
            let mut forks = Vec::new();
            while !end.load(Ordering::Relaxed) {
                forks.push(fork()?);
                std::thread::sleep(EVERY);
            }
            Ok(forks)
        });
        Forker { stop, thread }
    }

    /// Ends; a fork that hangs is waited for.
    pub fn finish(self) -> Result<Forks> {
        self.stop.store(true, Ordering::Relaxed);
        let forks = self.thread.join().map_err(|_| anyhow::anyhow!("the forking thread panicked"))??;
        ensure!(!forks.is_empty(), "nothing was forked");
        Ok(Forks(forks))
    }

    /// Forks for some time.
    pub async fn during(time: Duration) -> Result<Forks> {
        let forker = Forker::start();
        tokio::time::sleep(time).await;
        tokio::task::spawn_blocking(|| forker.finish()).await.context("waiting for the forking thread")?
    }
}

impl Forks {
    /// The longest, ns.
    pub fn longest(&self) -> u64 {
        self.0.iter().copied().max().unwrap_or(0)
    }

    /// 99 of 100 are not longer, ns.
    pub fn p99(&self) -> u64 {
        let mut took: Vec<u64> = self.0.clone();
        took.sort_unstable();
        took.get((took.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0)
    }

    /// In words.
    pub fn text(&self) -> String {
        let ms = |ns: u64| ns as f64 / 1e6;
        format!("{} forks, p99 {:.2} ms, longest {:.2} ms", self.0.len(), ms(self.p99()), ms(self.longest()))
    }
}

/// Forks once; how long the call took, ns.
fn fork() -> Result<u64> {
    let begin = sys::monotonic();
    // SAFETY: the child calls nothing but _exit, which is allowed after a fork of a process with threads.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: ends the child at once, without running anything that belongs to the parent.
        unsafe { libc::_exit(0) };
    }
    let took = sys::monotonic() - begin;
    ensure!(child > 0, "fork: {}", io::Error::last_os_error());
    // SAFETY: collects the child just made; a null status pointer is allowed.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p99_leaves_out_one_in_a_hundred() {
        let forks = Forks((1..=200).collect());
        assert_eq!((forks.p99(), forks.longest()), (198, 200));
        assert_eq!(Forks(vec![7]).p99(), 7);
    }
}
