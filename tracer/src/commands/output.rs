//! The way out to the user: a bounded queue and a thread per stream, so that a reader who stalls, or a file on the stuck
//! disk, holds up neither the tracing nor the end of the program. What does not fit is counted and said.

use std::{
    fmt,
    io::{self, Write},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Pieces that may wait for the reader.
const MOST_PIECES: usize = 1024;
/// Bytes that may wait for the reader; a single longer piece still passes when nothing else waits.
const MOST_BYTES: usize = 1 << 20;
/// Stack of a writing thread.
const STACK: usize = 128 << 10;

/// One stream. Writing never blocks.
pub struct Output {
    queue: SyncSender<Vec<u8>>,
    done: Receiver<()>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    waiting: AtomicUsize,
    pieces: AtomicUsize,
    lost: AtomicU64,
    error: Mutex<Option<io::Error>>,
}

impl Output {
    /// Starts the thread that writes to `stream`.
    pub fn new(mut stream: impl Write + Send + 'static) -> io::Result<Output> {
        let (queue, pieces) = sync_channel::<Vec<u8>>(MOST_PIECES);
        let (finished, done) = sync_channel(1);
        let shared = Arc::<Shared>::default();
        let theirs = Arc::clone(&shared);
        thread::Builder::new().name("output".into()).stack_size(STACK).spawn(move || {
            for piece in pieces {
                let result = stream.write_all(&piece).and_then(|()| stream.flush());
                theirs.waiting.fetch_sub(piece.len(), Ordering::Relaxed);
                theirs.pieces.fetch_sub(1, Ordering::Relaxed);
                if let Err(error) = result {
                    *theirs.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    break;
                }
            }
            let _ = finished.send(());
        })?;
        Ok(Output { queue, done, shared })
    }

    /// Hands over a piece (whole lines), or counts it as lost when the reader is too far behind.
    pub fn write(&self, piece: Vec<u8>) {
        if piece.is_empty() {
            return;
        }
        let length = piece.len();
        let before = self.shared.waiting.fetch_add(length, Ordering::Relaxed);
        self.shared.pieces.fetch_add(1, Ordering::Relaxed);
        let fits = before == 0 || before.saturating_add(length) <= MOST_BYTES;
        if !fits || self.queue.try_send(piece).is_err() {
            self.shared.waiting.fetch_sub(length, Ordering::Relaxed);
            self.shared.pieces.fetch_sub(1, Ordering::Relaxed);
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hands over one line.
    pub fn line(&self, line: fmt::Arguments<'_>) {
        self.write(format!("{line}\n").into_bytes());
    }

    /// How many pieces were lost since this was asked the last time, once the reader is back; 0 while it stalls.
    pub fn lost(&self) -> u64 {
        if self.shared.waiting.load(Ordering::Relaxed) > MOST_BYTES / 2 {
            return 0;
        }
        self.shared.lost.swap(0, Ordering::Relaxed)
    }

    /// Waits until the reader has taken all but this part of what fits, or never will. May be cancelled.
    async fn room(&self, parts: usize) {
        while self.shared.waiting.load(Ordering::Relaxed) > MOST_BYTES / parts
            || self.shared.pieces.load(Ordering::Relaxed) > MOST_PIECES / parts
        {
            if self.shared.error.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Whether all that was handed over is written.
    pub fn is_idle(&self) -> bool {
        self.shared.waiting.load(Ordering::Relaxed) == 0
    }

    /// Why nothing can be written any more.
    pub fn check(&self) -> io::Result<()> {
        self.shared.error.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    /// Lets the thread write what is left, for at most `patience`; returns whether all of it was.
    pub fn finish(self, patience: Duration) -> bool {
        drop(self.queue);
        !matches!(self.done.recv_timeout(patience), Err(RecvTimeoutError::Timeout))
            && self.shared.waiting.load(Ordering::Relaxed) == 0
    }
}

/// Standard output and standard error.
pub struct Streams {
    /// Standard output: what was asked for.
    pub out: Output,
    /// Standard error: messages about plegscope itself.
    pub messages: Output,
}

impl Streams {
    /// Takes over both. To be called after the warden was forked, since it starts threads.
    /// Messages go to `messages`, where there is one, else to standard error.
    pub fn new(messages: Option<Box<dyn Write + Send>>) -> io::Result<Streams> {
        let messages = messages.unwrap_or_else(|| Box::new(io::stderr()));
        Ok(Streams { out: Output::new(io::stdout())?, messages: Output::new(messages)? })
    }

    /// Waits for a slow reader, so that nothing is lost that can wait: a capture. May be cancelled.
    pub async fn room(&self) {
        self.out.room(2).await;
        self.messages.room(2).await;
    }

    /// Waits until all is read. May be cancelled.
    pub async fn drained(&self) {
        self.out.room(usize::MAX).await;
        self.messages.room(usize::MAX).await;
    }

    /// To be called now and then: an error when nobody reads the standard output any more, also when nothing was written
    /// to it. A standard error that nobody reads is no reason to end.
    pub fn check(&self) -> io::Result<()> {
        self.out.check()?;
        if has_no_reader(&io::stdout()) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let lost = self.out.lost();
        if lost > 0 {
            self.messages.line(format_args!(
                "plegscope: {lost} outputs were lost because the reader of the standard output was too slow"
            ));
        }
        Ok(())
    }

    /// Writes what is left, without waiting long for a reader that stalls.
    pub fn finish(self) {
        /// The prompt must be back within 300 ms, also when nobody reads.
        const PATIENCE: Duration = Duration::from_millis(150);
        let begin = Instant::now();
        self.out.finish(PATIENCE);
        self.messages.finish(PATIENCE.saturating_sub(begin.elapsed()));
    }
}

/// Whether the other end of a pipe or terminal is closed.
pub fn has_no_reader(stream: &impl AsRawFd) -> bool {
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one valid pollfd, which lives through the call; it does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & (libc::POLLERR | libc::POLLHUP) != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::File,
        io::Read,
        os::fd::{FromRawFd, OwnedFd},
    };

    fn pipe() -> (File, File) {
        let mut ends = [0; 2];
        // SAFETY: `ends` takes two descriptors, which nobody else owns.
        unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            (OwnedFd::from_raw_fd(ends[0]).into(), OwnedFd::from_raw_fd(ends[1]).into())
        }
    }

    #[test]
    fn all_lines_come_out_in_order() {
        let (mut read, write) = pipe();
        let output = Output::new(write).unwrap();
        for n in 0..100 {
            output.line(format_args!("{n}"));
        }
        assert!(output.finish(Duration::from_secs(60)));
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, (0..100).map(|n| format!("{n}\n")).collect::<String>());
    }

    #[test]
    fn a_reader_that_stalls_holds_nobody_up_and_what_is_lost_is_counted() {
        let (mut read, write) = pipe();
        let output = Output::new(write).unwrap();
        let piece = vec![b'x'; 64 << 10];
        for _ in 0..1000 {
            output.write(piece.clone());
        }
        assert_eq!(output.lost(), 0, "told when the reader is back");
        let waiting = output.shared.waiting.load(Ordering::Relaxed);
        assert!(waiting <= MOST_BYTES, "{waiting} bytes wait");
        let lost = output.shared.lost.load(Ordering::Relaxed);
        let shared = Arc::clone(&output.shared);
        assert!(!output.finish(Duration::from_millis(1)), "it does not wait for the reader");
        let mut text = Vec::new();
        read.read_to_end(&mut text).unwrap();
        assert_eq!(text.len() as u64 + lost * piece.len() as u64, 1000 * piece.len() as u64);
        assert_eq!(shared.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_closed_pipe_is_told_as_such() {
        let (read, write) = pipe();
        let copy = write.try_clone().unwrap();
        assert!(!has_no_reader(&copy));
        drop(read);
        assert!(has_no_reader(&copy));
        let output = Output::new(write).unwrap();
        output.line(format_args!("to nobody"));
        assert_eq!(output.done.recv(), Ok(()));
        assert_eq!(output.check().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
