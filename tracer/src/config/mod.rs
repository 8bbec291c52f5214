//! Settings of `watch`: from flags, the environment and a file, in this order, the first that says something counts; then
//! the defaults. Each value knows where it comes from. Pure, but for [`read`].
//!
//! ```text
//! typed as given (Layer) ──> merged (Config) ──> checked and resolved (Watching) ──> run
//! ```

pub mod keys;
pub mod resolve;

pub use resolve::{Place, Watching};

use keys::{KEYS, Key, Kind};
use std::{collections::BTreeMap, fmt, path::Path};

/// The file that is read where no other is named.
pub const FILE: &str = "/etc/plegscope/config.toml";
/// The environment variable that names another.
pub const VARIABLE: &str = "PLEGSCOPE_CONFIG";
/// Bytes of a file at most.
pub const MOST: usize = 256 << 10;

/// A value as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// One word.
    Text(String),
    /// A program and its arguments.
    Words(Vec<String>),
}

impl fmt::Display for Value {
    /// As it would stand in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        match self {
            Value::Text(text) => f.write_str(&quoted(text)),
            Value::Words(words) => {
                write!(f, "[{}]", words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A file.
    File(String),
    /// An environment variable.
    Environment(String),
    /// The command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => f.write_str(path),
            Origin::Environment(name) => write!(f, "${name}"),
            Origin::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// What one source says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer(pub BTreeMap<&'static str, (Value, Origin)>);

impl Layer {
    /// Adds a value of the command line, if there is one.
    pub fn flag(&mut self, name: &'static str, value: Option<Value>) {
        if let Some(value) = value {
            self.0.insert(name, (value, Origin::Flag(name)));
        }
    }

    /// What a file says. All that is wrong with it is told at once.
    pub fn of_file(path: &Path, text: &str) -> Result<Layer, Vec<String>> {
        let at = path.display().to_string();
        let table: toml::Table = text.parse().map_err(|error| vec![format!("{at}: {error}")])?;
        let mut layer = Layer::default();
        let mut wrong = Vec::new();
        for (name, value) in table {
            let Some(key) = keys::find(&name) else {
                wrong.push(format!("{at}: there is no setting {name:?}{}", closest(&name)));
                continue;
            };
            match of_toml(key, value) {
                Ok(value) => drop(layer.0.insert(key.name, (value, Origin::File(at.clone())))),
                Err(why) => wrong.push(format!("{at}: {name}: {why}")),
            }
        }
        if wrong.is_empty() { Ok(layer) } else { Err(wrong) }
    }

    /// What the environment says.
    pub fn of_environment(variables: impl Fn(&str) -> Option<String>) -> Result<Layer, Vec<String>> {
        let mut layer = Layer::default();
        let mut wrong = Vec::new();
        for key in &KEYS {
            let name = keys::variable(key);
            let Some(text) = variables(&name) else { continue };
            let value = match key.kind {
                Kind::Words if text.trim_start().starts_with('[') => {
                    // As in the file.
                    let parsed = format!("words = {text}").parse::<toml::Table>().ok();
                    parsed.and_then(|mut table| of_toml(key, table.remove("words")?).ok())
                }
                Kind::Words => Some(Value::Words(vec![text])),
                _ => Some(Value::Text(text)),
            };
            match value {
                Some(value) => drop(layer.0.insert(key.name, (value, Origin::Environment(name)))),
                None => wrong
                    .push(format!("${name}: neither a program nor a list like [\"program\", \"argument\"]")),
            }
        }
        if wrong.is_empty() { Ok(layer) } else { Err(wrong) }
    }
}

fn of_toml(key: &Key, value: toml::Value) -> Result<Value, String> {
    match (key.kind, value) {
        (Kind::Words, toml::Value::Array(words)) => {
            let word = |word| match word {
                toml::Value::String(word) => Ok(word),
                other => Err(format!("{other} is no string")),
            };
            words.into_iter().map(word).collect::<Result<_, _>>().map(Value::Words)
        }
        (Kind::Words, toml::Value::String(word)) => Ok(Value::Words(vec![word])),
        (Kind::Switch, toml::Value::Boolean(on)) => Ok(Value::Text(on.to_string())),
        (Kind::Number | Kind::Share | Kind::Bytes, toml::Value::Integer(n)) => Ok(Value::Text(n.to_string())),
        (Kind::Share, toml::Value::Float(n)) => Ok(Value::Text(n.to_string())),
        (Kind::Switch, other) => Err(format!("{other} is neither true nor false")),
        (Kind::Words, other) => Err(format!("{other} is no list of strings")),
        (_, toml::Value::String(text)) => Ok(Value::Text(text)),
        (_, other) => Err(format!("{other} is no string")),
    }
}

/// A setting whose name is nearly that one.
fn closest(name: &str) -> String {
    let name = name.replace('_', "-").to_lowercase();
    let near = |key: &&Key| {
        key.name == name || (name.len() > 3 && (key.name.contains(&name) || name.contains(key.name)))
    };
    match KEYS.iter().find(near) {
        Some(key) => format!("; is {} meant?", key.name),
        None => "; `plegscope config show` lists all".to_owned(),
    }
}

/// All settings, each with where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config(BTreeMap<&'static str, (Value, Origin)>);

impl Config {
    /// From layers, of which the first that says something counts.
    pub fn merge(layers: impl IntoIterator<Item = Layer>) -> Config {
        let mut all = BTreeMap::new();
        for layer in layers {
            for (name, value) in layer.0 {
                all.entry(name).or_insert(value);
            }
        }
        for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
            all.entry(key.name).or_insert((Value::Text(key.default.to_owned()), Origin::Default));
        }
        Config(all)
    }

    /// A line for each setting: as it would stand in the file, and where it comes from.
    pub fn show(&self) -> String {
        let mut out = String::new();
        for key in &KEYS {
            let line = match self.0.get(key.name) {
                Some((value, origin)) => {
                    let value = match (key.kind, value) {
                        (Kind::Switch | Kind::Number, Value::Text(text)) => text.clone(),
                        _ => value.to_string(),
                    };
                    format!("{:<42} # {origin}", format!("{} = {value}", key.name))
                }
                None => format!("{:<42} # not set", format!("# {} =", key.name)),
            };
            out.push_str(&crate::sinks::sanitise(&line));
            out.push('\n');
        }
        out
    }

    fn get(&self, name: &str) -> Option<&(Value, Origin)> {
        self.0.get(name)
    }
}

#[cfg(test)]
mod tests;
