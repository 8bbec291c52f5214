//! The way out of the warden: a bounded queue and one thread that writes to the socket. Nobody else waits for the
//! parent; what does not fit is counted.

use super::protocol::{EVENTS_AT_ONCE, Level, Message, frame};
use crate::event::{Body, Event, LossPoint};
use std::{
    io::Write,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

/// Messages that may wait for the parent.
const QUEUE: usize = 256;

/// A handle for sending; cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    queue: SyncSender<Vec<u8>>,
    lost: Arc<AtomicU64>,
}

impl Outbox {
    /// Starts the writing thread.
    pub fn new(socket: Arc<UnixStream>) -> Outbox {
        let (queue, messages) = sync_channel::<Vec<u8>>(QUEUE);
        std::thread::spawn(move || {
            for message in messages {
                if (&*socket).write_all(&message).is_err() {
                    // The parent is gone; the main thread sees that too and exits.
                    return;
                }
            }
        });
        Outbox { queue, lost: Arc::default() }
    }

    fn put(&self, message: &Message, events: u64) {
        let sent = frame(message).is_ok_and(|frame| match self.queue.try_send(frame) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        });
        if !sent {
            self.lost.fetch_add(events.max(1), Ordering::Relaxed);
        }
    }

    /// Sends a message that is not about events.
    pub fn send(&self, message: &Message) {
        self.put(message, 0);
    }

    /// Hands over a message that must not be lost, waiting this long for room; whether that went well.
    pub fn offer(&self, message: &Message, patience: Duration) -> bool {
        const STEP: Duration = Duration::from_millis(1);
        let Ok(mut frame) = frame(message) else { return false };
        let end = Instant::now() + patience;
        loop {
            match self.queue.try_send(frame) {
                Ok(()) => return true,
                Err(TrySendError::Full(back)) if Instant::now() < end => frame = back,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => return false,
            }
            std::thread::sleep(STEP);
        }
    }

    /// Sends a line for the log.
    pub fn log(&self, level: Level, line: impl Into<String>) {
        self.send(&Message::Log(level, line.into()));
    }

    /// Sends events, in pieces, with what was lost before them.
    pub fn events(&self, mut events: Vec<Event>) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let at = events.first().map_or_else(crate::node::clock::monotonic, |e| e.at);
            events.insert(0, Event { at, body: Body::Lost { at: LossPoint::Queue, count: lost } });
        }
        while !events.is_empty() {
            let rest = events.split_off(events.len().min(EVENTS_AT_ONCE));
            let count = events.len() as u64;
            self.put(&Message::Events(events), count);
            events = rest;
        }
    }
}
