//! Holds a table of offsets against a running process before it is believed.
//!
//! Go numbers goroutines from 1 and appends them to `runtime.allgs` as they are made, so the first four elements of that
//! slice have the numbers 1, 2, 3, 4 in every Go program. A wrong offset of `goid`, or a wrong slice, cannot show that.

use crate::{golang::offsets::Offsets, node::memory::Memory};

/// Goroutines that every program has: main and three of the runtime's own.
const FIRST: u64 = 4;

/// What the process says about the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The process agrees.
    Holds,
    /// The process disagrees: nothing of the table is believed.
    Refuted(String),
    /// The process could not be asked, or is too young to answer.
    Unknown(String),
}

/// Asks a process. `all_goroutines` is the address of `runtime.allgs` in that process.
pub fn offsets(memory: &impl Memory, offsets: &Offsets, all_goroutines: u64) -> Verdict {
    let read = || {
        let first = memory.u64(all_goroutines)?;
        let len = memory.u64(all_goroutines.wrapping_add(8))?;
        (0..len.min(FIRST))
            .map(|n| {
                let g = memory.u64(first.wrapping_add(8 * n))?;
                memory.u64(g.wrapping_add(u64::from(offsets.goid)))
            })
            .collect::<Result<Vec<u64>, _>>()
    };
    match read() {
        Err(error) => Verdict::Unknown(format!("its goroutines cannot be read: {error}")),
        Ok(numbers) if numbers.iter().zip(1..).any(|(number, expected)| *number != expected) => {
            Verdict::Refuted(format!("its first goroutines would have the numbers {numbers:?}"))
        }
        Ok(numbers) if (numbers.len() as u64) < FIRST => Verdict::Unknown("it has only just started".into()),
        Ok(_) => Verdict::Holds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        golang::{buildinfo::GoVersion, offsets::Offsets},
        node::memory::Pieces,
    };

    const ALLGS: u64 = 0x1000;
    const ARRAY: u64 = 0x2000;

    fn process(goid_at: u64, count: u64, first: u64) -> Pieces {
        let mut memory = Pieces(vec![(ALLGS, [ARRAY, count].map(u64::to_le_bytes).concat())]);
        for n in 0..count {
            let g = 0xc000_0000 + 0x400 * n;
            memory.0.push((ARRAY + 8 * n, g.to_le_bytes().to_vec()));
            let mut body = [0u8; 0x200];
            body[goid_at as usize..goid_at as usize + 8].copy_from_slice(&(first + n).to_le_bytes());
            memory.0.push((g, body.to_vec()));
        }
        memory
    }

    #[test]
    fn only_the_right_offset_holds() {
        let table = Offsets::of(GoVersion::parse("go1.19.8").unwrap()).unwrap();
        assert_eq!(table.goid, 152);
        assert_eq!(offsets(&process(152, 6, 1), &table, ALLGS), Verdict::Holds);
        assert!(matches!(offsets(&process(160, 6, 1), &table, ALLGS), Verdict::Refuted(_)));
        assert!(matches!(offsets(&process(152, 6, 2), &table, ALLGS), Verdict::Refuted(_)));
    }

    #[test]
    fn what_cannot_be_asked_is_neither_right_nor_wrong() {
        let table = Offsets::of(GoVersion::parse("go1.24.4").unwrap()).unwrap();
        assert!(matches!(offsets(&process(160, 2, 1), &table, ALLGS), Verdict::Unknown(_)));
        assert!(matches!(offsets(&Pieces(Vec::new()), &table, ALLGS), Verdict::Unknown(_)));
    }
}
