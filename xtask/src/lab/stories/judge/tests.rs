//! The judge must be able to find something.

use super::*;
use crate::lab::kubelet_like::Call;
use crate::lab::stories::language;
use crate::lab::stories::record::{Mark, Pod, Run};
use crate::lab::tracer::Line;
use crate::lab::unmounts::Stay;
use serde_json::json;

const SECOND: u64 = 1_000_000_000;
const STORY: &str = r#"
about = "x"
containerd = ["1.6"]
steps = [{ wait = 1.0 }]
[[pods]]
name = "victim"
[[pods]]
name = "other"
[expect]
slow-relist = true
incidents = 1
blame = ["victim"]
writers = ["victim"]
never = ["exit"]
[[expect.chains]]
links = ["call ListContainers", { is = "lock Init of victim", or-blind = "locks" }, "unmount of victim"]
ends-in = ["UnmountSync"]
"#;

fn pod(name: &str, shim: u32) -> Pod {
    let stay = Stay { begin: 8 * SECOND, end: Some(30 * SECOND), call: 166, ..Stay::default() };
    Pod {
        name: name.to_owned(),
        pod: name.to_owned(),
        namespace: "lab".to_owned(),
        container_name: "worker".to_owned(),
        container: format!("c-{name}"),
        sandbox: format!("s-{name}"),
        shim,
        init: 1,
        rootfs: String::new(),
        writes: 1,
        told_to_exit: None,
        exited: None,
        unwritten: 0,
        unmounts: if name == "victim" { vec![stay] } else { Vec::new() },
        attempts: Vec::new(),
        pins: Vec::new(),
        unpinned: Vec::new(),
    }
}

fn frame(at: u64) -> Value {
    let subject = json!({"id": "c-victim", "namespace": "lab", "pod": "victim", "container": "worker"});
    let link = |kind: &str, method: &str, begin: u64, critical: u64| {
        json!({
            "operation": {"kind": kind, "method": method}, "subject": subject, "who": {"pid": 7},
            "age": (at - begin) * SECOND, "critical": critical * SECOND,
        })
    };
    let mut lock = link("LockWait", "", 10, 0);
    lock["lock"] = json!({"name": "Init", "subject": subject});
    let links = json!([link("CriCall", "ListContainers", 10, at - 10), lock, link("Unmount", "", 8, 0)]);
    let stuck = (10..=29).contains(&at);
    let diagnosis = json!({
        "chain": {"links": links, "age": (at - 10) * SECOND}, "containers": [subject],
        "ends_in": {"UnmountSync": {"device": {"device": {"major": 7, "minor": 0}}}},
        "dirtied_by": [{"source": {"Container": subject}, "bytes": 1}],
    });
    json!({
        "now": at * SECOND, "diagnoses": if stuck { json!([diagnosis]) } else { json!([]) },
        "incidents": [{"id": "i1", "containers": [subject], "ended": if stuck { json!(null) } else { json!(30 * SECOND) }}],
        "losses": [], "blind_spots": [{"what": "locks", "reason": "none"}],
        "relists": {"longest": 20 * SECOND, "explained": u64::from(!stuck), "unexplained": 0},
    })
}

fn wrong(change: impl Fn(&mut Value)) -> Vec<String> {
    wrong_beside(Vec::new(), change)
}

/// The same, and the daemon's threads were seen in these calls.
fn wrong_beside(daemon: Vec<Stay>, change: impl Fn(&mut Value)) -> Vec<String> {
    let story = language::parse("x", STORY).unwrap_or_else(|error| panic!("{error:#}"));
    let call = |method: &str| Call {
        method: method.to_owned(),
        container: None,
        begin: 10 * SECOND,
        end: Some(30 * SECOND),
        error: None,
    };
    let update = Call {
        container: Some("c-other".to_owned()),
        begin: 20 * SECOND,
        end: Some(22 * SECOND),
        ..call("UpdateContainerResources")
    };
    let lines = (10..33).map(|at| {
        let mut frame = frame(at);
        change(&mut frame);
        Line { at: at * SECOND + SECOND / 10, text: frame.to_string() }
    });
    let run = Run {
        started: 0,
        ready: 1,
        ended: 40 * SECOND,
        exit: Some(0),
        killed: false,
        quit_took: 1,
        lines: lines.collect(),
        messages: Vec::new(),
    };
    let record = Record {
        device: "7:0".to_owned(),
        pods: vec![pod("victim", 7), pod("other", 8)],
        own: ["victim", "other"].iter().flat_map(|name| [format!("c-{name}"), format!("s-{name}")]).collect(),
        calls: vec![call("relist"), call("ListContainers"), update],
        runs: vec![run],
        daemon,
        ..Record::default()
    };
    let judged = judge(&story, &record);
    let all = judged.truth.0.into_iter().chain(judged.said.0);
    all.filter(|check| check.agree == Some(false)).map(|check| check.what).collect()
}

