//! Holds what plegscope said had come of a stall against what came of it by the client's own log.
//!
//! Pure, like [`super::verdict`].

use super::siblings::said::consequences;
use super::story::Truth;
use super::verdict::{Seen, Verdict};

/// An update that waited as long as this waited for the stall.
const WAITED: u64 = 1_000_000_000;

/// Updates of the victim that failed after they had waited, and nobody else's.
pub fn updates(truth: &Truth, frames: &[Seen], verdict: &mut Verdict) {
    let failed: Vec<&str> = truth
        .calls
        .iter()
        .filter(|call| call.method == "UpdateContainerResources" && call.age(call.begin) >= WAITED)
        .filter(|call| call.container.as_ref() == Some(&truth.container))
        .filter_map(|call| call.error.as_deref())
        .collect();
    let told = frames.iter().rev().flat_map(|seen| consequences(&seen.frame, "UpdatesFailed"));
    let ours = |id: &str| truth.own.iter().any(|own| own == id);
    let mut said: Vec<(&str, u64)> = told
        .filter_map(|one| Some((one["of"]["id"].as_str()?, one["count"].as_u64()?)))
        .filter(|(id, _)| ours(id))
        .collect();
    // The newest frame comes first, with the highest count.
    said.sort_by_key(|(id, count)| (*id, std::cmp::Reverse(*count)));
    said.dedup_by_key(|(id, _)| *id);
    let right = match failed.len() as u64 {
        0 => said.is_empty(),
        count => said == [(truth.container.as_str(), count)],
    };
    verdict.check(
        "updates that failed",
        format!("{} of the victim's: {}", failed.len(), failed.first().unwrap_or(&"-")),
        said.iter().map(|(id, count)| format!("{count} of {}", &id[..12])).collect::<Vec<_>>().join(", "),
        right,
    );
}
