//! What the user types for the verbs around `watch`.

use crate::config::{Layer, Value, resolve};
use clap::{Args, Subcommand};
use std::{path::PathBuf, time::Duration};

/// Options of `watch`. What is not typed is taken from the environment, the file, or the defaults.
#[derive(Clone, Debug, Default, Args)]
#[command(after_help = WATCH)]
pub struct Watch {
    /// The settings.
    #[command(flatten)]
    pub settings: ConfigOptions,
    /// Trace this Go process too; may be given several times.
    #[arg(long, value_name = "PID")]
    pub also: Vec<u32>,
    /// End after this time, for instance 30s or 10m.
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// Tell more on standard error, also what the kernel half could not do.
    #[arg(long, short)]
    pub verbose: bool,
}

const WATCH: &str = "\
Each setting is also a key of the file and an environment variable: --umount-over is
umount-over = \"2s\" and PLEGSCOPE_UMOUNT_OVER. Flags count before the environment, that before the
file. `plegscope config show` tells all.

Examples:
  sudo plegscope watch                                right as it is: a line when something is blocked
  sudo plegscope watch --json                         the whole chain, one object per line
  sudo plegscope watch --webhook https://x.example/h  post it while it is still blocked
  sudo plegscope watch --exec /usr/bin/logger -t pleg run a program; all behind --exec is its own";

/// The settings of `watch`, as flags.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigOptions {
    /// Read this file [default: /etc/plegscope/config.toml where there is one]; none for no file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<String>,
    /// An unmount that takes longer [default: 5s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    umount_over: Option<String>,
    /// A lock wait that takes longer [default: 5s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    lock_over: Option<String>,
    /// A CRI call that takes longer [default: 5s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    cri_over: Option<String>,
    /// A relist that takes longer [default: 5s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    relist_over: Option<String>,
    /// The exit of a container that containerd handles for longer [default: 10s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    exit_over: Option<String>,
    /// NotReady that is nearer than this, if nothing moves; none for never [default: 1m].
    #[arg(long, value_name = "DURATION")]
    notready_within: Option<String>,
    /// A cause that was told and comes back within this time is counted instead of told, unless it is worse or stays; none to
    /// tell all [default: 1m].
    #[arg(long, value_name = "DURATION")]
    hold_off: Option<String>,
    /// Which probes may be attached: none; kernel; auto, which leaves programs alone and looks at them from outside instead;
    /// all, which sees every lock wait at once [default: auto].
    #[arg(long, value_name = "WHICH", value_parser = ["none", "kernel", "auto", "all"])]
    probes: Option<String>,
    /// Take probes off a program that they cost more than this share of a core, in percent, for 3 s; 0 or none for no limit
    /// [default: 2].
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    max_target_cost: Option<String>,
    /// Ways of seeing that are not used though the kernel offers them, with commas between: fentry, kprobe, tracepoint; uprobe, which
    /// sees unmounts in programs where nothing else does [default: none].
    #[arg(long, value_name = "WAYS", value_parser = ways)]
    without: Option<String>,
    /// JSON objects instead of text on standard output, one per line.
    #[arg(long)]
    json: bool,
    /// Nothing on standard output.
    #[arg(long, conflicts_with = "json")]
    quiet: bool,
    /// Tell journald, with the whole alert as fields, or syslog where there is no journald.
    #[arg(long)]
    journal: bool,
    /// Run this program for each alert, with the alert as JSON on its standard input. No shell reads it. Takes all that
    /// follows, so it comes last, or before a `;`.
    #[arg(long, value_name = "PROGRAM [ARGUMENT]...", num_args = 1.., allow_hyphen_values = true, value_terminator = ";")]
    exec: Vec<String>,
    /// That program may take this long [default: 30s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    exec_limit: Option<String>,
    /// So many of them may run at once [default: 2].
    #[arg(long, value_name = "N")]
    exec_at_once: Option<String>,
    /// Post each alert as JSON to this URL.
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    /// Trust the authorities in this PEM file instead of those that are built in.
    #[arg(long, value_name = "FILE")]
    webhook_ca: Option<String>,
    /// Send what stands in this file as a bearer token, over https only.
    #[arg(long, value_name = "FILE")]
    webhook_token_file: Option<String>,
    /// One attempt may take this long [default: 10s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    webhook_limit: Option<String>,
    /// Where `plegscope status` reads; auto for a tmpfs, none for nowhere [default: auto].
    #[arg(long, value_name = "FILE")]
    state_file: Option<String>,
    /// Folder in which incidents are kept for `plegscope incidents`; auto for a tmpfs, none for nowhere [default: auto].
    #[arg(long, value_name = "FOLDER")]
    store: Option<String>,
    /// So many incidents are kept [default: 512].
    #[arg(long, value_name = "N")]
    store_incidents: Option<String>,
    /// Of so many bytes in all [default: 8MiB].
    #[arg(long, value_name = "BYTES")]
    store_bytes: Option<String>,
    /// Keep what was before and after each incident as a capture in this folder, which should not be on the disk that may be
    /// stuck.
    #[arg(long, value_name = "FOLDER")]
    capture_on_incident: Option<String>,
    /// So much of what was before [default: 1m].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    capture_before: Option<String>,
    /// All captures together take this much; the oldest go first [default: 256MiB].
    #[arg(long, value_name = "BYTES")]
    capture_bytes: Option<String>,
}

