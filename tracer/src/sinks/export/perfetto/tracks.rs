//! Slices on tracks. A track of Perfetto is a stack: what lies on it must be nested. What is not (two things of one
//! goroutine that overlap, because one of them was seen late) goes to a track beside it.

use super::proto::{BEGIN, DebugAnnotation, END, INSTANT, TrackDescriptor, TrackEvent};
use crate::event::Ns;
use std::cmp::Reverse;

/// Slices on a track that are not written yet.
pub const SLICES: usize = 4_096;
/// What is reported of a time comes at most this much later.
const SETTLED: Ns = 2 * crate::thresholds::SECOND;

/// Something that lasts.
#[derive(Clone, Debug, Default)]
pub struct Slice {
    pub name: String,
    pub category: &'static str,
    pub begin: Ns,
    /// `None` while it lasts; one that never ends has no end in the trace either.
    pub end: Option<Ns>,
    /// What is told of it: a name and a text each.
    pub notes: Vec<(&'static str, String)>,
    /// Arrows that begin here.
    pub flows: Vec<u64>,
    /// Arrows that end here, and when what they come from began.
    pub ending: Vec<(Ns, u64)>,
    /// Whether the last frame had it.
    pub there: bool,
    /// Whether its end is only that the frames do not have it any more.
    pub vanished: bool,
}

/// A track, and what lies on it.
#[derive(Clone, Debug)]
pub struct Track<K> {
    /// How it is called, with its own `uuid`.
    pub descriptor: TrackDescriptor,
    /// What is not written yet, by what it is known by.
    pub slices: Vec<(K, Slice)>,
    /// How many slices were left out because [`SLICES`] were there.
    pub left_out: u64,
}

/// An event with its time.
pub type Timed = (Ns, TrackEvent);

impl<K> Track<K> {
    /// An empty one.
    pub fn new(descriptor: TrackDescriptor) -> Track<K> {
        Track { descriptor, slices: Vec::new(), left_out: 0 }
    }

    /// Whether all of it is over, and nothing more comes of that time.
    pub fn is_settled(&self, now: Ns) -> bool {
        self.slices.iter().all(|(_, s)| s.end.is_some_and(|end| end.saturating_add(SETTLED) < now))
    }

