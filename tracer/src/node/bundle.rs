//! Runtime bundles: the folder in which a shim works, what its path says, and the names in its `config.json`.
//!
//! A bundle lies at `<state>/io.containerd.runtime.v2.task/<namespace>/<id>`. It holds `config.json` (the OCI spec, with
//! CRI's annotations), files of the shim, and `rootfs`, where the container's root file system is mounted. Nothing
//! below `rootfs` is ever looked at: the kernel is told not to cross a mount or a link.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags};
use serde::Deserialize;

use super::locks::container_id;
use super::{ReadError, read_open};

/// The folder below containerd's state folder that holds the bundles of runtime v2.
const TASKS: &str = "io.containerd.runtime.v2.task";
/// A larger `config.json` is not read. A real one with a seccomp profile has 10 to 50 KiB.
const LARGEST_CONFIG: usize = 1 << 20;
/// Longest identifier that containerd accepts.
const LONGEST_ID: usize = 76;

/// Which bundle, and so which container: ids are unique only within a namespace of one containerd.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleId {
    /// containerd's state folder, for instance `/run/containerd`.
    pub state: PathBuf,
    /// containerd namespace, for instance `k8s.io`.
    pub namespace: String,
    /// Container id: 64 hex digits when CRI made it, else any name.
    pub id: String,
}

impl BundleId {
    /// From the path of a bundle, or of its `rootfs` as it is unmounted.
    pub fn of_path(path: &Path) -> Option<BundleId> {
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return None;
        }
        let bundle = if path.file_name()? == "rootfs" { path.parent()? } else { path };
        let (folder, id) = (bundle.parent()?, bundle.file_name()?.to_str()?);
        let (tasks, namespace) = (folder.parent()?, folder.file_name()?.to_str()?);
        if tasks.file_name()? != TASKS || !is_identifier(id) || !is_identifier(namespace) {
            return None;
        }
        Some(BundleId { state: tasks.parent()?.into(), namespace: namespace.into(), id: id.into() })
    }

    /// Where the bundle lies.
    pub fn path(&self) -> PathBuf {
        self.state.join(TASKS).join(&self.namespace).join(&self.id)
    }

    /// Where its root file system is mounted.
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }
}

