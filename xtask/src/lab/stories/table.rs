//! The tables of all stories: one line for each that was played, for `docs/truth.md`.

use crate::lab::sys::seconds;
use crate::lab::tracer::workspace;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What came of one story.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub story: String,
    /// Version of containerd.
    pub version: String,
    /// Incidents that were expected, and that were told.
    pub incidents: (u64, u64),
    /// Wrong names: pods, devices, writers.
    pub wrong_names: usize,
    /// Containers that were blamed and had no part in it.
    pub wrong_containers: usize,
    /// Links found, and expected.
    pub links: (usize, usize),
    /// Links that cannot be seen, with the words in which plegscope says so.
    pub blind: Vec<String>,
    /// The worst duration: truth and what was said, ns.
    pub worst: Option<(u64, u64)>,
    /// When the last of the expected chains was first shown, ns after all of it had begun.
    pub first_shown: Option<u64>,
    /// Frames in which the chain ends in the sync of the slow disk, of those in which it must, where that was asked.
    #[serde(default)]
    pub to_device: Option<(usize, usize)>,
    /// How much was compared in a story that is a program of its own: only that and the next two say something then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<usize>,
    /// In how many plays something was not as it should be.
    pub differed: usize,
    /// How often it was played.
    pub times: usize,
}

impl Row {
    /// A line in which nothing stands yet.
    pub fn new(story: &str, version: &str) -> Row {
        Row { story: story.to_owned(), version: version.to_owned(), times: 1, ..Row::default() }
    }

    /// Notes when a chain was shown.
    pub fn shown(&mut self, after: Option<u64>) {
        self.first_shown = self.first_shown.max(after);
    }

    /// Notes a duration; the worst is kept.
    pub fn off(&mut self, truth: u64, said: u64) {
        let off = |(truth, said): (u64, u64)| truth.abs_diff(said) as f64 / truth.max(1_000_000_000) as f64;
        if self.worst.is_none_or(|worst| off((truth, said)) > off(worst)) {
            self.worst = Some((truth, said));
        }
    }

    /// Incidents that should not have been told.
    pub fn false_incidents(&self) -> u64 {
        self.incidents.1.saturating_sub(self.incidents.0)
    }

    /// Whether all of its plays were as they should be.
    fn agrees(&self) -> String {
        match (self.differed, self.times) {
            (0, _) => "agrees".to_owned(),
            (_, 1) => "DIFFERS".to_owned(),
            (plays, _) => format!("DIFFERS in {plays}"),
        }
    }

    /// The line in Markdown.
    fn markdown(&self) -> String {
        if let Some(compared) = self.compared {
            let (story, version, times) = (&self.story, &self.version, self.times);
            return format!("| {story} | {version} | {times} | {compared} | {} |", self.agrees());
        }
        let worst = apart(self.worst);
        let links = match self.links {
            (_, 0) => "-".to_owned(),
            (found, of) => format!("{found} of {of}"),
        };
        let blind = match self.blind.join("; ").replace('|', "/") {
            none if none.is_empty() => "-".to_owned(),
            said => said,
        };
        format!(
            "| {} | {} | {} | {} of {} | {} | {} | {} | {links} | {blind} | {worst} | {} | {} |",
            self.story,
            self.version,
            self.times,
            self.incidents.1,
            self.incidents.0,
            self.false_incidents(),
            self.wrong_names,
            self.wrong_containers,
            self.first_shown.map_or("-".to_owned(), seconds),
            self.agrees(),
        )
    }
}

/// A duration in words: how far off it was.
pub fn apart(duration: Option<(u64, u64)>) -> String {
    duration.map_or("-".to_owned(), |(truth, said)| {
        let part = truth.abs_diff(said) as f64 * 100.0 / truth.max(1) as f64;
        format!("{} of {} ({part:.1} %)", seconds(truth.abs_diff(said)), seconds(truth))
    })
}

