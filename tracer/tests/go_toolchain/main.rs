//! The Go reader against programs built here by real Go toolchains, in every link mode: functions against the ELF symbol
//! table, stacks of a running program against Go's own account of them.
//!
//! `PLEGSCOPE_GO_TOOLCHAINS` names the toolchains, colon-separated GOROOTs; without it these tests say that they were
//! skipped. Neither root nor network is needed.
#![allow(clippy::unwrap_used)]

mod hits;
mod names;

use hits::Hits;
use object::{Object, ObjectSymbol, SymbolKind};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tracer::event::{Kind, Role};
use tracer::golang::GoBinary;
use tracer::golang::catalog::{self, Place};
use tracer::golang::health::{self, Threshold};
use tracer::golang::probe_site::{self, How};
use tracer::golang::unwind::{self, Goroutine, Pause};

/// Arguments of `go build`; external linking needs a C compiler.
const MODES: [(&str, &[&str]); 4] = [
    ("plain", &[]),
    ("pie", &["-buildmode=pie"]),
    ("external", &["-ldflags=-linkmode=external"]),
    ("external-pie", &["-buildmode=pie", "-ldflags=-linkmode=external"]),
];

fn toolchains() -> Vec<PathBuf> {
    let Some(list) = std::env::var_os("PLEGSCOPE_GO_TOOLCHAINS") else {
        eprintln!(
            "SKIPPED: PLEGSCOPE_GO_TOOLCHAINS is not set; give it GOROOTs, for instance /usr/lib/go-1.19"
        );
        return Vec::new();
    };
    std::env::split_paths(&list).collect()
}

fn scratch(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Compiled packages of the standard library, kept from run to run where there is a place for it.
fn cache(folder: &Path) -> PathBuf {
    std::env::var_os("PLEGSCOPE_GO_BUILDS").map_or(folder.to_owned(), PathBuf::from).join("cache")
}

fn build(goroot: &Path, test: &str, mode: &str, arguments: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/go_toolchain/parked.go");
    build_from(goroot, test, mode, arguments, source.as_ref())
}

/// Builds a source file, or a package below `src` of the folder that is kept for `test` and `mode`.
fn build_from(goroot: &Path, test: &str, mode: &str, arguments: &[&str], source: &OsStr) -> PathBuf {
    let folder = scratch(test);
    let version = goroot.file_name().unwrap().to_string_lossy();
    let output = folder.join(format!("{version}-{mode}"));
    let built = Command::new(goroot.join("bin/go"))
        .args(["build", "-o"])
        .arg(&output)
        .args(arguments)
        .arg(source)
        .env("GOROOT", goroot)
        .env("GOPATH", folder.join(mode))
        .env("GOCACHE", cache(&folder))
        .env("GO111MODULE", "off")
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "")
        .output()
        .unwrap();
    assert!(built.status.success(), "{version} {mode}: {}", String::from_utf8_lossy(&built.stderr));
    output
}

/// Names as the linker's two tables agree on them: pclntab shows type arguments as `[...]`, and has no ABI suffix.
fn plain_name(name: &str) -> String {
    let name = name.strip_suffix(".abi0").unwrap_or(name);
    match (name.find('['), name.rfind(']')) {
        (Some(open), Some(close)) if open < close => format!("{}[...]{}", &name[..open], &name[close + 1..]),
        _ => name.to_owned(),
    }
}

