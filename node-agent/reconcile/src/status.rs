//! What the loop reports: for readiness, for the Node's condition, for people.

use std::collections::BTreeSet;
use std::time::SystemTime;

use node_agent_model::Refusal;

/// State of the reconciler after its last pass.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Status {
    /// Sources whose first list is not complete; nothing is planned before all are.
    pub waiting_for: BTreeSet<&'static str>,
    /// Everything that was known at the time was in the maps at least once.
    pub synced: bool,
    /// When the maps last held everything that was known.
    pub updated_at: Option<SystemTime>,
    /// Since when passes fail.
    pub behind_since: Option<SystemTime>,
    /// The last pass failed like this.
    pub error: Option<String>,
    /// What does not fit into the maps.
    pub refused: Vec<Refusal>,
}

impl Status {
    /// Why the dataplane is not programmed yet; empty when it is. A later failure is not a reason: what is in the maps
    /// goes on to work.
    pub fn not_ready(&self) -> Vec<String> {
        if self.synced {
            return Vec::new();
        }
        let mut reasons: Vec<String> = self
            .waiting_for
            .iter()
            .map(|source| format!("the first list of {source} is not complete"))
            .collect();
        reasons.extend(
            self.error
                .iter()
                .map(|error| format!("the maps could not be written: {error}")),
        );
        if reasons.is_empty() {
            reasons.push("the maps are not written yet".to_owned());
        }
        reasons
    }
}
