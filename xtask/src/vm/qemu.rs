//! One virtual machine: started, listened to, ended. What it says is judged here.
//!
//! There are two serial ports: the kernel's console goes to a file, the tests speak on the other. There the machine may also
//! ask for something (`ASK throttle DISK WRITES READS`), which is answered in a line (`done`). A machine that panics, says
//! nothing for too long, or lives too long is ended, and its verdict is a failure.

use super::qmp::{Qmp, Socket};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What a kernel prints when something is wrong with it.
const BAD_WORDS: [&str; 9] = [
    "Kernel panic",
    "Oops",
    "BUG:",
    "WARNING:",
    "general protection",
    "soft lockup",
    "blocked for more than",
    "self-detected stall",
    // uprobe: … failed to unregister, leaking uprobe
    "failed to unregister",
];

/// A disk of the machine.
pub struct Disk<'a> {
    /// The file that holds it.
    pub file: &'a Path,
    /// Its serial number inside, and its name for QEMU.
    pub name: &'static str,
    /// Bytes per second that it may write; no limit when left out.
    pub rate: Option<u32>,
    /// What the machine writes to it is thrown away.
    pub throw_away: bool,
}

impl Disk<'_> {
    fn arguments(&self) -> [String; 4] {
        let name = self.name;
        let rate = self.rate.map(|rate| format!(",throttling.bps-write={rate}")).unwrap_or_default();
        let keep = if self.throw_away { ",snapshot=on" } else { "" };
        let file = self.file.display();
        let drive = format!("id={name},if=none,file={file},format=raw,cache=unsafe{keep}{rate}");
        ["-drive".into(), drive, "-device".into(), format!("virtio-blk-pci,drive={name},serial={name}")]
    }
}

/// What to boot.
pub struct Machine<'a> {
    /// The kernel.
    pub image: &'a Path,
    /// Its only file system.
    pub initramfs: &'a Path,
    /// Its disks, in order.
    pub disks: &'a [Disk<'a>],
    /// Words for its command line.
    pub words: &'a str,
    /// Where its console goes.
    pub console: &'a Path,
    /// Longest life.
    pub limit: Duration,
    /// Longest silence.
    pub silence: Duration,
}

/// What it said.
#[derive(Debug, Default)]
pub struct Said {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed, with what they said.
    pub failed: Vec<String>,
    /// Program of the kernel half, and the instructions that the verifier looked at.
    pub costs: Vec<(String, u64)>,
}

impl Machine<'_> {
    /// Boots it and listens until it is off. An error means that there is no verdict.
    pub fn run(&self, mut show: impl FnMut(&str)) -> Result<Said> {
        let mut qemu = Command::new("qemu-system-x86_64");
        // One processor: with two and TCG's threads, about one boot in twenty dies.
        qemu.args("-accel tcg -cpu max,la57=off -M pc -m 2048 -smp 1".split(' '))
            .args("-nodefaults -display none -no-reboot -net none".split(' '))
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()))
            .args(["-serial", "stdio"])
            .arg("-kernel")
            .arg(self.image)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", &format!("console=ttyS0 panic=-1 oops=panic apparmor=0 {}", self.words)]);
        let socket = Socket::new();
        qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.path().display()));
        // Its clock counts the instructions of its processor, two nanoseconds each, while that is busy: it is the same processor
        // however much else the host has to do. Its idle time, and its disks, go by the host's clock.
        qemu.args(["-icount", "shift=1"]);
        for disk in self.disks {
            qemu.args(disk.arguments());
        }
        let mut child = qemu
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting qemu-system-x86_64")?;
        let output = child.stdout.take().context("the output of QEMU")?;
        let mut input = child.stdin.take().context("the input of QEMU")?;
        let mut qmp = None;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let begin = Instant::now();
        let mut said = Said::default();
        let mut verdict = None;
        let end = loop {
            let left = self.limit.saturating_sub(begin.elapsed());
            match lines.recv_timeout(self.silence.min(left)) {
                Ok(line) => {
                    let line = line.trim_end_matches('\r');
                    if let Some(wish) = line.strip_prefix("ASK ") {
                        let answer = match grant(wish, &socket, &mut qmp) {
                            Ok(()) => "done".to_owned(),
                            Err(error) => format!("{error:#}").replace('\n', " | "),
                        };
                        // One that is off needs no answer.
                        let _ = writeln!(input, "{answer}");
                        continue;
                    }
                    verdict = said.hear(line).or(verdict);
                    show(line);
                }
                Err(RecvTimeoutError::Disconnected) => break Ok(()),
                Err(RecvTimeoutError::Timeout) if begin.elapsed() >= self.limit => {
                    break Err(format!("it was not done after {} s", self.limit.as_secs()));
                }
                Err(RecvTimeoutError::Timeout) => {
                    break Err(format!("it said nothing for {} s", self.silence.as_secs()));
                }
            }
        };
        // A machine that is off has closed its port; the others are ended.
        if end.is_err() {
            let _ = child.kill();
        }
        let status = child.wait().context("waiting for QEMU")?;
        let console = fs::read(self.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let bad: Vec<&str> =
            console.lines().filter(|line| BAD_WORDS.iter().any(|word| line.contains(word))).collect();
        if let Some(first) = bad.first() {
            bail!("the kernel complained: {} ({} such lines)", first.trim(), bad.len());
        }
        if let Err(why) = end {
            bail!("{why}");
        }
        ensure!(status.success(), "QEMU ended with {status}");
        let (passed, failed) = verdict.context("it went off without a verdict")?;
        ensure!(
            (passed, failed) == (said.passed, said.failed.len() as u32) && passed + failed > 0,
            "its verdict ({passed} passed, {failed} failed) is not what its lines say"
        );
        Ok(said)
    }
}

/// Does what the machine asks for.
fn grant(wish: &str, socket: &Socket, qmp: &mut Option<Qmp>) -> Result<()> {
    let words: Vec<&str> = wish.split_whitespace().collect();
    let ["throttle", disk, writes, reads] = words[..] else { bail!("nobody knows how to {wish}") };
    let connected = match qmp {
        Some(qmp) => qmp,
        None => qmp.insert(Qmp::connect(socket)?),
    };
    connected.throttle(disk, writes.parse()?, reads.parse()?)
}

impl Said {
    /// Takes a line in; the verdict, if it is that.
    fn hear(&mut self, line: &str) -> Option<(u32, u32)> {
        let (word, rest) = line.split_once(' ')?;
        match word {
            "ok" => self.passed += 1,
            "FAILED" => self.failed.push(rest.to_owned()),
            "cost" => {
                let (program, count) = rest.split_once(' ')?;
                self.costs.push((program.to_owned(), count.trim().parse().ok()?));
            }
            "VERDICT" => {
                let (passed, failed) = rest.split_once(' ')?;
                return Some((passed.parse().ok()?, failed.trim().parse().ok()?));
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_verdict_counts() {
        let mut said = Said::default();
        for line in ["ok plan 1.2 s", "FAILED locks: no wait", "cost fexit_sync 412", "note x", "VERDICT 3"] {
            assert_eq!(said.hear(line), None, "{line}");
        }
        assert_eq!(said.hear("VERDICT 1 1"), Some((1, 1)));
        assert_eq!((said.passed, said.failed.len()), (1, 1));
        assert_eq!(said.costs, [("fexit_sync".to_owned(), 412)]);
    }
}
