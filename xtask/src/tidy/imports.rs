//! Which part may refer to what: the direction of dependencies, and purity.

use super::tokens::{self, Tokens};
use super::{File, Finding};
use std::collections::BTreeMap;

/// A crate or module that only some files may refer to.
struct OnlyIn {
    /// First segment of the path: a crate.
    crates: &'static [&'static str],
    /// Below these.
    places: &'static [&'static str],
    why: &'static str,
}

const ONLY_IN: [OnlyIn; 3] = [
    OnlyIn {
        crates: &["aya", "aya_log", "aya_obj"],
        places: &["tracer/src/bpf/"],
        why: "only the loader speaks to the kernel half",
    },
    OnlyIn {
        crates: &["ratatui", "crossterm"],
        places: &["tracer/src/tui/"],
        why: "only the TUI draws; everybody else hands out plain data",
    },
    OnlyIn {
        crates: &["clap", "clap_complete", "clap_mangen"],
        places: &["tracer/src/cli.rs", "tracer/src/cli/", "tracer/src/commands/", "tracer/src/main.rs"],
        why: "what the user typed is turned into settings at the edge",
    },
];

/// Files that may not refer to some paths.
struct Never {
    places: &'static [&'static str],
    paths: &'static [&'static str],
    why: &'static str,
}

const NEVER: [Never; 2] = [
    Never {
        places: &[
            "tracer/src/alert/",
            "tracer/src/correlator/",
            "tracer/src/correlator.rs",
            "tracer/src/golang/",
            "tracer/src/order.rs",
            "tracer/src/decode.rs",
            "tracer/src/event.rs",
            "tracer/src/look.rs",
            "tracer/src/pipeline.rs",
            "tracer/src/report/",
            "tracer/src/stats.rs",
            "tracer/src/thresholds.rs",
        ],
        paths: &[
            "std::fs",
            "std::net",
            "std::thread",
            "std::time",
            "std::process",
            "std::*",
            "tokio",
            "libc",
            "aya",
            "aya_obj",
            "aya_log",
            "ratatui",
            "procfs",
        ],
        why: "this part is pure: no I/O, no clock, no threads, so that a replay gives what the live run gave",
    },
    Never {
        places: &["tracer/src/sinks/", "tracer/src/tui/"],
        paths: &["crate::bpf", "crate::warden", "crate::source", "crate::decode", "crate::*"],
        why: "sinks see frames and diagnoses, so that live and replay cannot differ in them",
    },
];

/// The files of the user half, without what exists only in tests.
pub fn check(files: &[File]) -> Vec<Finding> {
    let read: BTreeMap<&str, (&File, Tokens)> = files
        .iter()
        .filter(|file| file.is_rust() && file.path.starts_with("tracer/src/"))
        .filter_map(|file| Some((&*file.path, (file, tokens::read(&file.text)?))))
        .collect();
    let test_only = test_only(&read);
    let mut findings = Vec::new();
    for (path, (file, tokens)) in &read {
        if test_only
            .iter()
            .any(|module| below(path, &format!("{module}.rs")) || below(path, &format!("{module}/")))
        {
            continue;
        }
        let mut after_use = false;
        for (found, line) in &tokens.paths {
            // A lone word is a crate behind `use`, and may be anything elsewhere.
            let counts = found.len() > 1 || after_use;
            after_use = found == &["use"];
            if !counts {
                continue;
            }
            let found = absolute(path, found).join("::");
            findings.extend(
                broken(path, &found).map(|why| Finding::new(file, *line, format!("`{found}`: {why}"))),
            );
        }
    }
    findings
}

/// Why the file `path` may not refer to `found`.
fn broken(path: &str, found: &str) -> Option<&'static str> {
    let below_one = |places: &[&str]| places.iter().any(|place| below(path, place));
    let first = found.split("::").next().unwrap_or(found);
    let within =
        |path: &&str| found == *path || found.strip_prefix(*path).is_some_and(|rest| rest.starts_with("::"));
    let mut only_in = ONLY_IN.iter();
    let mut never = NEVER.iter();
    only_in.find(|rule| rule.crates.contains(&first) && !below_one(rule.places)).map(|rule| rule.why).or_else(
        || never.find(|rule| below_one(rule.places) && rule.paths.iter().any(within)).map(|rule| rule.why),
    )
}

fn below(path: &str, place: &str) -> bool {
    if place.ends_with('/') { path.starts_with(place) } else { path == place }
}

/// A path as seen from the crate's root: `super::bpf` in `tracer/src/sinks/text.rs` is `crate::sinks::bpf`.
fn absolute(file: &str, path: &[String]) -> Vec<String> {
    let supers = path.iter().take_while(|segment| *segment == "super").count();
    if supers == 0 {
        return path.to_vec();
    }
    let inside = file.trim_start_matches("tracer/src/").trim_end_matches(".rs");
    let mut module: Vec<String> = inside.split('/').filter(|part| *part != "mod").map(String::from).collect();
    module.truncate(module.len().saturating_sub(supers));
    module.insert(0, "crate".into());
    module.extend_from_slice(&path[supers..]);
    module
}

