//! What an API server would not have let through: said of a file's objects, with the field and the way out.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Longest name of a Service or namespace (RFC 1123 label).
const NAME_MAX: usize = 63;

/// Empty if the Service can be served.
pub(crate) fn service(service: &Service) -> Result<(), String> {
    name("metadata.name", service.metadata.name.as_deref())?;
    let spec = service
        .spec
        .as_ref()
        .ok_or("spec: is missing: write clusterIP and ports")?;
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    one_of(
        "spec.type",
        kind,
        &["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"],
    )?;
    if kind == "ExternalName" {
        return Ok(());
    }
    let one = spec.cluster_ip.iter();
    let ips: Vec<&String> = one.chain(spec.cluster_ips.iter().flatten()).collect();
    if ips.is_empty() {
        return Err("spec.clusterIP: is missing: nobody allocates one here, write an address, or None for no proxying".into());
    }
    for ip in ips {
        if ip != "None" && ip.parse::<IpAddr>().is_err() {
            return Err(format!("spec.clusterIP: {ip:?} is no address"));
        }
    }
    let ports = spec.ports.iter().flatten().enumerate();
    for (index, entry) in ports.clone() {
        port(&format!("spec.ports[{index}].port"), entry.port)?;
        if let Some(node_port) = entry.node_port {
            port(&format!("spec.ports[{index}].nodePort"), node_port)?;
        }
        protocol(
            &format!("spec.ports[{index}].protocol"),
            entry.protocol.as_deref(),
        )?;
        if ports.clone().count() > 1 {
            name(&format!("spec.ports[{index}].name"), entry.name.as_deref())?;
        }
    }
    for (field, policy) in [
        ("spec.internalTrafficPolicy", &spec.internal_traffic_policy),
        ("spec.externalTrafficPolicy", &spec.external_traffic_policy),
    ] {
        one_of(
            field,
            policy.as_deref().unwrap_or("Cluster"),
            &["Cluster", "Local"],
        )?;
    }
    Ok(())
}

/// Empty if the EndpointSlice can be served.
pub(crate) fn endpoint_slice(slice: &EndpointSlice) -> Result<(), String> {
    if slice
        .metadata
        .name
        .as_deref()
        .unwrap_or_default()
        .is_empty()
    {
        return Err("metadata.name: is missing".into());
    }
    let labels = slice.metadata.labels.as_ref();
    let service = labels.and_then(|labels| labels.get(SERVICE_NAME));
    name(
        &format!("metadata.labels[{SERVICE_NAME}]"),
        service.map(String::as_str),
    )?;
    one_of(
        "addressType",
        &slice.address_type,
        &["IPv4", "IPv6", "FQDN"],
    )?;
    for (index, entry) in slice.ports.iter().flatten().enumerate() {
        let number = entry
            .port
            .ok_or_else(|| format!("ports[{index}].port: is missing"))?;
        port(&format!("ports[{index}].port"), number)?;
        protocol(
            &format!("ports[{index}].protocol"),
            entry.protocol.as_deref(),
        )?;
    }
    for (index, endpoint) in slice.endpoints.iter().flatten().enumerate() {
        let field = format!("endpoints[{index}].addresses");
        let address = endpoint
            .addresses
            .first()
            .ok_or_else(|| format!("{field}: is empty: write one address"))?;
        let family = match slice.address_type.as_str() {
            "FQDN" => continue,
            family => family,
        };
        let fits = match address.parse() {
            Ok(IpAddr::V4(_)) => family == "IPv4",
            Ok(IpAddr::V6(_)) => family == "IPv6",
            Err(_) => false,
        };
        if !fits {
            return Err(format!(
                "{field}[0]: {address:?} is no {family} address, as addressType says"
            ));
        }
    }
    Ok(())
}

fn name(field: &str, name: Option<&str>) -> Result<(), String> {
    match name {
        None | Some("") => Err(format!("{field}: is missing")),
        Some(long) if long.len() > NAME_MAX => {
            Err(format!("{field}: has more than {NAME_MAX} characters"))
        }
        Some(_) => Ok(()),
    }
}

fn port(field: &str, number: i32) -> Result<(), String> {
    match number {
        1..=65535 => Ok(()),
        _ => Err(format!(
            "{field}: {number} is no port: write a number from 1 to 65535"
        )),
    }
}

fn protocol(field: &str, text: Option<&str>) -> Result<(), String> {
    one_of(field, text.unwrap_or("TCP"), &["TCP", "UDP", "SCTP"])
}

fn one_of(field: &str, text: &str, allowed: &[&str]) -> Result<(), String> {
    if allowed.contains(&text) {
        return Ok(());
    }
    Err(format!(
        "{field}: {text:?} is unknown: write one of {}",
        allowed.join(", ")
    ))
}
