//! The thread that draws, and the one that reads keys.

use super::super::output::{Output, has_no_reader};
use super::hands::Hands;
use crate::correlator::{EndsIn, Frame};
use crate::node::own;
use crate::tui::message::{Own, TICKS};
use crate::tui::paint::Painter;
use crate::tui::view::{ink::Palette, view};
use crate::tui::{Effect, Message, Model, terminal, update};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Time between two ticks, and before a picture of something new.
const TICK: Duration = Duration::from_millis(1_000 / TICKS);
/// Time between two pictures in which nothing but ages and counts is new: drawing is half of what the screen costs.
const PACE: Duration = Duration::from_millis(500);
/// Time between two pictures that follow keys or sizes.
const QUICK: Duration = Duration::from_millis(25);
/// Messages that are taken in before the next picture.
const AT_ONCE: usize = 256;
/// How often it is asked what plegscope itself takes.
const OWN_EVERY: Duration = Duration::from_secs(5);
/// How long the end waits for the terminal.
const PATIENCE: Duration = Duration::from_millis(150);
/// Stack of the threads.
const STACK: usize = 512 << 10;

/// A screen that is drawn.
pub struct Drawing {
    thread: Option<JoinHandle<Vec<String>>>,
    inbox: SyncSender<Message>,
    stop: Arc<AtomicBool>,
}

impl Drawing {
    /// Whether the thread that draws has not failed.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Gives the terminal back; what remains to be said.
    pub fn end(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Release);
        // It looks at that at its next tick at the latest.
        let _ = self.inbox.try_send(Message::Tick);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

/// Takes over the terminal.
pub fn start(
    model: Model,
    colours: bool,
    out: Output,
    hands: Hands,
    most_waiting: usize,
) -> io::Result<(Drawing, SyncSender<Message>)> {
    let (inbox, messages) = sync_channel(most_waiting);
    let stop = Arc::new(AtomicBool::new(false));
    out.write(terminal::enter()?);
    let keys = (inbox.clone(), Arc::clone(&stop));
    thread::Builder::new()
        .name("keys".into())
        .stack_size(STACK)
        .spawn(move || read_keys(&keys.0, &keys.1))?;
    let screen = Thread {
        model,
        painter: Painter::default(),
        palette: Palette { colours },
        out,
        hands,
        messages,
        stop: Arc::clone(&stop),
        costs: Costs::default(),
    };
    let thread =
        thread::Builder::new().name("screen".into()).stack_size(STACK).spawn(move || screen.run())?;
    let drawing = Drawing { thread: Some(thread), inbox: inbox.clone(), stop };
    Ok((drawing, inbox))
}

/// Reads keys and sizes until the end. Never waits for the thread that draws: a key too many is not worth it.
fn read_keys(inbox: &SyncSender<Message>, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        match terminal::next(TICK) {
            Ok(Some(message)) => {
                let _ = inbox.try_send(message);
            }
            Ok(None) => {}
            // The terminal is gone; whoever follows sees that too.
            Err(_) => return,
        }
    }
}

struct Thread {
    model: Model,
    painter: Painter,
    palette: Palette,
    out: Output,
    hands: Hands,
    messages: Receiver<Message>,
    stop: Arc<AtomicBool>,
    costs: Costs,
}

impl Thread {
    fn run(mut self) -> Vec<String> {
        let mut next_tick = Instant::now() + TICK;
        let mut drawn = Instant::now();
        // When the next picture is due, if anything has changed.
        let mut due = Some(drawn);
        while !self.stop.load(Ordering::Acquire) {
            let until = due.map_or(next_tick, |due| due.min(next_tick));
            match self.messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(message) => {
                    let mut wait = self.take(message);
                    let more: Vec<Message> = self.messages.try_iter().take(AT_ONCE).collect();
                    for message in more {
                        wait = wait.min(self.take(message));
                    }
                    let at = drawn + wait;
                    due = Some(due.map_or(at, |due| due.min(at)));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                self.take(Message::Tick);
                // At the end of a capture nobody else would notice.
                if has_no_reader(&io::stdout()) {
                    self.hands.wish(Effect::Quit);
                }
                if let Some(own) = self.costs.sample(now) {
                    self.take(Message::Own(own));
                }
                due.get_or_insert(drawn + PACE);
            }
            // A terminal that has not taken the last picture gets no other.
            if due.is_some_and(|due| now >= due) {
                if self.out.is_idle() {
                    self.draw();
                    (drawn, due) = (now, None);
                } else {
                    due = Some(now + QUICK);
                }
            }
        }
        self.out.write(terminal::leave());
        self.out.finish(PATIENCE);
        update::last_words(&self.model)
    }

