//! What a pod says when its author does not say it.
//!
//! Follows `pkg/apis/core/v1/defaults.go` of Kubernetes, and the admission plugins Priority, DefaultTolerationSeconds
//! and ServiceAccount for what users see.

use serde_json::{Map, Value, json};

use crate::json::Json;

pub(super) fn default(pod: &mut Value) {
    pod.put_default("/spec/enableServiceLinks", true);
    pod.put_default("/spec/priority", 0);
    pod.put_default("/spec/preemptionPolicy", "PreemptLowerPriority");
    if pod.text("/spec/serviceAccountName").is_empty()
        && pod.text("/spec/serviceAccount").is_empty()
    {
        pod.put("/spec/serviceAccountName", "default");
    }
    default_template(pod);
    for list in ["/spec/initContainers", "/spec/containers"] {
        for container in pod.items_mut(list).into_iter().flatten() {
            request_limits(container);
        }
    }
    tolerate_lost_nodes(pod);
    // The plural holds all addresses, the singular the first one.
    for (one, many) in [("podIP", "podIPs"), ("hostIP", "hostIPs")] {
        let ip = pod.text(&format!("/status/{one}")).to_owned();
        let many = format!("/status/{many}");
        if !ip.is_empty() && pod.items(&many).is_empty() {
            pod.put(&many, json!([{"ip": ip}]));
        }
    }
}

/// What a template of pods has in common with a pod.
pub(super) fn default_template(pod: &mut Value) {
    defaults_of_spec(pod);
    let host_network = pod.flag("/spec/hostNetwork");
    for list in ["/spec/initContainers", "/spec/containers"] {
        for container in pod.items_mut(list).into_iter().flatten() {
            defaults_of_container(container, host_network);
        }
    }
    for volume in pod.items_mut("/spec/volumes").into_iter().flatten() {
        defaults_of_volume(volume);
    }
}

fn defaults_of_spec(pod: &mut Value) {
    pod.put_default("/spec/restartPolicy", "Always");
    pod.put_default("/spec/dnsPolicy", "ClusterFirst");
    pod.put_default("/spec/schedulerName", "default-scheduler");
    pod.put_default("/spec/terminationGracePeriodSeconds", 30);
    pod.put_default("/spec/securityContext", json!({}));
    // Two names for the same.
    let account = match pod.text("/spec/serviceAccountName") {
        "" => pod.text("/spec/serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !account.is_empty() {
        pod.put("/spec/serviceAccountName", account.as_str());
        pod.put("/spec/serviceAccount", account.as_str());
    }
}

fn defaults_of_container(container: &mut Value, host_network: bool) {
    container.put_default("/resources", json!({}));
    container.put_default("/terminationMessagePath", "/dev/termination-log");
    container.put_default("/terminationMessagePolicy", "File");
    let policy = pull_policy(container.text("/image"));
    container.put_default("/imagePullPolicy", policy);
    for port in container.items_mut("/ports").into_iter().flatten() {
        port.put_default("/protocol", "TCP");
        if host_network && port.integer("/hostPort").unwrap_or(0) == 0 {
            port["hostPort"] = port["containerPort"].clone();
        }
    }
    for variable in container.items_mut("/env").into_iter().flatten() {
        if variable.has("/valueFrom/fieldRef") {
            variable.put_default("/valueFrom/fieldRef/apiVersion", "v1");
        }
    }
    for probe in ["/livenessProbe", "/readinessProbe", "/startupProbe"] {
        if let Some(probe) = container.pointer_mut(probe) {
            probe.put_default("/timeoutSeconds", 1);
            probe.put_default("/periodSeconds", 10);
            probe.put_default("/successThreshold", 1);
            probe.put_default("/failureThreshold", 3);
            defaults_of_http_get(probe);
            if probe.has("/grpc") {
                probe.put_default("/grpc/service", "");
            }
        }
    }
    for hook in ["/lifecycle/postStart", "/lifecycle/preStop"] {
        if let Some(hook) = container.pointer_mut(hook) {
            defaults_of_http_get(hook);
        }
    }
}

fn request_limits(container: &mut Value) {
    // Who limits a resource and does not request it, requests what the limit is.
    let limits = container.object("/resources/limits").cloned();
    for (name, quantity) in limits.into_iter().flatten() {
        let asked = container.object("/resources/requests");
        if asked.is_none_or(|r| !r.contains_key(&name)) {
            container["resources"]["requests"][&name] = quantity;
        }
    }
}

fn defaults_of_http_get(handler: &mut Value) {
    if handler.has("/httpGet") {
        handler.put_default("/httpGet/path", "/");
        handler.put_default("/httpGet/scheme", "HTTP");
    }
}

/// A tag that moves is pulled again, all others only when they are not there.
fn pull_policy(image: &str) -> &'static str {
    let name = image.split('@').next().unwrap_or(image);
    let last = name.rsplit('/').next().unwrap_or(name);
    let pinned = image.contains('@');
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if !pinned => "Always",
        _ => "IfNotPresent",
    }
}

