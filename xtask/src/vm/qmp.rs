//! What QEMU does for a running machine: its disks are slowed down, stopped and freed through its control socket (QMP).

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long QEMU may take to answer, or to make its socket.
const PATIENCE: Duration = Duration::from_secs(20);

/// The path of a control socket, which must be short; gone with this.
pub struct Socket(PathBuf);

impl Socket {
    /// A path that nobody uses.
    pub fn new() -> Socket {
        Socket(std::env::temp_dir().join(format!("plegscope-vm-{}.qmp", std::process::id())))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // QEMU may have done so
    }
}

/// A connection to a machine's QEMU.
pub struct Qmp {
    answers: BufReader<UnixStream>,
    orders: UnixStream,
}

impl Qmp {
    /// Connects to a QEMU that was just started.
    pub fn connect(socket: &Socket) -> Result<Qmp> {
        let end = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(&socket.0) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > end => {
                    return Err(error).context("connecting to QEMU's control socket");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).context("setting a time limit")?;
        let orders = stream.try_clone().context("duplicating a socket")?;
        let mut qmp = Qmp { answers: BufReader::new(stream), orders };
        qmp.order("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// What a disk may write and read from now on, bytes per second; 0 is no limit.
    pub fn throttle(&mut self, disk: &str, writes: u64, reads: u64) -> Result<()> {
        self.order(
            "block_set_io_throttle",
            json!({
                "device": disk, "bps": 0, "bps_wr": writes, "bps_rd": reads,
                "iops": 0, "iops_wr": 0, "iops_rd": 0,
            }),
        )
    }

    fn order(&mut self, order: &str, arguments: Value) -> Result<()> {
        let text = json!({ "execute": order, "arguments": arguments });
        writeln!(self.orders, "{text}").with_context(|| format!("asking QEMU for {order}"))?;
        loop {
            let mut line = String::new();
            let read = self.answers.read_line(&mut line).with_context(|| format!("QEMU and {order}"))?;
            let answer: Value = serde_json::from_str(&line).unwrap_or_default();
            if answer.get("return").is_some() {
                return Ok(());
            }
            // Between the answers come its greeting and events.
            if read == 0 || answer.get("error").is_some() {
                bail!("QEMU does not {order}: {}", line.trim());
            }
        }
    }
}
