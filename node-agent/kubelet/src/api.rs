//! What the daemon and the kubelet tell each other.

use std::{net::IpAddr, path::PathBuf};

use async_trait::async_trait;
use node_agent_host::MacAddr;

/// A pod's place in the network, complete: what the dataplane must know before the pod's first packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodNetwork {
    /// `metadata.uid`.
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
    /// The pod's network namespace, a path that may be opened while the pod's sandbox lives.
    pub netns: PathBuf,
}

/// The daemon's part in a pod's network. Pods with `hostNetwork` have no part in it.
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

/// What the kubelet is told by flags.
#[derive(Clone, Debug)]
pub struct KubeletConfig {
    /// The Node's name.
    pub node_name: String,
    /// The node's addresses towards the other nodes, at most one a family, the preferred first: `InternalIP`.
    pub node_ips: Vec<IpAddr>,
    /// The unix socket of this node's Docker daemon.
    pub docker_socket: PathBuf,
    /// Image of the container that holds a pod's namespaces; it is never pulled.
    pub pause_image: String,
    /// Port of the kubelet's API on the first of `node_ips`; `None` where nobody serves it.
    pub api_port: Option<u16>,
    /// Where volumes are kept, `pods/UID/volumes/…`; must be on the same machine as the Docker daemon.
    pub state_dir: PathBuf,
}

/// What pods are wired with; known once the node has its podCIDRs.
#[derive(Clone)]
pub struct PodWiring {
    pub network: node_agent_host::Network,
    pub ipam: std::sync::Arc<node_agent_host::Ipam>,
    /// MTU of the pods' links in bytes: the underlay's, less 50 with an overlay over IPv4.
    pub mtu: u32,
    pub hook: std::sync::Arc<dyn PodHook>,
}

impl std::fmt::Debug for PodWiring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodWiring")
            .field("ipam", &self.ipam)
            .field("mtu", &self.mtu)
            .finish_non_exhaustive()
    }
}
