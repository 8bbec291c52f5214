//! Listens to a warden: all it has told so far, and waiting for more.

use super::machine::{self, now};
use anyhow::{Result, bail};
use std::{
    io::Read as _,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    time::Duration,
};
use tracer::{
    bpf::plan::Probe,
    event::{Body, Event, Kind, LossPoint, Operation, Outcome},
    warden::{
        self, Settings,
        protocol::{self, Cost, Message, Survey},
    },
};

/// Everything that was told.
#[derive(Default)]
pub struct Told {
    pub events: Vec<Event>,
    pub survey: Option<Survey>,
    pub costs: Vec<Cost>,
    /// How often the costs were told.
    pub told_costs: u32,
    pub log: Vec<String>,
    over: bool,
}

/// A warden and what it tells.
pub struct Watch {
    socket: UnixStream,
    told: Arc<Mutex<Told>>,
}

impl Watch {
    /// Starts one and waits until all is attached. The process must have one thread.
    pub fn start(settings: Settings) -> Result<Watch> {
        let also = settings.also.clone();
        let socket = warden::fork(settings)?;
        let told = Arc::<Mutex<Told>>::default();
        let (mut reading, into) = (socket.try_clone()?, Arc::clone(&told));
        std::thread::spawn(move || {
            let (mut bytes, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
            while let Ok(read @ 1..) = reading.read(&mut buffer) {
                bytes.extend(&buffer[..read]);
                while let Ok(Some(message)) = protocol::take(&mut bytes) {
                    let mut told = into.lock().unwrap();
                    match message {
                        Message::Events(events) => told.events.extend(events),
                        Message::Survey(survey) => told.survey = Some(survey),
                        Message::Exposure(_) | Message::Look(_) | Message::Looked(_) => {}
                        Message::Cost(costs) => {
                            told.costs = costs;
                            told.told_costs += 1;
                        }
                        Message::Log(level, line) => told.log.push(format!("{level:?}: {line}")),
                        Message::Fatal(line) => told.log.push(format!("fatal: {line}")),
                    }
                }
            }
            into.lock().unwrap().over = true;
        });
        let watch = Watch { socket, told };
        // How long that takes is the machine's affair: half a minute where the emulator has a processor to itself.
        watch.wait("all is attached", 300, |told| {
            let survey = told.survey.as_ref().filter(|survey| survey.attached_after.is_some())?;
            // A program whose file took long to read comes with a later scan; and where attaching took long, the rest of
            // its probes come after a pause.
            let known = |pid: &u32| survey.programs.iter().any(|program| program.pids.contains(pid));
            let on = |probe: &Probe| probe.how.is_some() || probe.note.starts_with("not needed");
            let programs = || survey.probes.iter().filter(|probe| probe.loss.is_empty());
            (also.iter().all(known) && programs().all(on)).then_some(())
        })?;
        Ok(watch)
    }

    /// Looks at what was told so far.
    pub fn look<T>(&self, f: impl FnOnce(&Told) -> T) -> T {
        f(&self.told.lock().unwrap())
    }

    /// Waits until something was told.
    pub fn wait<T>(&self, what: &str, seconds: u64, find: impl Fn(&Told) -> Option<T>) -> Result<T> {
        let end = now() + seconds * 1_000_000_000;
        loop {
            let (found, over) = self.look(|told| (find(told), told.over));
            if let Some(found) = found {
                return Ok(found);
            }
            if over || now() > end {
                let (log, last) = self.look(|told| (told.log.clone(), last(told)));
                let off = self.look(|told| {
                    let probes = told.survey.iter().flat_map(|survey| &survey.probes);
                    probes.filter(|p| p.how.is_none()).map(|p| format!("{p:?}")).collect::<Vec<_>>()
                });
                bail!("not told within {seconds} s (over: {over}): {what}; log {log:?}; off {off:?}; {last}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The end of an operation that `is` accepts, and when it was.
    pub fn ended(&self, what: &str, is: impl Fn(&Operation) -> bool) -> Result<(Operation, Outcome, u64)> {
        self.wait(what, 20, |told| {
            told.events.iter().find_map(|event| match &event.body {
                Body::Ended(operation, outcome) if is(operation) => {
                    Some((operation.clone(), *outcome, event.at))
                }
                _ => None,
            })
        })
    }

    /// How often the begin of this kind was hit so far, counted after this call.
    pub fn hits(&self, kind: Kind) -> Result<u64> {
        let before = self.look(|told| told.told_costs);
        self.wait("what it costs", 20, |told| {
            // The one that is under way may have been counted before.
            let of = told.costs.iter().find(|cost| cost.kind == kind);
            (told.told_costs >= before + 2).then(|| of.map_or(0, |cost| cost.hits))
        })
    }

    /// How many losses of this kind were told so far.
    pub fn lost(&self, point: LossPoint) -> u64 {
        self.look(|told| {
            let counts = told.events.iter().filter_map(|event| match event.body {
                Body::Lost { at, count } if at == point => Some(count),
                _ => None,
            });
            counts.sum()
        })
    }

    /// Waits for the next whole poll and fails when it tells of anything in flight that `counts`.
    pub fn nothing_in_flight(&self, counts: impl Fn(&Operation) -> bool) -> Result<()> {
        let from = now() + 250_000_000;
        self.wait("a later poll", 30, |told| {
            let complete =
                |event: &&Event| event.at > from && matches!(event.body, Body::PollComplete { .. });
            (told.events.iter().filter(complete).count() > 6).then_some(())
        })?;
        self.look(|told| {
            for event in told.events.iter().filter(|event| event.at > from) {
                if let Body::InFlight(operation) = &event.body
                    && counts(operation)
                {
                    bail!("still in flight: {operation:?}");
                }
            }
            Ok(())
        })
    }

    /// Lets it go and waits until all its probes are gone.
    pub fn stop(self) -> Result<()> {
        self.socket.shutdown(Shutdown::Both)?;
        machine::no_probe_is_left()
    }
}

/// The last few operations, for a failure's words.
fn last(told: &Told) -> String {
    let told = told.events.iter().rev().filter_map(|event| match &event.body {
        Body::Ended(o, outcome) => Some(format!("ended {} {o:?} {outcome:?}", event.at)),
        Body::InFlight(o) => Some(format!("in flight {} {o:?}", event.at)),
        _ => None,
    });
    told.take(6).collect::<Vec<_>>().join("; ")
}

/// The kinds that the kernel's own probes tell.
pub fn of_kernel(kind: Kind) -> bool {
    matches!(kind, Kind::Unmount | Kind::SuperShutdown | Kind::Sync)
}
