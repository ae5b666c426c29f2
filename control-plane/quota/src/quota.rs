//! ResourceQuotas: which objects they are about, and whether one more is within.
//!
//! Follows `pkg/quota/v1` and the admission plugin ResourceQuota of Kubernetes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::pods::{self, Side};
use crate::usage::{Resource, named};
use crate::{Amounts, amounts, items, text};

/// An object that is to be written.
#[derive(Clone, Copy, Debug)]
pub struct Demand<'a> {
    pub resource: Resource<'a>,
    pub object: &'a Value,
    /// The object before the write, if there was one.
    pub old: Option<&'a Value>,
    /// Seconds since 1970.
    pub now: i64,
}

/// Whether the quota's scopes let it be about the object.
#[must_use]
pub fn in_scope(quota: &Value, resource: Resource<'_>, object: &Value) -> bool {
    let pods = resource
        == Resource {
            group: "",
            plural: "pods",
        };
    let mut scopes = items(quota, "/spec/scopes").iter();
    let named = scopes.all(|scope| {
        let scope = scope.as_str().unwrap_or_default();
        pods && pod_in_scope(object, scope, "Exists", &[])
    });
    let selected = items(quota, "/spec/scopeSelector/matchExpressions").iter();
    let mut selected = selected.map(|one| {
        (
            text(one, "/scopeName"),
            text(one, "/operator"),
            items(one, "/values"),
        )
    });
    named
        && selected
            .all(|(scope, operator, values)| pods && pod_in_scope(object, scope, operator, values))
}

fn pod_in_scope(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    let deadline = pod
        .pointer("/spec/activeDeadlineSeconds")
        .and_then(Value::as_i64);
    let terminating = deadline.is_some_and(|seconds| seconds >= 0);
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => pods::best_effort(pod),
        "NotBestEffort" => !pods::best_effort(pod),
        "PriorityClass" => {
            let class = text(pod, "/spec/priorityClassName");
            let listed = values.iter().any(|value| value.as_str() == Some(class));
            match operator {
                "In" => !class.is_empty() && listed,
                "NotIn" => class.is_empty() || !listed,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => looks_elsewhere(pod),
        _ => false,
    }
}

/// Whether an affinity of the pod is about pods of other namespaces.
fn looks_elsewhere(pod: &Value) -> bool {
    let elsewhere = |term: &Value| {
        !items(term, "/namespaces").is_empty()
            || term
                .get("namespaceSelector")
                .is_some_and(|selector| !selector.is_null())
    };
    ["podAffinity", "podAntiAffinity"].into_iter().any(|kind| {
        let of = |when: &str| {
            items(
                pod,
                &format!("/spec/affinity/{kind}/{when}DuringSchedulingIgnoredDuringExecution"),
            )
        };
        of("required").iter().any(elsewhere)
            || of("preferred")
                .iter()
                .any(|term| elsewhere(&term["podAffinityTerm"]))
    })
}

/// What the quota's `status.used` is once the object is written; `None` when that changes nothing.
///
/// # Errors
/// Why it must not be written, in Kubernetes' words.
pub fn charge(quota: &Value, demand: &Demand<'_>) -> Result<Option<Amounts>, String> {
    let Demand {
        resource,
        object,
        old,
        now,
    } = *demand;
    let name = text(quota, "/metadata/name");
    let hard = amounts(quota.pointer("/status/hard"));
    let used = amounts(quota.pointer("/status/used"));
    // A quota whose status nobody has worked out yet limits nothing: whoever makes it beside what it limits, as an installer
    // does, is not refused.
    let about: Vec<&String> = hard.keys().filter(|name| resource.takes(name)).collect();
    if about.is_empty() || !in_scope(quota, resource, object) {
        return Ok(None);
    }
    if let Some(missing) = unsaid(resource, object, &about) {
        return Err(format!("failed quota: {name}: must specify {missing}"));
    }
    if about.iter().any(|name| !used.contains_key(*name)) {
        let about: Vec<&str> = about.iter().map(|name| name.as_str()).collect();
        return Err(format!(
            "status unknown for quota: {name}, resources: {}",
            about.join(",")
        ));
    }
    let mut more = resource.usage(object, now);
    more.retain(|name, _| about.contains(&name));
    if let Some(old) = old.filter(|old| in_scope(quota, resource, old)) {
        let before = resource.usage(old, now);
        for (name, amount) in &mut more {
            let less = before.get(name).copied().unwrap_or_default();
            *amount = amount.minus(less).max(crate::Quantity::default());
        }
    }
    more.retain(|_, amount| !amount.is_zero());
    let mut sum = used.clone();
    crate::add(&mut sum, &more);
    let over = more.keys().filter(|name| sum[*name] > hard[*name]);
    let over: BTreeSet<&String> = over.collect();
    if !over.is_empty() {
        let shown = |all: &Amounts| {
            let all = all.iter().filter(|(name, _)| over.contains(name));
            let all: Vec<String> = all
                .map(|(name, amount)| format!("{name}={amount}"))
                .collect();
            all.join(",")
        };
        return Err(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            shown(&more),
            shown(&used),
            shown(&hard)
        ));
    }
    Ok((!more.is_empty()).then_some(sum))
}

