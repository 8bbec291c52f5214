//! Every setting of `watch`, in one table: its name is that of the flag, of the key in the file, and, in capitals behind
//! `PLEGSCOPE_`, of the environment variable.

/// What a value can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `2s`, `1m 30s`; longer than nothing.
    Duration,
    /// The same, or `none`.
    DurationOrNone,
    /// Percent of a core, or `none`.
    Share,
    /// `none`, `kernel`, `auto` or `all`.
    Probes,
    /// `none`, or some of `fentry`, `kprobe`, `tracepoint` and `uprobe` with commas between.
    Ways,
    /// `true` or `false`.
    Switch,
    /// A whole number of at least 1.
    Number,
    /// Bytes: `8MiB`, `500kB`.
    Bytes,
    /// A file or folder, by its absolute path.
    Path,
    /// The same, or `auto` or `none`.
    Place,
    /// A program and its arguments.
    Words,
    /// An `http` or `https` URL.
    Url,
}

/// A setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it can be.
    pub kind: Kind,
    /// What it is when nobody says anything; empty for nothing.
    pub default: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str) -> Key {
    Key { name, kind, default }
}

/// All of them, in the order in which they are shown.
pub const KEYS: [Key; 27] = [
    key("umount-over", Kind::Duration, "5s"),
    key("lock-over", Kind::Duration, "5s"),
    key("cri-over", Kind::Duration, "5s"),
    key("relist-over", Kind::Duration, "5s"),
    key("exit-over", Kind::Duration, "10s"),
    key("notready-within", Kind::DurationOrNone, "1m"),
    key("hold-off", Kind::DurationOrNone, "1m"),
    key("probes", Kind::Probes, "auto"),
    key("max-target-cost", Kind::Share, "2"),
    key("without", Kind::Ways, "none"),
    key("json", Kind::Switch, "false"),
    key("quiet", Kind::Switch, "false"),
    key("journal", Kind::Switch, "false"),
    key("exec", Kind::Words, ""),
    key("exec-limit", Kind::Duration, "30s"),
    key("exec-at-once", Kind::Number, "2"),
    key("webhook", Kind::Url, ""),
    key("webhook-ca", Kind::Path, ""),
    key("webhook-token-file", Kind::Path, ""),
    key("webhook-limit", Kind::Duration, "10s"),
    key("state-file", Kind::Place, "auto"),
    key("store", Kind::Place, "auto"),
    key("store-incidents", Kind::Number, "512"),
    key("store-bytes", Kind::Bytes, "8MiB"),
    key("capture-on-incident", Kind::Path, ""),
    key("capture-before", Kind::Duration, "1m"),
    key("capture-bytes", Kind::Bytes, "256MiB"),
];

/// The setting of that name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The environment variable of a setting.
pub fn variable(key: &Key) -> String {
    format!("PLEGSCOPE_{}", key.name.replace('-', "_").to_uppercase())
}
