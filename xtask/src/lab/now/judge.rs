//! Holds what plegscope says of a stall that it did not see begin against the lab's clocks and against the stacks that
//! the programs print of themselves.

use super::goroutines::{self, Goroutine};
use super::mount;
use crate::lab::stories::checks::said::{device, kind, links, list};
use crate::lab::story::Truth;
use crate::lab::sys::seconds;
use crate::lab::verdict::{self, Verdict, method};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What the lab's own clocks may be off by where two of them are compared, ns.
const SLACK: u64 = 20_000_000;
/// The runtime asks the shim for the state before it updates, and gives that two seconds.
const STATE_TIMEOUT: u64 = 2_000_000_000;

/// What is true of the stall beside its times.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts {
    /// The daemon.
    pub containerd: u32,
    /// The root file system that is unmounted.
    pub rootfs: PathBuf,
    /// The name of the device below it.
    pub device: String,
    /// Whether the runtime is held up by nothing else: then its time limit for the state tells when it went on.
    pub prompt: bool,
    /// The functions that the thread in the unmount is in, by the kernel.
    pub kernel: Vec<String>,
    /// What the daemon and the shim print of themselves.
    #[serde(skip)]
    pub dumps: BTreeMap<u32, Vec<Goroutine>>,
}

/// A link that the chain may have.
struct Step {
    words: &'static str,
    /// Whether it must have it.
    must: bool,
    is: fn(&Value) -> bool,
    /// Since when it lasts, by the lab's clocks.
    since: Since,
    /// A function on the stack of whoever is in it.
    function: &'static str,
}

/// Since when a link lasts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Since {
    /// Exactly since the call was made.
    List,
    /// Within the call.
    InList,
    Update,
    InUpdate,
    /// Since the runtime has given up to ask for the state.
    AfterState,
    /// After the workload was told to exit.
    Exit,
    Unmount,
    /// Within the unmount.
    InUnmount,
}

fn is_lock(link: &Value, name: &str) -> bool {
    kind(link) == "LockWait" && link["lock"]["name"] == name
}

/// All links in order. What probes add where they are attached as well is allowed, nothing else.
const CHAIN: [Step; 13] = [
    Step {
        words: "ListContainers",
        must: true,
        is: |link| kind(link) == "CriCall" && method(link) == "ListContainers",
        since: Since::List,
        function: ").ListContainers",
    },
    Step {
        words: "Status lock",
        must: true,
        is: |link| is_lock(link, "Status"),
        since: Since::InList,
        function: "sync.(*RWMutex).RLock",
    },
    Step {
        words: "UpdateContainerResources",
        must: true,
        is: |link| kind(link) == "CriCall" && method(link) == "UpdateContainerResources",
        since: Since::Update,
        function: ").UpdateContainerResources",
    },
    Step {
        words: "Status.UpdateSync",
        must: false,
        is: |link| kind(link) == "StatusUpdate",
        since: Since::InUpdate,
        function: "statusStorage).Update",
    },
    Step {
        words: "call Update",
        must: true,
        is: |link| kind(link) == "ShimCall" && method(link) == "Update",
        since: Since::InUpdate,
        function: "ttrpc.(*Client).Call",
    },
    Step {
        words: "shim Update",
        must: true,
        is: |link| kind(link) == "ShimServe" && method(link) == "Update",
        since: Since::InUpdate,
        function: ").Update",
    },
    Step {
        words: "Init.Update",
        must: false,
        is: |link| kind(link) == "InitMethod" && method(link) == "Update",
        since: Since::InUpdate,
        function: "process.(*Init).Update",
    },
    Step {
        words: "Init lock",
        must: true,
        is: |link| is_lock(link, "Init"),
        since: Since::AfterState,
        function: "sync.(*Mutex).",
    },
    Step {
        words: "shim Delete",
        must: false,
        is: |link| kind(link) == "ShimServe" && method(link) == "Delete",
        since: Since::Exit,
        function: ").Delete",
    },
    Step {
        words: "Init.Delete",
        must: true,
        is: |link| kind(link) == "InitMethod" && method(link) == "Delete",
        since: Since::Exit,
        function: "process.(*Init).Delete",
    },
    Step {
        words: "unmount",
        must: true,
        is: |link| kind(link) == "Unmount",
        since: Since::Unmount,
        function: "unix.Unmount",
    },
    Step {
        words: "shutdown",
        must: false,
        is: |link| kind(link) == "SuperShutdown",
        since: Since::InUnmount,
        function: "",
    },
    Step {
        words: "sync",
        must: false,
        is: |link| kind(link) == "Sync",
        since: Since::InUnmount,
        function: "",
    },
];

