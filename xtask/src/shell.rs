//! Running other programs, and the two folders everything here refers to: the source tree and the cache.

use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The top folder of the source tree this program was built from.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// The folder for everything that is fetched or costly to build: `$PLEGSCOPE_CACHE`, else
/// `$XDG_CACHE_HOME/plegscope`, else `~/.cache/plegscope`. It may be deleted at any time.
pub fn cache() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("PLEGSCOPE_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("plegscope")))
        .or_else(|| set("HOME").map(|folder| folder.join(".cache/plegscope")))
        .context("no cache folder: none of PLEGSCOPE_CACHE, XDG_CACHE_HOME and HOME is set")?;
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create the cache folder {}", folder.display()))?;
    Ok(folder)
}

/// Runs a program with our own output streams; not ending well is an error that names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// The same; the error holds the end of what it wrote to its standard error, which is passed on as it comes.
pub fn run_hearing_errors(command: &mut Command) -> Result<()> {
    /// Lines kept.
    const LINES: usize = 100;
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    let mut said = VecDeque::new();
    for text in child.stderr.take().into_iter().flat_map(|stream| BufReader::new(stream).split(b'\n')) {
        let text = String::from_utf8_lossy(&text?).into_owned();
        eprintln!("{text}");
        said.push_back(text);
        if said.len() > LINES {
            said.pop_front();
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` failed: {status}\n{}", line(command), said.make_contiguous().join("\n"));
    }
    Ok(())
}

/// Runs a program and returns what it wrote to its standard output; the error holds what it wrote to the other stream.
pub fn capture(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}\n{}", line(command), output.status, said.trim_end());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` wrote something that is not text", line(command)))
}

/// Builds something with cargo, whose messages are shown; the path of the program of that name that it made. `target/` may be
/// elsewhere (`CARGO_TARGET_DIR`), so cargo is asked.
pub fn built(build: &mut Command, program: &str) -> Result<PathBuf> {
    build.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit()).stdout(Stdio::piped());
    let output = build.output().with_context(|| format!("cannot start `{}`", line(build)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", line(build), output.status);
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == program)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("`{}` made no program called {program}", line(build)))
}

/// Whether a program of this name is on the PATH.
pub fn exists(program: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// Whether we run as root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The command as a reader would type it.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
