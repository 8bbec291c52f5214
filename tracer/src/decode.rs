//! From the kernel half's records to typed operations. Pure.

use crate::event::{Actor, Began, Device, Kind, Operation, Outcome, SeenBy};
use tracer_common::op::{Key, Op, Wait, flag, kind};

/// Number of a kind in the kernel half.
pub const fn number_of(of: Kind) -> u32 {
    match of {
        Kind::Relist => kind::RELIST,
        Kind::CriClient => kind::CRI_CLIENT,
        Kind::CriCall => kind::CRI_CALL,
        Kind::StatusUpdate => kind::STATUS_UPDATE,
        Kind::ExitHandling => kind::EXIT_HANDLING,
        Kind::ShimCall => kind::SHIM_CALL,
        Kind::ShimServe => kind::SHIM_SERVE,
        Kind::InitMethod => kind::INIT_METHOD,
        Kind::LockWait => kind::LOCK_WAIT,
        Kind::LockHold => kind::LOCK_HOLD,
        Kind::Unmount => kind::UNMOUNT,
        Kind::SuperShutdown => kind::SUPER_SHUTDOWN,
        Kind::Sync => kind::SYNC,
        // Never recorded: it is seen in /proc.
        Kind::Stalled => 0,
    }
}

/// Kind of a key; `None` for a number that this version does not know.
pub fn kind_of(key: &Key) -> Option<Kind> {
    Kind::RECORDED.into_iter().find(|k| number_of(*k) == key.what & 0xff)
}

/// Method number of a key.
pub fn method_of(key: &Key) -> u8 {
    (key.what >> 8) as u8
}

/// A lock wait or hold.
pub fn wait(wait: &Wait) -> Option<Operation> {
    let kind = kind_of(&wait.key)?;
    Some(Operation {
        kind,
        method: String::new(),
        actor: goroutine(wait.key.tgid, wait.tid, wait.key.actor, wait.goid),
        begin: wait.begin,
        object: wait.object,
        container: None,
        path: None,
        device: None,
        fs_type: None,
        began: Began::Then,
        seen_by: SeenBy::Uprobe,
    })
}

/// Any other operation. `method` gives the name for a method number of the catalogue.
pub fn op(op: &Op, method: impl Fn(Kind, u8) -> &'static str) -> Option<Operation> {
    let kind = kind_of(&op.key)?;
    let text = lossy(&op.text, op.text_len);
    let name = lossy(&op.name, op.name_len);
    let by_name = kind == Kind::ShimCall && !name.is_empty();
    let block = matches!(kind, Kind::Sync | Kind::SuperShutdown);
    let path =
        (kind == Kind::Unmount && op.text_len > 0 && op.flags & flag::NO_TEXT == 0).then(|| text.clone());
    Some(Operation {
        kind,
        method: if by_name { name.clone() } else { method(kind, method_of(&op.key)).to_owned() },
        actor: goroutine(op.key.tgid, op.tid, op.g, op.goid),
        begin: op.begin,
        object: op.object,
        container: if kind == Kind::Unmount { container_of_path(&text) } else { container_id(&text) },
        path,
        device: (block && op.dev != 0).then_some(device(op.dev)),
        fs_type: (block && !name.is_empty()).then_some(name),
        began: Began::Then,
        seen_by: match op.flags {
            f if f & flag::FENTRY != 0 => SeenBy::Fentry,
            f if f & flag::KPROBE != 0 => SeenBy::Kprobe,
            f if f & flag::TRACEPOINT != 0 => SeenBy::Tracepoint,
            _ => SeenBy::Uprobe,
        },
    })
}

/// How an operation ended. Only an unmount's error is a number; behind other errors a word may look like one.
pub fn outcome(op: &Op) -> Outcome {
    let number = op.flags & flag::ERRNO != 0 && op.key.what & 0xff == kind::UNMOUNT;
    match (number, op.flags & flag::FAILED != 0) {
        (true, _) => Outcome::Errno(op.errno as i32),
        (false, true) => Outcome::Error,
        (false, false) => Outcome::Done,
    }
}

/// Kernel device number (`MINORBITS` is 20, include/linux/kdev_t.h).
fn device(dev: u32) -> Device {
    Device { major: dev >> 20, minor: dev & 0xf_ffff }
}

fn goroutine(pid: u32, tid: u32, g: u64, goid: u64) -> Actor {
    Actor { pid, tid, g: (g != 0).then_some(g), goid: (goid != 0).then_some(goid) }
}

fn lossy(bytes: &[u8], len: u32) -> String {
    String::from_utf8_lossy(bytes.get(..len as usize).unwrap_or(bytes)).into_owned()
}

/// A container or sandbox id: exactly 64 hex digits, or the folder before `/status` in a status file's path
/// (`…/containers/<id>/status`). Anything else is not an id: a wrong offset must not become a name.
pub fn container_id(text: &str) -> Option<String> {
    let candidate = match text.strip_suffix("/status") {
        Some(folder) => folder.rsplit('/').next()?,
        None => text,
    };
    is_container_id(candidate.as_bytes()).then(|| candidate.to_owned())
}

