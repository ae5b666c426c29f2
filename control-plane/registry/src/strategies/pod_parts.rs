//! Parts of a running pod that are changed by subresources of their own: `ephemeralcontainers` and `resize`.
//!
//! <https://kubernetes.io/docs/concepts/workloads/pods/ephemeral-containers/>,
//! <https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/>

use serde_json::{Value, json};

use super::pod_defaults::qos_class;
use crate::errors::FieldError;
use crate::json::{Json, same};
use crate::kinds::Subresource;

const EPHEMERAL: &str = "/spec/ephemeralContainers";

/// What an ephemeral container cannot have: it is there to look, not to serve.
const NOT_ALLOWED: [&str; 7] = [
    "lifecycle",
    "livenessProbe",
    "ports",
    "readinessProbe",
    "resizePolicy",
    "resources",
    "startupProbe",
];

/// The old pod with what the new one says about the part.
pub fn part(part: Subresource, new: &Value, old: &Value) -> Value {
    let mut pod = old.clone();
    pod["metadata"] = new["metadata"].clone();
    match part {
        Subresource::EphemeralContainers => {
            let containers = new.items(EPHEMERAL).to_vec();
            pod.put(EPHEMERAL, containers);
            for container in pod.items_mut(EPHEMERAL).into_iter().flatten() {
                container.put_default("/terminationMessagePath", "/dev/termination-log");
                container.put_default("/terminationMessagePolicy", "File");
                container.put_default("/imagePullPolicy", "IfNotPresent");
            }
            pod
        }
        Subresource::Resize => {
            for list in ["/spec/containers", "/spec/initContainers"] {
                let wanted = new.items(list);
                for container in pod.items_mut(list).into_iter().flatten() {
                    let same_name = wanted.iter().find(|w| w["name"] == container["name"]);
                    if let Some(resources) = same_name.and_then(|w| w.get("resources")) {
                        container["resources"] = resources.clone();
                    }
                }
            }
            pod
        }
        _ => old.clone(),
    }
}

pub fn validate(part: Subresource, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    match part {
        Subresource::EphemeralContainers => ephemeral(new, old, errors),
        Subresource::Resize => resize(new, old, errors),
        _ => {}
    }
}

fn ephemeral(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let containers = new.items(EPHEMERAL);
    for (at, before) in old.items(EPHEMERAL).iter().enumerate() {
        let now = containers.iter().find(|c| c["name"] == before["name"]);
        if !now.is_some_and(|now| same(now, before)) {
            errors.push(FieldError::forbidden(
                format!("spec.ephemeralContainers[{at}]"),
                "existing ephemeral containers may not be changed or removed",
            ));
        }
    }
    let others: Vec<&str> = ["/spec/containers", "/spec/initContainers"]
        .iter()
        .flat_map(|list| new.items(list))
        .map(|container| container.text("/name"))
        .collect();
    for (at, container) in containers.iter().enumerate() {
        let path = format!("spec.ephemeralContainers[{at}]");
        let name = container.text("/name");
        let twice = containers[..at].iter().any(|c| c.text("/name") == name);
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if twice || others.contains(&name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        if container.text("/image").is_empty() {
            errors.push(FieldError::required(format!("{path}.image"), ""));
        }
        let target = container.text("/targetContainerName");
        if !target.is_empty() && !others.contains(&target) {
            errors.push(FieldError::not_found(
                format!("{path}.targetContainerName"),
                target,
            ));
        }
        let refused = NOT_ALLOWED.iter().filter(|field| {
            let value = container.get(**field).unwrap_or(&Value::Null);
            !same(value, &json!(null))
        });
        errors.extend(refused.map(|field| {
            FieldError::forbidden(
                format!("{path}.{field}"),
                "cannot be set for an Ephemeral Container",
            )
        }));
    }
}

fn resize(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let (before, after) = (qos_class(old), qos_class(new));
    if before != after {
        errors.push(FieldError::invalid(
            "spec",
            after,
            "Pod QOS Class may not change as a result of resizing",
        ));
    }
    for list in ["containers", "initContainers"] {
        let pointer = format!("/spec/{list}");
        let pairs = new.items(&pointer).iter().zip(old.items(&pointer));
        for (at, (now, before)) in pairs.enumerate() {
            if !same(&without_sizes(now), &without_sizes(before)) {
                errors.push(FieldError::forbidden(
                    format!("spec.{list}[{at}].resources"),
                    "only cpu and memory resources are mutable",
                ));
            }
        }
    }
}

/// The resources of a container but for those that can be resized.
fn without_sizes(container: &Value) -> Value {
    let mut resources = container["resources"].clone();
    for list in ["requests", "limits"] {
        for resource in ["cpu", "memory"] {
            resources.take_at(&format!("/{list}/{resource}"));
        }
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "image": "i", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]}})
    }

    fn check(what: Subresource, wanted: &Value, old: &Value) -> (Value, Vec<String>) {
        let new = part(what, wanted, old);
        let mut errors = Vec::new();
        validate(what, &new, old, &mut errors);
        (new, errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_container_is_added_and_stays() {
        let mut wanted = pod();
        wanted["spec"]["containers"][0]["image"] = json!("another");
        wanted.put(
            EPHEMERAL,
            json!([{"name": "debug", "image": "busybox", "targetContainerName": "c"}]),
        );
        let (new, errors) = check(Subresource::EphemeralContainers, &wanted, &pod());
        assert_eq!(errors, [""; 0]);
        assert_eq!(
            new["spec"]["containers"][0]["image"], "i",
            "nothing else changes"
        );
        assert_eq!(
            new.pointer("/spec/ephemeralContainers/0/name").unwrap(),
            "debug"
        );
        let (_, errors) = check(Subresource::EphemeralContainers, &pod(), &new);
        assert_eq!(
            errors,
            [
                "spec.ephemeralContainers[0]: Forbidden: existing ephemeral containers may not be changed or removed"
            ]
        );
        wanted.put(EPHEMERAL, json!([{"name": "c", "image": "b", "ports": [{"containerPort": 1}], "targetContainerName": "x"}]));
        let (_, errors) = check(Subresource::EphemeralContainers, &wanted, &pod());
        assert_eq!(
            errors,
            [
                "spec.ephemeralContainers[0].name: Duplicate value: \"c\"",
                "spec.ephemeralContainers[0].targetContainerName: Not found: \"x\"",
                "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container",
            ]
        );
    }

    #[test]
    fn only_processor_and_memory_are_resized_and_the_class_stays() {
        let mut wanted = pod();
        wanted["spec"]["containers"][0]["image"] = json!("another");
        wanted["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("2");
        let (new, errors) = check(Subresource::Resize, &wanted, &pod());
        assert_eq!(errors, [""; 0]);
        assert_eq!(
            new["spec"]["containers"][0]["resources"]["requests"]["cpu"],
            "2"
        );
        assert_eq!(new["spec"]["containers"][0]["image"], "i");
        wanted["spec"]["containers"][0]["resources"]["requests"]["gpu"] = json!("1");
        let (_, errors) = check(Subresource::Resize, &wanted, &pod());
        assert_eq!(
            errors,
            ["spec.containers[0].resources: Forbidden: only cpu and memory resources are mutable"]
        );
        wanted["spec"]["containers"][0]["resources"] = json!({});
        let (_, errors) = check(Subresource::Resize, &wanted, &pod());
        assert_eq!(
            errors,
            [
                "spec: Invalid value: \"BestEffort\": Pod QOS Class may not change as a result of resizing"
            ]
        );
    }
}