/// The step that each link of a chain is; else what is wrong with it.
fn steps(links: &[&Value]) -> Result<Vec<&'static Step>, String> {
    let (mut at, mut found, mut told) = (0, Vec::new(), BTreeSet::new());
    for link in links {
        let words = format!("{} {}", kind(link), method(link));
        let next = (at..CHAIN.len()).find(|step| (CHAIN[*step].is)(link));
        let next = next.ok_or_else(|| format!("{words} does not belong behind {}", CHAIN[at].words))?;
        at = next;
        told.insert(next);
        found.push(&CHAIN[next]);
    }
    match (0..CHAIN.len()).find(|step| CHAIN[*step].must && !told.contains(step)) {
        Some(missing) => Err(format!("{} is missing", CHAIN[missing].words)),
        None => Ok(found),
    }
}

/// The diagnosis that ends in the victim's shim, and its links with what each is.
pub struct Drawn<'f> {
    /// All of it.
    pub diagnosis: &'f Value,
    links: Vec<(&'f Value, &'static Step)>,
}

/// Finds it. An error says which chain was drawn instead.
pub fn drawn<'f>(truth: &Truth, frame: &'f Value) -> Result<Drawn<'f>, String> {
    let ours = |diagnosis: &&Value| links(diagnosis).any(|link| link["who"]["pid"] == truth.shim);
    let mut why = "no diagnosis leads to the victim's shim".to_owned();
    // Whoever else waits there may be told by himself as well.
    for diagnosis in list(frame, "diagnoses").filter(ours) {
        let links: Vec<&Value> = links(diagnosis).collect();
        match steps(&links) {
            Ok(steps) => return Ok(Drawn { diagnosis, links: links.into_iter().zip(steps).collect() }),
            Err(wrong) => why = format!("{wrong}: {}", verdict::words(diagnosis)),
        }
    }
    Err(why)
}

/// The drawn chain with all that is said of it.
pub fn chain(truth: &Truth, facts: &Facts, frame: &Value, verdict: &mut Verdict) {
    let expected: Vec<&str> = CHAIN.iter().filter(|step| step.must).map(|step| step.words).collect();
    let drawn = match drawn(truth, frame) {
        Ok(drawn) => drawn,
        Err(why) => return verdict.check("chain", expected.join(" > "), why, false),
    };
    verdict.check("chain", expected.join(" > "), verdict::words(drawn.diagnosis), true);
    let first = list(frame, "diagnoses").next() == Some(drawn.diagnosis);
    verdict.check("drawn", "first", if first { "first" } else { "behind another" }, first);
    names(truth, facts, &drawn, verdict);
    actors(truth, facts, &drawn, verdict);
    grounds(&drawn, verdict);
    ages(truth, facts, frame, &drawn, verdict);
}

/// Containers, the mount, the device.
fn names(truth: &Truth, facts: &Facts, drawn: &Drawn<'_>, verdict: &mut Verdict) {
    let right =
        format!("{}/{}/{} {}", truth.namespace, truth.pod, truth.container_name, &truth.container[..12]);
    let mut wrong = Vec::new();
    for (link, step) in &drawn.links {
        let subject = match step.since {
            Since::List => continue,
            Since::InList | Since::AfterState => &link["lock"]["subject"],
            Since::InUnmount if link["subject"].is_null() => continue,
            _ => &link["subject"],
        };
        let part = |name: &str| subject[name].as_str().unwrap_or("unknown");
        let id: String = part("id").chars().take(12).collect();
        let name = format!("{}/{}/{} {id}", part("namespace"), part("pod"), part("container"));
        if name != right || part("id") != truth.container {
            wrong.push(format!("{} of {name}", step.words));
        }
    }
    let said = if wrong.is_empty() { right.clone() } else { wrong.join(", ") };
    verdict.check("container at every link", right, said, wrong.is_empty());
    let path = drawn.links.iter().filter(|(_, step)| step.since == Since::Unmount);
    let paths: Vec<&str> = path.filter_map(|(link, _)| link["operation"]["path"].as_str()).collect();
    let rootfs = facts.rootfs.to_string_lossy();
    verdict.check(
        "mount",
        mount(&rootfs),
        paths.iter().map(|path| mount(path)).collect::<Vec<_>>().join(", "),
        !paths.is_empty() && paths.iter().all(|path| *path == rootfs),
    );
    let (end, detail) = verdict::variant(&drawn.diagnosis["ends_in"]);
    verdict.check(
        "ends in",
        format!("UnmountSync of {}", truth.device),
        format!("{end} of {}", device(detail).unwrap_or_else(|| "no device".to_owned())),
        end == "UnmountSync" && device(detail).as_ref() == Some(&truth.device),
    );
}

