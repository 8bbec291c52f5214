//! A capture through the pipeline: the same frames as on the node, and the same each time.

use super::{Line, reader::ReadError};
use crate::correlator::Frame;
use crate::event::{Event, Ns};
use crate::pipeline::Pipeline;
use crate::thresholds::Thresholds;

/// What a replay tells.
pub enum Told {
    /// A frame, as it was on the node.
    Frame(Frame),
    /// A frame on the way of a jump: what was, but not where it has led. Told of each second once, and where something
    /// becomes of an incident.
    Passed(Frame),
    /// Incidents that have just opened, ahead of the frames; these have them later.
    Ahead(Frame),
    /// A line that is no event, in its place.
    Line(Line),
}

/// Plays lines through a new pipeline. What is live goes the same way, so that both tell the same.
#[derive(Clone)]
pub struct Replay {
    pipeline: Pipeline,
}

impl Replay {
    /// With the thresholds of the capture, or others.
    pub fn new(thresholds: Thresholds) -> Replay {
        Replay { pipeline: Pipeline::new(thresholds) }
    }

    /// The next line of the capture; `each` gets what follows from it.
    pub fn line(&mut self, line: Line, mut each: impl FnMut(Told)) {
        match line {
            Line::Event(event) => self.pipeline.push_one(event),
            Line::Known(event) => self.pipeline.known(&event),
            Line::Heard(now) => {
                let ahead = self.pipeline.advance(now, |frame| each(Told::Frame(frame)));
                ahead.into_iter().for_each(|frame| each(Told::Ahead(frame)));
            }
            other => each(Told::Line(other)),
        }
    }

    /// Until when nothing follows but from what is told; see [`Pipeline::rests_until`].
    pub fn rests_until(&self) -> Option<Ns> {
        self.pipeline.rests_until()
    }

    /// All that is known by now, as events that make another replay know it too.
    pub fn known(&self) -> Vec<Event> {
        self.pipeline.all_known()
    }

    /// All lines of a capture; stops at the first that cannot be read.
    pub fn all(
        mut self,
        lines: impl Iterator<Item = Result<Line, ReadError>>,
        mut each: impl FnMut(Told),
    ) -> Result<(), ReadError> {
        for line in lines {
            self.line(line?, &mut each);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{Header, VERSION, line::Clock, reader::Reader, writer::Writer};
    use crate::event::{Actor, Began, Body, Kind, Operation, Outcome, SeenBy};
    use crate::thresholds::{LATENESS, SECOND, TICK_EVERY};

    fn unmount(begin: Ns) -> Operation {
        Operation {
            kind: Kind::Unmount,
            method: String::new(),
            actor: Actor { pid: 5, tid: 5, g: None, goid: None },
            begin,
            object: 0,
            container: None,
            path: Some("/run/a\u{1b}b".into()),
            device: None,
            fs_type: None,
            began: Began::Then,
            seen_by: SeenBy::Fentry,
        }
    }

    fn header() -> Header {
        Header {
            version: VERSION,
            plegscope: "0".into(),
            host: "node".into(),
            kernel: "6.12".into(),
            boot_id: "b".into(),
            clock: Clock { monotonic: 1, boottime: 1, realtime: 2, offset: 3600 },
            zone: "Europe/Berlin".into(),
            thresholds: Thresholds::DEFAULT,
            redacted: false,
        }
    }

    #[test]
    fn what_was_written_gives_the_frames_of_the_node_again() {
        let lines: Vec<Line> = (100..300)
            .flat_map(|tick| {
                let at = tick * TICK_EVERY;
                let operation = unmount(105 * TICK_EVERY);
                let body = match tick {
                    106..200 => Some(Body::InFlight(operation)),
                    200 => Some(Body::Ended(operation, Outcome::Done)),
                    _ => None,
                };
                body.map(|body| Line::Event(Event { at, body })).into_iter().chain([Line::Heard(at)])
            })
            .collect();
        let (mut live, mut ahead) = (Vec::new(), Vec::new());
        let mut pipeline = Pipeline::new(Thresholds::DEFAULT);
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file).unwrap();
        writer.line(&Line::Header(header())).unwrap();
        for line in &lines {
            match line {
                Line::Event(event) => pipeline.push(vec![event.clone()]),
                Line::Heard(now) => {
                    let told = pipeline.advance(*now, |frame| live.push(frame));
                    ahead.extend(told);
                }
                _ => {}
            }
            writer.line(line).unwrap();
        }
        writer.flush().unwrap();
        drop(writer);
        let reader = Reader::new(&file[..]).unwrap();
        assert_eq!(*reader.header(), header());
        let (mut again, mut ahead_again) = (Vec::new(), Vec::new());
        let replay = Replay::new(reader.header().thresholds.clone());
        replay
            .all(reader, |told| match told {
                Told::Frame(frame) => again.push(frame),
                Told::Passed(_) => panic!("nobody jumps"),
                Told::Ahead(frame) => ahead_again.push(frame),
                Told::Line(line) => panic!("{line:?}"),
            })
            .unwrap();
        assert_eq!(live, again);
        assert_eq!(ahead, ahead_again);
        assert_eq!(ahead.iter().map(|frame| frame.now).collect::<Vec<_>>(), [155 * TICK_EVERY]);
        assert!(live.iter().any(|frame| !frame.diagnoses.is_empty()), "nothing was stuck");
        assert!(live.last().unwrap().now + LATENESS + SECOND > 299 * TICK_EVERY);
    }
}