fn defaults_of_volume(volume: &mut Value) {
    /// Octal 0644, in the decimal of JSON.
    const READABLE: i64 = 0o644;
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        let source = format!("/{source}");
        if volume.has(&source) {
            volume.put_default(&format!("{source}/defaultMode"), READABLE);
        }
    }
    if volume.has("/hostPath") {
        volume.put_default("/hostPath/type", "");
    }
    for item in volume.items_mut("/downwardAPI/items").into_iter().flatten() {
        if item.has("/fieldRef") {
            item.put_default("/fieldRef/apiVersion", "v1");
        }
    }
    let named_only = volume.as_object().is_some_and(|v| v.len() == 1);
    if named_only {
        volume.put("/emptyDir", json!({}));
    }
}

/// Every pod stays five minutes on a node that is not ready or not reachable, unless it says otherwise.
fn tolerate_lost_nodes(pod: &mut Value) {
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerated = pod.items("/spec/tolerations").iter().any(|t| {
            let any = t.text("/key").is_empty() && t.text("/operator") == "Exists";
            let effect = matches!(t.text("/effect"), "" | "NoExecute");
            (any || t.text("/key") == key) && effect
        });
        if tolerated {
            continue;
        }
        pod.put_default("/spec/tolerations", json!([]));
        if let Some(list) = pod.items_mut("/spec/tolerations") {
            list.push(json!({
                "key": key,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": 300,
            }));
        }
    }
}

/// The pod's quality of service: <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>.
pub(super) fn qos_class(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    let lists = ["/spec/initContainers", "/spec/containers"];
    for container in lists.iter().flat_map(|list| pod.items(list)) {
        let empty = Map::new();
        let limits = container.object("/resources/limits").unwrap_or(&empty);
        let requests = container.object("/resources/requests").unwrap_or(&empty);
        for resource in ["cpu", "memory"] {
            any |= limits.contains_key(resource) || requests.contains_key(resource);
            guaranteed &= limits
                .get(resource)
                .is_some_and(|limit| requests.get(resource) == Some(limit));
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, want) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1.2", "IfNotPresent"),
            ("nginx@sha256:0000", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), want, "{image}");
        }
    }

    #[test]
    fn defaults_are_added_once() {
        let mut pod = json!({"spec": {"containers": [{"name": "c", "image": "a:1", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1", "memory": "1Mi"}}}], "volumes": [{"name": "v"}]}});
        default(&mut pod);
        let once = pod.clone();
        default(&mut pod);
        assert_eq!(pod, once);
        assert_eq!(pod["spec"]["containers"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(pod["spec"]["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(pod.items("/spec/tolerations").len(), 2);
        assert_eq!(qos_class(&pod), "Guaranteed");
    }
}
