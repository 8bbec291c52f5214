//! Shims that are left over: their bundle is gone and they still run. Nobody waits for them, so they are shown and never
//! an incident; which incident led to one stands among that one's consequences.

use super::diagnosis::Found;
use super::facts::Facts;
use super::frame::{Advice, Chain, Confidence, Diagnosis, EndsIn, Head};
use super::limits;
use super::outlook::Outlook;
use std::collections::{BTreeMap, BTreeSet};

/// The diagnosis of all shims that are left over, if there are any.
pub fn found(facts: &Facts, blind: &[String]) -> Option<Found> {
    let shims = facts.leaked_shims();
    if shims.is_empty() {
        return None;
    }
    let ends_in = EndsIn::LeakedShims { count: facts.leaked_total() };
    Some(Found {
        diagnosis: Diagnosis {
            advice: Advice::default(),
            ends_in,
            confidence: Confidence::Inferred,
            evidence: "their bundles are gone and they still run".to_owned(),
            chain: Chain { links: Vec::new(), age: 0 },
            head: Head::Alone,
            stuck_calls: Vec::new(),
            stuck_calls_total: 0,
            containers: shims.into_iter().take(limits::SUBJECTS_SHOWN).map(|(_, of)| of).collect(),
            not_ready: None,
            pods_waiting: 0,
            outlook: Outlook::Never {
                because: "nothing ends a shim that containerd has forgotten".to_owned(),
            },
            dirtied_by: Vec::new(),
            dirtied_unknown: None,
            consequences: Vec::new(),
            not_this_chain: None,
            signature: String::new(),
            blind_spots: blind.to_vec(),
            incident: None,
        },
        key: (10, 0, 0, String::new()),
        members: BTreeSet::new(),
        containers: BTreeMap::new(),
        worst: None,
        relists: Vec::new(),
    })
}