    /// Descriptors and events of all that lies on it, which is taken off.
    pub fn write(&mut self) -> (Vec<TrackDescriptor>, Vec<Timed>) {
        let mut slices: Vec<Slice> = std::mem::take(&mut self.slices).into_iter().map(|(_, s)| s).collect();
        // The outer one first; what took no time is given some, so that its end does not come before its begin.
        let end = |s: &Slice| s.end.map_or(Ns::MAX, |end| end.max(s.begin.saturating_add(1)));
        slices.sort_by_key(|s| (s.begin, Reverse(end(s))));
        let mut lanes: Vec<Vec<Ns>> = Vec::new();
        let mut events = Vec::new();
        let own = self.descriptor.uuid.unwrap_or_default();
        let uuid = |lane: usize| if lane == 0 { own } else { super::uuid(&[own, lane as u64]) };
        for slice in slices {
            let until = end(&slice);
            let fits = |open: &Vec<Ns>| {
                open.iter().rev().find(|end| **end > slice.begin).is_none_or(|outer| *outer >= until)
            };
            let lane = match lanes.iter().position(fits) {
                Some(lane) => lane,
                None => {
                    lanes.push(Vec::new());
                    lanes.len() - 1
                }
            };
            let Some(open) = lanes.get_mut(lane) else { continue };
            close(open, slice.begin, uuid(lane), &mut events);
            open.push(until);
            begin(slice, uuid(lane), &mut events);
        }
        let mut descriptors = Vec::new();
        for (lane, mut open) in lanes.into_iter().enumerate() {
            close(&mut open, Ns::MAX - 1, uuid(lane), &mut events);
            let mut descriptor = self.descriptor.clone();
            if lane > 0 {
                let name = descriptor.name.take().or(descriptor.thread.take().and_then(|t| t.thread_name));
                descriptor.name = name.map(|name| format!("{name} ({})", lane + 1));
                descriptor.uuid = Some(uuid(lane));
            }
            descriptors.push(descriptor);
        }
        (descriptors, events)
    }
}

/// Ends what is over by then, the inner ones first.
fn close(open: &mut Vec<Ns>, by: Ns, track: u64, events: &mut Vec<Timed>) {
    while let Some(end) = open.pop_if(|end| *end <= by) {
        let event = TrackEvent { r#type: Some(END), track_uuid: Some(track), ..TrackEvent::default() };
        events.push((end, event));
    }
}

fn begin(slice: Slice, track: u64, events: &mut Vec<Timed>) {
    let (at_begin, later): (Vec<_>, Vec<_>) =
        slice.ending.into_iter().partition(|(from, _)| *from <= slice.begin);
    let vanished = slice.vanished.then(|| ("end", "not reported; gone by then".to_owned()));
    let notes = slice
        .notes
        .into_iter()
        .chain(vanished)
        .map(|(name, text)| DebugAnnotation { string_value: Some(text), name: Some(name.to_owned()) });
    events.push((
        slice.begin,
        TrackEvent {
            debug_annotations: notes.collect(),
            r#type: Some(BEGIN),
            track_uuid: Some(track),
            categories: vec![slice.category.to_owned()],
            name: Some(slice.name),
            flow_ids: slice.flows,
            terminating_flow_ids: at_begin.into_iter().map(|(_, flow)| flow).collect(),
            ..TrackEvent::default()
        },
    ));
    // An arrow goes forward in time: it ends in what it waits for at the time at which it began to wait.
    for (from, flow) in later {
        let event = TrackEvent {
            r#type: Some(INSTANT),
            track_uuid: Some(track),
            categories: vec!["wait".to_owned()],
            name: Some("is waited for".to_owned()),
            terminating_flow_ids: vec![flow],
            ..TrackEvent::default()
        };
        events.push((from, event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn track(of: &[(Ns, Option<Ns>)]) -> Track<usize> {
        let mut track = Track::new(TrackDescriptor { uuid: Some(7), ..TrackDescriptor::default() });
        for (i, &(begin, end)) in of.iter().enumerate() {
            track
                .slices
                .push((i, Slice { name: format!("{begin}-{end:?}"), begin, end, ..Slice::default() }));
        }
        track
    }

    /// What a reader of the trace makes of it: (track, name, begin, end).
    fn read(mut events: Vec<Timed>) -> Vec<(u64, String, Ns, Option<Ns>)> {
        events.sort_by_key(|(at, _)| *at);
        let mut open: Vec<(u64, String, Ns)> = Vec::new();
        let mut out = Vec::new();
        for (at, event) in events {
            let track = event.track_uuid.unwrap();
            if event.r#type == Some(BEGIN) {
                open.push((track, event.name.unwrap(), at));
            } else {
                let place = open.iter().rposition(|(of, ..)| *of == track).unwrap();
                let (track, name, begin) = open.remove(place);
                out.push((track, name, begin, Some(at)));
            }
        }
        out.extend(open.into_iter().map(|(track, name, begin)| (track, name, begin, None)));
        out
    }

    #[test]
    fn what_overlaps_lies_beside() {
        let (descriptors, events) =
            track(&[(10, Some(20)), (12, Some(15)), (18, Some(25)), (25, None)]).write();
        let read = read(events);
        assert_eq!(descriptors.len(), 2);
        let own: Vec<Ns> =
            read.iter().filter(|(track, ..)| *track == 7).map(|(_, _, begin, _)| *begin).collect();
        assert_eq!(own, [12, 10, 25]);
    }

    proptest! {
        #[test]
        fn every_slice_is_read_back_as_it_was(
            of in proptest::collection::vec((0u64..60, proptest::option::weighted(0.9, 0u64..40)), 0..40)
        ) {
            let of: Vec<(Ns, Option<Ns>)> = of.into_iter().map(|(b, took)| (b, took.map(|t| b + t))).collect();
            let (descriptors, events) = track(&of).write();
            let mut read: Vec<(String, Ns, Option<Ns>)> =
                read(events).into_iter().map(|(_, name, begin, end)| (name, begin, end)).collect();
            let mut expected: Vec<(String, Ns, Option<Ns>)> = of
                .iter()
                .map(|&(begin, end)| (format!("{begin}-{end:?}"), begin, end.map(|end| end.max(begin + 1))))
                .collect();
            read.sort();
            expected.sort();
            prop_assert_eq!(read, expected);
            let mut uuids: Vec<Option<u64>> = descriptors.iter().map(|d| d.uuid).collect();
            uuids.dedup();
            prop_assert_eq!(uuids.len(), descriptors.len());
        }
    }
}
