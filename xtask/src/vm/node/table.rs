//! What was seen on a node: read from what it handed out, and kept in a table.

use super::{NOTHING, Wanted};
use crate::lab::attached::Attached;
use crate::lab::stories::language::Story;
use crate::lab::stories::table::{Row, apart};
use crate::shell;
use crate::vm::kernel::Kernel;
use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Where the table is.
const TABLE: &str = "docs/box.md";

const HEAD: &str = "\
# The node in a box

Each line is a machine of its own in QEMU: one of Debian's kernels, a containerd with its shim, real containers, and a disk
that QEMU slows down. The story is the same as in [truth.md](truth.md), played by the same program and held against the same
clocks; here the kernel has all of its own probes. `cargo xtask vm --story NAME --kernel LINE --containerd VERSION` plays one,
`--diagonal` each kernel with the containerd of its time, `--all` every pair. This file is written by `--record`.

Control groups are v2 where a line does not say v1. *without* names what plegscope was told not to use (`--without`), though the
kernel offers it: how the fallbacks are played.

* *attached*: what the kernel's own lists have, when plegscope says that it is ready; it must be what `plegscope doctor` had
  promised before.
* *kernel's links seen by*: what saw the unmount, the shutdown of the super block and the sync in the frames of the story.
* *links found*: of the chains that must be shown while they last. *to the device*: frames of the stall in which the chain ends
  in the sync of the slow disk itself.
* *worst duration*: the age of a link or a relist that was furthest from its clock, in any frame.

Kernels before 5.10 are not here: the mirror has no Debian before bullseye any more. Without ring buffers (before 5.8) plegscope
refuses to attach, says so and names `plegscope now`, which needs none: the test *no ring buffers* of `cargo xtask vm` answers as
such a kernel does.

The clock of these machines counts the instructions of their one emulated processor while that is busy, so how much else the
host has to do does not show.

| kernel | containerd | story | attached | kernel's links seen by | links found | to the device | worst duration | |
|---|---|---|---|---|---|---|---|---|
";

/// What came of one machine.
pub struct Seen {
    line: String,
    version: String,
    /// What is not as usual: control groups, ways that plegscope was not to use.
    but: String,
    row: Row,
    attached: Option<Attached>,
    /// What is not as it should be.
    pub wrong: Vec<String>,
}

impl Seen {
    /// Reads what a machine has handed out.
    pub fn read(
        folder: &Path,
        kernel: &Kernel,
        containerd: &str,
        story: &Story,
        args: &Wanted,
        failed: Vec<String>,
    ) -> Result<Seen> {
        let kept = folder.join(format!("{}-{containerd}", story.name));
        let row = match json(&kept.join("row.json")) {
            Ok(row) => row,
            // The story came to no end; why is known already.
            Err(_) if !failed.is_empty() => Row { differed: 1, ..Row::new(&story.name, containerd) },
            Err(error) => return Err(error),
        };
        let attached: Option<Attached> = json(&kept.join("attached.json")).ok();
        let mut wrong = failed;
        if let Some(seen) = attached.as_ref().map(|one| &one.cgroup).filter(|seen| **seen != args.cgroup) {
            wrong.push(format!("it had control groups {seen}, {} were asked for", args.cgroup));
        }
        Ok(Seen {
            line: kernel.line.to_owned(),
            version: kernel.version.clone(),
            but: but(args),
            row,
            attached,
            wrong,
        })
    }

    /// In a few words.
    pub fn words(&self) -> String {
        let what = match (self.row.compared, self.row.links) {
            (Some(compared), _) => format!("{compared} comparisons"),
            (None, (found, of)) => format!("{found} of {of} links"),
        };
        format!("{} ({what})", if self.wrong.is_empty() { "agrees" } else { "DIFFERS" })
    }

    fn markdown(&self) -> String {
        let row = &self.row;
        let worst = apart(row.worst);
        let (attached, seen_by) = match &self.attached {
            Some(attached) => (attached.words(), attached.seen_by_words()),
            None => ("-".to_owned(), "-".to_owned()),
        };
        format!(
            "| {} ({}) | {} | {}{} | {attached} | {seen_by} | {} of {} | {} | {worst} | {} |",
            self.line,
            self.version,
            row.version,
            row.story,
            self.but,
            row.links.0,
            row.links.1,
            row.to_device.map_or("-".to_owned(), |(frames, of)| format!("{frames} of {of} frames")),
            if row.differed == 0 && self.wrong.is_empty() { "agrees" } else { "DIFFERS" },
        )
    }
}

/// What is not as usual, in words that come after the name of the story.
fn but(args: &Wanted) -> String {
    let groups = if args.cgroup == "v1" { ", cgroup v1" } else { "" };
    let without = if args.without == NOTHING {
        String::new()
    } else {
        format!(", without {}", args.without.replace(',', ", "))
    };
    format!("{groups}{without}")
}

fn json<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))
}

/// Writes the lines into the table; what was recorded of other machines stays.
pub fn record(seen: &[Seen]) -> Result<()> {
    let path = shell::root().join(TABLE);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let lines = seen.iter().map(Seen::markdown).collect::<Vec<_>>();
    fs::write(&path, joined(&text, &lines)).with_context(|| format!("writing {}", path.display()))?;
    println!("{TABLE} is written");
    Ok(())
}

fn joined(text: &str, lines: &[String]) -> String {
    let old = text.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let known = old.map(str::to_owned).chain(lines.iter().cloned());
    let all: BTreeMap<Key, String> = known.filter_map(|line| Some((key(&line)?, line))).collect();
    let mut text = HEAD.to_owned();
    all.values().for_each(|line| text += &format!("{line}\n"));
    text
}

/// Story, place of the kernel among the kernels, containerd.
type Key = (String, usize, String);

fn key(line: &str) -> Option<Key> {
    let mut cells = line.trim_matches('|').split('|').map(str::trim);
    let (kernel, containerd, story) = (cells.next()?, cells.next()?, cells.next()?);
    let kernel = kernel.split(' ').next()?;
    let place = super::DIAGONAL.iter().position(|(line, _)| *line == kernel)?;
    // As much of a version as names it: `1.6` of `1.6.20~ds1`.
    let minor: Vec<&str> = containerd.split('.').take(2).collect();
    Some((story.to_owned(), place, minor.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_the_place_of_that_of_the_same_machine() {
        let line = |kernel: &str, containerd: &str, rest: &str| {
            format!("| {kernel} | {containerd} | slow-disk | {rest} |")
        };
        let first = joined("", &[line("6.1 (a)", "1.6.20~ds1", "x"), line("5.10 (b)", "1.4.13", "y")]);
        let second = joined(&first, &[line("6.1 (c)", "1.6.24", "z")]);
        let rows: Vec<&str> = second.lines().filter(|line| line.contains("slow-disk |")).collect();
        assert_eq!(rows, ["| 5.10 (b) | 1.4.13 | slow-disk | y |", "| 6.1 (c) | 1.6.24 | slow-disk | z |"]);
    }
}
