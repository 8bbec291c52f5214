//! Where a capture may lie: not on the file system that chains end in, since writing there waits for the stuck disk and
//! makes it worse. By default on a tmpfs.
//!
//! What is asked is the mount table, as text, before anything on the way to the file is touched. All of it runs on a
//! worker with a limit: whoever waits for the answer can say that it did not come.

use crate::event::Device;
use crate::node::mounts::Mounts;
use crate::node::worker::Workers;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Folders where a capture goes when no file is named; the first that is on a tmpfs.
const FOLDERS: [&str; 2] = ["/run/plegscope", "/dev/shm/plegscope"];
/// Where containerd keeps the writable layers, by default and in the usual distributions. Where it is told otherwise, the
/// recorder finds out by the first container it hears of.
const RUNTIMES: [&str; 3] = [
    "/var/lib/containerd",
    "/var/lib/rancher/k3s/agent/containerd",
    "/var/snap/microk8s/common/var/lib/containerd",
];
/// Longest wait for the file to be there.
const PATIENCE: Duration = Duration::from_secs(5);
/// Disks below a device that are looked for: a volume of many.
const MOST_DISKS: usize = 64;

/// A new file for a capture.
#[derive(Debug)]
pub struct Place {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// The file system it is on, as the mount table and as the file tell it.
    pub(super) devices: Vec<Device>,
}

impl Place {
    /// A file that is there already.
    pub fn of(file: File, path: PathBuf) -> io::Result<Place> {
        let number = file.metadata()?.dev();
        let device = Device { major: rustix::fs::major(number), minor: rustix::fs::minor(number) };
        Ok(Place { file, path, devices: vec![device] })
    }
}

impl Place {
    /// The file, for who writes something else to it, and its path.
    pub fn into_parts(self) -> (File, PathBuf) {
        (self.file, self.path)
    }
}

/// Why there is none.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// It would be where chains end.
    #[error(
        "{path} is on {what}, the disk that unmounts sync and that may be stuck: name a file on another one{instead}; \
         with --force it is written all the same"
    )]
    OnTheDisk {
        /// The file.
        path: String,
        /// Which file system, and why it is to be avoided.
        what: String,
        /// Where it goes when no file is named.
        instead: String,
    },
    /// There is a file already.
    #[error("{0} exists already: it may be evidence; take another name, or remove it")]
    Exists(String),
    /// No folder is on a tmpfs.
    #[error("neither {} nor {} is on a tmpfs: name a file (-o FILE)", FOLDERS[0], FOLDERS[1])]
    NoFolder,
    /// Others may write into the folder.
    #[error("{0} belongs to somebody else or others may write into it: remove it, or name a file (-o FILE)")]
    NotOurs(String),
    /// It cannot be made.
    #[error("{path}: {why}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        why: io::Error,
    },
    /// It took too long.
    #[error(
        "{path} could not be made ({why}): its disk may be stuck; name a file on a tmpfs, for instance below /run"
    )]
    Late {
        /// The file.
        path: String,
        /// What came instead.
        why: String,
    },
}

/// Makes the file at `path`, else `name` in the usual folder; and what is to be said about it.
pub fn create(path: Option<&Path>, name: &str, force: bool) -> Result<(Place, Vec<String>), PlaceError> {
    let (path, name) = (path.map(Path::to_owned), name.to_owned());
    let shown = path.as_deref().unwrap_or(Path::new(FOLDERS[0])).display().to_string();
    let job = move || {
        let mounts = Mounts::of(std::process::id())
            .map_err(|e| PlaceError::Io { path: "the mount table".into(), why: io::Error::other(e) })?;
        let path = match path {
            Some(path) => std::path::absolute(&path).map_err(|why| io_error(&path, why))?,
            None => usual_folder(&mounts)?.join(name),
        };
        let warnings = judge(&mounts, &path, force, &disks_below)?;
        let place = make(&mounts, path)?;
        Ok((place, warnings))
    };
    match Workers::new(1).run(PATIENCE, job) {
        Ok(made) => made,
        Err(why) => Err(PlaceError::Late { path: shown, why: why.to_string() }),
    }
}