/// Heading of the table of stories that end in chains, or must not.
const HEADING: &str = "\
| story | containerd | times | incidents told of expected | false | wrong names | wrong containers | links found | not seen: said so | worst duration | first shown | |
|---|---|---|---|---|---|---|---|---|---|---|---|";

/// Heading of the table of stories that are programs of their own.
const PROGRAMS_HEADING: &str = "\
| story | containerd | times | compared | |
|---|---|---|---|---|";

/// What stands above that table.
const BEFORE_PROGRAMS: &str = "\
## What it does to the node and for its users

These stories are not about a chain. Each makes comparisons of its own: what the node's programs and mounts were like without
plegscope and with it, what the kernel and `/proc` say of it, what it answers on a node that is stuck already. *compared*: how much
of that there was in a play, at least. `stopped-root` is played in a virtual machine (`cargo xtask vm --story stopped-root`).
";

/// The tables in Markdown, of stories about chains and of programs; one that would have no lines is empty.
pub fn tables(rows: &[Row]) -> [String; 2] {
    let table = |heading: &str, is_program: bool| {
        let lines: String = rows
            .iter()
            .filter(|row| row.compared.is_some() == is_program)
            .map(|row| format!("{}\n", row.markdown()))
            .collect();
        if lines.is_empty() { lines } else { format!("{heading}\n{lines}") }
    };
    [table(HEADING, false), table(PROGRAMS_HEADING, true)]
}

/// Several lines of the same story with the same containerd become one: the worst of each.
pub fn join(rows: &mut Vec<Row>) {
    let mut joined: Vec<Row> = Vec::new();
    for row in rows.drain(..) {
        let same = joined.iter_mut().find(|one| one.story == row.story && one.version == row.version);
        let Some(one) = same else {
            joined.push(row);
            continue;
        };
        one.times += row.times;
        one.differed += row.differed;
        one.wrong_names = one.wrong_names.max(row.wrong_names);
        one.wrong_containers = one.wrong_containers.max(row.wrong_containers);
        if row.incidents.0.abs_diff(row.incidents.1) > one.incidents.0.abs_diff(one.incidents.1) {
            one.incidents = row.incidents;
        }
        if row.links.0 * one.links.1.max(1) < one.links.0 * row.links.1.max(1) {
            one.links = row.links;
        }
        one.blind.extend(row.blind);
        one.blind.sort();
        one.blind.dedup();
        if let Some((truth, said)) = row.worst {
            one.off(truth, said);
        }
        one.shown(row.first_shown);
        one.compared = one.compared.min(row.compared);
    }
    *rows = joined;
}

/// What [`record`] writes the table from.
const ROWS: &str = "docs/truth.json";

/// Writes the lines into `docs/truth.md`; what was recorded of other stories stays. With `add` they are added to what was
/// recorded of the same ones, which is right only for plays of the same plegscope.
pub fn record(rows: &[Row], add: bool) -> Result<()> {
    let file = workspace().join(ROWS);
    let mut all = recorded(&file)?;
    let same = |one: &Row| rows.iter().any(|row| row.story == one.story && row.version == one.version);
    all.retain(|one| add || !same(one));
    all.extend(rows.iter().cloned());
    join(&mut all);
    all.sort_by(|a, b| (&a.story, &a.version).cmp(&(&b.story, &b.version)));
    let write = |file: &Path, text: String| {
        fs::write(file, text).with_context(|| format!("writing {}", file.display()))
    };
    // A line each, so that a difference can be read.
    let lines: Vec<String> = all.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    write(&file, format!("[\n{}\n]\n", lines.join(",\n")))?;
    let [chains, programs] = tables(&all);
    let text = format!("{BEFORE}\n{}\n\n{chains}\n{BEFORE_PROGRAMS}\n{programs}", sum_up(&all));
    write(&workspace().join("docs/truth.md"), text)
}

/// What was recorded so far.
fn recorded(file: &Path) -> Result<Vec<Row>> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        text => {
            let text = text.with_context(|| format!("reading {}", file.display()))?;
            serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))
        }
    }
}

/// In how many rounds the same must come of a story.
const ROUNDS: usize = 10;

