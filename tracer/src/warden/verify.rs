//! Holds a table of offsets against a running process before it is believed.
//!
//! Go appends goroutines to `runtime.allgs` as they are made. The first is the main one, number 1; the others have
//! numbers that no two share (each processor hands out its own run of sixteen, so they are not in order: containerd
//! shows 1, 17, 2, 18). A wrong offset of `goid`, or a wrong slice, does not show that.

use crate::{golang::offsets::Offsets, node::memory::Memory};
use std::collections::BTreeSet;

/// Goroutines that every program has: main and three of the runtime's own.
const FEWEST: usize = 4;
/// Goroutines looked at.
const MOST: u64 = 16;
/// More goroutines than a process makes in years.
const LARGEST: u64 = 1 << 40;

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
        (0..len.min(MOST))
            .map(|n| {
                let g = memory.u64(first.wrapping_add(8 * n))?;
                memory.u64(g.wrapping_add(u64::from(offsets.goid)))
            })
            .collect::<Result<Vec<u64>, _>>()
    };
    match read() {
        Err(error) => Verdict::Unknown(format!("its goroutines cannot be read: {error}")),
        Ok(numbers) if numbers.len() < FEWEST => Verdict::Unknown("it has only just started".into()),
        Ok(numbers) if !plausible(&numbers) => {
            Verdict::Refuted(format!("its first goroutines would have the numbers {numbers:?}"))
        }
        Ok(_) => Verdict::Holds,
    }
}

fn plausible(numbers: &[u64]) -> bool {
    let distinct: BTreeSet<&u64> = numbers.iter().collect();
    numbers.first() == Some(&1)
        && distinct.len() == numbers.len()
        && numbers.iter().all(|n| (1..LARGEST).contains(n))
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

    fn process(goid_at: u64, numbers: &[u64]) -> Pieces {
        let count = numbers.len() as u64;
        let mut memory = Pieces(vec![(ALLGS, [ARRAY, count].map(u64::to_le_bytes).concat())]);
        for (n, number) in (0..).zip(numbers) {
            let g = 0xc000_0000 + 0x400 * n;
            memory.0.push((ARRAY + 8 * n, g.to_le_bytes().to_vec()));
            let mut body = [0u8; 0x200];
            body[goid_at as usize..goid_at as usize + 8].copy_from_slice(&number.to_le_bytes());
            memory.0.push((g, body.to_vec()));
        }
        memory
    }

    #[test]
    fn only_the_right_offset_holds() {
        let table = Offsets::of(GoVersion::parse("go1.19.8").unwrap()).unwrap();
        assert_eq!(table.goid, 152);
        let containerd = [1, 17, 2, 18, 3, 19, 33];
        assert_eq!(offsets(&process(152, &containerd), &table, ALLGS), Verdict::Holds);
        assert!(matches!(offsets(&process(160, &containerd), &table, ALLGS), Verdict::Refuted(_)));
        for wrong in [[2, 17, 3, 18], [1, 1, 1, 1], [1, 17, 2, 0xc000_1234_5678]] {
            assert!(
                matches!(offsets(&process(152, &wrong), &table, ALLGS), Verdict::Refuted(_)),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_asked_is_neither_right_nor_wrong() {
        let table = Offsets::of(GoVersion::parse("go1.24.4").unwrap()).unwrap();
        assert!(matches!(offsets(&process(160, &[1, 2]), &table, ALLGS), Verdict::Unknown(_)));
        assert!(matches!(offsets(&Pieces(Vec::new()), &table, ALLGS), Verdict::Unknown(_)));
    }
}
