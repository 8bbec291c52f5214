//! The thread that writes a capture: makes frames of lines, keeps them in the ring until the trigger, and puts them into
//! the file one by one, each in whole. The only one that waits for the disk.

use super::recorder::{Ended, RingStatus, Shared};
use super::ring::Ring;
use super::writer::{Frame, Framer};
use super::{End, Header, Line, Loss};
use crate::event::Ns;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// What is not in the file after this long goes into it: as much is lost by a kill at most.
const FLUSH_EVERY: Duration = Duration::from_secs(2);
/// The header is repeated after this many frames, for the case that the first is damaged.
const HEADER_EVERY: u64 = 256;
/// Kept free behind what was written, so that a full disk takes the last words.
const RESERVE: u64 = 64 << 10;
/// Room for the last words within the size that the file may have.
const LAST_WORDS: u64 = 4 << 10;

/// What the thread is told.
pub(super) enum Order {
    /// Lines, in their order.
    Lines(Vec<Line>),
    /// All that is known, and before it perhaps what was lost: what follows can be understood from here on.
    Begin(Vec<Line>),
    /// Write what is held, and all that follows.
    Trigger,
    /// Say the last words.
    Stop {
        at: Ns,
        ended: Ended,
        /// Lines that were lost and not told yet.
        gap: u64,
    },
}

impl Order {
    /// Lines in it.
    pub fn lines(&self) -> usize {
        match self {
            Order::Lines(lines) | Order::Begin(lines) => lines.len(),
            Order::Trigger | Order::Stop { .. } => 0,
        }
    }
}

/// Writes.
pub(super) struct Scribe {
    file: File,
    /// Bytes of whole frames in the file.
    written: u64,
    /// Bytes that it may have.
    most: u64,
    frames: u64,
    events: u64,
    header: Header,
    framer: Framer,
    ring: Option<Ring>,
    shared: Arc<Shared>,
    /// Latest time that was heard of.
    latest: Ns,
    flushed: Instant,
    ended: Option<Ended>,
}

impl Scribe {
    /// Has written nothing yet.
    pub fn new(
        file: File,
        header: Header,
        most: u64,
        ring: Option<Ring>,
        shared: Arc<Shared>,
    ) -> io::Result<Scribe> {
        let latest = header.clock.monotonic;
        Ok(Scribe {
            file,
            written: 0,
            most,
            frames: 0,
            events: 0,
            header,
            framer: Framer::new()?,
            ring,
            shared,
            latest,
            flushed: Instant::now(),
            ended: None,
        })
    }

