//! The table of offsets against the compilers themselves: each writes the fields of its runtime's structs down for its
//! assembler (`go_asm.h`). For x86-64, and for arm64, which nobody has run anything on.

use super::{program, same};
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use tracer::golang::arm64;
use tracer::golang::buildinfo::GoVersion;
use tracer::golang::offsets::{self, Offsets};

/// What a toolchain says of its runtime, by name: fields, sizes and constants.
fn of_runtime(version: &str, goroot: &Path, machine: &str) -> HashMap<String, u64> {
    let build = fs::read_to_string(goroot.join("VERSION")).unwrap();
    let build = build.lines().next().unwrap().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let kept = program::kept().join(format!("runtime-of-{version}-{build}-{machine}.h"));
    let text = fs::read_to_string(&kept).unwrap_or_else(|_| {
        // It writes the file only when it compiles.
        let built = program::go(goroot)
            .args(["build", "-a", "-work", "runtime"])
            .env("GOARCH", machine)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        assert!(built.status.success(), "{version} for {machine}: {said}");
        let folder = said.lines().find_map(|line| line.strip_prefix("WORK=")).unwrap();
        let parts = fs::read_dir(folder).unwrap().map(|part| part.unwrap().path().join("go_asm.h"));
        let text =
            parts.filter_map(|part| fs::read_to_string(part).ok()).find(|t| t.contains("g_goid")).unwrap();
        fs::remove_dir_all(folder).unwrap();
        fs::write(&kept, &text).unwrap();
        text
    });
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    text.lines()
        .filter_map(|line| line.strip_prefix("#define ")?.split_once(' '))
        .filter_map(|(name, value)| Some((name.to_owned(), number(value)?)))
        .collect()
}

#[test]
fn fields_are_where_the_compilers_put_them() {
    let mut wrong = Vec::new();
    for (version, goroot) in program::toolchains() {
        let minor = version.rsplit('.').next().unwrap().parse().unwrap();
        let of = GoVersion { minor, patch: 0 };
        let o = Offsets::of(of).unwrap();
        for machine in ["amd64", "arm64"] {
            let truth = of_runtime(&version, &goroot, machine);
            let at = |name: &str| truth.get(name).copied();
            let sum = |a: &str, b: &str| Some(at(a)? + at(b)?);
            let fields = [
                ("g.stack.lo", Some(o.g_stack_lo), sum("g_stack", "stack_lo")),
                ("g.stack.hi", Some(o.g_stack_hi), sum("g_stack", "stack_hi")),
                ("g.m", Some(o.g_m), at("g_m")),
                ("g.sched.sp", Some(o.sched_sp), sum("g_sched", "gobuf_sp")),
                ("g.sched.pc", Some(o.sched_pc), sum("g_sched", "gobuf_pc")),
                ("g.sched.bp", Some(o.sched_bp), sum("g_sched", "gobuf_bp")),
                ("g.syscallsp", Some(o.syscall_sp), at("g_syscallsp")),
                ("g.syscallpc", Some(o.syscall_pc), at("g_syscallpc")),
                ("g.syscallbp", o.syscall_bp, at("g_syscallbp")),
                ("g.atomicstatus", Some(o.atomic_status), at("g_atomicstatus")),
                ("g.goid", Some(o.goid), at("g_goid")),
                ("g.waitsince", Some(o.wait_since), at("g_waitsince")),
                ("g.waitreason", Some(o.wait_reason), at("g_waitreason")),
                ("g.waiting", Some(o.waiting), at("g_waiting")),
                ("g.gopc", Some(o.go_pc), at("g_gopc")),
                ("g.parentGoid", o.parent_goid, at("g_parentGoid")),
                ("m.procid", Some(o.m_procid), at("m_procid")),
                ("m.curg", Some(o.m_curg), at("m_curg")),
                ("sudog.g", Some(o.sudog_g), at("sudog_g")),
                ("sudog.next", Some(o.sudog_next), at("sudog_next")),
                ("sudog.prev", Some(o.sudog_prev), at("sudog_prev")),
                ("sudog.elem", Some(o.sudog_elem), at("sudog_elem")),
                ("sudog.waitlink", Some(o.sudog_wait_link), at("sudog_waitlink")),
            ];
            for (name, ours, theirs) in fields {
                same(&mut wrong, &format!("{version} {machine}: {name}"), ours.map(u64::from), theirs);
            }
            let states = [
                ("idle", offsets::STATUS_IDLE),
                ("runnable", offsets::STATUS_RUNNABLE),
                ("running", offsets::STATUS_RUNNING),
                ("syscall", offsets::STATUS_SYSCALL),
                ("waiting", offsets::STATUS_WAITING),
                ("dead", offsets::STATUS_DEAD),
                ("scan", offsets::STATUS_SCAN),
                ("leaked", offsets::STATUS_LEAKED),
                ("deadextra", offsets::STATUS_DEAD_EXTRA),
            ];
            for (name, ours) in states {
                // The last two came with Go 1.26.
                let expected =
                    (minor >= 26 || !["leaked", "deadextra"].contains(&name)).then_some(u64::from(ours));
                let theirs = at(&format!("const__G{name}"));
                same(&mut wrong, &format!("{version} {machine}: state {name}"), theirs, expected);
            }
            // Before Go 1.20 all have the one reason.
            let reason =
                |name: &str| at(&format!("const_waitReason{name}")).or(at("const_waitReasonSemacquire"));
            let reasons = [o.wait_reasons.mutex, o.wait_reasons.read, o.wait_reasons.write].map(u64::from);
            let theirs = ["SyncMutexLock", "SyncRWMutexRLock", "SyncRWMutexLock"].map(reason);
            same(&mut wrong, &format!("{version} {machine}: reasons"), theirs, reasons.map(Some));
        }
        // A root of the table of semaphores fills a cache line, as this version has it.
        let cpu = fs::read_to_string(goroot.join("src/internal/cpu/cpu_arm64.go")).unwrap();
        let line = cpu.lines().find_map(|line| line.strip_prefix("const CacheLinePadSize = "));
        let line = line.and_then(|size| size.parse::<u32>().ok());
        same(&mut wrong, &format!("{version} arm64: a cache line"), arm64::semaphore_stride(of), line);
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
