//! What a machine can do that must be noticed from outside: `cargo xtask vm --prove`.

use anyhow::{Result, bail};
use std::{fs, thread::sleep, time::Duration};

/// Lets the kernel panic.
pub fn panic() -> Result<()> {
    fs::write("/proc/sysrq-trigger", "c")?;
    bail!("there was no panic")
}

/// Says nothing any more.
pub fn hang() -> Result<()> {
    loop {
        sleep(Duration::from_secs(3600));
    }
}
