//! What the user types.

mod watch;

pub use watch::{Completions, ConfigCommand, ConfigOptions, Incidents, Man, Status, Watch};

use crate::{
    config::resolve,
    warden::{Ladder, Settings},
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::time::Duration;

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
status has its own, as health checks expect them: 0 nothing is stuck, 1 something is, 2 it cannot be told.

Examples:
  sudo plegscope doctor                  what can be seen on this node, and what not and why
  sudo plegscope now                     what is blocked at this moment, without a probe
  sudo plegscope live --plain            the blocking chain, as it changes
  sudo plegscope watch --umount-over 2s  one line when an unmount takes longer, while it is still blocked
  plegscope status                       what watch sees right now, in one line
  sudo plegscope incidents --since 24h   what watch has seen while nobody looked";

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
    /// Lines of text instead of a screen. This version has no screen yet, so it is always on.
    #[arg(long)]
    pub plain: bool,
    /// One JSON object (a frame) per change, one per line.
    #[arg(long, conflicts_with = "plain")]
    pub json: bool,
    /// Write the JSON objects to this file as well.
    #[arg(long, value_name = "FILE", hide = true)]
    pub json_to: Option<std::path::PathBuf>,
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
    fn help_is_as_it_was() {
        for (name, command) in [
            ("help", None),
            ("help_live", Some("live")),
            ("help_watch", Some("watch")),
            ("help_now", Some("now")),
            ("help_doctor", Some("doctor")),
            ("help_status", Some("status")),
            ("help_incidents", Some("incidents")),
            ("help_config", Some("config")),
            ("help_completions", Some("completions")),
            ("help_man", Some("man")),
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
