//! What the courier and the process that watches tell each other: packets of postcard, each whole or not at all.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

/// Bytes of an alert as a packet, at most: its JSON, its line, and little else.
pub const ALERT_BYTES: usize = crate::sinks::deliver::MOST + (8 << 10);

/// One end. An empty packet means that the other end is gone.
pub struct Link(OwnedFd);

impl Link {
    /// Both ends.
    pub fn pair() -> io::Result<(Link, Link)> {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        Ok((Link(a), Link(b)))
    }

    /// The descriptor.
    pub fn raw(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Sends a packet, or says that there is no room for it now.
    pub fn send(&self, packet: &[u8]) -> io::Result<bool> {
        match rustix::net::send(&self.0, packet, SendFlags::NOSIGNAL) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The next packet, if there is one.
    pub fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut packet = vec![0; ALERT_BYTES];
        match rustix::net::recv(&self.0, &mut packet[..], RecvFlags::empty()) {
            Ok((length, _)) => {
                packet.truncate(length);
                Ok(Some(packet))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until there is a packet, or the other end is gone; or says that there is none after that time.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).unwrap_or_default();
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// As a packet.
pub fn pack(value: &impl Serialize) -> Option<Vec<u8>> {
    postcard::to_stdvec(value).ok()
}

/// From a packet.
pub fn unpack<T: DeserializeOwned>(packet: &[u8]) -> Option<T> {
    postcard::from_bytes(packet).ok()
}