/// What the lines come to: how often the stories were played, and which line is not as it should be.
fn sum_up(rows: &[Row]) -> String {
    let mut times = BTreeMap::new();
    rows.iter().for_each(|row| *times.entry(&row.story).or_insert(0) += row.times);
    let all: usize = times.values().sum();
    let list = |all: Vec<String>| if all.is_empty() { "none".to_owned() } else { all.join(", ") };
    let seldom = times.iter().filter(|(_, times)| **times < ROUNDS);
    let differ = rows.iter().filter(|row| row.differed > 0);
    format!(
        "{} lines, {all} plays of {} stories. Played less than {ROUNDS} times: {}. Lines that differ: {}.",
        rows.len(),
        times.len(),
        list(seldom.map(|(story, times)| format!("{story} ({times})")).collect()),
        list(differ.map(|row| format!("{} {}", row.story, row.version)).collect()),
    )
}

/// What stands above the table.
const BEFORE: &str = "\
# What plegscope said, held against the truth

Every story is a real containerd (each version with its own shim), real containers and something that really blocks. Clocks
that have nothing to do with plegscope say what happened: the client's or the kubelet's own, `strace -T`, what `/proc` and the
kernel's stacks tell of each thread, the daemons' logs and metrics. `cargo xtask story NAME` plays one and prints what was
compared; `cargo xtask story --list` says what each is about. This file is written by `cargo xtask story --record`, from
`docs/truth.json`.

* *times*: how often it was played; a line holds the worst of all.
* *wrong names*: pods, devices and writers that were named and are not it. *wrong containers*: blamed without a part in it.
* *links found*: of the chains that must be shown while they last. *not seen: said so*: links of these that cannot be seen, with
  the words in which plegscope says so.
* *worst duration*: the age of a link or a relist that was furthest from its clock, in any frame.
* *first shown*: after all of the chain had begun and plegscope was ready. Where the lab has no clock for a link, after an earlier
  moment: the freeze or the starving (`stalled`: a relist has to begin after it), the unmount (`restart`: a list has to come after
  the restart), the exit (`io-drain`).
";

#[cfg(test)]
mod tests {
    use super::{Row, join, sum_up, tables};

    #[test]
    fn programs_have_a_table_of_their_own() {
        let program = Row { compared: Some(9), ..Row::new("hung", "1.6") };
        let mut rows = vec![program.clone(), Row::new("xfs", "1.7"), Row { compared: Some(7), ..program }];
        join(&mut rows);
        let [chains, programs] = tables(&rows);
        let lines = |table: &str| table.lines().skip(2).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(lines(&programs), ["| hung | 1.6 | 2 | 7 | agrees |"]);
        assert_eq!(lines(&chains).len(), 1);
        assert!(lines(&chains)[0].starts_with("| xfs | 1.7 | 1 |"));
        assert_eq!(tables(&rows[1..])[1], "", "no heading without lines");
    }

    #[test]
    fn a_line_says_in_how_many_plays_it_differs() {
        let row = |differed| Row { differed, ..Row::new("xfs", "1.7") };
        assert!(row(1).markdown().ends_with("| DIFFERS |"));
        let mut rows = vec![row(0), row(1), row(0), row(1)];
        join(&mut rows);
        assert!(rows[0].markdown().ends_with("| DIFFERS in 2 |"));
    }

    #[test]
    fn plays_of_a_story_are_counted_over_all_containerds() {
        let row = |story, version, times, differed| Row { times, differed, ..Row::new(story, version) };
        let mut rows = vec![row("convoy", "1.6", 4, 0), row("convoy", "2.1", 6, 0)];
        assert_eq!(
            sum_up(&rows),
            "2 lines, 10 plays of 1 stories. Played less than 10 times: none. Lines that differ: none."
        );
        rows.push(row("xfs", "1.7", 9, 2));
        assert_eq!(
            sum_up(&rows),
            "3 lines, 19 plays of 2 stories. Played less than 10 times: xfs (9). Lines that differ: xfs 1.7."
        );
    }
}
