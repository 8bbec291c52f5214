//! The screen between the source and the terminal: it follows like any other verb, on the thread that follows; what it
//! hears goes through a bounded queue to a thread that draws, and what the user wants comes back to be done where the
//! source is.
//!
//! ```text
//! source ─> Screen ──queue──> draw: model, picture ──Output──> terminal
//!             ^                 │  ^
//!             └──── wishes ─────┘  └── keys (a thread that reads the terminal)
//! ```
//!
//! A terminal that does not take what is written holds up neither: a picture is made only when the one before is out.

mod aside;
mod draw;
mod files;
mod hands;

use super::follow::{Follower, Moment, Why};
use super::output::{Output, Streams};
use crate::{
    capture::{Line, player::Speed, recorder::Status},
    correlator::Frame,
    event::{Ns, Role},
    exit::Exit,
    sinks::sanitise,
    source::Source,
    tui::{
        Message,
        message::{self, Capture, Position, Replay},
        model::Mode,
        terminal,
    },
    warden::protocol::{Level, Survey},
};
use anyhow::Context;
use aside::Aside;
use hands::Wish;
use std::{
    io::Write,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, TrySendError, channel},
    },
};
use tokio::sync::Notify;

/// Messages that may wait for the thread that draws: some seconds of a busy node.
const MOST_WAITING: usize = 512;

/// Follows on a screen.
pub struct Screen {
    mode: Mode,
    colours: bool,
    aside: Arc<Aside>,
    wake: Arc<Notify>,
    wishes: Receiver<Wish>,
    wish: Sender<Wish>,
    drawing: Option<draw::Drawing>,
    inbox: Option<SyncSender<Message>>,
    /// Moments that the thread that draws did not take.
    skipped: u64,
    position: Position,
    capture: Capture,
    /// A file is being made for a capture, or one is being ended.
    busy: bool,
    /// What is said when the screen is gone.
    last_words: Vec<String>,
}

/// Whether there is a terminal for a screen.
pub fn is_possible() -> bool {
    terminal::is_there()
}

impl Screen {
    /// Not drawn yet: no thread may be started before the warden was forked.
    pub fn new(mode: Mode, no_color: bool) -> Screen {
        let (wish, wishes) = channel();
        Screen {
            capture: match &mode {
                Mode::Live => Capture::Off,
                Mode::Replay(_) => Capture::Not("this is one already".to_owned()),
            },
            mode,
            colours: !no_color && terminal::wants_colours(),
            aside: Arc::default(),
            wake: Arc::default(),
            wishes,
            wish,
            drawing: None,
            inbox: None,
            skipped: 0,
            position: Position::default(),
            busy: false,
            last_words: Vec::new(),
        }
    }

    /// Hands something to the thread that draws; live, without waiting.
    fn tell(&mut self, message: Message) {
        let Some(inbox) = &self.inbox else { return };
        if self.skipped > 0 && inbox.try_send(Message::Skipped(self.skipped)).is_ok() {
            self.skipped = 0;
        }
        if matches!(self.mode, Mode::Replay(_)) {
            // A capture can wait, and the thread that draws does not make it wait long. That it has failed is seen at the
            // next frame.
            let _ = inbox.send(message);
        } else if let Err(TrySendError::Full(_)) = inbox.try_send(message) {
            self.skipped += 1;
        }
    }

    /// Gives the terminal back.
    fn close(&mut self) {
        self.inbox = None;
        if let Some(drawing) = self.drawing.take() {
            self.last_words.splice(0..0, drawing.end());
        }
        self.aside.close();
    }

    fn position(&mut self, source: &mut Source) {
        let Some(player) = source.player() else { return };
        let (from, to) = player.span();
        let speed = match player.speed() {
            Speed::Times(times) => (times * 1_000.0).clamp(1.0, f64::from(u32::MAX)) as u32,
            Speed::Max => u32::MAX,
        };
        let (at, paused) = (player.position(), player.is_paused());
        let ended = player.wait() == crate::capture::player::Wait::Over;
        let position = Position { from, to, at, paused, speed, ended };
        if position != self.position {
            self.position = position.clone();
            self.tell(Message::Position(position));
        }
    }

