//! Services of both families, for TCP and UDP, and which pods are behind them.

use std::net::IpAddr;

use anyhow::{Context, Result};
use http::Method;
use serde_json::{Value, json};

use crate::web_service::{PORT, SERVICES, SLICES};
use crate::{Api, Pod};

/// Of both protocols, where a Service has one.
pub const NODE_PORT: u16 = 30777;

/// A Service with an address in each family; its port is 80.
#[derive(Debug)]
pub struct DualService {
    name: String,
    /// IPv4, then IPv6.
    pub addresses: Vec<IpAddr>,
}

impl DualService {
    /// Makes it, with no pod behind it yet; `more` goes into its `spec`.
    ///
    /// # Errors
    ///
    /// When the server refuses it.
    pub fn make(api: &Api, name: &str, more: &Value) -> Result<Self> {
        let mut object = json!({"metadata": {"name": name}, "spec": {"ipFamilyPolicy": "RequireDualStack", "ports": [
            {"name": "tcp", "port": 80, "targetPort": PORT, "protocol": "TCP"},
            {"name": "udp", "port": 80, "targetPort": PORT, "protocol": "UDP"}]}});
        for (key, value) in more.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        if more["type"] == "NodePort" {
            for port in 0..2 {
                object["spec"]["ports"][port]["nodePort"] = json!(NODE_PORT);
            }
        }
        let made = api.call(Method::POST, SERVICES, Some(object))?;
        let addresses = made["spec"]["clusterIPs"]
            .as_array()
            .context("no clusterIPs")?
            .iter();
        let addresses = addresses.map(|ip| Ok(ip.as_str().unwrap_or_default().parse()?));
        Ok(Self {
            name: name.to_owned(),
            addresses: addresses.collect::<Result<_>>()?,
        })
    }

    /// Makes its EndpointSlices: pods with the numbers of their nodes.
    ///
    /// # Errors
    ///
    /// When the server refuses them.
    pub fn publish(&self, api: &Api, pods: &[(&Pod, u8)]) -> Result<()> {
        for (family, kind) in ["IPv4", "IPv6"].iter().enumerate() {
            let endpoint = |(pod, node): &(&Pod, u8)| json!({"addresses": [pod.ips[family]], "nodeName": format!("n{node}"), "conditions": {"ready": true}});
            let endpoints: Vec<Value> = pods.iter().map(endpoint).collect();
            let port =
                |name: &str| json!({"name": name, "port": PORT, "protocol": name.to_uppercase()});
            let name = &self.name;
            api.call(Method::POST, SLICES, Some(json!({
                "metadata": {"name": format!("{name}-{}", kind.to_lowercase()), "labels": {"kubernetes.io/service-name": name}},
                "addressType": kind, "endpoints": endpoints, "ports": [port("tcp"), port("udp")],
            })))?;
        }
        Ok(())
    }
}
