//! Lines of `/proc`, and real children.

use super::*;
use crate::node::alive::alive_since;

#[test]
fn the_entry_point_is_where_the_program_says_it_is() {
    // SAFETY: takes a number only.
    let truth = unsafe { libc::getauxval(libc::AT_ENTRY) };
    assert_eq!(entry_point(std::process::id()).unwrap(), truth);
    assert_eq!(parse_entry_point(&[0; 31]), None);
}

use proptest::prelude::*;
use std::os::linux::fs::MetadataExt;
use std::process::{Command, Stdio};

const PLAIN: &[u8] = b"7955 (cat) R 7951 7951 5696 0 -1 4194304 103 0 0 0 0 0 0 0 20 0 1 0 115339 3133440 418 \
    18446744073709551615 94918373081088 94918373100969 140736211113104 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 \
    94918373116976 94918373118592 94918561292288 140736211118838 140736211118838 140736211118838 140736211120107 0\n";

#[test]
fn a_plain_line() {
    let stat = parse_stat(PLAIN).unwrap();
    let expected = Stat {
        pid: 7955,
        comm: "cat".into(),
        state: 'R',
        parent: 7951,
        kernel_thread: false,
        threads: 1,
        start_ticks: 115_339,
    };
    assert_eq!(stat, expected);
}

#[test]
fn a_zombie_is_over_but_a_leader_that_left_its_threads_is_not() {
    let line = |state: &str, threads: u32| {
        let text = String::from_utf8_lossy(PLAIN).replace(" R ", &format!(" {state} "));
        parse_stat(text.replace(" 20 0 1 0 ", &format!(" 20 0 {threads} 0 ")).as_bytes()).unwrap()
    };
    assert!(line("Z", 1).is_over() && line("X", 0).is_over());
    assert!(!line("Z", 3).is_over() && !line("S", 1).is_over() && !line("D", 1).is_over());

    let mut child = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    // Blocks until the child has ended, and leaves it a zombie.
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::uninit();
    // SAFETY: `info` takes what waitid writes; WNOWAIT leaves the child to be collected below.
    let ended = unsafe { libc::waitid(libc::P_PID, pid, info.as_mut_ptr(), libc::WEXITED | libc::WNOWAIT) };
    assert_eq!(ended, 0);
    assert_eq!(alive_since(pid), None, "a zombie");
    let mut processes = Processes::new();
    let scan = processes.recheck(pid, &Workers::new(1));
    assert!(scan.new.is_empty() && processes.get(pid).is_none());
    child.wait().unwrap();
    assert!(alive_since(std::process::id()).is_some());
}

#[test]
fn names_that_look_like_fields() {
    let nasty: [&[u8]; 6] = [b"a) S 1 1 (b", b"(((", b")))", b"x\ny z", b"", b"\xff\xfe)"];
    for name in nasty {
        let mut line = b"12 (".to_vec();
        line.extend_from_slice(name);
        line.extend_from_slice(b") D 1 1 1 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 42 0 0\n");
        let stat = parse_stat(&line).unwrap();
        assert_eq!(stat.comm, String::from_utf8_lossy(name));
        assert_eq!((stat.state, stat.parent, stat.start_ticks), ('D', 1, 42));
        assert!(stat.kernel_thread);
    }
}

#[test]
fn cut_or_absurd_lines_are_refused() {
    for end in 0..120 {
        let cut = &PLAIN[..end.min(PLAIN.len())];
        if let Some(stat) = parse_stat(cut) {
            // Only a line cut inside or behind field 22 can be read at all.
            assert!(end >= 68, "{end}: {stat:?}");
        }
    }
    let absurd = b"1 (x) S 0 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 18446744073709551615 0";
    assert_eq!(parse_stat(absurd), None);
}

