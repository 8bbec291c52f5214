//! Where frames come from: live, from the warden, or from a capture. The only place that knows the difference.
//!
//! What the warden tells becomes lines of a capture first, whether or not one is written, and goes through the same
//! player of lines: so a capture tells later what was told on the node.

use crate::capture::line::Clock;
use crate::capture::player::{Player, Wait};
use crate::capture::redact::Redactor;
use crate::capture::replay::{Replay, Told};
use crate::capture::{Header, Line, ReadError, Recorder, VERSION};
use crate::event::Ns;
use crate::node::clock::{self, Anchor};
use crate::thresholds::{SECOND, TICK_EVERY, Thresholds};
use crate::warden::protocol::{self, Cost, Message};
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use std::{future, io};
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep, sleep_until};

/// While something begins or is young the warden tells of it ten times a second; after this time without a word the clock
/// goes on without it.
const SILENCE: Duration = Duration::from_nanos(TICK_EVERY + TICK_EVERY / 2);
/// How often the clocks are compared: one that was set, or a suspend, is no matter of milliseconds.
const CLOCKS_EVERY: Ns = 10 * SECOND;

/// What a source tells.
#[expect(clippy::large_enum_variant, reason = "one lives at a time")]
pub enum News {
    /// A frame, or a line that is no event.
    Told(Told),
    /// Counters of what was begun; only live, and no part of a capture.
    Begun(Vec<Cost>),
    /// It cannot go on, and why; only live.
    Fatal(String),
}

/// Why there is no more, other than by its end.
#[derive(Debug, Error)]
pub enum SourceError {
    /// What the warden says cannot be heard.
    #[error("hearing from the warden")]
    Warden(#[source] io::Error),
    /// It has ended.
    #[error("the warden process ended; run plegscope again with --verbose and report it")]
    Ended,
    /// The capture cannot be read.
    #[error(transparent)]
    Capture(#[from] ReadError),
}

/// Where frames come from.
#[expect(clippy::large_enum_variant, reason = "one lives at a time")]
pub enum Source {
    /// This node, now.
    Live(Live),
    /// A capture.
    Capture(Played),
}

impl Source {
    /// The next there is to tell; `None` when a capture is over. May be cancelled without losing anything.
    pub async fn next(&mut self) -> Result<Option<News>, SourceError> {
        match self {
            Source::Live(live) => live.next().await.map(Some),
            Source::Capture(played) => Ok(played.next().await?.map(News::Told)),
        }
    }

    /// What is captured, where and when.
    pub fn header(&self) -> &Header {
        match self {
            Source::Live(live) => &live.header,
            Source::Capture(played) => played.player.header(),
        }
    }

    /// The clock by which the time of day of a frame is told; `None` where that is the node's, now.
    pub fn clock(&self) -> Option<Clock> {
        match self {
            Source::Live(_) => None,
            Source::Capture(played) => Some(played.player.header().clock),
        }
    }

    /// This node, where that is the source.
    pub fn live(&mut self) -> Option<&mut Live> {
        match self {
            Source::Live(live) => Some(live),
            Source::Capture(_) => None,
        }
    }

    /// The player of the capture, where that is the source: pause, speed, jumps.
    pub fn player(&mut self) -> Option<&mut Player<File>> {
        match self {
            Source::Live(_) => None,
            Source::Capture(played) => Some(&mut played.player),
        }
    }
}

/// Messages of the warden as they come.
pub struct Messages {
    socket: tokio::net::UnixStream,
    buffer: Vec<u8>,
}

impl Messages {
    /// Listens to a warden; needs a runtime.
    pub fn new(socket: UnixStream) -> io::Result<Messages> {
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixStream::from_std(socket)?;
        Ok(Messages { socket, buffer: Vec::with_capacity(64 << 10) })
    }

    /// The next message; `None` when the warden has ended. May be cancelled without losing anything.
    pub async fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(message) = protocol::take(&mut self.buffer)? {
                return Ok(Some(message));
            }
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// This node, as the warden tells it.
pub struct Live {
    messages: Messages,
    /// With the clocks as they are now.
    header: Header,
    zone: jiff::tz::TimeZone,
    replay: Replay,
    redactor: Option<Redactor>,
    recorder: Option<Recorder>,
    /// The last survey: a capture that begins later begins with it.
    survey: Option<Line>,
    silent_at: Instant,
    /// When the clocks are compared next.
    clocks_at: Ns,
    /// They are not as they were at first: a capture that begins earlier must be told.
    clock: Option<Line>,
    news: VecDeque<News>,
}

impl Live {
    /// Listens to a warden; needs a runtime. With a redactor no name passes beyond here but its hash.
    pub fn new(
        socket: UnixStream,
        mut header: Header,
        zone: &jiff::tz::TimeZone,
        mut redactor: Option<Redactor>,
    ) -> io::Result<Live> {
        if let Some(redactor) = &mut redactor {
            redactor.header(&mut header);
        }
        Ok(Live {
            messages: Messages::new(socket)?,
            replay: Replay::new(header.thresholds.clone()),
            header,
            zone: zone.clone(),
            redactor,
            recorder: None,
            survey: None,
            silent_at: Instant::now() + SILENCE,
            clocks_at: 0,
            clock: None,
            news: VecDeque::new(),
        })
    }

    /// What a capture that begins now begins with.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// All that is known by now.
    pub fn known(&self) -> Vec<Line> {
        let first = self.survey.iter().chain(&self.clock).cloned();
        first.chain(self.replay.known().into_iter().map(Line::Known)).collect()
    }

    /// From now on all that is heard goes to this recorder too; the one before is given back.
    pub fn record(&mut self, recorder: Recorder) -> Option<Recorder> {
        self.recorder.replace(recorder)
    }

    /// The recorder, while there is one.
    pub fn recorder(&mut self) -> Option<&mut Recorder> {
        self.recorder.as_mut()
    }

    /// Takes the recorder away, to stop it.
    pub fn take_recorder(&mut self) -> Option<Recorder> {
        self.recorder.take()
    }

    async fn next(&mut self) -> Result<News, SourceError> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Ok(news);
            }
            let message = tokio::select! {
                message = self.messages.next() => {
                    Some(message.map_err(SourceError::Warden)?.ok_or(SourceError::Ended)?)
                }
                () = sleep_until(self.silent_at) => None,
            };
            let now = clock::monotonic();
            self.hear(message, now);
            // While nothing lasts, time alone changes nothing before the next whole second.
            let rest = self.replay.rests_until().map(|until| Duration::from_nanos(until.saturating_sub(now)));
            self.silent_at = Instant::now() + rest.unwrap_or(SILENCE).max(SILENCE);
        }
    }

