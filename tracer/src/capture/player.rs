//! Plays a capture at some speed, pauses, and jumps about in it. Reads no clock: its caller says how much time has passed.
//!
//! A jump plays all that lies between without telling it, so that what is told after it is what would have been told
//! without it. To jump back it keeps copies of its state on the way, a bounded number of them.

use super::line::Clock;
use super::reader::{self, Mark, ReadError, Reader};
use super::replay::{Replay, Told};
use super::{Header, Line};
use crate::correlator::{Change, Frame, Incident};
use crate::event::Ns;
use crate::thresholds::SECOND;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// Lines that are read in one go: about 10 ms of work.
const AT_ONCE: usize = 8_192;
/// Copies of the state that are kept.
const MOST_STATES: usize = 64;
/// Incidents that are remembered, to come back to them.
const MOST_INCIDENTS: usize = 10_000;

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// So many times as fast as it happened.
    Times(f64),
    /// As fast as it can be read.
    Max,
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Speed, String> {
        if text == "max" {
            return Ok(Speed::Max);
        }
        match text.trim_end_matches('x').parse::<f64>() {
            Ok(times) if (0.01..=10_000.0).contains(&times) => Ok(Speed::Times(times)),
            _ => Err("a number between 0.01 and 10000, or max".into()),
        }
    }
}

/// What to wait for before there is more to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing: there is more to do.
    No,
    /// This much time.
    For(Duration),
    /// [`Player::resume`], or a jump.
    Paused,
    /// There is no more; a jump back may bring it back.
    Over,
}

/// Where a jump goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Time(Ns),
    NextIncident,
}

/// What is needed to go on from a place.
struct State {
    /// The time that was played.
    at: Ns,
    mark: Mark,
    replay: Replay,
    survey: Option<Line>,
    time: Clock,
}

/// Plays a capture.
pub struct Player<R: Read + Seek> {
    reader: Reader<R>,
    replay: Replay,
    /// The clock has come to here.
    clock: Ns,
    /// The next moment, all of which has been read.
    next: Option<Ns>,
    begin: Ns,
    end: Ns,
    speed: Speed,
    paused: bool,
    goal: Option<Goal>,
    /// Nothing is left to read.
    over: bool,
    /// By time; the first is the beginning.
    states: Vec<State>,
    /// Time between two of them.
    every: Ns,
    /// When incidents opened, and how many of them, as far as it was played.
    incidents: BTreeMap<Ns, usize>,
    /// What was told last of what is attached.
    survey: Option<Line>,
    /// By which clocks time is told here.
    time: Clock,
    /// The frames of the last moment on the way of a jump that had any.
    passed: Vec<Frame>,
}

impl Player<File> {
    /// Opens a capture; `salvage` as in [`reader::open`].
    pub fn open(path: &Path, salvage: bool) -> Result<Player<File>, ReadError> {
        let io = |why| ReadError::Io { after: 0, why };
        let mut file = File::open(path).map_err(ReadError::Closed)?;
        let end = reader::last_time(&mut file).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let reader = if salvage { Reader::salvage(file)? } else { Reader::new(file)? };
        Ok(Player::new(reader, end))
    }
}

impl<R: Read + Seek> Player<R> {
    /// From the beginning of a capture that ends at `end`, as fast as it happened.
    pub fn new(reader: Reader<R>, end: Ns) -> Player<R> {
        let replay = Replay::new(reader.header().thresholds.clone());
        let time = reader.header().clock;
        let begin = time.monotonic;
        let mark = reader.mark();
        let first = mark.map(|mark| State { at: 0, mark, replay: replay.clone(), survey: None, time });
        Player {
            reader,
            replay,
            clock: 0,
            next: None,
            begin,
            end,
            speed: Speed::Times(1.0),
            paused: false,
            goal: None,
            over: false,
            states: first.into_iter().collect(),
            every: 10 * SECOND,
            incidents: BTreeMap::new(),
            survey: None,
            time,
            passed: Vec::new(),
        }
    }

    /// What was captured, where and when.
    pub fn header(&self) -> &Header {
        self.reader.header()
    }

    /// What it reads from.
    pub fn reader(&self) -> &Reader<R> {
        &self.reader
    }

    /// The first and the last time of the capture.
    pub fn span(&self) -> (Ns, Ns) {
        (self.begin, self.end.max(self.clock))
    }

    /// The time it has come to.
    pub fn position(&self) -> Ns {
        self.clock.max(self.begin)
    }

    /// How fast it plays.
    pub fn speed(&self) -> Speed {
        self.speed
    }

    /// Plays at another speed.
    pub fn set_speed(&mut self, speed: Speed) {
        self.speed = speed;
    }

    /// Whether it stands still.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Stands still, after a jump that is under way.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Goes on.
    pub fn resume(&mut self) {
        self.paused = false;
    }

    /// Whether a jump is under way.
    pub fn is_jumping(&self) -> bool {
        self.goal.is_some()
    }

    /// When the incidents opened that were played so far.
    pub fn incidents(&self) -> impl DoubleEndedIterator<Item = Ns> {
        self.incidents.iter().flat_map(|(at, count)| std::iter::repeat_n(*at, *count))
    }

    /// Jumps to `to`.
    pub fn seek(&mut self, to: Ns) -> Result<(), ReadError> {
        let to = to.max(self.begin);
        if to < self.clock {
            self.go_back(to)?;
        }
        self.goal = Some(Goal::Time(to));
        Ok(())
    }

    /// Jumps to where the next incident opens, or to the end.
    pub fn next_incident(&mut self) {
        self.goal = Some(Goal::NextIncident);
    }

