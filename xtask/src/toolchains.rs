//! `cargo xtask toolchains`: every Go that Debian ships, so that what reads Go programs is tested against all of them; and
//! the tool with which people read dumps of goroutines.

use crate::packages::{self, Index, Suite, fresh_folder};
use crate::shell;
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Fill the cache with the Go toolchains that tests build programs with.
#[derive(clap::Args)]
pub struct Args {}

/// The environment variable through which tests find them: GOROOTs, colon-separated.
pub const VARIABLE: &str = "PLEGSCOPE_GO_TOOLCHAINS";

/// The environment variable that names a folder where tests keep what they build, so that the next run is quick.
pub const BUILDS: &str = "PLEGSCOPE_GO_BUILDS";

/// The environment variable through which tests find panicparse, which reads dumps of goroutines.
pub const PANICPARSE: &str = "PLEGSCOPE_PANICPARSE";

/// Which suite had which Go when this was written; suites move on.
const TOOLCHAINS: [(&str, &str); 9] = [
    ("bullseye", "1.15"),
    ("bookworm", "1.19"),
    ("bookworm-backports", "1.21"),
    ("bookworm-backports", "1.22"),
    ("bookworm-backports", "1.23"),
    ("trixie", "1.24"),
    ("trixie-backports", "1.25"),
    ("trixie-backports", "1.26"),
    ("trixie-backports", "1.27"),
];

/// The toolchains, and what could not be had.
pub struct Toolchains {
    /// GOROOTs, oldest first.
    pub roots: Vec<PathBuf>,
    /// panicparse.
    pub panicparse: Option<PathBuf>,
    /// One reason for each that is missing.
    pub missing: Vec<String>,
}

/// Runs the command.
pub fn run(_: &Args) -> Result<()> {
    let toolchains = gather(true);
    for reason in &toolchains.missing {
        eprintln!("toolchains: MISSING {reason}");
    }
    for root in &toolchains.roots {
        println!("{}", root.display());
    }
    Ok(())
}

/// Those in the cache, and with `fetch` those that can be put there.
pub fn gather(fetch: bool) -> Toolchains {
    let mut toolchains = Toolchains { roots: Vec::new(), panicparse: None, missing: Vec::new() };
    match if fetch { panicparse() } else { cached_panicparse() } {
        Ok(tool) => toolchains.panicparse = Some(tool),
        Err(error) => toolchains.missing.push(format!("panicparse: {error:#}")),
    }
    for (suite, version) in TOOLCHAINS {
        let root = if fetch {
            goroot(suite, version)
        } else {
            cached(version).and_then(|root| root.context("not fetched yet; cargo xtask toolchains"))
        };
        match root {
            Ok(root) => toolchains.roots.push(root),
            Err(error) => toolchains.missing.push(format!("Go {version}: {error:#}")),
        }
    }
    toolchains
}

/// The folder for what tests build.
pub fn builds() -> Result<PathBuf> {
    let folder = shell::cache()?.join("go-builds");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

fn joined(version: &str) -> Result<PathBuf> {
    Ok(shell::cache()?.join(format!("toolchains/go-{version}")))
}

fn cached(version: &str) -> Result<Option<PathBuf>> {
    let root = joined(version)?.join(format!("usr/lib/go-{version}"));
    Ok(Some(root).filter(|root| root.join("bin/go").is_file()))
}

/// The dump tool, from the suite whose package needs nothing that is not everywhere.
fn panicparse() -> Result<PathBuf> {
    const PACKAGE: &str = "panicparse";
    const SUITE: &str = "bookworm";
    if let Ok(tool) = cached_panicparse() {
        return Ok(tool);
    }
    let suite = Suite::open(SUITE, Index::Packages)?;
    let versions = suite.versions(PACKAGE)?;
    let newest = versions.first().with_context(|| format!("{SUITE} has no {PACKAGE} any more"))?;
    let unpacked = suite.unpack(PACKAGE, newest)?.join("usr/bin/panicparse");
    let tool = shell::cache()?.join("panicparse");
    let partial = tool.with_added_extension("partial");
    fs::copy(&unpacked, &partial).with_context(|| format!("cannot copy {}", unpacked.display()))?;
    fs::rename(&partial, &tool).with_context(|| format!("cannot create {}", tool.display()))?;
    Ok(tool)
}

fn cached_panicparse() -> Result<PathBuf> {
    let tool = shell::cache()?.join("panicparse");
    Some(tool).filter(|tool| tool.is_file()).context("not fetched yet; cargo xtask toolchains")
}

/// One folder with compiler and standard library; Debian keeps them in two packages that link to each other.
pub fn goroot(suite: &str, version: &str) -> Result<PathBuf> {
    if let Some(root) = cached(version)? {
        return Ok(root);
    }
    let joined = joined(version)?;
    let suite_index = Suite::open(suite, Index::Packages)?;
    let partial = fresh_folder(&joined.with_added_extension("partial"))?;
    for package in [format!("golang-{version}-go"), format!("golang-{version}-src")] {
        let versions = suite_index.versions(&package)?;
        let newest = packages::newest(&versions, version)
            .with_context(|| format!("{suite} has no {package} any more"))?;
        let unpacked = suite_index.unpack(&package, newest)?;
        // The same files under a second name.
        shell::run(Command::new("cp").args(["-a", "--link"]).arg(unpacked.join("usr")).arg(&partial))?;
    }
    let _ = fs::remove_dir_all(&joined); // one without a compiler
    fs::rename(&partial, &joined).with_context(|| format!("cannot create {}", joined.display()))?;
    cached(version)?.with_context(|| format!("the packages of Go {version} hold no bin/go"))
}
