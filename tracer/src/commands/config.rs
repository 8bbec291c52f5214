//! `config`: whether the settings of `watch` are right, what they are and where each comes from.

use super::files::{self, Found};
use crate::{
    cli::{ConfigCommand, ConfigOptions},
    config::{Config, FILE, Layer, MOST, VARIABLE, Watching},
    exit::Exit,
    sinks::{deliver::webhook, sanitise},
};
use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long the disk with the file may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a file with certificates, or with a token, at most.
const SMALL: usize = 1 << 20;

/// Runs the verb.
pub fn run(command: &ConfigCommand) -> anyhow::Result<Exit> {
    let mut out = std::io::stdout().lock();
    let (options, show) = match command {
        ConfigCommand::Show(options) => (options, true),
        ConfigCommand::Check(options) => (options, false),
    };
    let loaded = load(options)?;
    let resolved = loaded.config.as_ref().map_err(Clone::clone).and_then(|config| {
        let watching = config.resolve()?;
        beside(&watching).map_err(|why| vec![why])?;
        Ok(watching)
    });
    if show && let Ok(config) = &loaded.config {
        write!(out, "{}", config.show())?;
    }
    for line in loaded.notes.iter().chain(resolved.as_ref().err().into_iter().flatten()) {
        writeln!(std::io::stderr(), "plegscope: {}", sanitise(line))?;
    }
    if !show && resolved.is_ok() {
        writeln!(
            out,
            "the settings are right{}",
            loaded.file.map(|file| format!(" ({file})")).unwrap_or_default()
        )?;
    }
    Ok(if resolved.is_ok() { Exit::Done } else { Exit::Usage })
}

/// The settings, as far as they could be had.
pub struct Loaded {
    /// They, or all that is wrong with where they come from.
    pub config: Result<Config, Vec<String>>,
    /// The file that was read.
    file: Option<String>,
    /// What is to be told all the same.
    pub notes: Vec<String>,
}

/// Reads flags, environment and file.
///
/// Must be called while this process has one thread.
pub fn load(options: &ConfigOptions) -> anyhow::Result<Loaded> {
    let named = options.config.clone().or_else(|| std::env::var(VARIABLE).ok());
    let mut loaded = Loaded { config: Err(Vec::new()), file: None, notes: Vec::new() };
    let mut wrong = Vec::new();
    let path = match named.as_deref() {
        Some("none") => None,
        Some(path) => Some(PathBuf::from(path)),
        None => Some(PathBuf::from(FILE)),
    };
    let mut layers = vec![options.layer()];
    match Layer::of_environment(|name| std::env::var(name).ok()) {
        Ok(layer) => layers.push(layer),
        Err(errors) => wrong.extend(errors),
    }
    if let Some(path) = path {
        let told = |why: &str| format!("{}: {why}", path.display());
        match files::read(&path, MOST, PATIENCE, true)? {
            Found::Bytes(bytes) => match Layer::of_file(&path, &String::from_utf8_lossy(&bytes)) {
                Ok(layer) => {
                    layers.push(layer);
                    loaded.file = Some(path.display().to_string());
                }
                Err(errors) => wrong.extend(errors),
            },
            Found::Missing if named.is_none() => {}
            // A watch that does not start while the disk is stuck is of no use.
            Found::Hangs if named.is_none() => {
                loaded.notes.push(told("does not answer: its disk may be stuck; going on without it"));
            }
            Found::Hangs => {
                wrong.push(told("does not answer: its disk may be stuck; --config none goes without it"))
            }
            Found::Missing => wrong.push(told("there is no such file")),
            Found::Unusable(why) => wrong.push(told(&why)),
        }
    }
    loaded.config = if wrong.is_empty() { Ok(Config::merge(layers)) } else { Err(wrong) };
    Ok(loaded)
}

/// What the settings name, read: how to post.
///
/// Must be called while this process has one thread.
pub fn beside(watching: &Watching) -> Result<Option<webhook::Settings>, String> {
    let Some(url) = watching.webhook.clone() else { return Ok(None) };
    let read = |path: &Path, trusted| {
        let told = |why: &str| format!("{}: {why}", path.display());
        match files::read(path, SMALL, PATIENCE, trusted).map_err(|error| told(&error.to_string()))? {
            Found::Bytes(bytes) => Ok(bytes),
            Found::Missing => Err(told("there is no such file")),
            Found::Hangs => Err(told("does not answer: its disk may be stuck")),
            Found::Unusable(why) => Err(told(&why)),
        }
    };
    let authorities = watching.webhook_ca.as_deref().map(|path| read(path, true)).transpose()?;
    let token = watching.webhook_token_file.as_deref().map(|path| read(path, false)).transpose()?;
    let token = token.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    if token.as_ref().is_some_and(|token| token.is_empty() || token.contains(char::is_control)) {
        return Err("webhook-token-file: a token is one line of printable characters".to_owned());
    }
    let settings =
        webhook::Settings { url, token, authorities, limit: watching.webhook_limit, run: String::new() };
    webhook::Webhook::new(settings.clone())?;
    Ok(Some(settings))
}
