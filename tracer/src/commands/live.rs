//! `live`: what is blocked, by whom and what it ends in, told whenever that changes.

use super::{
    follow::{self, Follower, Moment, Why},
    output::{Output, Streams},
    screen::{self, Screen},
};
use crate::{
    cli::Live,
    correlator::{EndsIn, Frame, Harm},
    event::{Ns, OperationId},
    exit::Exit,
    sinks::{json, text},
    source::Source,
    thresholds::{MILLISECOND, SECOND, Thresholds},
    tui::model::Mode,
};
use anyhow::Context;
use std::{collections::BTreeSet, fs::File, io::Write, path::PathBuf, time::Duration};

/// While something is blocked and nothing changes, its age is told again after this time.
const REMIND: Ns = 10 * SECOND;
/// The same for JSON, where a reader may want to draw moving ages.
const REMIND_JSON: Ns = SECOND;
/// What has become invisible is told to people once it has stayed so for this long: between two calls of an actor, and
/// while a convoy comes back, nothing is seen for a moment, and a page of text for that hides what matters.
const SETTLED: Ns = 500 * MILLISECOND;

/// Runs the verb.
pub fn run(options: &Live) -> anyhow::Result<Exit> {
    let create = |path: &PathBuf| File::create(path).with_context(|| format!("creating {}", path.display()));
    let file = options.json_to.as_ref().map(create).transpose()?;
    let node = follow::Node {
        settings: options.probing.settings(),
        thresholds: Thresholds::default(),
        duration: options.probing.duration,
        redactor: None,
    };
    if !options.plain && !options.json && file.is_none() && screen::is_possible() {
        return follow::node(node, &mut Screen::new(Mode::Live, options.no_color));
    }
    follow::node(node, &mut Teller { file, ..Teller::new(options.json) })
}

/// Tells what changes.
#[derive(Default)]
pub struct Teller {
    json: bool,
    /// Takes the JSON objects as well; opened before the warden is forked, so that an error is told at once.
    file: Option<File>,
    /// Writes to that file.
    copy: Option<Output>,
    told: Shape,
    told_at: Ns,
    file_at: Ns,
    /// Losses and blind spots as told last.
    notes: Vec<String>,
    settling: Settling,
}

impl Teller {
    /// To people, or to a program.
    pub fn new(json: bool) -> Teller {
        Teller { json, ..Teller::default() }
    }
}

/// Holds back what may be invisible for a moment only.
#[derive(Debug, Default)]
struct Settling {
    /// Stuck calls whose end was told as not visible.
    told: BTreeSet<OperationId>,
    /// Since when there is one that was not.
    since: Option<Ns>,
}

impl Settling {
    /// The stuck calls of a frame whose end is not visible.
    fn invisible(frame: &Frame) -> BTreeSet<OperationId> {
        let hidden = frame.diagnoses.iter().filter(|d| matches!(d.ends_in, EndsIn::NotVisible { .. }));
        hidden.filter_map(|d| Some(d.chain.links.first()?.operation.id())).collect()
    }

    /// Whether the chains of a frame should not be told yet.
    fn holds(&mut self, frame: &Frame) -> bool {
        if Settling::invisible(frame).is_subset(&self.told) {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(frame.now);
        frame.now.saturating_sub(since) < SETTLED
    }

    /// The chains of a frame were told.
    fn tell(&mut self, frame: &Frame) {
        *self = Settling { told: Settling::invisible(frame), since: None };
    }
}

/// What a frame says apart from ages: two frames of the same shape differ only in how long it has lasted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shape {
    /// What it ends in, by which operations, and what has come of it.
    chains: Vec<(String, Vec<OperationId>, Vec<String>)>,
    changes: Vec<(String, String)>,
}

impl Shape {
    fn of(frame: &Frame) -> Shape {
        let ends_in = |ends_in: &EndsIn| match ends_in {
            // It fails twenty times a second.
            EndsIn::MountBusy { pins, .. } => format!("MountBusy {pins:?}"),
            // How many wait for an unknown lock is told with its address, behind the reason.
            EndsIn::NotVisible { because } => {
                format!("NotVisible {}", because.split(" (").next().unwrap_or_default())
            }
            other => format!("{other:?}"),
        };
        let harm = |c: &crate::correlator::Consequence| match &c.what {
            Harm::ExitLate { of, reported, .. } => format!("ExitLate {of:?} {reported}"),
            Harm::UpdatesFailed { of, .. } => format!("UpdatesFailed {of:?}"),
            other => format!("{other:?}"),
        };
        let chain = |d: &crate::correlator::Diagnosis| {
            let operations = d.chain.links.iter().map(|l| l.operation.id()).collect();
            (ends_in(&d.ends_in), operations, d.consequences.iter().map(harm).collect())
        };
        let change =
            |i: &crate::correlator::Incident| i.change.as_ref().map(|c| (i.id.clone(), format!("{c:?}")));
        Shape {
            chains: frame.diagnoses.iter().map(chain).collect(),
            changes: frame.incidents.iter().filter_map(change).collect(),
        }
    }
}

