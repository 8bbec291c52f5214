//! `export`: a capture as what other programs read.

use super::file;
use crate::{
    capture::{Line, replay::Replay, replay::Told},
    cli::{Export, ExportFormat},
    exit::Exit,
    sinks::{
        export::{folded::Folded, perfetto::Perfetto},
        json,
    },
};
use anyhow::{Context, Result};
use std::io::Write;

/// Runs the verb.
pub fn run(options: &Export) -> Result<Exit> {
    let mut reader = file::open(&options.file, options.to.salvage)?;
    let header = reader.header().clone();
    let binary = options.format == ExportFormat::Perfetto;
    let mut out = file::create(&options.to, &options.file, binary)?;
    let mut exporter = match options.format {
        ExportFormat::Perfetto => Exporter::Perfetto(Box::new(Perfetto::new(&header))),
        ExportFormat::Folded => Exporter::Folded(Folded::default()),
        ExportFormat::Jsonl => Exporter::Jsonl(json::line(&Line::Header(header.clone()))?),
    };
    let mut replay = Replay::new(header.thresholds);
    let mut end = Ok(());
    for line in reader.by_ref() {
        match line.with_context(|| options.file.display().to_string()) {
            Ok(line) => {
                exporter.line(line, &mut replay)?;
                exporter.write(&mut out)?;
            }
            // What stands before it is of use all the same.
            Err(error) => end = Err(error),
        }
    }
    exporter.finish();
    exporter.write(&mut out)?;
    out.flush()?;
    if let Some(words) = reader.unread().words() {
        // Nobody may read the standard error; that is no reason to panic.
        let _ = writeln!(std::io::stderr(), "plegscope: {words}");
    }
    end.map(|()| Exit::Done)
}

/// One of the formats.
enum Exporter {
    Perfetto(Box<Perfetto>),
    Folded(Folded),
    /// What is not written yet.
    Jsonl(Vec<u8>),
}

impl Exporter {
    /// The next line of the capture.
    fn line(&mut self, line: Line, replay: &mut Replay) -> Result<()> {
        match self {
            Exporter::Perfetto(perfetto) => {
                perfetto.line(&line);
                replay.line(line, |told| {
                    if let Told::Frame(frame) = told {
                        perfetto.frame(&frame);
                    }
                });
            }
            Exporter::Folded(folded) => replay.line(line, |told| {
                if let Told::Frame(frame) = told {
                    folded.frame(&frame);
                }
            }),
            Exporter::Jsonl(out) => json::append(out, &line)?,
        }
        Ok(())
    }

    /// The capture has ended.
    fn finish(&mut self) {
        match self {
            Exporter::Perfetto(perfetto) => perfetto.finish(),
            Exporter::Folded(folded) => folded.finish(),
            Exporter::Jsonl(_) => {}
        }
    }

    /// Writes what is ready.
    fn write(&mut self, out: &mut impl Write) -> Result<()> {
        let ready = match self {
            Exporter::Perfetto(perfetto) => perfetto.take(),
            Exporter::Folded(folded) => folded.take(),
            Exporter::Jsonl(ready) => std::mem::take(ready),
        };
        out.write_all(&ready)?;
        Ok(())
    }
}
