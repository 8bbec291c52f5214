//! The siblings of the story that plegscope was made for: what else makes a node wait for its runtime, or its runtime for
//! the node. One file for each: how it is played with real parts, what the lab's own clocks say of it, and what
//! plegscope must have said.

mod busy;
mod create;
mod late_exit;
mod restart;
pub mod said;
mod stalled;
mod status_write;

pub use restart::forget;

use super::cleanup::Ledger;
use super::containerd::Programs;
use super::pods::{self, Pod};
use super::story::{Block, Script};
use super::tracer::{Line, Tracer};
use super::verdict::{self, Seen, Verdict};
use super::{Lab, Root, e2e, run_interruptible, sys};
use crate::binaries;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

/// One second, ns.
const SECOND: u64 = 1_000_000_000;
/// Write rate of the slow disk, bytes per second.
const RATE: u64 = 2_000_000;
/// How often a client that is like the kubelet updates containers.
const UPDATE_EVERY: Duration = Duration::from_secs(2);

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sibling {
    /// A container is gone, the runtime goes on saying that it runs.
    LateExit,
    /// An unmount fails because somebody is in there.
    Busy,
    /// The daemon itself unmounts when it creates a container.
    Create,
    /// The daemon is frozen, and later gets next to no CPU.
    Stalled,
    /// The daemon's own files lie on the slow disk.
    StatusWrite,
    /// The daemon is restarted in the middle of a stall; a shim outlives its bundle.
    Restart,
}

/// A story that was played: what the lab's own clocks say.
trait Played: Serialize {
    /// Whether it was what it should be, without plegscope.
    fn truth(&self, verdict: &mut Verdict);
    /// Holds what plegscope said against it.
    fn said(&self, frames: &[Seen], verdict: &mut Verdict);
}

/// The node on which a sibling is played.
struct Stage<'a> {
    ledger: &'a Ledger,
    lab: Lab<'a>,
    say: Box<dyn FnMut(&str)>,
}

impl Stage<'_> {
    fn say(&mut self, text: &str) {
        (self.say)(text);
    }

    /// Starts a pod that writes so much when it is told to.
    async fn pod(&mut self, name: &str, megabytes: u64) -> Result<Pod> {
        self.pod_that(name, &pods::script(megabytes)).await
    }

    /// Starts a pod that runs this script.
    async fn pod_that(&mut self, name: &str, script: &str) -> Result<Pod> {
        let cgroup = Path::new(&self.ledger.name);
        let pod = pods::start(&self.lab.client, name, script, cgroup, &self.lab.run).await;
        let pod =
            pod.with_context(|| format!("containerd's log ends:\n{}", self.lab.containerd.log_tail(8)))?;
        self.say(&format!("pod {}/{}, container {}", pod.namespace, pod.name, &pod.container[..12]));
        self.lab.pods.push(pod.clone());
        Ok(pod)
    }

    /// Makes the disk slow.
    fn slow_down(&mut self) -> Result<()> {
        let measured = self.lab.disk.slow_down(self.ledger, RATE)?;
        self.say(&format!("the disk now writes {:.1} MB/s (measured)", measured as f64 / 1e6));
        Ok(())
    }

    /// Has a pod write all it has to write.
    async fn write(&mut self, pod: &Pod) -> Result<()> {
        pod.tell("write")?;
        pod.wait_for("written", Duration::from_secs(120)).await
    }

    /// What the daemon has logged so far.
    fn log(&self) -> String {
        fs::read_to_string(&self.lab.containerd.log).unwrap_or_default()
    }
}

/// Why a story cannot be played on this machine, if it cannot.
pub fn cannot(which: Sibling) -> Result<Option<String>> {
    let version = create::VERSION;
    let missing = which == Sibling::Create && binaries::containerd(version)?.is_none();
    Ok(missing
        .then(|| format!("no containerd {version} is in the cache; `cargo xtask binaries` fetches one")))
}

