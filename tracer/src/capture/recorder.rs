//! Writes a capture while its caller goes on: a thread of its own behind a bounded queue. Whoever hands something over
//! never waits; what does not fit is counted, told in the file, and followed by all that is known at that time.
//!
//! ```text
//! lines ─> queue ─> framer ─> ring (before the trigger) ─> file
//! ```
//!
//! A recorder without [`Options::before`] writes at once. With it, what was heard is kept in memory until
//! [`Recorder::trigger`], and then written with what follows.

use super::ring::Ring;
use super::scribe::{Order, Scribe};
use super::{Header, Line, Loss, Place, Record};
use crate::correlator::{Change, EndsIn, Frame};
use crate::event::{Body, Device, Ns};
use crate::thresholds::{MILLISECOND, SECOND};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Lines that may wait for the thread, about 16 MB.
pub const MOST_WAITING: usize = 32_768;
/// Pieces that may wait, each the lines of a moment.
const MOST_PIECES: usize = 4_096;
/// Bytes of the ring where nothing else is asked for: a minute of 10,000 events a second.
pub const RING_BYTES: u64 = 16 << 20;
/// Bytes of the file where nothing else is asked for.
pub const FILE_BYTES: u64 = 256 << 20;
/// After the last incident is over it goes on for this long: something more may come of it.
const AFTERMATH: Ns = 5 * SECOND;
/// Stack of the thread.
const STACK: usize = 256 << 10;

/// How to record.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the capture begins with.
    pub header: Header,
    /// Keep this much in memory, in nanoseconds, until the trigger; `None` to write at once.
    pub before: Option<Ns>,
    /// Bytes that the ring may take.
    pub ring: u64,
    /// Bytes that the file may have.
    pub most: u64,
    /// The first incident is the trigger, and when the last is over the capture is, too.
    pub until_incident: bool,
    /// Go on although the chain ends in the disk that the file is on.
    pub force: bool,
}

impl Options {
    /// Writes at once, within the usual bounds.
    pub fn new(header: Header) -> Options {
        Options {
            header,
            before: None,
            ring: RING_BYTES,
            most: FILE_BYTES,
            until_incident: false,
            force: false,
        }
    }
}

/// How far a capture is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The file.
    pub path: PathBuf,
    /// Bytes in the file.
    pub bytes: u64,
    /// Events in the file.
    pub events: u64,
    /// Lines that are on the way to the file, or to memory.
    pub waiting: u64,
    /// Lines that were lost on the way.
    pub lost: u64,
    /// What is held in memory, while it waits for the trigger.
    pub ring: Option<RingStatus>,
    /// Why nothing more is written; `None` while it goes on.
    pub ended: Option<Ended>,
}

/// What is held in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingStatus {
    /// Bytes.
    pub bytes: u64,
    /// Bytes that it may have.
    pub most: u64,
    /// Events.
    pub events: u64,
    /// How far it reaches back, in nanoseconds.
    pub reach: Ns,
    /// Whether that is less than asked for, for want of room.
    pub cut: bool,
}

/// Why nothing more is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As it should; why, in words.
    Whole(String),
    /// The file takes no more; why, in words. What was written before can be read.
    Failed(String),
    /// The file lies on the disk that the chain ends in; which, in words.
    OnTheDisk(String),
}

impl Ended {
    /// Why, in words.
    pub fn words(&self) -> &str {
        match self {
            Ended::Whole(why) | Ended::Failed(why) | Ended::OnTheDisk(why) => why,
        }
    }
}

/// What both sides see.
pub(super) struct Shared {
    /// Lines on the way.
    pub waiting: AtomicUsize,
    /// Lines that were lost.
    pub lost: AtomicU64,
    /// Whether the thread wants to be told all that is known.
    pub wants_known: AtomicBool,
    pub status: Mutex<Status>,
}

