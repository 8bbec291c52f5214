//! What the lab asks of the machine that it runs in, when that is one of `cargo xtask vm`: its slow disk is slowed down from
//! outside, by QEMU.

use super::cleanup::{Ledger, Leftover};
use super::sys;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Environment variable that says that there is such a machine around us.
pub const VARIABLE: &str = "PLEGSCOPE_BOX";
/// The serial port on which it is asked, and answers.
pub const PORT: &str = "/dev/ttyS1";
/// Name of the disk that is slowed down.
pub const SLOW: &str = "slow";

/// Where the lab's container image lies in such a machine, when it has one.
pub const IMAGE: &str = "/kit/image.tar";

/// Whether we run in one.
pub fn is_around() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// The block device that QEMU calls so.
pub fn disk(name: &str) -> Result<PathBuf> {
    for entry in fs::read_dir("/sys/block").context("reading /sys/block")?.flatten() {
        let serial = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if serial.trim_end_matches(['\0', '\n']) == name {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    anyhow::bail!("this machine has no disk called {name}")
}

/// Limits what a disk may write and read, bytes per second; 0 is no limit.
pub fn throttle(disk: &str, writes: u64, reads: u64) -> Result<()> {
    let mut port = File::options().read(true).write(true).open(PORT).context("opening the serial port")?;
    port.write_all(order(disk, writes, reads).as_bytes()).context("asking for a slow disk")?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        port.read_exact(&mut byte).context("waiting for an answer")?;
        answer.extend(byte);
    }
    let answer = String::from_utf8_lossy(&answer);
    ensure!(answer.trim() == "done", "the disk {disk} cannot be slowed down: {}", answer.trim());
    Ok(())
}

/// Writes down that a disk is to be set free again, whatever comes.
pub fn free_at_the_end(ledger: &Ledger, disk: &str) -> Result<()> {
    ledger.record(Leftover::Setting { file: PORT.into(), line: order(disk, 0, 0) })
}

fn order(disk: &str, writes: u64, reads: u64) -> String {
    format!("ASK throttle {disk} {writes} {reads}\n")
}

/// Mounts a disk of the machine, which has a file system already; its device number, as `MAJ:MIN`.
pub fn mount(name: &str, file_system: &str, at: &Path) -> Result<String> {
    let node = disk(name)?;
    fs::create_dir_all(at).with_context(|| format!("creating {}", at.display()))?;
    sys::run("mount", &["-t", file_system, &node.to_string_lossy(), &at.to_string_lossy()])?;
    let number = Path::new("/sys/block").join(node.file_name().unwrap_or_default()).join("dev");
    let number = fs::read_to_string(&number).with_context(|| format!("reading {}", number.display()))?;
    Ok(number.trim().to_owned())
}
