//! Plays a story on a node in a box and writes down what happened by clocks that have nothing to do with plegscope.

use super::language::{Caller, DaemonFiles, Pin, Step, Story, Until};
use super::record::{Created, Mark, Pod as Played, Record, Run};
use super::watch;
use crate::lab::attached::Attached;
use crate::lab::cleanup::{Ledger, Leftover};
use crate::lab::containerd::Programs;
use crate::lab::cri::{self, Client};
use crate::lab::group::Group;
use crate::lab::kubelet::Pace;
use crate::lab::kubelet_like::{Call, KubeletLike};
use crate::lab::pods::{self, Pod};
use crate::lab::strace::Strace;
use crate::lab::tracer::Tracer;
use crate::lab::unmounts::Watch;
use crate::lab::{Lab, Settings, containerd_log, hold, image, states, story, sys};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::task::JoinSet;

/// A list call that lasts as long as this hangs, ns.
const HANGS: u64 = 1_000_000_000;
/// What a starved process gets of a CPU, in thousandths.
const SHARE: u64 = 2;
/// MB that a pod writes that comes and goes.
const CHURNED: u64 = 4;
/// When nobody updates: longer than any story.
const NEVER: Duration = Duration::from_secs(86_400);

/// A pod of the story while it is played.
struct Running {
    name: String,
    writes: u64,
    pod: Pod,
    shim: u32,
    init: u32,
    unmounts: Watch,
    exit: Option<JoinHandle<u64>>,
    told_to_exit: Option<u64>,
    exited: Option<u64>,
    unwritten: u64,
    pins: Vec<(Pin, Option<u32>)>,
    unpinned: Vec<(u64, u64)>,
}

/// A story while it is played.
struct Stage<'a> {
    ledger: &'a Ledger,
    story: &'a Story,
    /// plegscope, when it is to be held against the truth.
    binary: Option<&'a Path>,
    /// Arguments that leave ways of seeing out.
    without: Vec<&'a str>,
    lab: Lab<'a>,
    say: Box<dyn FnMut(&str) + 'a>,
    client: Option<KubeletLike>,
    states: Option<states::Watch>,
    pods: Vec<Running>,
    sandboxes: BTreeMap<String, pods::Sandbox>,
    daemons: Vec<(u32, Watch)>,
    groups: BTreeMap<String, Group>,
    throttled: (u64, u64),
    strace: Option<Strace>,
    asking: JoinSet<()>,
    /// What the clients that are not like a kubelet have updated.
    updates: Arc<Mutex<Vec<Call>>>,
    scope: Option<Scope>,
    record: Record,
}

/// A plegscope that runs.
struct Scope {
    tracer: Tracer,
    ready: u64,
}

/// Programs to play with.
pub struct With<'a> {
    /// containerd, shim and ctr.
    pub programs: Programs,
    /// A real kubelet, if one is built.
    pub kubelet: Option<&'a Path>,
    /// plegscope; without one only the lab's clocks are compared.
    pub binary: Option<&'a Path>,
    /// Folder for what the daemons logged.
    pub keep: Option<&'a Path>,
    /// Whether what is attached to the kernel is written down.
    pub attached: bool,
    /// Ways of seeing that plegscope is not to use.
    pub without: Option<&'a str>,
}

