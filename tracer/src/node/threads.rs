//! Where a thread sits: its state, its system call and its kernel stack, from files that do not wait for the thread.

use std::collections::BTreeMap;
use std::fs;

use super::procs::{parse_innermost_pid, parse_stat};
use super::{ReadError, number, read_file};
use crate::event::ThreadSite;

/// A kernel stack has at most 64 entries (`MAX_STACK_TRACE_DEPTH`), of less than 200 bytes each.
const SMALL: usize = 32 * 1024;

/// Where a thread sits, and what could not be seen of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// State, system call, kernel stack.
    pub site: ThreadSite,
    /// The kernel function it sleeps in (`wchan`): left when the stack is refused.
    pub wchan: Option<String>,
    /// Why the kernel stack is empty; `None` when it was read.
    pub stack_refused: Option<String>,
}

/// Looks at one thread. `syscall` and `stack` wait while that process is in the middle of an exec, so run it on a worker
/// ([`super::worker::Workers`]) where that matters. An error means that the thread is gone or that not even its state can be read.
pub fn look(pid: u32, tid: u32) -> Result<Site, ReadError> {
    let folder = format!("/proc/{pid}/task/{tid}");
    let read = |name: &str| read_file(&format!("{folder}/{name}"), SMALL);
    let call = read("syscall").unwrap_or_default();
    let text = read("stat")?;
    let stat = parse_stat(&text)
        .ok_or_else(|| ReadError::malformed(format!("{folder}/stat"), String::from_utf8_lossy(&text)))?;
    let (syscall, arguments) = (parse_syscall(&call), parse_arguments(&call));
    // The stack of a thread that runs would be that of its last sleep; and a kernel whose kretprobes are rethooks (6.1)
    // warns in its log, once, when it is asked for one that such a probe is on. So its state is read right before.
    let (kernel_stack, stack_refused) = match stat.state {
        'R' => (Vec::new(), Some("it runs".into())),
        _ => match read("stack") {
            Ok(text) => (parse_stack(&text), None),
            Err(e) => (Vec::new(), Some(e.to_string())),
        },
    };
    let wchan = read("wchan").ok().and_then(|text| parse_wchan(&text));
    let site = ThreadSite { pid, tid, state: stat.state, syscall, arguments, kernel_stack };
    Ok(Site { site, wchan, stack_refused })
}

/// Its state letter, and the system call that it is in; `None` where that cannot be told. A fraction of what [`look`] costs,
/// and waits for what that waits for.
pub fn call(pid: u32, tid: u32) -> Result<(char, Option<i64>), ReadError> {
    let folder = format!("/proc/{pid}/task/{tid}");
    let call = read_file(&format!("{folder}/syscall"), SMALL).unwrap_or_default();
    let text = read_file(&format!("{folder}/stat"), SMALL)?;
    let stat = parse_stat(&text)
        .ok_or_else(|| ReadError::malformed(format!("{folder}/stat"), String::from_utf8_lossy(&text)))?;
    Ok((stat.state, parse_syscall(&call)))
}

/// Its state letter alone, which waits for nothing; `None` when it is gone.
pub fn state(pid: u32, tid: u32) -> Option<char> {
    let text = read_file(&format!("/proc/{pid}/task/{tid}/stat"), SMALL).ok()?;
    Some(parse_stat(&text)?.state)
}

/// Thread ids of a process, at most `limit` of them.
pub fn of_process(pid: u32, limit: usize) -> Result<Vec<u32>, ReadError> {
    let path = format!("/proc/{pid}/task");
    let mut tids = Vec::new();
    for entry in fs::read_dir(&path).map_err(|e| ReadError::new(&path, e))?.take(limit) {
        let entry = entry.map_err(|e| ReadError::new(&path, e))?;
        if let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            tids.push(tid);
        }
    }
    Ok(tids)
}

/// The id that a thread has in its process's own pid namespace, which is the innermost one.
pub fn own_id(pid: u32, tid: u32) -> Option<u32> {
    parse_innermost_pid(&read_file(&format!("/proc/{pid}/task/{tid}/status"), SMALL).ok()?)
}

/// All threads of a process, at most `limit`, by their [`own_id`].
pub fn by_own_id(pid: u32, limit: usize) -> BTreeMap<u32, u32> {
    let tids = of_process(pid, limit).unwrap_or_default();
    tids.into_iter().filter_map(|tid| Some((own_id(pid, tid)?, tid))).collect()
}

/// The number of the system call in `/proc/TID/syscall`. None while it runs (`running`) and when it sleeps outside of a
/// system call (`-1`).
pub fn parse_syscall(text: &[u8]) -> Option<i64> {
    number::<i64>(text.trim_ascii().split(|b| *b == b' ').next()?).filter(|n| *n >= 0)
}

