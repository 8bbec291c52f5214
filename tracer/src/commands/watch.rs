//! `watch`: a line at the first crossing of a threshold while it is still blocked, at growth, and at the end.

use super::{Follower, follow, ready_line, wall_clock};
use crate::{cli::Watch, correlator::Frame, exit::Exit, sinks::text, warden::protocol::Survey};
use std::io::{self, Write};

/// Runs the verb.
pub fn run(options: &Watch) -> anyhow::Result<Exit> {
    let mut teller = Teller { json: options.json, ready: false };
    follow(options.probing.settings(), options.thresholds(), options.probing.duration, &mut teller)
}

struct Teller {
    json: bool,
    ready: bool,
}

impl Follower for Teller {
    fn survey(&mut self, survey: &Survey) -> anyhow::Result<()> {
        if !self.ready && survey.attached_after.is_some() {
            self.ready = true;
            eprintln!("{}", ready_line(survey));
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        for incident in frame.incidents.iter().filter(|i| i.change.is_some()) {
            if self.json {
                serde_json::to_writer(&mut out, incident)?;
                writeln!(out)?;
            } else if let Some(line) = text::change(incident) {
                writeln!(out, "{} {line}", wall_clock())?;
            }
        }
        Ok(out.flush()?)
    }
}
