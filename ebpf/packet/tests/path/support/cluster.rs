//! A node of a small cluster: two pods here, one node reached by the overlay, one by plain routing, a service.

use std::rc::Rc;

use ebpf_abi::{
    Addr4, Addr6, Backend, Config, ConnKey, Endpoint, FamilyConfig, Frontend, FrontendKey, Peer,
    RouteKey, Service, backend_state, config_flag, endpoint_flag, frontend_flag, peer_mode,
};
use ebpf_packet::{Entry, Ip, Node, Verdict, from_host, from_network, from_pod};

use super::{
    Frame, Wire,
    memory::Memory,
    tables::{Has, TestNode},
};

/// Addresses of a family.
pub trait TestFamily: Ip {
    /// Host `host` in the podCIDR of node `node`.
    fn pod(node: u8, host: u8) -> Self;
    fn node(node: u8) -> Self;
    fn service(number: u8) -> Self;
    fn outside(number: u8) -> Self;
    fn prefix(node: u8) -> RouteKey<Self>;
}

impl TestFamily for Addr4 {
    fn pod(node: u8, host: u8) -> Self {
        Self {
            bytes: [10, 244, node, host],
        }
    }
    fn node(node: u8) -> Self {
        Self {
            bytes: [192, 168, 7, node],
        }
    }
    fn service(number: u8) -> Self {
        Self {
            bytes: [10, 96, 0, number],
        }
    }
    fn outside(number: u8) -> Self {
        Self {
            bytes: [203, 0, 113, number],
        }
    }
    fn prefix(node: u8) -> RouteKey<Self> {
        RouteKey {
            prefix_len: 24,
            addr: Self::pod(node, 0),
        }
    }
}

fn addr6(subnet: [u8; 4], host: u8) -> Addr6 {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&[0xfd, 0x00]);
    bytes[2..6].copy_from_slice(&subnet);
    bytes[15] = host;
    Addr6 { bytes }
}

impl TestFamily for Addr6 {
    fn pod(node: u8, host: u8) -> Self {
        addr6([2, 0x44, 0, node], host)
    }
    fn node(node: u8) -> Self {
        addr6([1, 0x68, 0, 7], node)
    }
    fn service(number: u8) -> Self {
        addr6([0, 0x96, 0, 0], number)
    }
    fn outside(number: u8) -> Self {
        addr6([0xdb, 0x08, 0, 0], number)
    }
    fn prefix(node: u8) -> RouteKey<Self> {
        RouteKey {
            prefix_len: 48,
            addr: Self::pod(node, 0),
        }
    }
}

/// Node 1 of the cluster, in one family.
pub struct Scene<A: TestFamily>
where
    TestNode: Has<A>,
{
    pub node: TestNode,
    next_backend: u32,
    _family: std::marker::PhantomData<A>,
}

