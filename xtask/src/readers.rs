//! What reads our files in tests beside us: a browser, and Perfetto's own classes.

use crate::lab::packages;
use crate::shell;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The environment variable through which tests find a Python with Perfetto's classes.
pub const VARIABLE: &str = "PLEGSCOPE_PERFETTO_PYTHON";
/// The package of PyPI that has them, in the version that tests were written with.
const PERFETTO: &str = "perfetto==0.59.1";

/// What there is.
pub struct Readers {
    /// Python with Perfetto's classes.
    pub python: Option<PathBuf>,
    /// One reason for each that is missing.
    pub missing: Vec<String>,
}

/// Gets what is missing, as far as that can be done: the browser needs root, Perfetto's classes the network.
pub fn gather(fetch: bool) -> Result<Readers> {
    let mut readers = Readers { python: None, missing: Vec::new() };
    if fetch && shell::is_root() {
        packages::ensure(&[packages::need("chromium", "chromium")])?;
    }
    if !["chromium", "chromium-browser", "google-chrome"].into_iter().any(shell::exists) {
        readers.missing.push("a browser, for reports as pages: apt-get install chromium".into());
    }
    let folder = shell::cache()?.join("perfetto");
    match perfetto(&folder, fetch) {
        Ok(python) => readers.python = Some(python),
        Err(error) => readers.missing.push(format!("Perfetto's classes, for exported traces: {error:#}")),
    }
    Ok(readers)
}

/// A Python of its own in that folder, which has them.
fn perfetto(folder: &Path, fetch: bool) -> Result<PathBuf> {
    let python = folder.join("bin/python");
    let import = || {
        let mut ask = Command::new(&python);
        shell::capture(ask.args(["-c", "from perfetto.protos.perfetto.trace import perfetto_trace_pb2"]))
    };
    if import().is_ok() {
        return Ok(python);
    }
    if !fetch {
        anyhow::bail!("not fetched yet; cargo xtask test");
    }
    shell::capture(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))
        .context("making a Python of its own (Debian: apt-get install python3-venv)")?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PERFETTO];
    shell::capture(Command::new(&python).args(install))?;
    import()?;
    Ok(python)
}
