//! `cargo xtask story`: incidents and their look-alikes on a real containerd; every word of plegscope is held against
//! clocks that have nothing to do with it.
//!
//! A story is a file, see [`language`]. [`engine`] plays it and writes a [`record`], [`judge`] holds plegscope against that,
//! `checks` hold more where a story says so, [`table`] keeps the results.

pub mod checks;
pub mod engine;
pub mod judge;
pub mod language;
pub mod links;
pub mod record;
pub mod table;
pub mod watch;
mod whole;

use super::checks::Verdict;
use super::containerd::Programs;
use super::tracer::{self, Line};
use super::{Interrupted, cleanup, machine, packages, run_interruptible, sys, watching};
use crate::{binaries, kubelet};
use anyhow::{Context, Result, bail, ensure};
use language::{Caller, FileSystem, Program, Story};
use record::Record;
use std::fs;
use std::path::{Path, PathBuf};
use table::Row;

/// What CI plays: about a quarter of an hour.
pub const USUAL: [&str; 17] = [
    "healthy",
    "slow-disk",
    "strace",
    "kubelet",
    "two-causes",
    "late-exit",
    "harmless-text",
    "harmless-rootfs",
    "evicted",
    "hung",
    "now-stall",
    "now-silent",
    "now-leftover",
    "watch-captures",
    "watch-unit",
    "commands",
    "fuse",
];

/// Play stories on a real containerd and check every word of plegscope.
#[derive(clap::Args)]
pub struct Args {
    /// Which stories; without a name those that CI plays
    names: Vec<String>,
    /// All stories, with each containerd they make sense with
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Only say which stories there are
    #[arg(long)]
    list: bool,
    /// Version of containerd (1.4, 1.6, 1.7, 2.1)
    #[arg(long, value_name = "VERSION")]
    containerd: Option<String>,
    /// How often all of it is played, one round after the other
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Each round plays each story once, with the containerd after that of the round before
    #[arg(long, conflicts_with = "containerd")]
    in_turn: bool,
    /// Folder for what was seen: ground truth, frames, messages, logs, tables
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    /// Write the results into docs/truth.md
    #[arg(long)]
    record: bool,
    /// Play nothing: write all that was kept, also by several runs into folders below `--keep`, into docs/truth.md
    #[arg(long, conflicts_with_all = ["names", "all", "record"])]
    record_kept: bool,
    /// Add to what is recorded, instead of writing it anew: for plays of the same plegscope
    #[arg(long)]
    add: bool,
    /// Only play the stories and compare the lab's own clocks with each other
    #[arg(long)]
    without_plegscope: bool,
    /// Demand also what only a kernel with all of its own probes shows: the sync, its device, and each probe as planned
    #[arg(long, conflicts_with = "without_plegscope")]
    whole_chain: bool,
    /// Ways of seeing that plegscope is not to use, as its own --without has them
    #[arg(long, value_name = "WAYS", conflicts_with_all = ["without_plegscope", "record"])]
    without: Option<String>,
}

impl Args {
    /// Plays one story, once.
    pub fn of(name: &str) -> Args {
        Args {
            names: vec![name.to_owned()],
            all: false,
            list: false,
            containerd: None,
            repeat: 1,
            in_turn: false,
            keep: None,
            record: false,
            record_kept: false,
            add: false,
            without_plegscope: false,
            whole_chain: false,
            without: None,
        }
    }
}

/// What came of a play, in its folder.
const ROW: &str = "row.json";

/// What stories are played with.
struct Stock {
    /// The version of the machine's own containerd.
    own: Option<String>,
    kubelet: Option<PathBuf>,
    binary: Option<PathBuf>,
    keep: PathBuf,
    whole_chain: bool,
    without: Option<String>,
}