/// Processes, threads, goroutines.
fn actors(truth: &Truth, facts: &Facts, drawn: &Drawn<'_>, verdict: &mut Verdict) {
    let (mut wrong, mut known) = (Vec::new(), 0);
    let at = |step: &Step| CHAIN.iter().position(|other| other.words == step.words).unwrap_or(0);
    let first_of_shim = CHAIN.iter().position(|step| step.words == "shim Update").unwrap_or(0);
    for (link, step) in &drawn.links {
        let pid = if at(step) < first_of_shim { facts.containerd } else { truth.shim };
        if link["who"]["pid"] != pid {
            wrong.push(format!("{} by {} instead of {pid}", step.words, link["who"]["pid"]));
        }
        let Some(goid) = link["who"]["goid"].as_u64() else {
            // What a kernel probe has seen has a thread.
            if step.since != Since::InUnmount && link["operation"]["seen_by"] == "Memory" {
                wrong.push(format!("{} by no goroutine", step.words));
            }
            continue;
        };
        match facts.dumps.get(&pid).map(|dump| dump.iter().find(|g| g.id == goid)) {
            None => {}
            Some(Some(g)) if g.frames.iter().any(|(function, _)| function.contains(step.function)) => {
                known += 1
            }
            Some(Some(_)) => {
                wrong.push(format!("{}: goroutine {goid} is not in {}", step.words, step.function))
            }
            Some(None) => wrong.push(format!("{}: there is no goroutine {goid}", step.words)),
        }
    }
    let told = if wrong.is_empty() { format!("{known} goroutines are there") } else { wrong.join(", ") };
    let all = facts.dumps.is_empty() || known >= 8;
    verdict.check("who", "as the programs' own stacks say", told, wrong.is_empty() && all);
    let tids: Vec<u64> = drawn
        .links
        .iter()
        .filter(|(_, step)| step.since == Since::Unmount)
        .filter_map(|(link, _)| link["who"]["tid"].as_u64())
        .collect();
    let inside: Vec<u32> = truth.unmounts.iter().filter(|s| s.end.is_none()).map(|s| s.tid).collect();
    verdict.check(
        "thread in umount2",
        format!("{inside:?}"),
        format!("{tids:?}"),
        !tids.is_empty() && tids.iter().all(|tid| inside.iter().any(|inside| u64::from(*inside) == *tid)),
    );
}

/// Without a probe all is seen in memory, and each link says so.
pub fn seen_in_memory(truth: &Truth, frame: &Value, verdict: &mut Verdict) {
    let drawn = drawn(truth, frame);
    let by: BTreeSet<&str> = drawn
        .iter()
        .flat_map(|drawn| &drawn.links)
        .map(|(link, _)| link["operation"]["seen_by"].as_str().unwrap_or("-"))
        .collect();
    verdict.check("seen by", "Memory alone", format!("{by:?}"), by.into_iter().eq(["Memory"]));
}

