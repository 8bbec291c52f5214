//! `cargo xtask kubelet`: a real kubelet, built from Debian's source package with the compiler of its time.
//!
//! Debian ships no kubelet binary. Its source package `kubernetes` of bullseye holds the complete original tarball,
//! dependencies included, and Go 1.15 of the same suite builds it; newer Go refuses that vendor folder.

use crate::packages::{Index, Suite, alone, fresh_folder};
use crate::{shell, toolchains};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Build kubelet 1.20.2 into the cache and print where it is (about 4 minutes the first time).
#[derive(clap::Args)]
pub struct Args {}

/// The kubelet's version, and as much of it as names it in tests.
const VERSION: &str = "1.20.2";
/// `major.minor` of [`VERSION`].
pub const MINOR: &str = "1.20";
/// The suite that has the source and the compiler.
const SUITE: &str = "bullseye";
/// The compiler.
const GO: &str = "1.15";

/// Runs the command.
pub fn run(_: &Args) -> Result<()> {
    println!("{}", build()?.display());
    Ok(())
}

/// What is to be done when [`built`] has none.
pub const NOT_BUILT: &str = "no kubelet is in the cache; `cargo xtask kubelet` builds one in about 4 minutes";

/// The kubelet's executable, if it is in the cache.
pub fn built() -> Result<Option<PathBuf>> {
    Ok(Some(folder()?.join("kubelet")).filter(|kubelet| kubelet.is_file()))
}

/// Where it lies in a cache.
pub fn place() -> String {
    format!("kubelet-{VERSION}/kubelet")
}

fn folder() -> Result<PathBuf> {
    Ok(shell::cache()?.join(format!("kubelet-{VERSION}")))
}

/// The kubelet's executable, built if it is not in the cache yet.
pub fn build() -> Result<PathBuf> {
    if let Some(kubelet) = built()? {
        return Ok(kubelet);
    }
    let folder = folder()?;
    let kubelet = folder.join("kubelet");
    // Another run may be in the middle of it, or done with it meanwhile.
    let _alone = alone("kubelet")?;
    if kubelet.is_file() {
        return Ok(kubelet);
    }
    eprintln!("kubelet: building {VERSION} in {} (about 4 minutes)", folder.display());
    let go = toolchains::goroot(SUITE, GO)?;
    let source = unpack_source(&folder)?;
    let built = folder.join("kubelet.partial");
    compile(&go, &source, &folder, &built)?;
    let said = shell::capture(Command::new(&built).arg("--version"))?;
    if said.trim() != format!("Kubernetes v{VERSION}") {
        bail!("the kubelet that was built says it is {:?}, not v{VERSION}", said.trim());
    }
    fs::rename(&built, &kubelet)?;
    for leftover in ["source", "go-cache", "go-path"] {
        fs::remove_dir_all(folder.join(leftover)).with_context(|| format!("cannot remove {leftover}"))?;
    }
    Ok(kubelet)
}

/// The folder that holds `cmd/kubelet`.
fn unpack_source(folder: &Path) -> Result<PathBuf> {
    let source = fresh_folder(&folder.join("source"))?;
    Suite::open(SUITE, Index::Sources)?.fetch_tarball("kubernetes", &source)?;
    let tarball = fs::read_dir(&source)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().contains(".orig.tar"))
        .context("the source package kubernetes has no original tarball")?;
    let tree = fresh_folder(&source.join("tree"))?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--strip-components=1", "--file"]).arg(tarball).arg("--directory").arg(&tree);
    shell::run(&mut tar)?;
    if !tree.join("cmd/kubelet").is_dir() {
        bail!("the source package kubernetes of {SUITE} has no cmd/kubelet");
    }
    Ok(tree)
}

fn compile(go: &Path, source: &Path, folder: &Path, output: &Path) -> Result<()> {
    let (major, minor) = MINOR.split_once('.').context("MINOR is major.minor")?;
    // The version stands in two packages: the one the program prints, and the one it tells the API server.
    let mut flags = String::from("-s -w");
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in
            [("gitVersion", &*format!("v{VERSION}")), ("gitMajor", major), ("gitMinor", minor)]
        {
            flags += &format!(" -X {package}.{name}={value}");
        }
    }
    let mut build = Command::new(go.join("bin/go"));
    build.args(["build", "-trimpath", "-ldflags", &flags, "-o"]).arg(output).arg("./cmd/kubelet");
    build.current_dir(source);
    build.env("GOROOT", go).env("GOPATH", folder.join("go-path")).env("GOCACHE", folder.join("go-cache"));
    fs::create_dir_all(folder.join("go-path"))?;
    build
        .env("GOFLAGS", "-mod=vendor")
        .env("GO111MODULE", "on")
        .env("CGO_ENABLED", "0")
        .env("GOPROXY", "off");
    shell::run(&mut build)
}