/// Whether containerd accepts this as an id or a namespace: letters and digits, single `-`, `_`, `.` between them.
/// Bundles that are being deleted begin with a dot and are none.
fn is_identifier(name: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    bytes.len() <= LONGEST_ID
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// The bundle a shim was started for: its working directory. For a pod that is the sandbox's bundle.
pub fn of_shim(pid: u32) -> Result<BundleId, ReadError> {
    let path = format!("/proc/{pid}/cwd");
    let target = std::fs::read_link(&path).map_err(|e| ReadError::new(&path, e))?;
    let target = without_deleted(target);
    BundleId::of_path(&target)
        .ok_or_else(|| ReadError::malformed(path, format!("{} is no bundle of runtime v2", target.display())))
}

/// The bundle that this process works in and that has been removed under it; `None` while it is there. containerd renames
/// a bundle to `.ID` before it removes it.
pub fn removed_under(pid: u32) -> Option<BundleId> {
    let target = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    let path = without_deleted(target.clone());
    if path == target {
        return None;
    }
    let name = path.file_name()?.to_str()?;
    BundleId::of_path(&path.with_file_name(name.strip_prefix('.').unwrap_or(name)))
}

/// The path without the mark the kernel puts behind that of a removed folder.
fn without_deleted(path: PathBuf) -> PathBuf {
    let mut bytes = path.into_os_string().into_vec();
    if bytes.ends_with(b" (deleted)") {
        bytes.truncate(bytes.len() - b" (deleted)".len());
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// The names CRI wrote into a bundle. All are `None` for a container that CRI did not make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Whether it is a sandbox.
    pub sandbox: bool,
    /// Id of the sandbox it belongs to (its own, if it is one).
    pub sandbox_id: Option<String>,
    /// Pod name.
    pub pod: Option<String>,
    /// Pod namespace.
    pub namespace: Option<String>,
    /// Container name in the pod.
    pub container: Option<String>,
}

#[derive(Deserialize)]
struct Config {
    annotations: Option<Annotations>,
}

#[derive(Deserialize)]
struct Annotations {
    #[serde(rename = "io.kubernetes.cri.container-type")]
    container_type: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-id")]
    sandbox_id: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-name")]
    sandbox_name: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-namespace")]
    sandbox_namespace: Option<String>,
    #[serde(rename = "io.kubernetes.cri.container-name")]
    container_name: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-log-directory")]
    log_folder: Option<String>,
}

/// Reads the names in a bundle's `config.json`.
pub fn parse_config(text: &[u8]) -> Result<Names, String> {
    let config: Config = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let Some(annotations) = config.annotations else { return Ok(Names::default()) };
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let sandbox = annotations.container_type.as_deref() == Some("sandbox");
    let (mut pod, mut namespace) = (some(annotations.sandbox_name), some(annotations.sandbox_namespace));
    // containerd 1.4 writes no names. The folder of the pod's logs, which the kubelet chooses, is on every sandbox.
    if let (None, None, Some(folder)) = (&pod, &namespace, &annotations.log_folder)
        && let Some((in_folder, name)) = pod_of_log_folder(folder)
    {
        (pod, namespace) = (Some(name), Some(in_folder));
    }
    Ok(Names {
        sandbox,
        sandbox_id: annotations.sandbox_id.as_deref().and_then(|id| container_id(id.as_bytes())),
        pod,
        namespace,
        container: some(annotations.container_name).filter(|_| !sandbox),
    })
}

/// Namespace and name in `…/pods/<namespace>_<name>_<uid>`, the kubelet's format since 1.14. None of the three can
/// hold an underscore, so anything with another number of parts is something else.
fn pod_of_log_folder(folder: &str) -> Option<(String, String)> {
    let path = Path::new(folder);
    if path.parent()?.file_name()? != "pods" {
        return None;
    }
    let parts: Vec<&str> = path.file_name()?.to_str()?.split('_').collect();
    match parts.as_slice() {
        [namespace, name, uid] if ![namespace, name, uid].iter().any(|part| part.is_empty()) => {
            Some(((*namespace).to_owned(), (*name).to_owned()))
        }
        _ => None,
    }
}

/// The folder with all bundles of one namespace, open. Held only while it is looked at.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
}

/// Flags for everything opened here: nothing waits for a peer, and no access time is written.
const OPEN: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOATIME)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOFOLLOW);

impl Folder {
    /// Opens the folder that the bundle of this shim lies in, by way of the shim's working directory: no other file
    /// system is walked through, and it works from inside a container too. Fails when the shim has another bundle.
    pub fn of_shim(pid: u32, bundle: &BundleId) -> Result<Folder, ReadError> {
        let path = format!("/proc/{pid}/cwd");
        let error = |e: io::Error| ReadError::new(&path, e);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let cwd = rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| error(e.into()))?;
        // Asked of the open folder: the pid may belong to somebody else by now.
        let seen = without_deleted(path_of(&cwd).map_err(error)?);
        if seen != bundle.path() {
            let words = format!("{} instead of {}", seen.display(), bundle.path().display());
            return Err(ReadError::malformed(path, words));
        }
        let fd = rustix::fs::openat(&cwd, "..", OPEN | OFlags::DIRECTORY, Mode::empty())
            .map_err(|e| error(e.into()))?;
        let parent = path_of(&fd).map_err(error)?;
        if Some(parent.as_path()) != bundle.path().parent() {
            return Err(ReadError::malformed(path, format!("its parent is {}", parent.display())));
        }
        Ok(Folder { fd })
    }

    /// Ids of the bundles in it, at most `limit` of them.
    pub fn ids(&self, limit: usize) -> io::Result<Vec<String>> {
        let mut ids = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            let entry = entry?;
            if let Some(id) = entry.file_name().to_str().ok().filter(|name| is_identifier(name)) {
                ids.push(id.to_owned());
                if ids.len() == limit {
                    break;
                }
            }
        }
        Ok(ids)
    }

    /// The names in the bundle of this id.
    pub fn names(&self, id: &str) -> Result<Names, ReadError> {
        let what = format!("{id}/config.json");
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_XDEV
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS;
        let file = rustix::fs::openat2(&self.fd, what.as_str(), OPEN, Mode::empty(), resolve)
            .map_err(|e| ReadError::new(&what, e))?;
        let text = read_open(File::from(file), LARGEST_CONFIG).map_err(|e| ReadError::new(&what, e))?;
        parse_config(&text).map_err(|e| ReadError::malformed(what, e))
    }
}