/// Nothing that was concluded is called proven.
fn grounds(drawn: &Drawn<'_>, verdict: &mut Verdict) {
    let holders: Vec<(&str, &str)> = drawn
        .links
        .iter()
        .filter(|(link, _)| link["edge"]["kind"] == "WaitsForHolder")
        .map(|(link, _)| {
            let edge = &link["edge"];
            (edge["confidence"].as_str().unwrap_or_default(), edge["evidence"].as_str().unwrap_or_default())
        })
        .collect();
    let text: Vec<String> = holders.iter().map(|(how, why)| format!("{how}: {why}")).collect();
    verdict.check(
        "holders",
        "two, inferred, with the reason",
        text.join("; "),
        holders.len() == 2 && holders.iter().all(|(how, why)| *how == "Inferred" && !why.is_empty()),
    );
}

/// Each age at the moment of the frame: what is exact is right, what is said with "at least" is not too much.
fn ages(truth: &Truth, facts: &Facts, frame: &Value, drawn: &Drawn<'_>, verdict: &mut Verdict) {
    let now = frame["now"].as_u64().unwrap_or(0);
    // Of the calls that were in flight then; earlier ones may have taken longer than these had by then.
    let in_flight = |method: &str, container: Option<&String>| {
        let of = truth.calls.iter().filter(|call| call.method == method && call.begin <= now);
        let then = of.filter(|call| call.end.is_none_or(|end| end > now));
        then.filter(|call| container.is_none() || call.container.as_ref() == container)
            .map(|call| call.begin)
            .min()
    };
    let list_call = in_flight("ListContainers", None);
    let update = in_flight("UpdateContainerResources", Some(&truth.container));
    let mut mutex = None;
    for (link, step) in &drawn.links {
        let (since, exact) = match step.since {
            Since::List => (list_call, true),
            Since::InList => (list_call, false),
            Since::Update => (update, true),
            Since::InUpdate => (update, false),
            Since::AfterState => (update.map(|begin| begin + STATE_TIMEOUT), facts.prompt),
            Since::Exit => (Some(truth.told_to_exit), false),
            Since::Unmount => (truth.unmount_at(now), true),
            Since::InUnmount => (truth.unmount_at(now), false),
        };
        let said = link["age"].as_u64().unwrap_or(u64::MAX);
        let least = link["operation"]["began"] == "ThenOrBefore";
        let (text, agree) = match since.map(|begin| now.saturating_sub(begin)) {
            None => ("not known".to_owned(), false),
            Some(age) => {
                let not_more = said <= age + (age / 20).max(SLACK);
                let near = verdict::close(age, said) || age.abs_diff(said) <= SLACK;
                let within = if exact { "" } else { "at most " };
                (format!("{within}{}", seconds(age)), if least || !exact { not_more } else { near })
            }
        };
        // Go keeps the time of this one.
        let timed = step.since != Since::AfterState || !least;
        let said_text = format!("{}{}", if least { "at least " } else { "" }, seconds(said));
        verdict.check(&format!("age of {}", step.words), text, said_text, agree && timed);
        if step.since == Since::AfterState {
            mutex = Some(said);
        }
    }
    let bound = |since: Since| {
        let mut of = drawn.links.iter().filter(move |(_, step)| step.since == since);
        of.all(|(link, _)| link["age"].as_u64() >= mutex)
    };
    verdict.check(
        "the update, as old as the wait in it",
        mutex.map_or("-".to_owned(), |age| format!("at least {}", seconds(age))),
        "",
        mutex.is_some() && bound(Since::Update) && bound(Since::InUpdate),
    );
}

