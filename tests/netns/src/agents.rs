//! What the agents of a cluster do when objects change: the model's own plans go into the nodes' maps.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use node_agent_model::{
    Applied, Capacity, Change, Desired, EndpointSlice, ObjectName, Protocol, SliceEndpoint,
    SlicePort, Snapshot, plan,
};
use tests_testkit::{Cluster, Pod};

/// One agent for each node of a cluster, without an API server. The nodes are called `node1` and so on.
#[derive(Debug)]
pub struct Agents {
    agents: Vec<(Desired, Applied)>,
    started: Instant,
}

impl Agents {
    /// Agents that know their nodes' addresses and nothing else.
    pub fn new(cluster: &Cluster) -> Self {
        let agents = cluster.nodes.iter().map(|node| {
            let addresses = node.addresses;
            let mut desired = Desired::new(format!("node{}", addresses.number));
            let own: Vec<IpAddr> = vec![
                addresses.underlay_v4().into(),
                addresses.underlay_v6().into(),
                Ipv4Addr::LOCALHOST.into(),
                Ipv6Addr::LOCALHOST.into(),
            ];
            desired.change(Change::NodeAddresses(own));
            let applied = Applied::restore(Snapshot::default(), Capacity::default());
            (desired, applied)
        });
        Self {
            agents: agents.collect(),
            started: Instant::now(),
        }
    }

    /// Tells every agent of the changes, and waits until the maps hold them.
    ///
    /// # Errors
    ///
    /// When something does not fit or a map refuses it.
    pub fn change(&mut self, cluster: &Cluster, changes: &[Change]) -> Result<()> {
        for (node, (desired, applied)) in cluster.nodes.iter().zip(&mut self.agents) {
            for change in changes {
                desired.change(change.clone());
            }
            // Ids that were released a moment ago rest; the tests do not wait for them.
            let now = self.started.elapsed() + Duration::from_secs(1);
            let plan = plan(desired, applied, now);
            ensure!(plan.refused.is_empty(), "refused: {:?}", plan.refused);
            node.apply(&plan.ops)?;
        }
        Ok(())
    }
}

/// An EndpointSlice of a Service with one unnamed port: pods, with the number of their node. Those of the first node
/// belong to the Deployment `web`, the others to `canary`.
pub fn slice(
    service: &ObjectName,
    v4: bool,
    port: u16,
    pods: &[(&Pod, u8)],
) -> (ObjectName, EndpointSlice) {
    let endpoint = |(pod, node): &(&Pod, u8)| {
        let ip = if v4 {
            pod.ipv4().into()
        } else {
            pod.ipv6().into()
        };
        SliceEndpoint {
            node: Some(format!("node{node}")),
            pod: Some(if *node == 1 { "web-1" } else { "canary-1" }.to_owned()),
            ..SliceEndpoint::at(ip)
        }
    };
    let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| SlicePort {
        name: String::new(),
        protocol,
        port,
    });
    let family = if v4 { "v4" } else { "v6" };
    let name = ObjectName::new(&service.namespace, format!("{}-{family}", service.name));
    let slice = EndpointSlice {
        service: service.clone(),
        ports: ports.into(),
        endpoints: pods.iter().map(endpoint).collect(),
    };
    (name, slice)
}
