//! The rules that look at one file, or at the list of files.

use super::{File, Finding, imports, tokens};

/// Looks at the whole tree and tells what breaks it.
pub type Rule = fn(&[File]) -> Vec<Finding>;

/// All rules.
pub const ALL: [Rule; 9] = [
    imports::check,
    module_docs,
    white_space,
    sizes,
    machine_paths,
    unfinished,
    test_attributes,
    code_map,
    scenarios,
];

/// What breaks a rule, in order of path and line.
pub fn check(files: &[File]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = ALL.iter().flat_map(|rule| rule(files)).collect();
    findings.sort();
    findings
}

fn rust(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|file| file.is_rust())
}

/// Every Rust file opens with what it is for.
fn module_docs(files: &[File]) -> Vec<Finding> {
    let says =
        |file: &&File| file.text.strip_prefix("//! ").is_some_and(|rest| !rest.trim_start().is_empty());
    rust(files)
        .filter(|file| !says(file))
        .map(|file| Finding::new(file, 1, "the file must open with a `//!` line that says what it is for"))
        .collect()
}

/// No space at the end of a line, no tab in Rust (but in a text of several lines, which may be Go), a newline at the end.
fn white_space(files: &[File]) -> Vec<Finding> {
    const CHECKED: [&str; 8] = [".rs", ".md", ".toml", ".sh", ".json", ".yaml", ".yml", "/run"];
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| CHECKED.iter().any(|end| file.path.ends_with(end))) {
        let tokens = if file.is_rust() { tokens::read(&file.text) } else { None };
        let is_literal = |line| tokens.as_ref().is_some_and(|tokens| tokens.is_literal(line));
        for (number, line) in file.lines() {
            if line.ends_with([' ', '\t', '\r']) {
                findings.push(Finding::new(file, number, "white space at the end of the line"));
            }
            if file.is_rust() && line.contains('\t') && !is_literal(number) {
                findings.push(Finding::new(file, number, "a tab; indent with spaces, write \\t in strings"));
            }
        }
        if !file.text.is_empty() && !file.text.ends_with('\n') {
            findings.push(Finding::new(file, file.text.lines().count(), "no newline at the end of the file"));
        }
    }
    findings
}

/// Lines a Rust file may have.
const MAX_LINES: usize = 700;
/// Longer files, and why each is one piece.
const LONG: [(&str, &str); 0] = [];

/// A long file is a table, a parser, or a place where nobody chose.
fn sizes(files: &[File]) -> Vec<Finding> {
    sizes_but(files, &LONG)
}

fn sizes_but(files: &[File], long: &[(&str, &str)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in rust(files) {
        let lines = file.text.lines().count();
        let listed = long.iter().any(|(path, _)| *path == file.path);
        if lines > MAX_LINES && !listed {
            let message =
                format!("{lines} lines; split it, or list it in xtask/src/tidy/rules.rs with a reason");
            findings.push(Finding::new(file, MAX_LINES, message));
        }
        if lines <= MAX_LINES && listed {
            findings.push(Finding::new(file, lines, "not long any more: take it off the list of long files"));
        }
    }
    findings
}

/// No path that exists only on somebody's machine. Tests may make up paths.
fn machine_paths(files: &[File]) -> Vec<Finding> {
    const CHECKED: [&str; 7] = [".rs", ".md", ".toml", ".sh", ".yaml", ".yml", "/run"];
    let patterns = ["work", "root", "home", "tmp"].map(|folder| format!("/{folder}/"));
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| CHECKED.iter().any(|end| file.path.ends_with(end))) {
        if file.path.contains("/tests/") || file.path.contains("/scenarios/") {
            continue;
        }
        let tokens = if file.is_rust() { tokens::read(&file.text) } else { None };
        for (number, line) in file.lines() {
            let names = |pattern: &String| {
                line.match_indices(pattern.as_str()).any(|(at, _)| {
                    // `…/snapshots/7/work/` is a path below something else.
                    !line[..at]
                        .ends_with(|before: char| before.is_alphanumeric() || "._-}>*".contains(before))
                })
            };
            if patterns.iter().any(names) && !tokens.as_ref().is_some_and(|tokens| tokens.is_test(number)) {
                findings.push(Finding::new(
                    file,
                    number,
                    "a path of one machine; take it from the environment",
                ));
            }
        }
    }
    findings
}

/// What is not finished is an issue, not a mark in the source.
fn unfinished(files: &[File]) -> Vec<Finding> {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let is_mark = |word: &str| marks.contains(&word);
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| !file.path.ends_with(".lock")) {
        for (number, line) in file.lines() {
            if line.split(|c: char| !c.is_alphanumeric() && c != '_').any(is_mark) {
                findings.push(Finding::new(
                    file,
                    number,
                    "a mark for unfinished work; finish it or open an issue",
                ));
            }
        }
    }
    findings
}

