//! What a program holds against a story beyond the words of its file: one file each, with what the lab's own clocks say,
//! and what plegscope must have said.

mod busy;
mod create;
mod late_exit;
mod published;
mod restart;
pub mod said;
mod stalled;
mod status_write;

use super::language::Check;
use super::record::Record;
use crate::lab::verdict::{self, Seen, Verdict};
use anyhow::Result;

/// One second, ns.
const SECOND: u64 = 1_000_000_000;
/// Write rate of the slow disk in these stories, bytes per second.
const RATE: u64 = 2_000_000;

/// A story by the lab's own clocks.
trait Beyond {
    /// Whether it was what it should be, without plegscope.
    fn truth(&self, verdict: &mut Verdict);
    /// Holds what plegscope said against it.
    fn said(&self, frames: &[Seen], verdict: &mut Verdict);
}

/// Holds what happened against a check: first the lab's clocks among each other, then, if it ran, plegscope.
pub fn hold(check: Check, record: &Record) -> Result<Vec<Verdict>> {
    let beyond: Box<dyn Beyond> = match check {
        Check::PublishedChain => Box::new(published::Published::of(record)?),
        Check::LateExit => Box::new(late_exit::Truth::of(record)?),
        Check::Busy => Box::new(busy::Truth::of(record)?),
        Check::Create => Box::new(create::Truth::of(record)?),
        Check::Stalled => Box::new(stalled::Truth::of(record)?),
        Check::StatusWrite => Box::new(status_write::Truth::of(record)?),
        Check::Restart => Box::new(restart::Truth::of(record)?),
    };
    let mut verdicts = vec![Verdict::default()];
    beyond.truth(&mut verdicts[0]);
    if !record.runs.is_empty() {
        let frames: Vec<Seen> = record.runs.iter().flat_map(|run| verdict::frames(&run.lines)).collect();
        let mut said = Verdict::default();
        beyond.said(&frames, &mut said);
        verdicts.push(said);
    }
    Ok(verdicts)
}