fn duration(text: &str) -> Result<String, String> {
    resolve::duration(text).map(|_| text.to_owned())
}

fn share(text: &str) -> Result<String, String> {
    resolve::share(text).map(|_| text.to_owned())
}

fn ways(text: &str) -> Result<String, String> {
    resolve::ways(text).map(|_| text.to_owned())
}

impl ConfigOptions {
    /// What was typed.
    pub fn layer(&self) -> Layer {
        let mut layer = Layer::default();
        let texts = [
            ("umount-over", &self.umount_over),
            ("lock-over", &self.lock_over),
            ("cri-over", &self.cri_over),
            ("relist-over", &self.relist_over),
            ("exit-over", &self.exit_over),
            ("notready-within", &self.notready_within),
            ("hold-off", &self.hold_off),
            ("probes", &self.probes),
            ("max-target-cost", &self.max_target_cost),
            ("without", &self.without),
            ("exec-limit", &self.exec_limit),
            ("exec-at-once", &self.exec_at_once),
            ("webhook", &self.webhook),
            ("webhook-ca", &self.webhook_ca),
            ("webhook-token-file", &self.webhook_token_file),
            ("webhook-limit", &self.webhook_limit),
            ("state-file", &self.state_file),
            ("store", &self.store),
            ("store-incidents", &self.store_incidents),
            ("store-bytes", &self.store_bytes),
            ("capture-on-incident", &self.capture_on_incident),
            ("capture-before", &self.capture_before),
            ("capture-bytes", &self.capture_bytes),
        ];
        for (name, text) in texts {
            layer.flag(name, text.clone().map(Value::Text));
        }
        for (name, on) in [("json", self.json), ("quiet", self.quiet), ("journal", self.journal)] {
            layer.flag(name, on.then(|| Value::Text("true".to_owned())));
        }
        let exec = (!self.exec.is_empty()).then(|| Value::Words(self.exec.clone()));
        layer.flag("exec", exec);
        layer
    }
}

/// What to do with the settings.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the settings and the files they name, and say what is wrong.
    Check(ConfigOptions),
    /// Show all settings as they would stand in the file, and where each comes from.
    Show(ConfigOptions),
}

/// Options of `status`.
#[derive(Clone, Debug, Args)]
#[command(after_help = STATUS)]
pub struct Status {
    /// The file that `watch` writes [default: on the tmpfs where watch has it].
    #[arg(long, value_name = "FILE")]
    pub state_file: Option<PathBuf>,
    /// All of the file as JSON.
    #[arg(long)]
    pub json: bool,
    /// How long it may take; what is not read by then cannot be told (status 2).
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "500ms")]
    pub within: Duration,
}

