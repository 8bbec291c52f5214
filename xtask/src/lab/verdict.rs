//! Holds what plegscope said against what the lab's own clocks say, as a table with one check per line.
//!
//! Pure: it reads [`Truth`] and the frames of `plegscope live --json` (one JSON object per line, the serde form of the
//! correlator's `Frame`), so that it can be tested without a node.

pub use super::checks::{Verdict, close};

use super::checks::TOLERANCE;
use super::story::{Block, Kubelet, Truth};
use super::sys::seconds;
use super::tracer::Line;
use serde_json::Value;

/// How late the chain may be shown.
const SHOWN_WITHIN: u64 = 1_000_000_000;
/// The runtime asks the shim for the state before it updates, and gives that two seconds.
const STATE_TIMEOUT: u64 = 2_000_000_000;

/// A frame of plegscope and when its line came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When the line was read, ns of CLOCK_MONOTONIC.
    pub at: u64,
    /// The frame.
    pub frame: Value,
}

/// The frames among the lines of `plegscope live --json`.
pub fn frames(lines: &[Line]) -> Vec<Seen> {
    lines
        .iter()
        .filter_map(|line| Some(Seen { at: line.at, frame: serde_json::from_str(&line.text).ok()? }))
        .filter(|seen| seen.frame["diagnoses"].is_array())
        .collect()
}

/// A link the chain must have. `early` takes what may stand there before the runtime reaches the final call.
struct Step {
    words: &'static str,
    is: fn(&Value) -> bool,
    early: fn(&Value) -> bool,
}

/// What a link is.
pub fn kind(link: &Value) -> &str {
    link["operation"]["kind"].as_str().unwrap_or_default()
}

/// Its method, without the service.
pub fn method(link: &Value) -> &str {
    // A ttrpc or gRPC method may carry its service in front.
    let method = link["operation"]["method"].as_str().unwrap_or_default();
    method.rsplit('/').next().unwrap_or_default()
}

fn lock(link: &Value, name: &str) -> bool {
    kind(link) == "LockWait" && link["lock"]["name"] == name
}

/// The published chain, from the symptom to the unmount.
const PATH: [Step; 7] = [
    Step { words: "ListContainers", is: |link| method(link) == "ListContainers", early: |_| false },
    Step { words: "Status lock", is: |link| lock(link, "Status"), early: |_| false },
    Step {
        words: "UpdateContainerResources",
        is: |link| kind(link) == "CriCall" && method(link) == "UpdateContainerResources",
        early: |_| false,
    },
    Step {
        words: "shim Update",
        is: |link| matches!(kind(link), "ShimCall" | "ShimServe") && method(link) == "Update",
        early: |link| matches!(kind(link), "ShimCall" | "ShimServe") && method(link) == "State",
    },
    Step { words: "Init.mu", is: |link| lock(link, "Init"), early: |_| false },
    Step {
        words: "Delete",
        is: |link| kind(link) == "InitMethod" && method(link) == "Delete",
        early: |_| false,
    },
    Step { words: "unmount", is: |link| kind(link) == "Unmount", early: |_| false },
];

/// The links of the path, when they all stand in a chain in this order; `early` allows what comes before the final call.
fn along(links: &[Value], early: bool) -> Option<[&Value; 7]> {
    let mut rest = links.iter();
    let mut found = [&Value::Null; 7];
    for (step, place) in PATH.iter().zip(&mut found) {
        *place = rest.find(|link| (step.is)(link) || early && (step.early)(link))?;
    }
    Some(found)
}

/// All chains of a frame that follow the path into the victim's shim: plegscope sees the whole node, where other labs
/// may run.
fn chains<'f>(truth: &Truth, frame: &'f Value, early: bool) -> Vec<(&'f Value, [&'f Value; 7])> {
    let diagnoses = frame["diagnoses"].as_array().map(Vec::as_slice).unwrap_or_default();
    diagnoses
        .iter()
        .filter_map(|diagnosis| Some((diagnosis, along(diagnosis["chain"]["links"].as_array()?, early)?)))
        .filter(|(_, links)| links[6]["who"]["pid"] == truth.shim)
        .collect()
}