#[test]
fn functions_are_those_of_the_elf_symbol_table() {
    for goroot in toolchains() {
        for (mode, arguments) in MODES {
            let what = format!("{} {mode}", goroot.display());
            let bytes = std::fs::read(build(&goroot, "symbols", mode, arguments)).unwrap();
            let file = object::File::parse(&*bytes).unwrap();
            let mut truth: HashMap<u64, HashSet<String>> = HashMap::new();
            for symbol in file.symbols().filter(|s| s.kind() == SymbolKind::Text) {
                truth.entry(symbol.address()).or_default().insert(plain_name(symbol.name().unwrap()));
            }
            let binary = GoBinary::parse(&bytes).unwrap_or_else(|why| panic!("{what}: {why}"));
            assert!(binary.functions.len() > 1000, "{what}");
            let (mut same, mut cosmetic) = (0, 0);
            for index in 0..binary.functions.len() as u32 {
                let function = binary.functions.function(index).unwrap();
                let name = plain_name(&binary.name(function));
                match truth.get(&function.entry) {
                    Some(names) if names.contains(&name) => same += 1,
                    // Compiler-made names and the marks at both ends of the text differ in spelling only.
                    Some(_) => cosmetic += 1,
                    None => panic!("{what}: no symbol at {:#x} for {name}", function.entry),
                }
                assert_eq!(binary.functions.function_at(function.end - 1), Some(function), "{what}: {name}");
            }
            println!("{what}: {same} functions, {cosmetic} spelled differently");
            assert!(cosmetic * 100 < same, "{what}: {same} equal, {cosmetic} not");

            // Without symbols and section names the answers must not change.
            let names: Vec<_> = binary.functions.names().collect();
            let mut bare = bytes.clone();
            bare[0x28..0x30].fill(0);
            bare[0x3c..0x40].fill(0);
            let stripped =
                GoBinary::parse(&bare).unwrap_or_else(|why| panic!("{what}, no section headers: {why}"));
            assert!(stripped.functions.names().eq(names), "{what}, no section headers");
            assert_eq!(stripped.build, binary.build, "{what}, no section headers");
        }
    }
}

/// Every function of a program can be told where it begins, or has a good reason.
#[test]
fn every_stack_check_is_understood() {
    for goroot in toolchains() {
        for (mode, arguments) in MODES {
            let what = format!("{} {mode}", goroot.display());
            let bytes = std::fs::read(build(&goroot, "checks", mode, arguments)).unwrap();
            let binary = GoBinary::parse(&bytes).unwrap();
            let (runtime, abi) = (binary.runtime_calls(), binary.abi().unwrap());
            let (mut checked, mut unknown) = (0, Vec::new());
            for index in 0..binary.functions.len() as u32 {
                let function = binary.functions.function(index).unwrap();
                let Ok(code) = binary.code(function) else { continue };
                match code.begin(abi, &runtime) {
                    Ok(site) if site.how == How::StackCheckBranch => checked += 1,
                    Ok(_) => {}
                    // Assembly of the old convention and loops at the entry are rightly refused.
                    Err(why) => {
                        let name = binary.name(function);
                        let assembly =
                            ["runtime.call", "debugCall", "runtime.debugCall", "reflect.", "callRet"]
                                .iter()
                                .any(|prefix| name.starts_with(prefix));
                        if !assembly && !why.to_string().contains("back to its entry") {
                            unknown.push(format!("{name}: {why}"));
                        }
                    }
                }
            }
            println!("{what}: {checked} stack checks, {} not understood", unknown.len());
            assert!(checked > 900 && unknown.is_empty(), "{what}: {unknown:#?}");
        }
    }
}

/// Go's own account: goroutine number -> function names, innermost first.
fn parse_stacks(text: &str) -> HashMap<u64, Vec<String>> {
    let mut stacks = HashMap::new();
    for block in text.split("\n\n") {
        let mut lines = block.lines();
        let Some(head) = lines.next().and_then(|l| l.strip_prefix("goroutine ")) else { continue };
        if head.contains("[running") || head.contains("[runnable") {
            continue;
        }
        let goid = head.split(' ').next().unwrap().parse().unwrap();
        let names = lines.filter(|l| !l.starts_with('\t') && !l.starts_with("created by"));
        stacks.insert(goid, names.map(|l| l[..l.rfind('(').unwrap_or(l.len())].to_owned()).collect());
    }
    stacks
}

