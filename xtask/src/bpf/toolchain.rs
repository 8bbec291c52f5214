//! The pinned tools the kernel half is built with, and how to get them where they are not there.

use crate::packages::{self, Index, Suite};
use crate::shell;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The compiler. `core` is built from the source that belongs to it.
pub const RUSTC: &str = "1.95.0";
/// The commit it was built from: distributions build their own, and those need not give the same code.
pub const RUSTC_COMMIT: &str = "59807616e1fa2540724bfbac14d7976d7e4a3860";
/// bpf-linker; newer ones want another LLVM than this compiler's.
pub const LINKER: &str = "0.10.3";

/// Tools that were found and are the pinned ones.
#[derive(Debug)]
pub struct Toolchain {
    /// What rustup is to be told, when the default toolchain is not the pinned one.
    rustup_name: Option<&'static str>,
    /// The compiler's folder.
    sysroot: PathBuf,
    /// The folder that holds `library/core`.
    pub rust_src: PathBuf,
    /// The linker's executable.
    pub linker: PathBuf,
}

impl Toolchain {
    /// Finds the tools, installing what is missing where that can be done without touching the system. The error says
    /// what cannot be had, and why.
    pub fn find() -> Result<Toolchain> {
        let (rustup_name, sysroot) = compiler()?;
        let rust_src = rust_src(&sysroot)?;
        let linker = linker(rustup_name)?;
        let toolchain = Toolchain { rustup_name, sysroot, rust_src, linker };
        // The crates must be at hand before the build, so that a build that fails means something.
        let mut fetch = Command::new("cargo");
        toolchain.prepare(&mut fetch);
        fetch.args(["fetch", "--quiet", "--locked", "--manifest-path"]);
        fetch.arg(shell::root().join("tracer-ebpf/Cargo.toml"));
        shell::capture(&mut fetch).context("the crates of the kernel half cannot be fetched")?;
        Ok(toolchain)
    }

    /// Makes a cargo command use this toolchain, and nothing that the caller's environment says about building.
    pub fn prepare(&self, command: &mut Command) {
        clean_environment(command);
        // A stable compiler refuses to build `core` unless told that it bootstraps.
        command.env("RUSTC_BOOTSTRAP", "1");
        if let Some(name) = self.rustup_name {
            command.env("RUSTUP_TOOLCHAIN", name);
        }
        if !self.rust_src.starts_with(&self.sysroot) {
            // Cargo's own test hook; there is no other way to point it at a `library` outside of the compiler's folder.
            command.env("__CARGO_TESTS_ONLY_SRC_ROOT", self.rust_src.join("library"));
        }
    }

    /// The folders of this machine that the object must not name.
    pub fn folders(&self, root: &Path) -> Result<Vec<PathBuf>> {
        let mut folders = vec![root.into(), self.sysroot.clone(), self.rust_src.clone(), cargo_home()?];
        folders.extend(env::var_os("HOME").map(PathBuf::from));
        folders.retain(|folder: &PathBuf| folder.components().count() > 1);
        Ok(folders)
    }
}

/// Takes out of the environment what changes how cargo and rustc build: the outer cargo's own variables, and whatever
/// the caller has set up for other builds.
fn clean_environment(command: &mut Command) {
    const KEEP: [&str; 3] = ["CARGO_HOME", "CARGO_TERM_COLOR", "CARGO_NET_OFFLINE"];
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        let cargo = name_text.starts_with("CARGO") && !name_text.starts_with("CARGO_HTTP");
        if (cargo && !KEEP.contains(&&*name_text))
            || name_text.starts_with("RUSTC")
            || name_text == "RUSTFLAGS"
        {
            command.env_remove(&name);
        }
    }
}

