//! A runc that hangs when it is told to: a script that stands in front of the real one. It plays what a control group's file
//! or a helper that does not answer makes of runc, without any lock or disk.

use super::sys;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Where the script lies.
pub fn script(run: &Path) -> PathBuf {
    run.join("held/runc")
}

/// While this file exists, the command hangs for the container that it names.
fn mark(run: &Path, command: &str) -> PathBuf {
    run.join("held").join(format!("hold-{command}"))
}

/// Puts the script there.
pub fn prepare(run: &Path) -> Result<()> {
    let script = script(run);
    let folder = script.parent().unwrap_or(run);
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let runc = sys::which("runc").context("runc is not installed")?;
    let text = format!(
        r#"#!/bin/sh
held() {{
  for command in "$@"; do
    if [ -e "{folder}/hold-$command" ]; then
      read -r container < "{folder}/hold-$command"
      for word in "$@"; do [ "$word" = "$container" ] && return 0; done
    fi
  done
  return 1
}}
while held "$@"; do sleep 0.05; done
exec {runc} "$@"
"#,
        folder = folder.display(),
        runc = runc.display()
    );
    fs::write(&script, text).with_context(|| format!("writing {}", script.display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).context("making it a program")
}

/// From now on that command hangs for a container.
pub fn hold(run: &Path, command: &str, container: &str) -> Result<()> {
    let mark = mark(run, command);
    // In one go: the script may look at any moment.
    let partial = mark.with_extension("partial");
    fs::write(&partial, format!("{container}\n"))
        .and_then(|()| fs::rename(&partial, &mark))
        .with_context(|| format!("writing {}", mark.display()))
}

/// What hangs goes on.
pub fn release(run: &Path, command: &str) -> Result<()> {
    let mark = mark(run, command);
    fs::remove_file(&mark).with_context(|| format!("removing {}", mark.display()))
}
