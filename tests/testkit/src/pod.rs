//! A pod: a network namespace that is wired to a node as the agent wires it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ebpf_abi::Endpoint;
use node_agent_model::MapOp;

use crate::{Cgroup, NetNs, plan::endpoint_op};

/// A pod with one address of each family; a cheap handle. Its interface lives as long as a handle does.
#[derive(Clone, Debug)]
pub struct Pod {
    pub(crate) inner: Arc<PodInner>,
}

#[derive(Debug)]
pub(crate) struct PodInner {
    pub netns: NetNs,
    pub cgroup: Arc<Cgroup>,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    /// Of the host's side.
    pub ifname: String,
    pub ifindex: u32,
    pub pod_mac: [u8; 6],
    pub host_mac: [u8; 6],
}

impl Pod {
    /// Runs `work` in the pod, as its processes run: in its network namespace and in the node's cgroup.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.inner.netns.run(|| {
            self.inner
                .cgroup
                .enter()
                .expect("a thread may enter a threaded cgroup");
            work()
        })
    }

    /// Runs `work` in the pod's network namespace, out of the socket programs' reach: its packets go to the service's
    /// address.
    pub fn run_without_socket_programs<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.inner.netns.run(work)
    }

    pub fn netns(&self) -> &NetNs {
        &self.inner.netns
    }

    pub fn ipv4(&self) -> Ipv4Addr {
        self.inner.ipv4
    }

    pub fn ipv6(&self) -> Ipv6Addr {
        self.inner.ipv6
    }

    /// Its address in the family of `other`.
    pub fn ip_for(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() {
            self.ipv4().into()
        } else {
            self.ipv6().into()
        }
    }

    /// The name of the host's side of its veth pair.
    pub fn ifname(&self) -> &str {
        &self.inner.ifname
    }

    /// The index of the host's side.
    pub fn ifindex(&self) -> u32 {
        self.inner.ifindex
    }

    pub fn pod_mac(&self) -> [u8; 6] {
        self.inner.pod_mac
    }

    pub fn host_mac(&self) -> [u8; 6] {
        self.inner.host_mac
    }

    pub(crate) fn endpoint_ops(&self) -> Vec<MapOp> {
        let endpoint = Endpoint {
            ifindex: self.ifindex(),
            flags: 0,
            pod_mac: self.pod_mac(),
            host_mac: self.host_mac(),
            pad: 0,
        };
        vec![
            endpoint_op(self.ipv4().into(), Some(endpoint)),
            endpoint_op(self.ipv6().into(), Some(endpoint)),
        ]
    }
}
