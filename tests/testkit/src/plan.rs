//! The addresses of a test cluster, and what the maps must hold so that nodes and pods reach each other. Computed
//! here and not by the product's planner, so that a mistake there and a mistake here do not cancel out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf_abi::{
    Address, Config, Endpoint, FamilyConfig, Peer, Route, RouteKey, config_flag, endpoint_flag,
    peer_mode,
};
use ipnetwork::IpNetwork;
use node_agent_model::{FamilyOp, MapOp};

use crate::Underlay;

/// Where ClusterIPs come from.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

pub(crate) const VXLAN_PORT: u16 = 8472;
pub(crate) const VNI: u32 = 1;
/// IPv4, UDP, VXLAN and inner Ethernet header.
pub(crate) const OVERHEAD: u32 = 50;
pub(crate) const NAT_PORTS: std::ops::RangeInclusive<u16> = 20000..=23999;

/// What belongs to node `number` (from 1 on).
#[derive(Clone, Copy, Debug)]
pub struct NodeAddresses {
    pub number: u8,
}

impl NodeAddresses {
    pub fn underlay_v4(self) -> Ipv4Addr {
        Underlay::ipv4(self.number)
    }

    pub fn underlay_v6(self) -> Ipv6Addr {
        Underlay::ipv6(self.number)
    }

    /// The address with this number of the node's podCIDR: 0 belongs to source NAT, 1 to the node, the rest to pods.
    pub fn pod_v4(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.number, host)
    }

    /// As [`NodeAddresses::pod_v4`].
    pub fn pod_v6(self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(
            0xfd00,
            0x10,
            0x244,
            self.number.into(),
            0,
            0,
            0,
            host.into(),
        )
    }

    pub fn pod_cidrs(self) -> [IpNetwork; 2] {
        let v4 = IpNetwork::new(self.pod_v4(0).into(), 24);
        let v6 = IpNetwork::new(self.pod_v6(0).into(), 64);
        [v4.expect("24 bits fit IPv4"), v6.expect("64 bits fit IPv6")]
    }

    /// The address that the overlay's inner Ethernet header carries for this node.
    pub fn vtep_mac(self) -> [u8; 6] {
        [0x02, 0x56, 0x54, 0x45, 0x50, self.number]
    }

    /// The node's configuration.
    pub fn config(
        self,
        (uplink_ifindex, uplink_mac): (u32, [u8; 6]),
        host_ifindex: u32,
        uplink_mtu: u32,
        host_netns_cookie: u64,
    ) -> Config {
        Config {
            uplink_ifindex,
            host_ifindex,
            flags: config_flag::OVERLAY | config_flag::MASQUERADE,
            uplink_mac,
            overlay_port_be: VXLAN_PORT.to_be(),
            vni: VNI,
            uplink_mtu,
            nat_port_first: *NAT_PORTS.start(),
            nat_port_last: *NAT_PORTS.end(),
            v4: FamilyConfig {
                node_addr: self.underlay_v4().into(),
                source_nat_addr: self.pod_v4(0).into(),
            },
            v6: FamilyConfig {
                node_addr: self.underlay_v6().into(),
                source_nat_addr: self.pod_v6(0).into(),
            },
            host_netns_cookie,
        }
    }

    /// The endpoints that every node has: its own addresses and that of source NAT. `host_mac` is that of
    /// `fairlead0`: what is redirected to the host must be addressed to it.
    pub fn own_endpoints(self, host_mac: [u8; 6]) -> Vec<MapOp> {
        let endpoint = |ip, flags| {
            let endpoint = Endpoint {
                flags,
                pod_mac: host_mac,
                host_mac,
                ..Endpoint::default()
            };
            endpoint_op(ip, Some(endpoint))
        };
        let (host, nat) = (endpoint_flag::HOST, endpoint_flag::SOURCE_NAT);
        vec![
            endpoint(self.underlay_v4().into(), host),
            endpoint(self.underlay_v6().into(), host),
            endpoint(self.pod_v4(1).into(), host),
            endpoint(self.pod_v6(1).into(), host),
            endpoint(self.pod_v4(0).into(), nat),
            endpoint(self.pod_v6(0).into(), nat),
        ]
    }

    /// The way from this node to another.
    pub fn routes_to(self, other: Self, underlay_mtu: u32) -> Vec<MapOp> {
        let id = u32::from(other.number);
        let route = Some(Route { peer_id: id });
        let v4 = RouteKey {
            prefix_len: 24,
            addr: other.pod_v4(0).into(),
        };
        let v6 = RouteKey {
            prefix_len: 64,
            addr: other.pod_v6(0).into(),
        };
        vec![
            MapOp::Peer {
                id,
                peer: Box::new(Wrapping::default().peer(self, other, underlay_mtu)),
            },
            MapOp::V4(FamilyOp::Route { key: v4, route }),
            MapOp::V6(FamilyOp::Route { key: v6, route }),
        ]
    }
}

