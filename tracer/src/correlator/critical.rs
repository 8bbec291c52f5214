//! Seconds per link over the whole life of a stuck call.
//!
//! What a chain looks like now says only since when each of its links lasts. A call that waited for two seconds behind
//! one request and waits behind another since a moment ago has not spent these two seconds where the two chains part.
//! So each tick notes what was the deepest operation reached since the tick before:
//!
//! ```text
//! update ── State ── lock ── Delete ── sync          2.0 s: sync
//! update ── Update ─ lock ── Delete ── sync          0.1 s: sync        together: sync 2.1 s, not update 2.0 s
//! ```
//!
//! What was spent in an operation that has ended goes to the nearest operation above it that is still on the chain. Where
//! the deepest operation of that time is still on the chain, and links below it turn out to have been there already (their
//! reports came later), the begins of these links divide the time among them. Before the first tick that saw the call
//! there are only begins to go by.

use super::frame::{Chain, Diagnosis, Link};
use super::{exits, limits};
use crate::event::{Ns, OperationId};
use std::collections::BTreeMap;

/// What each stuck call that is drawn has spent where.
#[derive(Clone, Debug, Default)]
pub struct Critical {
    calls: BTreeMap<OperationId, Spent>,
}

#[derive(Clone, Debug, Default)]
struct Spent {
    /// Everything before this is accounted for.
    until: Ns,
    /// In the order of time, without gaps; at most [`limits::STRETCHES`].
    stretches: Vec<Stretch>,
}

/// A time during which the deepest operation reached was the same.
#[derive(Clone, Debug)]
struct Stretch {
    from: Ns,
    to: Ns,
    /// The deepest operation.
    deepest: OperationId,
    /// What was above it, nearest first.
    above: Vec<OperationId>,
}

impl Critical {
    /// Accounts for the time up to `now` and writes what each link has cost so far into the drawn chains. `in_flight` says
    /// which operations are; what is known of others is forgotten.
    pub fn tick<'d>(
        &mut self,
        diagnoses: impl Iterator<Item = &'d mut Diagnosis>,
        now: Ns,
        in_flight: impl Fn(&OperationId) -> bool,
    ) {
        self.calls.retain(|head, _| in_flight(head));
        for diagnosis in diagnoses {
            let chain = &mut diagnosis.chain;
            let Some(head) = chain.links.first().map(identity) else { continue };
            if self.calls.len() >= limits::DIAGNOSES && !self.calls.contains_key(&head) {
                // Not accounted for: what the begins say is what is shown.
                continue;
            }
            let spent = self.calls.entry(head).or_default();
            spent.account(chain, now);
            spent.write(chain);
        }
    }
}

impl Spent {
    /// Adds the time since the last look, by what the begins of the chain's links say was deepest.
    fn account(&mut self, chain: &Chain, now: Ns) {
        let ids: Vec<OperationId> = chain.links.iter().map(|link| link.operation.id()).collect();
        for (at, (from, to)) in reached(chain, now).into_iter().enumerate() {
            let from = from.max(self.until);
            if to <= from {
                continue;
            }
            let full = self.stretches.len() >= limits::STRETCHES;
            match self.stretches.last_mut() {
                // When there is no room the last one goes on: its operations are the nearest in time.
                Some(last) if last.deepest == ids[at] || full => last.to = to,
                _ => {
                    let above = ids[..at].iter().rev().cloned().collect();
                    self.stretches.push(Stretch { from, to, deepest: ids[at].clone(), above });
                }
            }
        }
        self.until = self.until.max(now);
    }

    /// Hands everything out to the links that are there now.
    fn write(&self, chain: &mut Chain) {
        let places: BTreeMap<OperationId, usize> =
            chain.links.iter().enumerate().map(|(at, link)| (link.operation.id(), at)).collect();
        let reached = reached(chain, self.until);
        let mut shares = vec![0 as Ns; chain.links.len()];
        for stretch in &self.stretches {
            let length = stretch.to.saturating_sub(stretch.from);
            let Some(place) = places.get(&stretch.deepest).copied() else {
                let place = stretch.above.iter().find_map(|id| places.get(id)).copied().unwrap_or(0);
                add(&mut shares[place], length);
                continue;
            };
            let mut below = 0;
            for (share, (from, to)) in shares.iter_mut().zip(&reached).skip(place + 1) {
                let part = stretch.to.min(*to).saturating_sub(stretch.from.max(*from));
                add(share, part);
                add(&mut below, part);
            }
            add(&mut shares[place], length.saturating_sub(below));
        }
        // A merged lock wait can be older than the operation it is known by: what does not sum to the age is not shown.
        if shares.iter().fold(0, |sum: Ns, share| sum.saturating_add(*share)) == chain.age {
            for (link, share) in chain.links.iter_mut().zip(shares) {
                link.critical = share;
            }
        }
    }
}

/// By what a stuck call is known from tick to tick. An exit is the same over all attempts to handle it.
fn identity(link: &Link) -> OperationId {
    match &link.exit {
        Some(_) => exits::identity(link.operation.actor.pid, link.since),
        None => link.operation.id(),
    }
}

fn add(to: &mut Ns, part: Ns) {
    *to = to.saturating_add(part);
}

/// From when to when each link was the deepest, as the begins of the links tell it.
fn reached(chain: &Chain, now: Ns) -> Vec<(Ns, Ns)> {
    let mut from = now.saturating_sub(chain.age);
    let step = |link: &Link| {
        let to = from.saturating_add(link.critical);
        (std::mem::replace(&mut from, to), to)
    };
    chain.links.iter().map(step).collect()
}
