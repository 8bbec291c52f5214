//! Operations that are over, remembered for a while so that a late report does not bring them back.
//!
//! On a busy node every event is one more of them, and half a minute later one less. So what that costs does not hang on how
//! many there are:
//!
//! ```text
//! actors ─> first and last of each     (a hash map; never walked, so its order decides nothing)
//! slots     of all, each in two lists:  of its actor, in the order of their begins
//!                                       of all, in the order in which they were heard of
//! ```
//!
//! What has just ended comes last in both lists, or nearly. Only what is told late is looked for further from there.

use super::super::limits;
use super::{EndedBy, Flight};
use crate::event::{Ns, OperationId};
use foldhash::fast::RandomState;
use slab::Slab;
use std::collections::HashMap;

/// Room for so many is kept.
const ROOM: usize = 1_024;

/// What is remembered of an operation that is over.
#[derive(Clone, Debug)]
pub struct Past {
    /// Why it is no longer in flight.
    pub by: EndedBy,
    /// When it ended, as far as that is known.
    pub at: Ns,
    /// What was known of it, if it may come back.
    pub flight: Option<Box<Flight>>,
}

/// Index into the slots; [`NONE`] for none.
type Place = u32;
const NONE: Place = Place::MAX;

/// The list of all operations of an actor, by begin.
const OF_ACTOR: usize = 0;
/// The list of all, by the time at which they were last heard of.
const OF_ALL: usize = 1;

#[derive(Clone, Debug)]
struct Slot {
    id: OperationId,
    past: Past,
    /// By what it is ordered in each list. Equal ones are in the order in which they came.
    order: [Ns; 2],
    /// What stands before and behind it in each list.
    beside: [(Place, Place); 2],
}

/// First and last of a list.
#[derive(Clone, Copy, Debug)]
struct Ends {
    first: Place,
    last: Place,
}

const EMPTY: Ends = Ends { first: NONE, last: NONE };

/// Operations that are over: at most [`limits::ENDED`].
#[derive(Clone, Debug)]
pub struct Ended {
    slots: Slab<Slot>,
    /// By process and actor. None of the lists is empty.
    actors: HashMap<(u32, u64), Ends, RandomState>,
    all: Ends,
}

impl Default for Ended {
    fn default() -> Self {
        Ended { slots: Slab::new(), actors: HashMap::default(), all: EMPTY }
    }
}

impl Ended {
    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// What is remembered of this one.
    pub fn get(&self, id: &OperationId) -> Option<&Past> {
        self.find(id).and_then(|place| self.slot(place)).map(|slot| &slot.past)
    }

    /// All of this actor, the one that began last first.
    pub fn of_actor(&self, pid: u32, actor: u64) -> impl Iterator<Item = (&OperationId, &Past)> {
        let last = self.actors.get(&(pid, actor)).map_or(NONE, |ends| ends.last);
        self.back(OF_ACTOR, last).map(|(_, slot)| (&slot.id, &slot.past))
    }

    /// All that were heard of at `since` or later, the last first.
    pub fn heard_since(&self, since: Ns) -> impl Iterator<Item = (&OperationId, &Past)> {
        let recent =
            self.back(OF_ALL, self.all.last).take_while(move |(_, slot)| slot.order[OF_ALL] >= since);
        recent.map(|(_, slot)| (&slot.id, &slot.past))
    }

    /// Remembers this one, heard of when it ended, in place of what was remembered of it before. Returns whether another
    /// one had to be forgotten for it.
    pub fn insert(&mut self, id: OperationId, past: Past) -> bool {
        let at = past.at;
        if let Some(place) = self.find(&id) {
            if let Some(slot) = self.slots.get_mut(place as usize) {
                slot.past = past;
            }
            self.move_to(place, at);
            return false;
        }
        let (actor, order) = ((id.pid, id.actor), [id.begin, at]);
        let place = self.slots.insert(Slot { id, past, order, beside: [(NONE, NONE); 2] }) as Place;
        put(&mut self.slots, OF_ACTOR, self.actors.entry(actor).or_insert(EMPTY), place);
        put(&mut self.slots, OF_ALL, &mut self.all, place);
        let full = self.slots.len() > limits::ENDED;
        if full {
            self.take(self.all.first);
        }
        full
    }

