//! A pod's sandbox and its place in the network: made before any container, removed after the last.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use node_agent_host::{Bandwidth, HostPort, PodLink, Rate};
use tracing::{debug, info};

use crate::{
    PodNetwork,
    container::{docker_name, sandbox_body},
    labels, metrics,
    plan::View,
    quantity,
    runtime::State,
    worker::{Worker, host_network},
};

/// That a sandbox has its place in the network, and which.
#[derive(Clone, Debug)]
pub(crate) struct Wired {
    pub sandbox_id: String,
    pub network: Option<PodNetwork>,
}

impl Worker {
    /// Makes and starts a sandbox, after `remove` has been removed.
    pub(crate) async fn new_sandbox(
        &mut self,
        pod: &Arc<Pod>,
        attempt: u32,
        remove: &[String],
    ) -> anyhow::Result<()> {
        for id in remove {
            self.shared.runtime.remove(id).await?;
        }
        let made = self.try_new_sandbox(pod, attempt).await;
        match &made {
            Ok(id) => {
                metrics::count(&self.shared.metrics.sandboxes_started);
                info!(
                    pod = self.pod.name,
                    uid = self.pod.uid,
                    sandbox = id,
                    attempt,
                    "sandbox started"
                );
            }
            Err(error) => self.sandbox_failed(pod, error),
        }
        made.map(drop)
    }

    async fn try_new_sandbox(&self, pod: &Pod, attempt: u32) -> anyhow::Result<String> {
        let shared = &self.shared;
        let image = &shared.config.pause_image;
        if shared.runtime.image_id(image).await?.is_none() {
            bail!(
                "the pause image {image} is not on this node: load it into Docker or name another with --pause-image"
            );
        }
        // The addresses come first: /etc/hosts names them.
        let ips = if host_network(pod) {
            Vec::new()
        } else {
            shared
                .wiring
                .ipam
                .allocate(&self.pod.uid)
                .context("allocate the pod's addresses")?
        };
        let body = sandbox_body(pod, image, attempt, &ips);
        let id = shared
            .runtime
            .create(&docker_name(&self.pod, labels::SANDBOX, attempt), body)
            .await?;
        shared.runtime.start(&id).await?;
        Ok(id)
    }

    /// Gives the running sandbox its place in the network, and waits until the dataplane knows it. Done once for each
    /// sandbox and each life of the agent.
    pub(crate) async fn wire(&mut self, pod: &Arc<Pod>, view: &View) -> anyhow::Result<()> {
        let Some(sandbox) = &view.sandbox else {
            return Ok(());
        };
        if self
            .wired
            .as_ref()
            .is_some_and(|wired| wired.sandbox_id == sandbox.id)
        {
            return Ok(());
        }
        let State::Running { pid } = sandbox.state else {
            return Ok(());
        };
        let network = if host_network(pod) {
            None
        } else {
            let netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
            let wired = self.try_wire(pod, netns).await;
            if let Err(error) = &wired {
                self.sandbox_failed(pod, error);
            }
            Some(wired?)
        };
        self.wired = Some(Wired {
            sandbox_id: sandbox.id.clone(),
            network,
        });
        Ok(())
    }

    async fn try_wire(&self, pod: &Pod, netns: PathBuf) -> anyhow::Result<PodNetwork> {
        let wiring = &self.shared.wiring;
        let mut spec = wiring.spec(&self.pod.uid, &self.pod.namespace, &self.pod.name);
        spec.bandwidth = bandwidth(pod)?;
        let network = wiring.wire(spec, host_ports(pod), &netns).await?;
        debug!(pod = self.pod.name, uid = self.pod.uid, link = network.ifname, ips = ?network.ips, "pod wired");
        Ok(network)
    }

    /// Removes the sandbox, then the pod's place in the network, then its addresses, in this order: an address is free
    /// only when nothing knows its last owner any more.
    pub(crate) async fn remove_sandboxes(&mut self, view: &View) -> anyhow::Result<()> {
        let wiring = &self.shared.wiring;
        let uid = &self.pod.uid;
        let links = wiring.network.pod_links().await?;
        let link = links.into_iter().find(|link| link.uid == *uid);
        let known = self.wired.as_ref().and_then(|wired| wired.network.clone());
        let ips = wiring.ipam.addresses(uid);
        let network = known.or_else(|| match link {
            Some(link) => Some(pod_network(link, ips.clone(), PathBuf::new())),
            None if ips.is_empty() => None,
            None => Some(self.network_without_link(ips)),
        });
        if let Some(network) = &network {
            wiring
                .hook
                .pod_unwired(network)
                .await
                .context("tell the dataplane that the pod is gone")?;
        }
        for sandbox in view.sandbox.iter().chain(&view.dead_sandboxes) {
            self.shared.runtime.remove(&sandbox.id).await?;
        }
        wiring
            .network
            .unwire_pod(uid)
            .await
            .context("remove the pod's link")?;
        wiring.release(uid).await?;
        self.wired = None;
        Ok(())
    }

