//! This machine's Node object: waits for its podCIDRs, and keeps our annotations and condition on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use node_agent_overlay::Overlay;
use node_agent_reconcile::Handle;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::readiness::Readiness;

const RETRY: Duration = Duration::from_millis(500);
/// Even if nobody told us of a change.
const LOOK_EVERY: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct OwnNode {
    api: Api<Node>,
    name: String,
    changed: Arc<Notify>,
}

/// What the agent needs of it to start.
#[derive(Clone, Debug)]
pub struct Assigned {
    pub pod_cidrs: Vec<IpNetwork>,
    pub annotations: BTreeMap<String, String>,
}

impl OwnNode {
    pub fn new(client: Client, name: &str) -> Self {
        Self {
            api: Api::all(client),
            name: name.to_owned(),
            changed: Arc::new(Notify::new()),
        }
    }

    /// The Node may differ from what we last saw.
    pub fn changed(&self) {
        self.changed.notify_one();
    }

    /// Waits until the control plane has given this node its podCIDRs.
    ///
    /// # Errors
    ///
    /// When a podCIDR is none.
    pub async fn wait_for_pod_cidrs(&self, readiness: &Readiness) -> anyhow::Result<Assigned> {
        loop {
            let reason = match self.api.get_opt(&self.name).await {
                Ok(Some(node)) => {
                    let spec = node.spec.unwrap_or_default();
                    let cidrs = spec.pod_cidrs.filter(|cidrs| !cidrs.is_empty());
                    let texts = cidrs
                        .or(spec.pod_cidr.map(|cidr| vec![cidr]))
                        .unwrap_or_default();
                    if !texts.is_empty() {
                        let parsed = texts.iter().map(|text| {
                            text.parse().with_context(|| {
                                format!("podCIDR {text:?} of node {} is none", self.name)
                            })
                        });
                        let annotations = node.metadata.annotations.unwrap_or_default();
                        return Ok(Assigned {
                            pod_cidrs: parsed.collect::<Result<_, _>>()?,
                            annotations,
                        });
                    }
                    format!(
                        "node {} has no podCIDR yet: the control plane assigns it",
                        self.name
                    )
                }
                Ok(None) => format!("there is no Node {} yet: a kubelet registers it", self.name),
                Err(error) => format!("the API server does not answer: {error}"),
            };
            readiness.stage(reason);
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Keeps the overlay's annotations on the Node, and once the dataplane is programmed the condition too.
    pub async fn keep_published(self, overlay: Overlay, handle: Handle) {
        loop {
            match self.publish(&overlay, handle.status().synced).await {
                Ok(()) => {
                    let _ = tokio::time::timeout(LOOK_EVERY, self.changed.notified()).await;
                }
                Err(error) => {
                    warn!(
                        error = &error as &(dyn std::error::Error + Sync),
                        "this Node's annotations or condition could not be published"
                    );
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn publish(&self, overlay: &Overlay, programmed: bool) -> Result<(), kube::Error> {
        let node = self.api.get(&self.name).await?;
        let now = node.metadata.annotations.unwrap_or_default();
        let wanted = overlay.annotations(&now);
        if wanted.iter().any(|(key, text)| now.get(*key) != Some(text)) {
            let patch = json!({"metadata": {"annotations": wanted}});
            self.api
                .patch(&self.name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
            info!(annotations = ?wanted, "published");
        }
        let mut conditions = node
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        let is_there = conditions.any(|condition| {
            condition.type_ == "NetworkUnavailable"
                && condition.status == "False"
                && condition.reason.as_deref() == Some("FairleadIsUp")
        });
        if programmed && !is_there {
            let patch = condition(&jiff::Timestamp::now());
            self.api
                .patch_status(
                    &self.name,
                    &PatchParams::default(),
                    &Patch::Strategic(patch),
                )
                .await?;
            info!("condition NetworkUnavailable is False");
        }
        Ok(())
    }
}

/// <https://kubernetes.io/docs/reference/node/node-status/#condition>
fn condition(now: &jiff::Timestamp) -> Value {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({"status": {"conditions": [{
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "FairleadIsUp",
        "message": "Fairlead is running on this node",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }]}})
}
