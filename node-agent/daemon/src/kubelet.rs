//! When the kubelet registers the Node, says that it is alive, and runs its pods.
//!
//! A Node that was ready stays so while its agent starts again: its pods have never stopped to serve, and the control
//! plane would take them out of every Service. So heartbeats, which say whether pods can be wired, begin at once only
//! on a Node that is not ready.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use node_agent_host::Uplink;
use node_agent_kubelet::{Kubelet, KubeletConfig, PodWiring};
use tracing::{info, warn};

use crate::agent::Tasks;
use crate::flags::Flags;
use crate::kubelet_api::{self, KubeletApi};
use crate::readiness::Readiness;

const RETRY: Duration = Duration::from_millis(500);

/// A kubelet that has its Node.
pub struct Started {
    kubelet: Kubelet,
    heartbeats_run: bool,
}

/// Connects to Docker and registers the Node.
///
/// # Errors
///
/// When Docker does not answer.
pub async fn start(
    flags: &Flags,
    uplink: &Uplink,
    client: &kube::Client,
    readiness: &Readiness,
    tasks: &mut Tasks,
) -> anyhow::Result<Started> {
    readiness.stage(format!(
        "connecting to Docker at {}",
        flags.docker_socket.display()
    ));
    let v4 = uplink.v4.first().map(|ip| (*ip).into());
    let v6 = uplink.v6.first().map(|ip| (*ip).into());
    let node_ips: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
    let api = kubelet_api::bind(flags, &node_ips).await?;
    let config = KubeletConfig {
        node_name: flags.node_name.clone(),
        node_ips,
        api_port: api.as_ref().map(|_| flags.kubelet_port),
        docker_socket: flags.docker_socket.clone(),
        pause_image: flags.pause_image.clone(),
        state_dir: flags.state_dir.clone(),
    };
    let kubelet = Kubelet::connect(config, client.clone()).await?;
    if let Some(KubeletApi { listener, callers }) = api {
        let serving = kubelet.clone().serve(listener, callers);
        tasks.spawn(async move { ("kubelet's API", serving.await.map(|never| match never {})) });
    }
    readiness.stage(format!("registering Node {}", flags.node_name));
    loop {
        match register(&kubelet, client, &flags.node_name).await {
            Ok(was_ready) => {
                if !was_ready {
                    let heartbeats = kubelet.clone();
                    tasks.spawn(async move { match heartbeats.run_heartbeats().await {} });
                }
                return Ok(Started {
                    kubelet,
                    heartbeats_run: !was_ready,
                });
            }
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "the Node could not be registered, trying again"
                );
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Whether the Node was there and ready; then it is left as it is.
async fn register(kubelet: &Kubelet, client: &kube::Client, name: &str) -> anyhow::Result<bool> {
    let node = Api::<Node>::all(client.clone()).get_opt(name).await?;
    let conditions = node
        .and_then(|node| node.status?.conditions)
        .unwrap_or_default();
    if conditions
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    {
        info!(node = name, "the Node is ready already");
        return Ok(true);
    }
    kubelet.register_node().await?;
    Ok(false)
}

impl Started {
    pub fn metrics(&self) -> Kubelet {
        self.kubelet.clone()
    }

    /// Runs the pods for ever. What an earlier agent left may be unreadable for a moment: then it is tried again, the
    /// pods that run must not pay for it.
    pub async fn run(self, wiring: PodWiring) {
        let pods = async {
            loop {
                match self.kubelet.clone().run_pods(wiring.clone()).await {
                    Ok(never) => match never {},
                    Err(error) => warn!(
                        error = format!("{error:#}"),
                        "pods could not be run, trying again"
                    ),
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        if self.heartbeats_run {
            return pods.await;
        }
        let heartbeats = async { match self.kubelet.clone().run_heartbeats().await {} };
        // Pods first: from then on the heartbeats say ready.
        tokio::join!(biased; pods, heartbeats);
    }
}
