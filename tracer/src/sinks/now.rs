//! What is blocked at one moment, as text: the same diagnoses as live, and below each where everybody on the way sits.

use super::{sanitise, text};
use crate::correlator::words;
use crate::correlator::{Diagnosis, EndsIn, Frame, Head, Link};
use crate::event::{Role, ThreadSite};
use crate::look::{Goroutine, Lacks, Leaked, LookedAt, Summary};
use crate::thresholds::MILLISECOND;
use std::collections::{BTreeMap, BTreeSet};

/// Functions of a stack that are told in a line.
const FUNCTIONS: usize = 12;
/// Kernel functions that are told in a line.
const KERNEL: usize = 6;
/// Longest line.
const WIDTH: usize = 600;

/// All of it. `looked` holds the last look at each process.
pub fn text(frame: &Frame, looked: &[LookedAt], summary: &Summary) -> String {
    let mut lines = Vec::new();
    if !frame.diagnoses.iter().any(Diagnosis::is_stuck) {
        lines.push(nothing(looked, summary));
    }
    for d in &frame.diagnoses {
        // Of a wait that nobody waits behind, and whose holder is not known, there is nothing more to tell.
        let bare = d.head == Head::Alone && matches!(d.ends_in, EndsIn::NotVisible { .. });
        lines.extend(if bare { vec![text::headline(d, frame.now)] } else { text::diagnosis(d, frame.now) });
        lines.extend(where_they_sit(&d.chain.links, looked));
        lines.push(String::new());
    }
    lines.extend(said(summary));
    lines.extend(weaker(looked));
    let clipped = lines.iter().map(|line| sanitise(&words::clip(line, WIDTH)).into_owned() + "\n");
    clipped.collect()
}

/// The first line when nothing is stuck.
fn nothing(looked: &[LookedAt], summary: &Summary) -> String {
    let goroutines: usize = looked.iter().filter_map(|l| Some(l.look.as_ref().ok()?.goroutines.len())).sum();
    let seen: u32 = summary.roles.iter().map(|count| count.looked_at).sum();
    match seen {
        0 => "nothing could be looked at".into(),
        _ => format!("nothing is stuck, as far as {goroutines} goroutines of {seen} processes tell"),
    }
}

/// Where each goroutine on the way sits, in Go and in the kernel; where none is known, its thread.
fn where_they_sit(links: &[Link], looked: &[LookedAt]) -> Vec<String> {
    let mut told = BTreeSet::new();
    let mut lines = Vec::new();
    for link in links {
        let (pid, goid, tid) = (link.who.pid, link.who.goid, link.who.tid);
        if !told.insert((pid, goid, if goid.is_some() { 0 } else { tid })) {
            continue;
        }
        let look = looked.iter().find(|l| l.process.pid == pid).and_then(|l| l.look.as_ref().ok());
        let Some(look) = look else { continue };
        if let Some(g) = look.goroutines.iter().find(|g| Some(g.goid) == goid) {
            lines.push(format!("  {} {pid} goroutine {} [{}]: {}", name(link), g.goid, g.state, stack(g)));
            lines.extend(g.thread.as_ref().map(|thread| format!("    {}", self::thread(thread))));
        } else if let Some(alone) = look.threads.iter().find(|t| goid.is_none() && t.site.tid == tid) {
            let path = alone.calls.iter().find_map(|call| call.path.as_deref());
            lines.push(format!(
                "  {} {pid}, its goroutine is not known: {}",
                name(link),
                path.unwrap_or("?")
            ));
            lines.push(format!("    {}", thread(&alone.site)));
        }
    }
    if !lines.is_empty() {
        lines.insert(0, "  where they sit, innermost first:".into());
    }
    lines
}

fn name(link: &Link) -> String {
    match (link.who.role, &link.who.comm) {
        (Some(Role::Other) | None, Some(comm)) => comm.clone(),
        (role, _) => words::role(role).to_owned(),
    }
}

/// The functions of a goroutine without the runtime's own, as a program's people call them.
fn stack(g: &Goroutine) -> String {
    let own = |function: &&str| !function.starts_with("runtime.");
    let functions: Vec<&str> = g.frames.iter().map(|f| f.function.as_str()).filter(own).collect();
    let short = |function: &&str| function.rsplit('/').next().unwrap_or(function).to_owned();
    let shown: Vec<String> = functions.iter().take(FUNCTIONS).map(short).collect();
    let more = match functions.len().saturating_sub(FUNCTIONS) {
        0 => String::new(),
        n => format!(" < {n} more"),
    };
    shown.join(" < ") + &more
}

fn thread(site: &ThreadSite) -> String {
    let call = match (site.syscall, site.arguments.as_slice()) {
        (Some(number), []) => format!("system call {number}"),
        (Some(number), arguments) => {
            let shown: Vec<String> = arguments.iter().map(|a| format!("{a:#x}")).collect();
            format!("{}({})", system_call(number), shown.join(", "))
        }
        (None, _) => "no system call".into(),
    };
    let stack = match site.kernel_stack.as_slice() {
        [] => "kernel stack not readable".to_owned(),
        functions => functions.iter().take(KERNEL).map(String::as_str).collect::<Vec<_>>().join(" < "),
    };
    format!("thread {} in {call}, state {}: {stack}", site.tid, site.state)
}

/// The calls that threads are known to be stuck in.
fn system_call(number: i64) -> String {
    let name = match number {
        libc::SYS_read => "read",
        libc::SYS_write => "write",
        libc::SYS_close => "close",
        libc::SYS_msync => "msync",
        libc::SYS_fsync => "fsync",
        libc::SYS_fdatasync => "fdatasync",
        libc::SYS_sync => "sync",
        libc::SYS_syncfs => "syncfs",
        libc::SYS_mount => "mount",
        libc::SYS_umount2 => "umount2",
        libc::SYS_unlinkat => "unlinkat",
        libc::SYS_futex => "futex",
        libc::SYS_wait4 => "wait4",
        libc::SYS_waitid => "waitid",
        libc::SYS_epoll_pwait => "epoll_pwait",
        _ => return format!("system call {number}"),
    };
    name.to_owned()
}

