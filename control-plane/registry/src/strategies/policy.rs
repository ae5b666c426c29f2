//! PodDisruptionBudgets, and the eviction of a pod, which they may forbid.
//!
//! Follows `pkg/registry/core/pod/storage/eviction.go` and `pkg/apis/policy/validation` of Kubernetes.

use serde_json::{Value, json};

use super::Strategy;
use crate::errors::FieldError;
use crate::json::Json;
use crate::{labels, validate};

pub const DISRUPTION_BUDGET: Strategy = Strategy {
    prepare_create: |budget| {
        let zero = json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
        budget.put_default("/status", zero);
    },
    validate: |budget, errors| {
        if budget.has("/spec/minAvailable") && budget.has("/spec/maxUnavailable") {
            errors.push(FieldError::invalid(
                "spec",
                budget["spec"].clone(),
                "minAvailable and maxUnavailable cannot be both set",
            ));
        }
        for field in ["minAvailable", "maxUnavailable"] {
            let path = format!("spec.{field}");
            let value = &budget["spec"][field];
            if value.as_i64().is_some_and(|n| n < 0) {
                errors.push(FieldError::invalid(
                    path,
                    value.clone(),
                    "must be greater than or equal to 0",
                ));
            }
        }
        if let Some(selector) = budget.pointer("/spec/selector") {
            labels::validate(selector, "spec.selector", errors);
        }
        let path = "spec.unhealthyPodEvictionPolicy";
        let words = ["AlwaysAllow", "IfHealthyBudget"];
        validate::one_of(
            budget,
            "/spec/unhealthyPodEvictionPolicy",
            path,
            &words,
            errors,
        );
    },
    generation: true,
    ..Strategy::PLAIN
};

/// Whether an eviction of the pod needs no budget: it has ended, never ran, or is going already.
#[must_use]
pub fn needs_no_budget(pod: &Value) -> bool {
    matches!(
        pod.text("/status/phase"),
        "Succeeded" | "Failed" | "Pending"
    ) || pod.has("/metadata/deletionTimestamp")
}

/// Whether the budget is about the pod. A budget without selector is about none.
#[must_use]
pub fn covers(budget: &Value, pod: &Value) -> bool {
    budget
        .pointer("/spec/selector")
        .is_some_and(|selector| labels::selects(selector, pod.object("/metadata/labels")))
}

/// Whether a pod that is not ready goes without the budget's leave.
#[must_use]
pub fn frees_unready(budget: &Value, pod: &Value) -> bool {
    let conditions = pod.items("/status/conditions").iter();
    let ready = |c: &Value| c.text("/type") == "Ready" && c.text("/status") == "True";
    if conditions.clone().any(ready) {
        return false;
    }
    let at = |field: &str| budget.integer(&format!("/status/{field}")).unwrap_or(0);
    let healthy = at("desiredHealthy") > 0 && at("currentHealthy") >= at("desiredHealthy");
    budget.text("/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow" || healthy
}

/// Takes one disruption out of the budget.
///
/// # Errors
/// Why the budget forbids it, for the user to read.
pub fn spend(budget: &mut Value, pod: &str, now: &str) -> Result<(), String> {
    let name = budget.text("/metadata/name").to_owned();
    let generation = budget.integer("/metadata/generation").unwrap_or(0);
    if budget.integer("/status/observedGeneration").unwrap_or(0) < generation {
        return Err(format!(
            "The disruption budget {name} is still being processed by the server."
        ));
    }
    let allowed = budget.integer("/status/disruptionsAllowed").unwrap_or(0);
    if allowed <= 0 {
        let at = |field: &str| budget.integer(&format!("/status/{field}")).unwrap_or(0);
        return Err(format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            at("desiredHealthy"),
            at("currentHealthy")
        ));
    }
    budget.put("/status/disruptionsAllowed", allowed - 1);
    budget.put_default("/status/disruptedPods", json!({}));
    budget["status"]["disruptedPods"][pod] = now.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_once() {
        let mut budget = json!({"metadata": {"name": "b", "generation": 1}, "status": {
            "observedGeneration": 0, "disruptionsAllowed": 1, "desiredHealthy": 1, "currentHealthy": 2}});
        let why = spend(&mut budget, "p", "now").unwrap_err();
        assert_eq!(
            why,
            "The disruption budget b is still being processed by the server."
        );
        budget["status"]["observedGeneration"] = json!(1);
        spend(&mut budget, "p", "now").unwrap();
        assert_eq!(budget["status"]["disruptedPods"], json!({"p": "now"}));
        let why = spend(&mut budget, "q", "now").unwrap_err();
        assert_eq!(
            why,
            "The disruption budget b needs 1 healthy pods and has 2 currently"
        );
    }
}