/// Plays it; `say` gets a line for each step. Whatever comes, the ledger takes all away again.
pub async fn play(ledger: &Ledger, story: &Story, with: With<'_>, say: impl FnMut(&str)) -> Result<Record> {
    let With { programs, kubelet, binary, keep, attached, without } = with;
    let mut say: Box<dyn FnMut(&str) + '_> = Box::new(say);
    let node = &story.node;
    let settings = Settings {
        file_system: node.file_system.name(),
        snapshotter: node.snapshotter.name(),
        volatile: node.volatile,
        daemon_on_disk: node.daemon_files == DaemonFiles::Together,
        hold_runc: story.holds_runc(),
    };
    let understood = programs.understand_the_kubelet();
    let lab = Lab::without_pods(ledger, programs, &settings, &mut say).await?;
    let logs = Logs::of(&lab, keep);
    let mut stage = Stage {
        ledger,
        story,
        binary,
        without: without.map_or(Vec::new(), |ways| vec!["--without", ways]),
        lab,
        say,
        client: None,
        states: None,
        pods: Vec::new(),
        sandboxes: BTreeMap::new(),
        daemons: Vec::new(),
        groups: BTreeMap::new(),
        throttled: (0, 0),
        strace: None,
        asking: JoinSet::new(),
        updates: Arc::default(),
        scope: None,
        record: Record::default(),
    };
    let kubelet = match node.caller {
        Caller::Kubelet => Some(kubelet.context(crate::kubelet::NOT_BUILT)?),
        Caller::KubeletOrClient => kubelet.filter(|_| understood),
        Caller::Client | Caller::None => None,
    };
    let played = stage.play(kubelet, attached).await;
    logs.keep();
    played?;
    (stage.say)("cleaning up");
    let Stage { lab, record, .. } = stage;
    lab.finish().await;
    Ok(record)
}

/// Where the daemons log, and where that is kept.
struct Logs<'a> {
    run: PathBuf,
    keep: Option<&'a Path>,
}

impl<'a> Logs<'a> {
    fn of(lab: &Lab<'_>, keep: Option<&'a Path>) -> Logs<'a> {
        Logs { run: lab.run.clone(), keep }
    }

    /// Copies what is there; what is not there was not made in this story.
    fn keep(&self) {
        let Some(folder) = self.keep else { return };
        for name in ["containerd.log", "kubelet/log", "client.jsonl", "strace.out"] {
            let _ = std::fs::copy(self.run.join(name), folder.join(name.replace('/', ".")));
        }
    }
}