    fn capturing(&mut self, source: &mut Source) {
        let Some(recorder) = source.live().and_then(|live| live.recorder()) else { return };
        let status = recorder.status();
        let capture = Capture::On(status.path.display().to_string(), status.bytes);
        if recorder.is_over().is_some() && !self.busy {
            self.stop_capture(source);
        } else if capture != self.capture {
            self.capture = capture.clone();
            self.tell(Message::Capture(capture));
        }
    }

    fn stop_capture(&mut self, source: &mut Source) {
        let Some(recorder) = source.live().and_then(|live| live.take_recorder()) else { return };
        self.busy = true;
        let reason = recorder.is_over().unwrap_or_else(|| "ended at the screen".to_owned());
        files::stop(recorder, reason, self.wish.clone(), Arc::clone(&self.wake));
    }

    fn captured(&mut self, status: &Status) {
        self.busy = false;
        let (file, how) = files::words(status);
        self.last_words.push(format!("plegscope: captured to {file}: {how}"));
        self.capture = Capture::Over(file, how);
        self.tell(Message::Capture(self.capture.clone()));
    }

    /// Does what is wished for; a reason to end when that is it.
    fn grant(&mut self, wish: Wish, source: &mut Source) -> Option<Why> {
        match wish {
            Wish::Quit => return Some(Why::Enough),
            Wish::Capture(_) if self.busy => self.tell(Message::Told("one moment…".to_owned())),
            Wish::Capture(true) => {
                let live = source.live()?;
                self.busy = true;
                files::place(live.header(), self.wish.clone(), Arc::clone(&self.wake));
            }
            Wish::Capture(false) => self.stop_capture(source),
            Wish::Place(place) => {
                self.busy = false;
                let live = source.live()?;
                match place.and_then(|place| files::start(place, live)) {
                    Ok(file) => self.tell(Message::Told(format!("capturing to {file}; w ends it"))),
                    Err(why) => self.tell(Message::Told(format!("no capture: {why}"))),
                }
            }
            Wish::Stopped(status) => self.captured(&status),
            Wish::Exported(Ok(file)) => {
                self.last_words.push(format!("plegscope: exported to {file}"));
                self.tell(Message::Told(format!("exported to {file}")));
            }
            Wish::Exported(Err(why)) => self.tell(Message::Told(format!("not exported: {why}"))),
            Wish::Replay(wish) => self.replay(wish, source),
        }
        None
    }

    fn replay(&mut self, wish: Replay, source: &mut Source) {
        let Some(player) = source.player() else { return };
        let moved = match wish {
            Replay::Pause(true) => {
                player.pause();
                Ok(())
            }
            Replay::Pause(false) => {
                player.resume();
                Ok(())
            }
            Replay::Seek(by) => player.seek(player.position().saturating_add_signed(by)),
            Replay::NextIncident => {
                player.next_incident();
                Ok(())
            }
            Replay::PreviousIncident => player.previous_incident().map(|_| ()),
            Replay::Speed(thousandths) => {
                player.set_speed(Speed::Times(f64::from(thousandths) / 1_000.0));
                Ok(())
            }
        };
        if let Err(error) = moved {
            self.tell(Message::Told(format!("the capture cannot be read there: {error}")));
        }
    }
}

impl Follower for Screen {
    fn messages(&mut self) -> Option<Box<dyn Write + Send>> {
        Some(Box::new(aside::Pen(Arc::clone(&self.aside))))
    }

