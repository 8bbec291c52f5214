//! plegscope started, stopped and killed while threads sleep inside what it probes.

use super::{
    INSIDE,
    locks::Program,
    machine::{self, Overlay, umount},
    watch::Watch,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    os::unix::fs::FileExt as _,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};
use tracer::{
    event::{Role, SeenBy},
    golang::{
        Name,
        catalog::{self, Entry, Job},
    },
    warden::Settings,
};

/// How often plegscope is started.
const ROUNDS: usize = 20;
/// How often a warden that is kept from using fentry is, and what it may use.
const FALLBACKS: [&str; 6] = ["kprobe", "kprobe", "tracepoint", "kprobe", "kprobe", "tracepoint"];
/// The kernel functions that are probed, and in all of which threads sleep.
const PROBED: [&str; 4] = ["__x64_sys_umount", "cleanup_mnt", "generic_shutdown_super", "sync_filesystem"];
/// What stands for a shim.
pub const SHIM: &str = "/containerd-shim-runc-v2";

/// plegscope, ready.
pub struct Plegscope {
    child: Child,
    /// What it said until it was ready.
    pub said: String,
}

impl Plegscope {
    /// Starts it and waits until it says that it is attached.
    pub fn start(command: &mut Command) -> Result<Plegscope> {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
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
            match messages.recv_timeout(std::time::Duration::from_secs(100)) {
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
        machine::kill(self.child.id(), signal)?;
        let status = self.child.wait()?;
        ensure!(signal == libc::SIGKILL || status.code() == Some(0), "it ended with {status}");
        Ok(())
    }

    /// Kills both of its processes at once, as `pkill -9 plegscope` does; not in the middle of attaching, where nothing in
    /// user space can make up for it (docs/safety.md).
    fn kill_all(mut self) -> Result<()> {
        let warden = machine::child_of(self.child.id())?;
        machine::until("nothing is being attached", 60, || machine::sleeps_by_itself(warden, "attach"))?;
        machine::kill(warden, libc::SIGKILL)?;
        machine::kill(self.child.id(), libc::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }
}

/// A test that fails leaves none behind.
impl Drop for Plegscope {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Attaches without fentry, and without kprobes where it is `tracepoint`, says so, and stays.
pub fn attached(best: &str) -> Result<()> {
    let mut without = vec![SeenBy::Fentry];
    without.extend((best == "tracepoint").then_some(SeenBy::Kprobe));
    let _watch = Watch::start(Settings { without, ..Settings::default() })?;
    eprintln!("attached by {best}");
    loop {
        std::thread::park();
    }
}

/// The executable part of a program's memory, and of its file.
fn text(pid: u32) -> Result<(Vec<u8>, Vec<u8>)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let exe = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    let exe = exe.to_str().context("its name")?;
    let line = maps
        .lines()
        .find(|line| line.contains(" r-xp ") && line.ends_with(exe))
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
    let read = File::open(exe)?.read_at(&mut file, offset)?;
    memory.truncate(read);
    file.truncate(read);
    Ok((memory, file))
}

/// Whether the Go program says that goroutines were in all functions at once in which one can sleep.
fn everything_sleeps(said: &[String]) -> Result<()> {
    let inside = said.iter().find_map(|line| line.strip_prefix("in ")).context("it did not say where")?;
    let inside: Vec<&str> = inside.split_whitespace().collect();
    // Those of the other jobs return at once: `sync.(*RWMutex).Unlock` and what wakes somebody.
    let sleeps = |entry: &&Entry| matches!(entry.job, Job::Span | Job::HoldBegin);
    // Go does not show its runtime's own functions: this one calls `runtime.semacquire1` and nothing else.
    let shown = |name: Name| match name.text() {
        "runtime.semacquire1" => Name::Exact("sync.runtime_SemacquireMutex"),
        _ => name,
    };
    let there = |entry: &&Entry| {
        let names: Vec<Name> = entry.forms.iter().map(|form| shown(form.name)).collect();
        inside.iter().any(|function| names.iter().any(|name| name.matches(function.as_bytes())))
    };
    let missing: Vec<&Entry> =
        catalog::entries(Role::Shim).filter(sleeps).filter(|entry| !there(entry)).collect();
    ensure!(missing.is_empty(), "no goroutine was in {missing:?}, but in {inside:?}");
    Ok(())
}

/// Threads that sleep in everything that is probed, one after the other and over and over.
struct Sleepers {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<u32>>>,
    /// Programs that are probed: one that stands for a shim, and one in which goroutines wait for locks for good.
    probed: [u32; 2],
    parked: Program,
}

impl Sleepers {
    fn start() -> Result<Sleepers> {
        let mut parked = Program::start()?;
        parked.tell("park")?;
        parked.until("parked")?;
        let mut shim = Program::of(SHIM)?;
        let probed = [shim.pid(), parked.pid()];
        let over = Arc::<AtomicBool>::default();
        let again = |mut sleep: Box<dyn FnMut(u32) -> Result<()> + Send>| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    sleep(count)?;
                    count += 1;
                }
                Ok(count)
            })
        };
        // In an unmount of the last mount, and so in `cleanup_mnt`; with goroutines in all that is probed in a shim.
        let deletes = again(Box::new(move |count| {
            let overlay = Overlay::new("ext4", &format!("deleted-{count}"), "")?;
            overlay.dirty(4_000_000)?;
            shim.tell(&overlay.at)?;
            everything_sleeps(&shim.until("deleted")?)?;
            overlay.delete()
        }));
        // In the system call itself: who unmounts its own root folder makes it read-only, which syncs it.
        let roots = again(Box::new(|count| {
            let overlay = Overlay::new("xfs", &format!("root-{count}"), "")?;
            overlay.dirty(4_000_000)?;
            let back = machine::enter_root(&overlay.at)?;
            let result = umount("/", 0);
            machine::leave_root(&back)?;
            ensure!(result == 0, "unmounting the root folder: {result}");
            drop(back);
            let result = umount(&overlay.at, 0);
            ensure!(result == 0, "unmounting what was a root folder: {result}");
            overlay.delete()
        }));
        let syncs = again(Box::new(|_| {
            machine::dirty("/mnt/xfs", 4_000_000)?;
            machine::sync("/mnt/xfs");
            Ok(())
        }));
        Ok(Sleepers { over, threads: vec![deletes, roots, syncs], probed, parked })
    }

    /// Waits for a moment in which threads are in all these functions at once.
    fn inside(&self, probed: &[&str]) -> Result<()> {
        let pids = [std::process::id(), self.probed[0]];
        let (mut missing, mut last) = (Vec::new(), Vec::new());
        let all = machine::until("threads sleep in all that is probed", 30, || {
            ensure!(self.threads.iter().all(|thread| !thread.is_finished()), "a thread has ended");
            let found = machine::functions(&pids);
            // Of a function that ends by jumping into its other half, only that half is on the stack.
            let is = |f: &str, probed: &str| f.split('.').next() == Some(probed);
            missing = probed.iter().filter(|probed| !found.iter().any(|f| is(f, probed))).collect();
            last = found;
            Ok(missing.is_empty())
        });
        all.with_context(|| format!("in none of {missing:?}, but in {last:?}"))
    }

    /// Whether the text of the programs is what their files have.
    fn texts(&self) -> Result<[bool; 2]> {
        let [shim, locks] = self.probed.map(|pid| text(pid).map(|(memory, file)| memory == file));
        Ok([shim?, locks?])
    }

    /// What is wrong with them, if something is.
    fn trouble(&mut self) -> Option<String> {
        let at = self.threads.iter().position(JoinHandle::is_finished)?;
        Some(format!("{:?}", self.threads.remove(at).join().unwrap()))
    }

    fn end(mut self) -> Result<Vec<u32>> {
        self.over.store(true, Ordering::Relaxed);
        let counts = self.threads.into_iter().map(|thread| thread.join().unwrap());
        let counts = counts.collect::<Result<Vec<_>>>()?;
        ensure!(self.parked.child.try_wait()?.is_none(), "the program has died");
        Ok(counts)
    }
}

