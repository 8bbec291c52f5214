//! Kernels with defects that probes of ours would meet, by name. Only what concerns us: uprobes, their links, BPF programs
//! of the kprobe type. docs/safety.md tells what else was looked at. Versions are those of kernel.org; a vendor's kernel may
//! have the fix without having the number, so most of it is a warning.

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Programs are not probed.
    Refuse,
    /// It is told.
    Warn,
}

/// A defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defect {
    /// What may happen, in words.
    pub what: &'static str,
    /// Where it is written.
    pub citation: &'static str,
    /// What to do about it.
    pub verdict: Verdict,
    /// From the first of these on, up to but without the second.
    ranges: &'static [([u32; 3], [u32; 3])],
}

/// All that are known.
const DEFECTS: [Defect; 1] = [Defect {
    what: "attaching uprobes by one link leaves a freed entry in the kernel when it fails at its last step, for want of \
           memory or descriptors",
    citation: "CVE-2024-47675, fixed in 6.6.54, 6.10.13 and 6.11.2",
    verdict: Verdict::Warn,
    ranges: &[([6, 6, 0], [6, 6, 54]), ([6, 7, 0], [6, 10, 13]), ([6, 11, 0], [6, 11, 2])],
}];

/// Defects of a kernel by its release (`6.6.30-talos`). None for a release that is no number.
pub fn defects(release: &str) -> Vec<Defect> {
    let Some(version) = version(release) else { return Vec::new() };
    let has = |d: &&Defect| d.ranges.iter().any(|(from, to)| (*from..*to).contains(&version));
    DEFECTS.iter().filter(has).copied().collect()
}

/// The first three numbers of a release; a missing third is 0.
pub(super) fn version(release: &str) -> Option<[u32; 3]> {
    let end = release.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(release.len());
    let mut parts = release.get(..end)?.split('.').map(|part| part.parse::<u32>().ok());
    Some([parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_defect_is_known_from_its_first_version_to_its_last() {
        let bad = |release: &str| !defects(release).is_empty();
        for release in
            ["6.6.0", "6.6.53-talos", "6.7.12", "6.10.12-200.fc40.x86_64", "6.11.0-19-generic", "6.11.1"]
        {
            assert!(bad(release), "{release}");
        }
        for release in [
            "5.15.0-1",
            "6.5.13",
            "6.6.54",
            "6.10.13",
            "6.11.2",
            "6.12.0",
            "6.18.44-fc-v657",
            "unknown",
            "",
            "6",
        ] {
            assert!(!bad(release), "{release}");
        }
        assert_eq!(version("6.6"), Some([6, 6, 0]));
        assert_eq!(version("7.0.0-22-generic"), Some([7, 0, 0]));
    }
}
