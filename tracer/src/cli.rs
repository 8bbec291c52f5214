//! What the user types.

mod watch;

pub use watch::{Completions, ConfigCommand, ConfigOptions, Incidents, Man, Status, Watch};

use crate::{
    capture::{line::At, player::Speed},
    config::resolve,
    event::SeenBy,
    warden::{Ladder, Settings},
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{path::PathBuf, time::Duration};

/// Shows, live and by name, why a Kubernetes node's PLEG relist is blocked.
///
/// plegscope watches unmounts, file-system syncs and the locks of containerd, its shims and the kubelet with BPF, on an
/// unmodified node, and shows the whole blocking chain while it is blocked. It never signals, stops or slows what it
/// watches. Run it as root.
#[derive(Debug, Parser)]
#[command(name = "plegscope", version, max_term_width = 100, after_help = AFTER)]
pub struct Cli {
    /// What to do; `live` when left out.
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// Options of `live`.
    #[command(flatten)]
    pub live: Live,
}

const AFTER: &str = "\
Exit status:
  0  did what was asked
  1  something unforeseen failed
  2  the command line was not understood
  3  not allowed: not root, or the kernel refuses BPF
  4  doctor, now: something that matters cannot be seen on this node
  5  the file cannot be used: capture would write where chains end or its disk takes no more, or what is to be read is damaged, foreign or newer
status has its own, as health checks expect them: 0 nothing is stuck, 1 something is, 2 it cannot be told.

Examples:
  sudo plegscope doctor                  what can be seen on this node, and what not and why
  sudo plegscope now                     what is blocked at this moment, without a probe
  sudo plegscope                         the blocking chain and all about it, on a screen
  sudo plegscope live --plain            the blocking chain, as it changes, in lines
  sudo plegscope watch --umount-over 2s  one line when an unmount takes longer, while it is still blocked
  plegscope status                       what watch sees right now, in one line
  sudo plegscope incidents --since 24h   what watch has seen while nobody looked
  sudo plegscope capture --until-incident  the next incident with the minute before it, to a file
  plegscope replay FILE                  the same on another machine, without root";

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show what is blocked, by whom, and what it ends in, as it changes.
    Live(Live),
    /// Tell when something is blocked for too long: a line at the first crossing, while it is still blocked, at growth,
    /// and at the end.
    Watch(Watch),
    /// Show what is blocked at this moment, by whom, and where each goroutine sits, without a single probe: by reading the
    /// memory of containerd, its shims and the kubelet. Works where BPF is not allowed, and sees what began before.
    Now(Now),
    /// Write all that is seen to a file that needs nothing of the node to be understood later.
    ///
    /// Names, stacks, devices and what is attached are in it; nothing else of the memory of other programs is. It can be
    /// read up to its last two seconds whatever happens: after a kill, a full disk, a crash of the node. The format is in
    /// docs/capture-format.md. The path of the file is the only line on standard output.
    Capture(Capture),
    /// Tell a capture as it was told on the node, on any machine and without root.
    Replay(Replay),
    /// Tell how exposed this node is before anything happens, what can be seen on it, how, and what not and why. Attaches
    /// nothing and writes nothing to a disk.
    Doctor(Doctor),
    /// Tell in one line what `watch` sees right now, from a file in memory: answers in milliseconds also while every disk
    /// hangs.
    Status(Status),
    /// List what `watch` has seen while nobody looked.
    Incidents(Incidents),
    /// Check the settings of `watch`, or show them and where each comes from.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the completions of a shell.
    Completions(Completions),
    /// Write the manual pages into a folder.
    Man(Man),
    /// Tell what a capture comes to: incidents with their chains, how long things took, slow relists explained and not, what
    /// was not seen, what would have helped, and where the logs tell of it. Needs nothing but the file.
    Report(Report),
    /// Turn a capture into what other programs read: a trace for ui.perfetto.dev, stacks for flame graphs, lines of JSON.
    Export(Export),
}