impl Shared {
    fn status(&self) -> Status {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.lost = self.lost.load(Ordering::Relaxed);
        status.waiting = self.waiting.load(Ordering::Relaxed) as u64;
        status
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Writes a capture.
pub struct Recorder {
    queue: SyncSender<Order>,
    done: Receiver<()>,
    shared: Arc<Shared>,
    options: Options,
    /// The file system that the file is on, by all its numbers.
    devices: Vec<Device>,
    latest: Ns,
    /// Lines that did not fit since the last that did.
    gap: u64,
    /// Incidents are open.
    open: bool,
    /// When the last one was over.
    over_since: Option<Ns>,
    triggered: bool,
    /// Nothing more is taken.
    stopped: bool,
}

impl Recorder {
    /// Begins a capture; `known` is all that is known already, as [`Line::Known`] and [`Line::Survey`].
    pub fn start(place: Place, options: Options, known: Vec<Line>) -> io::Result<Recorder> {
        // A file that may not become larger is an error of the write, and no reason to be killed.
        // SAFETY: ignoring a signal touches no memory.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        let (queue, orders) = sync_channel(MOST_PIECES);
        let (finished, done) = sync_channel(1);
        let status = Status { path: place.path.clone(), ..Status::default() };
        let shared = Arc::new(Shared {
            waiting: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            wants_known: AtomicBool::new(false),
            status: Mutex::new(status),
        });
        let ring = options.before.map(|before| Ring::new(before, options.ring));
        let theirs = Arc::clone(&shared);
        let scribe = Scribe::new(place.file, options.header.clone(), options.most, ring, theirs)?;
        std::thread::Builder::new().name("capture".into()).stack_size(STACK).spawn(move || {
            scribe.run(orders);
            let _ = finished.send(());
        })?;
        let mut recorder = Recorder {
            queue,
            done,
            shared,
            latest: options.header.clock.monotonic,
            triggered: options.before.is_none(),
            options,
            devices: place.devices,
            gap: 0,
            open: false,
            over_since: None,
            stopped: false,
        };
        for line in &known {
            if let Line::Known(event) = line {
                recorder.guard_event(&event.body);
            }
        }
        recorder.send(Order::Begin(known));
        Ok(recorder)
    }

    /// Takes the lines of a moment, in their order, before they are played.
    pub fn lines(&mut self, lines: &[Line]) {
        if self.stopped {
            return;
        }
        for line in lines {
            match line {
                Line::Heard(at) => self.latest = self.latest.max(*at),
                Line::Event(event) => self.guard_event(&event.body),
                Line::Clock(clock) => self.options.header.clock = *clock,
                _ => {}
            }
        }
        if self.gap > 0 {
            self.lose(lines.len() as u64);
        } else {
            self.send(Order::Lines(lines.to_vec()));
        }
    }

    /// Takes a frame that followed from them: what is to be known of its incidents, and whether it is the trigger.
    pub fn frame(&mut self, frame: &Frame) {
        if self.stopped {
            return;
        }
        let changed = frame.incidents.iter().filter(|incident| incident.change.is_some());
        let lines: Vec<Line> = changed
            .map(|incident| Line::Incident(Box::new(Record::of(&self.options.header, frame, incident))))
            .collect();
        if !lines.is_empty() {
            if self.gap > 0 {
                self.lose(lines.len() as u64);
            } else {
                self.send(Order::Lines(lines));
            }
        }
        self.guard_chains(frame);
        let open = frame.incidents.iter().any(|incident| incident.ended.is_none());
        let crossed = frame.incidents.iter().any(|incident| incident.change == Some(Change::Crossed));
        if self.options.until_incident {
            if (crossed || open) && !self.triggered {
                self.trigger();
            }
            if self.open && !open {
                self.over_since = Some(frame.now);
            } else if open {
                self.over_since = None;
            }
        }
        self.open = open;
    }

    /// To be called when the moment was played: `known` gives all that is known now, and is asked only when that is
    /// needed, since the file must begin anew after a gap, or a segment of the ring begins.
    pub fn settle(&mut self, known: impl FnOnce() -> Vec<Line>) {
        if self.stopped || (self.gap == 0 && !self.shared.wants_known.load(Ordering::Relaxed)) {
            return;
        }
        let mut lines = Vec::new();
        if self.gap > 0 {
            // The queue must have room again for more than this.
            if self.shared.waiting.load(Ordering::Relaxed) > MOST_WAITING / 2 {
                return;
            }
            let reason = "the disk, or this program, did not keep up".to_owned();
            lines.push(Line::Loss(Loss { at: self.latest, lines: self.gap, reason }));
        }
        self.shared.wants_known.store(false, Ordering::Relaxed);
        lines.extend(known());
        self.gap = 0;
        self.send(Order::Begin(lines));
    }

    /// Writes what is held in memory, and all that follows; see [`Recorder::is_triggered`].
    pub fn trigger(&mut self) {
        if !self.triggered {
            // Where the queue has no room at this moment it is to be tried again.
            self.triggered = self.queue.try_send(Order::Trigger).is_ok();
        }
    }

    /// Whether what was waited for has come.
    pub fn is_triggered(&self) -> bool {
        self.triggered
    }

    /// Why it should be stopped, once there is a reason: the incident is over, or nothing more can be written.
    pub fn is_over(&self) -> Option<String> {
        let after = self.over_since.is_some_and(|since| self.latest.saturating_sub(since) >= AFTERMATH);
        if after {
            return Some("the incident is over".to_owned());
        }
        self.status().ended.map(|ended| ended.words().to_owned())
    }

    /// How far it is.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Ends the capture and waits for at most `patience` until all of it is written; what is known then. When the file
    /// lies on a disk that is stuck, `ended` is `None`.
    pub fn stop(mut self, reason: &str, patience: Duration) -> Status {
        self.end(Ended::Whole(reason.to_owned()), patience);
        drop(self.queue);
        let _ = self.done.recv_timeout(patience);
        self.shared.status()
    }

    /// Nothing more is taken. A last message finds room for at most `patience`.
    fn end(&mut self, ended: Ended, patience: Duration) {
        if std::mem::replace(&mut self.stopped, true) {
            return;
        }
        let mut order = Order::Stop { at: self.latest, ended, gap: std::mem::take(&mut self.gap) };
        let step = Duration::from_nanos(5 * MILLISECOND);
        let mut waited = Duration::ZERO;
        while let Err(std::sync::mpsc::TrySendError::Full(back)) = self.queue.try_send(order) {
            if waited >= patience {
                return;
            }
            order = back;
            std::thread::sleep(step);
            waited += step;
        }
    }

    /// Hands over, or counts as lost what does not fit.
    fn send(&mut self, order: Order) {
        let lines = order.lines();
        let before = self.shared.waiting.fetch_add(lines, Ordering::Relaxed);
        // What is known must fit whatever its length, else a gap would never end.
        let fits = before == 0 || before + lines <= MOST_WAITING;
        if !fits || self.queue.try_send(order).is_err() {
            self.shared.waiting.fetch_sub(lines, Ordering::Relaxed);
            self.lose(lines as u64);
        }
    }

    fn lose(&mut self, lines: u64) {
        self.gap += lines;
        self.shared.lost.fetch_add(lines, Ordering::Relaxed);
    }

    /// A container whose writable layer is on the file system of the file.
    fn guard_event(&mut self, body: &Body) {
        if let Body::Container(container) = body
            && let Some((device, fs_type)) = &container.upper
            && self.devices.contains(device)
        {
            self.refuse(&format!("the writable layers of containers are on it ({fs_type} {device})"));
        }
    }

    /// A chain that ends in the file system of the file.
    fn guard_chains(&mut self, frame: &Frame) {
        let mut ends = frame.diagnoses.iter().filter_map(|diagnosis| match &diagnosis.ends_in {
            EndsIn::UnmountSync { device, .. }
            | EndsIn::Sync { device, .. }
            | EndsIn::Unmount { device, .. } => device.as_ref(),
            _ => None,
        });
        if let Some(device) = ends.find(|device| self.devices.contains(&device.device)) {
            let name = device.name.clone().unwrap_or_else(|| device.device.to_string());
            self.refuse(&format!("a chain ends in it ({name})"));
        }
    }

    fn refuse(&mut self, why: &str) {
        if self.options.force || self.stopped {
            return;
        }
        let why = format!("the file is on the disk that plegscope must not write to: {why}");
        self.end(Ended::OnTheDisk(why.clone()), Duration::ZERO);
        // Told at once: the thread may be with a write that does not come back.
        self.shared.update(|status| status.ended = Some(Ended::OnTheDisk(why)));
    }
}