const STATUS: &str = "\
The first 80 bytes of the line say what matters.

Exit status, as health checks expect it:
  0  watch runs, and nothing is blocked for too long
  1  something is
  2  it cannot be told: watch does not run, hangs, or sees no containerd";

/// Options of `incidents`.
#[derive(Clone, Debug, Args)]
#[command(after_help = INCIDENTS)]
pub struct Incidents {
    /// Only what was seen in this time, for instance 24h.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub since: Option<Duration>,
    /// The records as JSON, one per line.
    #[arg(long)]
    pub json: bool,
    /// The folder that `watch` keeps them in [default: on the tmpfs where watch has it].
    #[arg(long, value_name = "FOLDER")]
    pub store: Option<PathBuf>,
    /// How long it may take.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    pub within: Duration,
}

const INCIDENTS: &str = "\
Examples:
  sudo plegscope incidents --since 24h
  sudo plegscope incidents --json | jq -r 'select(.ended == null) | .sentence'";

/// Options of `completions`.
#[derive(Clone, Debug, Args)]
pub struct Completions {
    /// Which shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Options of `man`.
#[derive(Clone, Debug, Args)]
pub struct Man {
    /// The folder, for instance /usr/local/share/man/man1; it must be there.
    pub folder: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Verb};
    use crate::config::{Config, keys};
    use clap::{CommandFactory, Parser};

    fn watch(args: &[&str]) -> Watch {
        let cli = Cli::try_parse_from(["plegscope", "watch"].iter().chain(args)).unwrap();
        match cli.verb {
            Some(Verb::Watch(watch)) => watch,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_setting_has_a_flag_that_says_its_default() {
        let mut top = Cli::command();
        top.build();
        let command = top.find_subcommand("watch").unwrap();
        for key in &keys::KEYS {
            let flag = command.get_arguments().find(|arg| arg.get_long() == Some(key.name));
            let help = flag.unwrap_or_else(|| panic!("no --{}", key.name)).get_help().unwrap().to_string();
            if !key.default.is_empty() && key.kind != keys::Kind::Switch {
                let default = format!("[default: {}]", key.default);
                assert!(help.contains(&default), "{}: {default} in {help}", key.name);
            }
        }
    }

    #[test]
    fn every_flag_reaches_its_setting() {
        let mut args: Vec<String> = Vec::new();
        for key in &keys::KEYS {
            use keys::Kind::{
                Bytes, Duration, DurationOrNone, Number, Path, Place, Probes, Share, Switch, Url, Ways, Words,
            };
            let value = match key.kind {
                Duration | DurationOrNone => "77s",
                Share => "7",
                Probes => "all",
                Ways => "kprobe,fentry",
                Number => "77",
                Bytes => "77MiB",
                Path | Place => "/x",
                Url => "https://x/",
                // `--quiet` and `--json` exclude each other; a program takes all that follows.
                Switch | Words => continue,
            };
            args.extend([format!("--{}", key.name), value.to_owned()]);
        }
        args.extend(["--journal", "--exec", "/bin/x", "--json", "-v"].map(str::to_owned));
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        let watch = watch(&words);
        assert!(!watch.settings.json && !watch.verbose, "they belong to the program");
        let config = Config::merge([watch.settings.layer()]);
        let shown = config.show();
        for key in &keys::KEYS {
            let set = shown.lines().any(|line| line.ends_with(&format!("# --{}", key.name)));
            assert_eq!(set, !["json", "quiet"].contains(&key.name), "{} in\n{shown}", key.name);
        }
        let exec = config.resolve().unwrap().exec.unwrap();
        assert_eq!(exec, ["/bin/x", "--json", "-v"]);
    }

    #[test]
    fn a_program_may_be_followed_by_more_behind_a_semicolon() {
        let watch = watch(&["--exec", "/bin/x", "-a", ";", "--json"]);
        assert_eq!(watch.settings.exec, ["/bin/x", "-a"]);
        assert!(watch.settings.json);
    }
}
