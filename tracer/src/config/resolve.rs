//! From what was given to what is meant: every value is checked, and what is wrong with one says where it comes from.

use super::keys::{self, Kind};
use super::{Config, Origin, Value};
use crate::alert;
use crate::bpf::load::word;
use crate::event::{Ns, SeenBy};
use crate::thresholds::Thresholds;
use crate::warden::Ladder;
use std::{path::PathBuf, time::Duration};

/// Where something is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where it is in memory.
    Auto,
    /// Nowhere.
    None,
    /// There.
    At(PathBuf),
}

/// What `watch` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watching {
    /// What is an incident.
    pub thresholds: Thresholds,
    /// What is told.
    pub alerts: alert::Settings,
    /// How high on the ladder, and whether programs are looked at instead of probed.
    pub probes: (Ladder, bool),
    /// What probes may cost a program, in millionths of a core.
    pub max_target_cost: Option<u32>,
    /// Ways of seeing that are not to be used.
    pub without: Vec<SeenBy>,
    /// JSON on standard output instead of text.
    pub json: bool,
    /// Nothing on standard output.
    pub quiet: bool,
    /// Tell the system's log.
    pub journal: bool,
    /// Run this program for each alert.
    pub exec: Option<Vec<String>>,
    /// It may take this long.
    pub exec_limit: Duration,
    /// So many may run at once.
    pub exec_at_once: usize,
    /// Post each alert to this URL.
    pub webhook: Option<String>,
    /// A file with the authorities to trust.
    pub webhook_ca: Option<PathBuf>,
    /// A file with the token to send.
    pub webhook_token_file: Option<PathBuf>,
    /// One attempt may take this long.
    pub webhook_limit: Duration,
    /// The state file.
    pub state_file: Place,
    /// The folder with incidents.
    pub store: Place,
    /// So many incidents are kept.
    pub store_incidents: usize,
    /// Of so many bytes.
    pub store_bytes: u64,
    /// Keep the before and after of each incident there.
    pub capture_on_incident: Option<PathBuf>,
    /// So much of what was before.
    pub capture_before: Duration,
    /// All of them together.
    pub capture_bytes: u64,
}

/// Most of what a number may be.
const LARGEST_NUMBER: u64 = 65_536;
/// Longest duration that makes sense.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

impl Config {
    /// Checks all of it. What is wrong is told all at once, each with where it comes from.
    pub fn resolve(&self) -> Result<Watching, Vec<String>> {
        let mut r = Resolver { config: self, wrong: Vec::new() };
        let defaults = Thresholds::DEFAULT;
        let not_ready_within = r.ns("notready-within");
        let watching = Watching {
            thresholds: Thresholds {
                shown: defaults.shown,
                unmount: r.ns("umount-over"),
                lock: r.ns("lock-over"),
                cri: r.ns("cri-over"),
                relist: r.ns("relist-over"),
                exit: r.ns("exit-over"),
                not_ready_within,
            },
            alerts: alert::Settings { hold_off: r.ns("hold-off"), not_ready_within },
            probes: r.one("probes", (Ladder::Kernel, true), |text| match text {
                "none" => Ok((Ladder::None, false)),
                "kernel" => Ok((Ladder::Kernel, false)),
                "auto" => Ok((Ladder::Kernel, true)),
                "all" => Ok((Ladder::All, false)),
                _ => Err("none of none, kernel, auto, all".to_owned()),
            }),
            max_target_cost: r.one("max-target-cost", None, share),
            without: r.one("without", Vec::new(), ways),
            json: r.switch("json"),
            quiet: r.switch("quiet"),
            journal: r.switch("journal"),
            exec: r.words("exec"),
            exec_limit: r.duration("exec-limit"),
            exec_at_once: r.number("exec-at-once"),
            webhook: r.optional("webhook", url),
            webhook_ca: r.optional("webhook-ca", path),
            webhook_token_file: r.optional("webhook-token-file", path),
            webhook_limit: r.duration("webhook-limit"),
            state_file: r.one("state-file", Place::Auto, place),
            store: r.one("store", Place::Auto, place),
            store_incidents: r.number("store-incidents"),
            store_bytes: r.one("store-bytes", 0, bytes),
            capture_on_incident: r.optional("capture-on-incident", path),
            capture_before: r.duration("capture-before"),
            capture_bytes: r.one("capture-bytes", 0, bytes),
        };
        let needs = [
            ("webhook-ca", watching.webhook_ca.is_some(), "webhook", watching.webhook.is_some()),
            (
                "webhook-token-file",
                watching.webhook_token_file.is_some(),
                "webhook",
                watching.webhook.is_some(),
            ),
        ];
        for (name, given, needed, there) in needs {
            if given && !there {
                let (_, origin) = self.get(name).cloned().unwrap_or((Value::Words(vec![]), Origin::Default));
                r.wrong.push(format!("{name} ({origin}): nothing is sent anywhere without {needed}"));
            }
        }
        if r.wrong.is_empty() { Ok(watching) } else { Err(r.wrong) }
    }
}

