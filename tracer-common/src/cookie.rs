//! What a uprobe site knows of itself: 64 bits that travel as the attach cookie (kernel 5.15 and later) or, on older
//! kernels, through the `SITES` map.

use crate::op::kind;

/// Where the text of an operation comes from.
pub mod text {
    /// There is none.
    pub const NONE: u64 = 0;
    /// Two argument words hold a Go string (pointer, length).
    pub const ARGUMENT: u64 = 1;
    /// A Go string lies at an offset of what an argument word points to.
    pub const FIELD: u64 = 2;
}

/// A probe site's cookie. Build with [`Cookie::new`] and the `with_` functions; read with the getters.
///
/// | bits | what |
/// |---|---|
/// | 0-7 | operation kind |
/// | 8-15 | method number |
/// | 16 | stack ABI (Go 1.16 and earlier) |
/// | 17 | the site is the branch of the stack check: ignore the hit when it is taken |
/// | 18-21 | argument word of the object (15: none) |
/// | 22-23 | text source |
/// | 24-27 | argument word of the text |
/// | 28-35 | offset of the text's string header, in words |
/// | 36-39 | argument word of the name (15: none) |
/// | 40-47 | offset of goid in `g`, in words |
/// | 48-51 | result word of an `error` (15: none) |
/// | 52-59 | second candidate for the text when the first is not 64 bytes long: a word or an offset in words, as the source (255: none) |
/// | 60-62 | meter: which executable pays for a hit |
/// | 63 | the kernel single-steps the site's instruction, which costs ten times as much as emulating it |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub u64);

/// Executables whose hits are counted apart.
pub const METERS: u8 = 8;
/// Counters of hits in all.
pub const COUNTERS: u32 = METERS as u32 * 2 * kind::LIMIT;

/// Index of a counter of hits.
#[inline(always)]
pub const fn counter(meter: u8, stepped: bool, kind: u32) -> u32 {
    (((stepped as u32) << 3 | (meter as u32 & 7)) * kind::LIMIT) + (kind & (kind::LIMIT - 1))
}

const NO_WORD: u64 = 15;
const NO_SECOND: u64 = 255;

