//! What a pod may say. Follows `ValidatePodSpec` in `pkg/apis/core/validation` of Kubernetes for the fields that this
//! system acts on.

use std::collections::HashSet;

use serde_json::Value;

use crate::errors::FieldError;
use crate::json::Json;
use crate::validate::{self, one_of};

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

pub(super) fn validate(pod: &Value, errors: &mut Vec<FieldError>) {
    let volumes = validate_volumes(pod, errors);
    if pod.items("/spec/containers").is_empty() {
        errors.push(FieldError::required("spec.containers", ""));
    }
    let mut names = HashSet::new();
    for list in ["containers", "initContainers"] {
        let containers = pod.items(&format!("/spec/{list}"));
        for (at, container) in containers.iter().enumerate() {
            let path = format!("spec.{list}[{at}]");
            if let Some(name) = validate_name(container, &path, errors)
                && !names.insert(name)
            {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            validate_container(container, &path, &volumes, errors);
        }
    }
    host_ports(pod, errors);
    let mut known = |field: &str, words: &[&str]| {
        one_of(
            pod,
            &format!("/spec/{field}"),
            format!("spec.{field}"),
            words,
            errors,
        );
    };
    known("restartPolicy", &["Always", "Never", "OnFailure"]);
    known(
        "dnsPolicy",
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
    );
    known("preemptionPolicy", &["Never", "PreemptLowerPriority"]);
    if pod.text("/spec/dnsPolicy") == "None" && pod.items("/spec/dnsConfig/nameservers").is_empty()
    {
        errors.push(FieldError::required(
            "spec.dnsConfig.nameservers",
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        ));
    }
    if let Some(seconds) = pod.integer("/spec/activeDeadlineSeconds")
        && seconds < 1
    {
        errors.push(FieldError::invalid(
            "spec.activeDeadlineSeconds",
            seconds,
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    validate::labels(pod, "/spec/nodeSelector", "spec.nodeSelector", errors);
    for (field, rule) in [
        ("nodeName", validate::subdomain as fn(&str) -> _),
        ("serviceAccountName", validate::subdomain),
        ("hostname", validate::label),
        ("subdomain", validate::label),
    ] {
        let text = pod.text(&format!("/spec/{field}"));
        if let (false, Some(why)) = (text.is_empty(), rule(text)) {
            errors.push(FieldError::invalid(format!("spec.{field}"), text, why));
        }
    }
    validate_tolerations(pod, errors);
}

fn validate_name<'a>(of: &'a Value, path: &str, errors: &mut Vec<FieldError>) -> Option<&'a str> {
    let name = of.text("/name");
    let path = format!("{path}.name");
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return None;
    }
    if let Some(why) = validate::label(name) {
        errors.push(FieldError::invalid(path, name, why));
        return None;
    }
    Some(name)
}

fn validate_volumes<'a>(pod: &'a Value, errors: &mut Vec<FieldError>) -> HashSet<&'a str> {
    let mut names = HashSet::new();
    for (at, volume) in pod.items("/spec/volumes").iter().enumerate() {
        let path = format!("spec.volumes[{at}]");
        if let Some(name) = validate_name(volume, &path, errors)
            && !names.insert(name)
        {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        let sources = volume.as_object().map_or(0, |v| v.len().saturating_sub(1));
        if sources > 1 {
            errors.push(FieldError::forbidden(
                path.clone(),
                "may not specify more than 1 volume type",
            ));
        }
        for (source, field) in [
            ("hostPath", "path"),
            ("secret", "secretName"),
            ("configMap", "name"),
        ] {
            if volume.has(&format!("/{source}"))
                && volume.text(&format!("/{source}/{field}")).is_empty()
            {
                errors.push(FieldError::required(format!("{path}.{source}.{field}"), ""));
            }
        }
    }
    names
}