/// Plays one and judges it; without plegscope only whether it was what it should be.
pub fn play(
    which: Sibling,
    programs: &Programs,
    kubelet: Option<&Path>,
    binary: Option<&Path>,
    keep: Option<&Path>,
) -> Result<Vec<Verdict>> {
    let set = Set { programs: programs.clone(), root: Root::Fast, kubelet: None, binary, keep };
    match which {
        Sibling::LateExit => set.play(late_exit::play),
        Sibling::Busy => set.play(busy::play),
        Sibling::Create => {
            let older = binaries::containerd(create::VERSION)?;
            Set { programs: Programs::find(older.as_deref())?, ..set }.play(create::play)
        }
        Sibling::Stalled => Set { kubelet, ..set }.play(stalled::play),
        Sibling::StatusWrite => Set { root: Root::Slow, ..set }.play(status_write::play),
        Sibling::Restart => set.play(restart::play),
    }
}

/// What a story is played with.
struct Set<'a> {
    programs: Programs,
    root: Root,
    /// A real kubelet that is to run the pods.
    kubelet: Option<&'a Path>,
    /// plegscope.
    binary: Option<&'a Path>,
    /// Folder for what was seen.
    keep: Option<&'a Path>,
}

impl Set<'_> {
    fn play<P: Played>(self, story: impl AsyncFnOnce(&mut Stage<'_>) -> Result<P>) -> Result<Vec<Verdict>> {
        let Set { programs, root, kubelet, binary, keep } = self;
        let begin = sys::monotonic();
        let mut say =
            move |text: &str| println!("{:>6.1} s  {text}", (sys::monotonic() - begin) as f64 / 1e9);
        let (played, output) = run_interruptible(async |ledger| {
            let lab = match kubelet {
                Some(kubelet) => {
                    let script = Script {
                        block: Block::None,
                        stall: Duration::ZERO,
                        rate: RATE,
                        update_every: UPDATE_EVERY,
                        calm: Duration::ZERO,
                    };
                    Lab::prepare_with_kubelet(ledger, programs, kubelet, &script, &mut say).await?
                }
                None => Lab::without_pods(ledger, programs, root, &mut say).await?,
            };
            let mut scope = None;
            if let Some(binary) = binary {
                let mut started = Tracer::start(ledger, binary, &["live", "--json"], |_, _| {})?;
                let ready = started.ready().await?;
                say(&format!("plegscope after {}: {}", sys::seconds(ready.at - started.started), ready.text));
                scope = Some(started);
            }
            let mut stage = Stage { ledger, lab, say: Box::new(say) };
            let played = story(&mut stage).await?;
            let mut output = None;
            if let Some(scope) = scope {
                // What is over is said at the next ticks.
                tokio::time::sleep(Duration::from_secs(2)).await;
                output = Some(scope.quit().await?);
            }
            stage.say("cleaning up");
            stage.lab.finish().await;
            Ok((played, output))
        })?;
        if let Some(folder) = keep {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
            let write = |name: &str, text: String| {
                let file = folder.join(name);
                fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
            };
            write("truth.json", serde_json::to_string_pretty(&played)?)?;
            if let Some((.., lines, messages)) = &output {
                let join = |lines: &[Line]| {
                    lines.iter().map(|line| format!("{}\t{}\n", line.at, line.text)).collect()
                };
                write("frames.tsv", join(lines))?;
                write("messages.tsv", join(messages))?;
            }
        }
        let mut verdicts = vec![Verdict::default()];
        played.truth(&mut verdicts[0]);
        if let Some((exit, took, lines, messages)) = output {
            let mut verdict = Verdict::default();
            played.said(&verdict::frames(&lines), &mut verdict);
            for line in messages.iter().filter(|line| line.text.contains("defect")) {
                verdict.check("no defect is told", "", line.text.as_str(), false);
            }
            verdict.ended(exit, took, e2e::QUIT_WITHIN);
            verdicts.push(verdict);
        }
        Ok(verdicts)
    }
}

/// Notes when a process exits (a zombie has exited), to 5 ms.
fn exit_of(pid: u32) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        while !matches!(sys::state(pid), None | Some('Z')) {
            std::thread::sleep(Duration::from_millis(5));
        }
        sys::monotonic()
    })
}

/// The time an exit was noted at, once it was.
async fn noted(exit: JoinHandle<u64>, limit: Duration) -> Result<u64> {
    anyhow::ensure!(
        sys::until(limit, || exit.is_finished()).await,
        "the process does not exit within {limit:?}"
    );
    exit.join().map_err(|_| anyhow::anyhow!("the thread that watched a process died"))
}
