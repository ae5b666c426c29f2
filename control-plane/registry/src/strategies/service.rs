//! Services: defaults, and the ClusterIPs and node ports that they take.
//!
//! Follows `pkg/registry/core/service` of Kubernetes: `strategy.go`, `storage/alloc.go`.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::service_validate::{validate, validate_update};
use super::{Plan, Strategy, Taking};
use crate::allocate::{self, Claims, Family};
use crate::errors::FieldError;
use crate::json::{Json, same};
use crate::validate;

pub const SERVICE: Strategy = Strategy {
    name: validate::label,
    default,
    prepare_create: |service| service.put("/status", json!({"loadBalancer": {}})),
    prepare_update,
    validate,
    validate_update,
    claim: Some(claim),
    returns_deleted: true,
    ..Strategy::PLAIN
};

fn default(service: &mut Value) {
    service.put_default("/spec/type", "ClusterIP");
    service.put_default("/spec/sessionAffinity", "None");
    if service.text("/spec/sessionAffinity") == "ClientIP" {
        service.put_default("/spec/sessionAffinityConfig/clientIP/timeoutSeconds", 10800);
    } else {
        service.take_at("/spec/sessionAffinityConfig");
    }
    let external_name = service.text("/spec/type") == "ExternalName";
    if !external_name {
        service.put_default("/spec/internalTrafficPolicy", "Cluster");
    }
    if has_node_ports(service) || !service.items("/spec/externalIPs").is_empty() {
        service.put_default("/spec/externalTrafficPolicy", "Cluster");
    }
    if service.text("/spec/type") == "LoadBalancer" {
        service.put_default("/spec/allocateLoadBalancerNodePorts", true);
    }
    for port in service.items_mut("/spec/ports").into_iter().flatten() {
        port.put_default("/protocol", "TCP");
        let target = &port["targetPort"];
        if target.is_null() || target == 0 || target == "" {
            port["targetPort"] = port["port"].clone();
        }
    }
    // clusterIP is the first of clusterIPs; users mostly write only the former.
    let first = service.text("/spec/clusterIP").to_owned();
    if service.items("/spec/clusterIPs").is_empty() && !first.is_empty() {
        service.put("/spec/clusterIPs", json!([first]));
    } else if first.is_empty()
        && let Some(first) = service.pointer("/spec/clusterIPs/0").cloned()
    {
        service.put("/spec/clusterIP", first);
    }
}

/// Whether Services of this type have node ports.
pub(super) fn has_node_ports(service: &Value) -> bool {
    match service.text("/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => {
            service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&json!(false))
        }
        _ => false,
    }
}

/// Whether load balancers ask on a port of its own which nodes have endpoints
/// (<https://kubernetes.io/docs/reference/networking/virtual-ips/#external-traffic-policy>).
pub(super) fn has_health_check(service: &Value) -> bool {
    service.text("/spec/type") == "LoadBalancer"
        && service.text("/spec/externalTrafficPolicy") == "Local"
}

pub(super) fn is_headless(service: &Value) -> bool {
    service.text("/spec/clusterIP") == "None"
}

fn has_cluster_ip(service: &Value) -> bool {
    service.text("/spec/type") != "ExternalName"
}

/// What was allocated stays although the client leaves it out; what belongs to the old type goes.
fn prepare_update(new: &mut Value, old: &Value) {
    if has_cluster_ip(old) && has_cluster_ip(new) {
        if new.text("/spec/clusterIP").is_empty() {
            for field in ["/spec/clusterIP", "/spec/clusterIPs"] {
                keep(new, old, field);
            }
        } else if new.text("/spec/clusterIP") == old.text("/spec/clusterIP")
            && new.items("/spec/clusterIPs").len() < 2
            && new.text("/spec/ipFamilyPolicy") != "SingleStack"
        {
            keep(new, old, "/spec/clusterIPs");
        }
        for field in ["/spec/ipFamilies", "/spec/ipFamilyPolicy"] {
            if !new.has(field) {
                keep(new, old, field);
            }
        }
        let shrinks = new.text("/spec/ipFamilyPolicy") == "SingleStack"
            && old.text("/spec/ipFamilyPolicy") != "SingleStack";
        for field in ["/spec/clusterIPs", "/spec/ipFamilies"] {
            if let (true, Some(items)) = (shrinks, new.items_mut(field)) {
                items.truncate(1);
            }
        }
    }
    let old_ports = old.items("/spec/ports");
    if has_node_ports(new) && has_node_ports(old) {
        for port in new.items_mut("/spec/ports").into_iter().flatten() {
            let same_name = |p: &&Value| p.text("/name") == port.text("/name");
            if let Some(before) = old_ports.iter().find(same_name)
                && port.integer("/nodePort").unwrap_or(0) == 0
                && before.has("/nodePort")
            {
                port["nodePort"] = before["nodePort"].clone();
            }
        }
    } else if has_node_ports(old) && same_node_ports(new, old) {
        for port in new.items_mut("/spec/ports").into_iter().flatten() {
            port.take_at("/nodePort");
        }
        let policy = "/spec/externalTrafficPolicy";
        if new.text(policy) == old.text(policy) && new.items("/spec/externalIPs").is_empty() {
            new.take_at(policy);
        }
    }
    let health = "/spec/healthCheckNodePort";
    if has_health_check(old) && new.integer(health).unwrap_or(0) == 0 {
        keep(new, old, health);
    }
    if !has_health_check(new) && new.pointer(health) == old.pointer(health) {
        new.take_at(health);
    }
    let lb = |service: &Value| service.text("/spec/type") == "LoadBalancer";
    let node_ports = "/spec/allocateLoadBalancerNodePorts";
    if lb(old) && !lb(new) && new.pointer(node_ports) == old.pointer(node_ports) {
        new.take_at(node_ports);
    }
    if has_cluster_ip(old)
        && !has_cluster_ip(new)
        && same(&new["spec"]["clusterIPs"], &old["spec"]["clusterIPs"])
    {
        for field in [
            "clusterIP",
            "clusterIPs",
            "internalTrafficPolicy",
            "ipFamilies",
            "ipFamilyPolicy",
        ] {
            new.take_at(&format!("/spec/{field}"));
        }
    }
}