/// What was looked at and what was not, and shims that are left over.
fn said(summary: &Summary) -> Vec<String> {
    let mut lines = Vec::new();
    let counts: Vec<String> = summary
        .roles
        .iter()
        .map(|c| match c.there == c.looked_at {
            true => {
                format!("{} {}{}", c.there, words::role(Some(c.role)), if c.there == 1 { "" } else { "s" })
            }
            false => format!("{} of {} {}s", c.looked_at, c.there, words::role(Some(c.role))),
        })
        .collect();
    let counts = if counts.is_empty() {
        "nothing: no containerd, shim or kubelet was found".into()
    } else {
        counts.join(", ")
    };
    lines.push(format!("looked at {counts} in {} ms", summary.took / MILLISECOND));
    for left in &summary.left_out {
        lines.push(format!("not seen: {} {}: {}", left.comm, some_of(&left.pids), left.reason));
    }
    if summary.unreadable > 0 {
        lines.push(format!(
            "not seen: {} processes whose program may not be read (run it as root)",
            summary.unreadable
        ));
    }
    if summary.stuck_reads > 0 {
        lines.push(format!("{} reads have not come back: the kernel makes them wait", summary.stuck_reads));
    }
    for leaked in &summary.leaked {
        lines.push(leaked_shim(leaked));
    }
    lines
}

/// What makes the looks weaker than they could be: of those that saw goroutines, since the others are in the summary.
fn weaker(looked: &[LookedAt]) -> Vec<String> {
    let mut by_reason: BTreeMap<(&str, String), Vec<u32>> = BTreeMap::new();
    for one in looked {
        let Ok(look) = &one.look else { continue };
        if look.goroutines.is_empty() && look.running == 0 {
            continue;
        }
        let left_out = look.left_out.iter().map(|(why, count)| format!("{count} left out: {why}"));
        let note = (!look.note.is_empty()).then(|| look.note.clone());
        for reason in note.into_iter().chain(left_out) {
            by_reason.entry((&one.process.comm, reason)).or_default().push(one.process.pid);
        }
    }
    let line = |((comm, reason), pids): ((&str, String), Vec<u32>)| {
        format!("note: {comm} {}: {reason}", some_of(&pids))
    };
    by_reason.into_iter().map(line).collect()
}

/// A few process ids, and how many more.
fn some_of(pids: &[u32]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = pids.iter().take(SHOWN).map(u32::to_string).collect();
    match pids.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        n => format!("{} and {n} more", shown.join(", ")),
    }
}

fn leaked_shim(leaked: &Leaked) -> String {
    let memory = leaked.resident.map(|bytes| format!(", {}", words::bytes(bytes))).unwrap_or_default();
    let (id, age) = (words::short_id(&leaked.id), words::duration(leaked.age));
    let lacks = match leaked.lacks {
        Lacks::Bundle => "its bundle is gone",
        Lacks::Task => "none of its containers has a process",
    };
    format!("left over: shim {} of [{id}], started {age} ago{memory}: {lacks}", leaked.pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Process;
    use crate::look::Look;

    fn looked(pid: u32, look: Look) -> LookedAt {
        let process = Process {
            pid,
            started: 0,
            role: Role::Shim,
            comm: "containerd-shim".into(),
            go_version: "go1.99.0".into(),
            version: None,
        };
        LookedAt { process, at: 0, look: Ok(look) }
    }

    #[test]
    fn what_makes_looks_weaker_is_told_once_for_all_that_it_holds_for() {
        let note = || Look { running: 1, note: "go1.99.0 is not known".into(), ..Look::default() };
        let mut all: Vec<LookedAt> = (1..=7).map(|pid| looked(pid, note())).collect();
        let left_out = vec![("only the first 20 are read".into(), 3)];
        all.push(looked(8, Look { running: 1, left_out, ..Look::default() }));
        // The summary has the reason why nothing was seen of this one.
        all.push(looked(9, Look { note: "no tables".into(), ..Look::default() }));
        let expected = [
            "note: containerd-shim 8: 3 left out: only the first 20 are read",
            "note: containerd-shim 1, 2, 3, 4, 5 and 2 more: go1.99.0 is not known",
        ];
        assert_eq!(weaker(&all), expected);
    }

    #[test]
    fn what_was_left_out_and_what_is_left_over() {
        let leaked =
            |pid, lacks| Leaked { pid, id: "c0".repeat(32), age: 90_000_000_000, resident: None, lacks };
        let summary = Summary {
            roles: vec![crate::look::Count { role: Role::Shim, there: 3, looked_at: 2 }],
            left_out: vec![crate::look::LeftOut {
                comm: "containerd-shim".into(),
                pids: vec![7],
                reason: "no answer within 400 ms".into(),
            }],
            leaked: vec![leaked(8, Lacks::Bundle), leaked(9, Lacks::Task)],
            took: 5_000_000,
            stuck_reads: 1,
            unreadable: 0,
        };
        let expected = [
            "looked at 2 of 3 shims in 5 ms",
            "not seen: containerd-shim 7: no answer within 400 ms",
            "1 reads have not come back: the kernel makes them wait",
            "left over: shim 8 of [c0c0c0c0c0c0], started 1m30s ago: its bundle is gone",
            "left over: shim 9 of [c0c0c0c0c0c0], started 1m30s ago: none of its containers has a process",
        ];
        assert_eq!(said(&summary), expected);
    }
}
