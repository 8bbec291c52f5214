//! What the kernel says in its own log of probes that it could not take off.

use crate::lab::sys;
use anyhow::{Context, Result, ensure};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

/// Longest record that the kernel gives.
const RECORD: usize = 8192;
/// How the kernel says it (`uprobe_unregister_nosync` in `kernel/events/uprobes.c`, 6.12 and later; older ones say nothing).
const LEAKED: &str = "leaking uprobe";

/// The kernel's log from some moment on.
pub struct KernelLog(File);

impl KernelLog {
    /// From now on. Fails when it does not see a line of its own.
    pub fn follow() -> Result<KernelLog> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
        let mut log = KernelLog(file.context("opening the kernel's log")?);
        log.0.seek(SeekFrom::End(0)).context("finding the end of the kernel's log")?;
        let own = format!("harmless story {}", sys::monotonic());
        writeln!(log.0, "<7>{own}").context("writing to the kernel's log")?;
        ensure!(log.lines(&own)? == 1, "a line of our own is not seen in the kernel's log");
        Ok(log)
    }

    /// How many probes it could not take off since it was last asked.
    pub fn leaked(&mut self) -> Result<usize> {
        self.lines(LEAKED)
    }

    /// How many of the lines that have come since hold these words.
    fn lines(&mut self, words: &str) -> Result<usize> {
        let mut record = [0; RECORD];
        let mut count = 0;
        loop {
            match self.0.read(&mut record) {
                Ok(length) => {
                    count += usize::from(String::from_utf8_lossy(&record[..length]).contains(words));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(count),
                // Overwritten before it was read: the next read goes on with what is there.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => return Err(error).context("reading the kernel's log"),
            }
        }
    }
}
