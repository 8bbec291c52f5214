//! A file in, lines out. What cannot be read is an error that says where, or is passed over and counted.
//!
//! A frame is checked as a whole before any of its lines is given out, so that no damage becomes an event.

use super::frames::{Frames, Trouble};
use super::{Header, Line, Loss, VERSION};
use crate::event::Ns;
use serde_json::Value;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use thiserror::Error;

/// Longest line that is read.
const LONGEST: usize = 16 << 20;

/// Why a capture cannot be read, or not any further.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file itself could not be read.
    #[error("reading after line {after}: {why}")]
    Io {
        /// The last line that was read.
        after: u64,
        /// Why.
        why: io::Error,
    },
    /// It could not be opened.
    #[error("cannot open it: {0}")]
    Closed(io::Error),
    /// It ends in the middle of a frame.
    #[error(
        "the capture is cut off at its end, in the frame at byte {at}; what stands before, {after} lines, is whole: \
         --salvage reads it"
    )]
    Cut {
        /// Where that frame begins.
        at: u64,
        /// The last line before.
        after: u64,
    },
    /// A frame is damaged.
    #[error(
        "the capture is damaged in the frame at byte {at}, after line {after} ({why}): --salvage reads what is whole \
         around it"
    )]
    Damaged {
        /// Where the frame begins.
        at: u64,
        /// The last line before.
        after: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A line is not what a capture has.
    #[error("line {line} is no line of a capture ({why}): --salvage reads the others")]
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

/// What of a file did not become lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// Stretches that are damaged or cut off; only when salvaging.
    pub stretches: u64,
    /// Bytes of the file in them.
    pub bytes: u64,
    /// Lines in whole frames that are no lines of a capture; only when salvaging.
    pub lines: u64,
    /// Lines of kinds that this plegscope does not know, of a newer one.
    pub unknown_lines: u64,
    /// Fields that it does not know, in lines that it does. Counted only where another version wrote the file.
    pub unknown_fields: u64,
}

impl Unread {
    /// The same in words; `None` when all was read.
    pub fn words(&self) -> Option<String> {
        let count = |n: u64, one: &str, many: &str| {
            (n > 0).then(|| format!("{n} {}", if n == 1 { one } else { many }))
        };
        let damage = count(self.stretches, "damaged stretch", "damaged stretches");
        let parts = [
            damage.map(|text| format!("{text} of {} bytes", self.bytes)),
            count(self.lines, "damaged line", "damaged lines"),
            count(self.unknown_lines, "line of an unknown kind", "lines of an unknown kind"),
            count(self.unknown_fields, "unknown field", "unknown fields"),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| format!("not read: {}", parts.join(", ")))
    }
}

/// A place between two lines, to which a reader can come back.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Where in the file the frame begins.
    frame: u64,
    /// Where in its content.
    at: usize,
    line: u64,
    unread: Unread,
    latest: Ns,
}

/// The lines of a capture. Headers are not among them.
pub struct Reader<R: Read> {
    frames: Frames<R>,
    /// Lines, from `at` on not given out; the last may not be whole.
    text: Vec<u8>,
    at: usize,
    /// Where in the file the frame begins that `text` is the content of; `None` when it is more than that.
    frame: Option<u64>,
    /// The file is read, `text` is all that is left.
    over: bool,
    /// Lines so far.
    line: u64,
    header: Header,
    /// Whether another version wrote it, which may have fields that this one does not know.
    foreign: bool,
    salvage: bool,
    unread: Unread,
    /// The latest time that was read.
    latest: Ns,
    end: bool,
    failed: bool,
}

/// Opens a capture; with `salvage` all that is whole is read, and what is not is a [`Line::Loss`] in its place.
pub fn open(path: &Path, salvage: bool) -> Result<Reader<File>, ReadError> {
    let file = File::open(path).map_err(ReadError::Closed)?;
    if salvage { Reader::salvage(file) } else { Reader::new(file) }
}

