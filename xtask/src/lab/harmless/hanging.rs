//! A file system that holds one program and stops answering when told to. It goes on reading requests, so whoever waits
//! for an answer cannot be killed until the connection is aborted: the worst a network file system can do.

use crate::lab::cleanup::{Ledger, Leftover};
use anyhow::{Context, Result};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request, SessionACL,
};
use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

/// How long the kernel may keep what it was told of a file: for the whole run.
const KEEP: Duration = Duration::from_secs(3600);
/// Number of the one file.
const PROGRAM: INodeNo = INodeNo(2);

/// The mounted file system.
pub struct Hanging {
    /// The program in it.
    pub program: PathBuf,
    folder: CString,
    hangs: Arc<AtomicBool>,
    waiting: Arc<AtomicUsize>,
    session: Option<fuser::BackgroundSession>,
}

struct OneFile {
    name: String,
    bytes: Vec<u8>,
    hangs: Arc<AtomicBool>,
    waiting: Arc<AtomicUsize>,
}

impl Hanging {
    /// Mounts it at `folder` with a copy of `program`.
    pub fn mount(ledger: &Ledger, program: &Path, folder: &Path) -> Result<Hanging> {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        ledger.record(Leftover::Mounts { below: folder.to_owned() })?;
        let name = program.file_name().context("a program without a name")?.to_string_lossy().into_owned();
        let bytes = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
        let (hangs, waiting) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let files = OneFile { name: name.clone(), bytes, hangs: hangs.clone(), waiting: waiting.clone() };
        let mut config = Config::default();
        config.mount_options =
            vec![MountOption::FSName("plegscope-lab".into()), MountOption::RO, MountOption::Exec];
        config.acl = SessionACL::All;
        let session = fuser::spawn_mount(files, folder, &config)
            .with_context(|| format!("mounting a FUSE file system at {}", folder.display()))?;
        let path = CString::new(folder.as_os_str().as_bytes()).context("path with a zero byte")?;
        Ok(Hanging { program: folder.join(name), folder: path, hangs, waiting, session: Some(session) })
    }

    /// From now on nothing is answered.
    pub fn hang(&self) {
        self.hangs.store(true, Ordering::SeqCst);
    }

    /// How many requests wait for an answer that will not come.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Ends the connection: all who wait get an error. What a forced unmount does first, also when somebody still uses the
    /// mount and it stays.
    pub fn abort(&self) {
        // SAFETY: a path that outlives the call.
        unsafe { libc::umount2(self.folder.as_ptr(), libc::MNT_FORCE) };
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.abort();
        // Its thread ends by itself now; the mount is the ledger's, as processes may still run from it.
        std::mem::forget(self.session.take());
    }
}

impl OneFile {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let folder = inode == INodeNo::ROOT;
        FileAttr {
            ino: inode,
            size: if folder { 0 } else { self.bytes.len() as u64 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if folder { FileType::Directory } else { FileType::RegularFile },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// The reply, or nothing when it hangs. A reply that is dropped is an error for the caller; one that is forgotten
    /// never comes.
    fn answers<Reply>(&self, reply: Reply) -> Option<Reply> {
        if self.hangs.load(Ordering::SeqCst) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            std::mem::forget(reply);
            None
        } else {
            Some(reply)
        }
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(reply) = self.answers(reply) else { return };
        if name.to_str() == Some(&self.name) {
            reply.entry(&KEEP, &self.attributes(PROGRAM), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let Some(reply) = self.answers(reply) else { return };
        reply.attr(&KEEP, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let Some(reply) = self.answers(reply) else { return };
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(reply) = self.answers(reply) else { return };
        let start = (offset as usize).min(self.bytes.len());
        let end = (start + size as usize).min(self.bytes.len());
        reply.data(&self.bytes[start..end]);
    }
}
