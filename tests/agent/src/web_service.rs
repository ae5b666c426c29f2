//! The Service `web`, and which pod is behind it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use http::Method;
use serde_json::json;

use crate::{Api, Pod};

/// Where its pods listen.
pub const PORT: u16 = 8080;
pub(crate) const SERVICES: &str = "/api/v1/namespaces/default/services";
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

impl Api {
    /// Makes the Service, with no pod behind it yet, and answers its address.
    ///
    /// # Errors
    ///
    /// When the server refuses it.
    pub fn add_web_service(&self) -> Result<SocketAddr> {
        let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80, "targetPort": PORT}]}});
        let service = self.call(Method::POST, SERVICES, Some(service))?;
        let ip = service["spec"]["clusterIP"].as_str();
        let ip: IpAddr = ip.context("no clusterIP")?.parse()?;
        let slice = json!({
            "metadata": {"name": "web", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": [], "ports": [{"name": "", "port": PORT, "protocol": "TCP"}],
        });
        self.call(Method::POST, SLICES, Some(slice))?;
        Ok(SocketAddr::new(ip, 80))
    }

    /// From now on this pod alone is behind the Service.
    ///
    /// # Errors
    ///
    /// When the server refuses it.
    pub fn put_behind_web(&self, pod: &Pod, node: &str) -> Result<()> {
        let endpoint =
            json!({"addresses": [pod.ips[0]], "nodeName": node, "conditions": {"ready": true}});
        let slice = json!({"endpoints": [endpoint]});
        self.call(Method::PATCH, &format!("{SLICES}/web"), Some(slice))?;
        Ok(())
    }
}