/// A chain in words, for the table and for failures.
pub fn words(diagnosis: &Value) -> String {
    let links = diagnosis["chain"]["links"].as_array().map(Vec::as_slice).unwrap_or_default();
    let parts: Vec<String> = links
        .iter()
        .map(|link| match (link["lock"]["name"].as_str(), method(link)) {
            (Some(name), _) => format!("{name} lock"),
            (None, "") => kind(link).to_owned(),
            (None, method) => format!("{} {method}", kind(link)),
        })
        .collect();
    parts.join(" > ")
}

/// Judges a run in which nothing blocked.
pub fn healthy(truth: &Truth, frames: &[Seen]) -> Verdict {
    let mut verdict = Verdict::default();
    let longest = truth.longest("relist").map(|call| call.age(call.begin));
    verdict.note(
        "relists",
        format!("longest {}", longest.map_or("-".to_owned(), seconds)),
        format!("{} frames", frames.len()),
    );
    let incidents = own_incidents(&truth.own, frames);
    verdict.check("incidents", "none", list(&incidents), incidents.is_empty());
    let chains: Vec<String> = frames
        .iter()
        .flat_map(|seen| seen.frame["diagnoses"].as_array().map(Vec::as_slice).unwrap_or_default())
        .map(words)
        .collect();
    verdict.note("chains shown", "", chains.last().cloned().unwrap_or_else(|| "none".to_owned()));
    verdict
}

/// Judges a run in which an unmount blocked a relist.
pub fn incident(truth: &Truth, frames: &[Seen]) -> Verdict {
    let mut verdict = Verdict::default();
    let Some(list_call) = truth.longest("ListContainers") else {
        verdict.check("lab", "a ListContainers call", "none was made", false);
        return verdict;
    };
    let (begin, end) = (list_call.begin, list_call.end.unwrap_or(u64::MAX));
    let during: Vec<&Seen> = frames.iter().filter(|seen| seen.at >= begin && seen.at <= end).collect();

    let shown = |early: bool| {
        during.iter().find(|seen| !chains(truth, &seen.frame, early).is_empty()).map(|seen| seen.at)
    };
    let path = PATH.map(|step| step.words).join(" > ");
    let first = shown(true);
    let deepest = during
        .iter()
        .flat_map(|seen| seen.frame["diagnoses"].as_array().map(Vec::as_slice).unwrap_or_default())
        .map(words)
        .max_by_key(String::len)
        .unwrap_or_else(|| "no chain at all".to_owned());
    verdict.check("chain", path, deepest, shown(false).is_some());
    verdict.check(
        "shown while it lasts",
        "within 1 s of the block",
        first.map_or("never".to_owned(), |at| format!("{} after it", seconds(at - begin))),
        first.is_some_and(|at| at - begin <= SHOWN_WITHIN),
    );
    let update = truth.update();
    if let Some(update) = update {
        // From then on the call to the shim is Update; the chain must say so within a second.
        let latest = begin.max(update.begin + STATE_TIMEOUT) + SHOWN_WITHIN;
        let exact = shown(false);
        verdict.check(
            "the shim's Update named",
            format!("within {} of the block", seconds(latest - begin)),
            exact.map_or("never".to_owned(), |at| format!("{} after it", seconds(at - begin))),
            exact.is_some_and(|at| at <= latest),
        );
    }

    let last = during
        .iter()
        .rev()
        .find_map(|seen| Some((*seen, chains(truth, &seen.frame, false).into_iter().next()?)));
    if let Some((seen, (diagnosis, links))) = last {
        names(&mut verdict, truth, diagnosis, &links);
        ages(&mut verdict, truth, &seen.frame, diagnosis, &links);
        if let Some(kubelet) = &truth.kubelet {
            kubelets_own(&mut verdict, truth, kubelet, &seen.frame, diagnosis);
        }
    }
    afterwards(&mut verdict, truth, frames);
    verdict
}

