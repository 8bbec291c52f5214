//! The confidence table: what an edge may rest on, and how sure that makes it. `docs/wait-graph.md` holds the same
//! table, and a test compares the two.

use super::frame::{Confidence, EdgeKind};

/// What an edge, or the lack of one, rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ground {
    /// Both operations carry the same `g`, the second began within the first.
    SameGoroutine,
    /// Both are kernel operations of one thread, the second began within the first.
    SameThread,
    /// The Go operation is an unmount and so pins the thread that the kernel operation runs on.
    PinnedThread,
    /// The Go operation began on this thread, and the path of the unmount names its container.
    ThreadAndContainer,
    /// The Go operation began on this thread; goroutines may move, so that is not proof.
    ThreadAtBegin,
    /// The path of the unmount names the container of the only operation in that process that may unmount it.
    PathNamesContainer,
    /// The only operation on this lock base that does not wait for it.
    SoleOnLock,
    /// The same, but its own wait could have been lost.
    SoleOnLockLossy,
    /// The same, but it got the lock so lately that a renewed wait could not have been reported yet.
    SoleOnLockFresh,
    /// A writer that has asked for the lock before and waits for readers to leave: it blocks all that come after.
    PendingWriter,
    /// The same, found by looking at the stacks of all goroutines of the process.
    SoleOnLockFound,
    /// Two or more operations on this lock base do not wait for it.
    SeveralOnLock,
    /// No operation on this lock base, other than those that wait, is known.
    NobodyOnLock,
    /// The writer waits for readers to leave; who reads is never recorded.
    ReadersHold,
    /// The semaphore may belong to two locks that are in use, or to none that is known.
    UnknownLock,
    /// Somebody has released the lock to this waiter, which has not run yet.
    Woken,
    /// Same container id and method on both sides, and no other such call is in flight.
    SameContainerAndMethod,
    /// Same container id and method on both sides, chosen among several by order.
    SameContainerByOrder,
    /// Same shim and method; one side does not tell the container.
    SameShimAndMethod,
    /// Between kubelet and containerd: the only call of this method in flight on either side.
    SoleCallOfMethod,
    /// The same, where one of them was found in progress: which began first is not known.
    SoleCallFound,
    /// Between kubelet and containerd: same method, chosen among several by order.
    CallByOrder,
    /// The kubelet's client side is not recorded: the list call in containerd that began within the relist.
    ListWithinRelist,
    /// Both sync the same super block; by its kernel stack, which is a moment old, the one waits for the lock, and the other does
    /// not.
    TurnOnSuperBlock,
    /// Both work on the same super block, this one began earlier.
    EarlierOnSuperBlock,
    /// Both sync the same device, this one began earlier.
    EarlierOnDevice,
    /// containerd gave up an attempt to handle an exit; the shim goes on with the Delete that the attempt asked for, and no
    /// later attempt can get past it.
    RemovalGoesOn,
    /// containerd has one goroutine that retries exits, and it is at another.
    RetriedInTurn,
    /// The process stands still: frozen, stopped, or held by a tracer.
    StandsStill,
    /// The process gets less CPU or memory than it needs.
    Starves,
    /// The call was not begun by its server, which stands still.
    ServerStandsStill,
    /// The call was not begun by its server, which is starved.
    ServerStarves,
}

impl Ground {
    /// All, in the order of the table.
    pub const ALL: [Ground; 32] = [
        Ground::SameGoroutine,
        Ground::SameThread,
        Ground::PinnedThread,
        Ground::ThreadAndContainer,
        Ground::ThreadAtBegin,
        Ground::PathNamesContainer,
        Ground::SoleOnLock,
        Ground::SoleOnLockLossy,
        Ground::SoleOnLockFresh,
        Ground::PendingWriter,
        Ground::SoleOnLockFound,
        Ground::SeveralOnLock,
        Ground::NobodyOnLock,
        Ground::ReadersHold,
        Ground::UnknownLock,
        Ground::Woken,
        Ground::SameContainerAndMethod,
        Ground::SameContainerByOrder,
        Ground::SameShimAndMethod,
        Ground::SoleCallOfMethod,
        Ground::SoleCallFound,
        Ground::CallByOrder,
        Ground::ListWithinRelist,
        Ground::TurnOnSuperBlock,
        Ground::EarlierOnSuperBlock,
        Ground::EarlierOnDevice,
        Ground::RemovalGoesOn,
        Ground::RetriedInTurn,
        Ground::StandsStill,
        Ground::Starves,
        Ground::ServerStandsStill,
        Ground::ServerStarves,
    ];

