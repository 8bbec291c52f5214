//! Small readings of frames that the judgements share.

use super::Seen;
use serde_json::Value;
use std::slice;

/// An array of a JSON value, empty when there is none.
pub fn list<'v>(value: &'v Value, field: &str) -> slice::Iter<'v, Value> {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

/// All diagnoses of the frames that came between two moments (ns), with the frame.
pub fn between(frames: &[Seen], from: u64, to: u64) -> impl Iterator<Item = (&Seen, &Value)> {
    frames
        .iter()
        .filter(move |seen| seen.at >= from && seen.at <= to)
        .flat_map(|seen| list(&seen.frame, "diagnoses").map(move |diagnosis| (seen, diagnosis)))
}

/// Whether a value names any of these, for instance a container anywhere in a diagnosis.
pub fn names(value: &Value, id: &str) -> bool {
    value.to_string().contains(id)
}

/// Kinds of the links of a diagnosis, from the symptom to the leaf.
pub fn kinds(diagnosis: &Value) -> Vec<&str> {
    list(&diagnosis["chain"], "links").map(|link| link["operation"]["kind"].as_str().unwrap_or("")).collect()
}
