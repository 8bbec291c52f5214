//! The disks of the node: its root from Debian's packages, kept in the cache; and the kit, which is what we build.

use crate::lab::image;
use crate::packages::{self, Index, Suite, alone, fresh_folder};
use crate::vm::kernel;
use crate::{binaries, kubelet, shell};
use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the node runs beside what we build; busybox stands for all small programs.
const PACKAGES: [&str; 4] = ["containerd", "runc", "strace", BUSYBOX];
const BUSYBOX: &str = "busybox-static";

/// Room on the root disk beyond what is on it, MB: images, snapshots of stories without a slow disk, logs.
const ROOM: u64 = 800;

/// Changes when the layout of the root does.
const LAYOUT: u32 = 1;

/// Where the root has its cache: the containerds and the kubelet, laid out as in ours.
pub const CACHE: &str = "/var/cache/plegscope";
/// The lab's container image in the kit.
const KIT_IMAGE: &str = "image.tar";
/// Where the kit is mounted.
pub const KIT: &str = "/kit";

/// Folders that are there, or mount points.
const FOLDERS: [&str; 16] = [
    "dev",
    "etc",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "kit",
    "mnt",
    "opt",
    "var/tmp",
    "var/lib",
    "var/log",
    "var/cache/plegscope/binaries",
    "usr/bin",
    "usr/sbin",
];

/// Files that programs look for.
const FILES: [(&str, &str); 5] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/hosts", "127.0.0.1 localhost box\n"),
    ("etc/resolv.conf", ""),
    ("etc/machine-id", "00000000000040008000000000000001\n"),
];

/// What is made of packages.
pub struct Root {
    /// The root disk's image.
    pub image: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
}

/// The root disk, made when it is not in the cache.
pub fn root() -> Result<Root> {
    let suite = packages::own_suite()?;
    let index = Suite::open(&suite, Index::Packages)?;
    let wanted = index.closure(&PACKAGES)?;
    let gathered = binaries::gather(false)?;
    gathered.missing.iter().for_each(|reason| println!("vm: the node goes without {reason}"));
    let mut programs = Vec::new();
    for entry in fs::read_dir(&gathered.folder).context("reading the folder of Go binaries")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_file() && (name.starts_with("containerd-") || name.starts_with("shim-")) {
            programs.push((format!("{CACHE}/binaries/{name}"), entry.path()));
        }
    }
    if let Some(kubelet) = kubelet::built()? {
        programs.push((format!("{CACHE}/{}", kubelet::place()), kubelet));
    }
    programs.sort();

    let mut key = format!("{LAYOUT} {suite}\n");
    wanted.iter().for_each(|(name, version)| key += &format!("{name} {version}\n"));
    for (at, from) in &programs {
        let about = fs::metadata(from).with_context(|| format!("reading {}", from.display()))?;
        key += &format!("{at} {} {:?}\n", about.len(), about.modified()?);
    }
    let folder = shell::cache()?.join("box");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let _alone = alone("box")?;
    let image = folder.join(format!("root-{}.ext4", short_hash(&key)));
    let (name, version) =
        wanted.iter().find(|(name, _)| name == BUSYBOX).context("busybox is no package of this suite")?;
    let busybox = busybox_in(&index.unpack(name, version)?)?;
    if image.is_file() {
        return Ok(Root { image, busybox });
    }
    println!("vm: making the node's root disk of {} packages", wanted.len());
    let tree = fresh_folder(&folder.join("root"))?;
    skeleton(&tree)?;
    for (name, version) in &wanted {
        merge(&index.unpack(name, version)?, &tree)?;
    }
    for (at, from) in &programs {
        put(&tree, at, from)?;
    }
    applets(&tree, &busybox)?;
    let partial = image.with_added_extension("partial");
    make(&tree, &partial, ROOM)?;
    fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
    // Those of other packages are of no use any more.
    for old in fs::read_dir(&folder)?.flatten().map(|entry| entry.path()) {
        if old.extension().is_some_and(|ending| ending == "ext4") {
            fs::remove_file(&old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    fs::rename(&partial, &image).with_context(|| format!("cannot create {}", image.display()))?;
    Ok(Root { image, busybox })
}

/// The kit: this very program, plegscope, and the stories, below `folder`.
pub fn kit(folder: &Path, plegscope: &Path) -> Result<PathBuf> {
    let tree = fresh_folder(&folder.join("kit"))?;
    for (name, from) in [("xtask", Path::new("/proc/self/exe")), ("plegscope", plegscope)] {
        let program = tree.join(name);
        fs::copy(from, &program).with_context(|| format!("copying {}", from.display()))?;
        shell::capture(Command::new("strip").arg(&program))?;
    }
    let stories = tree.join("stories");
    fs::create_dir(&stories)?;
    for entry in fs::read_dir(shell::root().join("xtask/stories")).context("reading the stories")?.flatten() {
        fs::copy(entry.path(), stories.join(entry.file_name()))?;
    }
    // Its sums take long on an emulated processor.
    image::write(&tree.join(KIT_IMAGE), image::NAME)?;
    let image = folder.join("kit.img");
    make(&tree, &image, 4)?;
    fs::remove_dir_all(&tree)?;
    Ok(image)
}

fn short_hash(of: &str) -> String {
    Sha256::digest(of).iter().take(6).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a string takes it
        text
    })
}