/// What is told of each process, held against its own stacks.
pub fn stacks(truth: &Truth, facts: &Facts, report: &Value, verdict: &mut Verdict) {
    for (pid, dump) in &facts.dumps {
        let looked = list(report, "processes").find(|one| one["process"]["pid"] == *pid);
        let said: Vec<(&Value, Vec<&str>)> = looked
            .into_iter()
            .flat_map(|one| list(&one["look"]["Ok"], "goroutines"))
            .map(|g| (g, functions(g)))
            .collect();
        // Which of them sit where they sat when the program printed them: all but a few, on a node that is stuck.
        let (mut same, mut state, mut others) = (0, 0, Vec::new());
        for g in dump {
            let Some((one, functions)) = said.iter().find(|(one, _)| one["goid"] == g.id) else { continue };
            // Go leaves out what the compiler wraps around the call of a `go` statement; here it is told.
            let maker = one["created_by"][0]["function"].as_str().unwrap_or("-");
            let unwrapped = functions
                .split_last()
                .filter(|(last, _)| last.strip_prefix(maker).is_some_and(|rest| rest.starts_with(".func")));
            let wrapped = unwrapped.is_some_and(|(_, rest)| g.functions() == *rest);
            if wrapped || g.functions() == *functions {
                same += 1;
                state += usize::from(one["state"] == g.state.as_str());
            } else if !g.cut {
                others.push(format!(
                    "{}: {:?} instead of {:?}",
                    g.id,
                    functions.first(),
                    g.functions().first()
                ));
            }
        }
        let name = if *pid == truth.shim { "the shim's stacks" } else { "containerd's stacks" };
        verdict.check(
            name,
            format!("{} goroutines by Go itself", dump.len()),
            format!("{same} the same, {state} of them in the same state; others: {}", shortly(&others)),
            same * 10 >= dump.len() * 8 && state * 10 >= same * 9,
        );
    }
    let site = list(report, "processes")
        .filter(|one| one["process"]["pid"] == truth.shim)
        .flat_map(|one| list(&one["look"]["Ok"], "goroutines"))
        .map(|g| &g["thread"])
        .find(|thread| thread["syscall"] == libc::SYS_umount2);
    let said: Vec<&str> =
        site.map_or(Vec::new(), |site| list(site, "kernel_stack").filter_map(Value::as_str).collect());
    verdict.check(
        "kernel stack of the unmount",
        facts.kernel[..facts.kernel.len().min(4)].join(" < "),
        said[..said.len().min(4)].join(" < "),
        !said.is_empty() && facts.kernel.iter().zip(&said).filter(|(a, b)| a == *b).count() >= 3,
    );
}

/// The functions of a goroutine that Go tells as well.
fn functions(goroutine: &Value) -> Vec<&str> {
    list(goroutine, "frames")
        .filter(|frame| frame["file"] != "<autogenerated>")
        .filter_map(|frame| frame["function"].as_str())
        .filter(|function| !function.starts_with("runtime."))
        .collect()
}

fn shortly(all: &[String]) -> String {
    match all {
        [] => "none".to_owned(),
        all => format!("{} ({})", all.len(), all[..all.len().min(2)].join("; ")),
    }
}

/// The text for people.
pub fn text(truth: &Truth, facts: &Facts, out: &str, verdict: &mut Verdict) {
    let first = out.lines().next().unwrap_or_default();
    let pod = format!("{}/{}", truth.namespace, truth.pod);
    verdict.check(
        "the first line",
        format!("STUCK …, {pod} and {}", facts.device),
        first,
        first.starts_with("STUCK ") && first.contains(&pod) && first.contains(&facts.device),
    );
    let mut rest = out.lines().skip_while(|line| !line.trim_start().starts_with("where they sit"));
    let lines = out.lines().take_while(|line| !line.trim_start().starts_with("where they sit")).count();
    let sits = rest.any(|line| line.contains("unix.Unmount") && line.contains("(*Init).Delete"));
    verdict.check(
        "lines before it says where they sit",
        "at most 20",
        lines.to_string(),
        lines <= 20 && sits,
    );
    let held: Vec<&str> = out.lines().filter(|line| line.contains("held by")).collect();
    verdict.check(
        "lines with a holder",
        "two, none of them proven",
        held.len().to_string(),
        held.len() >= 2 && held.iter().all(|line| !line.contains("proven")),
    );
}

