//! What is known of Go programs on arm64, **untested**: read in Go's source and in files built for arm64; none of it has
//! run there, and nothing uses it yet. Programs for arm64 are refused (`Elf::parse`), since the code that places are read
//! off is decoded for x86-64 only.
//!
//! The fields of `g`, `m` and `sudog` are where they are on x86-64: [`super::offsets::Offsets`] holds for both, and a test
//! compares it with what the compilers themselves say for both.

use super::buildinfo::GoVersion;
use super::offsets::Abi;

/// `quantum` in the header of the symbol table: pc steps count instructions, of four bytes.
pub const QUANTUM: u8 = 4;
/// Registers R0 to R15 hold the first argument words, in order, where the convention is [`Abi::Register`].
pub const ARGUMENTS: std::ops::RangeInclusive<u8> = 0..=15;
/// The register that holds `g`, in every version.
pub const G: u8 = 28;
/// The register that holds a closure's context.
pub const CLOSURE: u8 = 26;
/// The register that holds the return address at a function's entry.
pub const RETURN: u8 = 30;
/// Bytes of the stack check at a function's entry: `ldr; cmp; b.ls`.
pub const STACK_CHECK: u64 = 12;

/// Convention of a Go version: a version later than on x86-64. By [`Abi::Stack`] argument word n is at `[sp + 8 + 8 n]`.
pub fn abi(version: GoVersion) -> Abi {
    if version.minor <= 17 { Abi::Stack } else { Abi::Register }
}

/// Bytes from one root of `runtime.semtable` to the next: a cache line, as Go assumes it. `None` where it is not known.
pub fn semaphore_stride(version: GoVersion) -> Option<u32> {
    match version.minor {
        15..=19 => Some(64),
        21..=27 => Some(128),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_noted_for_two_versions() {
        let of = |minor| GoVersion { minor, patch: 0 };
        assert_eq!((semaphore_stride(of(19)), semaphore_stride(of(27))), (Some(64), Some(128)));
        assert_eq!([14, 20, 28].map(|minor| semaphore_stride(of(minor))), [None; 3]);
        assert_eq!((abi(of(17)), abi(of(18))), (Abi::Stack, Abi::Register));
    }
}