impl<R: Read> Reader<R> {
    /// Reads the header. The first thing that cannot be read will be an error, and the end.
    pub fn new(from: R) -> Result<Reader<R>, ReadError> {
        let mut reader = Reader::without_header(from, false);
        match reader.line() {
            Some(Ok(Line::Header(header))) => reader.with(header),
            Some(Ok(_)) => Err(ReadError::Foreign("its first line is no header".into())),
            Some(Err(ReadError::Line { why, .. })) => {
                Err(ReadError::Foreign(format!("its first line is no header: {why}")))
            }
            Some(Err(ReadError::Damaged { at: 0, why, .. })) => {
                let cure = "if it is one whose beginning is damaged, --salvage reads the rest";
                Err(ReadError::Foreign(format!("{why}; {cure}")))
            }
            Some(Err(error)) => Err(error),
            None => Err(ReadError::Foreign("it is empty".into())),
        }
    }

    fn without_header(from: R, salvage: bool) -> Reader<R> {
        Reader {
            frames: Frames::new(from),
            text: Vec::new(),
            at: 0,
            frame: None,
            over: false,
            line: 0,
            header: Header::default(),
            foreign: false,
            salvage,
            unread: Unread::default(),
            latest: 0,
            end: false,
            failed: false,
        }
    }

    fn with(mut self, header: Header) -> Result<Reader<R>, ReadError> {
        if header.version > VERSION {
            return Err(ReadError::Newer(header.version));
        }
        self.foreign = header.plegscope != env!("CARGO_PKG_VERSION");
        self.header = header;
        Ok(self)
    }

    /// What was captured, where and when.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Whether the line was read that a capture ends with when nothing cut it off.
    pub fn has_ended(&self) -> bool {
        self.end
    }

    /// What did not become lines so far.
    pub fn unread(&self) -> Unread {
        self.unread
    }

    /// Lines so far, headers included.
    pub fn lines(&self) -> u64 {
        self.line
    }

    /// The next line, headers included.
    fn line(&mut self) -> Option<Result<Line, ReadError>> {
        while !self.failed {
            let Some(range) = self.next_text() else {
                match self.fill() {
                    Ok(Some(loss)) => return Some(Ok(loss)),
                    Ok(None) if self.over && self.at >= self.text.len() => return None,
                    Ok(None) => continue,
                    Err(error) => {
                        self.failed = true;
                        return Some(Err(error));
                    }
                }
            };
            match self.parse(range) {
                Ok(Some(line)) => return Some(Ok(line)),
                Ok(None) => {}
                Err(_) if self.salvage => self.unread.lines += 1,
                Err(why) => {
                    self.failed = true;
                    return Some(Err(ReadError::Line { line: self.line, why }));
                }
            }
        }
        None
    }

    /// Where the next whole line is in the text at hand.
    fn next_text(&mut self) -> Option<Range<usize>> {
        let rest = self.text.get(self.at..)?;
        let length = match rest.iter().position(|b| *b == b'\n') {
            Some(length) => length,
            // The last line of a file need not have an end.
            None if self.over && !rest.is_empty() => rest.len(),
            None => return None,
        };
        let range = self.at..self.at + length;
        self.at = (range.end + 1).min(self.text.len());
        self.line += 1;
        Some(range)
    }

    fn parse(&mut self, range: Range<usize>) -> Result<Option<Line>, String> {
        let text = self.text.get(range).unwrap_or_default();
        let line = match serde_json::from_slice::<Line>(text) {
            Ok(line) => line,
            // A kind of line, or of something in it, that came with a newer version.
            Err(error) if error.to_string().starts_with("unknown variant") => {
                self.unread.unknown_lines += 1;
                return Ok(None);
            }
            Err(error) => return Err(error.to_string()),
        };
        if self.foreign
            && let (Ok(written), Ok(known)) = (serde_json::from_slice(text), serde_json::to_value(&line))
        {
            self.unread.unknown_fields += unknown_fields(&written, &known);
        }
        match &line {
            Line::Event(event) | Line::Known(event) => self.latest = self.latest.max(event.at),
            Line::Heard(at) => self.latest = self.latest.max(*at),
            Line::End(_) => self.end = true,
            _ => {}
        }
        Ok(Some(line))
    }

