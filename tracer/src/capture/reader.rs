//! zstd frames in, lines out. Never trusts the file: sizes are bounded, what cannot be read is an error that says where.

use super::{Header, Line, VERSION};
use std::io::{BufRead, BufReader, Read};
use thiserror::Error;

/// Longest line that is read.
const LONGEST: u64 = 16 << 20;

/// Why a capture cannot be read, or not any further.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file itself could not be read, or is no zstd.
    #[error("reading after line {after}: {source}")]
    Io {
        /// The last line that was read.
        after: u64,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not what a capture has.
    #[error("line {line} is no line of a capture: {why}")]
    Line {
        /// Which, the first is 1.
        line: u64,
        /// Why.
        why: String,
    },
    /// It does not begin as a capture does.
    #[error("not a capture of plegscope: {0}")]
    Foreign(String),
    /// It was written by a newer plegscope, in a way that this one would misread.
    #[error(
        "the capture has version {0} of the format, this plegscope reads up to {VERSION}: use a newer one"
    )]
    Newer(u32),
}

/// The lines of a capture.
pub struct Reader<R: Read> {
    from: BufReader<zstd::stream::read::Decoder<'static, BufReader<R>>>,
    line: u64,
    header: Header,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub fn new(from: R) -> Result<Reader<R>, ReadError> {
        let decoder =
            zstd::stream::read::Decoder::new(from).map_err(|source| ReadError::Io { after: 0, source })?;
        let mut from = BufReader::new(decoder);
        let mut line = 0;
        match next(&mut from, &mut line) {
            Some(Ok(Line::Header(header))) if header.version > VERSION => {
                Err(ReadError::Newer(header.version))
            }
            Some(Ok(Line::Header(header))) => Ok(Reader { from, line, header }),
            Some(Ok(_)) => Err(ReadError::Foreign("its first line is no header".into())),
            Some(Err(error)) => Err(ReadError::Foreign(error.to_string())),
            None => Err(ReadError::Foreign("it is empty".into())),
        }
    }

    /// What was captured, where and when.
    pub fn header(&self) -> &Header {
        &self.header
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Line, ReadError>;

    fn next(&mut self) -> Option<Result<Line, ReadError>> {
        next(&mut self.from, &mut self.line)
    }
}

fn next(from: &mut impl BufRead, line: &mut u64) -> Option<Result<Line, ReadError>> {
    let mut text = Vec::new();
    match from.take(LONGEST).read_until(b'\n', &mut text) {
        Err(source) => return Some(Err(ReadError::Io { after: *line, source })),
        Ok(0) => return None,
        Ok(_) => *line += 1,
    }
    let parsed = serde_json::from_slice(&text);
    Some(parsed.map_err(|why| ReadError::Line { line: *line, why: why.to_string() }))
}