impl<A: TestFamily> Scene<A>
where
    TestNode: Has<A>,
{
    pub const UPLINK_MTU: u32 = 1500;
    pub const OVERLAY_MTU: u32 = 1450;
    pub const NODE_PORT: u16 = 30080;
    /// Ports of masquerade.
    pub const NAT_PORTS: std::ops::RangeInclusive<u16> = 20000..=20015;

    pub const HOST_NETNS: u64 = 1;

    /// Two pods (`.2` and `.3`) on node 1, node 2 by VXLAN, node 3 by plain routing; service 1 at its ClusterIP:80 and
    /// at the NodePort, TCP and UDP, without backends.
    pub fn new() -> Self {
        let mut scene = Self {
            node: TestNode::default(),
            next_backend: 1,
            _family: std::marker::PhantomData,
        };
        let node = &mut scene.node;
        node.now_ns.set(5_000_000_000);
        let v4 = FamilyConfig {
            node_addr: Addr4::node(1),
            source_nat_addr: Addr4::pod(1, 0),
        };
        let v6 = FamilyConfig {
            node_addr: Addr6::node(1),
            source_nat_addr: Addr6::pod(1, 0),
        };
        node.config = Some(Config {
            uplink_ifindex: 2,
            host_ifindex: 3,
            flags: config_flag::OVERLAY | config_flag::MASQUERADE,
            uplink_mac: [0; 6],
            overlay_port_be: 8472u16.to_be(),
            vni: 1,
            uplink_mtu: Self::UPLINK_MTU,
            nat_port_first: *Self::NAT_PORTS.start(),
            nat_port_last: *Self::NAT_PORTS.end(),
            v4,
            v6,
            host_netns_cookie: Self::HOST_NETNS,
        });
        node.peers.insert(2, vxlan_peer(2));
        node.peers.insert(3, direct_peer(3));
        let host = Endpoint {
            flags: endpoint_flag::HOST,
            pod_mac: [2, 0, 0, 0, 0, 1],
            ..Endpoint::default()
        };
        let tables = node.tables_mut();
        tables.routes.insert(A::prefix(2), 2);
        tables.routes.insert(A::prefix(3), 3);
        for pod in 2..=3 {
            tables.endpoints.insert(A::pod(1, pod), Self::endpoint(pod));
        }
        tables.endpoints.insert(A::node(1), host);
        tables.endpoints.insert(A::pod(1, 1), host);
        let nat = Endpoint {
            flags: endpoint_flag::SOURCE_NAT,
            ..Endpoint::default()
        };
        tables.endpoints.insert(A::pod(1, 0), nat);
        let cluster_ip = Endpoint {
            flags: endpoint_flag::CLUSTER_IP,
            ..Endpoint::default()
        };
        tables.endpoints.insert(A::service(1), cluster_ip);
        scene.frontend(A::service(1), 80, 1, 0);
        scene.frontend(A::node(1), Self::NODE_PORT, 1, frontend_flag::EXTERNAL);
        scene.set_backends(1, &[]);
        scene
    }

    pub fn with_backends(backends: &[(A, u16)]) -> Self {
        let mut scene = Self::new();
        scene.set_backends(1, backends);
        scene
    }

    fn endpoint(pod: u8) -> Endpoint {
        Endpoint {
            ifindex: 100 + u32::from(pod),
            flags: 0,
            pod_mac: [2, 1, 0, 0, 0, pod],
            host_mac: [2, 2, 0, 0, 0, pod],
            pad: 0,
        }
    }

    /// The same service to everybody.
    pub fn frontend(&mut self, addr: A, port: u16, service_id: u32, flags: u32) {
        let frontend = Frontend {
            service_id,
            inside_id: service_id,
            flags,
        };
        self.set_frontend(addr, port, frontend);
    }

    /// For TCP, UDP and SCTP.
    pub fn set_frontend(&mut self, addr: A, port: u16, frontend: Frontend) {
        for protocol in [6, 17, 132] {
            let key = FrontendKey {
                addr,
                port_be: port.to_be(),
                protocol,
                pad: 0,
            };
            self.node.tables_mut().frontends.insert(key, frontend);
        }
    }

    /// Gives a service a new set of backends with new ids; the old ids are withdrawn and their epochs raised.
    pub fn set_backends(&mut self, service_id: u32, backends: &[(A, u16)]) {
        let base = service_id * 100;
        let old = self.node.services.insert(
            service_id,
            Service {
                slot_base: base,
                slot_count: backends.len() as u32,
                ..Service::default()
            },
        );
        for slot in 0..old.map_or(0, |old| old.slot_count) {
            let id = self.node.slots[&(base + slot)];
            let backend = self
                .node
                .tables_mut()
                .backends
                .get_mut(&id)
                .expect("a slot's backend");
            backend.state = backend_state::FREE;
            backend.epoch += 1;
        }
        for (slot, (addr, port)) in backends.iter().enumerate() {
            let id = self.next_backend;
            self.next_backend += 1;
            self.node.slots.insert(base + slot as u32, id);
            let state = backend_state::ACTIVE;
            let backend = Backend {
                addr: *addr,
                port_be: port.to_be(),
                state,
                epoch: 1,
            };
            self.node.tables_mut().backends.insert(id, backend);
        }
    }

    pub fn conn_count(&self) -> usize {
        self.node.tables().conns.count()
    }

    pub fn flags_of(&self, key: &ConnKey<A>) -> Option<u32> {
        Some(self.node.conn(key)?.state().flags)
    }

    pub fn limit_conns(&mut self, limit: u32) {
        self.node.tables_mut().conns = Rc::new(Memory::limited(limit));
    }

    pub fn pod_sends(&self, wire: &mut Wire) -> Verdict {
        from_pod(wire, &self.node)
    }

    pub fn host_sends(&self, wire: &mut Wire) -> Verdict {
        from_host(wire, &self.node)
    }

    pub fn network_sends(&self, wire: &mut Wire) -> Verdict {
        from_network(wire, &self.node)
    }

    /// The packet in the overlay's headers, from a node with this number.
    pub fn overlay(&self, from: u8, inner: &Frame<A>) -> Wire {
        let inner = inner.bytes();
        let mut vxlan = vec![8, 0, 0, 0, 0, 0, 1, 0];
        vxlan.extend(inner);
        Frame::udp_with((Addr4::node(from), 50000), (Addr4::node(1), 8472), &vxlan).wire()
    }

    /// Asserts that a packet was delivered to a pod as this frame, one hop further.
    #[track_caller]
    pub fn assert_delivered(&self, verdict: Verdict, wire: &Wire, pod: u8, expected: &Frame<A>) {
        let endpoint = Self::endpoint(pod);
        assert_eq!(
            verdict,
            Verdict::DeliverToPod {
                ifindex: endpoint.ifindex
            }
        );
        let mut bytes = expected.clone().ttl(expected.ttl - 1).bytes();
        bytes[..6].copy_from_slice(&endpoint.pod_mac);
        bytes[6..12].copy_from_slice(&endpoint.host_mac);
        assert_eq!(wire.bytes, bytes);
    }

    /// Asserts that a packet left by the overlay to node 2 with this frame inside, one hop further.
    #[track_caller]
    pub fn assert_encapsulated(&self, verdict: Verdict, wire: &Wire, expected: &Frame<A>) {
        assert_eq!(verdict, Verdict::ToNetwork { next_hop_peer: 0 });
        let inner = expected.clone().ttl(expected.ttl - 1).ip_bytes();
        assert_eq!(wire.bytes[64..], inner, "inner packet");
        let outer = &wire.bytes[14..64];
        let source_port = u16::from_be_bytes([wire.bytes[34], wire.bytes[35]]);
        assert!(source_port >= 49152, "source port {source_port}");
        let mut vxlan = vec![
            8, 0, 0, 0, 0, 0, 1, 0, 2, 0x56, 0, 0, 0, 2, 2, 0x56, 0, 0, 0, 1,
        ];
        vxlan.extend(A::ETHERTYPE.to_ne_bytes());
        vxlan.extend(&inner);
        let reference = Frame::udp_with(
            (Addr4::node(1), source_port),
            (Addr4::node(2), 8472),
            &vxlan,
        );
        let mut reference = reference.ip_bytes();
        // The overlay's outer header has no identification, no DF and no UDP checksum.
        reference[4..8].fill(0);
        reference[10..12].fill(0);
        let check = super::internet_checksum(&reference[..20]);
        reference[10..12].copy_from_slice(&check.to_be_bytes());
        reference[26..28].fill(0);
        assert_eq!(outer, &reference[..50], "outer headers");
    }
}

fn vxlan_peer(node: u8) -> Peer {
    let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    bytes.extend(Addr4::node(1).bytes);
    bytes.extend(Addr4::node(node).bytes);
    let sum: u32 = bytes
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    bytes.extend([0, 0, 0x21, 0x18, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0]);
    bytes.extend([2, 0x56, 0, 0, 0, node, 2, 0x56, 0, 0, 0, 1, 0, 0]);
    let mut peer = Peer {
        header_sum: (sum & 0xffff) + (sum >> 16),
        header_len: bytes.len() as u16,
        mode: peer_mode::VXLAN,
        underlay_family: 2,
        mtu: 1450,
        ..Peer::default()
    };
    peer.header[..bytes.len()].copy_from_slice(&bytes);
    peer.underlay_addr[..4].copy_from_slice(&Addr4::node(node).bytes);
    peer
}

fn direct_peer(node: u8) -> Peer {
    let mut peer = Peer {
        mode: peer_mode::DIRECT,
        underlay_family: 2,
        mtu: 1500,
        ..Peer::default()
    };
    peer.underlay_addr[..4].copy_from_slice(&Addr4::node(node).bytes);
    peer
}
