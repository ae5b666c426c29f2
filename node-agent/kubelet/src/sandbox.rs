//! A pod's sandbox and its place in the network: made before any container, removed after the last.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use node_agent_host::PodLink;
use tracing::{debug, info};

use crate::{
    PodNetwork,
    container::{docker_name, sandbox_body},
    labels, metrics,
    plan::View,
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
            let wired = self
                .try_wire(PathBuf::from(format!("/proc/{pid}/ns/net")))
                .await;
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

    async fn try_wire(&self, netns: PathBuf) -> anyhow::Result<PodNetwork> {
        let wiring = &self.shared.wiring;
        let spec = wiring.spec(&self.pod.uid, &self.pod.namespace, &self.pod.name);
        let network = wiring.wire(spec, &netns).await?;
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
        wiring
            .ipam
            .release(uid)
            .context("release the pod's addresses")?;
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
        netns,
    }
}