fn keep(new: &mut Value, old: &Value, pointer: &str) {
    if let Some(value) = old.pointer(pointer) {
        new.put(pointer, value.clone());
    }
}

fn same_node_ports(new: &Value, old: &Value) -> bool {
    let ports = |service: &Value| {
        let mut ports: Vec<i64> = service
            .items("/spec/ports")
            .iter()
            .filter_map(|p| p.integer("/nodePort"))
            .collect();
        ports.sort_unstable();
        ports
    };
    ports(new) == ports(old)
}

/// What the Service takes and gives back; fills in addresses, families and node ports.
fn claim(
    claims: &Claims,
    old: Option<&Value>,
    new: Option<&mut Value>,
) -> Result<Plan, Vec<FieldError>> {
    let before = old.map(held).unwrap_or_default();
    let Some(new) = new else {
        return Ok(Plan {
            give_back: before,
            ..Plan::default()
        });
    };
    let mut wanted: Vec<(String, Option<FieldError>)> = Vec::new();
    if has_cluster_ip(new) {
        let families = families(claims, new)?;
        if is_headless(new) {
            new.put("/spec/clusterIPs", json!(["None"]));
        } else {
            cluster_ips(claims, new, &families, &mut wanted)?;
        }
    } else {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            new.take_at(&format!("/spec/{field}"));
        }
    }
    if has_node_ports(new) {
        node_ports(claims, new, &mut wanted)?;
    }
    if has_health_check(new) {
        let asked = new.integer("/spec/healthCheckNodePort").unwrap_or(0);
        let number = node_port(claims, "spec.healthCheckNodePort", asked, &mut wanted)?;
        new.put("/spec/healthCheckNodePort", number);
    }
    let give_back = before
        .iter()
        .filter(|key| wanted.iter().all(|(k, _)| k != *key))
        .cloned()
        .collect();
    let take = wanted
        .into_iter()
        .filter(|(key, _)| !before.contains(key))
        .map(|(key, refusal)| {
            let name = key.rsplit('/').next().unwrap_or(&key);
            let value = allocate::holder(name, new);
            Taking {
                key,
                value,
                refusal,
            }
        })
        .collect();
    Ok(Plan { take, give_back })
}