fn compiler() -> Result<(Option<&'static str>, PathBuf)> {
    let ask = |toolchain: Option<&str>| -> Result<PathBuf> {
        let rustc = |argument: &str| {
            let mut command = Command::new("rustc");
            if let Some(name) = toolchain {
                command.env("RUSTUP_TOOLCHAIN", name);
            }
            shell::capture(command.arg(argument))
        };
        let version = rustc("-vV")?;
        let says = |key: &str| version.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("?").trim();
        let (release, commit) = (says("release:"), says("commit-hash:"));
        if (release, commit) != (RUSTC, RUSTC_COMMIT) {
            bail!("rustc is {release} (commit {commit}), not {RUSTC} (commit {RUSTC_COMMIT})");
        }
        let sysroot = shell::capture(
            Command::new("rustc")
                .args(["--print", "sysroot"])
                .envs(toolchain.map(|name| ("RUSTUP_TOOLCHAIN", name))),
        )?;
        fs::canonicalize(sysroot.trim()).context("the compiler's folder is not there")
    };
    let default = match ask(None) {
        Ok(sysroot) => return Ok((None, sysroot)),
        Err(error) => error,
    };
    if !shell::exists("rustup") {
        return Err(default.context("there is no rustup to get the pinned compiler with"));
    }
    if let Ok(sysroot) = ask(Some(RUSTC)) {
        return Ok((Some(RUSTC), sysroot));
    }
    let mut install = Command::new("rustup");
    install.args(["toolchain", "install", RUSTC, "--profile", "minimal", "--no-self-update"]);
    shell::capture(&mut install).context("the pinned compiler cannot be installed")?;
    Ok((Some(RUSTC), ask(Some(RUSTC))?))
}

/// The folder with `library/core` of exactly this compiler: from rustup, else from Debian's package of that version.
fn rust_src(sysroot: &Path) -> Result<PathBuf> {
    let inside = sysroot.join("lib/rustlib/src/rust");
    let there = |folder: &Path| folder.join("library/core/src/lib.rs").is_file();
    if there(&inside) {
        return Ok(inside);
    }
    let mut add = Command::new("rustup");
    add.args(["component", "add", "rust-src", "--toolchain"]).arg(sysroot.file_name().unwrap_or_default());
    let rustup = shell::capture(&mut add);
    if there(&inside) {
        return Ok(inside);
    }
    let debian = debian_rust_src().context("rust-src cannot be had as a Debian package either");
    match (debian, rustup) {
        (Ok(folder), _) if there(&folder) => Ok(folder),
        (Ok(folder), _) => bail!("Debian's package rust-src has no library/core in {}", folder.display()),
        (Err(error), Err(rustup)) => Err(error.context(format!("rustup cannot add rust-src: {rustup:#}"))),
        (Err(error), Ok(_)) => {
            Err(error.context(format!("rustup added rust-src, but not in {}", inside.display())))
        }
    }
}

/// Debian's package of the compiler's source; its `library/core` is the same as upstream's.
fn debian_rust_src() -> Result<PathBuf> {
    const SUITE: &str = "trixie-backports";
    let suite = Suite::open(SUITE, Index::Packages)?;
    let versions = suite.versions("rust-src")?;
    let version = packages::newest(&versions, RUSTC)
        .with_context(|| format!("{SUITE} has no rust-src {RUSTC}, but {}", versions.join(", ")))?;
    Ok(suite.unpack("rust-src", version)?.join(format!("usr/src/rustc-{RUSTC}")))
}

fn linker(rustup_name: Option<&str>) -> Result<PathBuf> {
    let folder = shell::cache()?.join(format!("bpf-linker-{LINKER}"));
    let linker = folder.join("bin/bpf-linker");
    if !linker.is_file() {
        eprintln!("bpf: installing bpf-linker {LINKER} into {} (about a minute)", folder.display());
        let mut install = Command::new("cargo");
        clean_environment(&mut install);
        if let Some(name) = rustup_name {
            install.env("RUSTUP_TOOLCHAIN", name);
        }
        install.args(["install", "--quiet", "--locked", "bpf-linker", "--version"]).arg(format!("={LINKER}"));
        install.arg("--root").arg(&folder);
        shell::capture(&mut install).context("bpf-linker cannot be installed")?;
    }
    let version = shell::capture(Command::new(&linker).arg("--version"))?;
    if version.trim() != format!("bpf-linker {LINKER}") {
        bail!("{} is {}, not bpf-linker {LINKER}; delete it and try again", linker.display(), version.trim());
    }
    Ok(linker)
}

/// Where cargo unpacks the sources of crates: one folder for each registry.
pub fn registries() -> Result<Vec<PathBuf>> {
    let folder = cargo_home()?.join("registry/src");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn cargo_home() -> Result<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
        .context("cannot tell where cargo keeps its crates: neither CARGO_HOME nor HOME is set")
}
