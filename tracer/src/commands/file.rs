//! What the verbs have in common that turn a capture into something else: opening it, and the way out.

use crate::{
    capture::{self, Reader},
    cli::To,
};
use anyhow::{Context, Result, bail};
use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, IsTerminal, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

/// Opens a capture.
pub fn open(path: &Path, salvage: bool) -> Result<Reader<File>> {
    capture::open(path, salvage).with_context(|| path.display().to_string())
}

/// Where to write what comes of a capture.
pub fn create(to: &To, from: &Path, binary: bool) -> Result<Box<dyn Write>> {
    if to.output.as_os_str() == "-" {
        let out = io::stdout();
        if binary && out.is_terminal() {
            bail!(
                "this is no text and is not written to a terminal: name a file with -o, or pipe it somewhere"
            );
        }
        return Ok(Box::new(BufWriter::new(out.lock())));
    }
    let path = &to.output;
    let id = |path: &Path| std::fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
    if id(path).is_some_and(|out| Some(out) == id(from)) {
        bail!("{} is the capture itself: name another file with -o", path.display());
    }
    // As private as the capture: it has the names of pods.
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    Ok(Box::new(BufWriter::new(file.with_context(|| format!("creating {}", path.display()))?)))
}
