//! Bounded worker threads for reads that could hang: a read that hangs costs one thread, never the caller.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Stack of a worker. Small because the process's memory is locked: every stack counts as used.
const STACK: usize = 256 * 1024;

/// Why a job has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkerError {
    /// It is still running. It keeps its thread until it comes back, and its result is dropped then.
    #[error("no answer within {} ms; the read is still waiting in the kernel", .0.as_millis())]
    TimedOut(Duration),
    /// Every worker is taken. Nothing is queued: the caller may come again later.
    #[error("all {limit} workers are taken, {stuck} of them stuck in reads that have not come back")]
    AllBusy {
        /// How many threads there may be at once.
        limit: usize,
        /// How many of them are past their time.
        stuck: usize,
    },
    /// The job panicked, or no thread could be started.
    #[error("the worker failed: {0}")]
    Failed(String),
}

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads that may hang.
///
/// Threads are started when needed and kept for the next job. A thread whose job does not come back in time stays
/// with that job and becomes usable again when the job does come back.
pub struct Workers {
    limit: usize,
    pool: Arc<Mutex<Pool>>,
}

#[derive(Default)]
struct Pool {
    /// Threads waiting for a job; dropping a sender ends its thread.
    idle: Vec<SyncSender<Job>>,
    /// Threads there are.
    threads: usize,
    /// Threads whose job is past its time.
    stuck: usize,
    /// Set when [`Workers`] is dropped: nobody goes back to `idle`.
    closed: bool,
}

/// Where a job is, agreed on by the caller and the worker under the pool's lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Running,
    TimedOut,
    Finished,
}

/// A job that was started and has not been waited for yet.
pub struct Started<T> {
    result: Receiver<std::thread::Result<T>>,
    progress: Arc<Mutex<Progress>>,
    pool: Arc<Mutex<Pool>>,
}

impl<T> Started<T> {
    /// Waits up to `timeout` for its result. After that it counts as stuck until it comes back.
    pub fn wait(self, timeout: Duration) -> Result<T, WorkerError> {
        match self.result.recv_timeout(timeout) {
            Ok(outcome) => outcome.map_err(|panic| WorkerError::Failed(words(&*panic))),
            Err(RecvTimeoutError::Timeout) => {
                let mut pool = lock(&self.pool);
                let mut progress = lock(&self.progress);
                if *progress == Progress::Finished {
                    // It came back in this very moment.
                    drop((progress, pool));
                    return match self.result.recv() {
                        Ok(outcome) => outcome.map_err(|panic| WorkerError::Failed(words(&*panic))),
                        Err(_) => Err(WorkerError::TimedOut(timeout)),
                    };
                }
                *progress = Progress::TimedOut;
                pool.stuck += 1;
                Err(WorkerError::TimedOut(timeout))
            }
            Err(RecvTimeoutError::Disconnected) => Err(WorkerError::Failed("its thread ended".into())),
        }
    }
}

impl Workers {
    /// At most `limit` threads at any time.
    pub fn new(limit: usize) -> Self {
        Workers { limit, pool: Arc::default() }
    }

    /// Runs `job` on a worker and waits up to `timeout` for its result.
    pub fn run<T: Send + 'static>(
        &self,
        timeout: Duration,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkerError> {
        self.start(job)?.wait(timeout)
    }

    /// Starts `job` on a worker.
    pub fn start<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Started<T>, WorkerError> {
        let (answer, result) = sync_channel(1);
        let progress = Arc::new(Mutex::new(Progress::Running));
        let worker = self.take()?;
        let (pool, theirs, seat) = (Arc::clone(&self.pool), Arc::clone(&progress), worker.clone());
        let wrapped: Job = Box::new(move || {
            let outcome = catch_unwind(AssertUnwindSafe(job));
            // The seat is given back before the answer is, so a caller that has its answer finds the worker free.
            {
                let mut pool = lock(&pool);
                let mut progress = lock(&theirs);
                if *progress == Progress::TimedOut {
                    pool.stuck -= 1;
                }
                *progress = Progress::Finished;
                if !pool.closed {
                    pool.idle.push(seat);
                }
            }
            // Nobody listens any more after a timeout: the late result is dropped here.
            let _ = answer.send(outcome);
        });
        if worker.send(wrapped).is_err() {
            return Err(WorkerError::Failed("its thread is gone".into()));
        }
        Ok(Started { result, progress, pool: Arc::clone(&self.pool) })
    }

    /// How many threads are with a job past its time right now.
    pub fn stuck(&self) -> usize {
        lock(&self.pool).stuck
    }