/// Go's own form.
pub fn tracebacks(truth: &Truth, out: &str, verdict: &mut Verdict) {
    let mut sections: Vec<(&str, String)> = Vec::new();
    for line in out.lines() {
        match (line.strip_prefix("# "), sections.last_mut()) {
            (Some(title), _) => sections.push((title, String::new())),
            (None, Some((_, text))) => *text += &format!("{line}\n"),
            (None, None) => sections.push(("", format!("{line}\n"))),
        }
    }
    let (mut wrong, mut count, mut delete) = (Vec::new(), 0, None);
    for (title, text) in &sections {
        match goroutines::parse(text) {
            Ok(all) => {
                count += all.len();
                if title.contains(&format!(" {},", truth.shim)) {
                    let place =
                        |g: &Goroutine, name: &str| g.functions().iter().position(|f| f.ends_with(name));
                    delete = delete.or(all.iter().find_map(|g| {
                        let way = [
                            "unix.Unmount",
                            "mount.UnmountAll",
                            "process.(*Init).Delete",
                            "(*service).Delete",
                        ];
                        let places: Vec<usize> = way.iter().filter_map(|name| place(g, name)).collect();
                        (places.len() == 4 && places.is_sorted()).then(|| g.functions().join(" < "))
                    }));
                }
            }
            Err(why) => wrong.push(format!("{title}: {why:#}")),
        }
    }
    verdict.check(
        "--format goroutine",
        "is read by Go's rules",
        if wrong.is_empty() {
            format!("{count} goroutines of {} processes", sections.len())
        } else {
            wrong.join("; ")
        },
        wrong.is_empty() && count > 20,
    );
    verdict.check(
        "its stack of the shim's Delete",
        "unix.Unmount < … < Init.Delete < … < Delete",
        delete.clone().unwrap_or_else(|| "is not there".to_owned()),
        delete.is_some(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::kubelet_like::Call;
    use crate::lab::story::Block;
    use crate::lab::unmounts::Stay;
    use serde_json::json;

    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 20 * SECOND;
    const ROOTFS: &str = "/run/lab/state/c1c1c1c1c1c1c1/rootfs";

    fn truth() -> Truth {
        let call = |method: &str, container: Option<&str>, begin: u64| Call {
            method: method.to_owned(),
            container: container.map(str::to_owned),
            begin: begin * SECOND,
            end: None,
            error: None,
        };
        Truth {
            block: Block::Disk,
            container: "c1c1c1c1c1c1c1".to_owned(),
            pod: "victim".to_owned(),
            namespace: "lab".to_owned(),
            container_name: "worker".to_owned(),
            shim: 7,
            own: Vec::new(),
            kubelet: None,
            device: "7:0".to_owned(),
            told_to_exit: 9 * SECOND,
            calls: vec![
                call("ListContainers", None, 13),
                call("UpdateContainerResources", Some("c1c1c1c1c1c1c1"), 12),
            ],
            unmounts: vec![Stay { tid: 71, call: 166, begin: 10 * SECOND, ..Stay::default() }],
            traced: Vec::new(),
            failed_attempts: 0,
        }
    }

    fn facts() -> Facts {
        let dump = |all: &[(u64, &[&str])]| -> Vec<Goroutine> {
            let frames =
                |names: &[&str]| names.iter().map(|name| (name.to_string(), "a.go".into())).collect();
            let one = |(id, names): &(u64, &[&str])| Goroutine {
                id: *id,
                state: "select".into(),
                frames: frames(names),
                created_by: None,
                cut: false,
            };
            all.iter().map(one).collect()
        };
        let update = ["ttrpc.(*Client).Call", "statusStorage).UpdateSync", "x).UpdateContainerResources"];
        let containerd = dump(&[(60, &["sync.(*RWMutex).RLock", "x).ListContainers"]), (50, &update)]);
        let shim = dump(&[
            (70, &["sync.(*Mutex).Lock", "process.(*Init).Update", "x).Update"]),
            (80, &["unix.Unmount", "process.(*Init).Delete", "x).Delete"]),
        ]);
        Facts {
            containerd: 5,
            rootfs: ROOTFS.into(),
            device: "/dev/loop0".into(),
            prompt: true,
            kernel: Vec::new(),
            dumps: [(5, containerd), (7, shim)].into(),
        }
    }

    /// What is said: kind, method, process, goroutine, age in seconds, how its begin is known.
    fn frame() -> Value {
        let subject =
            json!({"id": "c1c1c1c1c1c1c1", "namespace": "lab", "pod": "victim", "container": "worker"});
        let link = |what: (&str, &str), who: (u64, u64), age: u64, began: &str| {
            json!({
                "operation": {"kind": what.0, "method": what.1, "began": began, "seen_by": "Memory", "path": null},
                "who": {"pid": who.0, "goid": who.1, "tid": 0}, "age": age * SECOND, "subject": subject,
                "edge": {"kind": "Contains", "confidence": "Proven", "evidence": "same goroutine"}, "lock": null,
            })
        };
        let before = "ThenOrBefore";
        let mut links = vec![
            link(("CriCall", "ListContainers"), (5, 60), 2, before),
            link(("LockWait", ""), (5, 60), 2, before),
            link(("CriCall", "UpdateContainerResources"), (5, 50), 6, before),
            link(("StatusUpdate", "UpdateSync"), (5, 50), 6, before),
            link(("ShimCall", "Update"), (5, 50), 6, before),
            link(("ShimServe", "Update"), (7, 70), 6, before),
            link(("InitMethod", "Update"), (7, 70), 6, before),
            link(("LockWait", ""), (7, 70), 6, "Then"),
            link(("InitMethod", "Delete"), (7, 80), 3, before),
            link(("Unmount", ""), (7, 80), 3, before),
        ];
        for (at, name) in [(1, "Status"), (7, "Init")] {
            links[at]["lock"] = json!({"name": name, "subject": subject});
            links[at + 1]["edge"] =
                json!({"kind": "WaitsForHolder", "confidence": "Inferred", "evidence": "the only one"});
        }
        links[9]["operation"]["path"] = json!(ROOTFS);
        links[9]["who"]["tid"] = json!(71);
        let device = json!({"device": {"major": 7, "minor": 0}, "name": "/dev/loop0"});
        json!({"now": NOW, "diagnoses": [{
            "chain": {"links": links, "age": 2 * SECOND},
            "ends_in": {"UnmountSync": {"device": device, "fs_type": "ext4"}},
        }]})
    }

    fn wrong(frame: &Value) -> Vec<String> {
        let mut verdict = Verdict::default();
        chain(&truth(), &facts(), frame, &mut verdict);
        verdict.0.into_iter().filter(|check| check.agree == Some(false)).map(|check| check.what).collect()
    }

    #[test]
    fn the_right_chain_passes() {
        assert_eq!(wrong(&frame()), [""; 0]);
    }

    #[test]
    fn each_wrong_word_is_found() {
        let right = frame();
        for (place, value, found) in [
            ("/diagnoses/0/chain/links/9/operation/path", json!("/run/other"), "mount"),
            ("/diagnoses/0/chain/links/9/who/tid", json!(72), "thread in umount2"),
            ("/diagnoses/0/chain/links/2/subject/pod", json!("neighbour"), "container at every link"),
            ("/diagnoses/0/chain/links/7/lock/subject/id", json!("c2"), "container at every link"),
            ("/diagnoses/0/ends_in/UnmountSync/device/device/minor", json!(1), "ends in"),
            ("/diagnoses/0/chain/links/1/lock/name", json!("Other"), "chain"),
            ("/diagnoses/0/chain/links/4/operation/method", json!("State"), "chain"),
            ("/diagnoses/0/chain/links/5/who/pid", json!(8), "who"),
            ("/diagnoses/0/chain/links/2/who/goid", json!(60), "who"),
            ("/diagnoses/0/chain/links/8/who/goid", json!(81), "who"),
            ("/diagnoses/0/chain/links/8/edge/confidence", json!("Proven"), "holders"),
            ("/diagnoses/0/chain/links/0/age", json!(8 * SECOND), "age of ListContainers"),
            ("/diagnoses/0/chain/links/0/operation/began", json!("Then"), "age of ListContainers"),
            ("/diagnoses/0/chain/links/7/age", json!(5 * SECOND), "age of Init lock"),
            ("/diagnoses/0/chain/links/7/operation/began", json!("ThenOrBefore"), "age of Init lock"),
            ("/diagnoses/0/chain/links/9/age", json!(11 * SECOND), "age of unmount"),
            ("/diagnoses/0/chain/links/2/age", json!(SECOND), "the update, as old as the wait in it"),
        ] {
            let mut frame = right.clone();
            *frame.pointer_mut(place).unwrap() = value;
            let wrong = wrong(&frame);
            assert!(wrong.iter().any(|what| what == found), "{place}: {wrong:?}");
        }
        let mut frame = right;
        frame.pointer_mut("/diagnoses/0/chain/links").unwrap().as_array_mut().unwrap().swap(4, 5);
        assert_eq!(wrong(&frame), ["chain"], "out of order");
    }
}