    /// The kind of edge it is about.
    pub fn edge(self) -> EdgeKind {
        match self {
            Ground::SameGoroutine
            | Ground::SameThread
            | Ground::PinnedThread
            | Ground::ThreadAndContainer
            | Ground::ThreadAtBegin
            | Ground::PathNamesContainer => EdgeKind::Contains,
            Ground::SoleOnLock
            | Ground::SoleOnLockLossy
            | Ground::SoleOnLockFresh
            | Ground::PendingWriter
            | Ground::SoleOnLockFound
            | Ground::SeveralOnLock
            | Ground::NobodyOnLock
            | Ground::ReadersHold
            | Ground::UnknownLock
            | Ground::Woken => EdgeKind::WaitsForHolder,
            Ground::SameContainerAndMethod
            | Ground::SameContainerByOrder
            | Ground::SameShimAndMethod
            | Ground::SoleCallOfMethod
            | Ground::SoleCallFound
            | Ground::CallByOrder
            | Ground::ListWithinRelist
            | Ground::RemovalGoesOn
            | Ground::ServerStandsStill
            | Ground::ServerStarves => EdgeKind::Calls,
            Ground::TurnOnSuperBlock | Ground::EarlierOnSuperBlock => EdgeKind::SameSuperBlock,
            Ground::EarlierOnDevice => EdgeKind::SameDevice,
            Ground::RetriedInTurn => EdgeKind::Behind,
            Ground::StandsStill | Ground::Starves => EdgeKind::RunsIn,
        }
    }

    /// How sure it makes the edge, when both operations were confirmed since records were last lost.
    pub fn confidence(self) -> Confidence {
        match self {
            Ground::SameGoroutine
            | Ground::SameThread
            | Ground::PinnedThread
            | Ground::ThreadAndContainer
            | Ground::SoleOnLock
            | Ground::PendingWriter
            | Ground::SameContainerAndMethod
            | Ground::SoleCallOfMethod
            | Ground::StandsStill => Confidence::Proven,
            Ground::ThreadAtBegin
            | Ground::PathNamesContainer
            | Ground::SoleOnLockLossy
            | Ground::SoleOnLockFresh
            | Ground::SoleOnLockFound
            | Ground::SoleCallFound
            | Ground::SameContainerByOrder
            | Ground::SameShimAndMethod
            | Ground::CallByOrder
            | Ground::ListWithinRelist
            | Ground::TurnOnSuperBlock
            | Ground::EarlierOnSuperBlock
            | Ground::EarlierOnDevice
            | Ground::RemovalGoesOn
            | Ground::RetriedInTurn
            | Ground::Starves
            | Ground::ServerStandsStill
            | Ground::ServerStarves => Confidence::Inferred,
            Ground::SeveralOnLock
            | Ground::NobodyOnLock
            | Ground::ReadersHold
            | Ground::UnknownLock
            | Ground::Woken => Confidence::NotVisible,
        }
    }