fn io_error(path: &Path, why: io::Error) -> PlaceError {
    PlaceError::Io { path: path.display().to_string(), why }
}

/// The first of the usual folders that is on a tmpfs.
fn on_tmpfs(mounts: &Mounts) -> Option<&'static str> {
    let is = |path: &&str| mounts.holding(Path::new(path)).is_some_and(|m| m.fs_type == "tmpfs");
    FOLDERS.into_iter().find(is)
}

/// The same, made if it is not there.
fn usual_folder(mounts: &Mounts) -> Result<PathBuf, PlaceError> {
    let folder = Path::new(on_tmpfs(mounts).ok_or(PlaceError::NoFolder)?);
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_error(folder, error)),
        _ => {}
    }
    let is = fs::symlink_metadata(folder).map_err(|why| io_error(folder, why))?;
    let ours = is.uid() == rustix::process::geteuid().as_raw();
    if !is.is_dir() || !ours || is.permissions().mode() & 0o022 != 0 {
        return Err(PlaceError::NotOurs(folder.display().to_string()));
    }
    Ok(folder.to_owned())
}

/// Whether the file may be there, and what is to be said when it may.
fn judge(
    mounts: &Mounts,
    path: &Path,
    force: bool,
    disks: &dyn Fn(Device) -> BTreeSet<Device>,
) -> Result<Vec<String>, PlaceError> {
    let Some(on) = mounts.holding(path) else { return Ok(Vec::new()) };
    let mut warnings = Vec::new();
    for runtime in RUNTIMES.map(Path::new) {
        let Some(avoid) = mounts.holding(runtime) else { continue };
        if avoid.device == on.device {
            let what = format!("the file system of {} ({} {})", runtime.display(), on.fs_type, on.device);
            if !force {
                let instead = on_tmpfs(mounts).map(|folder| format!(" (without -o it goes to {folder})"));
                let (path, instead) = (path.display().to_string(), instead.unwrap_or_default());
                return Err(PlaceError::OnTheDisk { path, what, instead });
            }
            warnings.push(format!(
                "{} is on {what}: if that disk is stuck, plegscope waits with it and cannot be ended",
                path.display()
            ));
            break;
        }
        if !disks(on.device).is_disjoint(&disks(avoid.device)) {
            warnings.push(format!(
                "{} is on another file system of the disk of {}: if that disk is stuck, lines will be lost, and \
                 plegscope may not end before it goes on",
                path.display(),
                runtime.display()
            ));
            break;
        }
    }
    Ok(warnings)
}

/// Makes the file: new, and for nobody else to read.
fn make(mounts: &Mounts, path: PathBuf) -> Result<Place, PlaceError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let file = file.map_err(|why| match why.kind() {
        io::ErrorKind::AlreadyExists => PlaceError::Exists(path.display().to_string()),
        _ => io_error(&path, why),
    })?;
    let mut place = Place::of(file, path.clone()).map_err(|why| io_error(&path, why))?;
    let told = mounts.holding(&path).map(|mount| mount.device);
    // Some file systems have another number in the mount table than in their files.
    place.devices.extend(told);
    Ok(place)
}

