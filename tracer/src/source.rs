//! Where events come from: live, from the warden. The only place that will know the difference to a capture file.

use crate::warden::protocol::{self, Message};
use std::{io, os::unix::net::UnixStream};
use tokio::io::AsyncReadExt;

/// Messages of the warden as they come.
pub struct Live {
    socket: tokio::net::UnixStream,
    buffer: Vec<u8>,
}

impl Live {
    /// Listens to a warden; needs a runtime.
    pub fn new(socket: UnixStream) -> io::Result<Live> {
        socket.set_nonblocking(true)?;
        Ok(Live { socket: tokio::net::UnixStream::from_std(socket)?, buffer: Vec::with_capacity(64 << 10) })
    }

    /// The next message; `None` when the warden has ended. May be cancelled without losing anything.
    pub async fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(message) = protocol::take(&mut self.buffer)? {
                return Ok(Some(message));
            }
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}
