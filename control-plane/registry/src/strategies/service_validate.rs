//! What a Service may say. Follows `ValidateService` in `pkg/apis/core/validation` of Kubernetes.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::Value;

use super::service::{has_health_check, has_node_ports, is_headless};
use crate::errors::FieldError;
use crate::json::Json;
use crate::validate::{self, one_of};

pub(super) fn validate(service: &Value, errors: &mut Vec<FieldError>) {
    let kind = service.text("/spec/type");
    let mut known = |field: &str, words: &[&str]| {
        one_of(
            service,
            &format!("/spec/{field}"),
            format!("spec.{field}"),
            words,
            errors,
        );
    };
    known(
        "type",
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
    );
    known("sessionAffinity", &["ClientIP", "None"]);
    known("internalTrafficPolicy", &["Cluster", "Local"]);
    known("externalTrafficPolicy", &["Cluster", "Local"]);
    known(
        "ipFamilyPolicy",
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
    );
    known(
        "trafficDistribution",
        &["PreferClose", "PreferSameNode", "PreferSameZone"],
    );
    let ports = service.items("/spec/ports");
    if ports.is_empty() && !is_headless(service) && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    validate_ports(service, errors);
    validate_addresses(service, errors);
    validate::labels(service, "/spec/selector", "spec.selector", errors);
    if kind == "ExternalName" {
        let name = service.text("/spec/externalName").trim_end_matches('.');
        if name.is_empty() {
            errors.push(FieldError::required("spec.externalName", ""));
        } else if let Some(why) = validate::subdomain(name) {
            errors.push(FieldError::invalid("spec.externalName", name, why));
        }
    }
    if matches!(kind, "NodePort" | "LoadBalancer") && is_headless(service) {
        errors.push(FieldError::invalid(
            "spec.clusterIPs[0]",
            "None",
            format!("may not be set to 'None' for {kind} services"),
        ));
    }
    if kind == "ClusterIP"
        && service.has("/spec/externalTrafficPolicy")
        && service.items("/spec/externalIPs").is_empty()
    {
        errors.push(FieldError::invalid(
            "spec.externalTrafficPolicy",
            service.text("/spec/externalTrafficPolicy"),
            "may only be set for externally-accessible services",
        ));
    }
    let health = service.integer("/spec/healthCheckNodePort").unwrap_or(0);
    if health != 0 && !has_health_check(service) {
        errors.push(FieldError::invalid(
            "spec.healthCheckNodePort",
            health,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ));
    }
    let timeout = "/spec/sessionAffinityConfig/clientIP/timeoutSeconds";
    if let Some(seconds) = service.integer(timeout)
        && !(1..=86400).contains(&seconds)
    {
        errors.push(FieldError::invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            seconds,
            "must be greater than 0 and less than 86400",
        ));
    }
}

fn validate_ports(service: &Value, errors: &mut Vec<FieldError>) {
    let ports = service.items("/spec/ports");
    let mut names = HashSet::new();
    let mut pairs = HashSet::new();
    let mut node_ports = HashSet::new();
    for (at, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{at}]");
        let name = port.text("/name");
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            }
        } else if let Some(why) = validate::label(name) {
            errors.push(FieldError::invalid(format!("{path}.name"), name, why));
        } else if !names.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        let number = port.integer("/port").unwrap_or(0);
        if let Some(why) = validate::port(number) {
            errors.push(FieldError::invalid(format!("{path}.port"), number, why));
        }
        validate::transport_protocol(port, &path, errors);
        if !pairs.insert((port.text("/protocol"), number)) {
            let mut shown = serde_json::json!({"port": number, "protocol": port["protocol"]});
            if let Some(node_port) = port.get("nodePort") {
                shown["nodePort"] = node_port.clone();
            }
            errors.push(FieldError::duplicate(path.clone(), shown));
        }
        target(port, &path, errors);
        let node_port = port.integer("/nodePort").unwrap_or(0);
        if node_port == 0 {
            continue;
        }
        let path = format!("{path}.nodePort");
        if !has_node_ports(service) {
            let kind = service.text("/spec/type");
            if kind != "LoadBalancer" {
                let why = format!("may not be used when `type` is '{kind}'");
                errors.push(FieldError::forbidden(path, why));
            }
        } else if !node_ports.insert((port.text("/protocol"), node_port)) {
            errors.push(FieldError::duplicate(path, node_port));
        }
    }
}

fn target(port: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let target = &port["targetPort"];
    let why = match (target.as_i64(), target.as_str()) {
        (Some(number), _) => validate::port(number),
        (_, Some(name)) => validate::port_name(name),
        _ => None,
    };
    if let Some(why) = why {
        errors.push(FieldError::invalid(
            format!("{path}.targetPort"),
            target.clone(),
            why,
        ));
    }
}

fn validate_addresses(service: &Value, errors: &mut Vec<FieldError>) {
    let ips = service.items("/spec/clusterIPs");
    if ips.len() > 2 {
        errors.push(FieldError::too_many("spec.clusterIPs", ips.len(), 2));
    }
    let mut families = HashSet::new();
    for (at, ip) in ips.iter().enumerate() {
        let path = format!("spec.clusterIPs[{at}]");
        let text = ip.as_str().unwrap_or_default();
        if text == "None" && ips.len() == 1 {
            continue;
        }
        match validate::ip(text) {
            Ok(ip) if families.insert(ip.is_ipv4()) => {}
            Ok(_) => errors.push(FieldError::invalid(
                path,
                text,
                "may specify no more than one IP for each IP family",
            )),
            Err(why) => errors.push(FieldError::invalid(path, text, why)),
        }
    }
    if let Some(first) = ips.first()
        && first != &service["spec"]["clusterIP"]
    {
        errors.push(FieldError::invalid(
            "spec.clusterIP",
            service.text("/spec/clusterIP"),
            "first value of `clusterIPs` must be equal to clusterIP",
        ));
    }
    for (at, ip) in service.items("/spec/externalIPs").iter().enumerate() {
        let text = ip.as_str().unwrap_or_default();
        let why = match validate::ip(text) {
            Err(why) => Some(why),
            Ok(ip) => unusable(ip).map(Into::into),
        };
        if let Some(why) = why {
            errors.push(FieldError::invalid(
                format!("spec.externalIPs[{at}]"),
                text,
                why,
            ));
        }
    }
}

fn unusable(ip: IpAddr) -> Option<&'static str> {
    if ip.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if ip.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if ip.is_multicast() {
        Some("may not be in the multicast range (224.0.0.0/4, ff00::/8)")
    } else {
        None
    }
}

pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let external = |s: &Value| s.text("/spec/type") == "ExternalName";
    if external(old) || external(new) {
        return;
    }
    let old_ip = old.text("/spec/clusterIP");
    if !old_ip.is_empty() && new.text("/spec/clusterIP") != old_ip {
        errors.push(FieldError::invalid(
            "spec.clusterIPs[0]",
            new["spec"]["clusterIPs"].clone(),
            "may not change once set",
        ));
    }
    let health = |s: &Value| s.integer("/spec/healthCheckNodePort").unwrap_or(0);
    if has_health_check(old) && has_health_check(new) && health(old) != health(new) {
        errors.push(FieldError::invalid(
            "spec.healthCheckNodePort",
            health(new),
            "field is immutable",
        ));
    }
    let first = |s: &Value| s.pointer("/spec/ipFamilies/0").cloned();
    if let (Some(before), Some(now)) = (first(old), first(new))
        && before != now
    {
        errors.push(FieldError::invalid(
            "spec.ipFamilies[0]",
            now,
            "may not change once set",
        ));
    }
}
