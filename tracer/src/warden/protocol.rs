//! What the warden tells its parent: length-prefixed postcard messages, one way. The only thing the parent ever says is
//! goodbye, by closing the socket.

use crate::{bpf::plan::Probe, event::Event};
use serde::{Deserialize, Serialize};
use std::io;

/// One message.
#[expect(clippy::large_enum_variant, reason = "a message lives for a moment, and a survey is rare")]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Message {
    /// Things that happened. At most [`EVENTS_AT_ONCE`].
    Events(Vec<Event>),
    /// How attaching turned out. Sent whenever it changes; replaces the one before.
    Survey(Survey),
    /// What the probes cost and could not do; about once a second.
    Cost(Vec<Cost>),
    /// How exposed the node is, of a survey; replaces the one before.
    Exposure(crate::exposure::Facts),
    /// A process was looked at, of a look at the node ([`super::Settings::look`]). Some are looked at twice.
    Look(crate::look::LookedAt),
    /// That look is over: the last message of it.
    Looked(crate::look::Summary),
    /// A line for the log.
    Log(Level, String),
    /// The warden cannot go on.
    Fatal(String),
}

/// What is attached, and what is not and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// What the kernel allows.
    pub features: Option<crate::bpf::features::Features>,
    /// All probes, on and off.
    pub probes: Vec<Probe>,
    /// Programs that take part.
    pub programs: Vec<GoProgram>,
    /// Set once everything that was there at the start is attached: how long that took, in ns since the start.
    pub attached_after: Option<u64>,
    /// Processes whose program may not be looked at (not root): containerd may be among them.
    pub unreadable: u32,
    /// Workers that are with a read that does not come back.
    pub stuck_reads: u64,
}

/// An executable that takes part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoProgram {
    /// What it is.
    pub role: crate::event::Role,
    /// Name of a process that runs it.
    pub comm: String,
    /// Go version, or why it is not usable.
    pub go_version: String,
    /// Processes that run it.
    pub pids: Vec<u32>,
    /// ELF build id.
    pub build_id: Option<String>,
    /// Distinct pages of its file with a probe: each is copied into each process, 4 KiB.
    pub pages: u32,
}

/// Counters of one kind of operation since the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// The kind.
    pub kind: crate::event::Kind,
    /// Begin sites hit.
    pub hits: u64,
    /// What could not be done, in words, and how often.
    pub refusals: Vec<(String, u64)>,
}

/// How important a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// Something is wrong.
    Error,
    /// Something is weaker than it should be.
    Warning,
    /// For whoever looks for the reason of something.
    Debug,
}

/// Most events in one message.
pub const EVENTS_AT_ONCE: usize = 512;
/// Most bytes in one message.
pub const MESSAGE_LIMIT: usize = 4 << 20;

/// A message as it travels: its length in four bytes, then itself.
pub fn frame(message: &Message) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(message).map_err(io::Error::other)?;
    if body.len() > MESSAGE_LIMIT {
        return Err(io::Error::other(format!("a message of {} bytes is too long", body.len())));
    }
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend(body);
    Ok(frame)
}

/// Takes one whole message from the front of `bytes`, if there is one.
pub fn take(bytes: &mut Vec<u8>) -> io::Result<Option<Message>> {
    let Some(header) = bytes.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_le_bytes(*header) as usize;
    if len > MESSAGE_LIMIT {
        return Err(io::Error::other(format!("a message of {len} bytes is too long")));
    }
    let Some(body) = bytes.get(4..4 + len) else { return Ok(None) };
    let message = postcard::from_bytes(body).map_err(io::Error::other)?;
    bytes.drain(..4 + len);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_any_cut() {
        let message = Message::Log(Level::Warning, "x".repeat(300));
        let framed = frame(&message).unwrap();
        for cut in 0..framed.len() {
            let mut part = framed[..cut].to_vec();
            assert!(take(&mut part).unwrap().is_none());
            part.extend(&framed[cut..]);
            part.extend(&framed);
            assert!(
                matches!(take(&mut part).unwrap(), Some(Message::Log(Level::Warning, ref t)) if t.len() == 300)
            );
            assert_eq!(part, framed);
        }
        assert!(take(&mut vec![0xff; 8]).is_err());
    }
}