/// Runs the command; an error names the stories that failed, their tables are printed before.
pub fn run(args: Args) -> Result<()> {
    let keep = args.keep.unwrap_or_else(|| tracer::workspace().join("target/stories"));
    if args.record_kept {
        let mut rows = kept_rows(&keep)?;
        table::join(&mut rows);
        println!("{} lines", rows.len());
        return table::record(&rows, args.add);
    }
    let all = language::names()?;
    let wanted: Vec<&str> = match (args.all || args.list, args.names.is_empty()) {
        (true, _) => all.iter().map(String::as_str).collect(),
        (false, true) => USUAL.to_vec(),
        (false, false) => args.names.iter().map(String::as_str).collect(),
    };
    let stories: Vec<Story> = wanted.into_iter().map(language::load).collect::<Result<_>>()?;
    if args.list {
        stories.iter().for_each(|story| println!("{:18} {}", story.name, story.about));
        return Ok(());
    }
    for line in cleanup::clean_leftovers()? {
        println!("leftovers of an earlier run: {line}");
    }
    // A machine of its own has what it needs, and nobody makes its disks there.
    if !machine::is_around() {
        packages::ensure(&packages::LAB)?;
        if stories.iter().any(|story| story.node.file_system == FileSystem::Xfs) {
            packages::ensure(&packages::XFS)?;
        }
    }
    let stock = Stock {
        own: Programs::find(None)?.version(),
        kubelet: kubelet::built()?,
        binary: if args.without_plegscope { None } else { Some(tracer::binary()?) },
        keep,
        whole_chain: args.whole_chain,
        without: args.without,
    };
    let mut results = Results::default();
    let record = args.record.then_some(args.add);
    for round in 1..=args.repeat {
        if args.repeat > 1 {
            println!("=== round {round} of {}", args.repeat);
        }
        let folder = stock.folder(round, args.repeat);
        let plays = stories.iter().flat_map(|story| {
            let versions = match (&args.containerd, args.all || args.in_turn) {
                (Some(version), _) => vec![version.clone()],
                (None, true) => story.containerd.clone(),
                (None, false) => stock.usual(story).into_iter().collect(),
            };
            let versions = if args.in_turn { turn(&versions, round).to_vec() } else { versions };
            // One that is about no containerd is played once.
            let versions = if versions.is_empty() { vec![String::new()] } else { versions };
            versions.into_iter().map(move |version| (story, version))
        });
        for (story, version) in plays {
            if let Err(interrupted) = stock.play(story, &version, &folder, &mut results) {
                results.failed.push(interrupted.to_string());
                return results.tell(record);
            }
        }
    }
    results.tell(record)
}

/// Whose turn it is in that round, counted from 1; nobody's where there are none.
fn turn(versions: &[String], round: usize) -> &[String] {
    versions.chunks(1).cycle().nth(round - 1).unwrap_or_default()
}

/// What came of all stories.
#[derive(Default)]
struct Results {
    rows: Vec<Row>,
    failed: Vec<String>,
    skipped: Vec<String>,
    played: usize,
}

impl Results {
    /// Prints the table, and what failed as the last; an error when something did. `record`: whether it is added to what is
    /// recorded, if it is recorded at all.
    fn tell(self, record: Option<bool>) -> Result<()> {
        for table in table::tables(&self.rows).iter().filter(|table| !table.is_empty()) {
            print!("\n{table}");
        }
        if let Some(add) = record {
            table::record(&self.rows, add)?;
        }
        println!("\n{} played, {} skipped", self.played, self.skipped.len());
        self.skipped.iter().for_each(|line| println!("SKIPPED {line}"));
        if !self.failed.is_empty() {
            bail!("not as it should be:\n{}", self.failed.join("\n"));
        }
        println!("all agree with the ground truth");
        Ok(())
    }
}

impl Stock {
    /// The version a story is played with when none is asked for: the machine's own, if it makes sense with that.
    fn usual(&self, story: &Story) -> Option<String> {
        let own = |version: &&String| self.own.as_ref().is_some_and(|own| own.starts_with(version.as_str()));
        story.containerd.iter().find(own).or(story.containerd.first()).cloned()
    }

