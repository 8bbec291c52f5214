//! A report in each of its formats: the same facts in the same words, one renderer a file.

mod chain;
mod html;
mod markdown;
mod svg;
mod text;
mod timeline;
mod words;

pub use html::html;
pub use markdown::markdown;
pub use text::text;

use super::json;
use crate::report::{Comparison, Report};
use serde::Serialize;
use std::io;

/// What is told: a report, and what an older one says beside it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Told<'a> {
    /// The report.
    #[serde(flatten)]
    pub report: &'a Report,
    /// Before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<&'a Comparison>,
}

/// One indented JSON object. Durations are nanoseconds; `tracer/src/report/mod.rs` has each field.
pub fn json(told: Told<'_>) -> io::Result<Vec<u8>> {
    let mut out = json::pretty(&told)?;
    out.push(b'\n');
    Ok(out)
}