/// What all verbs that attach have in common.
#[derive(Clone, Debug, Args)]
pub struct Probing {
    /// Which probes may be attached.
    #[arg(long, value_enum, default_value_t = Probes::All, value_name = "WHICH")]
    pub probes: Probes,
    /// Take probes off a program that they cost more than this share of a core, in percent, for 3 s; 0 or none for no limit.
    #[arg(long, value_name = "PERCENT", value_parser = percent, default_value = "2")]
    pub max_target_cost: Limit,
    /// Ways of seeing that are not used though the kernel offers them, with commas between: fentry, kprobe, tracepoint; uprobe, which
    /// sees unmounts in programs where nothing else does. For a kernel where one does harm; `doctor` says what is left.
    #[arg(long, value_name = "WAYS", value_parser = ways, default_value = "none")]
    pub without: Without,
    /// Trace lock waits in this Go process too; may be given several times.
    #[arg(long, value_name = "PID")]
    pub also: Vec<u32>,
    /// End after this time, for instance 30s or 10m.
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// Tell more on standard error, also what the kernel half could not do.
    #[arg(long, short)]
    pub verbose: bool,
}

/// A share of a core, in millionths; `None` for no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<u32>);

/// Ways of seeing that are not to be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Without(pub Vec<SeenBy>);

fn ways(text: &str) -> Result<Without, String> {
    resolve::ways(text).map(Without)
}

fn percent(text: &str) -> Result<Limit, String> {
    resolve::share(text).map(Limit)
}

/// How high on the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Probes {
    /// Nothing is attached.
    None,
    /// Kernel probes only: unmounts and syncs, no Go locks.
    Kernel,
    /// Kernel probes; containerd, its shims and the kubelet are looked at from outside, now and then and when an unmount
    /// lasts, instead of being probed.
    Auto,
    /// Kernel probes, and uprobes in containerd, its shims and the kubelet.
    All,
}

/// Options of `live`.
#[derive(Clone, Debug, Args)]
pub struct Live {
    /// Lines of text instead of a screen. Always on where the output is no terminal.
    #[arg(long)]
    pub plain: bool,
    /// A screen without colours; so does NO_COLOR in the environment.
    #[arg(long)]
    pub no_color: bool,
    /// One JSON object (a frame) per change, one per line.
    #[arg(long, conflicts_with = "plain")]
    pub json: bool,
    /// Write the JSON objects to this file as well.
    #[arg(long, value_name = "FILE", hide = true)]
    pub json_to: Option<PathBuf>,
    /// What to attach.
    #[command(flatten)]
    pub probing: Probing,
}

/// Options of `now`.
#[derive(Clone, Debug, Args)]
pub struct Now {
    /// Look at this Go process only; may be given several times.
    #[arg(long, value_name = "PID")]
    pub pid: Vec<u32>,
    /// One JSON object: what is blocked, all goroutines, and what was left out and why.
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// How to tell it.
    #[arg(long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub format: Format,
    /// How long it may take; what was not looked at by then is left out, and said so.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "1s")]
    pub within: Duration,
}

/// Options of `capture`.
#[derive(Clone, Debug, Args)]
pub struct Capture {
    /// The file, which must not exist. Without this a new one in /run/plegscope, which is on a tmpfs: a disk may be stuck.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Keep what is seen in memory until an incident begins; write it with what was before it, and end when it is over.
    #[arg(long)]
    pub until_incident: bool,
    /// How much to keep from before the incident; at most an hour, and what fits into 16 MiB of memory.
    #[arg(long, value_name = "DURATION", value_parser = before, default_value = "60s", requires = "until_incident")]
    pub before: Duration,
    /// End when the file has this size.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "256MiB")]
    pub max_size: u64,
    /// Hide the names of the node, of pods, namespaces, containers and folders behind hashes, the same ones in each capture
    /// of this node. Ids and numbers stay. Images are not in a capture at all.
    #[arg(long)]
    pub redact: bool,
    /// Make the hashes with the content of this file instead of the node's machine id, for the same ones on many nodes.
    #[arg(long, value_name = "FILE", requires = "redact")]
    pub redact_key: Option<PathBuf>,
    /// Write also to the file system that unmounts of containers sync. If that disk is stuck, plegscope waits with it.
    #[arg(long)]
    pub force: bool,
    /// What to attach.
    #[command(flatten)]
    pub probing: Probing,
}