/// The six arguments in `/proc/TID/syscall`; none where it does not tell a system call.
pub fn parse_arguments(text: &[u8]) -> Vec<u64> {
    let hex = |word: &[u8]| u64::from_str_radix(std::str::from_utf8(word).ok()?.strip_prefix("0x")?, 16).ok();
    let words = text.trim_ascii().split(|b| *b == b' ').skip(1).take(6);
    let arguments: Vec<u64> = words.map_while(hex).collect();
    if parse_syscall(text).is_some() && arguments.len() == 6 { arguments } else { Vec::new() }
}

/// Function names in `/proc/TID/stack`, innermost first: from `[<0>] ovl_sync_fs+0x3e/0x60 [overlay]` comes
/// `ovl_sync_fs`. Entries without a symbol are left out.
pub fn parse_stack(text: &[u8]) -> Vec<String> {
    let names = text.split(|b| *b == b'\n').filter_map(|line| {
        let entry = line.split(|b| *b == b']').nth(1)?.trim_ascii();
        let name = std::str::from_utf8(entry.split(|b| *b == b'+').next()?).ok()?;
        let known = !name.is_empty() && !name.starts_with("0x") && !name.contains(' ');
        known.then(|| name.to_owned())
    });
    names.collect()
}

/// The function in `/proc/TID/wchan`; `0` means that it is not asleep or that the kernel does not say.
pub fn parse_wchan(text: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(text.trim_ascii()).ok()?;
    (!name.is_empty() && name != "0").then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::{Command, Stdio};

    /// A shim's thread in an unmount of a throttled disk, kernel 6.18.
    const UNMOUNT: &[u8] = b"[<0>] folio_wait_writeback+0x28/0x80\n[<0>] __filemap_fdatawait_range+0x6d/0xf0\n\
        [<0>] sync_inodes_sb+0x1bd/0x1d0\n[<0>] sync_filesystem+0x6a/0xa0\n[<0>] ovl_sync_fs+0x3e/0x60 [overlay]\n\
        [<0>] sync_filesystem+0x81/0xa0\n[<0>] generic_shutdown_super+0x26/0x160\n[<0>] 0xffffffffc0a81234\n\
        [<0>] cleanup_mnt+0xca/0x160\n[<0>] task_work_run+0x5c/0x90\n[<0>] 0xffffffffffffffff\n";

    #[test]
    fn a_stack_is_names_innermost_first() {
        let names = parse_stack(UNMOUNT);
        let expected = [
            "folio_wait_writeback",
            "__filemap_fdatawait_range",
            "sync_inodes_sb",
            "sync_filesystem",
            "ovl_sync_fs",
            "sync_filesystem",
            "generic_shutdown_super",
            "cleanup_mnt",
            "task_work_run",
        ];
        assert_eq!(names, expected);
        // Kernels before 4.16 printed addresses.
        assert_eq!(parse_stack(b"[<ffffffff81231234>] do_wait+0x1/0x2\n"), ["do_wait"]);
    }

    #[test]
    fn system_calls() {
        assert_eq!(parse_syscall(b"166 0xc000 0x0 0x0 0x0 0x0 0x0 0x7ffd 0x40bd\n"), Some(166));
        let umount = b"166 0xc000 0x2 0x0 0x0 0x0 0x0 0x7ffd 0x40bd\n";
        assert_eq!(parse_arguments(umount), [0xc000, 2, 0, 0, 0, 0]);
        assert!(parse_arguments(b"-1 0x7ffd 0x40bd\n").is_empty());
        assert!(parse_arguments(b"166 0xc000 junk\n").is_empty());
        assert_eq!(parse_syscall(b"running\n"), None);
        assert_eq!(parse_syscall(b"-1 0x7ffd 0x40bd\n"), None);
        assert_eq!(parse_syscall(b""), None);
    }

    #[test]
    fn wchan_without_a_name() {
        assert_eq!(parse_wchan(b"0"), None);
        assert_eq!(parse_wchan(b"do_wait"), Some("do_wait".into()));
    }

    proptest! {
        #[test]
        fn parsers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = (parse_stack(&bytes), parse_syscall(&bytes), parse_arguments(&bytes), parse_wchan(&bytes));
        }
    }

    #[test]
    fn a_child_that_reads_an_empty_pipe_sits_in_read() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        // Until it has reached its read(0), asked again; /proc says 0 (read) with descriptor 0 there.
        let site = loop {
            let site = look(pid, pid).unwrap();
            let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
            if site.site.state == 'S' && call.starts_with(&format!("{} 0x0 ", libc::SYS_read)) {
                break look(pid, pid).unwrap();
            }
            std::thread::yield_now();
        };
        assert_eq!(site.site.syscall, Some(libc::SYS_read));
        match &site.stack_refused {
            None => assert!(site.site.kernel_stack.iter().any(|f| f.contains("pipe_read")), "{site:?}"),
            Some(why) => assert!(site.site.kernel_stack.is_empty() && why.contains("stack"), "{site:?}"),
        }
        assert_eq!(of_process(pid, 10).unwrap(), [pid]);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(look(pid, pid).unwrap_err().is_gone());
    }
}
