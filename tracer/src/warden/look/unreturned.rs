//! Operations that are over although no probe has seen them end: a panic that was recovered further out, or
//! `runtime.Goexit`, leaves functions without returning from them.

use crate::{
    event::{Kind, Operation, OperationId, SeenBy},
    golang::catalog::{CATALOG, Job},
    look::{Goroutine, Look, LookedAt},
};

/// Those of these operations, in flight before the look, in which nobody was at the time of the look. What cannot be told
/// is not among them: a goroutine that runs, or whose stack was not read to its end.
pub fn unreturned(looked: &LookedAt, operations: &[Operation]) -> Vec<OperationId> {
    let Ok(look) = &looked.look else { return Vec::new() };
    let its = operations.iter().filter(|o| o.actor.pid == looked.process.pid && o.begin < looked.at);
    its.filter(|operation| is_over(look, operation)).map(Operation::id).collect()
}

fn is_over(look: &Look, operation: &Operation) -> bool {
    let (SeenBy::Uprobe, Some(g)) = (operation.seen_by, operation.actor.g) else { return false };
    // A wait cannot be left by a panic; and a lock may be kept beyond the function that took it.
    if matches!(operation.kind, Kind::LockWait | Kind::LockHold) {
        return false;
    }
    match look.goroutines.iter().find(|goroutine| goroutine.g == g) {
        Some(goroutine) => {
            // The runtime uses a `g` again.
            let another = operation.actor.goid.is_some_and(|goid| goid != goroutine.goid);
            another || goroutine.cut.is_empty() && !is_in(goroutine, operation)
        }
        // It has ended; unless it is one of those that are not told of.
        None => look.running == 0 && look.left_out.is_empty() && !look.goroutines.is_empty(),
    }
}

/// Whether a function that stands for this operation is on the stack.
fn is_in(goroutine: &Goroutine, operation: &Operation) -> bool {
    let entries = CATALOG.iter().filter(|entry| {
        entry.job == Job::Span
            && entry.kind == operation.kind
            && (entry.method_words.is_some() || entry.method == operation.method)
    });
    let mut names = entries.flat_map(|entry| entry.forms).map(|form| form.name);
    names.any(|name| goroutine.frames.iter().any(|frame| name.matches(frame.function.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Actor, Began, Process, Role},
        look::Frame,
    };

    const UPDATE: &str = "github.com/containerd/containerd/runtime/v2/runc/task.(*service).Update";

    fn operation(kind: Kind, method: &str) -> Operation {
        Operation {
            kind,
            method: method.into(),
            actor: Actor { pid: 7, tid: 8, g: Some(0xc000), goid: Some(5) },
            begin: 100,
            began: Began::Then,
            object: 0,
            container: None,
            path: None,
            device: None,
            fs_type: None,
            seen_by: SeenBy::Uprobe,
        }
    }

    fn goroutine(g: u64, goid: u64, functions: &[&str]) -> Goroutine {
        let frame = |function: &&str| Frame {
            function: (*function).into(),
            file: String::new(),
            line: 0,
            inlined: false,
            pc: 0,
            offset: 0,
        };
        Goroutine {
            g,
            goid,
            state: "select".into(),
            parked_since: None,
            waits: None,
            thread: None,
            frames: functions.iter().map(frame).collect(),
            cut: String::new(),
            created_by: None,
            calls: Vec::new(),
        }
    }

    fn looked(goroutines: Vec<Goroutine>, running: u32) -> LookedAt {
        let process = Process {
            pid: 7,
            started: 0,
            role: Role::Shim,
            comm: "shim".into(),
            go_version: "go1.19.8".into(),
            version: None,
        };
        LookedAt { process, at: 200, look: Ok(Look { goroutines, running, ..Look::default() }) }
    }

    fn over(looked: &LookedAt, operation: &Operation) -> bool {
        !unreturned(looked, std::slice::from_ref(operation)).is_empty()
    }

    #[test]
    fn who_is_elsewhere_has_left_and_who_is_inside_has_not() {
        let update = operation(Kind::ShimServe, "Update");
        let inside = looked(vec![goroutine(0xc000, 5, &["runtime.gopark", UPDATE, "main.main"])], 3);
        let elsewhere = looked(vec![goroutine(0xc000, 5, &["runtime.gopark", "main.main"])], 3);
        assert!(!over(&inside, &update));
        assert!(over(&elsewhere, &update));
        assert!(over(&inside, &operation(Kind::ShimServe, "Kill")), "in another request");
        assert!(over(
            &inside,
            &Operation { actor: Actor { goid: Some(4), ..update.actor }, ..update.clone() }
        ));
    }

    #[test]
    fn what_cannot_be_told_is_left_alone() {
        let update = operation(Kind::ShimServe, "Update");
        let mut elsewhere = looked(vec![goroutine(0xc000, 5, &["main.main"])], 0);
        assert!(!over(&elsewhere, &Operation { begin: 200, ..update.clone() }), "it began after the look");
        assert!(!over(&elsewhere, &Operation { seen_by: SeenBy::Fentry, ..update.clone() }), "by the kernel");
        assert!(!over(&elsewhere, &operation(Kind::LockHold, "")), "a lock may be kept");
        if let Ok(look) = &mut elsewhere.look {
            look.goroutines[0].cut = "a frame of an unknown function".into();
        }
        assert!(!over(&elsewhere, &update), "its stack was not read to its end");
        assert!(!over(&looked(vec![goroutine(1, 1, &[])], 1), &update), "it may be the one that runs");
        assert!(over(&looked(vec![goroutine(1, 1, &[])], 0), &update), "it has ended");
        assert!(!over(&looked(Vec::new(), 0), &update), "nothing was seen at all");
        let failed = LookedAt { look: Err("why".into()), ..elsewhere };
        assert!(!over(&failed, &update));
    }

    #[test]
    fn a_call_to_a_shim_is_told_by_its_client_whatever_it_is_called() {
        let call = operation(Kind::ShimCall, "Update");
        let client = "github.com/containerd/containerd/vendor/github.com/containerd/ttrpc.(*Client).Call";
        assert!(!over(&looked(vec![goroutine(0xc000, 5, &[client])], 0), &call));
        assert!(over(&looked(vec![goroutine(0xc000, 5, &["main.main"])], 0), &call));
    }
}
