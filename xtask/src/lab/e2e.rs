//! `cargo xtask e2e`: a healthy run, a really slow disk, and the published reproduction, on a real containerd; every
//! word of plegscope is held against clocks that have nothing to do with it.

use super::containerd::Programs;
use super::siblings::{self, Sibling};
use super::story::{Block, Script, Truth};
use super::tracer::{self, Line, Tracer};
use super::verdict::{self, Verdict};
use super::{Lab, cleanup, harm, packages, run_interruptible, sys};
use crate::kubelet;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Quitting may take this long until the prompt is back.
pub const QUIT_WITHIN: u64 = 300_000_000;

/// A story.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Story {
    /// A healthy node.
    None,
    /// A really slow disk.
    Disk,
    /// The published reproduction.
    Strace,
    /// The slow disk with a real kubelet.
    Kubelet,
    /// What users and operating systems do to it.
    Commands,
    /// A program that pays more for its probes than is allowed.
    Fuse,
    /// What it does to the node: nothing.
    Harmless,
    /// It is started when the node is stuck already.
    Now,
    /// Exits that are reported late, and who wrote what the exiting ones pay for.
    LateExit,
    /// Unmounts that fail because somebody is in there.
    Busy,
    /// An unmount in containerd itself.
    Create,
    /// containerd is frozen, then starved.
    Stalled,
    /// containerd's own files lie on the slow disk.
    StatusWrite,
    /// containerd is restarted in a stall, a shim is left over.
    Restart,
}

impl Story {
    /// What blocks the unmount; the others choose for themselves.
    fn block(self) -> Block {
        match self {
            Story::Disk | Story::Kubelet => Block::Disk,
            Story::Strace => Block::Strace,
            _ => Block::None,
        }
    }

    /// Which sibling of the published story it is, if it is one.
    fn sibling(self) -> Option<Sibling> {
        match self {
            Story::None
            | Story::Disk
            | Story::Strace
            | Story::Kubelet
            | Story::Commands
            | Story::Fuse
            | Story::Harmless
            | Story::Now => None,
            Story::LateExit => Some(Sibling::LateExit),
            Story::Busy => Some(Sibling::Busy),
            Story::Create => Some(Sibling::Create),
            Story::Stalled => Some(Sibling::Stalled),
            Story::StatusWrite => Some(Sibling::StatusWrite),
            Story::Restart => Some(Sibling::Restart),
        }
    }

    /// What the user types.
    fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map_or(String::new(), |value| value.get_name().to_owned())
    }
}

/// Which stories to play.
#[derive(clap::Args)]
pub struct Args {
    /// Only these stories
    #[arg(long, value_enum, value_delimiter = ',')]
    stories: Vec<Story>,
    /// About how long each stall shall be, in seconds
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(8..=110))]
    seconds: u64,
    /// Folder for what was seen: ground truth, frames, messages
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    /// Folder with another containerd, its shim and ctr
    #[arg(long, value_name = "FOLDER")]
    containerd: Option<PathBuf>,
    /// Only these parts of the story harmless
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = super::harmless::Part::ALL)]
    parts: Vec<super::harmless::Part>,
    /// Only these parts of the story now
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = super::now::Part::ALL)]
    now_parts: Vec<super::now::Part>,
    /// Only play the stories and compare the lab's own clocks with each other
    #[arg(long)]
    without_plegscope: bool,
}

/// Runs the test; an error names the stories that failed, their tables are printed before.
pub fn run(args: Args) -> Result<()> {
    for line in cleanup::clean_leftovers()? {
        println!("leftovers of an earlier run: {line}");
    }
    let binary = if args.without_plegscope { None } else { Some(tracer::binary()?) };
    packages::ensure(&packages::LAB)?;
    let programs = Programs::find(args.containerd.as_deref())?;
    let kubelet = kubelet::built()?;
    let (mut failed, mut played) = (Vec::new(), 0);
    let stories: &[Story] =
        if args.stories.is_empty() { <Story as clap::ValueEnum>::value_variants() } else { &args.stories };
    for story in stories {
        let name = story.name();
        println!("--- story: {name}");
        if let Some(because) = cannot(*story, kubelet.as_deref(), binary.as_deref())? {
            println!("SKIPPED story {name}: {because}");
            continue;
        }
        played += 1;
        // One that cannot be played keeps no other from being played.
        match play_one(*story, &args, &programs, kubelet.as_deref(), binary.as_deref()) {
            Ok(verdicts) => {
                verdicts.iter().for_each(|verdict| print!("{}", verdict.table()));
                let wrong = verdicts.iter().flat_map(Verdict::wrong);
                failed.extend(wrong.map(|line| format!("{name}: {line}")));
            }
            Err(error) => {
                println!("FAILED story {name}: {error:#}");
                failed.push(format!("{name}: {error:#}"));
            }
        }
    }
    if !failed.is_empty() {
        bail!("not as it should be:\n{}", failed.join("\n"));
    }
    println!("{played} of {} stories played, all agree with the ground truth", stories.len());
    Ok(())
}

