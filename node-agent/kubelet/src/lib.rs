//! The kubelet: the pods that the API server has bound to this node, kept running on Docker.
//!
//! The order in which the daemon uses it:
//! 1. [`Kubelet::connect`]: the Docker daemon answers;
//! 2. [`Kubelet::register_node`]: the Node exists, and the control plane can give it podCIDRs;
//! 3. [`Kubelet::run_heartbeats`], for ever, in a task of its own: the Lease and the Node's status;
//! 4. [`Kubelet::serve`], for ever, where the API server can be told from others: logs, commands and ports of pods;
//! 5. once the podCIDRs are known and the host is wired: [`Kubelet::run_pods`], for ever.
//!
//! Dropping the futures stops the kubelet and leaves every pod running. Not done yet: ephemeral containers, volumes
//! other than emptyDir, hostPath, configMap and secret, HTTPS and gRPC probes, eviction.
#![forbid(unsafe_code)]

mod api;
mod backoff;
mod container;
mod env;
mod events;
mod http;
mod images;
mod kubelet;
mod labels;
mod lease;
mod metrics;
mod node;
mod objects;
mod plan;
mod pods;
mod probe;
mod projected;
mod quantity;
mod report;
mod runtime;
mod sandbox;
mod server;
mod start;
mod status;
mod stop;
mod streams;
mod terminate;
mod volumes;
mod worker;

pub use api::{KubeletConfig, PodHook, PodNetwork, PodWiring};
pub use kubelet::Kubelet;
pub use metrics::KubeletMetrics;

/// An error and its causes in one line, as statuses, events and logs show them.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors repeat their source's words.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
