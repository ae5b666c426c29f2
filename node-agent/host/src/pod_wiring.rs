//! A pod's whole way into the network: its addresses, its link, and what the dataplane is told, in the one order in
//! which a crash at any point leaks nothing.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::Context;
use async_trait::async_trait;

use crate::{
    Bandwidth, HostPort, HostPorts, Ipam, MacAddr, Network, POD_DEVICE, PodCidr, PodLink,
    PodLinkSpec, PortClaim, pod_device_name,
};

/// A pod's place in the network, complete: what the dataplane must know before the pod's first packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodNetwork {
    /// `metadata.uid`, or the owner of a CNI attachment.
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// The pod's own addresses, at most one a family, IPv4 first as in the node's podCIDRs.
    pub ips: Vec<IpAddr>,
    /// The host's side of the pod's link.
    pub ifindex: u32,
    pub ifname: String,
    pub pod_mac: MacAddr,
    pub host_mac: MacAddr,
    /// Whether packets to the pod wait before the host's side: they must not go around it.
    pub limited: bool,
    /// The pod's network namespace, a path that may be opened while the pod's sandbox lives.
    pub netns: PathBuf,
}

/// The dataplane's part in a pod's network. Pods with `hostNetwork` have no part in it.
#[async_trait]
pub trait PodHook: Send + Sync + 'static {
    /// The pod's link is up and has its addresses; none of its containers runs yet. When this returns, the dataplane
    /// carries the pod's packets. An error is reported as an event, and the call is repeated later.
    ///
    /// Must be idempotent: it is called again for each pod after the agent has restarted, and with another `ifindex`
    /// after the pod's sandbox was replaced.
    async fn pod_wired(&self, pod: &PodNetwork) -> anyhow::Result<()>;

    /// The pod's containers have ended; its link and its addresses go when this returns. Called at least once for
    /// each uid for which `pod_wired` was called, also for pods of an earlier agent that are found to be gone.
    async fn pod_unwired(&self, pod: &PodNetwork) -> anyhow::Result<()>;
}

/// What pods are wired with; known once the node has its podCIDRs.
#[derive(Clone)]
pub struct PodWiring {
    pub network: Network,
    pub ipam: Arc<Ipam>,
    pub host_ports: Arc<HostPorts>,
    /// MTU of the links of pods that are wired from now on, in bytes: it follows the underlay's.
    pub mtu: Arc<AtomicU32>,
    pub hook: Arc<dyn PodHook>,
}

impl std::fmt::Debug for PodWiring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodWiring")
            .field("ipam", &self.ipam)
            .field("mtu", &self.mtu)
            .finish_non_exhaustive()
    }
}

impl PodWiring {
    /// What a pod's link is unless its owner asks for more; the addresses are those that `uid` has.
    #[must_use]
    pub fn spec(&self, uid: &str, namespace: &str, name: &str) -> PodLinkSpec {
        PodLinkSpec {
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            device: POD_DEVICE.to_owned(),
            ips: self.ipam.addresses(uid),
            gateways: self.ipam.cidrs().iter().map(PodCidr::gateway).collect(),
            mtu: self.mtu.load(Ordering::Relaxed),
            bandwidth: Bandwidth::default(),
            sysctls: BTreeMap::new(),
        }
    }

    /// Leases addresses and `ports` of the node, links the pod to its node and waits until the dataplane knows it. Calling
    /// again completes what an earlier call left, and gives the same addresses.
    ///
    /// # Errors
    ///
    /// What failed; the leases and the link stay until [`PodWiring::unwire`].
    pub async fn wire(
        &self,
        mut spec: PodLinkSpec,
        ports: Vec<HostPort>,
        netns: &Path,
    ) -> anyhow::Result<PodNetwork> {
        let (ipam, uid) = (self.ipam.clone(), spec.uid.clone());
        // Each lease is synced to the disk.
        spec.ips = tokio::task::spawn_blocking(move || ipam.allocate(&uid))
            .await?
            .context("allocate the pod's addresses")?;
        let (host_ports, uid) = (self.host_ports.clone(), spec.uid.clone());
        let claim = PortClaim {
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            ports,
        };
        tokio::task::spawn_blocking(move || host_ports.claim(&uid, claim))
            .await?
            .context("give the pod its ports of the node")?;
        let link = self
            .network
            .wire_pod(&spec, netns)
            .await
            .context("link the pod to its node")?;
        let network = PodNetwork {
            // The alias, from which links are read, may have been too short for it.
            name: spec.name,
            ..pod_network(link, spec.ips, netns.to_owned())
        };
        self.hook
            .pod_wired(&network)
            .await
            .context("tell the dataplane of the pod")?;
        Ok(network)
    }

    /// Takes a pod out of the dataplane, removes its link and releases its addresses, in this order: an address is free
    /// only when nothing knows its last owner any more. A pod that has none of these is no error.
    ///
    /// # Errors
    ///
    /// What failed; calling again goes on.
    pub async fn unwire(&self, uid: &str) -> anyhow::Result<()> {
        let ips = self.ipam.addresses(uid);
        let link = self.network.pod_link(uid).await?;
        if link.is_none() && ips.is_empty() {
            return Ok(());
        }
        let network = match link {
            Some(link) => pod_network(link, ips, PathBuf::new()),
            // The link went with its namespace; only the addresses tell of the pod.
            None => PodNetwork {
                uid: uid.to_owned(),
                namespace: String::new(),
                name: String::new(),
                ips,
                ifindex: 0,
                ifname: pod_device_name(uid),
                pod_mac: MacAddr::default(),
                host_mac: MacAddr::default(),
                limited: false,
                netns: PathBuf::new(),
            },
        };
        self.hook
            .pod_unwired(&network)
            .await
            .context("tell the dataplane that the pod is gone")?;
        self.network
            .unwire_pod(uid)
            .await
            .context("remove the pod's link")?;
        self.release(uid).await
    }

    /// Takes back ports and addresses of a pod of which nothing else is left: the addresses last, since by them the pod
    /// is found again if this fails.
    ///
    /// # Errors
    ///
    /// When the disk does not take it.
    pub async fn release(&self, uid: &str) -> anyhow::Result<()> {
        let (ipam, host_ports, uid) = (self.ipam.clone(), self.host_ports.clone(), uid.to_owned());
        tokio::task::spawn_blocking(move || {
            host_ports
                .release(&uid)
                .context("release the pod's ports of the node")?;
            ipam.release(&uid).context("release the pod's addresses")?;
            anyhow::Ok(())
        })
        .await?
    }
}

fn pod_network(link: PodLink, ips: Vec<IpAddr>, netns: PathBuf) -> PodNetwork {
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
