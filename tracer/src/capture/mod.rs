//! The capture file: evidence that outlives the incident and the node.
//!
//! ```text
//! source ─> Line ─> writer ─> zstd frames ─> reader ─> Line ─> replay ─> pipeline ─> frames
//! ```
//!
//! A capture is a sequence of zstd frames, each of which holds whole lines of JSON ([`Line`]). Every frame can be read by
//! itself, so what was written before a kill, a full disk or a damaged block is whole. Names, stacks, devices and what is
//! attached are in it as they were found out on the node: another machine needs nothing else. The schema for people who
//! write other programs is docs/capture-format.md.

mod frames;
pub mod line;
pub mod place;
pub mod player;
pub mod reader;
pub mod record;
pub mod recorder;
pub mod redact;
pub mod replay;
mod ring;
mod scribe;
pub mod writer;

pub use line::{End, Header, Line, Loss, VERSION};
pub use place::Place;
pub use player::Player;
pub use reader::{ReadError, Reader, Unread, open};
pub use record::Record;
pub use recorder::Recorder;
pub use redact::Redactor;