impl Stage<'_> {
    async fn play(&mut self, kubelet: Option<&Path>, attached: bool) -> Result<()> {
        self.record.version = self.lab.containerd.version().unwrap_or_default();
        self.set_up(kubelet).await?;
        if let Some(binary) = self.binary.filter(|_| attached) {
            self.record.attached = Some(Attached::plan(binary, &self.without)?);
        }
        if self.story.begins_with_plegscope() {
            self.start_plegscope().await?;
        }
        let story = self.story;
        for (number, step) in story.steps.iter().enumerate() {
            let begin = sys::monotonic();
            let words = format!("{step:?}");
            let done = self.step(step).await;
            self.record.marks.push(Mark { step: words.clone(), begin, end: sys::monotonic() });
            done.with_context(|| {
                let log = self.lab.containerd.log_tail(8);
                format!("step {}, {words}; containerd's log ends:\n{log}", number + 1)
            })?;
        }
        self.finish().await
    }

    fn say(&mut self, text: &str) {
        (self.say)(text);
    }

    fn update_every(&self) -> Duration {
        match self.story.node.update_every {
            every if every > 0.0 => Duration::from_secs_f64(every),
            _ => NEVER,
        }
    }

    async fn set_up(&mut self, kubelet: Option<&Path>) -> Result<()> {
        self.record.device = self.lab.disk.device.clone();
        self.watch_daemon();
        if let Some(program) = kubelet {
            let wanted: Vec<(&str, u64)> =
                self.story.pods.iter().map(|pod| (pod.name.as_str(), pod.writes)).collect();
            let pace = Pace {
                update_every: self.update_every(),
                gives_up_after: Duration::from_secs_f64(self.story.node.gives_up_after),
            };
            self.lab.run_kubelet(program, pace, &wanted, &mut self.say).await?;
        } else {
            for pod in &self.story.pods {
                let script =
                    if pod.syncs { pods::script_that_syncs(pod.writes) } else { pods::script(pod.writes) };
                let cgroup = Path::new(&self.ledger.name);
                let started = pods::start(&self.lab.client, &pod.name, &script, cgroup, &self.lab.run).await;
                let started = started.with_context(|| {
                    format!("containerd's log ends:\n{}", self.lab.containerd.log_tail(8))
                })?;
                self.lab.add(started, &mut self.say);
            }
        }
        let running: Vec<Pod> = self.lab.pods.clone();
        for (pod, planned) in running.into_iter().zip(&self.story.pods) {
            self.run(&planned.name, planned.writes, pod)?;
        }
        for step in &self.story.steps {
            match step {
                Step::Create(name) if !self.sandboxes.contains_key(name) => {
                    self.lab.containerd.import_image(&self.lab.run, image::WITH_VOLUME)?;
                    let cgroup = Path::new(&self.ledger.name);
                    let sandbox = pods::sandbox(&self.lab.client, name, cgroup, &self.lab.run).await?;
                    self.sandboxes.insert(name.clone(), sandbox);
                }
                Step::Freeze(who) | Step::Starve(who) if !self.groups.contains_key(who) => {
                    let pid = self.process(who)?;
                    let group = Group::of(self.ledger, &who.replace(' ', "-"), pid, SHARE)?;
                    self.groups.insert(who.clone(), group);
                }
                _ => {}
            }
        }
        let socket = self.lab.containerd.socket.clone();
        if self.story.node.watch_states {
            self.states = Some(states::Watch::start(&socket)?);
        }
        if kubelet.is_none() && self.story.node.caller != Caller::None {
            self.say("a client relists every second and updates containers, as the kubelet does");
            let log = self.lab.run.join("client.jsonl");
            self.client = Some(KubeletLike::start(&socket, &log, self.update_every())?);
        }
        Ok(())
    }

    /// From now on a pod is one of the story's.
    fn run(&mut self, name: &str, writes: u64, pod: Pod) -> Result<()> {
        let shim = self.lab.containerd.shim_of(&pod.container)?;
        self.record.own.extend(pod.ids());
        self.pods.push(Running {
            name: name.to_owned(),
            writes,
            shim,
            init: self.lab.containerd.init_of(&pod.container)?,
            unmounts: Watch::start(shim),
            exit: None,
            told_to_exit: None,
            exited: None,
            unwritten: 0,
            pins: Vec::new(),
            unpinned: Vec::new(),
            pod,
        });
        Ok(())
    }

    fn watch_daemon(&mut self) {
        let pid = self.lab.containerd.pid;
        self.record.containerd.push(pid);
        self.daemons.push((pid, Watch::of(pid, watch::DAEMON)));
    }

    fn pod(&mut self, name: &str) -> Result<&mut Running> {
        self.pods.iter_mut().find(|pod| pod.name == name).with_context(|| format!("there is no pod {name}"))
    }

    fn process(&self, who: &str) -> Result<u32> {
        match who {
            "containerd" => Ok(self.lab.containerd.pid),
            "kubelet" => self.lab.kubelet.as_ref().map(|kubelet| kubelet.pid).context("there is no kubelet"),
            _ => {
                let pod = who.strip_prefix("shim of ").unwrap_or_default();
                let pod = self.pods.iter().find(|one| one.name == pod);
                pod.map(|pod| pod.shim).with_context(|| format!("who is {who}?"))
            }
        }
    }

    fn group(&self, who: &str) -> Result<&Group> {
        self.groups.get(who).with_context(|| format!("{who} has no group"))
    }

    async fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Wait(seconds) => tokio::time::sleep(Duration::from_secs_f64(*seconds)).await,
            Step::SlowDisk(rate) => {
                let measured = self.lab.disk.slow_down(self.ledger, (rate * 1e6) as u64)?;
                self.say(&format!("the disk now writes {:.1} MB/s (measured)", measured as f64 / 1e6));
            }
            Step::StopDisk => self.lab.disk.stop()?,
            Step::FreeDisk => self.lab.disk.speed_up()?,
            Step::Write(name) => {
                let pod = self.pod(name)?;
                pod.pod.tell("write")?;
                pod.pod.wait_for("written", Duration::from_secs(240)).await?;
                let text = format!("pod {name} has written {} MB", pod.writes);
                self.say(&text);
            }
            Step::Exit(names) => self.exit(names).await?,
            Step::Strace { of, seconds } => {
                let shim = self.pod(of)?.shim;
                let delay = Duration::from_secs_f64(*seconds);
                self.strace = Some(Strace::attach(self.ledger, shim, delay, &self.lab.run).await?);
                self.say(&format!("strace holds each umount2 of shim {shim} for {delay:?}"));
            }
            Step::Freeze(who) => {
                self.group(who)?.freeze()?;
                self.say(&format!("{who} is frozen"));
            }
            Step::Thaw(who) => {
                self.group(who)?.thaw()?;
                self.say(&format!("{who} goes on"));
            }
            Step::Starve(who) => {
                self.throttled = self.throttling(who)?;
                self.group(who)?.starve()?;
                self.say(&format!("{who} gets {} % of a CPU", SHARE as f64 / 10.0));
            }
            Step::Feed(who) => {
                self.group(who)?.feed()?;
                let (periods, time) = self.throttling(who)?;
                self.record.throttled = (periods - self.throttled.0, time - self.throttled.1);
                self.say(&format!("{who} gets what it wants"));
            }
            Step::Kill(who) => self.kill(who).await?,
            Step::Start(who) if who == "plegscope" => self.start_plegscope().await?,
            Step::Start(_) => {
                self.lab.containerd.start_again(self.ledger).await?;
                self.watch_daemon();
                self.say(&format!("containerd answers again, pid {}", self.lab.containerd.pid));
            }
            Step::Ask(clients) => {
                for _ in 0..*clients {
                    let client = Client::connect(&self.lab.containerd.socket, cri::SHORT).await?;
                    self.asking.spawn(async move {
                        loop {
                            let _: Result<cri::ListContainersResponse, _> =
                                client.call("ListContainers", cri::Empty {}, cri::LONG).await;
                        }
                    });
                }
                self.say(&format!("{clients} clients ask all the time"));
            }
            Step::AskNoMore => self.asking.abort_all(),
            Step::Hold { runc, of } => {
                let container = self.pod(of)?.pod.container.clone();
                hold::hold(&self.lab.run, runc, &container)?;
                self.say(&format!("`runc {runc}` hangs for {of} from now on"));
            }
            Step::Release(command) => {
                hold::release(&self.lab.run, command)?;
                self.say(&format!("`runc {command}` goes on"));
            }
            Step::Update(name) => {
                let container = self.pod(name)?.pod.container.clone();
                let client = Client::connect(&self.lab.containerd.socket, cri::SHORT).await?;
                let calls = self.updates.clone();
                self.asking.spawn(watch::update(client, container, calls));
                self.say(&format!("one more client updates {name}"));
            }
            Step::Pin { pod, how } => self.pin(pod, *how)?,
            Step::Unpin(pod) => self.unpin(pod).await?,
            Step::UnmountLazily(pod) => {
                let rootfs = self.rootfs(pod)?;
                sys::run("umount", &["-l", &rootfs.to_string_lossy()])?;
                self.say(&format!("the root file system of {pod} is unmounted lazily"));
            }
            Step::Forget(pod) => {
                let pod = self.pod(pod)?.pod.clone();
                watch::forget(&self.lab, self.ledger, &pod.sandbox, &pod.container)?;
                self.say(&format!("the bundle of pod {} is removed", pod.name));
            }
            Step::Create(name) => self.create(name).await?,
            Step::Churn { pods, at_once } => self.churn(*pods, *at_once).await?,
            Step::Until(what) => self.until(*what).await?,
        }
        Ok(())
    }

    async fn exit(&mut self, names: &[String]) -> Result<()> {
        let below = PathBuf::from(&self.ledger.name);
        // What is dirty when the first of them exits.
        let first = self.pods.iter().all(|pod| pod.told_to_exit.is_none());
        for pod in self.pods.iter_mut().filter(|_| first) {
            pod.unwritten = watch::unwritten(&below, &pod.pod.container);
        }
        for name in names {
            let pod = self.pod(name)?;
            pod.exit = Some(watch::exit_of(pod.init));
        }
        for name in names {
            let pod = self.pod(name)?;
            pod.told_to_exit = Some(sys::monotonic());
            // A script goes on to its exit only when it has written.
            pod.pod.tell("write")?;
            pod.pod.tell("exit")?;
        }
        for name in names {
            let pod = self.pod(name)?;
            if let Some(exit) = pod.exit.take() {
                pod.exited = Some(watch::noted(exit, Duration::from_secs(20)).await?);
            }
        }
        self.say(&format!("{} exited", names.join(", ")));
        Ok(())
    }

    async fn kill(&mut self, who: &str) -> Result<()> {
        match who {
            "containerd" => self.lab.containerd.end(libc::SIGKILL).await?,
            "plegscope" => {
                if let Some(scope) = self.scope.take() {
                    let ended = sys::monotonic();
                    sys::signal(scope.tracer.pid(), libc::SIGKILL);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    self.record.runs.push(Run {
                        started: scope.tracer.started,
                        ready: scope.ready,
                        ended,
                        exit: None,
                        killed: true,
                        quit_took: 0,
                        lines: scope.tracer.lines(),
                        messages: scope.tracer.messages(),
                    });
                }
            }
            _ => {
                sys::signal(self.process(who)?, libc::SIGKILL);
                // A thread that strace holds dies only when strace lets it go.
                if let Some(strace) = self.strace.take() {
                    strace.kill();
                }
            }
        }
        self.say(&format!("{who} is killed"));
        Ok(())
    }

    async fn start_plegscope(&mut self) -> Result<()> {
        let Some(binary) = self.binary else { return Ok(()) };
        let args = [&["live", "--json"], self.without.as_slice()].concat();
        let mut tracer = Tracer::start(self.ledger, binary, &args, |_, _| {})?;
        let ready = tracer.ready().await?;
        self.say(&format!("plegscope after {}: {}", sys::seconds(ready.at - tracer.started), ready.text));
        self.scope = Some(Scope { tracer, ready: ready.at });
        Ok(())
    }

    fn throttling(&self, who: &str) -> Result<(u64, u64)> {
        let (periods, time) = self.group(who)?.throttled()?;
        Ok((periods, time.as_nanos() as u64))
    }

    fn rootfs(&mut self, pod: &str) -> Result<PathBuf> {
        let container = self.pod(pod)?.pod.container.clone();
        Ok(self.lab.containerd.bundle(&container).join("rootfs"))
    }

    fn pin(&mut self, name: &str, how: Pin) -> Result<()> {
        let rootfs = self.rootfs(name)?;
        let init = self.pod(name)?.init;
        let by = watch::pin(self.ledger, &rootfs, init, how)?;
        self.pod(name)?.pins.push((how, by));
        self.say(&format!("{name}: {how:?} by {by:?}"));
        Ok(())
    }

    async fn unpin(&mut self, name: &str) -> Result<()> {
        let rootfs = self.rootfs(name)?;
        for (_, by) in self.pod(name)?.pins.clone() {
            match by {
                Some(pid) => {
                    let begin = sys::monotonic();
                    let gone = watch::exit_of(pid);
                    sys::signal(pid, libc::SIGKILL);
                    // Its exit may be what puts the last reference to the mounts.
                    let gone = watch::noted(gone, Duration::from_secs(60)).await?;
                    self.pod(name)?.unpinned.push((begin, gone));
                }
                None => drop(sys::run("umount", &[&rootfs.join("lab").to_string_lossy()])?),
            }
        }
        self.say(&format!("what kept {name} busy is gone"));
        Ok(())
    }

    async fn create(&mut self, name: &str) -> Result<()> {
        let sandbox = self.sandboxes.get(name).context("its sandbox")?.clone();
        self.say(&format!("the container of {name} is created"));
        let begin = sys::monotonic();
        let pod = pods::create(&self.lab.client, &sandbox, image::WITH_VOLUME, &pods::script(0)).await?;
        let call = (begin, sys::monotonic());
        self.say(&format!("that took {}", sys::seconds(call.1 - call.0)));
        self.record.own.extend(pod.ids());
        self.record.created.push(Created {
            pod: name.to_owned(),
            container: pod.container.clone(),
            sandbox: pod.sandbox.clone(),
            call,
        });
        self.lab.pods.push(pod);
        Ok(())
    }

    async fn churn(&mut self, count: u64, at_once: u64) -> Result<()> {
        let cgroup = PathBuf::from(&self.ledger.name);
        let mut running: JoinSet<Result<[String; 2]>> = JoinSet::new();
        for number in 0..count {
            if running.len() as u64 >= at_once
                && let Some(done) = running.join_next().await
            {
                self.record.own.extend(done??);
            }
            let (client, cgroup, run) = (self.lab.client.clone(), cgroup.clone(), self.lab.run.clone());
            running.spawn(async move {
                let script = pods::script(CHURNED);
                let name = format!("churn-{number}");
                let pod = pods::start(&client, &name, &script, &cgroup, &run).await?;
                pod.tell("write")?;
                pod.wait_for("written", Duration::from_secs(30)).await?;
                pod.tell("exit")?;
                tokio::time::sleep(Duration::from_millis(300)).await;
                pods::remove(&client, &pod).await;
                Ok(pod.ids())
            });
        }
        while let Some(done) = running.join_next().await {
            self.record.own.extend(done??);
        }
        self.say(&format!("{count} pods have come and gone"));
        Ok(())
    }

    /// All calls so far, by the caller's own clock.
    fn calls(&self) -> Vec<Call> {
        match (&self.client, &self.lab.kubelet) {
            (Some(client), _) => client.log.calls(),
            (None, Some(kubelet)) => kubelet.calls(),
            (None, None) => Vec::new(),
        }
    }

    fn hangs(&self) -> bool {
        let now = sys::monotonic();
        let hangs =
            |call: &Call| call.method == "ListContainers" && call.end.is_none() && call.age(now) > HANGS;
        self.calls().iter().any(hangs)
    }

    fn relists(&self) -> usize {
        self.calls().iter().filter(|call| call.method == "relist" && call.end.is_some()).count()
    }

    fn unmounted(&self) -> bool {
        self.pods.iter().all(|pod| pod.unmounts.stays().iter().all(|stay| stay.end.is_some()))
    }

    async fn until(&mut self, what: Until) -> Result<()> {
        let limit = Duration::from_secs(match what {
            Until::ListHangs => 40,
            Until::Quiet | Until::Unmounted => 300,
            Until::GaveUp => 260,
            // containerd's longest pause between two attempts is five minutes.
            Until::Reported => 330,
            Until::Unhealthy => 400,
        });
        let came = match what {
            Until::ListHangs => sys::until(limit, || self.hangs()).await,
            Until::Unmounted => sys::until(limit, watch::lasting(|| self.unmounted())).await,
            Until::Quiet => {
                let over = sys::until(limit, watch::lasting(|| !self.hangs() && self.unmounted())).await;
                let relists = self.relists();
                let calls = self.client.is_some() || self.lab.kubelet.is_some();
                let again = || !calls || self.relists() >= relists + 2;
                over && sys::until(Duration::from_secs(20), again).await
            }
            Until::Reported => {
                let states = self.states.as_ref().context("nobody asks for the states")?;
                let exited = || self.pods.iter().filter(|pod| pod.exited.is_some());
                let reported = |pod: &Running| states.states().first(&pod.pod.container, "EXITED").is_some();
                sys::until(limit, || exited().all(reported)).await
            }
            Until::Unhealthy => {
                let kubelet = self.lab.kubelet.as_ref().context("there is no kubelet")?;
                sys::until(limit, || !kubelet.unhealthy().is_empty()).await
            }
            Until::GaveUp => {
                let gave_up = |call: &Call| call.method == "ListContainers" && call.error.is_some();
                sys::until(limit, || self.calls().iter().any(gave_up)).await
            }
        };
        ensure!(came, "it is not so after {limit:?}; the calls in flight: {:?}", self.in_flight());
        self.say(&format!("{what:?}"));
        Ok(())
    }

    fn in_flight(&self) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.end.is_none()).collect()
    }

    /// Lets what is over be said, ends plegscope, and gathers what the clocks have.
    async fn finish(&mut self) -> Result<()> {
        tokio::time::sleep(Duration::from_secs(2)).await;
        if let Some(scope) = self.scope.take() {
            if let Some(attached) = &mut self.record.attached {
                attached.look(scope.tracer.pid());
            }
            let (started, ready, ended) = (scope.tracer.started, scope.ready, sys::monotonic());
            let (exit, quit_took, lines, messages) = scope.tracer.quit().await?;
            self.record.runs.push(Run {
                started,
                ready,
                ended,
                exit,
                killed: false,
                quit_took,
                lines,
                messages,
            });
        } else if self.binary.is_some() && self.record.runs.is_empty() {
            bail!("plegscope was never started in this story");
        }
        let log = std::fs::read_to_string(&self.lab.containerd.log).unwrap_or_default();
        let attempts = containerd_log::attempts(&log);
        let record = &mut self.record;
        record.shims = watch::shims(&self.lab).into_iter().map(|(pid, _)| pid).collect();
        record.leaked = watch::shims(&self.lab)
            .into_iter()
            .filter(|(_, id)| !self.lab.containerd.bundle(id).exists())
            .collect();
        record.calls = match (&self.client, &self.lab.kubelet) {
            (Some(client), _) => client.log.calls(),
            (None, Some(kubelet)) => kubelet.calls(),
            (None, None) => Vec::new(),
        };
        record.calls.append(&mut self.updates.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(kubelet) = &self.lab.kubelet {
            record.kubelet =
                Some(story::Kubelet { pid: kubelet.pid, longest_relist: kubelet.longest_relist() });
            record.unhealthy = kubelet.unhealthy();
        }
        record.others_list =
            self.states.is_some() || self.story.steps.iter().any(|step| matches!(step, Step::Ask(_)));
        record.states = self.states.as_ref().map(states::Watch::states).unwrap_or_default();
        record.daemon = watch::of_daemon(self.daemons.iter().flat_map(|(_, watch)| watch.stays()));
        record.traced = self.strace.take().map(Strace::finish).unwrap_or_default();
        for pod in &self.pods {
            let rootfs = self.lab.containerd.bundle(&pod.pod.container).join("rootfs");
            record.pods.push(Played {
                name: pod.name.clone(),
                pod: pod.pod.name.clone(),
                namespace: pod.pod.namespace.clone(),
                container_name: pod.pod.container_name.clone(),
                container: pod.pod.container.clone(),
                sandbox: pod.pod.sandbox.clone(),
                shim: pod.shim,
                init: pod.init,
                rootfs: rootfs.to_string_lossy().into_owned(),
                writes: pod.writes,
                told_to_exit: pod.told_to_exit,
                exited: pod.exited,
                unwritten: pod.unwritten,
                unmounts: pod.unmounts.stays(),
                attempts: attempts.iter().filter(|one| one.container == pod.pod.container).cloned().collect(),
                pins: pod.pins.clone(),
                unpinned: pod.unpinned.clone(),
            });
        }
        // Shims of pods that are about to go are remembered by the clean-up.
        self.ledger.record(Leftover::ShimSockets { state: self.lab.containerd.state.clone() })
    }
}