fn validate_container(
    container: &Value,
    path: &str,
    volumes: &HashSet<&str>,
    errors: &mut Vec<FieldError>,
) {
    let image = container.text("/image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image != image.trim() {
        errors.push(FieldError::invalid(
            format!("{path}.image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    for (field, words) in [
        (
            "imagePullPolicy",
            ["Always", "IfNotPresent", "Never"].as_slice(),
        ),
        (
            "terminationMessagePolicy",
            &["FallbackToLogsOnError", "File"],
        ),
    ] {
        one_of(
            container,
            &format!("/{field}"),
            format!("{path}.{field}"),
            words,
            errors,
        );
    }
    validate_ports(container, path, errors);
    for (at, variable) in container.items("/env").iter().enumerate() {
        let name = variable.text("/name");
        let path = format!("{path}.env[{at}].name");
        if name.is_empty() {
            errors.push(FieldError::required(path, ""));
        } else if name.contains('=') || !name.chars().all(|c| (' '..='~').contains(&c)) {
            errors.push(FieldError::invalid(
                path,
                name,
                "a valid environment variable name must consist only of printable ASCII characters other than '='",
            ));
        }
    }
    let mut mounted = HashSet::new();
    for (at, mount) in container.items("/volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{at}]");
        let (name, to) = (mount.text("/name"), mount.text("/mountPath"));
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.contains(name) {
            errors.push(FieldError::not_found(format!("{path}.name"), name));
        }
        if to.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if !mounted.insert(to) {
            errors.push(FieldError::invalid(
                format!("{path}.mountPath"),
                to,
                "must be unique",
            ));
        }
    }
    validate_probes(container, path, errors);
    validate_resources(container, path, errors);
}

fn validate_ports(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut names = HashSet::new();
    for (at, port) in container.items("/ports").iter().enumerate() {
        let path = format!("{path}.ports[{at}]");
        let name = port.text("/name");
        if !name.is_empty() {
            if let Some(why) = validate::port_name(name) {
                errors.push(FieldError::invalid(format!("{path}.name"), name, why));
            } else if !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
        let number = port.integer("/containerPort").unwrap_or(0);
        if number == 0 {
            errors.push(FieldError::required(format!("{path}.containerPort"), ""));
        } else if let Some(why) = validate::port(number) {
            errors.push(FieldError::invalid(
                format!("{path}.containerPort"),
                number,
                why,
            ));
        }
        let host = port.integer("/hostPort").unwrap_or(0);
        if let (true, Some(why)) = (host != 0, validate::port(host)) {
            errors.push(FieldError::invalid(format!("{path}.hostPort"), host, why));
        }
        one_of(
            port,
            "/protocol",
            format!("{path}.protocol"),
            &PROTOCOLS,
            errors,
        );
    }
}

/// On the host's network, and for host ports, two containers cannot have one port.
fn host_ports(pod: &Value, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (at, container) in pod.items("/spec/containers").iter().enumerate() {
        for (port_at, port) in container.items("/ports").iter().enumerate() {
            let path = format!("spec.containers[{at}].ports[{port_at}].hostPort");
            let host = port.integer("/hostPort").unwrap_or(0);
            if host == 0 {
                continue;
            }
            if pod.flag("/spec/hostNetwork") && Some(host) != port.integer("/containerPort") {
                errors.push(FieldError::invalid(
                    format!("spec.containers[{at}].ports[{port_at}].containerPort"),
                    port["containerPort"].clone(),
                    "must match `hostPort` when `hostNetwork` is true",
                ));
            }
            if !seen.insert((host, port.text("/protocol"), port.text("/hostIP"))) {
                errors.push(FieldError::duplicate(path, host));
            }
        }
    }
}

fn validate_probes(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get(name) else {
            continue;
        };
        let path = format!("{path}.{name}");
        let handlers = ["exec", "grpc", "httpGet", "tcpSocket"];
        match handlers.iter().filter(|h| probe.get(h).is_some()).count() {
            0 => errors.push(FieldError::required(
                path.clone(),
                "must specify a handler type",
            )),
            1 => {}
            _ => errors.push(FieldError::forbidden(
                path.clone(),
                "may not specify more than 1 handler type",
            )),
        }
        for field in [
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ] {
            if let Some(number) = probe.integer(&format!("/{field}"))
                && number < 0
            {
                errors.push(FieldError::invalid(
                    format!("{path}.{field}"),
                    number,
                    "must be greater than or equal to 0",
                ));
            }
        }
        if name != "readinessProbe" && probe.integer("/successThreshold").unwrap_or(1) != 1 {
            errors.push(FieldError::invalid(
                format!("{path}.successThreshold"),
                probe["successThreshold"].clone(),
                "must be 1",
            ));
        }
    }
}

fn validate_resources(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for list in ["limits", "requests"] {
        let quantities = container.object(&format!("/resources/{list}"));
        for (name, quantity) in quantities.into_iter().flatten() {
            let text = quantity.as_str().unwrap_or_default();
            let number = validate::quantity(text);
            let path = format!("{path}.resources.{list}.{name}");
            if number.is_none_or(|n| n < 0.0) {
                errors.push(FieldError::invalid(
                    path,
                    text,
                    "must be greater than or equal to 0",
                ));
            } else if list == "requests"
                && let Some(limit) = container
                    .object("/resources/limits")
                    .and_then(|l| l.get(name))
                && number > limit.as_str().and_then(validate::quantity)
            {
                let limit = limit.as_str().unwrap_or_default();
                errors.push(FieldError::invalid(
                    format!(
                        "{}.resources.requests",
                        path.split(".resources").next().unwrap_or("")
                    ),
                    text,
                    format!("must be less than or equal to {name} limit of {limit}"),
                ));
            }
        }
    }
}

fn validate_tolerations(pod: &Value, errors: &mut Vec<FieldError>) {
    for (at, toleration) in pod.items("/spec/tolerations").iter().enumerate() {
        let path = format!("spec.tolerations[{at}]");
        let key = toleration.text("/key");
        if let (false, Some(why)) = (key.is_empty(), validate::qualified_name(key)) {
            errors.push(FieldError::invalid(format!("{path}.key"), key, why));
        }
        let operator = toleration.text("/operator");
        if key.is_empty() && operator != "Exists" {
            errors.push(FieldError::invalid(
                format!("{path}.operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        one_of(
            toleration,
            "/operator",
            format!("{path}.operator"),
            &["Equal", "Exists"],
            errors,
        );
        one_of(
            toleration,
            "/effect",
            format!("{path}.effect"),
            &["NoExecute", "NoSchedule", "PreferNoSchedule"],
            errors,
        );
    }
}
