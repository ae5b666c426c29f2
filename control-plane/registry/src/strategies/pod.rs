//! Pods: the hooks, what may change, binding to a node, and how long a deletion may take.
//!
//! Follows `pkg/registry/core/pod` of Kubernetes.

use serde_json::{Value, json};

use super::pod_defaults::{default, qos_class};
use super::pod_validate::validate;
use super::{Strategy, pod_parts};
use crate::errors::{ApiError, FieldError, Result};
use crate::json::{Json, same};
use crate::kinds::Kind;
use crate::meta;

pub const POD: Strategy = Strategy {
    default,
    prepare_create: |pod| {
        let status = json!({"phase": "Pending", "qosClass": qos_class(pod)});
        pod.put("/status", status);
    },
    prepare_update: |new, old| {
        if let Some(class) = old.pointer("/status/qosClass") {
            new.put("/status/qosClass", class.clone());
        }
    },
    validate,
    validate_update,
    part: pod_parts::part,
    validate_part: pod_parts::validate,
    generation: true,
    grace,
    returns_deleted: true,
    ..Strategy::PLAIN
};

const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Seconds that a pod stays after a delete: none when no kubelet has it, or when it has ended.
fn grace(pod: &Value, asked: Option<i64>) -> i64 {
    let ended = matches!(pod.text("/status/phase"), "Succeeded" | "Failed");
    if ended || pod.text("/spec/nodeName").is_empty() {
        return 0;
    }
    let seconds = asked
        .or_else(|| pod.integer("/spec/terminationGracePeriodSeconds"))
        .unwrap_or(30);
    if seconds < 0 { 1 } else { seconds }
}

fn validate_update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    for list in ["containers", "initContainers"] {
        let count = |pod: &Value| pod.items(&format!("/spec/{list}")).len();
        if count(new) != count(old) {
            errors.push(FieldError::forbidden(
                format!("spec.{list}"),
                "pod updates may not add or remove containers",
            ));
            return;
        }
    }
    let tolerations = new.items("/spec/tolerations");
    let kept = |old: &Value| tolerations.iter().any(|t| same(t, old));
    if !old.items("/spec/tolerations").iter().all(kept) {
        errors.push(FieldError::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    // With what may change made equal, nothing else may differ.
    let mut rest = new["spec"].clone();
    let before = &old["spec"];
    for list in ["containers", "initContainers"] {
        let images = before.items(&format!("/{list}"));
        let containers = rest.items_mut(&format!("/{list}")).into_iter().flatten();
        for (container, old) in containers.zip(images) {
            if let Some(image) = old.get("image") {
                container["image"] = image.clone();
            }
        }
    }
    for field in [
        "activeDeadlineSeconds",
        "tolerations",
        "terminationGracePeriodSeconds",
    ] {
        match before.get(field) {
            Some(value) => rest.put(&format!("/{field}"), value.clone()),
            None => {
                rest.take_at(&format!("/{field}"));
            }
        }
    }
    if !same(&rest, before) {
        errors.push(FieldError::forbidden("spec", MAY_CHANGE));
    }
}

/// Assigns the pod to the node that `binding` names.
///
/// # Errors
/// 409 when the pod has a node already or is being deleted, 422 for a binding that names no node.
pub fn bind(kind: &Kind, pod: &mut Value, binding: &Value) -> Result<()> {
    let name = pod.text("/metadata/name").to_owned();
    let target_kind = binding.text("/target/kind");
    let node = binding.text("/target/name");
    let mut errors = Vec::new();
    if !matches!(target_kind, "" | "Node") {
        errors.push(FieldError::not_supported(
            "target.kind",
            target_kind,
            &["Node", ""],
        ));
    }
    if node.is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid_of("", "Binding", &name, &errors));
    }
    let conflict = |why: String| {
        let mut error = ApiError::conflict(kind, &name, &why);
        error.message = format!("Operation cannot be fulfilled on pods/binding \"{name}\": {why}");
        error.details["kind"] = "pods/binding".into();
        error
    };
    let uid = binding.text("/metadata/uid");
    if !uid.is_empty() && uid != pod.text("/metadata/uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            pod.text("/metadata/uid")
        );
        return Err(conflict(why));
    }
    if pod.has("/metadata/deletionTimestamp") {
        let why = format!("pod {name} is being deleted, cannot be assigned to a host");
        return Err(conflict(why));
    }
    let has = pod.text("/spec/nodeName");
    if !has.is_empty() {
        let why = format!("pod {name} is already assigned to node \"{has}\"");
        return Err(conflict(why));
    }
    pod.put("/spec/nodeName", node);
    for (key, value) in binding
        .object("/metadata/annotations")
        .into_iter()
        .flatten()
    {
        pod["metadata"]["annotations"][key] = value.clone();
    }
    set_condition(
        pod,
        json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": meta::now()}),
    );
    Ok(())
}

fn set_condition(pod: &mut Value, condition: Value) {
    if !pod.has("/status/conditions") {
        pod.put("/status/conditions", json!([]));
    }
    let conditions = pod.items_mut("/status/conditions").into_iter().flatten();
    for old in conditions {
        if old["type"] == condition["type"] {
            *old = condition;
            return;
        }
    }
    if let Some(conditions) = pod.items_mut("/status/conditions") {
        conditions.push(condition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn pod() -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "a:1"}],
            "tolerations": [{"key": "k"}], "terminationGracePeriodSeconds": 30}})
    }

    #[test]
    fn only_images_and_more_tolerations_may_change() {
        let mut new = pod();
        new["spec"]["containers"][0]["image"] = json!("a:2");
        new.items_mut("/spec/tolerations")
            .unwrap()
            .push(json!({"key": "l"}));
        let mut errors = Vec::new();
        validate_update(&new, &pod(), &mut errors);
        assert_eq!(errors, []);
        new["spec"]["hostNetwork"] = json!(true);
        validate_update(&new, &pod(), &mut errors);
        assert_eq!(errors.len(), 1);
        assert!(
            errors[0]
                .to_string()
                .starts_with("spec: Forbidden: pod updates may not change")
        );
    }

    #[test]
    fn a_pod_is_bound_once() {
        let kind = kinds::find("", "v1", "pods").unwrap();
        let mut pod = pod();
        let binding = json!({"target": {"kind": "Node", "name": "n1"}});
        bind(kind, &mut pod, &binding).unwrap();
        assert_eq!(pod["spec"]["nodeName"], "n1");
        assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
        let error = bind(kind, &mut pod, &binding).unwrap_err();
        assert_eq!(error.code, 409);
        assert_eq!(
            error.message,
            "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
        );
    }

    #[test]
    fn only_a_running_pod_on_a_node_is_given_time_to_end() {
        let mut pod = pod();
        assert_eq!(grace(&pod, None), 0);
        pod["spec"]["nodeName"] = json!("n");
        assert_eq!(grace(&pod, None), 30);
        assert_eq!(grace(&pod, Some(0)), 0);
        pod["status"] = json!({"phase": "Succeeded"});
        assert_eq!(grace(&pod, Some(60)), 0);
    }
}
