//! Whether a process lives, and whether it is still the same program; asked for one at a time.

use super::procs::parse_stat;
use super::{number, read_file};
use crate::event::Ns;

/// `/proc/PID/stat` has some 300 bytes.
const SMALL: usize = 4096;

/// When the process with this pid was started (ns of CLOCK_MONOTONIC, to 10 ms); `None` when there is none, or only
/// what is left of one.
pub fn alive_since(pid: u32) -> Option<Ns> {
    let text = read_file(&format!("/proc/{pid}/stat"), SMALL).ok()?;
    parse_stat(&text).filter(|stat| !stat.is_over()).map(|stat| stat.started())
}

/// Whether the first thread of the process with this pid lives: it has not exited, even if others have stayed.
pub fn leader_lives(pid: u32) -> bool {
    let text = read_file(&format!("/proc/{pid}/stat"), SMALL).ok();
    text.and_then(|text| parse_stat(&text)).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X' | 'x'))
}

/// What differs from program to program in the same process: where its first stack begins, which the kernel draws anew
/// with each exec. `None` when it may not be read, or the kernel was told not to draw.
pub fn image(pid: u32) -> Option<u64> {
    parse_image(&read_file(&format!("/proc/{pid}/stat"), SMALL).ok()?)
}

/// `startstack`, field 28 of `/proc/PID/stat`; 0 for who may not read the process's memory.
fn parse_image(stat: &[u8]) -> Option<u64> {
    let close = stat.iter().rposition(|b| *b == b')')?;
    // Field 3 is the first of these.
    let mut fields = stat.get(close + 1..)?.split(u8::is_ascii_whitespace).filter(|f| !f.is_empty());
    number(fields.nth(25)?).filter(|stack: &u64| *stack != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_field_is_the_one_behind_the_end_of_the_code() {
        let line = |stack: &str| {
            let fields: Vec<String> =
                (4..=52).map(|n| if n == 28 { stack.into() } else { n.to_string() }).collect();
            format!("7 (a) b) S {}", fields.join(" ")).into_bytes()
        };
        assert_eq!(parse_image(&line("140722")), Some(140_722));
        assert_eq!(parse_image(&line("0")), None);
        assert_eq!(parse_image(b"7 (a) S 1 2"), None);
    }

    #[test]
    fn exec_changes_it_and_nothing_else_does() {
        let ours = image(std::process::id());
        assert!(ours.is_some());
        assert_eq!(image(std::process::id()), ours);
        // A shell that is told when to replace itself by another one.
        let mut shell = Command::new("sh")
            .args(["-c", "echo; read go; exec sh -c 'echo; read go'"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut tell, mut said) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
        let mut line = || std::io::Read::read_exact(&mut said, &mut [0]).unwrap();
        line();
        let before = image(shell.id());
        std::io::Write::write_all(&mut tell, b"\n").unwrap();
        line();
        assert!(before.is_some());
        assert_ne!(image(shell.id()), before);
        drop(tell);
        shell.wait().unwrap();
    }
}
