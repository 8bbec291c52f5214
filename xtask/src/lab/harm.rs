//! Holds what plegscope said had come of a stall against what came of it by the client's own log.
//!
//! Pure, like [`super::verdict`].

use super::stories::checks::said::consequences;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::kubelet_like::Call;
    use crate::lab::story::Block;
    use serde_json::json;

    fn truth(error: Option<&str>) -> Truth {
        let update = Call {
            method: "UpdateContainerResources".to_owned(),
            container: Some("victim-container".to_owned()),
            begin: 10 * WAITED,
            end: Some(20 * WAITED),
            error: error.map(str::to_owned),
        };
        Truth {
            block: Block::Disk,
            container: "victim-container".to_owned(),
            pod: "victim".to_owned(),
            namespace: "ns".to_owned(),
            container_name: "worker".to_owned(),
            shim: 7,
            own: vec!["victim-container".to_owned(), "other-container".to_owned()],
            kubelet: None,
            device: "7:0".to_owned(),
            told_to_exit: 0,
            calls: vec![update],
            unmounts: Vec::new(),
            traced: Vec::new(),
            failed_attempts: 0,
        }
    }

    fn failures(error: Option<&str>, of: &str, count: u64) -> usize {
        let what = json!({"UpdatesFailed": {"of": {"id": of}, "count": count}});
        let frame = json!({"diagnoses": [], "incidents": [{"consequences": [{"what": what}]}]});
        let mut verdict = Verdict::default();
        updates(&truth(error), &[Seen { at: 0, frame }], &mut verdict);
        verdict.failures()
    }

    #[test]
    fn updates_that_failed_are_counted_and_are_the_victims() {
        let error = Some("cannot update a deleted process");
        assert_eq!(failures(error, "victim-container", 1), 0);
        assert_eq!(failures(error, "victim-container", 2), 1);
        assert_eq!(failures(error, "other-container", 1), 1);
        assert_eq!(failures(None, "victim-container", 1), 1);
        // What another node in a box on the same machine makes of its own is not judged.
        assert_eq!(failures(None, "somebody-elses", 1), 0);
    }
}
