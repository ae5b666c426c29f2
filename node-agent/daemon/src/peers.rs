//! From the registry's leases to the reconciler and the host's routes, and this node's own lease kept.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use kube::runtime::watcher::DefaultBackoff;
use node_agent_model::ChangeId;
use node_agent_overlay::{
    Lease, LeaseEvent, NotAPeer, Overlay, OwnLease, Peers, Registry, RegistryError, Update,
};
use node_agent_reconcile::Handle;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::events::Recorder;
use crate::external::ExternalAddresses;
use crate::host::{Others, Reach};

/// The source of everybody's leases.
pub const SOURCE: &str = "the overlay's leases";
/// What the backoff comes to; it does not end.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The agent must begin anew, as after a restart: what it was wired with is no longer so.
#[derive(Debug)]
pub struct BeginAnew(String);

impl fmt::Display for BeginAnew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BeginAnew {}

/// Where the registry's words go.
#[derive(Debug)]
pub struct Following {
    pub handle: Handle,
    pub registry: Arc<dyn Registry>,
    pub overlay: watch::Receiver<Overlay>,
    pub others: Others,
    pub external: ExternalAddresses,
    pub own: OwnLease,
    pub recorder: Recorder,
    /// Why a holder is no peer, as it was last said.
    pub said: BTreeMap<String, String>,
}

impl Following {
    /// Runs for ever.
    ///
    /// # Errors
    ///
    /// When the reconciler is gone, or this node got other subnets.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let (sender, mut events) = mpsc::channel(1024);
        let registry = self.registry.clone();
        let following = registry.follow(&sender);
        let taking = async {
            let mut peers = Peers::new(
                self.overlay.borrow_and_update().clone(),
                self.own.holder.clone(),
            );
            loop {
                tokio::select! {
                    event = events.recv() => match event {
                        Some(event) => self.take(&mut peers, event).await?,
                        None => return Ok(()),
                    },
                    Ok(()) = self.overlay.changed() => {
                        let overlay = self.overlay.borrow_and_update().clone();
                        let updates = peers.set_overlay(overlay);
                        self.apply(&peers, updates, &ChangeId::default()).await?;
                    }
                }
            }
        };
        tokio::select! {
            result = taking => result,
            () = following => anyhow::bail!("the registry of leases tells no more"),
        }
    }

    async fn take(&mut self, peers: &mut Peers, event: LeaseEvent) -> anyhow::Result<()> {
        match event {
            LeaseEvent::Put(_, Ok(lease), id) => {
                self.check_own(&lease).await?;
                let v4 = lease.attributes.public_ip.map(IpAddr::V4);
                let v6 = lease.attributes.public_ipv6.map(IpAddr::V6);
                self.external.lease(&lease.holder, v4.into_iter().chain(v6));
                let updates = peers.put(lease);
                self.apply(peers, updates, &id).await
            }
            LeaseEvent::Put(holder, Err(reason), id) => {
                let mut updates = peers.remove(&holder);
                let reason = match holder == self.own.holder {
                    true => NotAPeer::Own,
                    false => reason,
                };
                if let Some(update) = updates.iter_mut().find(|update| update.holder == holder) {
                    update.why_not = Some(reason);
                }
                self.apply(peers, updates, &id).await
            }
            LeaseEvent::Gone(holder, id) => {
                self.external.lease(&holder, []);
                let updates = peers.remove(&holder);
                self.apply(peers, updates, &id).await
            }
            LeaseEvent::Listed => Ok(self.handle.synced(SOURCE).await?),
        }
    }

    async fn check_own(&self, lease: &Lease) -> anyhow::Result<()> {
        let (now, wired) = (&lease.subnets, &self.own.subnets);
        if lease.holder != self.own.holder || now == wired {
            return Ok(());
        }
        let message = format!(
            "this node's subnets were {} and are {}: pods that have addresses of the former are reached from this node \
             only, and should be made anew",
            list(wired),
            list(now)
        );
        self.recorder.warn_at_last("PodCIDRChanged", message).await;
        Err(BeginAnew(format!("this node's subnets are now {}", list(now))).into())
    }

    async fn apply(
        &mut self,
        peers: &Peers,
        updates: Vec<Update>,
        id: &ChangeId,
    ) -> anyhow::Result<()> {
        for update in updates {
            match &update.why_not {
                Some(NotAPeer::Own) => {}
                Some(reason) => self.say(&update.holder, reason),
                None => {
                    self.said.remove(&update.holder);
                }
            }
            let reach = Reach {
                prefixes: update.prefixes,
                forwarding: update.forwarding,
            };
            self.others.set(&update.holder, reach);
            for change in update.changes {
                self.handle.change(change, id.clone()).await?;
            }
        }
        match peers.own_conflict() {
            Some(conflict) => {
                let reason = NotAPeer::Claimed {
                    subnet: conflict.subnet,
                    elder: conflict.elder,
                };
                self.say(&conflict.younger, &reason);
            }
            None => {
                self.said.remove(&self.own.holder);
            }
        }
        Ok(())
    }

    fn say(&mut self, holder: &str, reason: &NotAPeer) {
        let text = reason.to_string();
        if self.said.get(holder) == Some(&text) {
            return;
        }
        if let NotAPeer::Claimed { .. } = reason {
            warn!(holder, reason = text, "no peer");
            let message = format!("{holder} is not reached: {text}");
            self.recorder.warn("SubnetClaimedTwice", message);
        } else {
            info!(holder, reason = text, "no peer");
        }
        self.said.insert(holder.to_owned(), text);
    }
}

/// Keeps this node's lease alive and saying what the overlay is, for ever.
///
/// # Errors
///
/// When another node has it.
pub async fn keep_own(
    registry: Arc<dyn Registry>,
    mut overlay: watch::Receiver<Overlay>,
) -> anyhow::Result<()> {
    let mut backoff = DefaultBackoff::default();
    loop {
        let attributes = overlay.borrow_and_update().attributes();
        let next = match registry.renew(&attributes).await {
            Ok(next) => next,
            Err(error @ RegistryError::Lost { .. }) => {
                return Err(BeginAnew(error.to_string()).into());
            }
            Err(error) => {
                warn!(
                    error = &error as &(dyn std::error::Error + Sync),
                    "this node's lease could not be renewed, trying again"
                );
                backoff.next().unwrap_or(LONGEST_RETRY)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(next) => {}
            () = registry.own_changed() => {}
            Ok(()) = overlay.changed() => {}
        }
    }
}

fn list(networks: &[IpNetwork]) -> String {
    let texts: Vec<String> = networks.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
