//! The controllers: API clients that drive the cluster towards what its objects ask for, one file each.
//!
//! They share one watch for each kind, and all are level-triggered: what they do depends on the present state only,
//! so that a restart at any point is harmless.

#![forbid(unsafe_code)]

mod cidr;
mod daemonset;
mod deployment;
mod endpoints;
mod endpointslice;
mod fault;
mod garbage;
mod informer;
mod job;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod pod_gc;
mod queue;
mod replicaset;
mod resource_quota;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, ResourceQuota, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client};
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use informer::Informer;

pub use cidr::{Cidr, CidrError};

/// So many deletions are told one by one; who is further behind looks everywhere.
const VANISHED: usize = 1024;

/// What can be set from outside; named as kube-controller-manager's flags.
#[derive(Clone, Debug)]
pub struct Options {
    /// The blocks that Pods' addresses come from, at most one for each family; none: Nodes get no podCIDR.
    pub cluster_cidrs: Vec<Cidr>,
    /// The prefix length of a Node's subnet, in bits.
    pub node_cidr_mask_size_ipv4: u8,
    pub node_cidr_mask_size_ipv6: u8,
    /// How often the Nodes' heartbeats are looked at.
    pub node_monitor_period: Duration,
    /// How long a Node may be silent until it counts as unreachable.
    pub node_monitor_grace_period: Duration,
    /// How long a Pod whose Node does not exist is left alone.
    pub pod_gc_quarantine: Duration,
    /// How often the garbage collector looks for kinds that are new.
    pub garbage_discovery_period: Duration,
    /// How many Services' EndpointSlices are written at a time.
    pub concurrent_service_syncs: usize,
}

/// Why [`run`] gave up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cluster CIDRs {first} and {second} are of the same family; give at most one of each")]
    SameFamily { first: Cidr, second: Cidr },

    #[error(
        "cluster CIDR {cluster} cannot be divided into node subnets of /{prefix}; the node mask must lie between the cluster's prefix and {bits}"
    )]
    MaskSize { cluster: Cidr, prefix: u8, bits: u8 },

    #[error("a controller ended")]
    Ended(#[source] tokio::task::JoinError),
}

/// One watch for each kind, shared by the controllers.
#[derive(Debug)]
pub(crate) struct Informers {
    namespaces: Informer<Namespace>,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    endpoints: Informer<Endpoints>,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    daemon_sets: Informer<DaemonSet>,
    revisions: Informer<ControllerRevision>,
    jobs: Informer<Job>,
    quotas: Informer<ResourceQuota>,
    /// The namespaces of objects that were deleted, of whatever kind.
    vanished: broadcast::Sender<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster_cidrs: Vec::new(),
            node_cidr_mask_size_ipv4: 24,
            node_cidr_mask_size_ipv6: 64,
            node_monitor_period: Duration::from_secs(5),
            node_monitor_grace_period: Duration::from_secs(40),
            pod_gc_quarantine: pod_gc::QUARANTINE,
            garbage_discovery_period: Duration::from_secs(30),
            concurrent_service_syncs: 5,
        }
    }
}

impl Options {
    fn node_prefix(&self, cluster: &Cidr) -> u8 {
        if cluster.is_v6() {
            self.node_cidr_mask_size_ipv6
        } else {
            self.node_cidr_mask_size_ipv4
        }
    }

    /// # Errors
    /// [`Error::SameFamily`] and [`Error::MaskSize`], which name the way out.
    pub fn check(&self) -> Result<(), Error> {
        for (index, cluster) in self.cluster_cidrs.iter().enumerate() {
            let same = |other: &&Cidr| other.is_v6() == cluster.is_v6();
            if let Some(first) = self.cluster_cidrs[..index].iter().find(same) {
                return Err(Error::SameFamily {
                    first: *first,
                    second: *cluster,
                });
            }
            let prefix = self.node_prefix(cluster);
            if prefix < cluster.prefix() || prefix > cluster.bits() {
                return Err(Error::MaskSize {
                    cluster: *cluster,
                    prefix,
                    bits: cluster.bits(),
                });
            }
        }
        Ok(())
    }
}

/// Runs every controller until the returned future is dropped. Errors of the API server are retried for ever.
///
/// # Errors
/// Only when the options are wrong, or when a controller died by a bug.
pub async fn run(client: Client, options: Options) -> Result<(), Error> {
    options.check()?;
    let informers = Arc::new(Informers {
        namespaces: Informer::new(),
        nodes: Informer::new(),
        leases: Informer::new(),
        pods: Informer::new(),
        services: Informer::new(),
        slices: Informer::new(),
        endpoints: Informer::new(),
        deployments: Informer::new(),
        replica_sets: Informer::new(),
        daemon_sets: Informer::new(),
        revisions: Informer::new(),
        jobs: Informer::new(),
        quotas: Informer::new(),
        vanished: broadcast::Sender::new(VANISHED),
    });
    let mut tasks = JoinSet::new();
    macro_rules! controllers {
        ($($module:ident),*) => {$({
            let (client, informers, options) = (client.clone(), informers.clone(), options.clone());
            tasks.spawn(async move { $module::run(client, informers, &options).await });
        })*};
    }
    controllers!(
        endpointslice,
        endpoints,
        node_ipam,
        node_lifecycle,
        pod_gc,
        namespace,
        garbage,
        deployment,
        replicaset,
        daemonset,
        job,
        resource_quota
    );
    spawn_informers(&mut tasks, &client, &informers);
    match tasks.join_next().await {
        Some(Err(error)) => Err(Error::Ended(error)),
        _ => Ok(()),
    }
}

fn spawn_informers(tasks: &mut JoinSet<()>, client: &Client, informers: &Arc<Informers>) {
    macro_rules! informers {
        ($($kind:ident),*) => {$({
            let (all, client) = (informers.clone(), client.clone());
            tasks.spawn(async move { all.$kind.run(Api::all(client)).await });
        })*};
    }
    informers!(
        namespaces,
        nodes,
        leases,
        pods,
        services,
        slices,
        endpoints,
        deployments,
        replica_sets,
        daemon_sets,
        revisions,
        jobs,
        quotas
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cidrs: &[&str], mask_v4: u8) -> Result<(), String> {
        let options = Options {
            cluster_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            node_cidr_mask_size_ipv4: mask_v4,
            ..Options::default()
        };
        options.check().map_err(|error| error.to_string())
    }

    #[test]
    fn impossible_cidrs_are_refused_with_their_names() {
        assert_eq!(check(&["10.244.0.0/16", "fd00::/48"], 24), Ok(()));
        assert_eq!(check(&[], 24), Ok(()));
        let same = check(&["10.244.0.0/16", "10.245.0.0/16"], 24).unwrap_err();
        assert!(same.contains("10.244.0.0/16 and 10.245.0.0/16"), "{same}");
        for mask in [15, 33] {
            let wrong = check(&["10.244.0.0/16"], mask).unwrap_err();
            assert!(
                wrong.contains("10.244.0.0/16") && wrong.contains(&format!("/{mask}")),
                "{wrong}"
            );
        }
    }
}