    /// This one was heard of again at `at`.
    pub fn heard(&mut self, id: &OperationId, at: Ns) {
        if let Some(place) = self.find(id) {
            let before = self.slot(place).map_or(0, |slot| slot.order[OF_ALL]);
            self.move_to(place, at.max(before));
        }
    }

    /// Forgets this one.
    pub fn remove(&mut self, id: &OperationId) -> Option<Past> {
        self.find(id).and_then(|place| self.take(place))
    }

    /// Forgets all that were last heard of before `before`.
    pub fn forget(&mut self, before: Ns) {
        while self.slot(self.all.first).is_some_and(|slot| slot.order[OF_ALL] < before) {
            self.take(self.all.first);
        }
        // What a storm has taken is given back.
        if self.slots.is_empty() && self.slots.capacity() > ROOM {
            *self = Ended::default();
        }
    }

    fn slot(&self, place: Place) -> Option<&Slot> {
        self.slots.get(place as usize)
    }

    /// A list from there back to its first.
    fn back(&self, list: usize, from: Place) -> impl Iterator<Item = (Place, &Slot)> {
        let next = move |(_, slot): &(Place, &Slot)| {
            let (before, _) = slot.beside[list];
            self.slot(before).map(|slot| (before, slot))
        };
        std::iter::successors(self.slot(from).map(|slot| (from, slot)), next)
    }

    fn find(&self, id: &OperationId) -> Option<Place> {
        let ends = self.actors.get(&(id.pid, id.actor))?;
        let later = self.back(OF_ACTOR, ends.last).take_while(|(_, slot)| slot.id.begin >= id.begin);
        later.filter(|(_, slot)| slot.id == *id).map(|(place, _)| place).next()
    }

    fn move_to(&mut self, place: Place, at: Ns) {
        unlink(&mut self.slots, OF_ALL, &mut self.all, place);
        if let Some(slot) = self.slots.get_mut(place as usize) {
            slot.order[OF_ALL] = at;
        }
        put(&mut self.slots, OF_ALL, &mut self.all, place);
    }

    fn take(&mut self, place: Place) -> Option<Past> {
        let actor = self.slot(place).map(|slot| (slot.id.pid, slot.id.actor))?;
        unlink(&mut self.slots, OF_ALL, &mut self.all, place);
        if let Some(ends) = self.actors.get_mut(&actor) {
            unlink(&mut self.slots, OF_ACTOR, ends, place);
            if ends.first == NONE {
                self.actors.remove(&actor);
            }
        }
        self.slots.try_remove(place as usize).map(|slot| slot.past)
    }
}

/// Puts a slot into a list, behind all that are not after it.
fn put(slots: &mut Slab<Slot>, list: usize, ends: &mut Ends, place: Place) {
    let Some(order) = slots.get(place as usize).map(|slot| slot.order[list]) else { return };
    let mut before = ends.last;
    while let Some(slot) = slots.get(before as usize).filter(|slot| slot.order[list] > order) {
        before = slot.beside[list].0;
    }
    let after = match slots.get_mut(before as usize) {
        Some(slot) => std::mem::replace(&mut slot.beside[list].1, place),
        None => std::mem::replace(&mut ends.first, place),
    };
    match slots.get_mut(after as usize) {
        Some(slot) => slot.beside[list].0 = place,
        None => ends.last = place,
    }
    if let Some(slot) = slots.get_mut(place as usize) {
        slot.beside[list] = (before, after);
    }
}

