//! `cargo xtask bpf`: builds the kernel half, or checks that the checked-in object is what its source gives.
//!
//! A plain `cargo build` embeds the checked-in object, so a user needs none of what stands here. The object is
//! reproducible: the compiler, its `core` and the linker are pinned below, folders are kept out of it, and two builds in
//! different folders on different machines give the same bytes. Beside it lies its provenance: what it was made from,
//! and with what. The build itself is in [`toolchain`] and [`object`].

mod object;
pub mod rustc;
mod toolchain;

use crate::shell;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use toolchain::Toolchain;

/// Build the kernel half into tracer-ebpf/prebuilt.
#[derive(clap::Args)]
pub struct Args {
    /// Change nothing: fail when the checked-in object is not what the source gives.
    #[arg(long)]
    check: bool,
    /// With --check: compare only what is recorded beside the object; do not rebuild it.
    #[arg(long, requires = "check")]
    recorded_only: bool,
}

/// The checked-in object, below the top folder.
const OBJECT: &str = "tracer-ebpf/prebuilt/plegscope.bpf.o";
/// Its provenance.
const PROVENANCE: &str = "tracer-ebpf/prebuilt/plegscope.bpf.json";
/// What the object is made from: these files, and every `.rs` file below these folders.
const SOURCES: [&str; 5] = [
    "tracer-common/Cargo.toml",
    "tracer-common/src",
    "tracer-ebpf/Cargo.lock",
    "tracer-ebpf/Cargo.toml",
    "tracer-ebpf/src",
];
/// The compiler's target.
const TARGET: &str = "bpfel-unknown-none";
/// Compiler flags that shape the object; the flags that take folders out of it are added at the build.
///
/// `--btf` needs debug information to work from. LLVM writes the text of our own source lines into the BTF, so the
/// kernel's verifier quotes them when it refuses a program.
const FLAGS: [&str; 2] = ["-Cdebuginfo=2", "-Clink-arg=--btf"];

/// What the object was made from and with, written beside it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Provenance {
    /// SHA-256 of the object.
    object_sha256: String,
    /// SHA-256 over the sources: for each file in order of its path, path, length and content.
    sources_sha256: String,
    /// What it was made with.
    made_with: MadeWith,
}

/// The pinned tools and the recipe.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MadeWith {
    rustc: String,
    rustc_commit: String,
    bpf_linker: String,
    target: String,
    flags: Vec<String>,
    crate_hash: String,
}

impl MadeWith {
    /// What this program builds with.
    fn pinned() -> MadeWith {
        MadeWith {
            rustc: toolchain::RUSTC.into(),
            rustc_commit: toolchain::RUSTC_COMMIT.into(),
            bpf_linker: toolchain::LINKER.into(),
            target: TARGET.into(),
            flags: FLAGS.map(String::from).into(),
            crate_hash: rustc::CRATE_HASH.into(),
        }
    }
}

/// What `--check` could find out when it found nothing wrong.
#[derive(Debug)]
pub enum Verified {
    /// The source was built again and gave the same bytes.
    Rebuilt,
    /// Only the recorded hashes were compared, because of this.
    RecordOnly(String),
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    if !args.check {
        return build_and_store();
    }
    match check(args.recorded_only)? {
        Verified::Rebuilt => println!("bpf: {OBJECT} is byte for byte what its source gives"),
        Verified::RecordOnly(reason) => {
            println!("bpf: the recorded hashes and versions match");
            println!("bpf: NOT VERIFIED that {OBJECT} is what its source gives: {reason}");
        }
    }
    Ok(())
}

fn build_and_store() -> Result<()> {
    let toolchain = Toolchain::find()?;
    let bytes = build(&toolchain)?;
    let provenance = Provenance {
        object_sha256: sha256(&bytes),
        sources_sha256: hash_sources(shell::root())?,
        made_with: MadeWith::pinned(),
    };
    write(OBJECT, &bytes)?;
    write(PROVENANCE, format!("{}\n", serde_json::to_string_pretty(&provenance)?).as_bytes())?;
    println!("bpf: {OBJECT}: {} bytes, sha256 {}", bytes.len(), provenance.object_sha256);
    Ok(())
}