#[test]
fn stacks_are_those_that_go_itself_prints() {
    for goroot in toolchains() {
        for (mode, arguments) in MODES {
            let what = format!("{} {mode}", goroot.display());
            let path = build(&goroot, "stacks", mode, arguments);
            let mut child = Command::new(&path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut account = String::new();
            for line in BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap) {
                if line == "END" {
                    break;
                }
                account += &line;
                account += "\n";
            }
            let truth = parse_stacks(&account);

            let bytes = std::fs::read(&path).unwrap();
            let binary = GoBinary::parse(&bytes).unwrap();
            let offsets = binary.offsets().unwrap();
            let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
            let lowest = maps.lines().find(|l| l.ends_with(path.to_str().unwrap())).unwrap();
            let bias =
                binary.elf.load_bias(u64::from_str_radix(lowest.split('-').next().unwrap(), 16).unwrap());
            let mem = std::fs::File::open(format!("/proc/{}/mem", child.id())).unwrap();
            let mut memory = |at: u64| {
                let mut word = [0; 8];
                mem.read_exact_at(&mut word, at).ok().map(|()| u64::from_le_bytes(word))
            };

            let all = unwind::all_goroutines(&binary).unwrap() + bias;
            let (first, count) = (memory(all).unwrap(), memory(all + 8).unwrap());
            let (mut unwound, mut compared) = (0, HashMap::new());
            for i in 0..count {
                let g = memory(first + 8 * i).unwrap();
                // The main goroutine goes on behind its account; goroutines of the runtime may run and are not in it.
                let Ok(goroutine) = Goroutine::read(&mut memory, &offsets, g) else { continue };
                let Ok(stack) = unwind::unwind(&binary, bias, &offsets, &mut memory, &goroutine) else {
                    continue;
                };
                assert_eq!(stack.cut, None, "{what}: goroutine {}: {stack:#?}", goroutine.goid);
                let names: Vec<String> = stack.names().map(str::to_owned).collect();
                assert_eq!(names.last().unwrap(), "runtime.goexit", "{what}: {names:?}");
                unwound += 1;
                let (Some(expected), true) = (truth.get(&goroutine.goid), goroutine.goid != 1) else {
                    continue;
                };
                // Go does not show the runtime's own functions.
                let shown: Vec<&String> = names.iter().filter(|n| !n.starts_with("runtime.")).collect();
                assert_eq!(
                    shown,
                    expected.iter().collect::<Vec<_>>(),
                    "{what}: goroutine {}",
                    goroutine.goid
                );
                if goroutine.pause == Pause::Syscall {
                    let procid = memory(goroutine.m + u64::from(offsets.m_procid)).unwrap();
                    assert!(Path::new(&format!("/proc/{}/task/{procid}", child.id())).exists(), "{what}");
                }
                compared.insert(goroutine.goid, (names, goroutine));
            }
            drop(child.stdin.take());
            child.wait().unwrap();

            let find = |part: &str| {
                let hit = compared.values().find(|(names, _)| names.iter().any(|n| n == part));
                hit.unwrap_or_else(|| panic!("{what}: nobody in {part}: {account}")).clone()
            };
            let (names, deleting) = find("main.(*initProcess).Delete");
            assert_eq!(deleting.pause, Pause::Syscall, "{what}: {names:?}");
            let (names, updating) = find("main.(*statusStorage).UpdateSync");
            assert!(names.contains(&"main.hugeFrame".to_owned()), "{what}: {names:?}");
            assert_eq!(updating.wait_reason, offsets.wait_reasons.mutex, "{what}");
            let (names, reading) = find("main.(*statusStorage).Get");
            assert!(names.contains(&"sync.(*RWMutex).RLock".to_owned()), "{what}: {names:?}");
            assert_eq!(reading.wait_reason, offsets.wait_reasons.read, "{what}");
            println!("{what}: {unwound} goroutines unwound, {} agree with Go's account", compared.len());
        }
    }
}

#[test]
fn names_and_layouts_of_programs_that_are_not_packaged() {
    let field = |word, offset| vec![Place::Field { word, offset }];
    for goroot in toolchains() {
        let old = ("old", names::OLD, "k8s.io/kubernetes/cmd/kubelet", &[Role::Kubelet][..]);
        let both = &[Role::Containerd, Role::Kubelet][..];
        let new = ("new", names::NEW, "github.com/containerd/containerd/v2/cmd/containerd", both);
        for (mode, sources, package, roles) in [old, new] {
            let what = format!("{} {mode}", goroot.display());
            names::write(&scratch("names").join(mode), sources);
            let bytes =
                std::fs::read(build_from(&goroot, "names", mode, &["-ldflags=-s -w"], package.as_ref()))
                    .unwrap();
            let binary = GoBinary::parse(&bytes).unwrap();
            assert_eq!(catalog::roles(&binary), roles, "{what}");
            for &role in roles {
                let resolved = catalog::resolve(&binary, role);
                let places = |kind, method: &str| {
                    let r =
                        resolved.iter().find(|r| r.entry.kind == kind && r.entry.method == method).unwrap();
                    assert_eq!(
                        r.begin.as_ref().unwrap().how,
                        How::StackCheckBranch,
                        "{what} {kind:?} {method}"
                    );
                    assert!(!r.ends.as_ref().unwrap().is_empty(), "{what} {kind:?} {method}");
                    r.places.clone()
                };
                if role == Role::Containerd {
                    assert_eq!(places(Kind::CriCall, "UpdateContainerResources"), field(3, 8), "{what}");
                    assert_eq!(places(Kind::CriCall, "ListContainers"), [], "{what}");
                } else {
                    assert_eq!(places(Kind::Relist, ""), [], "{what}");
                    assert_eq!(places(Kind::CriClient, "ListContainers"), [], "{what}");
                    let words = [Place::Words(1), Place::Words(3)];
                    assert_eq!(places(Kind::CriClient, "ContainerStatus"), words, "{what}");
                }
            }
        }
    }
}