/// The path of an open folder, as the kernel shows it.
fn path_of(folder: impl AsFd) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::process::{Child, Command, Stdio};

    const ID: &str = "bb3b311a34072532d5d8ca35d9c847bde1e67dcec899ebb61db8b0ad3d70d576";

    #[test]
    fn paths_of_bundles() {
        let rootfs = format!("/run/containerd/{TASKS}/k8s.io/{ID}/rootfs");
        let bundle = BundleId::of_path(Path::new(&rootfs)).unwrap();
        assert_eq!(bundle.state, Path::new("/run/containerd"));
        assert_eq!((bundle.namespace.as_str(), bundle.id.as_str()), ("k8s.io", ID));
        assert_eq!(bundle.rootfs(), Path::new(&rootfs));
        assert_eq!(BundleId::of_path(&bundle.path()), Some(bundle.clone()));
        // The kernel writes a trailing slash nowhere, callers may.
        assert_eq!(BundleId::of_path(Path::new(&format!("{rootfs}/"))), Some(bundle));
        let other = BundleId::of_path(Path::new(&format!("/tmp/a b/{TASKS}/default/demo1"))).unwrap();
        assert_eq!((other.state.as_path(), other.id.as_str()), (Path::new("/tmp/a b"), "demo1"));
    }

    #[test]
    fn paths_that_are_no_bundles() {
        let wrong = [
            format!("/run/containerd/{TASKS}/k8s.io/{ID}/rootfs/proc"),
            format!("/run/containerd/{TASKS}/k8s.io"),
            format!("/run/containerd/{TASKS}/k8s.io/.{ID}"),
            format!("/run/containerd/{TASKS}/k8s.io/a\u{7f}b/rootfs"),
            format!("/run/containerd/{TASKS}/k8s.io/../rootfs"),
            format!("run/containerd/{TASKS}/k8s.io/{ID}"),
            format!("/run/containerd/io.containerd.runtime.v1.linux/k8s.io/{ID}/rootfs"),
            "/".into(),
            "rootfs".into(),
        ];
        for path in wrong {
            assert_eq!(BundleId::of_path(Path::new(&path)), None, "{path}");
        }
    }

    #[test]
    fn names_of_a_container_and_a_sandbox() {
        let text = format!(
            r#"{{"ociVersion":"1.0.2","process":{{"args":["x"]}},"annotations":{{
                "io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"{ID}",
                "io.kubernetes.cri.sandbox-name":"web-0","io.kubernetes.cri.sandbox-namespace":"shop",
                "io.kubernetes.cri.container-name":"nginx","io.kubernetes.cri.image-name":"x"}}}}"#
        );
        let names = parse_config(text.as_bytes()).unwrap();
        let expected = Names {
            sandbox: false,
            sandbox_id: Some(ID.into()),
            pod: Some("web-0".into()),
            namespace: Some("shop".into()),
            container: Some("nginx".into()),
        };
        assert_eq!(names, expected);
        // containerd 1.4: only the log folder tells.
        let text = br#"{"annotations":{"io.kubernetes.cri.container-type":"sandbox",
            "io.kubernetes.cri.sandbox-log-directory":"/var/log/pods/kube-system_dns-x_0f2b-1"}}"#;
        let names = parse_config(text).unwrap();
        assert!(names.sandbox && names.sandbox_id.is_none());
        assert_eq!((names.namespace.as_deref(), names.pod.as_deref()), (Some("kube-system"), Some("dns-x")));
        assert_eq!(names.container, None);
    }

    #[test]
    fn what_is_not_sure_is_not_named() {
        for folder in
            ["/var/log/pods/0f2b", "/var/log/pods/a_b_c_d", "/var/log/other/a_b_c", "a_b_c", "/pods/__"]
        {
            assert_eq!(pod_of_log_folder(folder), None, "{folder}");
        }
        assert_eq!(parse_config(br#"{"annotations":null}"#), Ok(Names::default()));
        assert_eq!(parse_config(br#"{"ociVersion":"1"}"#), Ok(Names::default()));
        let odd_id = br#"{"annotations":{"io.kubernetes.cri.sandbox-id":"../../x"}}"#;
        assert_eq!(parse_config(odd_id), Ok(Names::default()));
        for broken in [
            &b""[..],
            b"{\"annotations\":{",
            b"[1]",
            b"{\"annotations\":{\"io.kubernetes.cri.sandbox-name\":7}}",
        ] {
            assert!(parse_config(broken).is_err());
        }
    }

    proptest! {
        #[test]
        fn parsers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,80}") {
            let _ = (parse_config(&bytes), pod_of_log_folder(&text), BundleId::of_path(Path::new(&text)));
            let _ = BundleId::of_path(Path::new(std::ffi::OsStr::from_bytes(&bytes)));
        }

        #[test]
        fn a_bundle_is_its_path(id in "[a-zA-Z0-9]{1,64}", namespace in "[a-z0-9]{1,8}", state in "(/[a-z ]{1,6}){0,3}") {
            let bundle = BundleId { state: format!("/r{state}").into(), namespace, id };
            prop_assert_eq!(BundleId::of_path(&bundle.rootfs()), Some(bundle.clone()));
            prop_assert_eq!(BundleId::of_path(&bundle.path()), Some(bundle));
        }
    }

    /// A state folder and a process that sits in a bundle of it, as a shim does.
    pub(crate) struct State {
        pub root: PathBuf,
        pub shim: Child,
    }

    impl State {
        pub(crate) fn new(name: &str, sandbox: &str) -> State {
            let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
            let root = folder.join(format!("state-{name}-{}", std::process::id()));
            let state = BundleId { state: root.clone(), namespace: "k8s.io".into(), id: sandbox.into() };
            fs::create_dir_all(state.path()).unwrap();
            let shim = Command::new("cat").current_dir(state.path()).stdin(Stdio::piped()).spawn().unwrap();
            State { root, shim }
        }

        pub(crate) fn bundle(&self, id: &str) -> BundleId {
            BundleId { state: self.root.clone(), namespace: "k8s.io".into(), id: id.into() }
        }

        pub(crate) fn write_config(&self, id: &str, text: &str) {
            fs::create_dir_all(self.bundle(id).path()).unwrap();
            fs::write(self.bundle(id).path().join("config.json"), text).unwrap();
        }
    }

    impl Drop for State {
        fn drop(&mut self) {
            drop(self.shim.stdin.take());
            let _ = self.shim.wait();
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    #[test]
    fn a_folder_is_found_by_its_shim_and_nothing_outside_is_read() {
        let state = State::new("folder", ID);
        let pid = state.shim.id();
        let bundle = of_shim(pid).unwrap();
        assert_eq!(bundle, state.bundle(ID));
        state.write_config(ID, r#"{"annotations":{"io.kubernetes.cri.container-type":"sandbox"}}"#);
        state.write_config("linked", "{}");
        state.write_config(".deleting", "{}");
        let config = state.bundle("linked").path().join("config.json");
        fs::remove_file(&config).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &config).unwrap();
        state.write_config("large", &" ".repeat(LARGEST_CONFIG + 1));

        let folder = Folder::of_shim(pid, &bundle).unwrap();
        let mut ids = folder.ids(100).unwrap();
        ids.sort();
        assert_eq!(ids, [ID, "large", "linked"]);
        assert_eq!(folder.ids(2).unwrap().len(), 2);
        assert!(folder.names(ID).unwrap().sandbox);
        let link = folder.names("linked").unwrap_err();
        assert_eq!(link.why.raw_os_error(), Some(libc::ELOOP), "{link}");
        assert!(folder.names("large").unwrap_err().to_string().contains("larger than"));
        assert!(folder.names("missing").unwrap_err().is_gone());
        let outside = folder.names("../..").unwrap_err();
        assert_eq!(outside.why.raw_os_error(), Some(libc::EXDEV), "{outside}");
        assert!(Folder::of_shim(pid, &state.bundle("linked")).is_err());

        // The shim's own bundle is removed: the folder is still found through it.
        fs::remove_dir_all(bundle.path()).unwrap();
        assert_eq!(of_shim(pid).unwrap(), bundle);
        assert_eq!(Folder::of_shim(pid, &bundle).unwrap().ids(100).unwrap().len(), 2);
    }

    #[test]
    fn a_process_elsewhere_is_no_shim() {
        let error = of_shim(std::process::id()).unwrap_err();
        assert!(error.to_string().contains("is no bundle of runtime v2"), "{error}");
    }
}
