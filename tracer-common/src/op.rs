//! Operations in flight, as the kernel half remembers them.

/// What an operation is. The numbers are ABI: they index floors, histograms and statistics.
pub mod kind {
    /// `pleg.(*GenericPLEG).relist` in the kubelet.
    pub const RELIST: u32 = 1;
    /// A CRI call, client side.
    pub const CRI_CLIENT: u32 = 2;
    /// A CRI call, server side.
    pub const CRI_CALL: u32 = 3;
    /// `(*statusStorage).Update/UpdateSync` in containerd.
    pub const STATUS_UPDATE: u32 = 4;
    /// `handleContainerExit` in containerd.
    pub const EXIT_HANDLING: u32 = 5;
    /// `ttrpc.(*Client).Call` in containerd.
    pub const SHIM_CALL: u32 = 6;
    /// `(*service).X` in the shim.
    pub const SHIM_SERVE: u32 = 7;
    /// `process.(*Init).X` in the shim.
    pub const INIT_METHOD: u32 = 8;
    /// A goroutine in `runtime.semacquire1` for a `sync` lock.
    pub const LOCK_WAIT: u32 = 9;
    /// A goroutine between `sync.(*RWMutex).Lock` and `.Unlock`.
    pub const LOCK_HOLD: u32 = 10;
    /// An unmount.
    pub const UNMOUNT: u32 = 11;
    /// `generic_shutdown_super`.
    pub const SUPER_SHUTDOWN: u32 = 12;
    /// `sync_filesystem`.
    pub const SYNC: u32 = 13;
    /// plegscope's own function, which is probed at the start to find out what a hit costs. Never decoded.
    pub const MEASURED: u32 = 15;
    /// One more than the largest kind; a power of two.
    pub const LIMIT: u32 = 16;
}

/// Bits of [`Op::flags`].
pub mod flag {
    /// The actor is a goroutine: [`super::Op::g`] is its `g`.
    pub const GOROUTINE: u32 = 1;
    /// The call has returned without an error; the operation is over at [`super::Op::end`] unless `CLEANING` is set.
    pub const RETURNED: u32 = 2;
    /// `cleanup_mnt` runs on this thread.
    pub const CLEANING: u32 = 4;
    /// The kernel half cannot see the end of this operation; it is over when the unmount around it is.
    pub const ENDS_WITH_UNMOUNT: u32 = 8;
    /// The text is the end of a longer one.
    pub const TAIL: u32 = 16;
    /// The text should be there and could not be read.
    pub const NO_TEXT: u32 = 32;
    /// Seen by an fentry or fexit program.
    pub const FENTRY: u32 = 64;
    /// Seen by a kprobe or kretprobe program.
    pub const KPROBE: u32 = 128;
    /// Seen by a tracepoint program.
    pub const TRACEPOINT: u32 = 256;
    /// [`super::Op::errno`] is set.
    pub const ERRNO: u32 = 512;
    /// The operation returned a Go error.
    pub const FAILED: u32 = 1024;
}

/// Key of an operation in flight.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Process (thread group) id in the root pid namespace.
    pub tgid: u32,
    /// [`kind`] in the low 8 bits, method number in the next 8.
    pub what: u32,
    /// Address of the goroutine's `g`, or the thread id.
    pub actor: u64,
    /// Tells apart operations of one kind that one actor can nest: the lock's base for `LOCK_HOLD`, the super block
    /// for `SYNC` and `SUPER_SHUTDOWN`; else 0.
    pub object: u64,
}

/// A lock wait or hold: small, because contended locks are hot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// Its key; repeated so that a batch read needs only values.
    pub key: Key,
    /// When it began, CLOCK_MONOTONIC ns.
    pub begin: u64,
    /// The goroutine's number; 0 when it could not be read.
    pub goid: u64,
    /// The semaphore for a wait, the lock's base for a hold.
    pub object: u64,
    /// Thread id at the begin.
    pub tid: u32,
    /// [`flag`]s.
    pub flags: u32,
}

/// Capacity of [`Op::text`], a power of two so that the verifier can follow a mask.
pub const TEXT: usize = 256;
/// Capacity of [`Op::name`].
pub const NAME: usize = 16;

/// Any other operation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Its key; repeated so that a batch read needs only values.
    pub key: Key,
    /// When it began, CLOCK_MONOTONIC ns.
    pub begin: u64,
    /// When the call returned (`RETURNED`), CLOCK_MONOTONIC ns; else 0.
    pub end: u64,
    /// Address of `g` when the actor is known to be a goroutine; else 0.
    pub g: u64,
    /// The goroutine's number; 0 when it could not be read.
    pub goid: u64,
    /// The receiver or super block.
    pub object: u64,
    /// Thread id at the begin.
    pub tid: u32,
    /// [`flag`]s.
    pub flags: u32,
    /// Device number in the kernel's own form (major << 20 | minor); 0 when not known.
    pub dev: u32,
    /// errno, positive.
    pub errno: u32,
    /// Bytes of `text` in use.
    pub text_len: u32,
    /// Bytes of `name` in use.
    pub name_len: u32,
    /// Container id, status path or mount path.
    pub text: [u8; TEXT],
    /// ttrpc method or file-system type.
    pub name: [u8; NAME],
}

const _: () = {
    assert!(size_of::<Key>() == 24);
    assert!(size_of::<Wait>() == 56);
    assert!(core::mem::offset_of!(Wait, begin) == 24);
    assert!(core::mem::offset_of!(Wait, tid) == 48);
    assert!(size_of::<Op>() == 24 + 40 + 24 + TEXT + NAME);
    assert!(core::mem::offset_of!(Op, tid) == 64);
    assert!(core::mem::offset_of!(Op, text) == 88);
};
