//! Lines in, whole zstd frames out.

use super::Line;
use crate::sinks::json;
use std::io::{self, Write};

/// A frame is closed once it has this many bytes of lines.
pub const FRAME: usize = 256 << 10;
/// Compression level: the last one of zstd's quick ones.
const LEVEL: i32 = 3;

/// Collects lines into frames. Nothing reaches the file but whole frames, each in one piece.
pub struct Writer<W> {
    to: W,
    lines: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// An empty capture.
    pub fn new(to: W) -> Writer<W> {
        Writer { to, lines: Vec::with_capacity(FRAME + (16 << 10)) }
    }

    /// Adds a line. An error is one of the file.
    pub fn line(&mut self, line: &Line) -> io::Result<()> {
        self.lines.extend(json::line(line)?);
        if self.lines.len() >= FRAME { self.flush() } else { Ok(()) }
    }

    /// Closes the frame: what was added so far can be read afterwards, whatever happens.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let frame = zstd::bulk::compress(&self.lines, LEVEL)?;
        self.lines.clear();
        self.to.write_all(&frame)?;
        self.to.flush()
    }
}