#[test]
fn the_innermost_pid_is_the_last_one() {
    assert_eq!(
        parse_innermost_pid(b"Name:\tx\nNStgid:\t10123\t1\nNSpid:\t10123\t7\t1\nNSpgid:\t9\n"),
        Some(1)
    );
    assert_eq!(parse_innermost_pid(b"NSpid:\t52\n"), Some(52));
    assert_eq!(parse_innermost_pid(b"Name:\ta\\nNSpid:\t5\n"), None);
}

#[test]
fn a_list_is_left_out_only_while_nothing_was_started_and_not_for_long() {
    let mut processes = Processes { last_pid: Some(70), ..Processes::new() };
    assert!(processes.needs_list(false, Some(70)), "nobody tells of ends");
    assert!(processes.needs_list(true, Some(71)) && processes.needs_list(true, None));
    let listed: Vec<bool> = (0..10).map(|_| processes.needs_list(true, Some(70))).collect();
    assert_eq!(listed, [false, false, false, false, true, false, false, false, false, true]);
}

#[test]
fn what_is_known_is_looked_at_in_a_scan_without_a_list_too() {
    let (mut processes, workers) = (patient(), Workers::new(2));
    let mut child = waiting_child();
    let pid = child.id();
    processes.recheck(pid, &workers);
    drop(child.stdin.take());
    child.wait().unwrap();
    let mut scan = Scan::default();
    processes.look_at_known(&workers, &mut scan);
    assert_eq!(scan.gone.iter().map(|p| p.pid).collect::<Vec<_>>(), [pid]);
}

#[test]
fn pids_go_round() {
    assert!(handed_out_between(10, 20, 11) && handed_out_between(10, 20, 20));
    assert!(!handed_out_between(10, 20, 10) && !handed_out_between(10, 20, 21));
    assert!(!handed_out_between(10, 10, 10) && !handed_out_between(10, 10, 11));
    assert!(handed_out_between(32_700, 400, 32_701) && handed_out_between(32_700, 400, 301));
    assert!(!handed_out_between(32_700, 400, 5_000));
}

proptest! {
    #[test]
    fn parsers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = (parse_stat(&bytes), parse_innermost_pid(&bytes), parse_last_pid(&bytes));
    }

    #[test]
    fn any_name_comes_back(name in proptest::collection::vec(any::<u8>(), 0..40), ticks in 0u64..1 << 40) {
        let mut line = b"3 (".to_vec();
        line.extend_from_slice(&name);
        line.extend_from_slice(format!(") S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {ticks} 0").as_bytes());
        let stat = parse_stat(&line).unwrap();
        prop_assert_eq!(stat.comm, String::from_utf8_lossy(&name));
        prop_assert_eq!(stat.start_ticks, ticks);
    }
}

/// Never gives up on a file: a loaded machine is no reason for a test to fail.
fn patient() -> Processes {
    Processes { patience: Duration::from_secs(600), ..Processes::new() }
}

