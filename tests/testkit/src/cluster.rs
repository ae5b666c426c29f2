//! Several nodes on one underlay, and a machine outside.

use anyhow::Result;

use crate::{Machine, Node, NodeAddresses, Pod, ServiceSpec, Underlay, Wrapping};

/// The number of the machine that is no node.
const OUTSIDE: u8 = 200;

/// Nodes that know each other.
#[derive(Debug)]
pub struct Cluster {
    pub nodes: Vec<Node>,
    /// A machine on the underlay that is no node.
    pub outside: Machine,
    pub underlay: Underlay,
    next_service: u32,
}

impl Cluster {
    /// `count` nodes on an underlay of 1500 bytes.
    ///
    /// # Errors
    ///
    /// As for [`Node::new`].
    pub fn new(count: u8) -> Result<Self> {
        let underlay = Underlay::new(1500)?;
        let nodes = (1..=count)
            .map(|number| Node::new(&underlay, number))
            .collect::<Result<Vec<_>>>()?;
        let addresses: Vec<NodeAddresses> = nodes.iter().map(|node| node.addresses).collect();
        for node in &nodes {
            let others: Vec<_> = addresses
                .iter()
                .filter(|other| other.number != node.addresses.number)
                .copied()
                .collect();
            node.connect(&others)?;
        }
        let outside = underlay.machine(OUTSIDE)?;
        Ok(Self {
            nodes,
            outside,
            underlay,
            next_service: 1,
        })
    }

    /// Lets the overlay lay packets on the wire in another way, on every node.
    ///
    /// # Errors
    ///
    /// When a map refuses it.
    pub fn wrap(&self, wrapping: Wrapping) -> Result<()> {
        for node in &self.nodes {
            let others = self.nodes.iter().map(|other| other.addresses);
            let others = others.filter(|other| other.number != node.addresses.number);
            node.wrap(wrapping, others)?;
        }
        Ok(())
    }

    /// Adds a pod to the node at `index`.
    ///
    /// # Errors
    ///
    /// As for [`Node::add_pod`].
    pub fn add_pod(&mut self, index: usize) -> Result<Pod> {
        self.nodes[index].add_pod()
    }

    /// Makes a service known on every node; the answer has its id, by which it can be published again, changed.
    ///
    /// # Errors
    ///
    /// When a map refuses it.
    pub fn publish(&mut self, service: &ServiceSpec) -> Result<ServiceSpec> {
        let mut service = service.clone();
        if service.id == 0 {
            service.id = self.next_service;
            self.next_service += 1;
        }
        let ops = service.ops();
        for node in &self.nodes {
            node.apply(&ops)?;
        }
        Ok(service)
    }

    /// Takes a service away from every node.
    ///
    /// # Errors
    ///
    /// When a map refuses it.
    pub fn withdraw(&self, service: &ServiceSpec) -> Result<()> {
        let ops = service.removal();
        for node in &self.nodes {
            node.apply(&ops)?;
        }
        Ok(())
    }
}
