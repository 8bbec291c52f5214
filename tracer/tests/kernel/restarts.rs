//! plegscope started, stopped and killed while threads sleep inside what it probes.

use super::{
    locks::Program,
    machine::{self, Overlay, umount},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    os::unix::fs::FileExt as _,
    process::{Child, Command, Stdio},
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
};

/// How often.
const ROUNDS: u32 = 20;

/// plegscope, ready.
pub struct Plegscope {
    child: Child,
    /// What it said until it was ready.
    pub said: String,
}

impl Plegscope {
    pub fn start(command: &mut Command) -> Result<Plegscope> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stderr.take().context("its messages")?).lines();
        let (send, messages) = std::sync::mpsc::channel();
        // Reads on, so that it never waits for us.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let mut said = String::new();
        loop {
            match messages.recv_timeout(std::time::Duration::from_secs(30)) {
                Ok(line) => said = said + &line + "\n",
                Err(error) => {
                    let pid = child.id();
                    let read = |name: &str| {
                        std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default()
                    };
                    let (stat, stack) = (read("stat"), read("stack"));
                    let _ = child.kill();
                    bail!("it was not ready ({error}) and said {said:?}; {stat} {stack}");
                }
            }
            if said.contains("attached ") {
                break;
            }
        }
        Ok(Plegscope { child, said })
    }

    pub fn end(mut self, signal: i32) -> Result<()> {
        // SAFETY: our own child, not yet waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
        let status = self.child.wait()?;
        ensure!(signal == libc::SIGKILL || status.code() == Some(0), "it ended with {status}");
        Ok(())
    }
}

/// The executable part of a program's memory, and of its file.
fn text(pid: u32) -> Result<(Vec<u8>, Vec<u8>)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps
        .lines()
        .find(|line| line.contains(" r-xp ") && line.ends_with("/locks"))
        .context("no text is mapped")?;
    let mut words = line.split_whitespace();
    let (from, to) = words.next().unwrap().split_once('-').unwrap();
    let hex = |text: &str| u64::from_str_radix(text, 16);
    let (from, to) = (hex(from)?, hex(to)?);
    let offset = hex(words.nth(1).unwrap())?;
    let (mut memory, mut file) = (vec![0; (to - from) as usize], Vec::new());
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut memory, from)?;
    file.resize(memory.len(), 0);
    // The last page goes on behind the end of the segment.
    let read = File::open("/locks")?.read_at(&mut file, offset)?;
    memory.truncate(read);
    file.truncate(read);
    Ok((memory, file))
}

/// Threads sleep in unmounts, syncs and lock waits all the while; nothing of plegscope is left after any round.
pub fn twenty_times() -> Result<()> {
    let mut program = Program::start()?;
    program.tell("park")?;
    program.until("parked")?;
    let pid = program.pid();
    let over = Arc::new(AtomicBool::new(false));
    // The disk drains for as long as the rounds last: an unmount, and somebody who syncs.
    let unmounter = {
        let over = Arc::clone(&over);
        std::thread::spawn(move || -> Result<u32> {
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                let overlay = Overlay::new("ext4", &format!("restarts-{count}"), "")?;
                overlay.dirty(6_000_000)?;
                let result = umount(&overlay.at, 0);
                ensure!(result == 0, "unmount {count}: {result}");
                count += 1;
            }
            Ok(count)
        })
    };
    let syncer = {
        let over = Arc::clone(&over);
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                machine::dirty("/mnt/xfs", 4_000_000).unwrap();
                machine::sync("/mnt/xfs");
            }
        })
    };
    for round in 0..ROUNDS {
        let begin = machine::now();
        let mut command = Command::new("/plegscope");
        let plegscope = Plegscope::start(command.args(["live", "--json", "--also", &pid.to_string()]))?;
        if round == 0 {
            let (memory, file) = text(pid)?;
            ensure!(memory != file, "no probe is in the program: this test sees nothing");
        }
        let ready = machine::now();
        let signal = [libc::SIGINT, libc::SIGKILL, libc::SIGTERM, libc::SIGKILL][round as usize % 4];
        plegscope.end(signal).with_context(|| format!("round {round}, signal {signal}"))?;
        machine::no_probe_is_left().with_context(|| format!("round {round}, signal {signal}"))?;
        let (memory, file) = text(pid)?;
        ensure!(memory == file, "round {round}: the program's text is not what it was");
        println!(
            "note round {round}: ready after {} ms, gone after {} ms",
            (ready - begin) / 1_000_000,
            (machine::now() - ready) / 1_000_000
        );
    }
    over.store(true, Ordering::Relaxed);
    syncer.join().unwrap();
    let unmounts = unmounter.join().unwrap()?;
    ensure!(program.child.try_wait()?.is_none(), "the program has died");
    println!("note {ROUNDS} rounds during {unmounts} unmounts");
    Ok(())
}
