//! EndpointSlices and Endpoints: the addresses behind Services.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::Strategy;
use crate::errors::FieldError;
use crate::json::Json;
use crate::validate::{self, one_of};

pub const ENDPOINT_SLICE: Strategy = Strategy {
    default: |slice| {
        slice.put_default("/endpoints", json!([]));
        for port in slice.items_mut("/ports").into_iter().flatten() {
            port.put_default("/name", "");
            port.put_default("/protocol", "TCP");
        }
    },
    validate: validate_slice,
    validate_update: |new, old, errors| {
        if new["addressType"] != old["addressType"] {
            let value = new["addressType"].clone();
            errors.push(FieldError::invalid(
                "addressType",
                value,
                "field is immutable",
            ));
        }
    },
    generation: true,
    ..Strategy::PLAIN
};

pub const ENDPOINTS: Strategy = Strategy {
    name: validate::path_segment,
    default: |endpoints| {
        for subset in endpoints.items_mut("/subsets").into_iter().flatten() {
            for port in subset.items_mut("/ports").into_iter().flatten() {
                port.put_default("/protocol", "TCP");
            }
        }
    },
    validate: |endpoints, errors| {
        for (at, subset) in endpoints.items("/subsets").iter().enumerate() {
            let path = format!("subsets[{at}]");
            validate_ports(subset, &path, errors);
            for list in ["addresses", "notReadyAddresses"] {
                let addresses = subset.items(&format!("/{list}"));
                for (at, address) in addresses.iter().enumerate() {
                    let ip = address.text("/ip");
                    if let Err(why) = validate::ip(ip) {
                        let path = format!("{path}.{list}[{at}].ip");
                        errors.push(FieldError::invalid(path, ip, why));
                    }
                }
            }
        }
    },
    ..Strategy::PLAIN
};

/// Limits of the API: more go into another slice.
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;

fn validate_slice(slice: &Value, errors: &mut Vec<FieldError>) {
    let kind = slice.text("/addressType");
    if kind.is_empty() {
        errors.push(FieldError::required("addressType", ""));
    }
    one_of(
        slice,
        "/addressType",
        "addressType",
        &["FQDN", "IPv4", "IPv6"],
        errors,
    );
    let endpoints = slice.items("/endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.push(FieldError::too_many(
            "endpoints",
            endpoints.len(),
            MAX_ENDPOINTS,
        ));
    }
    for (at, endpoint) in endpoints.iter().enumerate() {
        let path = format!("endpoints[{at}].addresses");
        let addresses = endpoint.items("/addresses");
        if addresses.is_empty() {
            errors.push(FieldError::required(
                path.clone(),
                "must contain at least 1 address",
            ));
        } else if addresses.len() > MAX_ADDRESSES {
            errors.push(FieldError::too_many(
                path.clone(),
                addresses.len(),
                MAX_ADDRESSES,
            ));
        }
        for (at, address) in addresses.iter().enumerate() {
            let text = address.as_str().unwrap_or_default();
            let why = match kind {
                "IPv4" if !validate::ip(text).is_ok_and(|ip| ip.is_ipv4()) => {
                    Some("must be a valid IPv4 address".to_owned())
                }
                "IPv6" if !validate::ip(text).is_ok_and(|ip| ip.is_ipv6()) => {
                    Some("must be a valid IPv6 address".to_owned())
                }
                "FQDN" => validate::subdomain(text),
                _ => None,
            };
            if let Some(why) = why {
                errors.push(FieldError::invalid(format!("{path}[{at}]"), text, why));
            }
        }
    }
    validate_ports(slice, "", errors);
}

fn validate_ports(of: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let dot = if path.is_empty() { "" } else { "." };
    let mut names = HashSet::new();
    for (at, port) in of.items("/ports").iter().enumerate() {
        let path = format!("{path}{dot}ports[{at}]");
        let name = port.text("/name");
        if let (false, Some(why)) = (name.is_empty(), validate::label(name)) {
            errors.push(FieldError::invalid(format!("{path}.name"), name, why));
        }
        if !names.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        // A slice's port may be left out: it then means every port.
        if let Some(number) = port.integer("/port")
            && let Some(why) = validate::port(number)
        {
            errors.push(FieldError::invalid(format!("{path}.port"), number, why));
        }
        validate::transport_protocol(port, &path, errors);
    }
}
