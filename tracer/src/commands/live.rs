//! `live`: what is blocked, by whom and what it ends in, told whenever that changes.

use super::{
    Follower, follow,
    output::{Output, Streams},
    wall_clock,
};
use crate::{
    cli::Live,
    correlator::Frame,
    event::{Ns, OperationId},
    exit::Exit,
    sinks::text,
    thresholds::{SECOND, Thresholds},
};
use anyhow::Context;
use std::{fs::File, io::Write, path::PathBuf, time::Duration};

/// While something is blocked and nothing changes, its age is told again after this time.
const REMIND: Ns = 10 * SECOND;
/// The same for JSON, where a reader may want to draw moving ages.
const REMIND_JSON: Ns = SECOND;

/// Runs the verb.
pub fn run(options: &Live) -> anyhow::Result<Exit> {
    let create = |path: &PathBuf| File::create(path).with_context(|| format!("creating {}", path.display()));
    let file = options.json_to.as_ref().map(create).transpose()?;
    let mut teller =
        Teller { json: options.json, file, copy: None, told: Shape::default(), told_at: 0, file_at: 0 };
    follow(options.probing.settings(), Thresholds::default(), options.probing.duration, &mut teller)
}

struct Teller {
    json: bool,
    /// Takes the JSON objects as well; opened before the warden is forked, so that an error is told at once.
    file: Option<File>,
    /// Writes to that file.
    copy: Option<Output>,
    told: Shape,
    told_at: Ns,
    file_at: Ns,
}

/// What a frame says apart from ages: two frames of the same shape differ only in how long it has lasted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shape {
    chains: Vec<(String, Vec<OperationId>)>,
    changes: Vec<(String, String)>,
}

impl Shape {
    fn of(frame: &Frame) -> Shape {
        let chain = |d: &crate::correlator::Diagnosis| {
            (format!("{:?}", d.ends_in), d.chain.links.iter().map(|l| l.operation.id()).collect())
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
    fn frame(&mut self, frame: Frame, streams: &Streams) -> anyhow::Result<()> {
        let shape = Shape::of(&frame);
        let elapsed = |since: Ns| frame.now.saturating_sub(since);
        if let Some(file) = self.file.take() {
            self.copy = Some(Output::new(file).context("starting to write")?);
        }
        if let Some(copy) = &self.copy
            && (shape != self.told || (!frame.diagnoses.is_empty() && elapsed(self.file_at) >= REMIND_JSON))
        {
            let mut line = serde_json::to_vec(&frame)?;
            line.push(b'\n');
            copy.check().context("writing the JSON objects")?;
            copy.write(line);
            self.file_at = frame.now;
        }
        let remind = if self.json { REMIND_JSON } else { REMIND };
        let due = !frame.diagnoses.is_empty() && elapsed(self.told_at) >= remind;
        let changed = shape.chains != self.told.chains;
        if !changed && shape.changes.is_empty() && !due {
            self.told = shape;
            return Ok(());
        }
        let mut out = Vec::new();
        if self.json {
            serde_json::to_writer(&mut out, &frame)?;
            writeln!(out)?;
        } else {
            let clock = wall_clock();
            for line in frame.incidents.iter().filter_map(text::change) {
                writeln!(out, "{clock} {line}")?;
            }
            if frame.diagnoses.is_empty() && changed {
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
        streams.out.write(out);
        self.told = shape;
        self.told_at = frame.now;
        Ok(())
    }

    fn end(&mut self) {
        if let Some(copy) = self.copy.take() {
            copy.finish(Duration::from_millis(100));
        }
    }
}
