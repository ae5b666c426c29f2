//! NetworkPolicies. Follows `ValidateNetworkPolicySpec` of Kubernetes.

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::{Strategy, defaults};
use crate::errors::FieldError;
use crate::json::Json;
use crate::labels;
use crate::validate::{self, one_of};

pub const NETWORK_POLICY: Strategy = Strategy {
    default: |policy| {
        policy.put_default("/spec/podSelector", json!({}));
        for direction in ["/spec/ingress", "/spec/egress"] {
            for rule in policy.items_mut(direction).into_iter().flatten() {
                for port in rule.items_mut("/ports").into_iter().flatten() {
                    port.put_default("/protocol", "TCP");
                }
            }
        }
        let mut types = vec!["Ingress"];
        if !policy.items("/spec/egress").is_empty() {
            types.push("Egress");
        }
        defaults(policy, [("/spec/policyTypes", json!(types))]);
    },
    validate: |policy, errors| {
        labels::validate(&policy["spec"]["podSelector"], "spec.podSelector", errors);
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            let rules = policy.items(&format!("/spec/{direction}"));
            for (at, rule) in rules.iter().enumerate() {
                let path = format!("spec.{direction}[{at}]");
                for (at, port) in rule.items("/ports").iter().enumerate() {
                    validate_port(port, &format!("{path}.ports[{at}]"), errors);
                }
                for (at, peer) in rule.items(&format!("/{peers}")).iter().enumerate() {
                    validate_peer(peer, &format!("{path}.{peers}[{at}]"), errors);
                }
            }
        }
        for (at, kind) in policy.items("/spec/policyTypes").iter().enumerate() {
            let path = format!("spec.policyTypes[{at}]");
            one_of(kind, "", path, &["Egress", "Ingress"], errors);
        }
    },
    generation: true,
    ..Strategy::PLAIN
};

fn validate_port(port: &Value, path: &str, errors: &mut Vec<FieldError>) {
    validate::transport_protocol(port, path, errors);
    let given = &port["port"];
    let why = match given {
        Value::Number(number) => validate::port(number.as_i64().unwrap_or(0)),
        Value::String(name) => validate::port_name(name),
        _ => None,
    };
    if let Some(why) = why {
        errors.push(FieldError::invalid(
            format!("{path}.port"),
            given.clone(),
            why,
        ));
    }
    let Some(end) = port.integer("/endPort") else {
        return;
    };
    let why = match given.as_i64() {
        _ if given.is_null() => {
            let why = "must be specified when `endPort` is specified";
            errors.push(FieldError::required(format!("{path}.port"), why));
            return;
        }
        None => Some("may not be specified when `port` is non-numeric".to_owned()),
        Some(begin) if end < begin => Some("must be greater than or equal to `port`".to_owned()),
        Some(_) => validate::port(end),
    };
    if let Some(why) = why {
        errors.push(FieldError::invalid(format!("{path}.endPort"), end, why));
    }
}

fn validate_peer(peer: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let selectors = ["podSelector", "namespaceSelector"];
    for field in selectors {
        if let Some(selector) = peer.get(field) {
            labels::validate(selector, &format!("{path}.{field}"), errors);
        }
    }
    let selected = selectors.iter().any(|field| peer.has(&format!("/{field}")));
    match (selected, peer.has("/ipBlock")) {
        (false, false) => errors.push(FieldError::required(path, "must specify a peer")),
        (true, true) => {
            let why = "may not specify both ipBlock and another peer";
            errors.push(FieldError::forbidden(path, why));
        }
        (_, true) => validate_block(&peer["ipBlock"], &format!("{path}.ipBlock"), errors),
        (true, false) => {}
    }
}

fn validate_block(block: &Value, path: &str, errors: &mut Vec<FieldError>) {
    const NO_RANGE: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let range = |text: &str| {
        text.parse::<IpNetwork>()
            .ok()
            .filter(|_| text.contains('/'))
    };
    let text = block.text("/cidr");
    if text.is_empty() {
        errors.push(FieldError::required(format!("{path}.cidr"), ""));
        return;
    }
    let Some(outer) = range(text) else {
        errors.push(FieldError::invalid(format!("{path}.cidr"), text, NO_RANGE));
        return;
    };
    for (at, except) in block.items("/except").iter().enumerate() {
        let why = match range(except.as_str().unwrap_or_default()) {
            None => NO_RANGE,
            Some(inner) if !outer.contains(inner.ip()) || outer.prefix() >= inner.prefix() => {
                "must be a strict subset of `cidr`"
            }
            Some(_) => continue,
        };
        errors.push(FieldError::invalid(
            format!("{path}.except[{at}]"),
            except.clone(),
            why,
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_packet_could_match_is_refused() {
        let faults = |rule: Value| {
            let policy = json!({"spec": {"podSelector": {}, "ingress": [rule]}});
            let mut errors = Vec::new();
            (NETWORK_POLICY.validate)(&policy, &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            faults(json!({"ports": [{"port": 99999}, {"port": "No_Name"}, {"port": 80, "endPort": 79}, {"endPort": 5}, {"protocol": "ICMP"}]}))
                .iter().map(|fault| fault.split(": ").next().unwrap_or_default()).collect::<Vec<_>>(),
            [
                "spec.ingress[0].ports[0].port",
                "spec.ingress[0].ports[1].port",
                "spec.ingress[0].ports[2].endPort",
                "spec.ingress[0].ports[3].port",
                "spec.ingress[0].ports[4].protocol",
            ]
        );
        let block = |cidr: &str, except: &str| json!({"from": [{"ipBlock": {"cidr": cidr, "except": [except]}}]});
        assert_eq!(faults(block("10.0.0.0/8", "10.1.0.0/16")), [""; 0]);
        assert_eq!(
            faults(block("10.0.0.0/8", "11.0.0.0/16")),
            [
                "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`"
            ]
        );
        assert_eq!(
            faults(json!({"from": [{}]})),
            ["spec.ingress[0].from[0]: Required value: must specify a peer"]
        );
    }
}
