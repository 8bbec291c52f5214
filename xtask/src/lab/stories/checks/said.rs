//! Readings of frames that the judgements share.

use crate::lab::verdict::Seen;
use serde_json::Value;
use std::slice;

/// An array of a JSON value, empty when there is none.
pub fn list<'v>(value: &'v Value, field: &str) -> slice::Iter<'v, Value> {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

/// The links of a diagnosis, from the symptom to the leaf.
pub fn links(diagnosis: &Value) -> slice::Iter<'_, Value> {
    list(&diagnosis["chain"], "links")
}

/// What a link is.
pub fn kind(link: &Value) -> &str {
    link["operation"]["kind"].as_str().unwrap_or_default()
}

/// The time of a frame; all comparisons of ages are made at it.
pub fn now(seen: &Seen) -> u64 {
    seen.frame["now"].as_u64().unwrap_or(seen.at)
}

/// All diagnoses of the frames between two moments (ns), each with its frame.
pub fn between(frames: &[Seen], from: u64, to: u64) -> impl Iterator<Item = (&Seen, &Value)> {
    frames
        .iter()
        .filter(move |seen| (from..=to).contains(&now(seen)))
        .flat_map(|seen| list(&seen.frame, "diagnoses").map(move |diagnosis| (seen, diagnosis)))
}

/// What of this kind was said to have come of it, anywhere in a frame: in its diagnoses, or in its incidents.
pub fn consequences<'f>(frame: &'f Value, what: &'f str) -> impl Iterator<Item = &'f Value> {
    let diagnoses = list(frame, "diagnoses");
    let incidents = list(frame, "incidents");
    let last = list(frame, "incidents").map(|incident| &incident["last"]);
    diagnoses
        .chain(incidents)
        .chain(last)
        .flat_map(|one| list(one, "consequences"))
        .map(move |one| &one["what"][what])
        .filter(|detail| !detail.is_null())
}

/// A device as `MAJ:MIN`, when one is named.
pub fn device(ends_in: &Value) -> Option<String> {
    let device = &ends_in["device"]["device"];
    (!device.is_null()).then(|| format!("{}:{}", device["major"], device["minor"]))
}
