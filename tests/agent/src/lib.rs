//! The real agent and the real CNI plugin as processes, each node in namespaces of its own, against an API server on a
//! machine beside them: ours, or a real kube-apiserver where one is given. No kubelet and no container: the tests are the container runtime.
#![forbid(unsafe_code)]

mod agent;
mod api;
mod clients;
mod dual_service;
mod etcd;
mod flannel;
mod flannel_config;
mod flanneld;
mod kube_proxy;
mod load_balancer;
mod numbered;
mod plugin;
mod pod;
mod proxy;
mod random_services;
mod rbac;
mod real_api;
mod stream;
mod tls;
mod web;
mod web_service;

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests_testkit::NetNs;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

pub use agent::Agent;
pub use api::Api;
pub use clients::{Clients, who_answers};
pub use dual_service::{DualService, NODE_PORT};
pub use etcd::Etcd;
pub use flannel::{FlannelLease, FlannelNode, FlannelRest, Registry};
pub use flannel_config::FlannelConfig;
pub use flanneld::{Flanneld, flanneld};
pub use kube_proxy::{KubeProxy, Place, Verdict, Verdicts, kube_proxy};
pub use load_balancer::{HealthCheck, LoadBalancer, PORT as LOAD_BALANCER_PORT, Turn};
pub use numbered::{Flow, Kind, Servers, Traffic, lost_segments, overflown_datagrams};
pub use plugin::{Plugin, reference};
pub use pod::Pod;
pub use proxy::{Disturbance, Proxy, Seen, Trouble};
pub use random_services::{add_nodes, add_services};
pub use rbac::Rules;
pub use stream::{Settled, Stream};
pub use web::WebServer;
pub use web_service::PORT as WEB_PORT;

/// Far longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `ask` has an answer.
///
/// # Errors
///
/// When it has none for a minute; with its last complaint.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error.context(what.to_owned())),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Whether tests cannot run here, which is then printed.
#[must_use]
pub fn without_root() -> bool {
    let missing = !tests_testkit::is_root();
    if missing {
        tests_testkit::skip("making network namespaces needs root");
    }
    missing
}

/// A runtime whose threads, and thus the sockets that they make, are in a network namespace.
///
/// # Errors
///
/// When threads cannot be made.
pub fn runtime_in(netns: &NetNs) -> Result<Runtime> {
    let built = netns.run(|| {
        Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
    });
    built.context("start a runtime")
}

/// A listener of both families in a runtime's network namespace: a socket belongs to that of the thread that makes it.
///
/// # Errors
///
/// When somebody has the port.
pub fn listener_in(runtime: &Runtime, port: u16) -> Result<TcpListener> {
    let listening = runtime.spawn(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)));
    let bound = runtime.block_on(listening)?;
    bound.with_context(|| format!("listen on port {port}"))
}
