//! The objects that every cluster has: its namespaces, and Service `default/kubernetes` with where it leads; priority
//! classes, what requests are queued by, and what says which groups and which addresses are the server's own.

mod api_services;
mod flow;
mod roles;
mod service_cidr;

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::allocate::Family;
use crate::decode::Body;
use crate::errors::{ApiError, Result};
use crate::json::{Json, same};
use crate::kinds;
use crate::options::WriteOptions;
use crate::registry::Registry;
use crate::strategies::NAMESPACES;

impl Registry {
    /// Makes what is not there; what is there is left as it is.
    pub(crate) async fn bootstrap(&self) -> Result<()> {
        for name in NAMESPACES {
            self.ensure("", "namespaces", "", json!({"metadata": {"name": name}}))
                .await?;
        }
        for (name, value, description) in [
            (
                "system-cluster-critical",
                2_000_000_000,
                "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
            ),
            (
                "system-node-critical",
                2_000_001_000,
                "Used for system critical pods that must not be moved from their current node.",
            ),
        ] {
            let class =
                json!({"metadata": {"name": name}, "value": value, "description": description});
            self.ensure("scheduling.k8s.io", "priorityclasses", "", class)
                .await?;
        }
        self.make_flow_objects().await?;
        self.make_api_services().await?;
        self.make_service_cidr().await?;
        let service = json!({
            "metadata": {
                "name": "kubernetes",
                "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"},
            },
            "spec": {
                "clusterIP": self.claims().kubernetes_ip().map(|ip| ip.to_string()),
                "ipFamilyPolicy": "SingleStack",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
            },
        });
        self.ensure("", "services", "default", service).await
    }

    /// Says where Service `default/kubernetes` leads: the addresses on which API servers listen. Without any, the
    /// Service has no endpoints. From then on it is kept so.
    ///
    /// # Errors
    /// The registry's.
    pub async fn publish(&self, addresses: &[SocketAddr]) -> Result<()> {
        *self.published() = Some(addresses.to_vec());
        let family = self
            .claims()
            .families()
            .into_iter()
            .next()
            .unwrap_or(Family::IPv4);
        let mut own: Vec<_> = addresses
            .iter()
            .filter(|a| Family::of(a.ip()) == family)
            .collect();
        own.sort();
        let port = own.first().map_or(6443, |a| a.port());
        own.retain(|a| a.port() == port);
        let ips: Vec<String> = own.iter().map(|a| a.ip().to_string()).collect();
        let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
        let endpoints: Vec<Value> = ips
            .iter()
            .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
            .collect();
        let slice = json!({
            "metadata": {
                "name": "kubernetes",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": family.word(),
            "endpoints": endpoints,
            "ports": ports,
        });
        self.ensure("discovery.k8s.io", "endpointslices", "default", slice)
            .await?;
        let mut legacy = json!({
            "metadata": {
                "name": "kubernetes",
                "namespace": "default",
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
            },
        });
        if !ips.is_empty() {
            let addresses: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
            legacy["subsets"] = json!([{"addresses": addresses, "ports": ports}]);
        }
        self.ensure("", "endpoints", "default", legacy).await
    }

    /// Creates the object; one of a kind without specification is also brought to what it should be.
    pub(super) async fn ensure(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        value: Value,
    ) -> Result<()> {
        let kind = kinds::find(group, "v1", plural).ok_or_else(ApiError::unknown_resource)?;
        let name = value.text("/metadata/name").to_owned();
        let options = WriteOptions::default();
        let body = Body {
            value,
            found: Vec::new(),
        };
        let Some(current) = self.cached(kind, namespace, &name) else {
            return match self.create(kind, namespace, body, &options).await {
                Err(error) if error.code != 409 => Err(error),
                _ => Ok(()),
            };
        };
        let current = current.value();
        let differs = ["endpoints", "ports", "subsets"]
            .iter()
            .any(|field| !same(&current[field], &body.value[field]));
        if differs && !matches!(plural, "namespaces" | "services") {
            self.update(kind, None, namespace, &name, body, &options)
                .await?;
        }
        Ok(())
    }
}
