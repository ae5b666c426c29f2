//! LimitRanges: what pods get that say nothing, and what is too little or too much.
//!
//! Follows the admission plugin LimitRanger of Kubernetes.

use serde_json::{Value, json};

use crate::pods::{self, Side};
use crate::usage::Resource;
use crate::{Amounts, Quantity, amounts, items, text};

const NOTE: &str = "kubernetes.io/limit-ranger";

/// Gives a pod's containers the requests and limits that they do not say.
pub fn default(ranges: &[Value], pod: &mut Value) {
    let all = ranges.iter().flat_map(|range| items(range, "/spec/limits"));
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    for limit in all.filter(|limit| text(limit, "/type") == "Container") {
        requests.extend(amounts(limit.get("defaultRequest")));
        limits.extend(amounts(limit.get("default")));
    }
    if requests.is_empty() && limits.is_empty() {
        return;
    }
    let mut notes = Vec::new();
    for (field, called) in [
        ("containers", "container"),
        ("initContainers", "init container"),
    ] {
        let containers = pod["spec"].get_mut(field).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = text(container, "/name").to_owned();
            for (list, defaults, word) in [
                ("requests", &requests, "request"),
                ("limits", &limits, "limit"),
            ] {
                let set = fill(container, list, defaults);
                if !set.is_empty() {
                    notes.push(format!("{} {word} for {called} {name}", set.join(", ")));
                }
            }
        }
    }
    if notes.is_empty() {
        return;
    }
    if !pod["metadata"]["annotations"].is_object() {
        pod["metadata"]["annotations"] = json!({});
    }
    pod["metadata"]["annotations"][NOTE] =
        format!("LimitRanger plugin set: {}", notes.join("; ")).into();
}

/// Puts what is not there; answers its names.
fn fill<'a>(container: &mut Value, list: &str, defaults: &'a Amounts) -> Vec<&'a str> {
    let mut set = Vec::new();
    for (name, amount) in defaults {
        let given = container
            .get("resources")
            .and_then(|all| all.get(list))
            .and_then(|all| all.get(name));
        if given.is_none_or(Value::is_null) {
            if !container["resources"][list].is_object() {
                container["resources"][list] = json!({});
            }
            container["resources"][list][name] = amount.to_string().into();
            set.push(name.as_str());
        }
    }
    set
}

/// What the LimitRanges say against an object, in Kubernetes' words.
#[must_use]
pub fn check(ranges: &[Value], resource: Resource<'_>, object: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let core = resource.group.is_empty();
    for range in ranges {
        let faults_before = faults.len();
        for limit in items(range, "/spec/limits") {
            match (text(limit, "/type"), resource.plural) {
                ("Container", "pods") if core => {
                    for container in pods::containers(object) {
                        let of = |side| pods::own(container, side);
                        bound(limit, &of(Side::Requests), &of(Side::Limits), &mut faults);
                    }
                }
                ("Pod", "pods") if core => {
                    let of = |side| pods::whole(object, side);
                    bound(limit, &of(Side::Requests), &of(Side::Limits), &mut faults);
                }
                ("PersistentVolumeClaim", "persistentvolumeclaims") if core => {
                    let requests = amounts(object.pointer("/spec/resources/requests"));
                    for (name, least) in amounts(limit.get("min")) {
                        faults.extend(too_little(limit, &name, least, &requests, &Amounts::new()));
                    }
                    for (name, most) in amounts(limit.get("max")) {
                        let (of, request) =
                            (subject("maximum", &name, limit, most), requests.get(&name));
                        match request {
                            None => faults.push(format!("{of}.  No request is specified")),
                            Some(request) if *request > most => {
                                faults.push(format!("{of}, but request is {request}"))
                            }
                            Some(_) => {}
                        }
                    }
                }
                _ => {}
            }
        }
        // The first range that says anything speaks for all.
        if faults.len() > faults_before {
            break;
        }
    }
    faults
}

fn bound(limit: &Value, requests: &Amounts, limits: &Amounts, faults: &mut Vec<String>) {
    for (name, least) in amounts(limit.get("min")) {
        faults.extend(too_little(limit, &name, least, requests, limits));
    }
    for (name, most) in amounts(limit.get("max")) {
        faults.extend(too_much(limit, &name, most, requests, limits));
    }
    for (name, ratio) in amounts(limit.get("maxLimitRequestRatio")) {
        faults.extend(too_far_apart(limit, &name, ratio, requests, limits));
    }
}