struct Resolver<'a> {
    config: &'a Config,
    wrong: Vec<String>,
}

impl Resolver<'_> {
    fn optional<T>(&mut self, name: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let (value, origin) = self.config.get(name)?;
        let Value::Text(text) = value else { return None };
        match read(text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.wrong.push(format!("{name} ({origin}): {text:?}: {why}"));
                None
            }
        }
    }

    /// With a stand-in, so that all that is wrong can be told at once.
    fn one<T>(&mut self, name: &str, else_: T, read: impl Fn(&str) -> Result<T, String>) -> T {
        self.optional(name, read).unwrap_or(else_)
    }

    fn duration(&mut self, name: &str) -> Duration {
        self.one(name, Duration::ZERO, duration)
    }

    fn ns(&mut self, name: &str) -> Ns {
        let or_none = keys::find(name).is_some_and(|key| key.kind == Kind::DurationOrNone);
        let read = |text: &str| match text {
            "none" | "0" | "0s" if or_none => Ok(Duration::ZERO),
            text => duration(text),
        };
        u64::try_from(self.one(name, Duration::ZERO, read).as_nanos()).unwrap_or(u64::MAX)
    }

    fn switch(&mut self, name: &str) -> bool {
        self.one(name, false, |text| match text {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" | "" => Ok(false),
            _ => Err("neither true nor false".to_owned()),
        })
    }

    fn number(&mut self, name: &str) -> usize {
        self.one(name, 1, |text| match text.parse() {
            Ok(n @ 1..=LARGEST_NUMBER) => usize::try_from(n).map_err(|error| error.to_string()),
            _ => Err(format!("no whole number from 1 to {LARGEST_NUMBER}")),
        })
    }

    fn words(&mut self, name: &str) -> Option<Vec<String>> {
        let (value, origin) = self.config.get(name)?;
        match value {
            Value::Words(words) if words.first().is_some_and(|program| program.starts_with('/')) => {
                Some(words.clone())
            }
            Value::Words(words) => {
                let program = words.first().map_or("", String::as_str);
                self.wrong
                    .push(format!("{name} ({origin}): {program:?}: give the program by its absolute path"));
                None
            }
            Value::Text(_) => None,
        }
    }
}

/// `2s`, `1m 30s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("longer than nothing is needed".to_owned()),
        Ok(duration) if duration > LONGEST => Err("longer than a year".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; 2s or 1m 30s are durations")),
    }
}

/// Percent of a core as millionths of it; `None` for no limit.
pub fn share(text: &str) -> Result<Option<u32>, String> {
    if matches!(text, "none" | "0") {
        return Ok(None);
    }
    let number: f64 =
        text.trim_end_matches('%').trim().parse().map_err(|_| "not a number of percent, nor none")?;
    if !(0.0001..=100.0).contains(&number) {
        return Err("between 0.0001 and 100, or none".into());
    }
    Ok(Some((number * 10_000.0).round() as u32))
}

/// Ways of seeing by their names with commas between, or `none`.
pub fn ways(text: &str) -> Result<Vec<SeenBy>, String> {
    const WAYS: [SeenBy; 4] = [SeenBy::Fentry, SeenBy::Kprobe, SeenBy::Tracepoint, SeenBy::Uprobe];
    if text == "none" {
        return Ok(Vec::new());
    }
    let of = |name: &str| {
        let way = WAYS.into_iter().find(|way| word(*way) == name.trim());
        way.ok_or_else(|| format!("{name:?} is none of {}", WAYS.map(word).join(", ")))
    };
    text.split(',').map(of).collect()
}

/// `8MiB`, `500kB`, `1000000`; at least 64 KiB.
fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("", 1),
    ];
    const LEAST: u64 = 64 << 10;
    let digits = text.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.trim().get(digits.len()..).unwrap_or_default();
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let number = digits.trim().parse::<u64>().ok();
    match number.zip(factor).and_then(|(number, factor)| number.checked_mul(factor)) {
        Some(bytes) if bytes >= LEAST => Ok(bytes),
        Some(_) => Err("less than 64KiB".to_owned()),
        None => Err("no number of bytes like 8MiB or 500kB".to_owned()),
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') { Ok(text.into()) } else { Err("give an absolute path".to_owned()) }
}

fn place(text: &str) -> Result<Place, String> {
    match text {
        "auto" => Ok(Place::Auto),
        "none" => Ok(Place::None),
        path if path.starts_with('/') => Ok(Place::At(path.into())),
        _ => Err("give an absolute path, auto or none".to_owned()),
    }
}

fn url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.starts_with('/') => Ok(text.to_owned()),
        _ => Err("give an http or https URL".to_owned()),
    }
}