/// Paths, without `.rs`, of modules that are declared under `#[cfg(test)]`.
fn test_only(read: &BTreeMap<&str, (&File, Tokens)>) -> Vec<String> {
    let mut modules = Vec::new();
    for (path, (_, tokens)) in read {
        let stem = path.trim_end_matches(".rs");
        let folder =
            ["/mod", "/lib", "/main"].iter().find_map(|name| stem.strip_suffix(name)).unwrap_or(stem);
        modules.extend(tokens.test_modules.iter().map(|module| format!("{folder}/{module}")));
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finds(path: &str, text: &str) -> bool {
        let file = File { path: path.into(), text: text.into() };
        !check(&[file]).is_empty()
    }

    #[test]
    fn crates_stay_in_their_part() {
        for (path, bad) in [
            ("tracer/src/node/mod.rs", "use aya::Ebpf;"),
            ("tracer/src/warden/mod.rs", "fn f() { let m: aya_obj::Object; }"),
            ("tracer/src/sinks/text.rs", "use ratatui::text::Line;"),
            ("tracer/src/pipeline.rs", "#[derive(clap::Args)] struct A;"),
            ("tracer/src/node/mod.rs", "use aya as a;"),
            ("tracer/src/thresholds.rs", "use {clap::Parser, std::fmt};"),
        ] {
            assert!(finds(path, bad), "{path}: {bad}");
        }
        for (path, good) in [
            ("tracer/src/bpf/load.rs", "use aya::Ebpf;"),
            ("tracer/src/tui/view.rs", "use ratatui::text::Line;"),
            ("tracer/src/commands/live.rs", "#[derive(clap::Args)] struct A;"),
            ("tracer/src/cli.rs", "use clap::Parser;"),
            ("xtask/src/main.rs", "use clap::Parser;"),
            ("tracer/src/node/mod.rs", "// use aya::Ebpf;\nfn f() { g(\"aya::Ebpf\") }"),
            ("tracer/src/node/mod.rs", "fn f(aya: u32) -> u32 { aya }"),
        ] {
            assert!(!finds(path, good), "{path}: {good}");
        }
    }

    #[test]
    fn the_pure_parts_stay_pure() {
        let places =
            ["correlator/graph.rs", "correlator.rs", "golang/elf.rs", "order.rs", "decode.rs", "event.rs"];
        let bad = [
            "use std::fs::File;",
            "use std::{collections::BTreeMap, net::TcpStream};",
            "fn f() { std::thread::spawn(g); }",
            "use std::time::Instant;",
            "use std::process::Command;",
            "use std::*;",
            "use tokio::sync::mpsc;",
            "fn f() { unsafe { libc::getpid() }; }",
            "use procfs::process::Process;",
        ];
        for place in places {
            for text in bad {
                assert!(finds(&format!("tracer/src/{place}"), text), "{place}: {text}");
            }
            assert!(!finds(
                &format!("tracer/src/{place}"),
                "use std::collections::BTreeMap;\nuse crate::event::Ns;"
            ));
            assert!(!finds(&format!("tracer/src/{place}"), "#[cfg(test)]\nmod tests {\n use std::fs;\n}"));
        }
        assert!(!finds("tracer/src/node/mod.rs", "use std::fs;"));
    }

    #[test]
    fn a_module_that_exists_only_in_tests_is_free() {
        let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
        let with = |declared: &str| {
            check(&[
                file("tracer/src/golang/mod.rs", declared),
                file("tracer/src/golang/synthetic.rs", "use std::fs;"),
            ])
        };
        assert!(with("#[cfg(test)]\nmod synthetic;").is_empty());
        assert_eq!(with("mod synthetic;").len(), 1);
    }

    #[test]
    fn sinks_do_not_reach_back() {
        for bad in [
            "use crate::bpf::load;",
            "use crate::{event::Ns, warden::Client};",
            "use super::super::source::Source;",
            "fn f() { crate::decode::decode(x) }",
            "use crate::*;",
        ] {
            assert!(finds("tracer/src/sinks/text.rs", bad), "{bad}");
            assert!(finds("tracer/src/tui/view.rs", bad), "{bad}");
        }
        assert!(finds("tracer/src/sinks/mod.rs", "use super::source::Source;"));
        for good in ["use crate::correlator::frame::Frame;", "use super::source::Source;", "use std::fs;"] {
            assert!(!finds("tracer/src/sinks/text.rs", good), "{good}");
        }
        assert!(!finds("tracer/src/pipeline.rs", "use crate::decode::decode;"));
    }
}