impl Follower for Teller {
    fn frame(&mut self, frame: Frame, moment: &Moment<'_>) -> anyhow::Result<()> {
        let shape = Shape::of(&frame);
        let stuck = frame.diagnoses.iter().any(|d| d.is_stuck());
        let elapsed = |since: Ns| frame.now.saturating_sub(since);
        if let Some(file) = self.file.take() {
            self.copy = Some(Output::new(file).context("starting to write")?);
        }
        if let Some(copy) = &self.copy
            && (shape != self.told || (stuck && elapsed(self.file_at) >= REMIND_JSON))
        {
            let line = json::line(&frame)?;
            copy.check().context("writing the JSON objects")?;
            copy.write(line);
            self.file_at = frame.now;
        }
        let remind = if self.json { REMIND_JSON } else { REMIND };
        let due = stuck && elapsed(self.told_at) >= remind;
        let changed = shape.chains != self.told.chains;
        let notes = text::notes(&frame);
        // Asked for every frame, so that a moment's invisibility that is over does not count for the next.
        let held = self.settling.holds(&frame) && !self.json;
        if !changed && shape.changes.is_empty() && !due && (self.json || notes == self.notes) {
            self.told = shape;
            return Ok(());
        }
        let mut out = Vec::new();
        if self.json {
            out = json::line(&frame)?;
        } else {
            let clock = moment.time(frame.now);
            for line in frame.incidents.iter().filter_map(text::change) {
                writeln!(out, "{clock} {line}")?;
            }
            for note in notes.iter().filter(|note| !self.notes.contains(note)) {
                writeln!(out, "{clock} {note}")?;
            }
            if held {
                moment.streams.out.write(out);
                self.told.changes = shape.changes;
                self.notes = notes;
                return Ok(());
            }
            self.settling.tell(&frame);
            if !stuck && changed {
                writeln!(out, "{clock} {}", text::healthy(&frame))?;
            }
            for diagnosis in &frame.diagnoses {
                if changed {
                    writeln!(out, "{clock} {}", text::diagnosis(diagnosis, frame.now).join("\n"))?;
                } else if due {
                    writeln!(out, "{clock} {}", text::headline(diagnosis, frame.now))?;
                }
            }
        }
        moment.streams.out.write(out);
        self.told = shape;
        self.notes = notes;
        self.told_at = frame.now;
        Ok(())
    }

    fn end(&mut self, _source: &mut Source, _why: Why, _streams: &Streams) -> anyhow::Result<Exit> {
        if let Some(copy) = self.copy.take() {
            copy.finish(Duration::from_millis(100));
        }
        Ok(Exit::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correlator::{Chain, Confidence, Diagnosis, Head, Link, Who};
    use crate::event::{Actor, Began, Kind, Operation, SeenBy};

    fn frame(now_ms: u64, relist_began: Ns, visible: bool) -> Frame {
        let actor = Actor { pid: 5, tid: 5, g: Some(1), goid: Some(1) };
        let operation = Operation {
            kind: Kind::Relist,
            method: String::new(),
            actor,
            begin: relist_began,
            object: 0,
            container: None,
            path: None,
            device: None,
            fs_type: None,
            began: Began::Then,
            seen_by: SeenBy::Uprobe,
        };
        let link = Link {
            edge: None,
            operation,
            who: Who { pid: 5, tid: 5, goid: Some(1), comm: None, role: None },
            subject: None,
            device: None,
            lock: None,
            exit: None,
            goroutine: None,
            thread: None,
            since: relist_began,
            age: 0,
            critical: 0,
        };
        let ends_in = if visible {
            EndsIn::StatusWrite
        } else {
            EndsIn::NotVisible { because: "it has just begun something else".to_owned() }
        };
        let diagnosis = Diagnosis {
            ends_in,
            confidence: Confidence::Inferred,
            evidence: String::new(),
            chain: Chain { links: vec![link], age: 0 },
            head: Head::Relist,
            stuck_calls: Vec::new(),
            stuck_calls_total: 1,
            containers: Vec::new(),
            not_ready: None,
            pods_waiting: 0,
            dirtied_by: Vec::new(),
            dirtied_unknown: None,
            consequences: Vec::new(),
            not_this_chain: None,
            signature: String::new(),
            outlook: crate::correlator::Outlook::Unknown { because: String::new() },
            blind_spots: Vec::new(),
            advice: Default::default(),
            incident: None,
        };
        Frame { now: now_ms * MILLISECOND, diagnoses: vec![diagnosis], ..Frame::default() }
    }

    #[test]
    fn what_is_invisible_for_a_moment_is_held_back_and_what_stays_so_is_told() {
        let mut settling = Settling::default();
        assert!(!settling.holds(&frame(1000, 7, true)));
        settling.tell(&frame(1000, 7, true));
        assert!(settling.holds(&frame(1100, 7, false)));
        assert!(!settling.holds(&frame(1200, 7, true)), "it is visible again");
        assert!(settling.holds(&frame(2000, 7, false)));
        assert!(settling.holds(&frame(2400, 7, false)));
        assert!(!settling.holds(&frame(2500, 7, false)), "it has stayed so");
        settling.tell(&frame(2500, 7, false));
        assert!(!settling.holds(&frame(2600, 7, false)), "it was told");
        assert!(settling.holds(&frame(2700, 8, false)), "another one");
    }
}
