//! `cargo xtask tidy`: the invariants that ARCHITECTURE.md states, checked on the files of the tree.

mod imports;
mod rules;
mod tokens;

use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs;
use std::process::Command;

/// Check the invariants of the source tree.
#[derive(clap::Args)]
pub struct Args {}

/// A file of the tree.
#[derive(Clone, Debug)]
pub struct File {
    /// Its path below the top folder, with `/`.
    pub path: String,
    /// Its text; what is not text is not a file to these rules.
    pub text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Its lines with their numbers, from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// A rule that a line breaks.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    path: String,
    line: usize,
    message: String,
}

impl Finding {
    fn new(file: &File, line: usize, message: impl Into<String>) -> Finding {
        Finding { path: file.path.clone(), line, message: message.into() }
    }
}

/// Runs the command.
pub fn run(_: &Args) -> Result<()> {
    let files = files()?;
    let findings = rules::check(&files);
    for finding in &findings {
        println!("{}:{}: {}", finding.path, finding.line, finding.message);
    }
    if !findings.is_empty() {
        bail!("{} places break an invariant (see ARCHITECTURE.md)", findings.len());
    }
    println!("tidy: {} files keep {} rules", files.len(), rules::ALL.len());
    Ok(())
}

/// What git knows of, and what it would add: a new file is checked before it is committed.
fn files() -> Result<Vec<File>> {
    let mut list = Command::new("git");
    list.current_dir(shell::root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let names = shell::capture(&mut list).context("tidy looks at the files that git knows of")?;
    let mut files = Vec::new();
    for path in names.split_terminator('\0') {
        // Gone from the tree but not from the index: about to be removed.
        let Ok(bytes) = fs::read(shell::root().join(path)) else { continue };
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(File { path: path.into(), text });
        }
    }
    Ok(files)
}