/// The container or sandbox whose mount an unmount is about: its rootfs
/// (`…/io.containerd.runtime.v2.task/<namespace>/<id>/rootfs`), or something of CRI's own folder
/// (`…/io.containerd.grpc.v1.cri/sandboxes/<id>/shm`). Other paths have folders of 64 hex digits too, Docker's layers for
/// one, and those are nobody's id.
fn container_of_path(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').collect();
    let id = parts.windows(4).find_map(|w| match w {
        [runtime, _, id, "rootfs"] if runtime.starts_with("io.containerd.runtime.") => Some(*id),
        [cri, "sandboxes" | "containers", id, _] if cri.starts_with("io.containerd.grpc.") => Some(*id),
        _ => None,
    })?;
    is_container_id(id.as_bytes()).then(|| id.to_owned())
}

/// Whether this is a container id as CRI makes them: exactly 64 lower-case hex digits.
pub fn is_container_id(bytes: &[u8]) -> bool {
    bytes.len() == 64 && bytes.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracer_common::op::{NAME, TEXT};

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn raw(kind: u32, text: &str, name: &str) -> Op {
        let mut op = Op {
            key: Key { tgid: 7, what: kind | 3 << 8, actor: 0xc000_0000, object: 0 },
            begin: 5,
            end: 0,
            g: 0xc000_0000,
            goid: 42,
            object: 9,
            tid: 8,
            flags: flag::GOROUTINE,
            dev: 7 << 20 | 3,
            errno: 0,
            text_len: text.len() as u32,
            name_len: name.len() as u32,
            text: [0; TEXT],
            name: [0; NAME],
        };
        op.text[..text.len()].copy_from_slice(text.as_bytes());
        op.name[..name.len()].copy_from_slice(name.as_bytes());
        op
    }

    #[test]
    fn only_an_id_becomes_a_name() {
        assert_eq!(container_id(ID).as_deref(), Some(ID));
        assert_eq!(container_id(&format!("/x/containers/{ID}/status")).as_deref(), Some(ID));
        assert_eq!(container_id(&ID[1..]), None);
        assert_eq!(container_id(&ID.to_uppercase()), None);
        assert_eq!(container_id("/x/containers/status"), None);
    }

    #[test]
    fn an_unmount_is_named_by_its_path() {
        let path = format!("/run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/rootfs");
        let got = op(&raw(kind::UNMOUNT, &path, ""), |_, _| "").unwrap();
        assert_eq!((got.path.as_deref(), got.container.as_deref()), (Some(path.as_str()), Some(ID)));
        assert_eq!((got.device, got.actor.goid, got.actor.tid), (None, Some(42), 8));
    }

    #[test]
    fn only_paths_of_containerd_name_a_container() {
        let named = |path: &str| container_of_path(&path.replace("ID", ID));
        for path in [
            "/run/containerd/io.containerd.runtime.v2.task/k8s.io/ID/rootfs",
            "ut/off/io.containerd.runtime.v2.task/k8s.io/ID/rootfs",
            "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/ID/shm",
        ] {
            assert_eq!(named(path).as_deref(), Some(ID), "{path}");
        }
        for path in [
            "/var/lib/docker/overlay2/ID/merged",
            "/var/lib/containers/storage/overlay/ID/merged",
            "/run/containerd/io.containerd.runtime.v2.task/k8s.io/web/rootfs",
            "/mnt/ID",
            "",
        ] {
            assert_eq!(named(path), None, "{path}");
        }
    }

    #[test]
    fn a_sync_has_device_and_type_and_a_shim_call_its_method() {
        let sync = op(&raw(kind::SYNC, "", "ext4"), |_, _| "").unwrap();
        assert_eq!(
            (sync.device, sync.fs_type.as_deref()),
            (Some(Device { major: 7, minor: 3 }), Some("ext4"))
        );
        let call = op(&raw(kind::SHIM_CALL, ID, "Update"), |_, _| "no").unwrap();
        assert_eq!((call.method.as_str(), call.container.as_deref()), ("Update", Some(ID)));
        let cri = op(&raw(kind::CRI_CALL, "", ""), |kind, number| {
            assert_eq!((kind, number), (Kind::CriCall, 3));
            "ListContainers"
        });
        assert_eq!(cri.unwrap().method, "ListContainers");
    }

    #[test]
    fn only_an_unmount_fails_with_an_errno() {
        let failed = |kind, flags| outcome(&Op { flags, errno: 16, ..raw(kind, "", "") });
        assert_eq!(failed(kind::UNMOUNT, flag::ERRNO | flag::FAILED), Outcome::Errno(16));
        assert_eq!(failed(kind::CRI_CALL, flag::ERRNO | flag::FAILED), Outcome::Error);
        assert_eq!(failed(kind::EXIT_HANDLING, flag::FAILED), Outcome::Error);
        assert_eq!(failed(kind::EXIT_HANDLING, 0), Outcome::Done);
    }

    #[test]
    fn numbers_and_kinds_agree() {
        for kind in Kind::RECORDED {
            assert_eq!(kind_of(&Key { what: number_of(kind) | 5 << 8, ..Key::default() }), Some(kind));
        }
        assert_eq!(kind_of(&Key::default()), None);
    }
}
