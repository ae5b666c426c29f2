//! Where leases are kept: one trait for the Nodes of a Kubernetes API, ours or any, and for flannel's etcd registry.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use ipnetwork::IpNetwork;
use node_agent_model::ChangeId;
use tokio::sync::mpsc;

use crate::{Attributes, Lease, NotAPeer};

/// A registry of leases, this node's own among them.
#[async_trait]
pub trait Registry: Debug + Send + Sync {
    /// What this node's lease said before it started; of an earlier life, or of flanneld. Waits until the registry
    /// answers, and tells `waiting` why it takes.
    async fn earlier(&self, waiting: &(dyn Fn(String) + Sync))
    -> Result<Attributes, RegistryError>;

    /// This node's lease, which from then on says `attributes`. Waits until there are subnets for it.
    async fn acquire(
        &self,
        attributes: &Attributes,
        waiting: &(dyn Fn(String) + Sync),
    ) -> Result<OwnLease, RegistryError>;

    /// Sees to it that the lease goes on and says `attributes`; answers when at the latest to call again.
    async fn renew(&self, attributes: &Attributes) -> Result<Duration, RegistryError>;

    /// Returns when somebody else may have changed this node's lease.
    async fn own_changed(&self);

    /// Tells everybody's leases, all of them first, then what changes, for ever. Only one call may run.
    async fn follow(&self, events: &mpsc::Sender<LeaseEvent>);
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OwnLease {
    pub holder: String,
    pub subnets: Vec<IpNetwork>,
}

/// What a registry tells of leases.
#[derive(Debug)]
pub enum LeaseEvent {
    /// A holder's lease as it is now, or why it is of no use.
    Put(String, Result<Lease, NotAPeer>, ChangeId),
    Gone(String, ChangeId),
    /// All leases that there are have been told once.
    Listed,
}

/// A registry that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("the API server: {operation}")]
    Kube {
        operation: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("etcd: {operation}")]
    Etcd {
        operation: String,
        #[source]
        source: Box<etcd_client::Error>,
    },
    #[error("podCIDR {text:?} of node {node} is none")]
    PodCidr { node: String, text: String },
    #[error("node {node} has {count} podCIDRs: at most one a family can be served")]
    PodCidrs { node: String, count: usize },
    #[error("{key} in etcd cannot be read: write it anew, or delete it")]
    Value {
        key: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("there is no {key} in etcd: put flannel's net-conf.json there (etcdctl put)")]
    NoConfig { key: String },
    #[error("{key} in etcd")]
    Config {
        key: String,
        #[source]
        source: crate::NetConfError,
    },
    #[error("--uplink has no IPv4 address: flannel's etcd registry keeps leases by one")]
    NoPublicIp,
    #[error("{network} has no free subnet: delete leases of nodes that are gone, or enlarge it")]
    OutOfSubnets { network: IpNetwork },
    #[error("others were faster {0} times in taking a subnet")]
    Races(u32),
    #[error("this node's lease {key} is another node's now: the agent must start again")]
    Lost { key: String },
}