/// The right container and pod at every link that is about one.
fn names(verdict: &mut Verdict, truth: &Truth, diagnosis: &Value, links: &[&Value; 7]) {
    let [_, status, _, _, init, _, unmount] = links;
    let subjects = [&status["lock"]["subject"], &init["lock"]["subject"], &unmount["subject"]];
    let ids: Vec<&str> = subjects.iter().map(|subject| subject["id"].as_str().unwrap_or("unknown")).collect();
    let short = |id: &str| id.chars().take(12).collect::<String>();
    verdict.check(
        "container",
        short(&truth.container),
        ids.iter().map(|id| short(id)).collect::<Vec<_>>().join(", "),
        ids.iter().all(|id| *id == truth.container),
    );
    let name = |subject: &Value| {
        ["namespace", "pod", "container"]
            .map(|key| subject[key].as_str().unwrap_or("unknown").to_owned())
            .join("/")
    };
    let right = format!("{}/{}/{}", truth.namespace, truth.pod, truth.container_name);
    let said = subjects.map(name);
    verdict.check("pod", right.as_str(), said[0].as_str(), said.iter().all(|name| *name == right));
    let (kind, detail) = variant(&diagnosis["ends_in"]);
    let expected: &[&str] = match truth.block {
        Block::Strace => &["Unmount", "Frozen"],
        _ => &["UnmountSync", "Unmount"],
    };
    verdict.check("ends in", expected.join(" or "), format!("{kind} {detail}"), expected.contains(&kind));
    // Naming no device is honest where the kernel does not let us see it; naming a wrong one is not.
    let device = &detail["device"]["device"];
    if !device.is_null() {
        let said = format!("{}:{}", device["major"], device["minor"]);
        verdict.check("device", truth.device.as_str(), said.as_str(), said == truth.device);
    }
}

/// Ages while it lasts, at the moment of the last frame that shows the whole chain.
fn ages(verdict: &mut Verdict, truth: &Truth, frame: &Value, diagnosis: &Value, links: &[&Value; 7]) {
    let Some(now) = frame["now"].as_u64() else {
        verdict.check("frame", "has a time", "none", false);
        return;
    };
    let since = |begin: Option<u64>| begin.map(|begin| now.saturating_sub(begin));
    let list_call = truth.longest("ListContainers").map(|call| call.begin);
    verdict.duration("age of ListContainers", since(list_call), links[0]["age"].as_u64());
    verdict.duration(
        "age of the update",
        since(truth.update().map(|call| call.begin)),
        links[2]["age"].as_u64(),
    );
    verdict.duration("age of the unmount", since(truth.unmount_at(now)), links[6]["age"].as_u64());
    let all = diagnosis["chain"]["links"].as_array().map(Vec::as_slice).unwrap_or_default();
    let sum: u64 = all.iter().filter_map(|link| link["critical"].as_u64()).sum();
    let age = diagnosis["chain"]["age"].as_u64();
    verdict.check(
        "seconds per link",
        "sum to the call's age",
        format!("{} of {}", seconds(sum), age.map_or("-".to_owned(), seconds)),
        age == Some(sum),
    );
}