    fn begin(&mut self, source: &mut Source, _: &Streams) -> anyhow::Result<()> {
        let out = Output::new(std::io::stdout()).context("starting to write")?;
        let header = source.header();
        let model = crate::tui::Model::new(self.mode.clone(), &header.host, terminal::size());
        let clock = header.clock;
        let hands = hands::Hands::new(self.wish.clone(), Arc::clone(&self.wake), &self.mode, header);
        let (drawing, inbox) =
            draw::start(model, self.colours, out, hands, MOST_WAITING).context("taking over the terminal")?;
        self.drawing = Some(drawing);
        self.aside.open(inbox.clone());
        self.inbox = Some(inbox);
        self.tell(Message::Clock(clock));
        self.tell(Message::Capture(self.capture.clone()));
        self.position(source);
        Ok(())
    }

    fn frame(&mut self, frame: Frame, _: &Moment<'_>) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.drawing.as_ref().is_some_and(draw::Drawing::is_alive),
            "the screen has failed; run plegscope with --plain and report it"
        );
        self.tell(Message::Frame(Arc::new(frame)));
        Ok(())
    }

    fn passed(&mut self, frame: Frame) {
        self.tell(Message::Passed(Arc::new(frame)));
    }

    fn line(&mut self, line: &Line, moment: &Moment<'_>) -> anyhow::Result<()> {
        match line {
            Line::Clock(clock) => self.tell(Message::Clock(*clock)),
            Line::Survey(survey) => self.tell(Message::Probing(Arc::new(probing(survey)))),
            // Live, these come as messages.
            Line::Log { at, level, text } if moment.clock.is_some() && *level != Level::Debug => {
                self.tell(Message::Log(format!("{} {}", moment.time(*at), sanitise(text))));
            }
            Line::Loss(loss) => {
                let (at, why) = (moment.time(loss.at), sanitise(&loss.reason));
                self.tell(Message::Log(format!("{at} {} lines are missing here: {why}", loss.lines)));
            }
            Line::End(end) => {
                let (at, why) = (moment.time(end.at), sanitise(&end.reason));
                self.tell(Message::Log(format!("{at} the capture ends: {why}")));
            }
            _ => {}
        }
        Ok(())
    }

    fn enough(&mut self, source: &mut Source, _: &Streams) -> Option<Why> {
        while let Ok(wish) = self.wishes.try_recv() {
            if let Some(why) = self.grant(wish, source) {
                return Some(why);
            }
        }
        self.capturing(source);
        self.position(source);
        None
    }

    fn wake(&self) -> Option<Arc<Notify>> {
        Some(Arc::clone(&self.wake))
    }

    fn end(&mut self, source: &mut Source, _: Why, streams: &Streams) -> anyhow::Result<Exit> {
        self.close();
        if let Some(recorder) = source.live().and_then(|live| live.take_recorder()) {
            let status = recorder.stop("the screen was closed", files::PATIENCE);
            self.captured(&status);
        }
        for line in self.last_words.drain(..) {
            streams.out.line(format_args!("{}", sanitise(&line)));
        }
        Ok(Exit::Done)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.close();
    }
}

/// What is attached, in the screen's words.
fn probing(survey: &Survey) -> message::Probing {
    let count =
        |role| -> usize { survey.programs.iter().filter(|p| p.role == role).map(|p| p.pids.len()).sum() };
    let processes = [Role::Containerd, Role::Shim, Role::Kubelet].map(count);
    let attached_after: Option<Ns> = survey.attached_after;
    let probes = survey.probes.iter().map(|p| message::Probe {
        what: p.what.clone(),
        target: p.target.clone(),
        how: p.how.map(|how| crate::bpf::load::word(how).to_owned()),
        sites: p.sites,
        loss: p.loss.clone(),
        note: p.note.clone(),
    });
    let is_blind = attached_after.is_some() && processes[0] == 0;
    message::Probing {
        attached_after,
        probes: probes.collect(),
        processes,
        warning: is_blind.then(|| super::follow::no_containerd(survey)),
    }
}
