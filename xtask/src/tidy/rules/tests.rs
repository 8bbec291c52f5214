//! Each rule finds a bad sample and leaves a good one alone.

use super::*;

fn file(path: &str, text: &str) -> File {
    File { path: path.into(), text: text.into() }
}

/// Lines that a rule finds in a single file.
fn lines(rule: Rule, path: &str, text: &str) -> Vec<usize> {
    rule(&[file(path, text)]).into_iter().map(|finding| finding.line).collect()
}

#[test]
fn a_file_without_its_purpose_is_found() {
    for bad in ["", "use std::fs;\n", "// not a doc\n", "//!\n", "\n//! late\n"] {
        assert_eq!(lines(module_docs, "tracer/src/a.rs", bad), [1], "{bad:?}");
    }
    assert_eq!(lines(module_docs, "tracer/src/a.rs", "//! What it is for.\n"), [0; 0]);
    assert_eq!(lines(module_docs, "a.toml", "x = 1\n"), [0; 0]);
}

#[test]
fn stray_white_space_is_found() {
    assert_eq!(lines(white_space, "a.rs", "a \nb\n\tc\n"), [1, 3]);
    assert_eq!(lines(white_space, "a.rs", "const GO: &str = \"\n\tx\n\";\nfn f() {\n\tg()\n}\n"), [5]);
    assert_eq!(lines(white_space, "a.md", "a\n\tb\nc\t\n"), [3]);
    assert_eq!(lines(white_space, ".ci/run", "a\nb"), [2]);
    assert_eq!(lines(white_space, "a.snap", "a \n"), [0; 0]);
}

#[test]
fn long_files_are_found_unless_listed_and_the_list_stays_true() {
    let long = file("a.rs", &"//! x\n".repeat(MAX_LINES + 1));
    let short = file("a.rs", &"//! x\n".repeat(MAX_LINES));
    let listed = [("a.rs", "a table")];
    assert_eq!(sizes_but(std::slice::from_ref(&long), &[]).len(), 1);
    assert_eq!(sizes_but(std::slice::from_ref(&short), &[]).len(), 0);
    assert_eq!(sizes_but(&[long], &listed).len(), 0);
    assert_eq!(sizes_but(&[short], &listed).len(), 1);
}

#[test]
fn paths_of_one_machine_are_found() {
    for bad in ["let a = \"/root/x\";", "// see /work/y", "# /tmp/x", "cd `/home/me/z`"] {
        assert_eq!(lines(machine_paths, "a.md", bad), [1], "{bad}");
    }
    assert_eq!(lines(machine_paths, "a.rs", "//! a\nfn f() { g(\"/tmp/x\") }\n"), [2]);
    for good in ["snapshots/7/work/fs", "{dir}/work/incompat", "https://a.example/home/", "tmpfs", "/tmp"] {
        assert_eq!(lines(machine_paths, "a.md", good), [0; 0], "{good}");
    }
    assert_eq!(lines(machine_paths, "tracer/tests/a.rs", "\"/tmp/x\""), [0; 0]);
    assert_eq!(
        lines(machine_paths, "a.rs", "#[cfg(test)]\nmod tests {\n const A: &str = \"/tmp/x\";\n}\n"),
        [0; 0]
    );
}

#[test]
fn unfinished_work_is_found() {
    for mark in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")] {
        assert_eq!(lines(unfinished, "a.rs", &format!("a\n// {mark}: later\n")), [2]);
        assert_eq!(lines(unfinished, "a.md", &format!("{}S are fine, m{mark} too\n", mark)), [0; 0]);
    }
}

#[test]
fn tests_that_panic_or_are_ignored_without_a_word_are_found() {
    let sample = |attribute: &str| {
        format!("//! a\n#[cfg(test)]\nmod tests {{\n#[test]\n#[{attribute}]\nfn f() {{}}\n}}\n")
    };
    for bad in ["should_panic", "should_panic(expected = \"x\")", "ignore", "ignore = \"\""] {
        assert_eq!(lines(test_attributes, "a.rs", &sample(bad)), [5], "{bad}");
    }
    for good in ["ignore = \"needs a disk\"", "cfg(unix)"] {
        assert_eq!(lines(test_attributes, "a.rs", &sample(good)), [0; 0], "{good}");
    }
    assert_eq!(lines(test_attributes, "a.rs", "// #[ignore]\n"), [0; 0]);
    assert_eq!(lines(test_attributes, "a.rs", "fn f( {\n"), [1]);
}

#[test]
fn a_code_map_that_is_not_true_is_found() {
    let tree = |map: &str| {
        vec![file("ARCHITECTURE.md", map), file("tracer/src/event.rs", ""), file("docs/a.md", "")]
    };
    let good = "`tracer/` `docs/` `docs/a.md` and `tracer/src/event.rs`; `cargo run` and `/proc/TID/stack` are not ours";
    assert_eq!(code_map(&tree(good)), []);

    let messages =
        |files: &[File]| -> Vec<String> { code_map(files).into_iter().map(|found| found.message).collect() };
    let gone = format!("{good} `tracer/src/gone.rs`");
    assert_eq!(messages(&tree(&gone)), ["tracer/src/gone.rs is named here but is not in the tree"]);
    assert_eq!(
        messages(&tree("`tracer/` `docs/`")),
        ["tracer/src/event.rs is in the tree but not named here"]
    );
    assert_eq!(messages(&tree(good)[1..]), ["the document with the code map is missing"]);

    let mut other = tree(good);
    other.push(file("README.md", "see `docs/a.md`, `a.md`, `docs/gone.md`"));
    assert_eq!(messages(&other), ["docs/gone.md is named here but is not in the tree"]);
}

#[test]
fn a_scenario_that_no_test_plays_is_found() {
    let scenario = file("tracer/scenarios/containerd-1.4.events", "");
    let player = |text: &str| file("tracer/tests/scenarios.rs", text);
    let plays_all = player("fn f() { read_dir(\"scenarios\"); ends(\"events\") }");
    let other_ending = player("fn f() { read_dir(\"scenarios\"); ends(\"txt\") }");
    let by_name = player("play!(\"containerd-1.4\");");
    assert_eq!(scenarios(std::slice::from_ref(&scenario)).len(), 1);
    assert_eq!(scenarios(&[scenario.clone(), other_ending]).len(), 1);
    assert_eq!(scenarios(&[scenario.clone(), plays_all]), []);
    assert_eq!(scenarios(&[scenario, by_name]), []);
}