/// Why a story cannot be played here, if it cannot.
fn cannot(story: Story, kubelet: Option<&Path>, binary: Option<&Path>) -> Result<Option<String>> {
    if story == Story::Kubelet && kubelet.is_none() {
        return Ok(Some(kubelet::NOT_BUILT.to_owned()));
    }
    if matches!(story, Story::Commands | Story::Fuse | Story::Harmless | Story::Now) && binary.is_none() {
        return Ok(Some("it is about plegscope alone".to_owned()));
    }
    Ok(story.sibling().map(siblings::cannot).transpose()?.flatten())
}

fn play_one(
    story: Story,
    args: &Args,
    programs: &Programs,
    kubelet: Option<&Path>,
    binary: Option<&Path>,
) -> Result<Vec<Verdict>> {
    let keep_in = args.keep.as_ref().map(|folder| folder.join(story.name()));
    let kept = keep_in.as_deref();
    match (story, binary) {
        (Story::Fuse, Some(binary)) => Ok(vec![super::fuse::play(binary)?]),
        (Story::Harmless, Some(binary)) => {
            Ok(vec![super::harmless::play(programs, kubelet, binary, &args.parts)?])
        }
        (Story::Now, Some(binary)) => Ok(vec![super::now::play(programs, binary, &args.now_parts, kept)?]),
        (Story::Commands, Some(binary)) => Ok(vec![super::commands::play(programs.clone(), binary, kept)?]),
        _ => {
            if let Some(sibling) = story.sibling() {
                if sibling == Sibling::Stalled && kubelet.is_none() {
                    println!("a client stands for the kubelet: {}", kubelet::NOT_BUILT);
                }
                return siblings::play(sibling, programs, kubelet, binary, kept);
            }
            let kubelet = kubelet.filter(|_| story == Story::Kubelet);
            let (truth, output) = play(story.block(), kubelet, args, programs, binary)?;
            if let Some(folder) = kept {
                keep(folder, &truth, output.as_ref())?;
            }
            Ok(judge(&truth, output.as_ref()))
        }
    }
}

/// What came out of plegscope.
struct Output {
    lines: Vec<Line>,
    messages: Vec<Line>,
    exit: Option<i32>,
    quit_took: u64,
}

fn play(
    block: Block,
    kubelet: Option<&Path>,
    args: &Args,
    programs: &Programs,
    binary: Option<&Path>,
) -> Result<(Truth, Option<Output>)> {
    let script = Script {
        block,
        stall: Duration::from_secs(args.seconds),
        rate: 2_000_000,
        update_every: Duration::from_secs(2),
        calm: Duration::from_secs(3),
    };
    let begin = sys::monotonic();
    let mut say = move |text: &str| println!("{:>6.1} s  {text}", (sys::monotonic() - begin) as f64 / 1e9);
    run_interruptible(async |ledger| {
        let lab = match kubelet {
            Some(kubelet) => {
                Lab::prepare_with_kubelet(ledger, programs.clone(), kubelet, &script, &mut say).await?
            }
            None => Lab::prepare(ledger, programs.clone(), script.megabytes(), &mut say).await?,
        };
        let mut scope = None;
        if let Some(binary) = binary {
            let mut started = Tracer::start(ledger, binary, &["live", "--json"], |_, _| {})?;
            let ready = started.ready().await?;
            say(&format!("plegscope after {}: {}", sys::seconds(ready.at - started.started), ready.text));
            scope = Some(started);
        }
        let truth = lab.play(&script, &mut say).await?;
        let mut output = None;
        if let Some(scope) = scope {
            let (exit, quit_took, lines, messages) = scope.quit().await?;
            output = Some(Output { lines, messages, exit, quit_took });
        }
        lab.finish().await;
        Ok((truth, output))
    })
}

fn judge(truth: &Truth, output: Option<&Output>) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    if truth.block != Block::None {
        verdicts.push(verdict::truth(truth));
    }
    if let Some(output) = output {
        let frames = verdict::frames(&output.lines);
        let mut verdict = match truth.block {
            Block::None => verdict::healthy(truth, &frames),
            Block::Disk | Block::Strace => verdict::incident(truth, &frames),
        };
        if truth.block == Block::Disk {
            harm::updates(truth, &frames, &mut verdict);
        }
        verdict.ended(output.exit, output.quit_took, QUIT_WITHIN);
        verdicts.push(verdict);
    }
    verdicts
}

fn keep(folder: &Path, truth: &Truth, output: Option<&Output>) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let write = |name: &str, text: String| {
        let file = folder.join(name);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    };
    write("truth.json", serde_json::to_string_pretty(truth)?)?;
    if let Some(output) = output {
        let join =
            |lines: &[Line]| lines.iter().map(|line| format!("{}\t{}\n", line.at, line.text)).collect();
        write("frames.tsv", join(&output.lines))?;
        write("messages.tsv", join(&output.messages))?;
    }
    Ok(())
}
