//! What was heard before the trigger, in memory: whole frames, compressed, the oldest of which give way.
//!
//! It is made of segments. Each begins with all that was known at its begin, so that what is left after the oldest ones
//! are gone has every name.

use super::writer::Frame;
use crate::event::Ns;
use std::collections::VecDeque;

/// Frames of the last while.
#[derive(Debug)]
pub struct Ring {
    segments: VecDeque<Segment>,
    /// How far back it shall reach.
    span: Ns,
    /// Bytes that it may have.
    most: u64,
    bytes: u64,
    /// Whether something younger than `span` had to give way.
    cut: bool,
}

#[derive(Debug)]
struct Segment {
    begin: Ns,
    bytes: u64,
    frames: Vec<Frame>,
}

/// A segment is begun this many times within the span of a ring.
const SEGMENTS: u64 = 6;

impl Ring {
    /// An empty one that reaches `span` back and takes at most `most` bytes.
    pub fn new(span: Ns, most: u64) -> Ring {
        Ring { segments: VecDeque::new(), span, most, bytes: 0, cut: false }
    }

    /// Begins a segment: what is added next is all that was known at `at`.
    pub fn begin(&mut self, at: Ns) {
        self.segments.push_back(Segment { begin: at, bytes: 0, frames: Vec::new() });
        // The oldest is not needed once the next one reaches back far enough.
        while self.segments.get(1).is_some_and(|next| next.begin.saturating_add(self.span) <= at) {
            self.drop_oldest();
        }
    }

    /// Adds a frame. What is too much gives way; `false` when nothing is left, and a segment must be begun.
    pub fn add(&mut self, frame: Frame) -> bool {
        let Some(last) = self.segments.back_mut() else { return false };
        last.bytes += frame.bytes.len() as u64;
        self.bytes += frame.bytes.len() as u64;
        last.frames.push(frame);
        while self.bytes > self.most {
            self.cut = true;
            self.drop_oldest();
        }
        !self.segments.is_empty()
    }

    /// Whether it is time to begin a segment.
    pub fn is_due(&self, now: Ns) -> bool {
        self.segments.back().is_none_or(|last| {
            now.saturating_sub(last.begin) >= self.span / SEGMENTS || last.bytes > self.most / SEGMENTS
        })
    }

    fn drop_oldest(&mut self) {
        self.bytes -= self.segments.pop_front().map_or(0, |gone| gone.bytes);
    }

    /// All frames, the oldest first; nothing is left.
    pub fn take(&mut self) -> Vec<Frame> {
        self.bytes = 0;
        self.segments.drain(..).flat_map(|segment| segment.frames).collect()
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that it may have.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// Lines of events that are held.
    pub fn events(&self) -> u64 {
        self.segments.iter().flat_map(|segment| &segment.frames).map(|frame| frame.events).sum()
    }

    /// How far it reaches back from `now`.
    pub fn reach(&self, now: Ns) -> Ns {
        self.segments.front().map_or(0, |oldest| now.saturating_sub(oldest.begin))
    }

    /// Whether it reaches back less far than it should, for want of room.
    pub fn is_cut(&self) -> bool {
        self.cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thresholds::SECOND;

    fn frame(length: usize) -> Frame {
        Frame { bytes: vec![0; length], lines: 1, events: 1 }
    }

    #[test]
    fn it_reaches_back_as_far_as_asked_and_hardly_further() {
        let mut ring = Ring::new(60 * SECOND, 1 << 20);
        for second in 0..600 {
            if ring.is_due(second * SECOND) {
                ring.begin(second * SECOND);
            }
            assert!(ring.add(frame(100)));
            let reach = ring.reach(second * SECOND);
            assert!(reach >= 60 * SECOND.min(second * SECOND / 60), "{second} s: {reach}");
            assert!(reach <= 70 * SECOND, "{second} s: {reach}");
        }
        assert!(!ring.is_cut());
        assert_eq!(ring.bytes(), ring.events() * 100);
        assert!(ring.take().len() >= 60);
        assert_eq!((ring.bytes(), ring.events()), (0, 0));
    }

    #[test]
    fn it_never_has_more_bytes_than_allowed() {
        let mut ring = Ring::new(60 * SECOND, 1000);
        let mut now = 0;
        for n in 0..1000 {
            now += SECOND / 10;
            if ring.is_due(now) {
                ring.begin(now);
            }
            let held = ring.add(frame(50 + n % 100));
            assert!(held && ring.bytes() <= 1000, "{n}");
        }
        assert!(ring.is_cut());
        assert!(ring.bytes() > 500, "{}", ring.bytes());
        // Nobody begins a segment: it would begin in the middle, so nothing is kept.
        let mut left = true;
        for _ in 0..20 {
            left = ring.add(frame(100));
            assert!(ring.bytes() <= 1000);
        }
        assert!(!left);
        assert!(ring.is_due(now));
    }
}
