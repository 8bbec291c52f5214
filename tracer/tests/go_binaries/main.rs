//! The Go reader against real, stripped programs: addresses, return counts and stack-check offsets as typed from
//! `objdump` and a separate reader, for Debian's containerd 1.4 to 2.1, their shims, and a kubelet 1.20.
//!
//! The programs are too big for the repository. `cargo xtask test` fetches them and sets `PLEGSCOPE_GO_BINARIES` to a
//! folder with `containerd-1.4` … `shim-2.1`, `kubelet-1.20`; without it these tests say that they were skipped.

#![allow(clippy::unwrap_used)]

mod table;

use std::path::PathBuf;
use tracer::event::{Kind, Role};
use tracer::golang::catalog::{self, Job, Place, Resolved, Text};
use tracer::golang::offsets::Abi;
use tracer::golang::probe_site::{Cost, How};
use tracer::golang::{GoBinary, pclntab::Function};

const VERSIONS: [&str; 4] = ["1.4", "1.6", "1.7", "2.1"];

fn binary(name: &str) -> Option<Vec<u8>> {
    let Some(folder) = std::env::var_os("PLEGSCOPE_GO_BINARIES").map(PathBuf::from) else {
        eprintln!(
            "SKIPPED: PLEGSCOPE_GO_BINARIES is not set; run `cargo xtask test` to test against real programs"
        );
        return None;
    };
    let path = folder.join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(why) => {
            eprintln!("SKIPPED: {}: {why}; run `cargo xtask test` to fetch it", path.display());
            None
        }
    }
}

/// All functions whose name ends in `suffix` on a boundary of path or package; names of the standard library are whole.
fn functions(binary: &GoBinary<'_>, suffix: &str) -> Vec<Function> {
    let mut found: Vec<Function> = binary
        .functions
        .names()
        .filter(|(_, name)| match name.strip_suffix(suffix.as_bytes()) {
            Some(prefix) => {
                let whole =
                    ["runtime.", "sync.", "internal/", "syscall."].iter().any(|std| suffix.starts_with(std));
                prefix.is_empty() || !whole && (prefix.ends_with(b"/") || prefix.ends_with(b"."))
            }
            None => false,
        })
        .filter_map(|(index, _)| binary.functions.function(index))
        .collect();
    found.sort_by_key(|f| f.entry);
    found
}