    /// The programs of a version.
    fn programs(&self, version: &str) -> Result<Programs> {
        if version.is_empty() || self.own.as_ref().is_some_and(|own| own.starts_with(version)) {
            return Programs::find(None);
        }
        let folder = binaries::containerd(version)?;
        let missing =
            || format!("no containerd {version} is in the cache; `cargo xtask binaries` fetches one");
        Programs::find(Some(&folder.with_context(missing)?))
    }

    /// Why a story cannot be played here, if it cannot.
    fn cannot(&self, story: &Story, version: &str) -> Option<String> {
        if story.node.caller == Caller::Kubelet && self.kubelet.is_none() {
            return Some(kubelet::NOT_BUILT.to_owned());
        }
        if story.program.is_some_and(Program::is_for_machines) && !machine::is_around() {
            return Some(format!("needs a machine of its own: cargo xtask vm --story {}", story.name));
        }
        if story.program.is_some() && self.binary.is_none() {
            return Some("it is about plegscope alone".to_owned());
        }
        if story.program == Some(Program::Watch(watching::Part::Unit))
            && let Some(because) = watching::unit::cannot()
        {
            return Some(because);
        }
        self.programs(version).err().map(|error| format!("{error:#}"))
    }

    /// Where a round keeps what was seen.
    fn folder(&self, round: usize, rounds: usize) -> PathBuf {
        if rounds > 1 { self.keep.join(format!("round-{round}")) } else { self.keep.clone() }
    }

    /// Plays a story; one that cannot be played keeps no other from being played. An error when somebody has asked for the end.
    fn play(
        &self,
        story: &Story,
        version: &str,
        folder: &Path,
        results: &mut Results,
    ) -> Result<(), Interrupted> {
        let title = format!("{} {version}", story.name).trim().to_owned();
        println!("--- story: {title}");
        if let Some(because) = self.cannot(story, version) {
            println!("SKIPPED {because}");
            let skipped = format!("{title}: {because}");
            // In every round for the same reason.
            if !results.skipped.contains(&skipped) {
                results.skipped.push(skipped);
            }
            return Ok(());
        }
        results.played += 1;
        let keep = folder.join(title.replace(' ', "-"));
        let begin = sys::monotonic();
        let played = self.play_once(story, version, &keep);
        println!("{title} took {}", sys::seconds(sys::monotonic() - begin));
        match played {
            Ok((row, wrong)) => {
                results.failed.extend(wrong.into_iter().map(|line| format!("{title}: {line}")));
                results.rows.push(row);
            }
            Err(error) => {
                if let Some(interrupted) = error.downcast_ref::<Interrupted>() {
                    return Err(*interrupted);
                }
                println!("FAILED {title}: {error:#}");
                results.failed.push(format!("{title}: {error:#}"));
                let row = Row { differed: 1, ..self.row(story, version) };
                if let Err(error) = keep_row(&keep, &row) {
                    results.failed.push(format!("{title}: {error:#}"));
                }
                results.rows.push(row);
            }
        }
        table::join(&mut results.rows);
        Ok(())
    }

    /// A line in which nothing stands yet, for a play with that version.
    fn row(&self, story: &Story, version: &str) -> Row {
        let exact = match story.program {
            Some(Program::Fuse) => Some("-".to_owned()), // it needs none
            _ => self.programs(version).ok().and_then(|programs| programs.version()),
        };
        let compared = story.program.map(|_| 0);
        Row { compared, ..Row::new(&story.name, &exact.unwrap_or_else(|| version.to_owned())) }
    }

    /// Plays it once; what is wrong comes back as lines.
    fn play_once(&self, story: &Story, version: &str, keep: &Path) -> Result<(Row, Vec<String>)> {
        let _ = fs::remove_dir_all(keep); // of an earlier run
        fs::create_dir_all(keep).with_context(|| format!("creating {}", keep.display()))?;
        let programs = self.programs(version)?;
        let (mut row, mut verdicts) = match story.program {
            Some(program) => {
                let verdict = self.program(program, &programs, keep)?;
                let compared = verdict.compared();
                ensure!(compared > 0, "nothing was compared");
                (Row { compared: Some(compared), ..self.row(story, version) }, vec![verdict])
            }
            None => self.chains(story, programs, keep)?,
        };
        verdicts.retain(|verdict| !verdict.0.is_empty());
        let wrong: Vec<String> = verdicts.iter().flat_map(Verdict::wrong).collect();
        row.differed = usize::from(!wrong.is_empty());
        let tables: Vec<String> = verdicts.iter().map(Verdict::table).collect();
        print!("{}", tables.concat());
        store(keep, "table.txt", &tables.concat())?;
        keep_row(keep, &row)?;
        Ok((row, wrong))
    }