    /// What is said to the user.
    pub fn words(self) -> &'static str {
        match self {
            Ground::SameGoroutine => "same goroutine",
            Ground::SameThread => "same thread",
            Ground::PinnedThread => "same thread, held in its system call",
            Ground::ThreadAndContainer => "same thread, and the path names the container",
            Ground::ThreadAtBegin => "it began on the same thread",
            Ground::PathNamesContainer => "the path names the container",
            Ground::SoleOnLock => "the only operation on this lock that does not wait for it",
            Ground::SoleOnLockLossy => "the only operation seen on this lock, but records were lost",
            Ground::SoleOnLockFresh => "the only operation seen on this lock, it got it just now",
            Ground::PendingWriter => "it asked for the write lock before and waits for readers to leave",
            Ground::SoleOnLockFound => {
                "the only goroutine whose stack is in an operation on this lock and does not wait for it"
            }
            Ground::SeveralOnLock => "several operations may hold this lock",
            Ground::NobodyOnLock => "no operation that may hold this lock was seen",
            Ground::ReadersHold => "readers hold it, and who reads is not recorded",
            Ground::UnknownLock => "it is not known whose lock this is",
            Ground::Woken => "the lock was handed to it, it has not run yet",
            Ground::SameContainerAndMethod => "same container and method on both sides",
            Ground::SameContainerByOrder => "same container and method, chosen by order",
            Ground::SameShimAndMethod => "same shim and method",
            Ground::SoleCallOfMethod => "the only call of this method in flight",
            Ground::SoleCallFound => "the only call of this method found in progress",
            Ground::CallByOrder => "same method, chosen by order",
            Ground::ListWithinRelist => {
                "a list call that began within the relist; the kubelet's side is not recorded"
            }
            Ground::TurnOnSuperBlock => {
                "by its kernel stack it waits for s_sync_lock of this super block, and that one does not"
            }
            Ground::EarlierOnSuperBlock => "same super block, it began earlier",
            Ground::EarlierOnDevice => "same device, it began earlier",
            Ground::RemovalGoesOn => {
                "an attempt was given up, and the shim goes on with the Delete that it asked for"
            }
            Ground::RetriedInTurn => "exits are retried one after the other, and it is this one's turn",
            Ground::StandsStill => "its process does not run",
            Ground::Starves => "its process gets less than it needs",
            Ground::ServerStandsStill => "it was not begun there, and that process does not run",
            Ground::ServerStarves => "it was not begun there, and that process gets less than it needs",
        }
    }
}

/// What is said of an edge that would be proven if records had not been lost since its operations were last confirmed.
pub const LOSSY: &str = "; records were lost since";

/// How users read an edge kind; the reason is theirs, the noun is ours.
pub fn edge_word(kind: EdgeKind) -> &'static str {
    match kind {
        EdgeKind::Contains => "contains",
        EdgeKind::WaitsForHolder => "waits for holder",
        EdgeKind::Calls => "calls",
        EdgeKind::SameSuperBlock => "same super block",
        EdgeKind::SameDevice => "same device",
        EdgeKind::Behind => "behind",
        EdgeKind::RunsIn => "runs in",
    }
}

/// How users read a confidence.
pub fn confidence_word(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::Proven => "proven",
        Confidence::Inferred => "inferred",
        Confidence::NotVisible => "not visible",
    }
}

/// The confidence table as it stands in `docs/wait-graph.md`.
pub fn table() -> String {
    let mut out = String::from("| edge | rests on | confidence |\n|---|---|---|\n");
    for ground in Ground::ALL {
        out.push_str(&format!(
            "| {} | {} | {} |\n",
            edge_word(ground.edge()),
            ground.words(),
            confidence_word(ground.confidence())
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_holds_the_same_table() {
        let doc = include_str!("../../../docs/wait-graph.md");
        let expected = table();
        assert!(doc.contains(&expected), "docs/wait-graph.md must contain:\n{expected}");
    }

    #[test]
    fn the_table_is_complete_and_consistent() {
        let mut words: Vec<&str> = Ground::ALL.iter().map(|g| g.words()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Ground::ALL.len(), "two grounds say the same");
        // What is chosen by order, or stands on something earlier, is never proven.
        for ground in Ground::ALL {
            if matches!(ground.edge(), EdgeKind::SameSuperBlock | EdgeKind::SameDevice | EdgeKind::Behind) {
                assert_eq!(ground.confidence(), Confidence::Inferred);
            }
        }
    }
}