/// Checks the checked-in object, first against what is recorded beside it, then by building it again, unless
/// `recorded_only` or the toolchain cannot be had.
pub fn check(recorded_only: bool) -> Result<Verified> {
    let object = read(OBJECT)?;
    let text = read(PROVENANCE)?;
    let recorded: Provenance = serde_json::from_slice(&text)
        .with_context(|| format!("{PROVENANCE} cannot be read; make it anew: cargo xtask bpf"))?;
    compare(&recorded, &sha256(&object), &hash_sources(shell::root())?, &MadeWith::pinned())?;
    if recorded_only {
        return Ok(Verified::RecordOnly("it was asked for the record only".into()));
    }
    let toolchain = match Toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(reason) => return Ok(Verified::RecordOnly(format!("{reason:#}"))),
    };
    let rebuilt = build(&toolchain)?;
    if rebuilt != object {
        let kept = shell::root().join("target/bpf/rebuilt.bpf.o");
        fs::write(&kept, &rebuilt).with_context(|| format!("cannot write {}", kept.display()))?;
        bail!(
            "{OBJECT} is not what its source gives: {} bytes checked in, {} bytes rebuilt (kept as {}); {}; \
             make it anew: cargo xtask bpf",
            object.len(),
            rebuilt.len(),
            kept.display(),
            object::first_difference(&object, &rebuilt),
        );
    }
    Ok(Verified::Rebuilt)
}

/// Level 1: what is recorded against what is there.
fn compare(recorded: &Provenance, object: &str, sources: &str, pinned: &MadeWith) -> Result<()> {
    if recorded.object_sha256 != object {
        bail!(
            "{OBJECT} is not the object that {PROVENANCE} speaks of (sha256 {object}, recorded {}); \
             make both anew: cargo xtask bpf",
            recorded.object_sha256
        );
    }
    if recorded.sources_sha256 != sources {
        bail!(
            "the source of the kernel half has changed since {OBJECT} was built (sha256 over tracer-ebpf and \
             tracer-common {sources}, recorded {}); build it: cargo xtask bpf",
            recorded.sources_sha256
        );
    }
    if recorded.made_with != *pinned {
        bail!(
            "{OBJECT} was built with other tools than the pinned ones (pinned {pinned:?}, recorded {:?}); \
             build it: cargo xtask bpf",
            recorded.made_with
        );
    }
    Ok(())
}

/// Builds the object and returns its bytes, without DWARF and without any folder of this machine in it.
fn build(toolchain: &Toolchain) -> Result<Vec<u8>> {
    let root = shell::root();
    let crate_folder = root.join("tracer-ebpf");
    let flags = flags(toolchain, root)?.join("\u{1f}");
    // Cargo does not see every change of the recipe, so each recipe has its own folder.
    let recipe = sha256(format!("{:?}{flags}", MadeWith::pinned()).as_bytes());
    let target_folder = root.join("target/bpf").join(&recipe[..12]);
    let mut command = Command::new("cargo");
    toolchain.prepare(&mut command);
    rustc::wrap(&mut command, TARGET);
    command
        .current_dir(&crate_folder)
        .args(["build", "--release", "--locked", "-Zbuild-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target_folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
    shell::run(&mut command).context("the kernel half does not build")?;

    let built = target_folder.join(TARGET).join("release/plegscope");
    let bytes = fs::read(&built).with_context(|| format!("the build left no {}", built.display()))?;
    let bytes = object::strip(&bytes)?;
    object::check_no_folders(&bytes, &toolchain.folders(root)?)?;
    Ok(bytes)
}

/// All compiler flags of a build in `root`.
///
/// Our own sources get names relative to the folder the linker runs in, so that LLVM finds their text; all others get
/// names that exist nowhere, so that their text stays out whatever a machine has installed. Of several prefixes that
/// match, rustc takes the last.
fn flags(toolchain: &Toolchain, root: &Path) -> Result<Vec<String>> {
    let mut flags: Vec<String> = FLAGS.map(String::from).into();
    flags.push(format!("-Clinker={}", toolchain.linker.display()));
    let mut rename =
        |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    for registry in toolchain::registries()? {
        rename(&registry, "/registry");
    }
    rename(&toolchain.rust_src, "/rust-src");
    rename(&root.join("tracer-common"), "../tracer-common");
    rename(&root.join("tracer-ebpf"), ".");
    Ok(flags)
}

fn hash_sources(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hasher = Sha256::new();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root)?.to_string_lossy().into_owned();
        hasher.update(format!("{name}\0{}\0", content.len()));
        hasher.update(&content);
    }
    Ok(hex(&hasher.finalize()))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.into());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
        let path = entry?.path();
        if path.is_dir() || path.extension().is_some_and(|extension| extension == "rs") {
            collect(&path, files)?;
        }
    }
    Ok(())
}