/// Options of `replay`.
#[derive(Clone, Debug, Args)]
pub struct Replay {
    /// The capture.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Lines of text instead of a screen. Always on where the output is no terminal.
    #[arg(long)]
    pub plain: bool,
    /// A screen without colours; so does NO_COLOR in the environment.
    #[arg(long)]
    pub no_color: bool,
    /// One JSON object (a frame) per change, one per line.
    #[arg(long, conflicts_with = "plain")]
    pub json: bool,
    /// How many times as fast as it happened, or max; on a screen 1, else max, where nothing is said.
    #[arg(long, value_name = "TIMES")]
    pub speed: Option<Speed>,
    /// Begin here: a time as 12:30:00 or 2024-02-29T12:30:00+01:00, or 90s after the beginning.
    #[arg(long, value_name = "TIME")]
    pub at: Option<At>,
    /// Begin where an incident does: the first, the second, …
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "at")]
    pub incident: Option<u32>,
    /// Read around what is damaged or cut off, and say what is missing.
    #[arg(long)]
    pub salvage: bool,
    /// Tell more on standard error, also what plegscope said for itself.
    #[arg(long, short)]
    pub verbose: bool,
}

/// The longest time before an incident.
const MOST_BEFORE: Duration = Duration::from_secs(3600);

fn before(text: &str) -> Result<Duration, String> {
    let before = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(1)..=MOST_BEFORE).contains(&before) {
        Ok(before)
    } else {
        Err("between 1s and 1h".into())
    }
}

fn size(text: &str) -> Result<u64, String> {
    /// Less holds no incident.
    const LEAST: u64 = 64 << 10;
    match crate::exposure::parse_rate(text) {
        Ok(size) if size >= LEAST && !text.ends_with("/s") => Ok(size),
        _ => Err("a size of at least 64KiB, for instance 256MiB".into()),
    }
}

/// How `now` tells what it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// What is blocked, in words.
    Text,
    /// All goroutines as Go's own tracebacks, for tools that read these.
    Goroutine,
}

/// Options of `doctor`.
#[derive(Clone, Debug, Args)]
pub struct Doctor {
    /// JSON instead of text.
    #[arg(long)]
    pub json: bool,
    /// What the disk under the containers writes, for instance 150MB/s, if you have measured it. Never measured here.
    #[arg(long, value_name = "RATE", value_parser = crate::exposure::parse_rate)]
    pub write_rate: Option<u64>,
    /// What could be seen without these ways: see `live`.
    #[arg(long, value_name = "WAYS", value_parser = ways, default_value = "none")]
    pub without: Without,
}

/// Options of `report`.
#[derive(Clone, Debug, Args)]
pub struct Report {
    /// The capture.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How to tell it.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text, value_name = "FORMAT")]
    pub format: ReportFormat,
    /// An older capture, to compare before and after a fix.
    #[arg(long, value_name = "OLD")]
    pub against: Option<PathBuf>,
    /// Where to.
    #[command(flatten)]
    pub to: To,
}

/// What a report is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Plain text.
    Text,
    /// One JSON object, durations in nanoseconds.
    Json,
    /// Markdown, for an issue or a chat.
    Md,
    /// One page with pictures that needs nothing else.
    Html,
}

/// Options of `export`.
#[derive(Clone, Debug, Args)]
pub struct Export {
    /// The capture.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// What to make of it.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: ExportFormat,
    /// Where to.
    #[command(flatten)]
    pub to: To,
}

/// What a capture is turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// A trace for ui.perfetto.dev (native protobuf).
    Perfetto,
    /// Stacks for flame graphs, weighted by microseconds blocked.
    Folded,
    /// The lines of the capture, uncompressed.
    Jsonl,
}

/// How a capture is read and what comes of it written.
#[derive(Clone, Debug, Args)]
pub struct To {
    /// Read around what is damaged or cut off; what is missing is said.
    #[arg(long)]
    pub salvage: bool,
    /// Write to this file instead of standard output; `-` is standard output.
    #[arg(long, short, value_name = "OUT", default_value = "-", hide_default_value = true)]
    pub output: PathBuf,
}

impl Probing {
    /// What the warden shall do.
    pub fn settings(&self) -> Settings {
        Settings {
            ladder: self.probes.ladder(),
            patrol: self.probes == Probes::Auto,
            also: self.also.clone(),
            max_target_cost: self.max_target_cost.0,
            diagnostics: self.verbose,
            without: self.without.0.clone(),
            ..Settings::default()
        }
    }
}

