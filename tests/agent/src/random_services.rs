//! Services with all that decides between whom they are balanced, at random but the same in each run, and the endpoints of
//! three nodes behind them.

use std::net::IpAddr;

use anyhow::Result;
use http::Method;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::Api;
use crate::web_service::{SERVICES, SLICES};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const ZONES: [&str; 3] = ["east", "west", "north"];
/// The ports that a Service may have.
const PORTS: [(&str, &str, u16); 4] = [
    ("web", "TCP", 80),
    ("tls", "TCP", 443),
    ("dns", "UDP", 53),
    ("signal", "SCTP", 90),
];

/// Makes the nodes `n1`, `n2` and `n3`, the first two in zones of their own; `addresses` are those of `n1`.
///
/// # Errors
///
/// When the server refuses one.
pub fn add_nodes(api: &Api, addresses: [IpAddr; 2]) -> Result<()> {
    for (number, (name, zone)) in (1..).zip(NODES.into_iter().zip(ZONES)) {
        let cidrs = [
            format!("10.244.{number}.0/24"),
            format!("fd00:10:244:{number}::/64"),
        ];
        let labels = match name {
            "n3" => json!({"kubernetes.io/hostname": name}),
            _ => json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}),
        };
        let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}});
        api.call(Method::POST, "/api/v1/nodes", Some(node))?;
        if name == "n1" {
            let address = |ip: &IpAddr| json!({"type": "InternalIP", "address": ip});
            let addresses: Vec<Value> = addresses.iter().map(address).collect();
            let status = json!({"status": {"addresses": addresses}});
            api.call(Method::PATCH, "/api/v1/nodes/n1/status", Some(status))?;
        }
    }
    Ok(())
}

/// Makes `count` Services with their EndpointSlices.
///
/// # Errors
///
/// When the server refuses one.
pub fn add_services(api: &Api, count: u16, seed: u64) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    for number in 0..count {
        let object = service(&mut rng, number);
        let made = api.call(Method::POST, SERVICES, Some(object))?;
        let name = format!("s{number}");
        if made["spec"]["type"] == "LoadBalancer" {
            let [high, low] = number.to_be_bytes();
            let mode = *["VIP", "Proxy"].choose(&mut rng).unwrap_or(&"VIP");
            let ingress = json!([{"ip": format!("198.18.{high}.{low}"), "ipMode": mode}]);
            let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
            api.call(
                Method::PATCH,
                &format!("{SERVICES}/{name}/status"),
                Some(status),
            )?;
        }
        for family in ["IPv4", "IPv6"] {
            for part in 0..rng.random_range(0..=2) {
                let slice = slice(&mut rng, &made, family, number, part);
                api.call(Method::POST, SLICES, Some(slice))?;
            }
        }
    }
    Ok(())
}

fn service(rng: &mut SmallRng, number: u16) -> Value {
    let policy = |rng: &mut SmallRng| {
        if rng.random_bool(0.4) {
            "Local"
        } else {
            "Cluster"
        }
    };
    let some = rng.random_range(1..=3);
    let ports = PORTS.iter().choose_multiple(rng, some).into_iter();
    let ports: Vec<Value> = ports
        .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}))
        .collect();
    let kind = *["ClusterIP", "NodePort", "LoadBalancer"]
        .choose(rng)
        .unwrap_or(&"ClusterIP");
    let mut spec = json!({"type": kind, "ports": ports, "ipFamilyPolicy": "RequireDualStack",
        "internalTrafficPolicy": policy(rng)});
    let has_external = rng.random_bool(0.3);
    if has_external {
        let [high, low] = number.to_be_bytes();
        spec["externalIPs"] = json!([format!("198.19.{high}.{low}")]);
    }
    if kind != "ClusterIP" || has_external {
        spec["externalTrafficPolicy"] = policy(rng).into();
    }
    if rng.random_bool(0.2) {
        spec["sessionAffinity"] = "ClientIP".into();
    }
    json!({"metadata": {"name": format!("s{number}")}, "spec": spec})
}

fn slice(rng: &mut SmallRng, service: &Value, family: &str, number: u16, part: u16) -> Value {
    let hinted = rng.random_bool(0.6);
    let mut endpoints = Vec::new();
    for _ in 0..rng.random_range(0..=4) {
        let address = address(family, number, part, endpoints.len());
        let made = endpoint(rng, &address, hinted);
        // Its address may be that of another pod already, which does not terminate.
        if made["conditions"]["terminating"] == true && rng.random_bool(0.3) {
            let mut newer = endpoint(rng, &address, hinted);
            newer["conditions"]["terminating"] = false.into();
            endpoints.push(newer);
        }
        endpoints.push(made);
    }
    // A port that a slice lacks has no endpoint in it.
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports: Vec<Value> = ports
        .filter(|_| rng.random_bool(0.9))
        .map(
            |port| json!({"name": port["name"], "protocol": port["protocol"], "port": 8000 + part}),
        )
        .collect();
    let name = format!("s{number}");
    json!({
        "metadata": {"name": format!("{name}-{}-{part}", family.to_lowercase()),
            "labels": {"kubernetes.io/service-name": name}},
        "addressType": family, "endpoints": endpoints, "ports": ports,
    })
}

fn address(family: &str, number: u16, part: u16, index: usize) -> String {
    let ([high, low], index) = (number.to_be_bytes(), 10 * usize::from(part) + index + 1);
    match family {
        "IPv4" => format!("10.{}.{low}.{index}", 130 + u16::from(high)),
        _ => format!("fd00:10:130:{number:x}::{index:x}"),
    }
}

fn endpoint(rng: &mut SmallRng, address: &str, hinted: bool) -> Value {
    let mut endpoint = json!({"addresses": [address]});
    for condition in ["ready", "serving", "terminating"] {
        // What is left out has its default.
        if rng.random_bool(0.7) {
            endpoint["conditions"][condition] = rng.random_bool(0.5).into();
        }
    }
    if rng.random_bool(0.9) {
        endpoint["nodeName"] = json!(NODES.choose(rng));
    }
    if hinted && rng.random_bool(0.9) {
        let some = rng.random_range(0..=2);
        let named = |names: Vec<&&str>| names.iter().map(|name| json!({"name": name})).collect();
        let zones: Vec<Value> = named(ZONES.iter().choose_multiple(rng, some));
        let nodes: Vec<Value> = named(NODES.iter().choose_multiple(rng, some));
        if rng.random_bool(0.8) {
            endpoint["hints"]["forZones"] = zones.into();
        }
        if rng.random_bool(0.3) {
            endpoint["hints"]["forNodes"] = nodes.into();
        }
    }
    endpoint
}