    /// A message, or none, has come at `now`.
    fn hear(&mut self, message: Option<Message>, now: Ns) {
        let mut lines = match message {
            Some(Message::Events(events)) => events.into_iter().map(Line::Event).collect(),
            Some(Message::Survey(survey)) => vec![Line::Survey(survey)],
            Some(Message::Log(level, text)) => vec![Line::Log { at: now, level, text }],
            Some(Message::Cost(begun)) => {
                self.news.push_back(News::Begun(begun));
                Vec::new()
            }
            Some(Message::Fatal(reason)) => {
                self.news.push_back(News::Fatal(reason));
                Vec::new()
            }
            Some(Message::Exposure(_) | Message::Look(_) | Message::Looked(_)) | None => Vec::new(),
        };
        if let Some(redactor) = &mut self.redactor {
            lines.iter_mut().for_each(|line| redactor.line(line));
        }
        lines.extend(self.clocks(now));
        lines.push(Line::Heard(now));
        if let Some(recorder) = &mut self.recorder {
            recorder.lines(&lines);
        }
        for line in lines {
            if matches!(line, Line::Survey(_)) {
                self.survey = Some(line.clone());
            }
            self.replay.line(line, |told| {
                if let (Some(recorder), Told::Frame(frame)) = (&mut self.recorder, &told) {
                    recorder.frame(frame);
                }
                self.news.push_back(News::Told(told));
            });
        }
        if let Some(recorder) = &mut self.recorder {
            let (first, replay) = (self.survey.iter().chain(&self.clock), &self.replay);
            recorder.settle(|| first.cloned().chain(replay.known().into_iter().map(Line::Known)).collect());
        }
    }

    /// What the clocks say now, where that is something new.
    fn clocks(&mut self, now: Ns) -> Option<Line> {
        if now < self.clocks_at {
            return None;
        }
        self.clocks_at = now.saturating_add(CLOCKS_EVERY);
        let (clock, _) = clocks(&self.zone).ok().filter(|(clock, _)| !self.header.clock.agrees(clock))?;
        self.header.clock = clock;
        self.clock = Some(Line::Clock(clock));
        self.clock.clone()
    }
}

/// What a capture of this node begins with, as of now. Reads clocks and `/proc`, no disk.
pub fn header(thresholds: Thresholds, zone: &jiff::tz::TimeZone) -> io::Result<Header> {
    let (clock, boot_id) = clocks(zone)?;
    let name = rustix::system::uname();
    Ok(Header {
        version: VERSION,
        plegscope: env!("CARGO_PKG_VERSION").to_owned(),
        host: name.nodename().to_string_lossy().into_owned(),
        kernel: name.release().to_string_lossy().into_owned(),
        boot_id,
        clock,
        zone: zone.iana_name().unwrap_or_default().to_owned(),
        thresholds,
        redacted: false,
    })
}

/// The node's clocks now, and the id of its boot.
fn clocks(zone: &jiff::tz::TimeZone) -> io::Result<(Clock, String)> {
    let anchor = Anchor::now().map_err(io::Error::other)?;
    let realtime = i64::try_from(anchor.realtime).unwrap_or(i64::MAX);
    let now = jiff::Timestamp::from_nanosecond(i128::from(realtime)).unwrap_or_default();
    let offset = zone.to_offset(now).seconds();
    let clock = Clock { monotonic: anchor.monotonic, boottime: anchor.boottime, realtime, offset };
    Ok((clock, anchor.boot_id))
}

/// A capture that is played.
pub struct Played {
    player: Player<File>,
    /// When it was played last; `None` while it stood still.
    played: Option<Instant>,
    told: VecDeque<Told>,
}

impl Played {
    /// Plays it, after what it has told already; needs a runtime.
    pub fn new(player: Player<File>, told: VecDeque<Told>) -> Played {
        Played { player, played: None, told }
    }

    async fn next(&mut self) -> Result<Option<Told>, ReadError> {
        loop {
            if let Some(told) = self.told.pop_front() {
                return Ok(Some(told));
            }
            let now = Instant::now();
            let passed = self.played.replace(now).map_or(Duration::ZERO, |played| now - played);
            self.player.play(passed, |told| self.told.push_back(told))?;
            if !self.told.is_empty() {
                continue;
            }
            match self.player.wait() {
                Wait::No => tokio::task::yield_now().await,
                Wait::For(time) => sleep(time).await,
                Wait::Paused => {
                    self.played = None;
                    future::pending::<()>().await;
                }
                Wait::Over => return Ok(None),
            }
        }
    }
}
