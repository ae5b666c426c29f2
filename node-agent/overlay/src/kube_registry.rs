//! Leases as Nodes: `spec.podCIDRs` is the subnet, flannel's annotations say the rest (flannel `pkg/subnet/kube`). They
//! never expire: a Node that is gone has none.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use node_agent_model::ChangeId;
use serde_json::json;
use tokio::sync::{Mutex, Notify, mpsc};
use tracing::info;

use crate::annotation::{annotations, earlier, node_lease};
use crate::{AnnotationPrefix, Attributes, LeaseEvent, OwnLease, Registry, RegistryError};

const RETRY: Duration = Duration::from_millis(500);
/// Even if nobody told us of a change.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The Nodes of one Kubernetes API. They are told by whoever watches them: there is one watch of Nodes an agent.
#[derive(Debug)]
pub struct KubeRegistry {
    api: Api<Node>,
    name: String,
    prefix: AnnotationPrefix,
    changed: Notify,
    told: mpsc::Sender<LeaseEvent>,
    telling: Mutex<mpsc::Receiver<LeaseEvent>>,
}

impl KubeRegistry {
    /// `name`: of this node.
    pub fn new(client: Client, name: &str, prefix: AnnotationPrefix) -> Self {
        let (told, telling) = mpsc::channel(1024);
        Self {
            api: Api::all(client),
            name: name.to_owned(),
            prefix,
            changed: Notify::new(),
            told,
            telling: Mutex::new(telling),
        }
    }

    /// A Node is as it is now, or gone.
    pub async fn node(&self, name: String, node: Option<&node_agent_model::Node>, id: ChangeId) {
        if name == self.name {
            self.changed.notify_one();
        }
        let event = match node {
            Some(node) => LeaseEvent::Put(name, node_lease(&self.prefix, node), id),
            None => LeaseEvent::Gone(name, id),
        };
        // The receiver lives as long as this does.
        let _ = self.told.send(event).await;
    }

    /// All Nodes have been told once.
    pub async fn listed(&self) {
        let _ = self.told.send(LeaseEvent::Listed).await;
    }

    /// The Node once `wanted` finds what it looks for in it.
    async fn wait<T>(
        &self,
        waiting: &(dyn Fn(String) + Sync),
        wanted: impl Fn(Node) -> Result<Option<T>, RegistryError>,
    ) -> Result<T, RegistryError> {
        loop {
            let reason = match self.api.get_opt(&self.name).await {
                Ok(Some(node)) => match wanted(node)? {
                    Some(found) => return Ok(found),
                    None => format!(
                        "node {} has no podCIDR yet: the control plane assigns it",
                        self.name
                    ),
                },
                Ok(None) => format!("there is no Node {} yet: a kubelet registers it", self.name),
                Err(error) => format!("the API server does not answer: {error}"),
            };
            waiting(reason);
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Writes as flannel does, by a strategic merge patch of `nodes/status`: it needs no other permission.
    async fn publish(
        &self,
        now: &BTreeMap<String, String>,
        attributes: &Attributes,
    ) -> Result<(), RegistryError> {
        let wanted = annotations(&self.prefix, attributes, now);
        if wanted.iter().all(|(key, text)| now.get(key) == Some(text)) {
            return Ok(());
        }
        let patch = Patch::Strategic(json!({"metadata": {"annotations": wanted}}));
        self.api
            .patch_status(&self.name, &PatchParams::default(), &patch)
            .await
            .map_err(|source| failed("publish this node's annotations", source))?;
        info!(annotations = ?wanted, "published");
        Ok(())
    }
}

#[async_trait]
impl Registry for KubeRegistry {
    async fn earlier(
        &self,
        waiting: &(dyn Fn(String) + Sync),
    ) -> Result<Attributes, RegistryError> {
        let all = |node: Node| Ok(Some(node.metadata.annotations.unwrap_or_default()));
        Ok(earlier(&self.prefix, &self.wait(waiting, all).await?))
    }

    async fn acquire(
        &self,
        attributes: &Attributes,
        waiting: &(dyn Fn(String) + Sync),
    ) -> Result<OwnLease, RegistryError> {
        let found = self.wait(waiting, |node| {
            let subnets = pod_cidrs(&node, &self.name)?;
            let annotations = node.metadata.annotations.unwrap_or_default();
            Ok((!subnets.is_empty()).then_some((subnets, annotations)))
        });
        let (subnets, now) = found.await?;
        // The start does not wait for it: `renew` does it again.
        if let Err(error) = self.publish(&now, attributes).await {
            waiting(format!(
                "the API server does not take this node's annotations: {error}"
            ));
        }
        Ok(OwnLease {
            holder: self.name.clone(),
            subnets,
        })
    }

    async fn renew(&self, attributes: &Attributes) -> Result<Duration, RegistryError> {
        let node = self.api.get(&self.name).await;
        let node = node.map_err(|source| failed("get this Node", source))?;
        let now = node.metadata.annotations.unwrap_or_default();
        self.publish(&now, attributes).await?;
        Ok(LOOK_EVERY)
    }

    async fn own_changed(&self) {
        self.changed.notified().await;
    }

    async fn follow(&self, events: &mpsc::Sender<LeaseEvent>) {
        let mut telling = self.telling.lock().await;
        while let Some(event) = telling.recv().await {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

fn pod_cidrs(node: &Node, name: &str) -> Result<Vec<IpNetwork>, RegistryError> {
    let spec = node.spec.clone().unwrap_or_default();
    let texts = spec
        .pod_cidrs
        .filter(|cidrs| !cidrs.is_empty())
        .or(spec.pod_cidr.map(|cidr| vec![cidr]))
        .unwrap_or_default();
    let parse = |text: &String| {
        text.parse().map_err(|_| RegistryError::PodCidr {
            node: name.to_owned(),
            text: text.clone(),
        })
    };
    let cidrs: Vec<IpNetwork> = texts.iter().map(parse).collect::<Result<_, _>>()?;
    let of_v4 = cidrs.iter().filter(|cidr| cidr.is_ipv4()).count();
    if of_v4 > 1 || cidrs.len() - of_v4 > 1 {
        return Err(RegistryError::PodCidrs {
            node: name.to_owned(),
            count: cidrs.len(),
        });
    }
    Ok(cidrs)
}

fn failed(operation: &str, source: kube::Error) -> RegistryError {
    RegistryError::Kube {
        operation: operation.to_owned(),
        source: Box::new(source),
    }
}
