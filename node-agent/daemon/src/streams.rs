//! From the watch streams to the reconciler and to the registry of leases.

use std::sync::Arc;

use anyhow::bail;
use kube::Client;
use node_agent_overlay::KubeRegistry;
use node_agent_reconcile::Handle;
use node_agent_reflect::{Message, Reflected, Source};
use tokio::sync::mpsc;

/// Where the messages of the streams go.
#[derive(Debug)]
pub struct Streams {
    pub handle: Handle,
    /// Where Nodes are leases.
    pub nodes: Option<Arc<KubeRegistry>>,
}

impl Streams {
    /// Runs for ever.
    ///
    /// # Errors
    ///
    /// When the reconciler is gone.
    pub async fn run(self, client: Client) -> anyhow::Result<()> {
        let (sender, mut messages) = mpsc::channel(1024);
        let streams = node_agent_reflect::run(client, sender);
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
            } => self.handle.change(change, id).await?,
            Message::Object {
                reflected: Reflected::Node { name, node },
                id,
            } => {
                if let Some(nodes) = &self.nodes {
                    nodes.node(name, node.as_ref(), id).await;
                }
            }
        }
        Ok(())
    }
}
