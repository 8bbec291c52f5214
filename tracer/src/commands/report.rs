//! `report`: what a capture comes to, in one of several formats.

use super::file;
use crate::{
    cli::{Report, ReportFormat},
    exit::Exit,
    report::{self, Comparison},
    sinks::report::{Told, html, json, markdown, text},
};
use anyhow::{Context, Result};
use std::{io::Write, path::Path};

/// Runs the verb.
pub fn run(options: &Report) -> Result<Exit> {
    let old = options.against.as_deref().map(|old| read(old, options.to.salvage)).transpose()?;
    let report = read(&options.file, options.to.salvage)?;
    let against = old.map(|old| Comparison::of(&old, &report));
    let told = Told { report: &report, against: against.as_ref() };
    let bytes = match options.format {
        ReportFormat::Text => text(told).into_bytes(),
        ReportFormat::Json => json(told)?,
        ReportFormat::Md => markdown(told).into_bytes(),
        ReportFormat::Html => html(told).into_bytes(),
    };
    let mut out = file::create(&options.to, &options.file, false)?;
    out.write_all(&bytes)?;
    out.flush()?;
    Ok(Exit::Done)
}

fn read(path: &Path, salvage: bool) -> Result<report::Report> {
    let mut reader = file::open(path, salvage)?;
    report::of(&mut reader).with_context(|| path.display().to_string())
}
