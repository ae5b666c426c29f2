//! From the watch streams to the reconciler, the overlay and the host's routes.

use std::collections::BTreeMap;

use anyhow::{bail, ensure};
use ipnetwork::IpNetwork;
use kube::Client;
use node_agent_model::{Change, ChangeId, Node};
use node_agent_overlay::{NotAPeer, Overlay};
use node_agent_reconcile::Handle;
use node_agent_reflect::{Message, Reflected};
use tokio::sync::mpsc;
use tracing::info;

use crate::host::Prefixes;
use crate::own_node::OwnNode;

/// Where the messages of the streams go.
#[derive(Debug)]
pub struct Streams {
    pub handle: Handle,
    pub overlay: Overlay,
    pub prefixes: Prefixes,
    pub own_node: OwnNode,
    /// The podCIDRs that this node was wired with.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Why a node is no peer, as it was last logged.
    pub ignored: BTreeMap<String, String>,
}

impl Streams {
    /// Runs for ever.
    ///
    /// # Errors
    ///
    /// When the reconciler is gone, or this node got other podCIDRs.
    pub async fn run(mut self, client: Client) -> anyhow::Result<()> {
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

    async fn take(&mut self, message: Message) -> anyhow::Result<()> {
        match message {
            Message::Synced(source) => self.handle.synced(source.label()).await?,
            Message::Object {
                reflected: Reflected::Change(change),
                id,
            } => self.handle.change(change, id).await?,
            Message::Object {
                reflected: Reflected::Node { name, node },
                id,
            } => self.node(name, node, id).await?,
        }
        Ok(())
    }

    async fn node(&mut self, name: String, node: Option<Node>, id: ChangeId) -> anyhow::Result<()> {
        if name == self.overlay.options().node_name {
            self.own_node.changed();
            let node = node.unwrap_or_default();
            self.handle.change(Change::Zone(node.zone), id).await?;
            let now = node.pod_cidrs;
            ensure!(
                now.is_empty() || now == self.pod_cidrs,
                "this node's podCIDRs are now {now:?}, its pods are wired with {:?}: the agent must start again",
                self.pod_cidrs
            );
            return Ok(());
        }
        let (changes, why_not) = self.overlay.changes(&name, node.as_ref());
        match why_not {
            Some(reason) => self.log_once(&name, &reason),
            None => {
                self.ignored.remove(&name);
            }
        }
        let prefixes = changes.iter().flat_map(|change| match change {
            Change::Peer(_, Some(peer)) => peer.prefixes.clone(),
            _ => Vec::new(),
        });
        self.prefixes.set(&name, prefixes.collect());
        for change in changes {
            self.handle.change(change, id.clone()).await?;
        }
        Ok(())
    }

    fn log_once(&mut self, name: &str, reason: &NotAPeer) {
        let reason = reason.to_string();
        if self.ignored.get(name) != Some(&reason) {
            info!(node = name, reason, "no peer");
            self.ignored.insert(name.to_owned(), reason);
        }
    }
}