    /// Jumps back to where an incident opened; `false` when there was none.
    pub fn previous_incident(&mut self) -> Result<bool, ReadError> {
        match self.incidents.range(..self.clock).next_back().map(|(at, _)| *at) {
            Some(at) => self.seek(at).map(|()| true),
            None => Ok(false),
        }
    }

    /// Takes up the latest state that is older than `to`.
    fn go_back(&mut self, to: Ns) -> Result<(), ReadError> {
        let Some(state) = self.states.iter().rev().find(|state| state.at < to) else { return Ok(()) };
        self.reader.go_back(&state.mark)?;
        self.replay = state.replay.clone();
        (self.survey, self.time) = (state.survey.clone(), state.time);
        self.passed.clear();
        (self.clock, self.next, self.over) = (state.at, None, false);
        Ok(())
    }

    /// What to wait for.
    pub fn wait(&self) -> Wait {
        match (self.goal, self.next, self.speed) {
            (Some(_), ..) => Wait::No,
            (None, None, _) if self.over => Wait::Over,
            _ if self.paused => Wait::Paused,
            (None, Some(next), Speed::Times(times)) if next > self.clock => {
                let left = (next - self.clock) as f64 / times / SECOND as f64;
                Wait::For(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX))
            }
            _ => Wait::No,
        }
    }

    /// Plays what is due when `passed` more time has passed, or a part of it: see [`Player::wait`].
    pub fn play(&mut self, passed: Duration, mut each: impl FnMut(Told)) -> Result<(), ReadError> {
        if self.goal.is_none() {
            if self.paused {
                return Ok(());
            }
            if let Speed::Times(times) = self.speed
                && self.clock > 0
            {
                self.clock = self.clock.saturating_add((passed.as_nanos() as f64 * times) as Ns);
            }
        }
        let mut lines = 0;
        while lines < AT_ONCE {
            lines += 1;
            match self.next {
                None if self.over => break,
                None => self.read(&mut each)?,
                Some(next) if self.is_due(next) => {
                    self.next = None;
                    self.moment(next, &mut each);
                }
                Some(_) => break,
            }
        }
        if self.has_arrived() {
            self.goal = None;
            // What was passed over counts only by where it has led.
            self.survey.iter().for_each(|survey| each(Told::Line(survey.clone())));
            each(Told::Line(Line::Clock(self.time)));
            self.passed.drain(..).for_each(|frame| each(Told::Frame(frame)));
        }
        Ok(())
    }

    fn is_due(&self, next: Ns) -> bool {
        match self.goal {
            Some(Goal::Time(to)) => next <= to,
            Some(Goal::NextIncident) => true,
            None => self.speed == Speed::Max || next <= self.clock || self.clock == 0,
        }
    }

    fn has_arrived(&self) -> bool {
        match self.goal {
            Some(Goal::Time(to)) => self.next.map_or(self.over, |next| next > to),
            Some(Goal::NextIncident) => self.next.is_none() && self.over,
            None => false,
        }
    }

    /// Reads a line.
    fn read(&mut self, each: &mut impl FnMut(Told)) -> Result<(), ReadError> {
        match self.reader.next().transpose()? {
            None => self.over = true,
            Some(Line::Heard(at)) => self.next = Some(at),
            Some(line) => {
                if matches!(line, Line::Survey(_)) {
                    self.survey = Some(line.clone());
                }
                if let Line::Clock(clock) = line {
                    self.time = clock;
                }
                let quiet = self.goal.is_some();
                self.replay.line(line, |told| {
                    if !quiet {
                        each(told)
                    }
                });
            }
        }
        Ok(())
    }

    /// Plays a moment.
    fn moment(&mut self, at: Ns, each: &mut impl FnMut(Told)) {
        let jumping = self.goal.is_some();
        if self.clock == 0 || jumping || self.speed == Speed::Max {
            self.clock = self.clock.max(at);
        }
        let (mut opened, mut frames) = (0, Vec::new());
        let next_incident = self.goal == Some(Goal::NextIncident);
        self.replay.line(Line::Heard(at), |told| match told {
            Told::Frame(frame) => {
                let crossed = |incident: &&Incident| incident.change == Some(Change::Crossed);
                let opens = frame.incidents.iter().filter(crossed).count();
                if opens > 0 && opened == 0 && next_incident {
                    frames.drain(..).for_each(|frame| each(Told::Passed(frame)));
                }
                opened += opens;
                if jumping { frames.push(frame) } else { each(Told::Frame(frame)) }
            }
            Told::Ahead(_) if jumping => {}
            line => each(line),
        });
        if !frames.is_empty() {
            // One of each second is enough for what is shown over time, with all that has become of incidents.
            let second = frames.first().map_or(0, |frame| frame.now / SECOND);
            let tells = |frame: &Frame| {
                frame.now / SECOND != second || frame.incidents.iter().any(|i| i.change.is_some())
            };
            let before = std::mem::replace(&mut self.passed, frames);
            before.into_iter().filter(tells).for_each(|frame| each(Told::Passed(frame)));
        }
        if opened > 0 {
            if self.incidents.len() < MOST_INCIDENTS {
                self.incidents.insert(at, opened);
            }
            if self.goal == Some(Goal::NextIncident) {
                self.goal = Some(Goal::Time(at));
            }
        }
        self.keep(at);
    }

    /// Keeps the state now and then.
    fn keep(&mut self, at: Ns) {
        if self.states.last().is_none_or(|last| at < last.at.saturating_add(self.every)) {
            return;
        }
        let Some(mark) = self.reader.mark() else { return };
        if self.states.len() >= MOST_STATES {
            let mut n = 0;
            self.states.retain(|_| {
                n += 1;
                n % 2 == 1
            });
            self.every = self.every.saturating_mul(2);
        }
        let (replay, survey, time) = (self.replay.clone(), self.survey.clone(), self.time);
        self.states.push(State { at, mark, replay, survey, time });
    }
}
