//! What the daemon and the kubelet tell each other.

use std::{net::IpAddr, path::PathBuf};

pub use node_agent_host::{PodHook, PodNetwork, PodWiring};

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