/// With a real kubelet the chain begins with its own relist, not with a call in containerd that stands for it.
fn kubelets_own(verdict: &mut Verdict, truth: &Truth, kubelet: &Kubelet, frame: &Value, diagnosis: &Value) {
    let links = diagnosis["chain"]["links"].as_array().map(Vec::as_slice).unwrap_or_default();
    let (relist, call) = (links.first().unwrap_or(&Value::Null), links.get(1).unwrap_or(&Value::Null));
    let whose = |link: &Value| {
        let (role, pid) = (&link["who"]["role"], &link["who"]["pid"]);
        format!("{} of {} {pid}", kind(link), role.as_str().unwrap_or("unknown"))
    };
    verdict.check(
        "head",
        format!("Relist of Kubelet {}, by a probe", kubelet.pid),
        format!("{}, seen by {}", whose(relist), relist["operation"]["seen_by"]),
        kind(relist) == "Relist"
            && relist["who"]["role"] == "Kubelet"
            && relist["who"]["pid"] == kubelet.pid
            && relist["operation"]["seen_by"] == "Uprobe"
            && diagnosis["head"] == "Relist"
            && frame["relists"]["stand_in"] == false,
    );
    verdict.check(
        "the relist's call",
        format!("CriClient of Kubelet {}", kubelet.pid),
        format!("{}: {}", whose(call), method(call)),
        kind(call) == "CriClient" && call["who"]["pid"] == kubelet.pid && method(call) == "ListContainers",
    );
    let begin = truth.longest("relist").map(|call| call.begin);
    let age = frame["now"].as_u64().zip(begin).map(|(now, begin)| now.saturating_sub(begin));
    verdict.duration("age of the relist", age, relist["age"].as_u64());
}

/// What must be true when all is over.
fn afterwards(verdict: &mut Verdict, truth: &Truth, frames: &[Seen]) {
    let Some(last) = frames.last().map(|seen| &seen.frame) else {
        verdict.check("frames", "some", "none", false);
        return;
    };
    let stall = truth.longest("ListContainers").map(|call| call.age(call.begin));
    // A kubelet's metric is the better truth: a relist can be more than its list.
    let relist = truth.kubelet.map(|kubelet| kubelet.longest_relist[1]).or(stall);
    verdict.duration("longest relist, when over", relist, last["relists"]["longest"].as_u64());
    let (explained, unexplained) =
        (last["relists"]["explained"].as_u64(), last["relists"]["unexplained"].as_u64());
    verdict.check(
        "slow relists",
        "all explained",
        format!("{} explained, {} not", explained.unwrap_or(0), unexplained.unwrap_or(0)),
        explained > Some(0) && unexplained == Some(0),
    );
    let incidents = own_incidents(&truth.own, frames);
    verdict.check("incidents", "one", list(&incidents), incidents.len() == 1);
    let ended = frames
        .iter()
        .flat_map(incidents_of)
        .find(|incident| incident["ended"].is_u64() && !foreign(&truth.own, incident));
    let over = truth.blocked_unmount().map(|(_, end)| end);
    let said = ended.and_then(|incident| incident["ended"].as_u64());
    // Where containerd has given up attempts at the exit, it is handled after the pause that it makes then: a second, doubled
    // each time (`cri/server/events.go`).
    let pause = if truth.failed_attempts == 0 { 0 } else { 1_000_000_000 << truth.failed_attempts.min(8) };
    let near = matches!((over, said, stall), (Some(over), Some(said), Some(stall)) if {
        let slack = (stall as f64 * TOLERANCE) as u64;
        (over.saturating_sub(slack)..=over + slack + pause).contains(&said)
    });
    let after = |at: Option<u64>| match (at, truth.told_to_exit) {
        (Some(at), exit) => format!("{} after the exit", seconds(at.saturating_sub(exit))),
        (None, _) => "-".to_owned(),
    };
    verdict.check("incident ended", after(over), after(said), near);
    let losses = last["losses"].as_array().map_or(0, Vec::len);
    verdict.note("losses", "", if losses == 0 { "none".to_owned() } else { last["losses"].to_string() });
}

