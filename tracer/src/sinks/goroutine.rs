//! Goroutines as Go's own tracebacks print them, which maintainers ask for and dump tools read.
//!
//! The form is that of `runtime.Stack` and of a crash. Arguments are not known and are written as `(...)`, which Go does
//! for inlined functions too.

use super::sanitise;
use crate::look::{Frame, Goroutine, Look, LookedAt};
use crate::thresholds::SECOND;

/// All goroutines of a process that did not run.
pub fn process(looked: &LookedAt) -> String {
    let p = &looked.process;
    let mut out = format!("# {} {}, {}", sanitise(&p.comm), p.pid, sanitise(&p.go_version));
    match &looked.look {
        Ok(look) => {
            out += &left_out(look).iter().map(|why| format!("; {why}")).collect::<String>();
            out += "\n\n";
            for goroutine in look.goroutines.iter().filter(|g| is_users(g)) {
                out += &self::goroutine(goroutine, looked.at);
                out.push('\n');
            }
        }
        Err(why) => out += &format!(": not looked at: {}\n\n", sanitise(why)),
    }
    out
}

/// What is not in the list, in words.
pub fn left_out(look: &Look) -> Vec<String> {
    let mut words = Vec::new();
    match look.running {
        0 => {}
        n => words.push(format!(
            "{n} ran at that moment and {} not in the list",
            if n == 1 { "is" } else { "are" }
        )),
    }
    words.extend(look.left_out.iter().map(|(why, n)| format!("{n} left out: {}", sanitise(why))));
    words.extend((!look.note.is_empty()).then(|| sanitise(&look.note).into_owned()));
    words
}

fn goroutine(g: &Goroutine, now: u64) -> String {
    // Go tells whole minutes, from the first on.
    let minutes = g.parked_since.map_or(0, |since| now.saturating_sub(since) / (60 * SECOND));
    let age = if minutes > 0 { format!(", {minutes} minutes") } else { String::new() };
    let mut out = format!("goroutine {} [{}{age}]:\n", g.goid, sanitise(&g.state));
    for frame in g.frames.iter().filter(|frame| is_shown(frame)) {
        out += &format!("{}(...)\n\t{}", sanitise(&frame.function), place(frame));
        out += &if frame.inlined { "\n".into() } else { format!(" +{:#x}\n", frame.offset) };
    }
    if !g.cut.is_empty() {
        out += "...additional frames elided...\n";
    }
    // Nobody made the first one.
    if let Some((by, goroutine)) = g.created_by.as_ref().filter(|_| g.goid != 1) {
        let within = goroutine.map(|goid| format!(" in goroutine {goid}")).unwrap_or_default();
        let function = sanitise(&by.function);
        out += &format!("created by {function}{within}\n\t{} +{:#x}\n", place(by), by.offset);
    }
    out
}

/// Whether Go's own traceback shows it: nothing of the runtime but what programs can call (`showfuncinfo`,
/// runtime/traceback.go).
fn is_shown(frame: &Frame) -> bool {
    let internal = frame.function.strip_prefix("runtime.");
    internal.is_none_or(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// Whether it is the program's own and not one of the runtime's (`isSystemGoroutine`): those have nothing to show.
fn is_users(g: &Goroutine) -> bool {
    g.frames.is_empty() || g.frames.iter().any(is_shown) || g.goid == 1
}

fn place(frame: &Frame) -> String {
    match frame.file.as_str() {
        // As Go's own tools write it; some know no other way.
        "" => "??:0".into(),
        file => format!("{}:{}", sanitise(file), frame.line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Process, Role};

    fn frame(function: &str, line: u32, inlined: bool) -> Frame {
        Frame {
            function: function.into(),
            file: "/src/a.go".into(),
            line,
            inlined,
            pc: 0x40_1020,
            offset: 0x20,
        }
    }

    #[test]
    fn it_looks_as_gos_own() {
        let goroutine = Goroutine {
            g: 0xc0_0000_0100,
            goid: 18,
            state: "sync.Mutex.Lock".into(),
            parked_since: Some(10 * SECOND),
            waits: None,
            thread: None,
            frames: vec![
                frame("sync.runtime_SemacquireMutex", 71, false),
                frame("sync.(*Mutex).Lock", 81, true),
                frame("main.main.func1", 12, false),
                frame("runtime.goexit", 1594, false),
            ],
            cut: String::new(),
            created_by: Some((frame("main.main", 11, false), Some(1))),
            calls: Vec::new(),
        };
        let process = Process {
            pid: 7,
            started: 0,
            role: Role::Other,
            comm: "tricky\u{1b}[2J".into(),
            go_version: "go1.19.8".into(),
            version: None,
        };
        let look = Look { goroutines: vec![goroutine], running: 1, ..Look::default() };
        let looked = LookedAt { process, at: 200 * SECOND, look: Ok(look) };
        let expected = "\
# tricky\u{fffd}[2J 7, go1.19.8; 1 ran at that moment and is not in the list

goroutine 18 [sync.Mutex.Lock, 3 minutes]:
sync.runtime_SemacquireMutex(...)
\t/src/a.go:71 +0x20
sync.(*Mutex).Lock(...)
\t/src/a.go:81
main.main.func1(...)
\t/src/a.go:12 +0x20
created by main.main in goroutine 1
\t/src/a.go:11 +0x20

";
        assert_eq!(super::process(&looked), expected);
    }
}