/// How the overlay lays packets on the wire.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wrapping {
    /// Bare packets in UDP instead of VXLAN.
    pub bare: bool,
    /// Over the IPv6 underlay.
    pub ipv6: bool,
}

impl Wrapping {
    pub const ALL: [Self; 4] = [
        Self {
            bare: false,
            ipv6: false,
        },
        Self {
            bare: false,
            ipv6: true,
        },
        Self {
            bare: true,
            ipv6: false,
        },
        Self {
            bare: true,
            ipv6: true,
        },
    ];

    /// Largest inner packet, in bytes.
    pub fn mtu(self, underlay_mtu: u32) -> u32 {
        let ip = if self.ipv6 { 40 } else { 20 };
        underlay_mtu - ip - if self.bare { 8 } else { 30 }
    }

    /// The header from one node to another, as RFC 7348 section 5 draws it, with flannel's values.
    pub fn peer(self, own: NodeAddresses, other: NodeAddresses, underlay_mtu: u32) -> Peer {
        let mut bytes = Vec::with_capacity(72);
        let mut header_sum = 0;
        let mut underlay_addr = [0; 16];
        if self.ipv6 {
            // Version, traffic class and flow label, payload length, UDP, hop limit, addresses.
            bytes.extend([0x60, 0, 0, 0, 0, 0, 17, 64]);
            bytes.extend(own.underlay_v6().octets());
            bytes.extend(other.underlay_v6().octets());
            underlay_addr = other.underlay_v6().octets();
        } else {
            // Version and length, TOS, total length, id, flags, TTL, UDP, checksum, addresses.
            bytes.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0]);
            bytes.extend(own.underlay_v4().octets());
            bytes.extend(other.underlay_v4().octets());
            header_sum = bytes.chunks_exact(2).fold(0, |sum, word| {
                sum + u32::from(u16::from_be_bytes([word[0], word[1]]))
            });
            underlay_addr[..4].copy_from_slice(&other.underlay_v4().octets());
        }
        // UDP: source port, destination port, length, checksum.
        bytes.extend([0, 0]);
        bytes.extend(VXLAN_PORT.to_be_bytes());
        bytes.extend([0, 0, 0, 0]);
        if !self.bare {
            // VXLAN: flags (VNI valid), reserved, VNI, reserved.
            bytes.extend([8, 0, 0, 0]);
            bytes.extend((VNI << 8).to_be_bytes());
            bytes.extend(other.vtep_mac());
            bytes.extend(own.vtep_mac());
            bytes.extend([0, 0]);
        }
        let header_len = bytes.len() as u16;
        bytes.resize(72, 0);
        Peer {
            header: bytes.try_into().expect("resized to 72 bytes"),
            header_sum: (header_sum & 0xffff) + (header_sum >> 16),
            header_len,
            mode: if self.bare {
                peer_mode::UDP
            } else {
                peer_mode::VXLAN
            },
            underlay_family: if self.ipv6 { 10 } else { 2 },
            underlay_addr,
            mtu: self.mtu(underlay_mtu),
            ..Peer::default()
        }
    }
}

/// What the kernel's VXLAN device does for a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ByDevice {
    /// Packets have an outer UDP checksum: it sends those whose sum the program cannot tell.
    Checksums,
    /// It sends and receives them all.
    Everything,
}

impl ByDevice {
    /// The same peer, with the device.
    pub fn peer(self, mut peer: Peer, own: IpAddr, ifindex: u32) -> Peer {
        peer.device_ifindex = ifindex;
        if self == Self::Everything {
            peer.mode = peer_mode::DEVICE;
            return peer;
        }
        // RFC 768, RFC 8200 section 8.1: the pseudo header, and what stands behind the outer IP header.
        let mut covered = match own {
            IpAddr::V4(own) => [&own.octets()[..], &peer.underlay_addr[..4]].concat(),
            IpAddr::V6(own) => [&own.octets()[..], &peer.underlay_addr[..]].concat(),
        };
        let ip_len = if own.is_ipv4() { 20 } else { 40 };
        covered.extend([0, 17]);
        covered.extend(&peer.header[ip_len..peer.header_len.into()]);
        let words = covered.chunks_exact(2);
        peer.checksum_sum = words.fold(0, |sum, word| {
            sum + u32::from(u16::from_be_bytes([word[0], word[1]]))
        });
        peer
    }
}

pub(crate) fn endpoint_op(ip: IpAddr, endpoint: Option<Endpoint>) -> MapOp {
    match ip {
        IpAddr::V4(ip) => MapOp::V4(FamilyOp::Endpoint {
            addr: address(ip.octets()),
            endpoint,
        }),
        IpAddr::V6(ip) => MapOp::V6(FamilyOp::Endpoint {
            addr: address(ip.octets()),
            endpoint,
        }),
    }
}

fn address<A: Address>(octets: impl AsRef<[u8]>) -> A {
    A::from_bytes(octets.as_ref()).expect("the octets are of the family's length")
}