    /// Takes up the next frame. A loss when something is passed over for that.
    fn fill(&mut self) -> Result<Option<Line>, ReadError> {
        self.text.drain(..self.at);
        self.at = 0;
        let (begin, after) = (self.frames.begin(), self.line);
        let trouble = if self.text.len() > LONGEST {
            Trouble::Damaged(format!("a line is longer than {} MiB", LONGEST >> 20))
        } else {
            let whole = self.text.is_empty();
            match self.frames.next(&mut self.text) {
                Ok(more) => {
                    self.over = !more;
                    self.frame = (whole && more).then_some(begin);
                    return Ok(None);
                }
                Err(trouble) => trouble,
            }
        };
        // What a line begins with is of no use without the rest.
        self.text.clear();
        let why = match trouble {
            Trouble::Io(why) => return Err(ReadError::Io { after, why }),
            Trouble::Cut if !self.salvage => return Err(ReadError::Cut { at: begin, after }),
            Trouble::Damaged(why) if !self.salvage => {
                return Err(ReadError::Damaged { at: begin, after, why });
            }
            Trouble::Cut => "it is cut off".into(),
            Trouble::Damaged(why) => why,
        };
        let bytes = match self.frames.resume() {
            Ok(bytes) => bytes,
            Err(Trouble::Io(why)) => return Err(ReadError::Io { after, why }),
            Err(_) => 0,
        };
        self.unread.stretches += 1;
        self.unread.bytes += bytes;
        let reason = format!("{bytes} bytes of the file at byte {begin} cannot be read: {why}");
        Ok(Some(Line::Loss(Loss { at: self.latest, lines: 0, reason })))
    }
}

/// The time of the last line of a capture, found without reading what stands before; 0 when it is not found.
pub fn last_time(from: &mut (impl Read + Seek)) -> io::Result<Ns> {
    /// More than the longest frames that plegscope writes.
    const TAIL: u64 = 1 << 20;
    let length = from.seek(SeekFrom::End(0))?;
    from.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    from.take(TAIL).read_to_end(&mut tail)?;
    let mut reader = Reader::without_header(&tail[..], true);
    while reader.line().is_some_and(|line| line.is_ok()) {}
    Ok(reader.latest)
}

impl<R: Read + Seek> Reader<R> {
    /// The place between the last line and the next; `None` where a line lies across two frames.
    pub fn mark(&self) -> Option<Mark> {
        let Reader { at, line, unread, latest, .. } = *self;
        Some(Mark { frame: self.frame?, at, line, unread, latest })
    }

    /// Goes on from a place where this reader was before.
    pub fn go_back(&mut self, mark: &Mark) -> Result<(), ReadError> {
        let after = mark.line;
        self.frames.go(mark.frame).map_err(|why| ReadError::Io { after, why })?;
        self.text.clear();
        (self.at, self.over, self.failed, self.end) = (0, false, false, false);
        (self.line, self.latest) = (mark.line, mark.latest);
        self.fill()?;
        self.at = mark.at.min(self.text.len());
        self.unread = mark.unread;
        Ok(())
    }

    /// Reads around all damage: every whole frame, and a [`Line::Loss`] in the place of what is not. The header may stand
    /// anywhere.
    pub fn salvage(from: R) -> Result<Reader<R>, ReadError> {
        let mut first = Reader::without_header(from, true);
        let header = loop {
            match first.line() {
                Some(Ok(Line::Header(header))) => break header,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => {
                    let found =
                        if first.line == 0 { "nothing in it can be read" } else { "no header is left in it" };
                    return Err(ReadError::Foreign(found.into()));
                }
            }
        };
        let mut from = first.frames.into_inner();
        from.seek(SeekFrom::Start(0)).map_err(|why| ReadError::Io { after: 0, why })?;
        Reader::without_header(from, true).with(header)
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Line, ReadError>;

    fn next(&mut self) -> Option<Result<Line, ReadError>> {
        loop {
            match self.line() {
                Some(Ok(Line::Header(_))) => {}
                other => return other,
            }
        }
    }
}

/// How many members of objects were written and are not known.
fn unknown_fields(written: &Value, known: &Value) -> u64 {
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => {
            let each =
                written.iter().map(|(name, value)| known.get(name).map_or(1, |k| unknown_fields(value, k)));
            each.sum()
        }
        (Value::Array(written), Value::Array(known)) => {
            written.iter().zip(known).map(|(w, k)| unknown_fields(w, k)).sum()
        }
        _ => 0,
    }
}
