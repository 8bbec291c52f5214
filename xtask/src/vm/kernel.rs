//! Debian's kernels: which packages hold one, and which of its modules the tests need.

use crate::packages::{Index, Suite};
use crate::shell;
use anyhow::{Context, Result, bail};
use object::{Object as _, ObjectSection as _};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The meta-package that always depends on a suite's own kernel. The one for virtual machines is small and lacks nothing.
const META: &str = "linux-image-cloud-amd64";

/// What `--kernel` takes, and the suite that has it.
pub const LINES: [(&str, &str); 4] =
    [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie"), ("newest", "trixie-backports")];

/// Loaded in this order, each after what it depends on; what is built in is not found and not missed.
const MODULES: [&str; 6] = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "overlay", "xfs"];

/// A kernel, unpacked.
pub struct Kernel {
    /// What the user called it.
    pub line: &'static str,
    /// Its version as the package has it.
    pub version: String,
    /// The image.
    pub image: PathBuf,
    /// Folder of its modules.
    modules: PathBuf,
}

/// Fetches the newest kernel of a line.
pub fn fetch(line: &str) -> Result<Kernel> {
    let Some((line, suite)) = LINES.into_iter().find(|(name, _)| *name == line) else {
        let known: Vec<&str> = LINES.iter().map(|(name, _)| *name).collect();
        bail!("no kernel is called {line:?}; there are {}", known.join(", "));
    };
    let suite = Suite::open(suite, Index::Packages)?;
    let mut wanted = vec![META.to_owned()];
    let mut unpacked = Vec::new();
    let mut version = String::new();
    while let Some(package) = wanted.pop() {
        for (name, its_version) in suite.pinned_dependencies(&package)? {
            let part = ["linux-image-", "linux-binary-", "linux-modules-"]
                .iter()
                .find_map(|prefix| name.strip_prefix(prefix));
            // Meta-packages have no version in their name, and lead to nothing else.
            if part.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
                unpacked.push(suite.unpack(&name, &its_version)?);
                version.clone_from(&its_version);
                wanted.push(name);
            }
        }
    }
    let find = |folders: [&str; 3], wanted: fn(&Path) -> bool| {
        unpacked.iter().flat_map(|root| folders.map(|folder| root.join(folder))).find_map(|folder| {
            let mut entries = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
            entries.find(|path| wanted(path))
        })
    };
    let modules = find(["lib/modules", "usr/lib/modules", "none"], |path| path.join("kernel").is_dir())
        .with_context(|| format!("the packages of kernel {version} hold no modules"))?;
    let is_image = |path: &Path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")) && path.is_file()
    };
    let inside = unpacked.iter().flat_map(|root| ["lib/modules", "usr/lib/modules"].map(|f| root.join(f)));
    let mut beside = inside.filter_map(|folder| Some(folder.join(modules.file_name()?).join("vmlinuz")));
    let image = find(["boot", "usr/boot", "none"], is_image)
        .or_else(|| beside.rfind(|path| path.is_file()))
        .with_context(|| format!("the packages of kernel {version} hold no vmlinuz"))?;
    Ok(Kernel { line, version, image, modules })
}

impl Kernel {
    /// The modules that are needed, in the order in which they can be loaded: name and content.
    pub fn modules(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = BTreeMap::new();
        walk(&self.modules, &mut files)?;
        let mut loaded = Vec::new();
        for module in MODULES {
            add(module, &files, &mut loaded)?;
        }
        Ok(loaded)
    }
}

/// Module files by module name.
fn walk(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            walk(&path, files)?;
        } else if let Some((stem, ending)) = entry.file_name().to_string_lossy().split_once('.')
            && (ending == "ko" || ending == "ko.xz")
        {
            files.insert(stem.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn add(module: &str, files: &BTreeMap<String, PathBuf>, loaded: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let Some(path) = files.get(module) else { return Ok(()) };
    if loaded.iter().any(|(name, _)| name == module) {
        return Ok(());
    }
    let bytes = if path.extension().is_some_and(|ending| ending == "xz") {
        let output = Command::new("xz").args(["-dc"]).arg(path).output().context("starting xz")?;
        if !output.status.success() {
            bail!("xz could not unpack {}", path.display());
        }
        output.stdout
    } else {
        fs::read(path).with_context(|| format!("reading {}", path.display()))?
    };
    for other in depends(&bytes).with_context(|| format!("reading {}", path.display()))? {
        add(&other, files, loaded)?;
    }
    loaded.push((module.to_owned(), bytes));
    Ok(())
}

/// What a module says it depends on.
fn depends(bytes: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(bytes)?;
    let Some(section) = file.section_by_name(".modinfo") else { return Ok(Vec::new()) };
    let list = section.data()?.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"depends="));
    let list = String::from_utf8_lossy(list.unwrap_or_default()).into_owned();
    Ok(list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

/// Makes a sparse file with a file system in it.
pub fn disk(path: &Path, megabytes: u64, mkfs: &[&str]) -> Result<()> {
    let file = fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
    file.set_len(megabytes << 20)?;
    let program = crate::lab::sys::which(mkfs[0]).unwrap_or_else(|| mkfs[0].into());
    shell::capture(Command::new(program).args(&mkfs[1..]).arg(path)).map(|_| ())
}