    /// Does what it is told until it is told to stop, or nobody is left to tell anything.
    pub fn run(mut self, orders: Receiver<Order>) {
        self.put_header();
        loop {
            match orders.recv_timeout(FLUSH_EVERY) {
                Ok(Order::Stop { at, ended, gap }) => return self.stop(at, ended, gap),
                Ok(order) => {
                    let lines = order.lines();
                    if self.ended.is_none() {
                        self.take(order);
                    }
                    self.shared.waiting.fetch_sub(lines, Ordering::Relaxed);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.close(),
            }
            if self.flushed.elapsed() >= FLUSH_EVERY {
                self.close();
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Lines(lines) => self.lines(&lines),
            Order::Begin(lines) => {
                if self.ring.is_some() {
                    self.close();
                }
                let latest = self.latest;
                if let Some(ring) = &mut self.ring {
                    ring.begin(latest);
                }
                self.lines(&lines);
            }
            Order::Trigger => {
                self.close();
                let held = self.ring.take().map(|mut ring| ring.take()).unwrap_or_default();
                for frame in held {
                    self.keep(frame);
                }
                self.tell();
            }
            Order::Stop { .. } => {}
        }
    }

    fn lines(&mut self, lines: &[Line]) {
        for line in lines {
            if let Line::Heard(at) = line {
                self.latest = self.latest.max(*at);
            }
            match self.framer.line(line) {
                Ok(Some(frame)) => self.keep(frame),
                Ok(None) => {}
                Err(error) => self.fail(&error, 1),
            }
        }
        if self.ring.as_ref().is_some_and(|ring| ring.is_due(self.latest)) {
            self.shared.wants_known.store(true, Ordering::Relaxed);
        }
    }

    /// Closes the frame that is being filled.
    fn close(&mut self) {
        self.flushed = Instant::now();
        match self.framer.close() {
            Ok(Some(frame)) => self.keep(frame),
            Ok(None) => {}
            Err(error) => self.fail(&error, 0),
        }
        self.tell();
    }

    /// Puts a frame where it belongs.
    fn keep(&mut self, frame: Frame) {
        if self.ended.is_some() {
            return;
        }
        if let Some(ring) = &mut self.ring {
            if !ring.add(frame) {
                self.shared.wants_known.store(true, Ordering::Relaxed);
            }
            return;
        }
        if self.written + frame.bytes.len() as u64 + LAST_WORDS > self.most {
            self.shared.lost.fetch_add(frame.lines, Ordering::Relaxed);
            let reason = "the file has its size".to_owned();
            self.last_words(Ended::Whole(reason), frame.lines);
            return;
        }
        if let Err(error) = self.put(&frame) {
            self.fail(&error, frame.lines);
            return;
        }
        if self.frames.is_multiple_of(HEADER_EVERY) {
            self.put_header();
        }
        self.tell();
    }

    fn put_header(&mut self) {
        let header = framed(&[Line::Header(self.header.clone())]);
        if let Err(error) = header.and_then(|header| self.put(&header)) {
            self.fail(&error, 0);
        }
        self.tell();
    }

    /// Writes a frame in whole, or leaves the file as it was.
    fn put(&mut self, frame: &Frame) -> io::Result<()> {
        if let Err(error) = self.file.write_all(&frame.bytes) {
            // A frame that is cut off says nothing, and its room is needed for the last words.
            let _ = self.file.set_len(self.written);
            let _ = self.file.seek(SeekFrom::Start(self.written));
            return Err(error);
        }
        self.written += frame.bytes.len() as u64;
        self.frames += 1;
        self.events += frame.events;
        // Not every file system can; then the last words find no room in the worst case.
        let _ =
            rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::KEEP_SIZE, self.written, RESERVE);
        Ok(())
    }

    /// The file takes no more.
    fn fail(&mut self, error: &io::Error, lines: u64) {
        if self.ended.is_some() {
            return;
        }
        self.shared.lost.fetch_add(lines, Ordering::Relaxed);
        let why = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "the disk is full".to_owned(),
            io::ErrorKind::FileTooLarge => "the file may not become larger (ulimit -f)".to_owned(),
            _ => format!("the file cannot be written: {error}"),
        };
        // What is reserved is given back: the last words go there.
        let _ = self.file.set_len(self.written);
        self.last_words(Ended::Failed(why), lines);
    }

    /// Tells what is missing and why it ends, where the file takes that.
    fn last_words(&mut self, ended: Ended, missing: u64) {
        let (at, reason) = (self.latest, ended.words().to_owned());
        let mut lines = Vec::new();
        if missing > 0 {
            lines.push(Line::Loss(Loss { at, lines: missing, reason: reason.clone() }));
        }
        lines.push(Line::Header(self.header.clone()));
        let lost = self.shared.lost.load(Ordering::Relaxed);
        lines.push(Line::End(End { at, reason, events: self.events, lost }));
        if let Ok(frame) = framed(&lines) {
            let _ = self.put(&frame);
        }
        // Gives back what was kept free behind it.
        let _ = self.file.set_len(self.written);
        self.ended = Some(ended);
        self.tell();
    }

    fn stop(mut self, at: Ns, ended: Ended, gap: u64) {
        self.latest = self.latest.max(at);
        // On a disk that plegscope must not write to, not even the rest is written.
        if matches!(ended, Ended::OnTheDisk(_)) {
            self.ended.get_or_insert(ended);
            return self.tell();
        }
        self.close();
        if self.ended.is_none() {
            // What is held was never asked for.
            self.ring = None;
            self.last_words(ended, gap);
        }
    }

    /// Says how far it is.
    fn tell(&self) {
        let latest = self.latest;
        let ring = self.ring.as_ref().map(|ring| RingStatus {
            bytes: ring.bytes(),
            most: ring.most(),
            events: ring.events(),
            reach: ring.reach(latest),
            cut: ring.is_cut(),
        });
        self.shared.update(|status| {
            status.bytes = self.written;
            status.events = self.events;
            status.ring = ring;
            if let Some(ended) = &self.ended {
                status.ended.get_or_insert_with(|| ended.clone());
            }
        });
    }
}

/// One frame of these lines.
fn framed(lines: &[Line]) -> io::Result<Frame> {
    let mut framer = Framer::new()?;
    for line in lines {
        if let Some(frame) = framer.line(line)? {
            return Ok(frame);
        }
    }
    framer.close()?.ok_or_else(|| io::Error::other("no lines"))
}