/// A child that waits for its standard input to close.
fn waiting_child() -> std::process::Child {
    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_child_is_seen_with_its_start_time_and_its_end() {
    let (mut processes, workers) = (patient(), Workers::new(2));
    processes.scan(&workers, false).unwrap();
    let before = clock::monotonic();
    let mut child = waiting_child();
    let after = clock::monotonic();
    let pid = child.id();

    let scan = processes.scan(&workers, false).unwrap();
    let facts = scan.new.iter().find(|p| p.pid == pid).unwrap();
    assert_eq!(facts.parent, std::process::id());
    // Field 22 is cut to 10 ms, downwards.
    assert!(facts.started <= after && facts.started + TICK >= before, "{before} {} {after}", facts.started);
    assert!(!scan.gone.iter().any(|p| p.pid == pid));

    drop(child.stdin.take());
    child.wait().unwrap();
    let scan = processes.scan(&workers, false).unwrap();
    assert!(scan.gone.iter().any(|p| p.pid == pid));
    assert!(processes.get(pid).is_none());
}

#[test]
fn the_exe_is_the_file_that_stat_names() {
    let facts = patient().look(std::process::id(), &Workers::new(1)).unwrap();
    let file = fs::metadata(std::env::current_exe().unwrap()).unwrap();
    let Exe::File(id) = facts.exe else { panic!("{facts:?}") };
    assert_eq!(id.inode, file.st_ino());
    assert_eq!((id.device.major, id.device.minor), (libc::major(file.st_dev()), libc::minor(file.st_dev())));
    assert!(facts.innermost_pid.is_some());
}

#[test]
fn an_exec_is_an_end_and_a_beginning() {
    // The shell waits for a line, then becomes cat.
    let mut child = Command::new("sh")
        .args(["-c", "read line; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut processes, workers) = (patient(), Workers::new(2));
    // spawn() returns after the exec of sh.
    processes.scan(&workers, false).unwrap();
    let first = processes.get(child.id()).unwrap().clone();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"go\nback\n").unwrap();
    // cat gives the second line back only after it was executed.
    let mut answer = [0u8; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut answer).unwrap();
    assert_eq!(&answer, b"back\n");

    let scan = processes.recheck(child.id(), &workers);
    assert_eq!(scan.gone, vec![first.clone()]);
    assert_eq!(scan.new.len(), 1);
    assert_eq!(scan.new[0].start_ticks, first.start_ticks);
    assert_eq!(scan.new[0].comm, "cat");
    assert_ne!(scan.new[0].exe, first.exe);
    drop(stdin);
    child.wait().unwrap();
    let scan = processes.recheck(child.id(), &workers);
    assert_eq!((scan.new.len(), scan.gone.len()), (0, 1));
}

#[test]
fn another_process_with_the_same_pid_is_another_process() {
    let (mut processes, workers) = (patient(), Workers::new(2));
    let pid = std::process::id();
    let mut old = processes.look(pid, &workers).unwrap();
    old.start_ticks -= 1;
    processes.known.insert(pid, Known { facts: old.clone(), age: 1000 });
    let scan = processes.scan(&workers, false).unwrap();
    assert_eq!(scan.gone.iter().filter(|p| p.pid == pid).collect::<Vec<_>>(), [&old]);
    assert!(scan.new.iter().any(|p| p.pid == pid && p.start_ticks == old.start_ticks + 1));
}

#[test]
fn a_file_that_cannot_be_told_is_told_later() {
    let pid = std::process::id();
    let mut processes = patient();
    let scan = processes.recheck(pid, &Workers::new(0));
    assert!(matches!(&scan.new[0].exe, Exe::Unknown(why) if why.contains("workers are taken")), "{scan:?}");
    let scan = processes.recheck(pid, &Workers::new(1));
    assert!(matches!(scan.new[0].exe, Exe::File(_)) && scan.gone.is_empty(), "{scan:?}");
    // Once known it is not forgotten.
    assert_eq!(processes.recheck(pid, &Workers::new(0)), Scan::default());
    assert!(matches!(processes.get(pid).unwrap().exe, Exe::File(_)));
}

#[test]
fn a_file_system_that_hangs_is_asked_once() {
    let (mut processes, workers) = (patient(), Workers::new(1));
    let pid = std::process::id();
    let path = fs::read_link("/proc/self/exe").unwrap();
    let mark = Arc::new(());
    processes.hung.insert(path.clone(), Arc::clone(&mark));
    let scan = processes.recheck(pid, &workers);
    assert!(matches!(&scan.new[0].exe, Exe::Unknown(why) if why.contains("not answered")), "{scan:?}");
    assert_eq!(workers.threads(), 0);
    // It has come back: the next scan asks again.
    drop(mark);
    let scan = processes.scan(&workers, false).unwrap();
    assert!(!processes.hung.contains_key(&path));
    assert!(scan.new.iter().any(|p| p.pid == pid && matches!(p.exe, Exe::File(_))));
}
