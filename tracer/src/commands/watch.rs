//! `watch`: tells somebody while it is still blocked. What is told is decided by [`crate::alert`]; here it is handed to all
//! that carry it, none of which is waited for.

use super::{
    captures::Captures,
    complaint::Complaint,
    config,
    follow::{self, Follower, Moment, Why},
    output::Streams,
    zone,
};
use crate::{
    alert::{Alerts, Notice},
    capture::{Header, Line},
    cli::Watch,
    config::{Place, Watching},
    correlator::Frame,
    courier::{Courier, Late, Ways},
    event::{Ns, Role},
    exit::Exit,
    node::own,
    sinks::{
        deliver::{
            Alert, Count, Delivery, Queue,
            journal::Journal,
            state::{self, Beside, State, StateFile},
        },
        sanitise,
    },
    source::{self, Source},
    warden::{Settings, protocol::Survey},
};
use anyhow::Context;
use std::{
    collections::BTreeMap,
    io::Write,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// What is on its way when it ends may take this long: the prompt must be back soon. The courier takes longer by itself.
const LAST: Duration = Duration::from_millis(150);

/// Runs the verb.
pub fn run(options: &Watch) -> anyhow::Result<Exit> {
    let loaded = config::load(&options.settings)?;
    let usage = |wrong: Vec<String>| {
        wrong.iter().try_for_each(|line| writeln!(std::io::stderr(), "plegscope: {}", sanitise(line)))?;
        Ok(Exit::Usage)
    };
    let watching = match loaded.config.and_then(|config| config.resolve()) {
        Ok(watching) => watching,
        Err(wrong) => return usage(wrong),
    };
    let webhook = match config::beside(&watching) {
        Ok(webhook) => webhook,
        Err(why) => return usage(vec![why]),
    };
    let mut notes = loaded.notes;
    let header =
        source::header(watching.thresholds.clone(), zone()).context("reading the clocks of the node")?;
    let mut places = Places::default();
    places.find(&watching, &mut notes);
    let run = format!("{}-{}-{}", header.host, header.clock.realtime / 1_000_000, std::process::id());
    let ways = Ways {
        exec: watching.exec.clone().map(|argv| (argv, watching.exec_limit, watching.exec_at_once)),
        webhook: webhook.map(|settings| crate::sinks::deliver::webhook::Settings { run, ..settings }),
        store: match &watching.store {
            Place::At(folder) => Some((folder.clone(), watching.store_incidents, watching.store_bytes)),
            _ => None,
        },
    };
    let courier = if ways.is_empty() { None } else { Some(Courier::fork(ways)?) };
    let settings = Settings {
        ladder: watching.probes.0,
        patrol: watching.probes.1,
        also: options.also.clone(),
        max_target_cost: watching.max_target_cost,
        without: watching.without.clone(),
        diagnostics: options.verbose,
        ..Settings::default()
    };
    let captures = watching.capture_on_incident.clone().map(|folder| {
        let before = u64::try_from(watching.capture_before.as_nanos()).unwrap_or(u64::MAX);
        Captures::new(folder, before, watching.capture_bytes)
    });
    let thresholds = watching.thresholds.clone();
    let mut teller = Teller {
        alerts: Alerts::new(watching.alerts),
        watching,
        header,
        places,
        courier,
        queues: Vec::new(),
        state: None,
        blind: Some("plegscope watch has only just started".to_owned()),
        seq: 0,
        told: 0,
        state_at: 0,
        health: None,
        complaints: BTreeMap::new(),
        notes,
        captures,
    };
    follow::node(
        follow::Node { settings, thresholds, duration: options.duration, redactor: None },
        &mut teller,
    )
}

/// What is in memory, where that can be.
#[derive(Default)]
struct Places {
    state: Option<PathBuf>,
    store: Option<PathBuf>,
}

impl Places {
    fn find(&mut self, watching: &Watching, notes: &mut Vec<String>) {
        let folder = state::folder();
        let mut auto = |what: &str, name: &str| match &folder {
            Ok(folder) => Some(folder.join(name)),
            Err(why) => {
                notes.push(format!("{what} is not kept: {why}; name a place for it, or say none"));
                None
            }
        };
        self.state = match &watching.state_file {
            Place::Auto => auto("the state for `plegscope status`", state::FILE),
            Place::At(path) => Some(path.clone()),
            Place::None => None,
        };
        self.store = match &watching.store {
            Place::Auto => auto("what `plegscope incidents` shows", state::INCIDENTS),
            // Elsewhere it may hang: the courier keeps it.
            Place::At(_) | Place::None => None,
        };
    }
}

struct Teller {
    watching: Watching,
    alerts: Alerts,
    header: Header,
    places: Places,
    courier: Option<Courier>,
    /// Started when the warden is forked, and not before: it must be, while there is one thread.
    queues: Vec<Queue>,
    state: Option<StateFile>,
    /// Why nothing can be told of the node.
    blind: Option<String>,
    seq: u64,
    told: u64,
    state_at: Ns,
    health: Option<state::Health>,
    /// What was said of each way.
    complaints: BTreeMap<String, Complaint>,
    notes: Vec<String>,
    captures: Option<Captures>,
}

impl Teller {
    fn start(&mut self) -> std::io::Result<Vec<Queue>> {
        let mut queues = Vec::new();
        if self.watching.journal {
            queues.push(Queue::start("journal", vec![Box::new(Journal::new()?)])?);
        }
        if let Some(folder) = &self.places.store {
            let store: Box<dyn Delivery> =
                Box::new(Late::new(folder.clone(), self.watching.store_incidents, self.watching.store_bytes));
            queues.push(Queue::start("store", vec![store])?);
        }
        if let Some(path) = self.places.state.take() {
            self.state = Some(StateFile::start(path)?);
        }
        Ok(queues)
    }

    fn survey(&mut self, survey: &Survey) {
        let there = |role| survey.programs.iter().any(|p| p.role == role && !p.pids.is_empty());
        self.blind = match (survey.attached_after, there(Role::Containerd)) {
            (None, _) => Some("plegscope watch has only just started".to_owned()),
            (_, false) => Some("no containerd is seen on this node".to_owned()),
            (Some(_), true) => None,
        };
    }

    fn counts(&self) -> Vec<Count> {
        let mut counts: Vec<Count> = self.queues.iter().map(Queue::count).collect();
        counts.extend(self.courier.iter().flat_map(Courier::counts));
        counts.extend(self.captures.iter().map(|captures| captures.count().clone()));
        if let Some((failed @ 1.., error)) = self.state.as_ref().map(StateFile::failures) {
            let error = error.unwrap_or_default();
            counts.push(Count { name: "state file".into(), failed, error, ..Count::default() });
        }
        counts
    }

    /// What does not get away is said on standard error, now and then.
    fn complain(&mut self, counts: &[Count], now: Ns, streams: &Streams) {
        for count in counts {
            let said = self.complaints.entry(count.name.clone()).or_default();
            if let Some(line) = said.of(count, now) {
                streams.messages.line(format_args!("plegscope: {}", sanitise(&line)));
            }
        }
    }

    /// Hands over what is to be told of a frame.
    fn tell(&mut self, notices: &[Notice], frame: &Frame, moment: &Moment<'_>) -> anyhow::Result<()> {
        if !notices.is_empty() {
            // The wall clock may have been set since.
            self.header =
                source::header(self.header.thresholds.clone(), zone()).unwrap_or(self.header.clone());
        }
        let mut out = Vec::new();
        for notice in notices {
            self.seq += 1;
            self.told += u64::from(notice.told && notice.event == crate::alert::Event::Crossed);
            let alert = Arc::new(Alert::of(self.seq, notice, &self.header, frame));
            if alert.told && !self.watching.quiet {
                if self.watching.json {
                    out.extend_from_slice(&alert.json);
                    out.push(b'\n');
                } else {
                    writeln!(out, "{} {}", moment.time(frame.now), alert.text)?;
                }
            }
            self.queues.iter().for_each(|queue| queue.hand(&alert));
            if let Some(courier) = &mut self.courier {
                courier.hand(&alert);
            }
        }
        moment.streams.out.write(out);
        Ok(())
    }

    fn tell_state(&mut self, frame: &Frame, counts: Vec<Count>) {
        let Some(file) = &self.state else { return };
        let open = frame.incidents.iter().any(|incident| incident.ended.is_none());
        let changed = self.health != Some(if open { state::Health::Problem } else { state::Health::Fine });
        if !changed && frame.now.saturating_sub(self.state_at) < state::EVERY {
            return;
        }
        let state = State::of(
            frame,
            &self.alerts,
            Beside {
                boot_id: self.header.boot_id.clone(),
                time: self.header.clock.rfc3339(frame.now),
                told: self.told,
                deliveries: counts,
                blind: self.blind.clone(),
            },
        );
        self.state_at = frame.now;
        self.health = Some(if open { state::Health::Problem } else { state::Health::Fine });
        file.set(state.file());
    }
}

impl Follower for Teller {
    fn alone(&mut self) {
        // From here on it reads what the warden tells, and writes to a tmpfs and to sockets.
        if let Err(error) = own::keep_capabilities(own::MEMORY) {
            self.notes.push(format!("capabilities that are not needed are kept: {error}"));
        }
    }

    fn begin(&mut self, _: &mut Source, streams: &Streams) -> anyhow::Result<()> {
        for note in self.notes.drain(..) {
            streams.messages.line(format_args!("plegscope: {}", sanitise(&note)));
        }
        self.queues = self.start().context("starting what carries alerts")?;
        Ok(())
    }

    fn line(&mut self, line: &Line, _: &Moment<'_>) -> anyhow::Result<()> {
        if let Line::Survey(survey) = line {
            self.survey(survey);
        }
        Ok(())
    }

    fn enough(&mut self, source: &mut Source, _: &Streams) -> Option<Why> {
        if let Some(captures) = &mut self.captures {
            captures.turn(source);
        }
        None
    }

    fn ahead(&mut self, frame: Frame, moment: &Moment<'_>) -> anyhow::Result<()> {
        let notices = self.alerts.ahead(&frame);
        self.tell(&notices, &frame, moment)
    }

    fn frame(&mut self, frame: Frame, moment: &Moment<'_>) -> anyhow::Result<()> {
        let streams = moment.streams;
        if let Some(captures) = &mut self.captures {
            captures.frame(frame.incidents.iter().any(|incident| incident.ended.is_none()));
        }
        let notices = self.alerts.tick(&frame);
        self.tell(&notices, &frame, moment)?;
        if let Some(courier) = &mut self.courier {
            courier.turn();
        }
        let counts = self.counts();
        self.complain(&counts, frame.now, streams);
        self.tell_state(&frame, counts);
        Ok(())
    }

    fn end(&mut self, source: &mut Source, _: Why, _: &Streams) -> anyhow::Result<Exit> {
        let end = Instant::now() + LAST;
        let left = || end.saturating_duration_since(Instant::now());
        if let Some(captures) = &mut self.captures {
            captures.end(source, left());
        }
        if let Some(courier) = &mut self.courier {
            courier.turn();
        }
        for queue in std::mem::take(&mut self.queues) {
            queue.finish(left());
        }
        if let Some(state) = self.state.take() {
            state.end(left());
        }
        Ok(Exit::Done)
    }
}