impl Cookie {
    /// A site of an operation of this kind and method.
    pub const fn new(kind: u32, method: u8) -> Cookie {
        let none = NO_WORD << 18 | NO_WORD << 36 | NO_WORD << 48 | NO_SECOND << 52;
        Cookie((kind as u64 & 0xff) | ((method as u64) << 8) | none)
    }
    const fn set(self, shift: u32, width: u32, value: u64) -> Cookie {
        let mask = ((1u64 << width) - 1) << shift;
        Cookie((self.0 & !mask) | ((value << shift) & mask))
    }
    const fn get(self, shift: u32, width: u32) -> u64 {
        (self.0 >> shift) & ((1u64 << width) - 1)
    }
    /// Arguments are on the stack (Go 1.16 and earlier).
    pub const fn with_stack_abi(self, yes: bool) -> Cookie {
        self.set(16, 1, yes as u64)
    }
    /// The site is the conditional jump of the stack check.
    pub const fn with_stack_check(self, yes: bool) -> Cookie {
        self.set(17, 1, yes as u64)
    }
    /// This argument word is the object.
    pub const fn with_object(self, word: u8) -> Cookie {
        self.set(18, 4, word as u64)
    }
    /// The text is the Go string in argument words `word` and `word + 1`.
    pub const fn with_text_argument(self, word: u8) -> Cookie {
        self.set(22, 2, text::ARGUMENT).set(24, 4, word as u64)
    }
    /// The text is the Go string at `offset` (bytes, a multiple of 8 below 2048) of what `word` points to.
    pub const fn with_text_field(self, word: u8, offset: u16) -> Cookie {
        self.set(22, 2, text::FIELD).set(24, 4, word as u64).set(28, 8, offset as u64 / 8)
    }
    /// When the text is not as long as a container id, it is looked for here instead: another argument word, or another
    /// offset (bytes, a multiple of 8 below 2040), whichever the source is.
    pub const fn with_second(self, word_or_offset: u16) -> Cookie {
        let value = match self.text_source() {
            text::FIELD => word_or_offset as u64 / 8,
            _ => word_or_offset as u64,
        };
        self.set(52, 8, value)
    }
    /// The name is the Go string in argument words `word` and `word + 1`.
    pub const fn with_name_argument(self, word: u8) -> Cookie {
        self.set(36, 4, word as u64)
    }
    /// goid lies at this offset (bytes, a multiple of 8 below 2048) of `g`.
    pub const fn with_goid_offset(self, offset: u16) -> Cookie {
        self.set(40, 8, offset as u64 / 8)
    }
    /// The function's result words `word` and `word + 1` are an `error`.
    pub const fn with_error_result(self, word: u8) -> Cookie {
        self.set(48, 4, word as u64)
    }
    /// Hits are counted for this meter (below [`METERS`]), and whether the kernel single-steps the site.
    pub const fn with_meter(self, meter: u8, stepped: bool) -> Cookie {
        self.set(60, 3, meter as u64).set(63, 1, stepped as u64)
    }
    /// Index of the counter of a hit: by meter, by whether it is single-stepped, by kind; below [`COUNTERS`].
    #[inline(always)]
    pub const fn counter(self) -> u32 {
        counter(self.get(60, 3) as u8, self.get(63, 1) != 0, self.kind())
    }
    /// Kind and method as in [`crate::op::Key::what`].
    #[inline(always)]
    pub const fn what(self) -> u32 {
        self.0 as u32 & 0xffff
    }
    /// Operation kind.
    #[inline(always)]
    pub const fn kind(self) -> u32 {
        self.0 as u32 & 0xff
    }
    /// Arguments are on the stack.
    #[inline(always)]
    pub const fn stack_abi(self) -> bool {
        self.get(16, 1) != 0
    }
    /// The site is the conditional jump of the stack check.
    #[inline(always)]
    pub const fn stack_check(self) -> bool {
        self.get(17, 1) != 0
    }
    /// Argument word of the object.
    #[inline(always)]
    pub const fn object(self) -> Option<u64> {
        Self::word(self.get(18, 4))
    }
    /// See [`text`].
    #[inline(always)]
    pub const fn text_source(self) -> u64 {
        self.get(22, 2)
    }
    /// Argument word of the text.
    #[inline(always)]
    pub const fn text_word(self) -> u64 {
        self.get(24, 4)
    }
    /// Offset of the text's string header in bytes.
    #[inline(always)]
    pub const fn text_offset(self) -> u64 {
        self.get(28, 8) * 8
    }
    /// The second candidate: a word, or an offset in bytes.
    #[inline(always)]
    pub const fn second(self) -> Option<u64> {
        let value = self.get(52, 8);
        if value == NO_SECOND {
            None
        } else if self.text_source() == text::FIELD {
            Some(value * 8)
        } else {
            Some(value)
        }
    }
    /// Argument word of the name.
    #[inline(always)]
    pub const fn name_word(self) -> Option<u64> {
        Self::word(self.get(36, 4))
    }
    /// Offset of goid in bytes; 0 when not known.
    #[inline(always)]
    pub const fn goid_offset(self) -> u64 {
        self.get(40, 8) * 8
    }
    /// Result word of an `error`.
    #[inline(always)]
    pub const fn error_word(self) -> Option<u64> {
        Self::word(self.get(48, 4))
    }
    #[inline(always)]
    const fn word(value: u64) -> Option<u64> {
        if value == NO_WORD { None } else { Some(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_comes_back_and_disturbs_no_other() {
        let c = Cookie::new(13, 200)
            .with_stack_abi(true)
            .with_stack_check(true)
            .with_object(3)
            .with_text_field(7, 2040)
            .with_name_argument(5)
            .with_goid_offset(160)
            .with_error_result(9)
            .with_second(40)
            .with_meter(6, true);
        assert_eq!(c.counter(), counter(6, true, 13));
        assert_eq!(c.what(), 13 | 200 << 8);
        assert!(c.stack_abi() && c.stack_check());
        assert_eq!((c.object(), c.text_source(), c.text_word()), (Some(3), text::FIELD, 7));
        assert_eq!(
            (c.text_offset(), c.name_word(), c.goid_offset(), c.error_word()),
            (2040, Some(5), 160, Some(9))
        );
        assert_eq!(c.second(), Some(40));
        assert_eq!(Cookie::new(1, 0).with_text_argument(1).with_second(3).second(), Some(3));
        let none = Cookie::new(1, 0);
        assert_eq!(none.second(), None);
        let mut seen = [false; COUNTERS as usize];
        for meter in 0..METERS {
            for stepped in [false, true] {
                for kind in 0..kind::LIMIT {
                    let counter = Cookie::new(kind, 9).with_meter(meter, stepped).counter();
                    assert!(
                        !core::mem::replace(&mut seen[counter as usize], true),
                        "each has one of its own"
                    );
                }
            }
        }
        assert_eq!(
            (none.object(), none.name_word(), none.error_word(), none.text_source()),
            (None, None, None, 0)
        );
    }
}
