//! Nodes: the agent registers its node with a status; the pod range, once given, stays.

use std::collections::HashSet;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::Strategy;
use crate::errors::FieldError;
use crate::json::Json;
use crate::validate::{self, one_of};

pub const NODE: Strategy = Strategy {
    default: |node| {
        node.put_default("/spec", json!({}));
        // podCIDR is the first of podCIDRs.
        let one = node.text("/spec/podCIDR").to_owned();
        if node.items("/spec/podCIDRs").is_empty() && !one.is_empty() {
            node.put("/spec/podCIDRs", json!([one]));
        } else if one.is_empty()
            && let Some(first) = node.pointer("/spec/podCIDRs/0").cloned()
        {
            node.put("/spec/podCIDR", first);
        }
    },
    validate,
    validate_update,
    keeps_status: true,
    ..Strategy::PLAIN
};

fn validate(node: &Value, errors: &mut Vec<FieldError>) {
    let mut taints = HashSet::new();
    for (at, taint) in node.items("/spec/taints").iter().enumerate() {
        let path = format!("spec.taints[{at}]");
        let (key, effect) = (taint.text("/key"), taint.text("/effect"));
        if let Some(why) = validate::qualified_name(key) {
            errors.push(FieldError::invalid(format!("{path}.key"), key, why));
        }
        if let Some(why) = validate::label_value(taint.text("/value")) {
            let value = taint.text("/value");
            errors.push(FieldError::invalid(format!("{path}.value"), value, why));
        }
        if effect.is_empty() {
            errors.push(FieldError::required(format!("{path}.effect"), ""));
        }
        let effects = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
        one_of(taint, "/effect", format!("{path}.effect"), &effects, errors);
        if !taints.insert((key, effect)) {
            errors.push(FieldError::duplicate(path, taint.clone()));
        }
    }
    let cidrs = node.items("/spec/podCIDRs");
    let mut families = HashSet::new();
    for (at, cidr) in cidrs.iter().enumerate() {
        let path = format!("spec.podCIDRs[{at}]");
        let text = cidr.as_str().unwrap_or_default();
        match text.parse::<IpNetwork>() {
            Ok(cidr) if text.contains('/') => {
                if !families.insert(cidr.is_ipv4()) {
                    errors.push(FieldError::invalid(
                        "spec.podCIDRs",
                        cidrs.to_vec(),
                        "may specify no more than one CIDR for each IP family",
                    ));
                }
            }
            _ => errors.push(FieldError::invalid(
                path,
                text,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            )),
        }
    }
    if let Some(first) = cidrs.first()
        && first != &node["spec"]["podCIDR"]
    {
        errors.push(FieldError::invalid(
            "spec.podCIDR",
            node.text("/spec/podCIDR"),
            "must be the first of podCIDRs",
        ));
    }
}

fn validate_update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let before = old.items("/spec/podCIDRs");
    if !before.is_empty() && new.items("/spec/podCIDRs") != before {
        errors.push(FieldError::forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
    let provider = old.text("/spec/providerID");
    if !provider.is_empty() && new.text("/spec/providerID") != provider {
        errors.push(FieldError::forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
}