/// Debian's own layout: what packages have in `/bin` is in `/usr/bin`.
fn skeleton(tree: &Path) -> Result<()> {
    for folder in FOLDERS {
        fs::create_dir_all(tree.join(folder)).with_context(|| format!("creating {folder}"))?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(tree.join("usr").join(name))?;
        symlink(format!("usr/{name}"), tree.join(name)).with_context(|| format!("linking {name}"))?;
    }
    for (file, text) in FILES {
        fs::write(tree.join(file), text).with_context(|| format!("writing {file}"))?;
    }
    Ok(())
}

/// Puts an unpacked package into the root, through the links of its layout.
fn merge(package: &Path, tree: &Path) -> Result<()> {
    let script = r#"tar --directory "$1" --create --exclude ./.md5sums --exclude ./usr/share/doc --exclude ./usr/share/man . |
        tar --directory "$2" --extract --keep-directory-symlink --no-same-owner"#;
    shell::capture(Command::new("sh").args(["-ec", script, "sh"]).arg(package).arg(tree)).map(|_| ())
}

fn put(tree: &Path, at: &str, from: &Path) -> Result<()> {
    let to = tree.join(at.trim_start_matches('/'));
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    fs::copy(from, &to).map(|_| ()).with_context(|| format!("copying {}", from.display()))
}

fn busybox_in(package: &Path) -> Result<PathBuf> {
    let mut places = ["usr/bin/busybox", "bin/busybox"].into_iter().map(|place| package.join(place));
    places.find(|path| path.is_file()).with_context(|| format!("{} holds no busybox", package.display()))
}

/// Gives busybox the names of all that it can do and that no package has.
fn applets(tree: &Path, busybox: &Path) -> Result<()> {
    for applet in shell::capture(Command::new(busybox).arg("--list"))?.lines() {
        let there = ["usr/bin", "usr/sbin"].iter().any(|folder| tree.join(folder).join(applet).exists());
        if !there {
            symlink("busybox", tree.join("usr/bin").join(applet))
                .with_context(|| format!("linking {applet}"))?;
        }
    }
    Ok(())
}

/// Makes a disk of a folder, with so many MB of room.
fn make(tree: &Path, image: &Path, room: u64) -> Result<()> {
    let used = shell::capture(Command::new("du").args(["-sm", "--apparent-size"]).arg(tree))?;
    let used: u64 =
        used.split_whitespace().next().and_then(|word| word.parse().ok()).context("du tells no size")?;
    let folder = tree.to_string_lossy();
    ensure!(tree.is_dir(), "{folder} is not there");
    let now = "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0";
    kernel::disk(image, used + used / 8 + room, &["mkfs.ext4", "-q", "-m", "0", "-E", now, "-d", &folder])
}