fn read(file: &str) -> Result<Vec<u8>> {
    fs::read(shell::root().join(file))
        .with_context(|| format!("cannot read {file}; build it: cargo xtask bpf"))
}

fn write(file: &str, bytes: &[u8]) -> Result<()> {
    let path = shell::root().join(file);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> Provenance {
        Provenance {
            object_sha256: "object".into(),
            sources_sha256: "sources".into(),
            made_with: MadeWith::pinned(),
        }
    }

    #[test]
    fn the_record_is_compared_with_object_sources_and_tools() {
        let pinned = MadeWith::pinned;
        let complaint = |recorded: &Provenance, object: &str, sources: &str, tools: &MadeWith| {
            compare(recorded, object, sources, tools).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(complaint(&recorded(), "object", "sources", &pinned()), "");
        assert!(complaint(&recorded(), "other", "sources", &pinned()).contains("is not the object that"));
        assert!(
            complaint(&recorded(), "object", "other", &pinned())
                .contains("source of the kernel half has changed")
        );
        let newer = MadeWith { bpf_linker: "0.11.0".into(), ..pinned() };
        assert!(complaint(&recorded(), "object", "sources", &newer).contains("other tools"));
    }

    #[test]
    fn the_record_that_is_checked_in_can_be_read() {
        let provenance: Provenance = serde_json::from_slice(&read(PROVENANCE).unwrap()).unwrap();
        assert_eq!(provenance.object_sha256, sha256(&read(OBJECT).unwrap()));
    }

    #[test]
    fn the_hash_of_the_sources_sees_names_and_contents() {
        let root = std::env::temp_dir().join(format!("plegscope-sources-{}", std::process::id()));
        let put = |name: &str, text: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for source in SOURCES {
            put(&if source.ends_with("src") { format!("{source}/a.rs") } else { source.into() }, "text");
        }
        let mut seen = vec![hash_sources(&root).unwrap()];
        put("tracer-ebpf/target/a.rs", "not a source");
        assert_eq!(hash_sources(&root).unwrap(), seen[0]);
        put("tracer-ebpf/src/a.rs", "other text");
        seen.push(hash_sources(&root).unwrap());
        put("tracer-ebpf/src/probes/b.rs", "");
        seen.push(hash_sources(&root).unwrap());
        fs::rename(root.join("tracer-ebpf/src/probes/b.rs"), root.join("tracer-ebpf/src/probes/c.rs"))
            .unwrap();
        seen.push(hash_sources(&root).unwrap());
        put("tracer-ebpf/Cargo.lock", "other");
        seen.push(hash_sources(&root).unwrap());
        fs::remove_dir_all(&root).unwrap();
        let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
        assert_eq!(distinct.len(), seen.len());
    }

    #[test]
    fn the_object_has_btf_but_neither_dwarf_nor_folders() {
        let bytes = read(OBJECT).unwrap();
        assert_eq!(object::strip(&bytes).unwrap(), bytes, "stripping again changes something");
        assert!(object::check_no_folders(&bytes, &[shell::root().into()]).is_ok());
        assert!(object::check_no_folders(&bytes, &["/rust-src".into()]).is_err());
        assert!(object::strip(b"not an object").is_err());
    }
}
