//! `status`: one line about what `watch` sees right now, for people and for health checks. Reads one file in memory, in a
//! process of its own, so that it answers whatever hangs.

use super::files::{self, Found};
use crate::{
    cli::Status,
    exit::Exit,
    node::clock,
    sinks::{
        deliver::state::{self, Health, State},
        json, sanitise,
    },
};
use std::{io::Write, path::PathBuf};

/// Runs the verb.
pub fn run(options: &Status) -> anyhow::Result<Exit> {
    let mut out = std::io::stdout().lock();
    let state = look(options);
    match &state {
        Ok(state) if options.json => out.write_all(&json::line(state)?)?,
        Ok(state) => writeln!(out, "{}", sanitise(&state.line))?,
        Err(why) => writeln!(out, "UNKNOWN {}", sanitise(why))?,
    }
    Ok(match state.map(|state| state.health) {
        Ok(Health::Fine) => Exit::Done,
        Ok(Health::Problem) => Exit::Stuck,
        Ok(Health::Unknown) | Err(_) => Exit::Usage,
    })
}

fn look(options: &Status) -> Result<State, String> {
    let default =
        || state::FOLDERS.iter().map(|base| PathBuf::from(base).join(state::FOLDER).join(state::FILE));
    let paths: Vec<PathBuf> =
        options.state_file.clone().map_or_else(|| default().collect(), |path| vec![path]);
    let anchor = clock::Anchor::now().map_err(|error| format!("the clock cannot be read: {error}"))?;
    for path in &paths {
        let told = |why: &str| format!("{}: {why}", path.display());
        return match files::read(path, state::MOST, options.within, true) {
            Ok(Found::Missing) => continue,
            Ok(Found::Bytes(bytes)) => State::read(&bytes, anchor.monotonic, &anchor.boot_id),
            Ok(Found::Unusable(why)) => Err(told(&why)),
            Ok(Found::Hangs) => Err(told("does not answer")),
            Err(error) => Err(told(&error.to_string())),
        };
    }
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    Err(format!("plegscope watch does not run: there is no {}", names.join(" and no ")))
}
