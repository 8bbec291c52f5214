//! Lines in, whole zstd frames out.

use super::Line;
use crate::sinks::json;
use std::io::{self, Write};
use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, Strategy};

/// A frame is closed once it has this many bytes of lines.
pub const FRAME: usize = 1 << 20;
/// How zstd looks for what was there before. Lines of a capture are the same for tens of bytes, then differ in a number: short
/// matches are seldom worth it, and looking a second time for longer ones saves a quarter, at 4 us for an event. It finds as
/// much with tables of half a megabyte as with larger ones.
const SEARCH: [CParameter; 6] = [
    CParameter::Strategy(Strategy::ZSTD_lazy2),
    CParameter::MinMatch(7),
    CParameter::SearchLog(4),
    CParameter::HashLog(17),
    CParameter::ChainLog(17),
    CParameter::WindowLog(20),
];

/// Whole lines, compressed: can be read by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What goes into the file.
    pub bytes: Vec<u8>,
    /// Lines in it.
    pub lines: u64,
    /// How many of them are [`Line::Event`].
    pub events: u64,
}

/// Collects lines into frames.
pub struct Framer {
    compressor: Compressor<'static>,
    text: Vec<u8>,
    lines: u64,
    events: u64,
}

impl Framer {
    /// Nothing is collected yet.
    pub fn new() -> io::Result<Framer> {
        let mut compressor = Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL)?;
        for parameter in SEARCH {
            compressor.set_parameter(parameter)?;
        }
        // What was damaged is known as such, and never taken for something else that happened.
        compressor.set_parameter(CParameter::ChecksumFlag(true))?;
        Ok(Framer { compressor, text: Vec::with_capacity(FRAME + (16 << 10)), lines: 0, events: 0 })
    }

    /// Adds a line; gives the frame that is full by it.
    pub fn line(&mut self, line: &Line) -> io::Result<Option<Frame>> {
        json::append(&mut self.text, line)?;
        self.lines += 1;
        self.events += u64::from(matches!(line, Line::Event(_)));
        if self.text.len() >= FRAME { self.close() } else { Ok(None) }
    }

    /// Closes the frame; `None` when it is empty.
    pub fn close(&mut self) -> io::Result<Option<Frame>> {
        if self.text.is_empty() {
            return Ok(None);
        }
        let bytes = self.compressor.compress(&self.text)?;
        self.text.clear();
        // A line that was much longer than a frame is no reason to keep its room.
        self.text.shrink_to(2 * FRAME);
        let (lines, events) = (std::mem::take(&mut self.lines), std::mem::take(&mut self.events));
        Ok(Some(Frame { bytes, lines, events }))
    }
}

/// Writes frames as they close. Nothing reaches the file but whole frames, each in one piece.
pub struct Writer<W> {
    to: W,
    framer: Framer,
}

impl<W: Write> Writer<W> {
    /// An empty capture.
    pub fn new(to: W) -> io::Result<Writer<W>> {
        Ok(Writer { to, framer: Framer::new()? })
    }

    /// Adds a line. An error is one of the file.
    pub fn line(&mut self, line: &Line) -> io::Result<()> {
        let full = self.framer.line(line)?;
        self.write(full)
    }

    /// Closes the frame: what was added so far can be read afterwards, whatever happens.
    pub fn flush(&mut self) -> io::Result<()> {
        let rest = self.framer.close()?;
        self.write(rest)
    }

    /// What was written to; lines that are not in a closed frame are lost.
    pub fn into_inner(self) -> W {
        self.to
    }

    fn write(&mut self, frame: Option<Frame>) -> io::Result<()> {
        let Some(frame) = frame else { return Ok(()) };
        self.to.write_all(&frame.bytes)?;
        self.to.flush()
    }
}
