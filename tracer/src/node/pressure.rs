//! How much everybody waits for disks, memory and processors: the kernel's pressure stall information, `/proc/pressure`.
//! Reading it waits for nothing but the kernel's own adding up.

use super::{ReadError, number, read_file};
use crate::event::{PressureFacts, Resource};

/// Two lines.
const LARGEST: usize = 4096;

/// Why there is none on most nodes that have none.
const NONE: &str = "this kernel keeps no pressure stall information: it was built without (CONFIG_PSI), or booted without psi=1";

/// What is known of each.
pub fn all() -> Vec<PressureFacts> {
    [(Resource::Io, "io"), (Resource::Memory, "memory"), (Resource::Cpu, "cpu")]
        .into_iter()
        .map(|(of, name)| facts(of, read_file(&format!("/proc/pressure/{name}"), LARGEST)))
        .collect()
}

/// What a file of `/proc/pressure` says, or why it says nothing.
fn facts(of: Resource, read: Result<Vec<u8>, ReadError>) -> PressureFacts {
    let (some, full, reason) = match read {
        Ok(text) => match (total(&text, b"some "), total(&text, b"full ")) {
            (None, _) => (None, None, "the kernel's file has no totals".to_owned()),
            // Of processors there is no such thing for a node: the kernel writes zeros, before 5.13 nothing.
            (some, full) => (some, full.filter(|_| of != Resource::Cpu), String::new()),
        },
        // No folder, or files that say so when they are read, depending on the kernel.
        Err(error) if error.is_gone() || error.is_unsupported() => (None, None, NONE.to_owned()),
        Err(error) => (None, None, error.to_string()),
    };
    PressureFacts { of, some, full, reason }
}

/// The `total` of a line of `/proc/pressure`, in microseconds.
pub fn total(text: &[u8], line: &[u8]) -> Option<u64> {
    let line = text.split(|b| *b == b'\n').find_map(|of| of.strip_prefix(line))?;
    number(line.split(|b| *b == b' ').find_map(|field| field.strip_prefix(b"total="))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"some avg10=0.00 avg60=0.00 avg300=0.01 total=1219045\n\
        full avg10=0.00 avg60=0.00 avg300=0.01 total=1104531\n";

    #[test]
    fn recorded_pressure() {
        let io = facts(Resource::Io, Ok(TEXT.to_vec()));
        assert_eq!((io.some, io.full, io.reason.as_str()), (Some(1_219_045), Some(1_104_531), ""));
        let cpu = facts(Resource::Cpu, Ok(TEXT.to_vec()));
        assert_eq!((cpu.some, cpu.full), (Some(1_219_045), None));
    }

    #[test]
    fn what_is_not_there_has_a_reason() {
        for text in [&b""[..], b"some avg10=0.00 total=x\n", b"full avg10=0.00 total=1\n"] {
            let none = facts(Resource::Io, Ok(text.to_vec()));
            assert_eq!((none.some, none.full), (None, None));
            assert!(!none.reason.is_empty(), "{text:?}");
        }
        let gone = facts(Resource::Memory, read_file("/proc/pressure/no-such-resource", LARGEST));
        assert_eq!((gone.some, gone.reason.as_str()), (None, NONE));
    }

    #[test]
    fn this_kernel_tells_all_three_or_why_not() {
        let (before, after) = (all(), all());
        assert_eq!(
            before.iter().map(|p| p.of).collect::<Vec<_>>(),
            [Resource::Io, Resource::Memory, Resource::Cpu]
        );
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before.some.is_some(), before.reason.is_empty());
            assert!(after.some >= before.some && after.full <= after.some, "{before:?} {after:?}");
        }
    }
}
