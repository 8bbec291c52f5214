//! Whose lock is it? The address of a contended lock leads to the container it belongs to.
//!
//! In containerd the Status lock is the first field of `statusStorage` (a `sync.RWMutex`, 24 bytes), followed by the
//! path of the status file. In a shim `Init.mu` (a `sync.Mutex`, 8 bytes) lies 0x20 into `process.Init`, and the id at
//! 0x40. Both hold for containerd 1.4 to 2.1 (disassembled) and later (source).
//!
//! The answer is good only while an operation on that lock is in flight: afterwards the memory may hold something
//! else. The caller checks that the operation is still there after the reading, and forgets the answer with it.

use super::memory::Memory;
use crate::event::{LockName, Role};

/// Header of the path string, from the base of the lock.
const STATUS_PATH: u64 = 0x18;
/// Header of the id string, from the base of the lock: 0x40 in `process.Init`, whose lock is at 0x20.
const INIT_ID: u64 = 0x20;
/// Longest path the kernel takes.
const LONGEST_PATH: usize = 4096;
/// Hex digits of a container id that CRI makes.
const ID_LEN: usize = 64;

/// Names the lock whose base is at `base` in a process of this role. `None` unless the memory there holds exactly what
/// such a lock has beside it.
pub fn name(role: Role, memory: &impl Memory, base: u64) -> Option<LockName> {
    match role {
        Role::Containerd => {
            let path = memory.string(base.checked_add(STATUS_PATH)?, LONGEST_PATH).ok()?;
            id_in_status_path(&path).map(LockName::Status)
        }
        Role::Shim => {
            let id = memory.string(base.checked_add(INIT_ID)?, ID_LEN).ok()?;
            container_id(&id).map(LockName::Init)
        }
        Role::Kubelet | Role::Other => None,
    }
}

/// Whose lock a semaphore belongs to, and the lock's base: it lies 4, 8 or 12 bytes before, depending on which side waits.
pub fn of_semaphore(role: Role, memory: &impl Memory, semaphore: u64) -> Option<(u64, LockName)> {
    [4, 12, 8].into_iter().find_map(|before| {
        let base = semaphore.checked_sub(before)?;
        Some((base, name(role, memory, base)?))
    })
}

/// The id in `…/containers/<ID>/status`.
fn id_in_status_path(path: &[u8]) -> Option<String> {
    let mut parts = path.rsplit(|b| *b == b'/');
    let (file, id, folder) = (parts.next()?, parts.next()?, parts.next()?);
    let absolute = path.first() == Some(&b'/');
    (absolute && file == b"status" && folder == b"containers").then(|| container_id(id)).flatten()
}

/// The bytes as a container id, if they are exactly 64 lower-case hex digits.
pub fn container_id(bytes: &[u8]) -> Option<String> {
    crate::decode::is_container_id(bytes).then(|| String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::memory::Pieces;
    use proptest::prelude::*;

    const ID: &str = "bb3b311a34072532d5d8ca35d9c847bde1e67dcec899ebb61db8b0ad3d70d576";
    const BASE: u64 = 0xc000_4a20;
    const TEXT: u64 = 0xc000_9000;

    /// A lock at [`BASE`] with a string header behind it at `offset`.
    fn lock_with(offset: usize, text: &[u8]) -> Pieces {
        let mut object = vec![0u8; offset];
        object.extend_from_slice(&TEXT.to_le_bytes());
        object.extend_from_slice(&(text.len() as u64).to_le_bytes());
        Pieces(vec![(BASE, object), (TEXT, text.to_vec())])
    }

    fn status_path(id: &str) -> String {
        format!("/var/lib/containerd/io.containerd.grpc.v1.cri/containers/{id}/status")
    }

    #[test]
    fn a_status_lock_and_an_init_lock() {
        let memory = lock_with(0x18, status_path(ID).as_bytes());
        assert_eq!(name(Role::Containerd, &memory, BASE), Some(LockName::Status(ID.into())));
        assert_eq!(name(Role::Shim, &memory, BASE), None);
        let memory = lock_with(0x20, ID.as_bytes());
        assert_eq!(name(Role::Shim, &memory, BASE), Some(LockName::Init(ID.into())));
        assert_eq!(name(Role::Containerd, &memory, BASE), None);
        assert_eq!(name(Role::Kubelet, &memory, BASE), None);
    }

    #[test]
    fn almost_right_is_not_right() {
        let upper = ID.to_uppercase();
        let longer = format!("{ID}0");
        for id in [&ID[1..], &longer, &upper, "", "../etc"] {
            let memory = lock_with(0x18, status_path(id).as_bytes());
            assert_eq!(name(Role::Containerd, &memory, BASE), None, "{id}");
            assert_eq!(name(Role::Shim, &lock_with(0x20, id.as_bytes()), BASE), None, "{id}");
        }
        let sandbox = format!("/var/lib/containerd/sandboxes/{ID}/status");
        let other = format!("/var/lib/containerd/containers/{ID}/metadata");
        let relative = format!("containers/{ID}/status");
        for path in [sandbox, other, relative, ID.to_owned()] {
            assert_eq!(name(Role::Containerd, &lock_with(0x18, path.as_bytes()), BASE), None, "{path}");
        }
    }

    #[test]
    fn memory_that_cannot_be_read_gives_no_name() {
        let memory = Pieces(vec![]);
        assert_eq!(name(Role::Containerd, &memory, BASE), None);
        assert_eq!(name(Role::Shim, &memory, u64::MAX), None);
        // A header whose length is absurd is not followed.
        let mut object = vec![0u8; 0x18];
        object.extend_from_slice(&TEXT.to_le_bytes());
        object.extend_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(name(Role::Containerd, &Pieces(vec![(BASE, object)]), BASE), None);
    }

    proptest! {
        #[test]
        fn noise_is_never_named(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let memory = Pieces(vec![(BASE, noise)]);
            prop_assert_eq!(name(Role::Containerd, &memory, BASE), None);
            prop_assert_eq!(name(Role::Shim, &memory, BASE), None);
        }
    }
}
