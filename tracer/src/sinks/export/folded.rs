//! Stacks for flame graphs (`frame;frame;frame weight`), outermost first, weighted by microseconds blocked.
//!
//! Each stuck call is the bottom of a stack, and on it stands what it waits for, link by link. The weight is the time during
//! which the topmost link was the deepest one reached: for a call that is drawn when it is seen first that is the partition
//! of its age ([`Link::critical`]), afterwards each tick counts for the chain as it is then. So the weights of all stacks
//! with the same bottom sum to how long those calls have been stuck. Where it is known where a goroutine sat, its
//! functions stand above the last link that it takes part in, outermost first.

use crate::correlator::words;
use crate::correlator::{Diagnosis, Frame, Link, StuckCall};
use crate::event::{Ns, OperationId};
use crate::sinks::sanitise;
use crate::thresholds::SECOND;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Different stacks that are kept; what is beyond is counted in one.
const STACKS: usize = 65_536;
/// How long a call is remembered that is not listed any more.
const REMEMBERED: Ns = 30 * SECOND;
/// The stack of what is beyond.
const BEYOND: &str = "(more stacks than are kept)";

/// Collects stacks.
#[derive(Debug, Default)]
pub struct Folded {
    weights: BTreeMap<String, Ns>,
    /// Of each call that is stuck, or was a moment ago, how much of its age stands in the weights, and when it was seen last.
    counted: BTreeMap<OperationId, (Ns, Ns)>,
    ready: Vec<u8>,
}

impl Folded {
    /// A frame of the replay.
    pub fn frame(&mut self, frame: &Frame) {
        for d in frame.diagnoses.iter().filter(|d| d.is_stuck()) {
            for (n, call) in d.stuck_calls.iter().enumerate() {
                let before = self.counted.get(&call.id).map(|(age, _)| *age);
                self.call(d, call, n == 0, before);
                self.counted.insert(call.id.clone(), (before.unwrap_or(0).max(call.age), frame.now));
            }
        }
        // One that is not listed for a while, because older ones are, is not counted from its begin again.
        self.counted.retain(|_, (_, seen)| frame.now.saturating_sub(*seen) <= REMEMBERED);
    }

    fn call(&mut self, d: &Diagnosis, call: &StuckCall, drawn: bool, before: Option<Ns>) {
        let mut stack = Vec::new();
        if drawn {
            for (i, link) in d.chain.links.iter().enumerate() {
                push(&mut stack, link, d.chain.links.get(i + 1));
                // Seen for the first time: where it has been until now.
                if before.is_none() {
                    let rest = call.age.saturating_sub(d.chain.age);
                    self.add(&stack, link.critical.saturating_add(if i == 0 { rest } else { 0 }));
                }
            }
            if let Some(before) = before {
                self.add(&stack, call.age.saturating_sub(before));
            }
            return;
        }
        let of = call.subject.as_ref().map(|s| format!(" of {}", words::pod(s))).unwrap_or_default();
        let what = if call.id.method.is_empty() {
            format!("{:?}", call.id.kind)
        } else {
            call.id.method.to_string()
        };
        stack.push(clean(&(what + &of)));
        let links = call.joins.and_then(|at| d.chain.links.get(at..)).unwrap_or_default();
        for (i, link) in links.iter().enumerate() {
            push(&mut stack, link, links.get(i + 1));
        }
        self.add(&stack, call.age.saturating_sub(before.unwrap_or(0)));
    }

    fn add(&mut self, stack: &[String], weight: Ns) {
        if weight == 0 {
            return;
        }
        let mut stack = stack.join(";");
        if self.weights.len() >= STACKS && !self.weights.contains_key(&stack) {
            stack = BEYOND.to_owned();
        }
        let total = self.weights.entry(stack).or_default();
        *total = total.saturating_add(weight);
    }

    /// There are no more frames.
    pub fn finish(&mut self) {
        let mut out = String::new();
        for (stack, ns) in std::mem::take(&mut self.weights) {
            let us = ns / 1_000;
            if us > 0 {
                // Writing into a string does not fail.
                let _ = writeln!(out, "{stack} {us}");
            }
        }
        self.ready.extend(out.into_bytes());
    }

    /// What is ready to be written; all of it after [`Folded::finish`].
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.ready)
    }
}

/// A link, and where its goroutine sat; that once, above the last of the links that are of the same goroutine.
fn push(stack: &mut Vec<String>, link: &Link, next: Option<&Link>) {
    stack.push(clean(&words::link(link)));
    let of_next = next.and_then(|next| next.goroutine.as_ref());
    let here = link.goroutine.as_ref().filter(|site| of_next.is_none_or(|next| !next.actor.is(&site.actor)));
    let functions = here.into_iter().flat_map(|site| site.functions.iter().rev());
    stack.extend(functions.map(|f| clean(f)));
}

/// A name that is one frame: without what separates frames and lines.
fn clean(name: &str) -> String {
    sanitise(name).replace(';', ",")
}