fn subject(bound: &str, name: &str, limit: &Value, amount: Quantity) -> String {
    format!(
        "{bound} {name} usage per {} is {amount}",
        text(limit, "/type")
    )
}

fn too_little(
    limit: &Value,
    name: &str,
    least: Quantity,
    requests: &Amounts,
    limits: &Amounts,
) -> Option<String> {
    let of = subject("minimum", name, limit, least);
    let Some(request) = requests.get(name) else {
        return Some(format!("{of}.  No request is specified"));
    };
    if *request < least {
        return Some(format!("{of}, but request is {request}"));
    }
    let limited = limits.get(name).filter(|given| **given < least);
    limited.map(|given| format!("{of}, but limit is {given}"))
}

fn too_much(
    limit: &Value,
    name: &str,
    most: Quantity,
    requests: &Amounts,
    limits: &Amounts,
) -> Option<String> {
    let of = subject("maximum", name, limit, most);
    let Some(given) = limits.get(name) else {
        return Some(format!("{of}.  No limit is specified"));
    };
    if *given > most {
        return Some(format!("{of}, but limit is {given}"));
    }
    let request = requests.get(name).filter(|request| **request > most);
    request.map(|request| format!("{of}, but request is {request}"))
}

fn too_far_apart(
    limit: &Value,
    name: &str,
    ratio: Quantity,
    requests: &Amounts,
    limits: &Amounts,
) -> Option<String> {
    let of = format!(
        "{name} max limit to request ratio per {} is {ratio}, but",
        text(limit, "/type")
    );
    let Some(request) = requests.get(name).filter(|request| !request.is_zero()) else {
        return Some(format!("{of} no request is specified or request is 0"));
    };
    let Some(given) = limits.get(name).filter(|given| !given.is_zero()) else {
        return Some(format!("{of} no limit is specified or limit is 0"));
    };
    let is = given.as_f64() / request.as_f64();
    (is > ratio.as_f64()).then(|| format!("{of} provided ratio is {is:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: Resource<'static> = Resource {
        group: "",
        plural: "pods",
    };

    fn range(limit: Value) -> Vec<Value> {
        vec![json!({"spec": {"limits": [limit]}})]
    }

    #[test]
    fn containers_get_what_they_do_not_say_and_a_note_of_it() {
        let ranges = range(
            json!({"type": "Container", "default": {"cpu": "500m", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}}),
        );
        let mut pod = json!({"metadata": {}, "spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "1"}}}]}});
        default(&ranges, &mut pod);
        let containers = &pod["spec"]["containers"];
        assert_eq!(
            containers[0]["resources"],
            json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m", "memory": "1Gi"}})
        );
        assert_eq!(
            containers[1]["resources"]["limits"],
            json!({"cpu": "1", "memory": "1Gi"})
        );
        assert_eq!(
            pod["metadata"]["annotations"][NOTE],
            "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; cpu request for container b; memory limit for container b"
        );
        let same = pod.clone();
        default(&ranges, &mut pod);
        assert_eq!(pod, same);
    }

    #[test]
    fn what_is_out_of_bounds_is_said_in_kubernetes_words() {
        let limit = json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "2"}});
        let faults = |resources: Value| {
            let pod = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
            check(&range(limit.clone()), PODS, &pod)
        };
        assert!(faults(json!({"requests": {"cpu": "250m"}, "limits": {"cpu": "500m"}})).is_empty());
        assert_eq!(
            faults(json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "2"}})),
            [
                "minimum cpu usage per Container is 100m, but request is 50m",
                "maximum cpu usage per Container is 1, but limit is 2",
                "cpu max limit to request ratio per Container is 2, but provided ratio is 40.000000",
            ]
        );
        assert_eq!(
            faults(json!({}))[1],
            "maximum cpu usage per Container is 1.  No limit is specified"
        );
        let claim = json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}});
        let limit = json!({"type": "PersistentVolumeClaim", "max": {"storage": "2Gi"}});
        let claims = Resource {
            group: "",
            plural: "persistentvolumeclaims",
        };
        assert_eq!(
            check(&range(limit), claims, &claim),
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]
        );
    }
}