/// The incidents of a frame.
pub fn incidents_of(seen: &Seen) -> impl Iterator<Item = &Value> {
    seen.frame["incidents"].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

/// Ids of all incidents that were not merged into another.
fn incident_ids(frames: &[Seen]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for incident in frames.iter().flat_map(incidents_of) {
        let Some(id) = incident["id"].as_str() else { continue };
        if !incident["change"]["MergedInto"].is_null() {
            ids.retain(|known| known != id);
        } else if !ids.iter().any(|known| known == id) {
            ids.push(id.to_owned());
        }
    }
    ids
}

/// Whether an incident is known to be about containers of somebody else: other labs may run on the same node.
pub fn foreign(own: &[String], incident: &Value) -> bool {
    let about = incident["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let own = |subject: &Value| own.iter().any(|id| subject["id"] == id.as_str());
    !about.is_empty() && !about.iter().any(own)
}

/// Ids of the incidents that are not foreign.
pub fn own_incidents(own: &[String], frames: &[Seen]) -> Vec<String> {
    let others: Vec<&str> = frames
        .iter()
        .flat_map(incidents_of)
        .filter(|incident| foreign(own, incident))
        .filter_map(|incident| incident["id"].as_str())
        .collect();
    incident_ids(frames).into_iter().filter(|id| !others.contains(&id.as_str())).collect()
}

/// Words for a table.
pub fn list(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

/// The one sentence of each incident, as plegscope knew it last.
pub fn summaries(frames: &[Seen]) -> Vec<String> {
    let last = |id: &String| {
        let of = |incident: &&Value| incident["id"].as_str() == Some(id);
        frames.iter().rev().flat_map(incidents_of).find(of).and_then(|incident| incident["summary"].as_str())
    };
    incident_ids(frames).iter().filter_map(last).map(str::to_owned).collect()
}

/// Name and content of an enum value in serde's form.
pub fn variant(value: &Value) -> (&str, &Value) {
    match value {
        Value::String(name) => (name, &Value::Null),
        Value::Object(map) => {
            map.iter().next().map_or(("-", &Value::Null), |(name, content)| (name, content))
        }
        _ => ("-", &Value::Null),
    }
}

/// Whether the lab's clocks agree among each other; what plegscope is held against must itself be sound.
pub fn truth(truth: &Truth) -> Verdict {
    let mut verdict = Verdict::default();
    let unmount = truth.blocked_unmount();
    let over = unmount.map(|(_, end)| end);
    let shown = |call: Option<&super::kubelet_like::Call>| {
        call.map_or("-".to_owned(), |call| format!("{} in all", seconds(call.age(call.begin))))
    };
    // Everything is released by the same unlock: the ends lie within a few milliseconds, a busy machine's tens.
    let together = |call: Option<&super::kubelet_like::Call>| matches!((call.and_then(|call| call.end), over), (Some(end), Some(over)) if end.abs_diff(over) < 500_000_000);
    let (list_call, update) = (truth.longest("ListContainers"), truth.update());
    verdict.note(
        "unmount (from /proc)",
        unmount.map_or("-".to_owned(), |(begin, end)| seconds(end - begin)),
        "",
    );
    if truth.block == Block::Strace {
        let sum: u64 = truth.traced.iter().map(|call| call.took).sum();
        let agree = unmount.is_some_and(|(begin, end)| close(end - begin, sum));
        verdict.check(
            "unmount (from strace -T)",
            format!("{} in {} calls", seconds(sum), truth.traced.len()),
            "",
            agree,
        );
    }
    verdict.check("UpdateContainerResources", shown(update), "", together(update));
    verdict.check("ListContainers", shown(list_call), "", together(list_call));
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::kubelet_like::Call;
    use crate::lab::unmounts::Stay;
    use serde_json::json;

    const SECOND: u64 = 1_000_000_000;

    fn call(method: &str, container: Option<&str>, begin: u64, end: u64) -> Call {
        Call {
            method: method.to_owned(),
            container: container.map(str::to_owned),
            begin: begin * SECOND,
            end: Some(end * SECOND),
            error: None,
        }
    }

    fn story() -> Truth {
        Truth {
            block: Block::Disk,
            container: "c1".to_owned(),
            pod: "victim".to_owned(),
            namespace: "lab".to_owned(),
            container_name: "worker".to_owned(),
            shim: 7,
            own: vec!["c1".to_owned()],
            kubelet: None,
            device: "7:0".to_owned(),
            told_to_exit: 9 * SECOND,
            calls: vec![
                call("ListContainers", None, 8, 8),
                call("UpdateContainerResources", Some("c1"), 12, 30),
                call("ListContainers", None, 13, 30),
            ],
            unmounts: vec![Stay {
                tid: 71,
                call: 166,
                begin: 10 * SECOND,
                end: Some(30 * SECOND),
                ..Stay::default()
            }],
            traced: Vec::new(),
            failed_attempts: 0,
        }
    }

    fn link(kind: &str, method: &str, lock: Option<&str>, age: u64, critical: u64) -> Value {
        let subject = json!({"id": "c1", "namespace": "lab", "pod": "victim", "container": "worker"});
        json!({
            "operation": {"kind": kind, "method": method}, "subject": subject, "age": age * SECOND,
            "who": {"pid": 7},
            "critical": critical * SECOND,
            "lock": lock.map(|name| json!({"name": name, "subject": subject})),
        })
    }

    fn frame(at: u64, shim_method: &str, age: u64, incidents: Value) -> Seen {
        let links = json!([
            link("CriCall", "ListContainers", None, age, 0),
            link("LockWait", "", Some("Status"), age, 0),
            link("CriCall", "UpdateContainerResources", None, age + 1, 0),
            link("ShimCall", shim_method, None, age, 0),
            link("ShimServe", shim_method, None, age, 0),
            link("InitMethod", shim_method, None, age, 0),
            link("LockWait", "", Some("Init"), age, 0),
            link("InitMethod", "Delete", None, age + 3, 0),
            link("Unmount", "", None, age + 3, age),
        ]);
        let device = json!({"device": {"major": 7, "minor": 0}, "name": null});
        let ends_in = json!({"UnmountSync": {"device": device, "fs_type": "ext4"}});
        Seen {
            at: at * SECOND,
            frame: json!({
                "now": at * SECOND,
                "diagnoses": [{"chain": {"links": links, "age": age * SECOND}, "ends_in": ends_in}],
                "incidents": incidents, "losses": [],
                "relists": {"longest": 0, "explained": 0, "unexplained": 0},
            }),
        }
    }

    fn over() -> Seen {
        Seen {
            at: 31 * SECOND,
            frame: json!({
                "now": 31 * SECOND, "diagnoses": [], "losses": [],
                "incidents": [{"id": "i1", "ended": 30 * SECOND, "change": "Ended"}],
                "relists": {"longest": 17 * SECOND, "explained": 1, "unexplained": 0},
            }),
        }
    }

    #[test]
    fn a_run_that_says_everything_right_passes() {
        let open = json!([{"id": "i1", "ended": null, "change": "Crossed"}]);
        let frames = [
            frame(14, "State", 1, json!([])),
            frame(15, "Update", 2, open.clone()),
            frame(20, "Update", 7, open),
            over(),
        ];
        let verdict = incident(&story(), &frames);
        assert_eq!(verdict.failures(), 0, "\n{}", verdict.table());
    }

    #[test]
    fn a_late_chain_a_wrong_name_and_a_wrong_age_fail() {
        let late = incident(&story(), &[frame(16, "Update", 3, json!([])), over()]);
        assert!(
            late.0.iter().any(|check| check.what == "shown while it lasts" && check.agree == Some(false))
        );

        let mut other = story();
        other.container = "c2".to_owned();
        other.calls[1].container = Some("c2".to_owned());
        let wrong = incident(&other, &[frame(14, "Update", 1, json!([])), over()]);
        assert!(wrong.0.iter().any(|check| check.what == "container" && check.agree == Some(false)));

        let old = incident(&story(), &[frame(14, "Update", 2, json!([])), over()]);
        assert!(
            old.0.iter().any(|check| check.what == "age of ListContainers" && check.agree == Some(false))
        );
    }

    #[test]
    fn a_chain_out_of_order_or_after_the_end_does_not_count() {
        let mut reversed = frame(14, "Update", 1, json!([]));
        if let Some(links) = reversed.frame["diagnoses"][0]["chain"]["links"].as_array_mut() {
            links.reverse();
        }
        let verdict = incident(&story(), &[reversed, frame(31, "Update", 18, json!([]))]);
        assert!(verdict.0.iter().any(|check| check.what == "chain" && check.agree == Some(false)));
    }

    #[test]
    fn a_healthy_run_with_an_incident_fails() {
        assert_eq!(healthy(&story(), &[over()]).failures(), 1);
    }

    #[test]
    fn an_incident_that_was_merged_is_not_counted() {
        let merged = json!([{"id": "i0", "change": {"MergedInto": "i1"}}, {"id": "i1"}]);
        assert_eq!(
            incident_ids(&[frame(14, "Update", 1, json!([{"id": "i0"}])), frame(15, "Update", 1, merged)]),
            ["i1"]
        );
    }

    #[test]
    fn an_incident_about_other_containers_is_somebody_elses() {
        let other = json!([{"id": "i9", "containers": [{"id": "c9"}], "ended": 20 * SECOND}]);
        let ours = json!([{"id": "i1", "containers": [{"id": "c9"}, {"id": "c1"}]}, {"id": "i2"}]);
        assert_eq!(
            own_incidents(
                &story().own,
                &[frame(14, "Update", 1, other.clone()), frame(15, "Update", 1, ours)]
            ),
            ["i1", "i2"]
        );
        assert_eq!(healthy(&story(), &[frame(14, "Update", 1, other)]).failures(), 0);
    }

    #[test]
    fn a_chain_into_another_shim_does_not_count() {
        let mut elsewhere = story();
        elsewhere.shim = 8;
        let verdict = incident(&elsewhere, &[frame(14, "Update", 1, json!([])), over()]);
        assert!(verdict.0.iter().any(|check| check.what == "chain" && check.agree == Some(false)));
    }

    #[test]
    fn with_a_real_kubelet_the_relist_must_be_its_own() {
        let mut real = story();
        real.kubelet = Some(Kubelet { pid: 5, longest_relist: [17 * SECOND; 2] });
        real.calls.push(call("relist", None, 13, 30));
        let open = json!([{"id": "i1", "ended": null}]);
        let mut seen = frame(20, "Update", 7, open.clone());
        let wrong = incident(&real, &[frame(14, "Update", 1, open.clone()), seen.clone(), over()]);
        for what in ["head", "the relist's call"] {
            assert!(wrong.0.iter().any(|check| check.what == what && check.agree == Some(false)), "{what}");
        }
        let kubelets = |kind: &str, method: &str| {
            let mut link = link(kind, method, None, 7, 0);
            link["operation"]["seen_by"] = json!("Uprobe");
            link["who"] = json!({"pid": 5, "role": "Kubelet"});
            link
        };
        seen.frame["relists"]["stand_in"] = json!(false);
        seen.frame["diagnoses"][0]["head"] = json!("Relist");
        if let Some(links) = seen.frame["diagnoses"][0]["chain"]["links"].as_array_mut() {
            links.insert(0, kubelets("CriClient", "ListContainers"));
            links.insert(0, kubelets("Relist", ""));
        }
        let early = frame(14, "Update", 1, open);
        let right = incident(&real, &[early, seen, over()]);
        assert_eq!(right.failures(), 0, "\n{}", right.table());
    }

    #[test]
    fn the_labs_own_clocks_are_compared_too() {
        assert_eq!(truth(&story()).failures(), 0);
        let mut split = story();
        split.calls[2].end = Some(25 * SECOND);
        assert_eq!(truth(&split).failures(), 1);
    }
}