/// Takes a slot out of a list.
fn unlink(slots: &mut Slab<Slot>, list: usize, ends: &mut Ends, place: Place) {
    let Some((before, after)) = slots.get(place as usize).map(|slot| slot.beside[list]) else { return };
    match slots.get_mut(before as usize) {
        Some(slot) => slot.beside[list].1 = after,
        None => ends.first = after,
    }
    match slots.get_mut(after as usize) {
        Some(slot) => slot.beside[list].0 = before,
        None => ends.last = before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Kind;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn id(actor: u64, begin: Ns, object: u64) -> OperationId {
        OperationId { pid: 1, actor, kind: Kind::LockWait, method: "".into(), object, begin }
    }

    /// What may be done to it.
    #[derive(Clone, Debug)]
    enum Do {
        Insert(OperationId, Ns),
        Heard(OperationId, Ns),
        Remove(OperationId),
        Forget(Ns),
    }

    fn any_id() -> impl Strategy<Value = OperationId> {
        (0u64..3, 0u64..6, 0u64..2).prop_map(|(actor, begin, object)| id(actor, begin, object))
    }

    fn step() -> impl Strategy<Value = Do> {
        prop_oneof![
            4 => (any_id(), 0u64..40).prop_map(|(id, at)| Do::Insert(id, at)),
            2 => (any_id(), 0u64..40).prop_map(|(id, at)| Do::Heard(id, at)),
            1 => any_id().prop_map(Do::Remove),
            1 => (0u64..20).prop_map(Do::Forget),
        ]
    }

    proptest! {
        /// It knows what two ordered maps would know, in the same order.
        #[test]
        fn as_two_maps_would(steps in proptest::collection::vec(step(), 0..60)) {
            let mut ended = Ended::default();
            // When each was heard of, as number of the step, and when it ended.
            let mut known: BTreeMap<OperationId, ((Ns, usize), Ns)> = BTreeMap::new();
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    Do::Insert(id, at) => {
                        let past = Past { by: EndedBy::Returned, at, flight: None };
                        prop_assert!(!ended.insert(id.clone(), past));
                        known.insert(id, ((at, n), at));
                    }
                    Do::Heard(id, at) => {
                        ended.heard(&id, at);
                        if let Some((order, _)) = known.get_mut(&id) {
                            *order = (order.0.max(at), n);
                        }
                    }
                    Do::Remove(id) => {
                        let removed = ended.remove(&id).map(|past| past.at);
                        prop_assert_eq!(removed, known.remove(&id).map(|(_, at)| at));
                    }
                    Do::Forget(before) => {
                        ended.forget(before);
                        known.retain(|_, ((heard, _), _)| *heard >= before);
                    }
                }
                prop_assert_eq!(ended.len(), known.len());
                for (id, (_, at)) in &known {
                    prop_assert_eq!(ended.get(id).map(|past| past.at), Some(*at));
                }
                for since in [0, 7, 20] {
                    let mut expected: Vec<_> = known.iter().filter(|(_, ((heard, _), _))| *heard >= since).collect();
                    expected.sort_by_key(|(_, (order, _))| std::cmp::Reverse(*order));
                    let expected: Vec<&OperationId> = expected.into_iter().map(|(id, _)| id).collect();
                    let told: Vec<&OperationId> = ended.heard_since(since).map(|(id, _)| id).collect();
                    prop_assert_eq!(told, expected);
                }
                for actor in 0..4 {
                    let begins: Vec<Ns> = ended.of_actor(1, actor).map(|(id, _)| id.begin).collect();
                    let mut expected: Vec<Ns> =
                        known.keys().filter(|id| id.actor == actor).map(|id| id.begin).collect();
                    expected.sort_unstable_by_key(|begin| std::cmp::Reverse(*begin));
                    prop_assert_eq!(begins, expected);
                }
                prop_assert!(ended.actors.len() <= known.len());
            }
        }
    }

    #[test]
    fn the_one_not_heard_of_for_longest_makes_room_and_a_storm_gives_back_what_it_took() {
        let mut ended = Ended::default();
        let past = |at| Past { by: EndedBy::Returned, at, flight: None };
        for n in 0..limits::ENDED as u64 {
            assert!(!ended.insert(id(n % 7, n, 0), past(n)));
        }
        ended.heard(&id(0, 0, 0), limits::ENDED as u64);
        assert!(ended.insert(id(9, 0, 0), past(limits::ENDED as u64)));
        assert_eq!(ended.len(), limits::ENDED);
        assert!(ended.get(&id(0, 0, 0)).is_some() && ended.get(&id(1, 1, 0)).is_none());
        // One that is older than all others makes room for nobody but itself.
        assert!(ended.insert(id(9, 1, 0), past(1)));
        assert!(ended.get(&id(9, 1, 0)).is_none() && ended.get(&id(2, 2, 0)).is_some());
        ended.forget(Ns::MAX);
        assert_eq!((ended.len(), ended.slots.capacity(), ended.actors.capacity()), (0, 0, 0));
    }
}