/// A test says what it expects, and one that is not run says why.
fn test_attributes(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in rust(files) {
        let Some(tokens) = tokens::read(&file.text) else {
            findings.push(Finding::new(file, 1, "not readable as Rust"));
            continue;
        };
        for (attribute, line) in &tokens.attributes {
            if attribute.starts_with("should_panic") {
                findings.push(Finding::new(
                    file,
                    *line,
                    "should_panic: let it return an error and compare that",
                ));
            }
            if attribute == "ignore" || attribute == "ignore=\"\"" {
                findings.push(Finding::new(file, *line, "an ignored test must say why: #[ignore = \"…\"]"));
            }
        }
    }
    findings
}

/// The document with the code map.
const MAP: &str = "ARCHITECTURE.md";

/// The code map names every top folder and every module of the user half, and nothing that is not there. Everywhere
/// else in our documents, a document that is named exists.
fn code_map(files: &[File]) -> Vec<Finding> {
    let Some(map) = files.iter().find(|file| file.path == MAP) else {
        let missing = File { path: MAP.into(), text: String::new() };
        return vec![Finding::new(&missing, 1, "the document with the code map is missing")];
    };
    let exists = |path: &str| {
        let path = path.trim_end_matches('/');
        files.iter().any(|file| file.path == path || file.path.starts_with(&format!("{path}/")))
    };
    let mut findings = Vec::new();
    let mut named = Vec::new();
    for (number, code) in quoted(map) {
        let is_path =
            (code.contains('/') || code.ends_with(".md")) && !code.contains([' ', '<', '*', '(', '$', ':']);
        if !is_path || code.starts_with('/') {
            continue;
        }
        if !exists(code) {
            findings.push(Finding::new(map, number, format!("{code} is named here but is not in the tree")));
        }
        named.push(code.trim_end_matches('/'));
    }
    for part in parts(files) {
        if !named.contains(&part.as_str()) {
            findings.push(Finding::new(map, 1, format!("{part} is in the tree but not named here")));
        }
    }
    for file in files.iter().filter(|file| file.path.ends_with(".md") && file.path != MAP) {
        for (number, code) in quoted(file) {
            let is_document = code.ends_with(".md") && !code.contains([' ', '<', '*', 'N']);
            if is_document && !exists(code) && !exists(&format!("docs/{code}")) {
                findings.push(Finding::new(
                    file,
                    number,
                    format!("{code} is named here but is not in the tree"),
                ));
            }
        }
    }
    findings
}

/// What stands between backticks, with its line.
fn quoted(file: &File) -> impl Iterator<Item = (usize, &str)> {
    file.lines().flat_map(|(number, line)| line.split('`').skip(1).step_by(2).map(move |code| (number, code)))
}

/// The top folders, and the modules of the user half.
fn parts(files: &[File]) -> Vec<String> {
    let mut parts: Vec<String> = files
        .iter()
        .filter_map(|file| match file.path.strip_prefix("tracer/src/") {
            Some(inside) => Some(format!("tracer/src/{}", inside.split('/').next()?)),
            None => Some(file.path.split_once('/')?.0.to_owned()),
        })
        .filter(|part| !part.starts_with('.') || part == ".ci")
        .collect();
    parts.sort();
    parts.dedup();
    parts
}

/// The folder of wait-graph tests.
const SCENARIOS: &str = "tracer/scenarios/";

/// Every scenario is played by a test: its name stands in a Rust file, or a Rust file plays the whole folder and the
/// file has the ending that is looked for there.
fn scenarios(files: &[File]) -> Vec<Finding> {
    let players: Vec<&File> = rust(files)
        .filter(|file| {
            file.path.starts_with("tracer/")
                && file.text.contains("scenarios")
                && file.text.contains("read_dir")
        })
        .collect();
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.path.starts_with(SCENARIOS)) {
        let name = file.path.rsplit('/').next().unwrap_or(&file.path);
        let (stem, ending) = name.rsplit_once('.').unwrap_or((name, ""));
        let is_named =
            rust(files).any(|code| code.text.contains(&format!("\"{stem}\"")) || code.text.contains(name));
        let is_played = players.iter().any(|player| player.text.contains(&format!("\"{ending}\"")));
        if !is_named && !is_played && !name.ends_with(".md") {
            findings.push(Finding::new(file, 1, "no test plays this scenario"));
        }
    }
    findings
}

#[cfg(test)]
mod tests;