    /// Takes a message in; how long a picture may wait for others after the one before.
    fn take(&mut self, message: Message) -> Duration {
        let wait = match &message {
            Message::Key(_) | Message::Resize(..) | Message::Told(_) => QUICK,
            // Only what somebody has asked for; that time goes on is seen at the next tick.
            Message::Position(next) if next.is_elsewhere(&self.model.position) => QUICK,
            Message::Frame(frame) if !is_news(frame, self.model.latest.as_deref()) => PACE,
            Message::Position(_) | Message::Passed(_) => PACE,
            _ => TICK,
        };
        for effect in update::update(&mut self.model, message) {
            if effect == Effect::Redraw {
                self.painter.forget();
            }
            self.out.write(self.hands.wish(effect));
        }
        wait
    }

    fn draw(&mut self) {
        let (model, palette) = (&self.model, self.palette);
        // Painting goes to memory, which does not fail.
        let picture = self.painter.paint(model.size, |area, buffer| view(model, palette, area, buffer));
        self.out.write(picture.unwrap_or_default());
    }
}

/// Whether a frame tells something else than that time has passed.
fn is_news(frame: &Frame, before: Option<&Frame>) -> bool {
    fn ends(frame: &Frame) -> impl Iterator<Item = &EndsIn> {
        frame.diagnoses.iter().map(|diagnosis| &diagnosis.ends_in)
    }
    before.is_none_or(|before| !ends(frame).eq(ends(before)))
        || frame.incidents.iter().any(|incident| incident.change.is_some())
}

/// What plegscope itself takes, from one sample to the next.
#[derive(Default)]
struct Costs {
    before: Option<(Instant, [Option<u64>; 2])>,
}

impl Costs {
    fn sample(&mut self, now: Instant) -> Option<Own> {
        if self.before.as_ref().is_some_and(|(at, _)| now - *at < OWN_EVERY) {
            return None;
        }
        let usage = [own::usage(std::process::id()), own::child().and_then(own::usage)];
        let cpu = usage.map(|usage| usage.map(|usage| usage.cpu));
        let before = self.before.replace((now, cpu));
        let share = |n: usize| {
            let (at, cpu_before) = before.as_ref()?;
            let passed = (now - *at).as_nanos().max(1);
            let used = u128::from(cpu[n]?.checked_sub(cpu_before[n]?)?);
            u32::try_from(used * 1_000_000 / passed).ok()
        };
        let resident = usage.map(|usage| usage.map(|usage| usage.resident));
        Some(Own { cpu_ppm: [share(0), share(1)], resident })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correlator::Correlator;
    use crate::event::{Actor, Began, Body, Event, Kind, Ns, Operation, Outcome, SeenBy};
    use crate::thresholds::{SECOND, Thresholds};

    #[test]
    fn what_begins_crosses_and_ends_is_drawn_at_once_and_what_grows_older_is_not() {
        let unmount = || Operation {
            kind: Kind::Unmount,
            method: String::new(),
            actor: Actor { pid: 5, tid: 5, g: None, goid: None },
            begin: SECOND,
            began: Began::Then,
            object: 0,
            container: None,
            path: None,
            device: None,
            fs_type: None,
            seen_by: SeenBy::Uprobe,
        };
        let mut correlator = Correlator::new(Thresholds::default());
        let mut before: Option<Frame> = None;
        let mut drawn_at_once = |at: Ns, body: Option<Body>| {
            correlator.apply(&Event { at, body: body.unwrap_or(Body::InFlight(unmount())) });
            let frame = correlator.tick(at);
            let news = is_news(&frame, before.as_ref());
            before = Some(frame);
            news
        };
        let quiet = Body::Memory { dirty: 1, writeback: 0 };
        assert!(drawn_at_once(SECOND, Some(quiet.clone())), "the first");
        assert!(!drawn_at_once(SECOND + 1, Some(quiet.clone())));
        assert!(drawn_at_once(3 * SECOND, None), "it is shown");
        assert!(!drawn_at_once(4 * SECOND, None), "it is older");
        assert!(drawn_at_once(SECOND + Thresholds::DEFAULT.unmount, None), "it crosses its threshold");
        assert!(!drawn_at_once(7 * SECOND, None));
        assert!(drawn_at_once(8 * SECOND, Some(Body::Ended(unmount(), Outcome::Done))), "it ends");
        assert!(!drawn_at_once(9 * SECOND, Some(quiet)));
    }
}