/// The keys that a stored Service has taken.
fn held(service: &Value) -> Vec<String> {
    let mut keys: Vec<String> = service
        .items("/spec/clusterIPs")
        .iter()
        .filter_map(|ip| ip.as_str()?.parse().ok())
        .map(allocate::ip_key)
        .collect();
    let ports = service.items("/spec/ports").iter();
    let ports = ports
        .filter_map(|port| port.integer("/nodePort"))
        .chain(service.integer("/spec/healthCheckNodePort"));
    for port in ports.filter_map(|port| u16::try_from(port).ok()) {
        let key = allocate::port_key(port);
        if port != 0 && !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// Decides `ipFamilies` and `ipFamilyPolicy`
/// (<https://kubernetes.io/docs/concepts/services-networking/dual-stack/#services>).
fn families(claims: &Claims, service: &mut Value) -> Result<Vec<Family>, Vec<FieldError>> {
    let configured = claims.families();
    let mut families = Vec::new();
    for (at, word) in service.items("/spec/ipFamilies").iter().enumerate() {
        let word = word.as_str().unwrap_or_default();
        match Family::parse(word) {
            Some(family) if configured.contains(&family) => families.push(family),
            _ => {
                return Err(vec![FieldError::invalid(
                    format!("spec.ipFamilies[{at}]"),
                    word,
                    "not configured on this cluster",
                )]);
            }
        }
    }
    let ips = service.items("/spec/clusterIPs").iter();
    for ip in ips.filter_map(|ip| ip.as_str()?.parse::<IpAddr>().ok()) {
        if !families.contains(&Family::of(ip)) {
            families.push(Family::of(ip));
        }
    }
    let both = families.len() > 1;
    let no_selector = service
        .object("/spec/selector")
        .is_none_or(|s| s.is_empty());
    if !service.has("/spec/ipFamilyPolicy") {
        let dual = both || (is_headless(service) && no_selector && families.is_empty());
        let policy = if dual && configured.len() > 1 {
            "RequireDualStack"
        } else {
            "SingleStack"
        };
        service.put("/spec/ipFamilyPolicy", policy);
    }
    let policy = service.text("/spec/ipFamilyPolicy").to_owned();
    if policy == "RequireDualStack" && configured.len() < 2 {
        return Err(vec![FieldError::invalid(
            "spec.ipFamilyPolicy",
            policy,
            "this cluster is not configured for dual-stack services",
        )]);
    }
    if policy == "SingleStack" && both {
        return Err(vec![FieldError::invalid(
            "spec.ipFamilyPolicy",
            policy,
            "may be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
        )]);
    }
    for family in configured {
        if families.is_empty() || (policy != "SingleStack" && !families.contains(&family)) {
            families.push(family);
        }
    }
    let words: Vec<&str> = families.iter().map(|f| f.word()).collect();
    service.put("/spec/ipFamilies", json!(words));
    Ok(families)
}

fn cluster_ips(
    claims: &Claims,
    service: &mut Value,
    families: &[Family],
    wanted: &mut Vec<(String, Option<FieldError>)>,
) -> Result<(), Vec<FieldError>> {
    let asked: Vec<IpAddr> = service
        .items("/spec/clusterIPs")
        .iter()
        .filter_map(|ip| ip.as_str()?.parse().ok())
        .collect();
    let mut ips: Vec<String> = Vec::new();
    let refuse = |detail: String| {
        let value: Vec<String> = asked.iter().map(ToString::to_string).collect();
        FieldError::invalid("spec.clusterIPs", value, detail)
    };
    for &family in families {
        let (ip, refusal) = match asked.iter().find(|ip| Family::of(**ip) == family) {
            Some(&ip) => {
                let range = claims.service_cidr(family).filter(|c| c.contains(ip));
                if range.is_none() {
                    return Err(vec![refuse(format!(
                        "failed to allocate IP {ip}: the provided network does not match the current range"
                    ))]);
                }
                let taken = format!("failed to allocate IP {ip}: provided IP is already allocated");
                (ip, Some(refuse(taken)))
            }
            None => match claims.free_ip(family) {
                Some(ip) => (ip, None),
                None => {
                    let why = format!(
                        "failed to allocate a {} address: range is full",
                        family.word()
                    );
                    return Err(vec![refuse(why)]);
                }
            },
        };
        wanted.push((allocate::ip_key(ip), refusal));
        ips.push(ip.to_string());
    }
    service.put("/spec/clusterIP", ips.first().cloned().unwrap_or_default());
    service.put("/spec/clusterIPs", ips);
    Ok(())
}

fn node_ports(
    claims: &Claims,
    service: &mut Value,
    wanted: &mut Vec<(String, Option<FieldError>)>,
) -> Result<(), Vec<FieldError>> {
    // The same number for two protocols of one Service is one allocation.
    let ports = service.items_mut("/spec/ports").into_iter().flatten();
    for (at, port) in ports.enumerate() {
        let field = format!("spec.ports[{at}].nodePort");
        let asked = port.integer("/nodePort").unwrap_or(0);
        port["nodePort"] = node_port(claims, &field, asked, wanted)?.into();
    }
    Ok(())
}

/// The port that is asked for, or with 0 a free one.
fn node_port(
    claims: &Claims,
    field: &str,
    asked: i64,
    wanted: &mut Vec<(String, Option<FieldError>)>,
) -> Result<u16, Vec<FieldError>> {
    let range = claims.node_ports();
    let (number, refusal) = if asked == 0 {
        // It must not be another one of this same Service.
        let free = claims.free_port(|port| {
            let key = allocate::port_key(port);
            wanted.iter().all(|(known, _)| *known != key)
        });
        let Some(number) = free else {
            let why = "failed to allocate a nodePort: range is full";
            return Err(vec![FieldError::invalid(field, 0, why)]);
        };
        (number, None)
    } else {
        match u16::try_from(asked).ok().filter(|p| range.contains(p)) {
            Some(number) => {
                let taken = FieldError::invalid(field, asked, "provided port is already allocated");
                (number, Some(taken))
            }
            None => {
                let why = format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    range.start(),
                    range.end()
                );
                return Err(vec![FieldError::invalid(field, asked, why)]);
            }
        }
    };
    let key = allocate::port_key(number);
    if wanted.iter().all(|(k, _)| *k != key) {
        wanted.push((key, refusal));
    }
    Ok(number)
}