fn check_table(program: &str, column: usize, rows: &[table::Row]) {
    let Some(bytes) = binary(&format!("{program}-{}", VERSIONS[column])) else { return };
    let binary = GoBinary::parse(&bytes).unwrap();
    let runtime = binary.runtime_calls();
    let abi = binary.abi().unwrap();
    let mut wrong = Vec::new();
    for (name, cells) in rows {
        let cells = cells[column];
        let found = functions(&binary, name);
        let addresses: Vec<u64> = found.iter().map(|f| f.entry).collect();
        let expected: Vec<u64> = cells.iter().map(|c| c.0).collect();
        if addresses != expected {
            wrong.push(format!("{name}: {addresses:#x?}, expected {expected:#x?}"));
            continue;
        }
        for (function, &(entry, returns, behind_check)) in found.iter().zip(cells) {
            let code = binary.code(*function).unwrap();
            let ends = code.ends(true, &runtime).map_or(0, |sites| {
                assert!(
                    sites.iter().all(|site| bytes[site.file_offset as usize] == 0xc3),
                    "{name}: not all are returns"
                );
                sites.len()
            });
            // Assembly may leave by a jump; then there is no exit to count.
            if ends != returns {
                wrong.push(format!("{name}: {ends} returns, expected {returns}"));
            }
            let assembly =
                name.starts_with("syscall.") || name.ends_with("Syscall") || *name == "runtime.goexit";
            match code.begin(abi, &runtime) {
                Ok(site) if site.how == How::StackCheckBranch => {
                    let op = &bytes[site.file_offset as usize..][..2];
                    let len = if op == [0x0f, 0x86] { 6 } else { 2 };
                    assert!(op == [0x0f, 0x86] || op[0] == 0x76, "{name}: not a jbe");
                    if site.va + len != entry + behind_check {
                        wrong.push(format!(
                            "{name}: check ends at {:#x}, expected +{behind_check}",
                            site.va + len
                        ));
                    }
                }
                Ok(site) => {
                    if site.va != entry || behind_check != 0 && !assembly {
                        wrong.push(format!("{name}: {site:x?}, expected +{behind_check}"));
                    }
                }
                Err(why) => wrong.push(format!("{name}: {why}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{program}-{}:\n{}", VERSIONS[column], wrong.join("\n"));
}

#[test]
fn functions_of_containerd_1_4() {
    check_table("containerd", 0, table::CONTAINERD);
}

#[test]
fn functions_of_containerd_1_6() {
    check_table("containerd", 1, table::CONTAINERD);
}

#[test]
fn functions_of_containerd_1_7() {
    check_table("containerd", 2, table::CONTAINERD);
}

#[test]
fn functions_of_containerd_2_1() {
    check_table("containerd", 3, table::CONTAINERD);
}

#[test]
fn functions_of_the_shims() {
    for column in 0..4 {
        check_table("shim", column, table::SHIM);
    }
}

fn each_resolved(mut check: impl FnMut(&str, usize, &GoBinary<'_>, &[u8], Role, &[Resolved])) {
    for (program, role) in [("containerd", Role::Containerd), ("shim", Role::Shim)] {
        for (column, version) in VERSIONS.iter().enumerate() {
            let name = format!("{program}-{version}");
            let Some(bytes) = binary(&name) else { continue };
            let parsed = GoBinary::parse(&bytes).unwrap();
            let resolved = catalog::resolve(&parsed, role);
            check(&name, column, &parsed, &bytes, role, &resolved);
        }
    }
}

#[test]
fn programs_are_known_by_what_they_contain() {
    let go = ["go1.15.15", "go1.19.8", "go1.24.4", "go1.27.1"];
    each_resolved(|name, column, binary, _, role, _| {
        assert_eq!(catalog::roles(binary), [role], "{name}");
        assert_eq!(binary.build.go, go[column], "{name}");
        assert_eq!(binary.abi().unwrap(), if column == 0 { Abi::Stack } else { Abi::Register }, "{name}");
        assert!(binary.offsets().is_ok(), "{name}");
        assert!(binary.build_id().is_some_and(|id| id.len() >= 20), "{name}");
    });
}

#[test]
fn everything_in_the_catalog_can_be_probed() {
    each_resolved(|name, column, _, bytes, _, resolved| {
        let mut summary = [0usize; 4];
        for r in resolved {
            let what = format!("{name}: {:?} {}", r.entry.kind, r.entry.method);
            let begin = r.begin.as_ref().unwrap_or_else(|why| panic!("{what}: {why}"));
            assert_eq!((begin.how, begin.cost), (How::StackCheckBranch, Cost::Emulated), "{what}");
            let ends = r.ends.as_ref().unwrap_or_else(|why| panic!("{what}: {why}"));
            assert_eq!(ends.is_empty(), r.entry.job != Job::Span, "{what}");
            for end in ends {
                let op = bytes[end.file_offset as usize];
                let expected = match end.how {
                    How::Return => 0xc3,
                    How::Nop => 0x90,
                    How::Call => 0xe8,
                    other => panic!("{what}: end on {other:?}"),
                };
                assert_eq!(op, expected, "{what}: {end:x?}");
                assert_eq!(end.cost == Cost::Emulated, end.how != How::Return, "{what}: {end:x?}");
            }
            assert!(r.entry.error_result.is_none() || ends.iter().all(|e| e.how == How::Return), "{what}");
            assert_eq!(r.places.is_empty(), r.text == Text::None, "{what}");
            summary[0] += 1;
            summary[1] += 1 + ends.len();
            summary[2] += 1 + ends.iter().filter(|e| e.cost == Cost::Emulated).count();
        }
        println!("{name}: {} functions, {} sites, {} emulated", summary[0], summary[1], summary[2]);
        // containerd 1.7 has two CRI servers, and 1.6 and 1.7 answer the alpha API as well.
        let count = |kind| resolved.iter().filter(|r| r.entry.kind == kind).count();
        if name.starts_with("containerd") {
            assert_eq!(count(Kind::ExitHandling), if column == 2 { 2 } else { 1 }, "{name}");
            assert_eq!(count(Kind::CriCall), if column == 1 || column == 2 { 30 } else { 15 }, "{name}");
        }
    });
}

#[test]
fn a_lock_wait_ends_at_the_release_of_its_sudog_or_at_the_fast_exit() {
    each_resolved(|name, _, binary, bytes, _, resolved| {
        let wait =
            resolved.iter().find(|r| r.entry.kind == Kind::LockWait && r.entry.job == Job::Span).unwrap();
        let mut hows: Vec<How> = wait.ends.as_ref().unwrap().iter().map(|site| site.how).collect();
        hows.sort_by_key(|how| *how == How::Return);
        assert_eq!(hows, [How::Call, How::Return], "{name}");
        let call = wait.ends.as_ref().unwrap().iter().find(|site| site.how == How::Call).unwrap();
        let at = call.file_offset as usize;
        let displacement = i32::from_le_bytes(bytes[at + 1..at + 5].try_into().unwrap());
        let target = call.va.wrapping_add(5).wrapping_add_signed(i64::from(displacement));
        let callee = binary.functions.function_at(target).unwrap();
        assert_eq!((binary.name(callee).as_str(), callee.entry), ("runtime.releaseSudog", target), "{name}");
    });
}

#[test]
fn container_ids_are_where_the_sources_say() {
    each_resolved(|name, column, _, _, role, resolved| {
        let place = |kind, method: &str| {
            let r = resolved.iter().find(|r| r.entry.kind == kind && r.entry.method == method).unwrap();
            r.places.clone()
        };
        let field = |word, offset| vec![Place::Field { word, offset }];
        // gogo in 1.4 and 1.6, protobuf-go since.
        let task = if column < 2 { 0 } else { 40 };
        match role {
            Role::Containerd => {
                // The CRI's own messages stay gogo up to containerd 2.1, but the alpha API of 1.7 is protobuf-go.
                if column == 2 {
                    let alpha = resolved.iter().find(|r| {
                        let name = r.function.as_ref().map_or("", |f| f.0.as_str());
                        name.ends_with("(*instrumentedAlphaService).UpdateContainerResources")
                    });
                    assert_eq!(alpha.unwrap().places, field(3, 40), "{name}");
                }
                assert_eq!(place(Kind::CriCall, "UpdateContainerResources"), field(3, 0), "{name}");
                assert_eq!(place(Kind::CriCall, "PodSandboxStatus"), field(3, 0), "{name}");
                assert_eq!(place(Kind::ShimCall, ""), field(8, task), "{name}");
                let exit_word = if column == 3 { 3 } else { 2 };
                assert_eq!(place(Kind::ExitHandling, ""), field(exit_word, task), "{name}");
                assert_eq!(place(Kind::StatusUpdate, "UpdateSync"), field(0, 24), "{name}");
            }
            _ => {
                for method in ["Update", "Delete", "State", "Kill", "Create", "Start", "Exec"] {
                    assert_eq!(place(Kind::ShimServe, method), field(3, task), "{name} {method}");
                }
                assert_eq!(place(Kind::InitMethod, "Delete"), field(0, 0x40), "{name}");
                assert_eq!(place(Kind::Unmount, ""), [Place::Words(0)], "{name}");
            }
        }
    });
}

/// How many functions have the callee inlined somewhere, as counted by a separate reader of the inline trees.
#[test]
fn inline_trees_name_the_same_functions() {
    const CALLEES: [&str; 6] = [
        "sync.(*Mutex).Lock",
        "sync.(*Mutex).Unlock",
        "sync.(*RWMutex).RLock",
        "sync.(*RWMutex).RUnlock",
        "sync.(*RWMutex).Lock",
        "sync.(*RWMutex).Unlock",
    ];
    let expected = [
        ("containerd-1.4", [522, 225, 118, 53, 0, 0]),
        ("containerd-1.6", [562, 230, 155, 60, 0, 0]),
        ("containerd-1.7", [707, 733, 191, 195, 0, 0]),
        ("containerd-2.1", [676, 711, 186, 190, 0, 0]),
        ("shim-1.4", [159, 47, 29, 17, 0, 0]),
        ("shim-1.6", [163, 42, 31, 18, 0, 0]),
        ("shim-1.7", [310, 316, 98, 101, 0, 0]),
        ("shim-2.1", [306, 315, 91, 94, 0, 0]),
    ];
    for (name, expected) in expected {
        let Some(bytes) = binary(name) else { continue };
        let binary = GoBinary::parse(&bytes).unwrap();
        assert_eq!(binary.inlined_into(&CALLEES), expected, "{name}");
    }
}

/// A real program, damaged in its headers, its symbol table and its module data, never makes the reader panic.
#[test]
fn damaged_programs_are_survived() {
    let Some(mut bytes) = binary("shim-2.1") else { return };
    let (table, module) = {
        let whole = GoBinary::parse(&bytes).unwrap();
        let offset = |va| whole.elf.file_offset(va).unwrap() as usize;
        (offset(whole.functions.va), offset(whole.functions.moduledata.unwrap()))
    };
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    for _ in 0..60 {
        let (from, len) = [(0, 0x400), (table, 0x48), (table + 0x48, 0x40_0000), (module, 0x240)][random(4)];
        let damage: Vec<usize> = (0..1 + random(200)).map(|_| from + random(len)).collect();
        let before: Vec<u8> = damage.iter().map(|at| bytes[*at]).collect();
        for at in &damage {
            bytes[*at] = [0, 0xff, 0x7f, 0x80, random(256) as u8][random(5)];
        }
        if let Ok(binary) = GoBinary::parse(&bytes) {
            catalog::roles(&binary);
            catalog::resolve(&binary, Role::Shim);
            for pc in (0x40_0000..0xb0_0000).step_by(4099) {
                binary.frames(pc);
            }
        }
        // Backwards, for places that were hit twice.
        damage.iter().zip(before).rev().for_each(|(at, byte)| bytes[*at] = byte);
    }
    assert!(GoBinary::parse(&bytes).is_ok());
}

#[test]
fn a_kubelet_1_20_is_known_by_its_relist() {
    let Some(bytes) = binary("kubelet-1.20") else { return };
    let binary = GoBinary::parse(&bytes).unwrap();
    assert_eq!(catalog::role(&binary), Some(Role::Kubelet));
    assert!(binary.build.go.starts_with("go1.15"), "{}", binary.build.go);
    let resolved = catalog::resolve(&binary, Role::Kubelet);
    for r in &resolved {
        let what = format!("{:?} {}", r.entry.kind, r.entry.method);
        assert_eq!(r.begin.as_ref().map(|site| site.how), Ok(How::StackCheckBranch), "{what}");
        assert!(r.ends.is_ok(), "{what}: {:?}", r.ends);
    }
    let name =
        |kind| resolved.iter().find(|r| r.entry.kind == kind).and_then(|r| r.function.clone()).unwrap().0;
    assert_eq!(name(Kind::Relist), "k8s.io/kubernetes/pkg/kubelet/pleg.(*GenericPLEG).relist");
    assert_eq!(
        name(Kind::CriClient),
        "k8s.io/kubernetes/pkg/kubelet/cri/remote.(*remoteRuntimeService).ListContainers"
    );
}

/// As the packages' own version numbers say, and as `objdump` shows `Healthy`: `movabs $0x29e8d60800,%rcx; cmp; jle`.
#[test]
fn versions_and_the_kubelets_threshold() {
    use tracer::golang::{health, version};
    for (name, role, expected) in [
        ("containerd-1.4", Role::Containerd, "1.4.13"),
        ("containerd-1.6", Role::Containerd, "1.6.20"),
        ("containerd-1.7", Role::Containerd, "1.7.24"),
        ("containerd-2.1", Role::Containerd, "2.1.9"),
        ("shim-1.4", Role::Shim, "1.4.13"),
        ("shim-1.6", Role::Shim, "1.6.20"),
        ("shim-1.7", Role::Shim, "1.7.24"),
        ("shim-2.1", Role::Shim, "2.1.9"),
        ("kubelet-1.20", Role::Kubelet, "1.20.2"),
    ] {
        let Some(bytes) = binary(name) else { continue };
        let binary = GoBinary::parse(&bytes).unwrap();
        let told = version::of(&binary, role).unwrap();
        assert!(told.starts_with(expected), "{name}: {told}");
        if role == Role::Kubelet {
            assert_eq!(health::of(&binary).unwrap().threshold, health::Threshold::Constant(180_000_000_000));
        }
    }
}

#[test]
fn a_copy_of_the_tables_alone_answers_as_the_file_does() {
    let names = ["containerd-", "shim-"].iter().flat_map(|program| VERSIONS.map(|v| format!("{program}{v}")));
    for name in names.chain(["kubelet-1.20".into()]) {
        let Some(bytes) = binary(&name) else { return };
        let whole = GoBinary::parse(&bytes).unwrap();
        let mut copy = vec![0; bytes.len()];
        let parts = whole.tables();
        for part in &parts {
            let part = part.start as usize..part.end as usize;
            copy[part.clone()].copy_from_slice(&bytes[part]);
        }
        let size: u64 = parts.iter().map(|part| part.end - part.start).sum();
        eprintln!("{name}: {size} of {} bytes in {} parts", bytes.len(), parts.len());
        assert!(size < bytes.len() as u64 / 2, "{name}: {size} bytes");
        let alone = GoBinary::with(&copy, whole.build.clone()).unwrap();
        assert_eq!(alone.functions.len(), whole.functions.len(), "{name}");
        let mut inlined = 0;
        // Every 7th function, at its begin, its middle and its end.
        for index in (0..whole.functions.len() as u32).step_by(7) {
            let function = whole.functions.function(index).unwrap();
            assert_eq!(alone.functions.function(index), Some(function), "{name}");
            for pc in [function.entry, function.entry.midpoint(function.end), function.end - 1] {
                let frames = whole.frames_with_lines(pc);
                assert_eq!(alone.frames_with_lines(pc), frames, "{name}: {pc:#x}");
                assert_eq!(
                    alone.functions.stack_depth(function, pc),
                    whole.functions.stack_depth(function, pc),
                    "{name}: {pc:#x}"
                );
                inlined += usize::from(frames.len() > 1);
            }
        }
        assert!(inlined > 100, "{name}: {inlined} places with inlined functions");
    }
}