/// Where CPU or memory is counted every container must say how much it wants: what does not, as `cpu for: a,b`.
fn unsaid(resource: Resource<'_>, object: &Value, about: &[&String]) -> Option<String> {
    const SAID: [&str; 6] = [
        "cpu",
        "limits.cpu",
        "limits.memory",
        "memory",
        "requests.cpu",
        "requests.memory",
    ];
    if resource
        != (Resource {
            group: "",
            plural: "pods",
        })
    {
        return None;
    }
    let wanted = SAID
        .iter()
        .filter(|said| about.iter().any(|name| name == *said));
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let of_pod = |side| pods::own(&object["spec"], side);
    let pod = named(&of_pod(Side::Requests), &of_pod(Side::Limits));
    for said in wanted.filter(|said| !pod.contains_key(**said)) {
        for container in pods::containers(object) {
            let own = named(
                &pods::own(container, Side::Requests),
                &pods::own(container, Side::Limits),
            );
            if !own.contains_key(*said) {
                missing
                    .entry(said)
                    .or_default()
                    .insert(text(container, "/name"));
            }
        }
    }
    let texts = missing.into_iter().map(|(said, containers)| {
        let containers: Vec<&str> = containers.into_iter().collect();
        format!("{said} for: {}", containers.join(","))
    });
    let texts: Vec<String> = texts.collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn demand<'a>(object: &'a Value, old: Option<&'a Value>) -> Demand<'a> {
        let resource = Resource {
            group: "",
            plural: "pods",
        };
        Demand {
            resource,
            object,
            old,
            now: 0,
        }
    }

    fn pod(cpu: &str) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    fn quota(scopes: Value) -> Value {
        let hard = json!({"pods": "2", "requests.cpu": "1"});
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard, "scopes": scopes},
            "status": {"hard": hard, "used": {"pods": "1", "requests.cpu": "500m"}}})
    }

    #[test]
    fn what_is_within_is_added_and_what_is_over_is_named() {
        let quota = quota(json!([]));
        let used = charge(&quota, &demand(&pod("500m"), None))
            .unwrap()
            .unwrap();
        assert_eq!(
            crate::list(&used),
            json!({"pods": "2", "requests.cpu": "1"})
        );
        let why = charge(&quota, &demand(&pod("600m"), None)).unwrap_err();
        assert_eq!(
            why,
            "exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=500m, limited: requests.cpu=1"
        );
        let none = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let why = charge(&quota, &demand(&none, None)).unwrap_err();
        assert_eq!(why, "failed quota: q: must specify requests.cpu for: a,b");
        // A resize is charged by the difference, and nothing is given back here.
        let grown = charge(&quota, &demand(&pod("700m"), Some(&pod("300m"))))
            .unwrap()
            .unwrap();
        assert_eq!(
            crate::list(&grown),
            json!({"pods": "1", "requests.cpu": "900m"})
        );
        assert_eq!(
            charge(&quota, &demand(&pod("100m"), Some(&pod("300m")))),
            Ok(None)
        );
    }

    #[test]
    fn a_quota_limits_nothing_before_it_is_worked_out_and_lets_nothing_in_while_its_use_is_unknown()
    {
        let mut quota = quota(json!([]));
        quota["status"] = json!({});
        assert_eq!(charge(&quota, &demand(&pod("1m"), None)), Ok(None));
        quota["status"]["hard"] = quota["spec"]["hard"].clone();
        let why = charge(&quota, &demand(&pod("1m"), None)).unwrap_err();
        assert_eq!(
            why,
            "status unknown for quota: q, resources: pods,requests.cpu"
        );
    }

    #[test]
    fn scopes_choose_pods() {
        let best = json!({"spec": {"containers": [{"name": "c"}]}});
        let short = json!({"spec": {"activeDeadlineSeconds": 5, "priorityClassName": "high", "containers": []}});
        for (scopes, object, about) in [
            (json!(["BestEffort"]), &best, true),
            (json!(["NotBestEffort"]), &best, false),
            (json!(["Terminating"]), &short, true),
            (json!(["NotTerminating", "BestEffort"]), &short, false),
            (json!(["PriorityClass"]), &best, false),
        ] {
            let quota = quota(scopes.clone());
            let resource = Resource {
                group: "",
                plural: "pods",
            };
            assert_eq!(in_scope(&quota, resource, object), about, "{scopes}");
        }
        let selector = json!({"spec": {"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}});
        let resource = Resource {
            group: "",
            plural: "pods",
        };
        assert!(in_scope(&selector, resource, &short));
        assert!(!in_scope(&selector, resource, &best));
        let services = Resource {
            group: "",
            plural: "services",
        };
        assert!(!in_scope(&selector, services, &json!({})));
    }
}
