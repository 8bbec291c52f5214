//! Runs a program for each alert: no shell, the alert as JSON on its standard input, so many at once and no longer than
//! its time. A program that cannot be killed (its disk is stuck) keeps its place until it goes; no other takes that.

use super::{Again, Alert, Delivery};
use std::{
    fs::File,
    io::{Seek, Write},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How often a program that runs is looked at: first and at last.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// What is killed is gone within this time, or its disk is stuck.
const KILLED_WITHIN: Duration = Duration::from_secs(1);

/// The program, and its bounds. As many run at once as there are of these behind one queue.
#[derive(Clone, Debug)]
pub struct Exec {
    argv: Vec<String>,
    limit: Duration,
}

impl Exec {
    /// Runs `argv` for each alert, each for at most `limit`.
    pub fn new(argv: Vec<String>, limit: Duration) -> Exec {
        Exec { argv, limit }
    }

    fn spawn(&self, alert: &Alert) -> Result<Child, String> {
        let (program, arguments) = self.argv.split_first().ok_or("no program was given")?;
        Command::new(program)
            .args(arguments)
            .env("PLEGSCOPE_EVENT", alert.event.word())
            .env("PLEGSCOPE_INCIDENT", &alert.id)
            .stdin(input(&alert.json).map_err(|error| format!("memory for its input: {error}"))?)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What it starts goes with it when its time is up.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{program} does not start: {error}"))
    }
}

/// A file in memory: a program that does not read holds nobody up, and one that is gone is no broken pipe.
fn input(json: &[u8]) -> std::io::Result<File> {
    let memory = rustix::fs::memfd_create("plegscope-alert", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(json)?;
    file.write_all(b"\n")?;
    file.rewind()?;
    Ok(file)
}

impl Delivery for Exec {
    fn deliver(&mut self, alert: &Alert, _: Again<'_>) -> Result<(), String> {
        let mut child = self.spawn(alert)?;
        let result = match wait(&mut child, self.limit) {
            Ok(Some(status)) => return judge(status),
            Ok(None) => {
                format!("it took longer than {} and was killed", humantime::format_duration(self.limit))
            }
            Err(error) => format!("waiting for it: {error}"),
        };
        // Not waited for yet, so the number is still that of this child and its group.
        if let Ok(pid) = i32::try_from(child.id()) {
            // SAFETY: takes numbers; the group was made for this child alone.
            unsafe { libc::kill(-pid, libc::SIGKILL) };
        }
        child.wait().map_err(|error| format!("{result}; {error}"))?;
        Err(result)
    }

    fn limit(&self) -> Option<Duration> {
        Some(self.limit + KILLED_WITHIN)
    }
}

/// Waits until it has ended, or its time is up.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    let mut pause = LOOK.0;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(LOOK.1);
    }
}

fn judge(status: ExitStatus) -> Result<(), String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(format!("it exited with {code}")),
        (None, signal) => Err(format!("it was killed by signal {}", signal.unwrap_or(0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Event;
    use crate::sinks::deliver::{Queue, tests::alert};
    use std::sync::Arc;

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_alert_comes_on_standard_input_and_no_shell_reads_the_arguments() {
        let folder = tempdir("stdin");
        let file = folder.join("$(touch never); x");
        let script = "cat > \"$1\"; printf '%s %s' \"$PLEGSCOPE_EVENT\" \"$PLEGSCOPE_INCIDENT\" >> \"$1\"";
        let mut exec = Exec::new(
            argv(&["/bin/sh", "-c", script, "sh", &file.to_string_lossy()]),
            Duration::from_secs(60),
        );
        let one = alert(7, Event::Grew, "unmount-5;`id`");
        exec.deliver(&one, &|_| {}).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let expected = format!("{}\ngrew unmount-5;`id`", String::from_utf8(one.json).unwrap());
        assert_eq!(text, expected);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing else was made");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn how_it_went_is_told() {
        let run = |words: &[&str]| {
            Exec::new(argv(words), Duration::from_secs(60)).deliver(&alert(1, Event::Crossed, "a"), &|_| {})
        };
        assert_eq!(run(&["/bin/true"]), Ok(()), "a program need not read its input");
        assert_eq!(run(&["/bin/sh", "-c", "exit 3"]), Err("it exited with 3".into()));
        assert_eq!(run(&["/bin/sh", "-c", "kill -9 $$"]), Err("it was killed by signal 9".into()));
        let error = run(&["/no/such/program"]).unwrap_err();
        assert!(error.starts_with("/no/such/program does not start"), "{error}");
        assert!(run(&[]).is_err());
    }

    #[test]
    fn what_hangs_is_killed_with_what_it_has_started() {
        let folder = tempdir("hangs");
        let file = folder.join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let mut exec = Exec::new(argv(&["/bin/sh", "-c", &script]), Duration::from_millis(700));
        let error = exec.deliver(&alert(1, Event::Crossed, "a"), &|_| {}).unwrap_err();
        assert!(error.contains("longer than 700ms"), "{error}");
        let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        // SAFETY: sends nothing, only asks.
        while unsafe { libc::kill(pid, 0) } == 0 && !is_zombie(pid) {
            assert!(Instant::now() < end, "what it had started is still there");
            thread::sleep(Duration::from_millis(5));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    fn is_zombie(pid: i32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    }

    #[test]
    fn no_more_than_so_many_run_at_once() {
        let folder = tempdir("many");
        // Each notes how many there are while it runs.
        let script = format!(
            "mkdir {0}/run-$$; ls -d {0}/run-* | wc -l >> {0}/counts; sleep 0.2; rmdir {0}/run-$$",
            folder.display()
        );
        let one = || -> Box<dyn Delivery> {
            Box::new(Exec::new(argv(&["/bin/sh", "-c", &script]), Duration::from_secs(60)))
        };
        let queue = Queue::start("exec", vec![one(), one()]).unwrap();
        for seq in 0..6 {
            queue.hand(&Arc::new(alert(seq, Event::Crossed, &format!("incident-{seq}"))));
        }
        let counts = queue.counts();
        assert!(queue.finish(Duration::from_secs(120)));
        assert_eq!(counts().delivered, 6, "{:?}", counts());
        let most: Vec<u32> = std::fs::read_to_string(folder.join("counts"))
            .unwrap()
            .lines()
            .map(|line| line.trim().parse().unwrap())
            .collect();
        assert_eq!((most.len(), most.iter().max()), (6, Some(&2)), "{most:?}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    fn tempdir(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("plegscope-exec-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }
}
