//! Which version a program says it is of, without running it: read off the code that answers the question.
//!
//! Builders set a variable by the linker (`-X …/version.Version=1.6.20`), whose symbol a stripped program does not have
//! any more. But some function prints it, and so refers to its string header.

use super::{GoBinary, Name};
use crate::event::Role;

/// Functions that refer to the program's own version before any other that looks like one.
fn tellers(role: Role) -> &'static [Name] {
    match role {
        // Version (services/version/service.go) answers with version.Version.
        Role::Containerd => &[Name::Suffix("services/version.(*service).Version")],
        // run (runtime/v2/shim/shim.go, since 2.0 pkg/shim/shim.go) prints version.Version when asked with -v.
        Role::Shim => &[Name::Suffix("runtime/v2/shim.run"), Name::Suffix("pkg/shim.run")],
        // Get (k8s.io/component-base/version/version.go); since 1.31 init stores it where Get finds it.
        Role::Kubelet => &[
            Name::Suffix("k8s.io/component-base/version.Get"),
            Name::Suffix("k8s.io/component-base/version.init.0"),
        ],
        Role::Other => &[],
    }
}

/// No version is longer.
const LONGEST: u64 = 64;

/// The version of a program of this role, for instance `1.6.20~ds1` or `1.20.2`, without the `v` some put before it.
pub fn of(binary: &GoBinary<'_>, role: Role) -> Option<String> {
    let found = binary.find(tellers(role));
    let functions = found.iter().flatten();
    let told = functions.filter_map(|function| binary.code(*function).ok()).find_map(|code| {
        let places = code.instructions().iter().filter(|i| i.is_ip_rel_memory_operand());
        places.map(|i| i.ip_rel_memory_address()).find_map(|at| string_at(binary, at))
    });
    // The module's version, where the toolchain noted it.
    let noted = || binary.build.version.as_deref().and_then(version).map(str::to_owned);
    told.or_else(noted)
}

/// The version in the string whose header is at `at`.
fn string_at(binary: &GoBinary<'_>, at: u64) -> Option<String> {
    let length = binary.elf.word(at.checked_add(8)?).filter(|length| (1..=LONGEST).contains(length))?;
    let text = binary.elf.bytes_at(binary.elf.word(at)?, length)?;
    version(std::str::from_utf8(text).ok()?).map(str::to_owned)
}

/// `text` without a leading `v`, if it looks like a version: at least two numbers with a dot, and nothing that is not
/// printed in one.
fn version(text: &str) -> Option<&str> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let (major, rest) = text.split_once('.')?;
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'+' | b'~' | b'_');
    (is_number(major) && is_number(minor) && text.bytes().all(plain)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_looks_like_a_version() {
        for (text, expected) in [
            ("v1.20.2", Some("1.20.2")),
            ("1.6.20~ds1", Some("1.6.20~ds1")),
            ("v2.1.9+ds1", Some("2.1.9+ds1")),
            ("v1.31.0-rc.1+k3s1", Some("1.31.0-rc.1+k3s1")),
            ("go1.19.8", None),
            ("(devel)", None),
            ("1", None),
            ("1.", None),
            ("%s: %v", None),
            ("1.2 \u{1b}[31m", None),
        ] {
            assert_eq!(version(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn anything_is_answered(text in "\\PC{0,20}") {
            if let Some(version) = version(&text) {
                prop_assert!(text.ends_with(version) && version.is_ascii());
            }
        }
    }
}
