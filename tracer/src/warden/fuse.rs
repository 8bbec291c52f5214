//! The fuse: what looking may cost a program at most, and what is taken off it when it costs more. Pure.

use crate::event::{Kind, Ns};
use std::collections::BTreeMap;

/// A program pays too much for this long before the fuse blows: a burst (a convoy of waiters that all wake up) is over
/// by then.
pub const PATIENCE: Ns = 3_000_000_000;

/// What shall be taken off a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blown {
    /// Whose meter it is.
    pub meter: u8,
    /// Kinds of operations whose probes go, the dearest first.
    pub kinds: Vec<Kind>,
    /// What all its probes took, in millionths of a core.
    pub share_ppm: u32,
}

/// Watches what each program pays.
#[derive(Debug)]
pub struct Fuse {
    /// Millionths of a core; `None` for no limit.
    limit: Option<u32>,
    /// Since when each meter is over the limit.
    over: BTreeMap<u8, Ns>,
}

impl Fuse {
    /// A fuse for this limit in millionths of a core.
    pub fn new(limit: Option<u32>) -> Fuse {
        Fuse { limit, over: BTreeMap::new() }
    }

    /// At `now`, the shares (by kind, in millionths of a core) of the time since `since` are known. Says what to take off
    /// once the program has been over the limit for [`PATIENCE`]: the dearest kinds, until the rest is within it.
    pub fn look(&mut self, meter: u8, since: Ns, now: Ns, shares: &[(Kind, u32)]) -> Option<Blown> {
        let limit = self.limit?;
        let sum =
            |shares: &[(Kind, u32)]| shares.iter().fold(0u32, |sum, (_, share)| sum.saturating_add(*share));
        let all = sum(shares);
        if all <= limit {
            self.over.remove(&meter);
            return None;
        }
        let first = *self.over.entry(meter).or_insert(since);
        if now.saturating_sub(first) < PATIENCE {
            return None;
        }
        self.over.remove(&meter);
        let mut dearest = shares.to_vec();
        dearest.sort_by_key(|(kind, share)| (std::cmp::Reverse(*share), *kind));
        let keep = (0..dearest.len()).find(|n| sum(&dearest[*n..]) <= limit).unwrap_or(dearest.len());
        dearest.truncate(keep);
        Some(Blown { meter, kinds: dearest.into_iter().map(|(kind, _)| kind).collect(), share_ppm: all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Ns = 1_000_000_000;
    const HOT: [(Kind, u32); 3] = [(Kind::CriCall, 900), (Kind::LockHold, 60_000), (Kind::LockWait, 30_000)];

    fn seconds(fuse: &mut Fuse, from: Ns, shares: &[(Kind, u32)], n: u64) -> Vec<Option<Blown>> {
        (0..n).map(|i| fuse.look(1, from + i * S, from + (i + 1) * S, shares)).collect()
    }

    #[test]
    fn it_blows_after_three_seconds_and_takes_only_what_is_dear() {
        let mut fuse = Fuse::new(Some(20_000));
        let seen = seconds(&mut fuse, 0, &HOT, 3);
        assert_eq!(seen[..2], [None, None]);
        let blown = seen[2].clone().unwrap();
        assert_eq!(blown.kinds, [Kind::LockHold, Kind::LockWait]);
        assert_eq!(blown.share_ppm, 90_900);
        // What was told is not told again at once: detaching takes a moment.
        assert_eq!(seconds(&mut fuse, 3 * S, &HOT, 2), [None, None]);
    }

    #[test]
    fn a_burst_does_not_blow_it() {
        let mut fuse = Fuse::new(Some(20_000));
        for round in 0..5 {
            assert_eq!(seconds(&mut fuse, round * 3 * S, &HOT, 2), [None, None]);
            assert_eq!(
                fuse.look(1, (round * 3 + 2) * S, (round * 3 + 3) * S, &[(Kind::LockHold, 20_000)]),
                None
            );
        }
    }

    #[test]
    fn each_program_has_its_own_and_without_a_limit_there_is_none() {
        let mut fuse = Fuse::new(Some(20_000));
        assert_eq!(fuse.look(1, 0, 2 * S, &HOT), None);
        assert_eq!(fuse.look(2, 2 * S, 3 * S, &HOT), None);
        assert_eq!(fuse.look(1, 2 * S, 3 * S, &HOT).map(|b| b.meter), Some(1));
        let mut none = Fuse::new(None);
        assert!(seconds(&mut none, 0, &[(Kind::LockHold, u32::MAX)], 100).iter().all(Option::is_none));
    }

    proptest! {
        #[test]
        fn what_is_left_is_within_the_limit_and_no_more_is_taken_than_needed(
            shares in proptest::collection::vec(0u32..100_000, 1..8), limit in 0u32..200_000
        ) {
            let shares: Vec<(Kind, u32)> = Kind::RECORDED.into_iter().zip(shares).collect();
            let all: u32 = shares.iter().map(|(_, share)| share).sum();
            let blown = Fuse::new(Some(limit)).look(1, 0, PATIENCE, &shares);
            prop_assert_eq!(blown.is_some(), all > limit);
            if let Some(blown) = blown {
                let left = |taken: &[Kind]| -> u32 {
                    shares.iter().filter(|(kind, _)| !taken.contains(kind)).map(|(_, share)| share).sum()
                };
                prop_assert!(left(&blown.kinds) <= limit);
                prop_assert!(left(&blown.kinds[..blown.kinds.len() - 1]) > limit);
            }
        }
    }
}