impl Probes {
    /// How high that is on the ladder.
    pub fn ladder(self) -> Ladder {
        match self {
            Probes::None => Ladder::None,
            Probes::Kernel | Probes::Auto => Ladder::Kernel,
            Probes::All => Ladder::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nothing_typed_means_live() {
        let cli = Cli::try_parse_from(["plegscope", "--plain"]).unwrap();
        assert!(cli.verb.is_none() && cli.live.plain);
        assert!(Cli::try_parse_from(["plegscope", "live", "--plain", "--json"]).is_err());
    }

    #[test]
    fn a_limit_is_percent_or_none() {
        let limit = |text: &str| {
            Cli::try_parse_from(["plegscope", "live", "--max-target-cost", text]).ok().and_then(|cli| {
                match cli.verb {
                    Some(Verb::Live(live)) => Some(live.probing.max_target_cost),
                    _ => None,
                }
            })
        };
        assert_eq!(limit("2"), Some(Limit(Some(20_000))));
        assert_eq!(limit("0.5%"), Some(Limit(Some(5_000))));
        assert_eq!([limit("none"), limit("0")], [Some(Limit(None)); 2]);
        for wrong in ["-1", "101", "nan", "much"] {
            assert_eq!(limit(wrong), None, "{wrong}");
        }
        let Some(Verb::Live(live)) = Cli::try_parse_from(["plegscope", "live"]).unwrap().verb else {
            panic!()
        };
        assert_eq!(
            live.probing.max_target_cost,
            Limit(Some(20_000)),
            "2 % unless something else is asked for"
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let parse = |text: &str| Cli::try_parse_from(text.split(' ')).map(|cli| cli.verb);
        let Ok(Some(Verb::Capture(capture))) = parse("plegscope capture") else { panic!() };
        assert_eq!((capture.max_size, capture.before), (256 << 20, Duration::from_secs(60)));
        for wrong in [
            "capture --before 10s",
            "capture --until-incident --before 0s",
            "capture --until-incident --before 2h",
            "capture --max-size 10",
            "capture --max-size 10MB/s",
            "capture --redact-key /k",
            "replay",
            "replay a --speed 0",
            "replay a --speed fast",
            "replay a --at noon",
            "replay a --incident 0",
            "replay a --incident 1 --at 5s",
        ] {
            assert!(parse(&format!("plegscope {wrong}")).is_err(), "{wrong}");
        }
        for right in ["2024-02-29T12:30:00+01:00", "12:30:00", "1m30s"] {
            assert!(parse(&format!("plegscope replay a --at {right}")).is_ok(), "{right}");
        }
    }

    #[test]
    fn the_document_lists_the_same_exit_statuses() {
        let document = include_str!("../../docs/operations.md").replace('`', "");
        let statuses = super::AFTER.lines().filter_map(|line| line.strip_prefix("  ")?.split_once("  "));
        let statuses = statuses.filter(|(status, _)| status.parse::<u8>().is_ok());
        assert_eq!(statuses.clone().count(), 6);
        for (status, meaning) in statuses {
            assert!(document.contains(&format!("| {status} | {meaning}")), "{status}: {meaning}");
        }
    }

    #[test]
    fn help_is_as_it_was() {
        for (name, command) in [
            ("help", None),
            ("help_live", Some("live")),
            ("help_watch", Some("watch")),
            ("help_now", Some("now")),
            ("help_capture", Some("capture")),
            ("help_replay", Some("replay")),
            ("help_doctor", Some("doctor")),
            ("help_status", Some("status")),
            ("help_incidents", Some("incidents")),
            ("help_config", Some("config")),
            ("help_completions", Some("completions")),
            ("help_man", Some("man")),
            ("help_report", Some("report")),
            ("help_export", Some("export")),
        ] {
            let mut top = Cli::command().term_width(100);
            let text = match command {
                None => top.render_long_help().to_string(),
                Some(verb) => {
                    top.build();
                    top.find_subcommand_mut(verb)
                        .unwrap()
                        .clone()
                        .term_width(100)
                        .render_long_help()
                        .to_string()
                }
            };
            insta::assert_snapshot!(name, text);
        }
    }
}
