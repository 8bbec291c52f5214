//! The runtime's table of semaphore waiters (`runtime/sema.go`): who waits for which address.
//!
//! Each root of the table holds a tree of waiters (`sudog`) with one node per address; the other waiters of the address
//! hang on the node as a list. It changes while it is read, so an entry counts only if the waiter itself still says the
//! same, and every way through it is bounded.

use super::Refusal;
use super::goroutines::Piece;
use super::layout::Semaphores;
use super::offsets::Offsets;
use super::unwind::Memory;
use std::collections::{HashMap, HashSet};

/// One goroutine's wait for a semaphore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Address of the `sudog`.
    pub at: u64,
    /// Address of the `g` that waits.
    pub g: u64,
    /// Address of the semaphore.
    pub semaphore: u64,
}

/// A waiter and where its neighbours are.
struct Node {
    waiter: Waiter,
    /// Both children in the tree, and the next in the list of the same semaphore.
    next: [u64; 3],
}

impl Node {
    fn read(memory: &mut impl Memory, offsets: &Offsets, at: u64) -> Option<Node> {
        // `waitlink` is the last of the fields that are read.
        let sudog = Piece::read(memory, at, usize::from(offsets.sudog_wait_link) + 8)?;
        let (g, semaphore) = (sudog.field(offsets.sudog_g), sudog.field(offsets.sudog_elem));
        let next =
            [offsets.sudog_prev, offsets.sudog_next, offsets.sudog_wait_link].map(|at| sudog.field(at));
        Some(Node { waiter: Waiter { at, g, semaphore }, next })
    }
}

impl Waiter {
    /// Reads a waiter; `None` when there is none.
    pub(super) fn read(memory: &mut impl Memory, offsets: &Offsets, at: u64) -> Option<Waiter> {
        let waiter = Node::read(memory, offsets, at)?.waiter;
        (at != 0 && waiter.semaphore != 0).then_some(waiter)
    }

    /// Whether it still says the same.
    pub(super) fn holds(&self, memory: &mut impl Memory, offsets: &Offsets) -> bool {
        Waiter::read(memory, offsets, self.at) == Some(*self)
    }
}

/// All waiters, by the address of their `g`. `most` bounds them.
pub fn read(
    semaphores: &Semaphores,
    bias: u64,
    offsets: &Offsets,
    memory: &mut impl Memory,
    most: usize,
) -> Result<HashMap<u64, Waiter>, Refusal> {
    /// `semaRoot.treap`, behind its lock.
    const TREE: usize = 8;
    let (roots, stride) = (semaphores.roots as usize, semaphores.stride as usize);
    let table = Piece::read(memory, semaphores.table.wrapping_add(bias), roots * stride)
        .ok_or_else(|| Refusal::new("the table of semaphores cannot be read"))?;
    let mut waiters = HashMap::new();
    let mut visited = HashSet::new();
    for root in 0..roots {
        let mut ahead = vec![table.word_in(root * stride + TREE)];
        while let Some(at) = ahead.pop() {
            if at == 0 || !visited.insert(at) {
                continue;
            }
            if visited.len() > most {
                return Err(Refusal::new(format!("more than {most} wait for semaphores")));
            }
            let Some(node) = Node::read(memory, offsets, at) else { continue };
            // In another root, or in none, by now.
            if (node.waiter.semaphore >> 3) % u64::from(semaphores.roots) != root as u64 {
                continue;
            }
            waiters.insert(node.waiter.g, node.waiter);
            ahead.extend(node.next);
        }
    }
    Ok(waiters)
}