/// `relistDuration` lies behind the other fields of the stand-in's GenericPLEG, `RelistThreshold` behind the period.
#[test]
fn the_threshold_of_a_kubelet_is_found_in_its_code() {
    for goroot in toolchains() {
        names::write(&scratch("health").join("health"), names::HEALTH);
        let package = "k8s.io/kubernetes/cmd/kubelet";
        let path = build_from(&goroot, "health", "health", &["-ldflags=-s -w"], package.as_ref());
        let bytes = std::fs::read(path).unwrap();
        let found = health::of(&GoBinary::parse(&bytes).unwrap());
        let found = found.unwrap_or_else(|why| panic!("{}: {why}", goroot.display()));
        assert_eq!(found.threshold, Threshold::Field { outer: 120, inner: 8 }, "{}", goroot.display());
        assert_eq!(found.closures.len(), 1);
    }
}

/// Real uprobes on the chosen sites: as many ends as calls, whatever the way out.
#[test]
#[ignore = "needs root"]
fn every_call_passes_one_begin_and_one_end() {
    const ROUNDS: u64 = 3000;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/go_toolchain/calls.go");
    let built = toolchains().into_iter().flat_map(|goroot| {
        // The two link modes that differ most.
        let source = source.clone();
        [MODES[0], MODES[3]]
            .map(|(mode, arguments)| build_from(&goroot, "hits", mode, arguments, source.as_ref()))
    });
    for path in built {
        let bytes = std::fs::read(&path).unwrap();
        let binary = GoBinary::parse(&bytes).unwrap();
        let (runtime, abi) = (binary.runtime_calls(), binary.abi().unwrap());
        let names = ["Deferred", "Recovers", "Switches", "Plain", "Loops"]
            .map(|name| format!("main.(*process).{name}"));
        let names = names.iter().map(String::as_str).chain(["runtime.semacquire1"]);
        let probed: Vec<_> = names
            .map(|name| {
                let (index, _) = binary.functions.names().find(|(_, n)| *n == name.as_bytes()).unwrap();
                let code = binary.code(binary.functions.function(index).unwrap()).unwrap();
                let begin = code.begin(abi, &runtime).unwrap();
                let ends = code.ends(false, &runtime).unwrap();
                let at = |site: &probe_site::Site| Hits::of(&path, site.file_offset);
                (name, at(&begin), ends.iter().map(|site| (site.how, at(site))).collect::<Vec<_>>())
            })
            .collect();
        let output = Command::new(&path).output().unwrap();
        assert_eq!(output.stdout, b"END\n", "{}", String::from_utf8_lossy(&output.stderr));
        for (name, begin, ends) in probed {
            let what = format!("{} {name}", path.file_name().unwrap().display());
            let begins = begin.count();
            let each: Vec<(How, u64)> = ends.iter().map(|(how, hits)| (*how, hits.count())).collect();
            println!("{what}: {begins} begins, ends {each:?}");
            let ended: u64 = each.iter().map(|e| e.1).sum();
            if name.starts_with("main.") {
                assert_eq!(ended, ROUNDS, "{what}: {each:?}");
            }
            // Begins include those that are to be ignored: the stack grows, or the goroutine is asked to yield.
            assert!(
                ended > 0 && (ended..ended + 200).contains(&begins),
                "{what}: {begins} begins, {ended} ends"
            );
        }
    }
}