/// Changes the first diagnosis of a frame, when there is one.
fn first(change: impl Fn(&mut Value)) -> impl Fn(&mut Value) {
    move |frame| {
        if let Some(diagnosis) = frame["diagnoses"].get_mut(0) {
            change(diagnosis);
        }
    }
}

#[test]
fn what_went_as_it_was_said_passes() {
    assert!(wrong(|_| {}).is_empty(), "{:?}", wrong(|_| {}));
}

#[test]
fn another_container_pod_device_or_writer_fails() {
    let other = |link: &'static str| {
        move |one: &mut Value| one["chain"]["links"][2]["subject"][link] = json!("c-other")
    };
    assert_eq!(wrong(first(other("id"))), ["chain", "wrong names", "who is blamed"]);
    assert_eq!(wrong(first(other("pod"))), ["wrong names"]);
    assert_eq!(wrong(first(other("namespace"))), ["wrong names"]);
    // The last link is nobody's, and the one before it leads to another.
    let before = first(|one| {
        one["chain"]["links"][2]["subject"] = Value::Null;
        one["chain"]["links"][1]["subject"]["id"] = json!("c-other");
    });
    assert_eq!(wrong(before), ["chain", "wrong names", "who is blamed"]);
    let listed = first(|one| one["containers"][0]["pod"] = json!("other"));
    assert_eq!(wrong(listed), ["wrong names"]);
    let waits = first(|one| {
        one["stuck_calls"] = json!([{"subject": {"id": "c-other", "namespace": "lab", "pod": "victim"}}]);
    });
    assert_eq!(wrong(waits), ["wrong names"]);
    let shim = first(|one| one["chain"]["links"][2]["who"]["pid"] = json!(8));
    assert_eq!(wrong(shim), ["chain"]);
    let device = first(|one| one["ends_in"]["UnmountSync"]["device"]["device"]["minor"] = json!(1));
    assert_eq!(wrong(device), ["wrong names"]);
    let writer = first(|one| one["dirtied_by"][0]["source"]["Container"]["id"] = json!("c-other"));
    assert_eq!(wrong(writer), ["writer", "wrong names"]);
}

#[test]
fn a_write_of_the_daemon_is_nobodys_fault_if_the_lab_has_seen_it() {
    let writes = |frame: &mut Value| {
        if frame["now"] != json!(12 * SECOND) {
            return;
        }
        let Some(mut one) = frame["diagnoses"].get(0).cloned() else { return };
        one["chain"]["links"][2]["subject"]["id"] = json!("c-other");
        one["chain"]["links"][2]["subject"]["pod"] = json!("other");
        one["ends_in"] = json!("StatusWrite");
        if let Some(all) = frame["diagnoses"].as_array_mut() {
            all.push(one);
        }
    };
    let stay = |call, begin, end| {
        vec![Stay { call, begin: begin * SECOND, end: Some(end * SECOND), ..Stay::default() }]
    };
    assert_eq!(wrong(writes), ["who is blamed"]);
    assert!(wrong_beside(stay(libc::SYS_fsync, 11, 13), writes).is_empty());
    assert_eq!(wrong_beside(stay(libc::SYS_fsync, 6, 8), writes), ["who is blamed"], "before");
    assert_eq!(wrong_beside(stay(libc::SYS_umount2, 11, 13), writes), ["who is blamed"], "no write");
}

