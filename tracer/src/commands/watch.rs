//! `watch`: a line at the first crossing of a threshold while it is still blocked, at growth, and at the end.

use super::follow::{self, Follower, Moment};
use crate::{
    cli::Watch,
    correlator::Frame,
    exit::Exit,
    sinks::{json, text},
};
use std::io::Write;

/// Runs the verb.
pub fn run(options: &Watch) -> anyhow::Result<Exit> {
    let mut teller = Teller { json: options.json };
    let node = follow::Node {
        settings: options.probing.settings(),
        thresholds: options.thresholds(),
        duration: options.probing.duration,
        redactor: None,
    };
    follow::node(node, &mut teller)
}

struct Teller {
    json: bool,
}

impl Follower for Teller {
    fn frame(&mut self, frame: Frame, moment: &Moment<'_>) -> anyhow::Result<()> {
        let mut out = Vec::new();
        for incident in frame.incidents.iter().filter(|i| i.change.is_some()) {
            if self.json {
                out.extend(json::line(incident)?);
            } else if let Some(line) = text::change(incident) {
                writeln!(out, "{} {line}", moment.time(frame.now))?;
            }
        }
        moment.streams.out.write(out);
        Ok(())
    }
}