    /// Plays a story that is about chains, and holds them against the truth.
    fn chains(&self, story: &Story, programs: Programs, keep: &Path) -> Result<(Row, Vec<Verdict>)> {
        let begin = sys::monotonic();
        let say = move |text: &str| println!("{:>6.1} s  {text}", (sys::monotonic() - begin) as f64 / 1e9);
        let record = run_interruptible(async |ledger| {
            let with = engine::With {
                programs: programs.clone(),
                kubelet: self.kubelet.as_deref(),
                binary: self.binary.as_deref(),
                keep: Some(keep),
                attached: self.whole_chain,
                without: self.without.as_deref(),
            };
            engine::play(ledger, story, with, say).await
        })?;
        keep_record(keep, &record)?;
        let judged = judge::judge(story, &record);
        let mut verdicts = vec![judged.truth, judged.said];
        for check in &story.checks {
            verdicts.extend(checks::hold(*check, &record)?);
        }
        let mut row = judged.row;
        if self.whole_chain {
            let mut seen = whole::Whole::of(story, &record);
            verdicts.push(seen.judge());
            row.to_device = seen.to_device;
            store(keep, "attached.json", &serde_json::to_string_pretty(&seen.attached)?)?;
        }
        Ok((row, verdicts))
    }

    fn program(&self, program: Program, programs: &Programs, keep: &Path) -> Result<Verdict> {
        let binary = self.binary.as_deref().context("it is about plegscope alone")?;
        match program {
            Program::Commands => super::commands::play(programs.clone(), binary, Some(keep)),
            Program::Fuse => super::fuse::play(binary),
            Program::StoppedRoot => super::stopped_root::play(programs, binary),
            Program::Harmless(part) => super::harmless::play(programs, self.kubelet.as_deref(), binary, part),
            Program::Now(part) => super::now::play(programs, binary, part, Some(keep)),
            Program::Watch(part) => watching::play(programs, binary, part, Some(keep)),
        }
    }
}

/// Keeps what was seen for people to read.
fn keep_record(folder: &Path, record: &Record) -> Result<()> {
    store(folder, "truth.json", &serde_json::to_string_pretty(record)?)?;
    let join = |lines: &mut dyn Iterator<Item = &Line>| -> String {
        lines.map(|line| format!("{}\t{}\n", line.at, line.text)).collect()
    };
    store(folder, "frames.tsv", &join(&mut record.runs.iter().flat_map(|run| &run.lines)))?;
    store(folder, "messages.tsv", &join(&mut record.runs.iter().flat_map(|run| &run.messages)))
}

fn keep_row(folder: &Path, row: &Row) -> Result<()> {
    store(folder, ROW, &serde_json::to_string_pretty(row)?)
}

/// The lines of all plays below a folder.
fn kept_rows(folder: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            rows.extend(kept_rows(&path)?);
        } else if path.ends_with(ROW) {
            let text = fs::read_to_string(&path)?;
            rows.push(serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?);
        }
    }
    Ok(rows)
}

fn store(folder: &Path, name: &str, text: &str) -> Result<()> {
    let file = folder.join(name);
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::turn;

    #[test]
    fn each_containerd_has_its_turn() {
        let versions = ["1.6", "1.7"].map(str::to_owned);
        let turns: Vec<&[String]> = (1..=3).map(|round| turn(&versions, round)).collect();
        assert_eq!(turns, [["1.6"], ["1.7"], ["1.6"]]);
        assert!(turn(&[], 2).is_empty());
    }
}
