//! Stands between cargo and rustc while the kernel half is built, to keep folders out of the names of symbols.
//!
//! Cargo tells crates apart by a hash (`-C metadata`) that depends on where a crate lies, and rustc puts that hash into
//! every mangled name; renaming of paths does not reach it. Within this one build a crate is as well told apart by its
//! name and version, which are the same on every machine.

use std::env;
use std::ffi::OsString;
use std::process::{self, Command, ExitCode};

/// What stands in place of cargo's hash, recorded with the object.
pub const CRATE_HASH: &str = "{name}-{version}";
/// Set to our target where we are called in place of rustc; cargo passes rustc's path and arguments.
const VARIABLE: &str = "PLEGSCOPE_RUSTC_WRAPPER";

/// Makes a cargo command call us in place of rustc.
pub fn wrap(cargo: &mut Command, target: &str) {
    // Not the executable's path: another cargo may put a newer one there while we run.
    cargo.env("RUSTC_WRAPPER", format!("/proc/{}/exe", process::id())).env(VARIABLE, target);
}

/// If we were called in place of rustc: does its work.
pub fn run_if_called() -> Option<ExitCode> {
    let target = env::var(VARIABLE).ok()?;
    let mut arguments = env::args_os().skip(1);
    let rustc = arguments.next()?;
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let arguments = rewrite(arguments.collect(), &target, &version);
    match Command::new(&rustc).args(arguments).status() {
        Ok(status) if status.success() => Some(ExitCode::SUCCESS),
        Ok(_) => Some(ExitCode::FAILURE),
        Err(error) => {
            eprintln!("error: cannot start {}: {error}", rustc.display());
            Some(ExitCode::FAILURE)
        }
    }
}

/// Replaces the value of `-C metadata` when the crate is compiled for `target`; crates for the building machine (macros,
/// build scripts) leave no names in the object and keep theirs.
fn rewrite(mut arguments: Vec<OsString>, target: &str, version: &str) -> Vec<OsString> {
    let after = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1)?.to_str()
    };
    if after("--target") != Some(target) {
        return arguments;
    }
    let Some(name) = after("--crate-name").map(String::from) else { return arguments };
    for argument in &mut arguments {
        if argument.to_str().is_some_and(|text| text.starts_with("metadata=")) {
            let hash = CRATE_HASH.replace("{name}", &name).replace("{version}", version);
            *argument = format!("metadata={hash}").into();
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(line: &str) -> String {
        let arguments = line.split(' ').map(OsString::from).collect();
        let rewritten = rewrite(arguments, "bpfel-unknown-none", "0.2.1");
        rewritten.join(" ".as_ref()).into_string().unwrap()
    }

    #[test]
    fn a_crate_for_the_target_is_known_by_name_and_version() {
        assert_eq!(
            rewritten(
                "--crate-name aya_ebpf -C metadata=4b3c -C extra-filename=-4b3c --target bpfel-unknown-none"
            ),
            "--crate-name aya_ebpf -C metadata=aya_ebpf-0.2.1 -C extra-filename=-4b3c --target bpfel-unknown-none"
        );
    }

    #[test]
    fn what_is_built_for_this_machine_or_has_no_name_is_left_alone() {
        for line in ["--crate-name syn -C metadata=4b3c", "-vV --target bpfel-unknown-none -C metadata=4b3c"]
        {
            assert_eq!(rewritten(line), line);
        }
    }
}
