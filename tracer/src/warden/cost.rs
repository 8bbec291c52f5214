//! What looking costs the programs that are probed: hits, as the kernel half counts them, times what a hit costs, as it
//! was measured at the start. Pure.

use crate::{
    decode,
    event::{Kind, Ns, ProgramCost, Role},
};
use std::collections::BTreeMap;
use tracer_common::cookie::{COUNTERS, METERS, counter};

/// Meter of all programs beyond the first [`METERS`] - 1: what they pay is told together.
pub const SHARED_METER: u8 = METERS - 1;
/// A page of memory, in bytes.
pub const PAGE: u64 = 4096;

/// What one hit costs the target, in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// Where the kernel emulates the site's instruction.
    pub emulated: u32,
    /// Where it single-steps it.
    pub stepped: u32,
    /// Whether it was measured on this machine.
    pub measured: bool,
}

impl Price {
    /// Where it could not be measured: the dearest that was seen on any machine so far.
    pub const ASSUMED: Price = Price { emulated: 1_500, stepped: 15_000, measured: false };
}

/// An executable that pays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metered {
    /// Which executable.
    pub number: u32,
    /// Its meter.
    pub meter: u8,
    /// Name of a process that runs it.
    pub comm: String,
    /// What it is.
    pub role: Role,
    /// Processes that run it.
    pub processes: u32,
    /// Distinct pages with a probe now or earlier: a copy is not always given back.
    pub pages: u32,
}

/// What one meter showed for the time since it was read last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bill {
    /// Which meter.
    pub meter: u8,
    /// By kind, in millionths of a core.
    pub shares: Vec<(Kind, u32)>,
}

/// Reads the meters.
#[derive(Debug, Default)]
pub struct Ledger {
    last: Vec<u64>,
    hits: [u64; METERS as usize],
    /// Executable that each meter belongs to.
    owners: [u32; METERS as usize],
}

impl Ledger {
    /// The counters stand at `now_at` (in the order of [`counter`]) after `elapsed`.
    pub fn read(&mut self, now_at: Vec<u64>, elapsed: Ns, price: Price, metered: &[Metered]) -> Vec<Bill> {
        for program in metered.iter().filter(|program| program.meter != SHARED_METER) {
            let meter = usize::from(program.meter);
            if let (Some(owner), Some(hits)) = (self.owners.get_mut(meter), self.hits.get_mut(meter))
                && *owner != program.number
            {
                (*owner, *hits) = (program.number, 0);
            }
        }
        self.last.resize(COUNTERS as usize, 0);
        let more = |stepped, meter, kind| {
            let at = counter(meter, stepped, kind) as usize;
            let value = |of: &[u64]| of.get(at).copied().unwrap_or(0);
            value(&now_at).saturating_sub(value(&self.last))
        };
        let mut bills = Vec::new();
        for (meter, hits) in (0..METERS).zip(&mut self.hits) {
            let mut shares = Vec::new();
            for kind in Kind::RECORDED {
                let number = decode::number_of(kind);
                let (cheap, dear) = (more(false, meter, number), more(true, meter, number));
                *hits += cheap + dear;
                let ns = u128::from(cheap) * u128::from(price.emulated)
                    + u128::from(dear) * u128::from(price.stepped);
                let share = ns * 1_000_000 / u128::from(elapsed.max(1));
                if cheap + dear > 0 {
                    shares.push((kind, u32::try_from(share).unwrap_or(u32::MAX)));
                }
            }
            bills.push(Bill { meter, shares });
        }
        self.last = now_at;
        bills
    }

