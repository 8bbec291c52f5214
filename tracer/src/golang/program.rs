//! Which version of the program itself a Go program is: containerd, its shim, the kubelet.
//!
//! In this order: what the linker was told (`-X …version.Version=`), where build info has it; the version of the main
//! module; else the string that a known function prints as the version. All of them are what the program itself says
//! when it is asked, and it is not run for it. Nothing is told when more than one string could be meant.

use super::buildinfo::BuildInfo;
use super::pclntab::Function;
use super::{GoBinary, Name};

/// Functions that read the variable with the version. The first that a program has decides: containerd contains parts of
/// Kubernetes, with a version of their own.
const READERS: [Name; 5] = [
    // containerd: `app.Version = version.Version`.
    Name::Suffix("cmd/containerd/command.App"),
    // The shim with `-v`, until and since 2.0.
    Name::Suffix("runtime/v2/shim.run"),
    Name::Suffix("pkg/shim.run"),
    Name::Suffix("pkg/shim.Run"),
    // Kubernetes: `version.Get().GitVersion`.
    Name::Suffix("k8s.io/component-base/version.Get"),
];

/// No version is longer.
const LONGEST: u64 = 64;

impl GoBinary<'_> {
    /// The program's own version, for instance `1.6.20~ds1` or `v1.20.2`.
    pub fn program_version(&self) -> Option<String> {
        told(&self.build).or_else(|| self.printed())
    }

    /// The version among the strings that the first known function which the program has refers to, if only one can be
    /// meant.
    fn printed(&self) -> Option<String> {
        let found = self.find(&READERS);
        let strings = |functions: &Vec<Function>| -> Vec<String> {
            let codes = functions.iter().filter_map(|function| self.code(*function).ok());
            let addresses = codes.flat_map(|code| code.data_addresses());
            addresses.filter_map(|at| self.version_at(at)).collect()
        };
        let versions = found.iter().map(strings).find(|versions| !versions.is_empty())?;
        // A distribution's revision, printed beside the version, is the version with something behind.
        let shortest = versions.iter().min_by_key(|version| version.len())?;
        versions.iter().all(|version| version.starts_with(shortest)).then(|| shortest.clone())
    }

    /// The Go string whose header is at `va`, if it is a version.
    fn version_at(&self, va: u64) -> Option<String> {
        let len = self.elf.word(va.checked_add(8)?).filter(|len| (1..=LONGEST).contains(len))?;
        let bytes = self.elf.bytes_at(self.elf.word(va)?, len)?;
        std::str::from_utf8(bytes).ok().filter(|text| is_version(text)).map(str::to_owned)
    }
}

/// What build info says: a linker flag, or the version of the main module.
fn told(build: &BuildInfo) -> Option<String> {
    let flags = build.linker_flags.as_deref().unwrap_or("");
    let named = flags.split([' ', '"', '\'']).find_map(|flag| {
        let (variable, value) = flag.split_once('=')?;
        let ours = [
            "containerd/version.Version",
            "containerd/v2/version.Version",
            "component-base/version.gitVersion",
        ];
        ours.iter().any(|name| variable.ends_with(name)).then_some(value)
    });
    let named = named.filter(|text| is_version(text)).map(str::to_owned);
    named.or_else(|| build.version.clone().filter(|text| is_version(text) && !is_commit(text)))
}

/// Whether a module's version names a commit that has none: it ends in a time of 14 digits and 12 digits of a hash.
fn is_commit(text: &str) -> bool {
    let mut parts = text.split('+').next().unwrap_or(text).rsplit('-');
    let (hash, time) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let time = time.rsplit('.').next().unwrap_or(time);
    hash.len() == 12 && time.len() == 14 && time.bytes().all(|b| b.is_ascii_digit())
}

/// Three numbers, with a letter v before and anything that versions have behind.
fn is_version(text: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let allowed = text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-+~_".contains(&b));
    let mut parts = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
    let (Some(major), Some(minor), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let patch = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let tail = &rest[patch..];
    allowed
        && text.len() <= LONGEST as usize
        && [major, minor, &rest[..patch]].into_iter().all(digits)
        && (tail.is_empty() || tail.starts_with(['-', '+', '~']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(version: Option<&str>, flags: Option<&str>) -> BuildInfo {
        let own = |text: Option<&str>| text.map(str::to_owned);
        BuildInfo { go: "go1.22.1".into(), path: None, version: own(version), linker_flags: own(flags) }
    }

    #[test]
    fn versions() {
        for good in ["1.6.20", "1.6.20~ds1", "v1.20.2", "2.1.9+ds1", "v2.0.0-rc.1", "1.4.13~ds1"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", "1.6", "(devel)", "1.6.x", "10.0.0.1", "v1.2.3 x", "1..2", "a1.2.3"] {
            assert!(!is_version(bad), "{bad}");
        }
    }

    #[test]
    fn what_build_info_says() {
        let flags = "-X github.com/containerd/containerd/version.Version=1.7.2 -X github.com/containerd/containerd/version.Package=9.9.9 -s";
        assert_eq!(told(&build(Some("v0.0.1"), Some(flags))).as_deref(), Some("1.7.2"));
        let quoted = "\"-X 'k8s.io/component-base/version.gitVersion=v1.30.1' -s\"";
        assert_eq!(told(&build(Some("(devel)"), Some(quoted))).as_deref(), Some("v1.30.1"));
        assert_eq!(told(&build(Some("v2.1.9"), None)).as_deref(), Some("v2.1.9"));
        // A commit between two versions is neither.
        for commit in ["v0.0.0-20240101000000-abcdefabcdef", "v1.6.3-0.20240101000000-abcdefabcdef+dirty"] {
            assert_eq!(told(&build(Some(commit), None)), None, "{commit}");
        }
        assert_eq!(told(&build(Some("(devel)"), None)), None);
        assert_eq!(told(&build(None, Some("-X main.version=1.2.3"))), None);
    }
}