#[test]
fn an_update_that_is_slow_alone_is_nobodys_fault_while_its_caller_sees_it_last() {
    let told = |at: u64, change: fn(&mut Value)| {
        move |frame: &mut Value| {
            if frame["now"] != json!(at * SECOND) {
                return;
            }
            let subject = json!({"id": "c-other", "namespace": "lab", "pod": "other", "container": "worker"});
            let link = json!({
                "operation": {"kind": "CriCall", "method": "UpdateContainerResources"}, "subject": subject,
                "who": {"pid": 8}, "age": SECOND, "critical": SECOND,
            });
            let mut one = json!({
                "head": "CriCall", "chain": {"links": [link], "age": SECOND}, "containers": [subject],
                "ends_in": "CgroupOrDbus", "dirtied_by": [],
            });
            change(&mut one);
            if let Some(all) = frame["diagnoses"].as_array_mut() {
                all.push(one);
            }
        }
    };
    let nothing: fn(&mut Value) = |_| {};
    assert!(wrong(told(21, nothing)).is_empty(), "{:?}", wrong(told(21, nothing)));
    assert_eq!(wrong(told(15, nothing)), ["who is blamed"], "before");
    assert_eq!(wrong(told(26, nothing)), ["who is blamed"], "long after");
    assert_eq!(wrong(told(21, |one| one["head"] = json!("Relist"))), ["who is blamed"], "others wait for it");
    let others: fn(&mut Value) = |one| {
        let mut lock = one["chain"]["links"][0].clone();
        (lock["lock"], lock["subject"]) = (json!({"subject": {"id": "c-victim"}}), Value::Null);
        (lock["age"], lock["critical"]) = (json!(0), json!(0));
        if let Some(links) = one["chain"]["links"].as_array_mut() {
            links.insert(0, lock);
        }
    };
    assert_eq!(wrong(told(21, others)), ["who is blamed"], "another one's lock is in it");
}

#[test]
fn a_missing_link_fails_unless_it_is_said_why() {
    let remove = |frame: &mut Value| {
        let first = frame["diagnoses"].get_mut(0);
        let links = first.and_then(|one| one["chain"]["links"].as_array_mut());
        if let Some(links) = links {
            links.remove(1);
        }
    };
    assert!(wrong(remove).is_empty());
    let silent = |frame: &mut Value| {
        remove(frame);
        frame["blind_spots"] = json!([]);
    };
    assert_eq!(wrong(silent), ["chain", "what cannot be seen"]);
}

#[test]
fn a_false_incident_a_late_word_and_a_wrong_age_fail() {
    let two = |frame: &mut Value| {
        if let Some(incidents) = frame["incidents"].as_array_mut() {
            incidents.push(json!({"id": "i2", "containers": [{"id": "c-other"}], "ended": 30}));
        }
    };
    assert_eq!(wrong(two), ["who is blamed", "incidents"]);
    let late = |frame: &mut Value| {
        if frame["now"].as_u64() < Some(14 * SECOND) {
            frame["diagnoses"] = json!([]);
        }
    };
    assert_eq!(wrong(late), ["first shown"]);
    let age = first(|one| one["chain"]["links"][2]["age"] = json!(SECOND));
    assert_eq!(wrong(age), ["age of unmount"]);
    let sum = first(|one| one["chain"]["links"][2]["critical"] = json!(SECOND));
    assert_eq!(wrong(sum), ["seconds per link"]);
    let harm = |frame: &mut Value| {
        frame["incidents"][0]["consequences"] = json!([{"what": {"Unknown": {"of": {"id": "c-other"}}}}]);
    };
    assert_eq!(wrong(harm), ["what has come of it"]);
    let open = |frame: &mut Value| frame["incidents"][0]["ended"] = Value::Null;
    assert_eq!(wrong(open), ["open at the end"]);
    let unexplained = |frame: &mut Value| frame["relists"]["unexplained"] = json!(1);
    assert_eq!(wrong(unexplained), ["slow relists"]);
    let never = first(|one| {
        one["chain"]["links"][0]["operation"]["kind"] = json!("ExitHandling");
    });
    assert_eq!(wrong(never), ["chain", "exit in a chain"]);
}

#[test]
fn a_starved_kubelets_relist_has_taken_no_longer_than_since_the_one_before() {
    let relist = |begin: u64, end: u64| Call {
        method: "relist".to_owned(),
        container: None,
        begin: begin * SECOND,
        end: Some(end * SECOND),
        error: None,
    };
    let step = |step: &str| Mark { step: step.to_owned(), begin: 0, end: SECOND };
    let of = |step: Mark| {
        let calls = vec![relist(10, 12), relist(20, 26), relist(30, 31)];
        late_clock(&Record { marks: vec![step], calls, ..Record::default() }, [2 * SECOND; 2])
    };
    assert_eq!(of(step("Starve(\"kubelet\")")), [2 * SECOND, 16 * SECOND]);
    assert_eq!(of(step("Starve(\"containerd\")")), [2 * SECOND; 2]);
}