/// Threads sleep in unmounts, syncs, shutdowns and lock waits when plegscope comes and when it goes, by whatever signal;
/// nothing of it is left after any round.
pub fn twenty_times() -> Result<()> {
    machine::no_probe_is_left()?;
    let mut sleepers = Sleepers::start()?;
    match rounds(&sleepers) {
        Err(error) => Err(error.context(sleepers.trouble().unwrap_or_default())),
        Ok(()) => {
            println!(
                "note {:?} unmounts by a shim, unmounts of a root folder, syncs meanwhile",
                sleepers.end()?
            );
            Ok(())
        }
    }
}

/// How plegscope is ended.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The process that the user sees gets this signal.
    Signal(i32),
    /// All of it is killed.
    All,
}

fn rounds(sleepers: &Sleepers) -> Result<()> {
    // The second program is attached to later where attaching to the first was slow.
    let mut both = 0;
    let fallbacks = FALLBACKS.map(Some);
    let rounds = std::iter::repeat_n(None, ROUNDS).chain(fallbacks);
    for (round, fallback) in rounds.enumerate() {
        let mut command = match fallback {
            None => {
                let mut command = Command::new("/plegscope");
                command.args(["live", "--json", "--verbose", "--also", &sleepers.probed[1].to_string()]);
                command
            }
            // It has no use for the signals of which plegscope makes a good end.
            Some(best) => {
                let mut command = Command::new("/init");
                command.arg("attached").env(INSIDE, best);
                command
            }
        };
        let end = match fallback {
            None => {
                [End::Signal(libc::SIGINT), End::Signal(libc::SIGKILL), End::Signal(libc::SIGTERM), End::All]
                    [round % 4]
            }
            Some(_) => [End::Signal(libc::SIGKILL), End::All][round % 2],
        };
        let name = || format!("round {round}, {}, {end:?}", fallback.unwrap_or("fentry"));
        sleepers.inside(&PROBED).with_context(name)?;
        let begin = machine::now();
        let plegscope = Plegscope::start(command.stdout(Stdio::null())).with_context(name)?;
        let ready = machine::now();
        // What is looked at below is there to be seen.
        let (listed, programs) = machine::probes()?;
        let text = sleepers.texts()?;
        let kprobes = listed.iter().filter(|line| PROBED.iter().any(|probed| line.contains(probed))).count();
        ensure!(programs > 0 && (fallback != Some("kprobe") || kprobes >= 4), "{}: {listed:?}", name());
        ensure!(!text[0], "{}: no probe is in the shim: {}", name(), plegscope.said);
        both += u32::from(!text[1]);
        // A kretprobe hides from the stack who called the function.
        let visible = if fallback == Some("kprobe") { &PROBED[3..] } else { &PROBED };
        sleepers.inside(visible).with_context(name)?;
        let told = machine::now();
        match end {
            End::Signal(signal) => plegscope.end(signal),
            End::All => plegscope.kill_all(),
        }
        .with_context(name)?;
        machine::no_probe_is_left().with_context(name)?;
        // The kernel lets go of a program a moment before it takes its breakpoints out.
        machine::until("the text of the programs is what it was", 10, || Ok(sleepers.texts()? == [true; 2]))
            .with_context(name)?;
        println!(
            "note {}: ready after {} ms, gone after {} ms",
            name(),
            (ready - begin) / 1_000_000,
            (machine::now() - told) / 1_000_000
        );
    }
    ensure!(both >= 4, "only {both} rounds in which the second program was probed");
    Ok(())
}
