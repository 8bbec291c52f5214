//! `cargo xtask binaries`: the Go programs the tests read, real and stripped, as Debian ships them.

use crate::packages::{self, Index, Suite};
use crate::{kubelet, shell};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;

/// Fill the cache with the containerds, shims and the kubelet that the tests of Go binaries read.
#[derive(clap::Args)]
pub struct Args {
    /// Look again at what the suites have now; without it, what is there stays.
    #[arg(long)]
    refresh: bool,
}

/// The environment variable through which tests find the folder.
pub const VARIABLE: &str = "PLEGSCOPE_GO_BINARIES";

/// Which suite had which containerd when this was written; suites move on.
const CONTAINERDS: [(&str, &str); 4] =
    [("bullseye", "1.4"), ("bookworm", "1.6"), ("trixie", "1.7"), ("sid", "2.1")];

/// The folder, and what could not be put into it.
pub struct Binaries {
    /// Holds `containerd-1.4`, `shim-1.4`, …, `kubelet-1.20`.
    pub folder: PathBuf,
    /// One reason for each program that is missing.
    pub missing: Vec<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let binaries = gather(args.refresh)?;
    for reason in &binaries.missing {
        eprintln!("binaries: MISSING {reason}");
    }
    println!("{}", binaries.folder.display());
    Ok(())
}

/// The folder as it is.
pub fn cached() -> Result<Binaries> {
    let mut binaries = Binaries::empty()?;
    let containerds = CONTAINERDS.iter().flat_map(|(_, version)| names(version));
    for name in containerds.chain([kubelet_name()]) {
        if !binaries.folder.join(&name).is_file() {
            binaries.missing.push(format!("{name}: not fetched yet; cargo xtask binaries"));
        }
    }
    Ok(binaries)
}

/// A folder in which a containerd and its shim have the names they are called by, if they are in the cache.
pub fn containerd(version: &str) -> Result<Option<PathBuf>> {
    let folder = shell::cache()?.join("binaries");
    let [daemon, shim] = names(version).map(|name| folder.join(name));
    if !daemon.is_file() || !shim.is_file() {
        return Ok(None);
    }
    let callable = folder.join(format!("callable-{version}"));
    fs::create_dir_all(&callable).with_context(|| format!("cannot create {}", callable.display()))?;
    for (program, name) in [(daemon, "containerd"), (shim, "containerd-shim-runc-v2")] {
        let link = callable.join(name);
        if !link.exists() {
            let _ = fs::remove_file(&link); // one that leads nowhere
            std::os::unix::fs::symlink(&program, &link)
                .with_context(|| format!("cannot create {}", link.display()))?;
        }
    }
    Ok(Some(callable))
}

/// Fills the folder as far as that can be done.
pub fn gather(refresh: bool) -> Result<Binaries> {
    let mut binaries = Binaries::empty()?;
    for (suite, version) in CONTAINERDS {
        let names = names(version);
        if !refresh && names.iter().all(|name| binaries.folder.join(name).is_file()) {
            continue;
        }
        if let Err(error) = add_containerd(&binaries, suite, version, &names) {
            binaries.missing.push(format!("{}: {error:#}", names.join(", ")));
        }
    }
    let kubelet_name = kubelet_name();
    if refresh || !binaries.folder.join(&kubelet_name).is_file() {
        match kubelet::build().and_then(|built| binaries.add(&built, &kubelet_name)) {
            Ok(()) => {}
            Err(error) => binaries.missing.push(format!("{kubelet_name}: {error:#}")),
        }
    }
    Ok(binaries)
}

/// The names of a containerd and its shim in the folder.
fn names(version: &str) -> [String; 2] {
    [format!("containerd-{version}"), format!("shim-{version}")]
}

fn kubelet_name() -> String {
    format!("kubelet-{}", kubelet::MINOR)
}

fn add_containerd(binaries: &Binaries, suite: &str, version: &str, names: &[String; 2]) -> Result<()> {
    let index = Suite::open(suite, Index::Packages)?;
    let there = index.versions("containerd")?;
    let found = packages::newest(&there, version)
        .with_context(|| format!("{suite} has no containerd {version} any more, but {}", there.join(", ")))?;
    let unpacked = index.unpack("containerd", found)?;
    binaries.add(&unpacked.join("usr/bin/containerd"), &names[0])?;
    binaries.add(&unpacked.join("usr/bin/containerd-shim-runc-v2"), &names[1])
}

impl Binaries {
    fn empty() -> Result<Binaries> {
        let folder = shell::cache()?.join("binaries");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Binaries { folder, missing: Vec::new() })
    }

    /// Puts a program into the folder under a name; never half of it.
    fn add(&self, program: &std::path::Path, name: &str) -> Result<()> {
        let partial = self.folder.join(format!(".{name}.partial"));
        fs::copy(program, &partial).with_context(|| format!("cannot copy {}", program.display()))?;
        fs::rename(&partial, self.folder.join(name)).with_context(|| format!("cannot create {name}"))
    }
}
