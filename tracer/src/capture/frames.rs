//! zstd frames of a file, one after the other, each checked as a whole. Never trusts the file: memory is bounded, and
//! after damage it can be taken up at the next frame.

use std::io::{self, Read, Seek, SeekFrom};
use zstd::zstd_safe;

/// Largest frame that is read, compressed; plegscope closes them at a fraction of that.
const MOST_COMPRESSED: usize = 16 << 20;
/// Most bytes that one frame may become.
const MOST_TEXT: u64 = 64 << 20;
/// Memory that a frame may want for looking back, as a power of two: what `zstd -19` uses.
const WINDOW: u32 = 23;
/// Read at once.
const CHUNK: usize = 256 << 10;

/// Why there is no next frame.
#[derive(Debug)]
pub enum Trouble {
    /// The file could not be read.
    Io(io::Error),
    /// The file ends in the middle of the frame.
    Cut,
    /// What stands here is no frame, or not as it was written.
    Damaged(String),
}

/// The frames of a file.
pub struct Frames<R> {
    from: R,
    held: Vec<u8>,
    /// Where in `held` the next frame begins.
    at: usize,
    /// Where in the file `held` begins.
    before: u64,
    over: bool,
}

impl<R: Read> Frames<R> {
    /// From the beginning.
    pub fn new(from: R) -> Frames<R> {
        Frames { from, held: Vec::new(), at: 0, before: 0, over: false }
    }

    /// Where in the file the next frame begins, or what stands in its place.
    pub fn begin(&self) -> u64 {
        self.before + self.at as u64
    }

    /// Adds the next frame's content to `text`; `false` when there is none. After trouble the same is tried again.
    pub fn next(&mut self, text: &mut Vec<u8>) -> Result<bool, Trouble> {
        loop {
            self.hold(8)?;
            let rest = self.rest();
            let Some(magic) = rest.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes)) else {
                return if rest.is_empty() { Ok(false) } else { Err(self.odd("no zstd frame")) };
            };
            if magic & 0xffff_fff0 == zstd_safe::MAGIC_SKIPPABLE_START {
                self.skip()?;
                continue;
            }
            if magic != zstd_safe::MAGICNUMBER {
                return Err(Trouble::Damaged("no zstd frame begins here".into()));
            }
            let mut wanted = CHUNK;
            let length = loop {
                self.hold(wanted)?;
                match zstd_safe::find_frame_compressed_size(self.rest()) {
                    Ok(length) => break length,
                    Err(_) if !self.over && self.rest().len() < MOST_COMPRESSED => {
                        wanted = self.rest().len() * 2
                    }
                    Err(code) => return Err(self.odd(zstd_safe::get_error_name(code))),
                }
            };
            let before = text.len();
            let frame = self.rest().get(..length).unwrap_or_default();
            match decompress(frame, text) {
                Ok(()) => {
                    self.at += length;
                    return Ok(true);
                }
                Err(why) => {
                    text.truncate(before);
                    return Err(Trouble::Damaged(why.to_string()));
                }
            }
        }
    }

    /// Passes over what stands here, up to where the next frame may begin; how many bytes that were.
    pub fn resume(&mut self) -> Result<u64, Trouble> {
        let begin = self.begin();
        let magic = zstd_safe::MAGICNUMBER.to_le_bytes();
        self.at = (self.at + 1).min(self.held.len());
        loop {
            self.hold(CHUNK)?;
            if let Some(found) = self.rest().windows(4).position(|four| four == magic) {
                self.at += found;
                return Ok(self.begin() - begin);
            }
            if self.over {
                self.at = self.held.len();
                return Ok(self.begin() - begin);
            }
            // The magic number may lie across the end of what is held.
            self.at = self.held.len().saturating_sub(3).max(self.at);
        }
    }

    /// The file again.
    pub fn into_inner(self) -> R {
        self.from
    }

    /// Takes the frame that begins at byte `to` as the next one.
    pub fn go(&mut self, to: u64) -> io::Result<()>
    where
        R: Seek,
    {
        self.from.seek(SeekFrom::Start(to))?;
        self.held.clear();
        (self.at, self.before, self.over) = (0, to, false);
        Ok(())
    }

    fn rest(&self) -> &[u8] {
        self.held.get(self.at..).unwrap_or_default()
    }

    /// At the end of the file it is cut off, elsewhere damaged.
    fn odd(&self, why: &str) -> Trouble {
        if self.over { Trouble::Cut } else { Trouble::Damaged(why.into()) }
    }

    /// Holds at least `wanted` bytes from `at` on, or all that is left.
    fn hold(&mut self, wanted: usize) -> Result<(), Trouble> {
        if self.rest().len() >= wanted || self.over {
            return Ok(());
        }
        self.held.drain(..self.at);
        self.before += self.at as u64;
        self.at = 0;
        let missing = wanted.max(CHUNK) - self.held.len().min(wanted);
        let read = self.from.by_ref().take(missing as u64).read_to_end(&mut self.held);
        // It gives less than asked for only at the end.
        self.over = read.map_err(Trouble::Io)? < missing;
        Ok(())
    }

    /// Passes over a stretch that is marked as not for us.
    fn skip(&mut self) -> Result<(), Trouble> {
        let length = self.rest().get(4..8).and_then(|bytes| bytes.first_chunk::<4>());
        let Some(length) = length.map(|bytes| u64::from(u32::from_le_bytes(*bytes))) else {
            return Err(Trouble::Cut);
        };
        let mut left = 8 + length;
        while left > 0 {
            self.hold(1)?;
            let step = (self.rest().len() as u64).min(left);
            if step == 0 {
                return Err(Trouble::Cut);
            }
            self.at += step as usize;
            left -= step;
        }
        Ok(())
    }
}

/// Adds the content of one whole frame to `text`, whatever it claims to be.
fn decompress(frame: &[u8], text: &mut Vec<u8>) -> io::Result<()> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(frame)?.single_frame();
    decoder.window_log_max(WINDOW)?;
    let length = decoder.take(MOST_TEXT + 1).read_to_end(text)? as u64;
    if length > MOST_TEXT {
        return Err(io::Error::other(format!("it becomes more than {} MiB", MOST_TEXT >> 20)));
    }
    Ok(())
}