    /// A pod whose link went with its namespace, so that only its addresses tell of it.
    fn network_without_link(&self, ips: Vec<std::net::IpAddr>) -> PodNetwork {
        PodNetwork {
            uid: self.pod.uid.clone(),
            namespace: self.pod.namespace.clone(),
            name: self.pod.name.clone(),
            ips,
            ifindex: 0,
            ifname: node_agent_host::pod_device_name(&self.pod.uid),
            pod_mac: node_agent_host::MacAddr::default(),
            host_mac: node_agent_host::MacAddr::default(),
            limited: false,
            netns: PathBuf::new(),
        }
    }

    fn sandbox_failed(&self, pod: &Pod, error: &anyhow::Error) {
        metrics::count(&self.shared.metrics.sandbox_failures);
        let message = format!("Failed to create pod sandbox: {error:#}");
        self.shared
            .recorder
            .warn(pod, None, "FailedCreatePodSandBox", message);
    }
}

/// What a pod may send and receive.
/// <https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/network-plugins/#support-traffic-shaping>
///
/// # Errors
///
/// Names the annotation.
fn bandwidth(pod: &Pod) -> anyhow::Result<Bandwidth> {
    let limit = |name: &str| {
        let annotations = pod.metadata.annotations.as_ref();
        let text = annotations.and_then(|annotations| annotations.get(name));
        text.map(|text| rate(name, text)).transpose()
    };
    Ok(Bandwidth {
        ingress: limit("kubernetes.io/ingress-bandwidth")?,
        egress: limit("kubernetes.io/egress-bandwidth")?,
    })
}

/// Limits are from 1k to 1P, as Kubernetes wants them (k8s.io/kubernetes/pkg/util/bandwidth).
fn rate(name: &str, text: &str) -> anyhow::Result<Rate> {
    let bits = quantity::units(text).and_then(|bits| u64::try_from(bits).ok());
    let bits_per_second = bits
        .filter(|bits| (1_000..=1_000_000_000_000_000).contains(bits))
        .with_context(|| {
            format!(
                "annotation {name} is {text:?}: it must be a quantity of bits a second from 1k to 1P, such as 10M"
            )
        })?;
    Ok(Rate {
        bits_per_second,
        burst_bits: None,
    })
}

/// The ports of the node that a pod asks for.
fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|spec| {
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
    });
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let mut found: Vec<HostPort> = ports
        .filter_map(|port| {
            let ip: Option<std::net::IpAddr> =
                port.host_ip.as_deref().and_then(|ip| ip.parse().ok());
            Some(HostPort {
                // The API server let no other protocol and no port of another size through.
                protocol: port.protocol.as_deref().unwrap_or("TCP").parse().ok()?,
                port: u16::try_from(port.host_port?)
                    .ok()
                    .filter(|port| *port > 0)?,
                container_port: u16::try_from(port.container_port).ok()?,
                ip: ip.filter(|ip| !ip.is_unspecified()),
            })
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn pod_network(link: PodLink, ips: Vec<std::net::IpAddr>, netns: PathBuf) -> PodNetwork {
    PodNetwork {
        uid: link.uid,
        namespace: link.namespace,
        name: link.name,
        ips,
        ifindex: link.ifindex,
        ifname: link.ifname,
        pod_mac: link.pod_mac,
        host_mac: link.host_mac,
        limited: link.limited,
        netns,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_are_read_from_the_annotations_and_what_is_none_is_named() {
        let pod = |text: &str| -> Pod {
            let annotations = json!({"kubernetes.io/egress-bandwidth": text});
            serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap()
        };
        let limits = bandwidth(&pod("1.5M")).unwrap();
        assert_eq!(limits.egress.unwrap().bits_per_second, 1_500_000);
        assert_eq!(limits.ingress, None);
        assert_eq!(bandwidth(&Pod::default()).unwrap(), Bandwidth::default());
        for text in ["", "fast", "999", "-1M", "2P"] {
            let error = bandwidth(&pod(text)).unwrap_err().to_string();
            assert!(error.contains("kubernetes.io/egress-bandwidth"), "{error}");
        }
    }

    #[test]
    fn the_ports_of_all_containers_are_asked_for_once_each() {
        let port = |host: Option<u16>, protocol: Option<&str>, ip: Option<&str>| json!({"containerPort": 80, "hostPort": host, "protocol": protocol, "hostIP": ip});
        let pod = json!({"spec": {
            "containers": [
                {"name": "a", "ports": [port(Some(8080), None, None), port(None, None, None)]},
                {"name": "b", "ports": [port(Some(53), Some("UDP"), Some("192.0.2.1"))]},
                {"name": "c"},
            ],
            "initContainers": [{"name": "d", "ports": [port(Some(8080), Some("TCP"), Some("0.0.0.0"))]}],
        }});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let texts: Vec<String> = host_ports(&pod).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["8080/TCP", "53/UDP on 192.0.2.1"]);
        assert_eq!(host_ports(&Pod::default()), []);
    }
}
