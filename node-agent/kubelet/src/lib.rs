//! The kubelet: the pods that the API server has bound to this node, kept running on Docker.
//!
//! The order in which the daemon uses it:
//! 1. `Kubelet::connect(config, client)`: the Docker daemon answers;
//! 2. `kubelet.register_node()`: the Node exists, and the control plane can give it podCIDRs;
//! 3. `kubelet.run_heartbeats()`, for ever, in a task of its own: the Lease and the Node's status;
//! 4. once the podCIDRs are known and the host is wired: `kubelet.run_pods(wiring)`, for ever.
//!
//! Dropping the two futures stops the kubelet and leaves every pod running.
#![forbid(unsafe_code)]

mod api;

pub use api::{KubeletConfig, PodHook, PodNetwork, PodWiring};
