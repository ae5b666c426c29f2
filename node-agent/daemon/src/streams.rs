//! From the watch streams to the reconciler, the overlay and the host's routes.

use std::collections::BTreeMap;

use kube::Client;
use node_agent_model::{Change, ChangeId, Node};
use node_agent_overlay::{NotAPeer, Overlay};
use node_agent_reconcile::{ApplyError, Handle};
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
    /// Why a node is no peer, as it was last logged.
    pub ignored: BTreeMap<String, String>,
}

impl Streams {
    /// Runs until the reconciler is gone.
    pub async fn run(mut self, client: Client) {
        let (sender, mut messages) = mpsc::channel(1024);
        let streams = tokio::spawn(node_agent_reflect::run(client, sender));
        while let Some(message) = messages.recv().await {
            if self.take(message).await.is_err() {
                break;
            }
        }
        streams.abort();
    }

    async fn take(&mut self, message: Message) -> Result<(), ApplyError> {
        match message {
            Message::Synced(source) => self.handle.synced(source.label()).await,
            Message::Object {
                reflected: Reflected::Change(change),
                id,
            } => self.handle.change(change, id).await,
            Message::Object {
                reflected: Reflected::Node { name, node },
                id,
            } => self.node(name, node, id).await,
        }
    }

    async fn node(
        &mut self,
        name: String,
        node: Option<Node>,
        id: ChangeId,
    ) -> Result<(), ApplyError> {
        if name == self.overlay.options().node_name {
            self.own_node.changed();
            return Ok(());
        }
        let peer = match node.as_ref().map(|node| self.overlay.peer(node)) {
            Some(Ok(peer)) => {
                self.ignored.remove(&name);
                Some(peer)
            }
            Some(Err(reason)) => {
                self.log_once(&name, &reason);
                None
            }
            None => {
                self.ignored.remove(&name);
                None
            }
        };
        self.prefixes
            .set(&name, peer.as_ref().map(|peer| peer.prefixes.as_slice()));
        self.handle.change(Change::Peer(name, peer), id).await
    }

    fn log_once(&mut self, name: &str, reason: &NotAPeer) {
        let reason = reason.to_string();
        if self.ignored.get(name) != Some(&reason) {
            info!(node = name, reason, "no peer");
            self.ignored.insert(name.to_owned(), reason);
        }
    }
}