    /// How many threads there are, idle ones included.
    pub fn threads(&self) -> usize {
        lock(&self.pool).threads
    }

    /// An idle worker, or a new one while there may be one.
    fn take(&self) -> Result<SyncSender<Job>, WorkerError> {
        let mut pool = lock(&self.pool);
        if let Some(worker) = pool.idle.pop() {
            return Ok(worker);
        }
        if pool.threads >= self.limit {
            return Err(WorkerError::AllBusy { limit: self.limit, stuck: pool.stuck });
        }
        // Room for one job, and a worker has at most one: sending never waits.
        let (worker, jobs) = sync_channel::<Job>(1);
        let ours = Arc::clone(&self.pool);
        std::thread::Builder::new()
            .name("reader".into())
            .stack_size(STACK)
            .spawn(move || {
                while let Ok(job) = jobs.recv() {
                    job();
                }
                lock(&ours).threads -= 1;
            })
            .map_err(|e| WorkerError::Failed(format!("no thread could be started: {e}")))?;
        pool.threads += 1;
        Ok(worker)
    }
}

impl Drop for Workers {
    /// Idle threads end; stuck ones end when their job comes back. Nothing waits.
    fn drop(&mut self) {
        let mut pool = lock(&self.pool);
        pool.closed = true;
        pool.idle.clear();
    }
}

/// Counters stay right even if a thread died while it held them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const SOON: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_result_comes_back_and_the_thread_is_kept() {
        let workers = Workers::new(2);
        for n in 0..100 {
            assert_eq!(workers.run(LONG, move || n * 2), Ok(n * 2));
        }
        assert_eq!((workers.threads(), workers.stuck()), (1, 0));
    }

    #[test]
    fn hung_jobs_are_counted_bounded_and_their_threads_come_back() {
        let workers = Workers::new(2);
        let (first, wait_first) = channel::<()>();
        let (second, wait_second) = channel::<()>();
        let hang = |wait: std::sync::mpsc::Receiver<()>| workers.run(SOON, move || wait.recv());
        assert_eq!(hang(wait_first), Err(WorkerError::TimedOut(SOON)));
        assert_eq!(hang(wait_second), Err(WorkerError::TimedOut(SOON)));
        assert_eq!(workers.stuck(), 2);
        let refused = workers.run(LONG, || ());
        assert_eq!(refused, Err(WorkerError::AllBusy { limit: 2, stuck: 2 }));
        assert!(refused.unwrap_err().to_string().contains("2 of them stuck"));

        first.send(()).unwrap();
        // The worker comes back when it is scheduled: asked until it does, no fixed wait.
        let answer = loop {
            match workers.run(LONG, || 7) {
                Err(WorkerError::AllBusy { .. }) => std::thread::yield_now(),
                other => break other,
            }
        };
        assert_eq!(answer, Ok(7));
        assert_eq!((workers.threads(), workers.stuck()), (2, 1));
        drop(second);
    }

    #[test]
    fn a_panic_is_an_answer_and_the_thread_survives() {
        let workers = Workers::new(1);
        let outcome = workers.run(LONG, || -> u8 { std::panic::panic_any("bad file") });
        assert_eq!(outcome, Err(WorkerError::Failed("bad file".into())));
        assert_eq!(workers.run(LONG, || 1), Ok(1));
        assert_eq!(workers.threads(), 1);
    }

    #[test]
    fn dropping_ends_idle_threads_and_waits_for_nobody() {
        let workers = Workers::new(2);
        let (hold, wait) = channel::<()>();
        let (ended, done) = channel();
        assert_eq!(workers.run(LONG, || ()), Ok(()));
        let hung = workers.run(SOON, move || {
            let _ = wait.recv();
            ended.send(()).unwrap();
        });
        assert_eq!(hung, Err(WorkerError::TimedOut(SOON)));
        let pool = Arc::clone(&workers.pool);
        drop(workers);
        drop(hold);
        done.recv().unwrap();
        while lock(&pool).threads > 0 {
            std::thread::yield_now();
        }
        assert_eq!(lock(&pool).stuck, 0);
    }

    #[test]
    fn many_callers_never_exceed_the_limit() {
        let workers = Workers::new(3);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for n in 0..200 {
                        match workers.run(LONG, move || n) {
                            Ok(back) => assert_eq!(back, n),
                            Err(e) => assert_eq!(e, WorkerError::AllBusy { limit: 3, stuck: 0 }),
                        }
                        assert!(workers.threads() <= 3);
                    }
                });
            }
        });
        assert_eq!(workers.stuck(), 0);
    }
}