/// The whole disks that a block device lies on: of a partition its disk, of a volume all it is made of.
fn disks_below(device: Device) -> BTreeSet<Device> {
    let mut disks = BTreeSet::new();
    let mut left = vec![device];
    while let Some(device) = left.pop() {
        if device.major == 0 || disks.len() >= MOST_DISKS {
            continue;
        }
        let folder = PathBuf::from(format!("/sys/dev/block/{device}"));
        let number = |path: PathBuf| {
            let text = fs::read_to_string(path).ok()?;
            let (major, minor) = text.trim().split_once(':')?;
            Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? })
        };
        let below: Vec<Device> = if folder.join("partition").exists() {
            // The link leads into the folder of the disk.
            fs::canonicalize(&folder)
                .ok()
                .and_then(|real| number(real.parent()?.join("dev")))
                .into_iter()
                .collect()
        } else {
            let slaves = fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten();
            slaves.filter_map(|slave| number(slave.path().join("dev"))).collect()
        };
        if below.is_empty() {
            disks.insert(device);
        }
        left.extend(below.into_iter().take(MOST_DISKS));
    }
    disks
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
1 0 254:1 / / rw - ext4 /dev/vda1 rw
2 1 0:20 / /run rw - tmpfs tmpfs rw
3 1 254:2 / /var/lib/containerd rw - ext4 /dev/vda2 rw
4 1 254:17 / /evidence rw - xfs /dev/vdb1 rw
";

    /// `vda` is 254:0, `vdb` 254:16.
    fn disks(device: Device) -> BTreeSet<Device> {
        let whole = Device { minor: device.minor & !15, ..device };
        BTreeSet::from([whole]).into_iter().filter(|device| device.major > 0).collect()
    }

    #[test]
    fn not_where_chains_end_and_not_without_a_word_beside_it() {
        let mounts = Mounts::parse(TABLE.as_bytes());
        let judge = |path: &str, force| judge(&mounts, Path::new(path), force, &disks);
        assert_eq!(judge("/run/a", false).unwrap(), Vec::<String>::new());
        assert_eq!(judge("/evidence/a", false).unwrap(), Vec::<String>::new());
        let error = judge("/var/lib/containerd/a", false).unwrap_err().to_string();
        assert!(error.contains("the file system of /var/lib/containerd (ext4 254:2)"), "{error}");
        assert!(error.contains("(without -o it goes to /run/plegscope)"), "{error}");
        assert_eq!(judge("/var/lib/containerd/a", true).unwrap().len(), 1);
        let beside = judge("/home/a", false);
        // The folders of other distributions would lie on the root.
        assert!(
            matches!(beside, Ok(ref said) if said[0].contains("same disk") || said[0].contains("of the disk of")),
            "{beside:?}"
        );
    }

    #[test]
    fn a_file_is_new_and_for_nobody_else() {
        let folder = std::env::temp_dir().join(format!("plegscope-place-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.pleg");
        let (place, _) = create(Some(&path), "", true).unwrap();
        let is = fs::metadata(&path).unwrap();
        assert_eq!(is.permissions().mode() & 0o777, 0o600);
        assert_eq!(
            place.devices[0],
            Device { major: rustix::fs::major(is.dev()), minor: rustix::fs::minor(is.dev()) }
        );
        assert!(matches!(create(Some(&path), "", true), Err(PlaceError::Exists(_))));
        let nowhere = create(Some(&folder.join("no/a.pleg")), "", true);
        assert!(matches!(nowhere, Err(PlaceError::Io { .. })), "{nowhere:?}");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_partition_lies_on_its_disk() {
        // Of whatever disks this machine has, those with partitions.
        let mut partitions = 0;
        for entry in fs::read_dir("/sys/class/block").into_iter().flatten().flatten() {
            let number = |path: PathBuf| {
                let text = fs::read_to_string(path).unwrap();
                let (major, minor) = text.trim().split_once(':').unwrap();
                Device { major: major.parse().unwrap(), minor: minor.parse().unwrap() }
            };
            if entry.path().join("partition").exists() {
                partitions += 1;
                let real = fs::canonicalize(entry.path()).unwrap();
                let disk = number(real.parent().unwrap().join("dev"));
                assert!(disks_below(number(real.join("dev"))).contains(&disk) || disk.major == 0);
            }
        }
        assert!(disks_below(Device { major: 0, minor: 42 }).is_empty(), "{partitions} partitions");
    }
}