    /// What each program pays, executables of one name together.
    pub fn programs(&self, bills: &[Bill], metered: &[Metered]) -> Vec<ProgramCost> {
        let mut programs: BTreeMap<(Role, String), ProgramCost> = BTreeMap::new();
        let mut told = [false; METERS as usize];
        for program in metered {
            let entry = programs.entry((program.role, program.comm.clone())).or_insert_with(|| ProgramCost {
                comm: program.comm.clone(),
                role: program.role,
                processes: 0,
                hits: 0,
                share_ppm: 0,
                memory: 0,
            });
            entry.processes += program.processes;
            entry.memory += u64::from(program.pages) * u64::from(program.processes) * PAGE;
            let meter = usize::from(program.meter);
            // Where several share a meter, the first stands for all of them.
            if let (Some(told), Some(hits)) = (told.get_mut(meter), self.hits.get(meter))
                && !std::mem::replace(told, true)
            {
                entry.hits += hits;
                let shares =
                    bills.iter().filter(|bill| bill.meter == program.meter).flat_map(|bill| &bill.shares);
                entry.share_ppm = shares.fold(entry.share_ppm, |sum, (_, share)| sum.saturating_add(*share));
            }
        }
        programs.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Price = Price { emulated: 700, stepped: 11_000, measured: true };

    fn counters(of: &[(u8, bool, Kind, u64)]) -> Vec<u64> {
        let mut all = vec![0; COUNTERS as usize];
        for (meter, stepped, kind, n) in of {
            all[counter(*meter, *stepped, decode::number_of(*kind)) as usize] = *n;
        }
        all
    }

    fn metered(meter: u8, comm: &str, role: Role, processes: u32, pages: u32) -> Metered {
        Metered { number: 1 + u32::from(meter), meter, comm: comm.into(), role, processes, pages }
    }

    #[test]
    fn a_share_is_hits_times_their_price_over_the_time_they_took() {
        let mut ledger = Ledger::default();
        let first = counters(&[(1, false, Kind::LockWait, 1000), (1, true, Kind::LockWait, 100)]);
        let known = [
            metered(1, "containerd", Role::Containerd, 1, 20),
            metered(2, "containerd-shim", Role::Shim, 250, 20),
            metered(3, "containerd-shim", Role::Shim, 2, 10),
        ];
        ledger.read(first, 1_000_000_000, PRICE, &known);
        let second = counters(&[
            (1, false, Kind::LockWait, 3000),
            (1, true, Kind::LockWait, 300),
            (2, false, Kind::InitMethod, 10),
        ]);
        // 2000 x 700 ns + 200 x 11 us in 2 s: 1.8 ms a second.
        let bills = ledger.read(second.clone(), 2_000_000_000, PRICE, &known);
        assert_eq!(bills[1].shares, [(Kind::LockWait, 1_800)]);
        assert_eq!(bills[2].shares, [(Kind::InitMethod, 3)]);
        let told = ledger.programs(&bills, &known);
        assert_eq!(told.len(), 2, "two versions of the shim are one program");
        let shim = told.iter().find(|p| p.role == Role::Shim).unwrap();
        assert_eq!((shim.processes, shim.hits, shim.share_ppm), (252, 10, 3));
        assert_eq!(shim.memory, (250 * 20 + 2 * 10) * 4096);
        let daemon = told.iter().find(|p| p.role == Role::Containerd).unwrap();
        assert_eq!((daemon.hits, daemon.share_ppm), (3300, 1800));
        // Another executable gets the meter: what was counted is not its own.
        let other = [Metered { number: 77, ..metered(1, "contend", Role::Other, 1, 1) }];
        let bills = ledger.read(second, 1_000_000_000, PRICE, &other);
        assert_eq!(ledger.programs(&bills, &other)[0].hits, 0);
    }

    #[test]
    fn a_meter_that_several_share_is_told_once() {
        let mut ledger = Ledger::default();
        let known =
            [metered(SHARED_METER, "a", Role::Other, 1, 1), metered(SHARED_METER, "b", Role::Other, 1, 1)];
        let hits = counters(&[(SHARED_METER, true, Kind::LockHold, 50)]);
        let bills = ledger.read(hits, 1_000_000_000, PRICE, &known);
        let told = ledger.programs(&bills, &known);
        assert_eq!(told.iter().map(|p| p.hits).sum::<u64>(), 50);
        assert_eq!(told.iter().map(|p| p.share_ppm).sum::<u32>(), 550);
    }
}
