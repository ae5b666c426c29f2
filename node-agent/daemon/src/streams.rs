//! From the watch streams to the reconciler and to the registry of leases.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use kube::Client;
use node_agent_model::Change;
use node_agent_overlay::KubeRegistry;
use node_agent_reconcile::Handle;
use node_agent_reflect::{FileError, Message, Reflected, Source, with_causes};
use tokio::sync::mpsc;

use crate::external::ExternalAddresses;
use crate::readiness::Readiness;

/// Where Services and EndpointSlices come from.
#[derive(Clone)]
pub enum Origin {
    Api(Client),
    File(PathBuf),
}

/// Where the messages of the streams go.
#[derive(Debug)]
pub struct Streams {
    pub handle: Handle,
    /// Where Nodes are leases.
    pub nodes: Option<Arc<KubeRegistry>>,
    /// This node's name.
    pub own: String,
    pub readiness: Arc<Readiness>,
    pub external: ExternalAddresses,
}

impl Streams {
    /// Runs for ever.
    ///
    /// # Errors
    ///
    /// When the reconciler is gone.
    pub async fn run(self, origin: Origin) -> anyhow::Result<()> {
        let (sender, mut messages) = mpsc::channel(1024);
        let readiness = self.readiness.clone();
        let streams = async {
            match origin {
                Origin::Api(client) => node_agent_reflect::run(client, sender).await,
                Origin::File(path) => {
                    let tell = |error: Option<&FileError>| {
                        readiness.set_file_error(error.map(with_causes));
                    };
                    node_agent_reflect::run_file(path, sender, tell).await;
                }
            }
        };
        let taking = async {
            while let Some(message) = messages.recv().await {
                self.take(message).await?;
            }
            Ok(())
        };
        tokio::select! {
            result = taking => result,
            () = streams => bail!("the watch streams ended"),
        }
    }

    async fn take(&self, message: Message) -> anyhow::Result<()> {
        match message {
            Message::Synced(source) => {
                if let (Source::Nodes, Some(nodes)) = (source, &self.nodes) {
                    nodes.listed().await;
                }
                self.handle.synced(source.label()).await?;
            }
            Message::Object {
                reflected: Reflected::Change(change),
                id,
            } => {
                if let Change::Service(name, service) = &change {
                    self.external.service(name, service.as_ref());
                }
                self.handle.change(change, id).await?;
            }
            Message::Object {
                reflected: Reflected::Node { name, node },
                id,
            } => {
                if name == self.own {
                    let leaving = node.as_ref().is_some_and(|node| node.leaving);
                    self.readiness.set_leaving(leaving);
                    let zone = node.as_ref().and_then(|node| node.zone.clone());
                    self.handle.change(Change::Zone(zone), id.clone()).await?;
                }
                let addresses = node
                    .iter()
                    .flat_map(|node| node.internal_ips.iter().chain(&node.other_ips));
                self.external.node(&name, addresses.copied());
                if let Some(nodes) = &self.nodes {
                    nodes.node(name, node.as_ref(), id).await;
                }
            }
        }
        Ok(())
    }
}
