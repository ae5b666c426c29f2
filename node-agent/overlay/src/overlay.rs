//! From leases to peers, and what this node's own lease says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ebpf_abi::{Family, Peer, config_flag, direct_label, overlay_header, peer_flag, peer_mode};
use ipnetwork::IpNetwork;
use node_agent_model::PeerRoutes;
use serde_json::Value;

use crate::{Attributes, BackendData, Encapsulation, Lease, Outer, VtepMac};

/// How packets go to other nodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Encapsulated as flannel's `vxlan` backend does.
    Vxlan,
    /// In UDP without any other header, as flannel's `udp` backend does.
    Udp,
    /// Routed on a shared link, as flannel's `host-gw` backend does.
    Direct,
}

/// What an [`Overlay`] is made of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OverlayOptions {
    pub node_name: String,
    pub mode: Mode,
    /// Peers on the uplink's own link get their packets as they are: flannel's `DirectRouting`, of [`Mode::Vxlan`].
    pub direct_routing: bool,
    /// This node's addresses on the uplink.
    pub underlay_v4: Option<Ipv4Addr>,
    pub underlay_v6: Option<Ipv6Addr>,
    /// Prefixes of the uplink's own link: peers in them need no route lookup.
    pub on_link: Vec<IpNetwork>,
    /// MTU of the uplink, in bytes.
    pub uplink_mtu: u32,
    /// UDP destination port.
    pub port: u16,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    pub mac: VtepMac,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Overlay {
    options: OverlayOptions,
    /// Where encapsulated packets of both families go: the IPv4 underlay, if there is one.
    underlay: IpAddr,
    mtu: u32,
    pub(crate) outer: Outer,
}

/// Bits of an IPv6 address that a label leaves out.
const LABELLED_PREFIX: u8 = 8 * (16 - (direct_label::SENDER - direct_label::ADDR)) as u8;
/// RFC 8200 section 5: a link that carries IPv6 has an MTU of at least 1280 bytes.
const LEAST_MTU: u32 = 1280;

/// The options cannot work.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OverlayError {
    #[error("--uplink has no address: give it one, or name another interface")]
    NoAddress,
    #[error("--vni {0} has more than 24 bits: choose one from 1 to 16777215")]
    Vni(u32),
    #[error(
        "the uplink's MTU of {found} bytes leaves no room for IPv6 packets in the overlay: it must be at least {least}"
    )]
    Mtu { found: u32, least: u32 },
    #[error("--direct-routing goes with --overlay=vxlan only: choose that, or leave it out")]
    DirectRouting,
    #[error("--overlay {0:?} is unknown: choose vxlan, udp or direct")]
    Mode(String),
    #[error("--overlay-checksum {0:?} is unknown: choose auto, on or off")]
    Checksum(String),
    #[error(
        "{flag} needs --overlay vxlan, and it is {found}: leave it out, or choose vxlan on every node"
    )]
    NeedsVxlan {
        flag: &'static str,
        found: &'static str,
    },
}

/// Why a node gets no route.
#[derive(Debug, thiserror::Error)]
pub enum NotAPeer {
    #[error("it is this node")]
    Own,
    #[error("it has no podCIDR yet")]
    NoPodCidr,
    #[error("its annotation {0} is missing")]
    NoAnnotation(String),
    #[error("its backend type is {found:?}, this node uses {expected:?}")]
    OtherBackend {
        found: String,
        expected: &'static str,
    },
    #[error("its backend data is {text:?}")]
    BadBackendData {
        text: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("its VNI is {found}, this node's is {expected}")]
    OtherVni { found: u32, expected: u32 },
    #[error("its annotation {annotation} is {text:?}, which is no address of that family")]
    BadAddress { annotation: String, text: String },
    #[error("it has no public {0} address")]
    NoAddress(&'static str),
    #[error(
        "its subnet {subnet} is claimed by {elder} too, whose lease is the elder: give one of them another podCIDR"
    )]
    Claimed { subnet: IpNetwork, elder: String },
}

impl Mode {
    /// The body of flannel's annotation; its `udp` backend sets none.
    pub const fn backend_type(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Udp => "",
            Self::Direct => "host-gw",
        }
    }

    /// The word that chooses it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Udp => "udp",
            Self::Direct => "direct",
        }
    }

    /// Flannel's UDP destination port.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Vxlan | Self::Direct => 8472,
            Self::Udp => 8285,
        }
    }

    /// What the programs must know: bits of [`config_flag`].
    pub const fn config_flags(self) -> u32 {
        match self {
            Self::Vxlan => config_flag::OVERLAY,
            Self::Udp => config_flag::OVERLAY | config_flag::OVERLAY_UDP,
            Self::Direct => 0,
        }
    }

    /// Bytes that a packet grows by on this underlay.
    const fn overhead(self, underlay: Family) -> usize {
        match (self, underlay) {
            (Self::Vxlan, Family::V4) => overlay_header::VXLAN_OVER_IPV4,
            (Self::Vxlan, Family::V6) => overlay_header::VXLAN_OVER_IPV6,
            (Self::Udp, Family::V4) => overlay_header::UDP_OVER_IPV4,
            (Self::Udp, Family::V6) => overlay_header::UDP_OVER_IPV6,
            (Self::Direct, _) => 0,
        }
    }
}

impl FromStr for Mode {
    type Err = OverlayError;

    fn from_str(text: &str) -> Result<Self, OverlayError> {
        match text {
            "vxlan" => Ok(Self::Vxlan),
            "udp" => Ok(Self::Udp),
            "direct" => Ok(Self::Direct),
            other => Err(OverlayError::Mode(other.to_owned())),
        }
    }
}

impl Overlay {
    /// # Errors
    ///
    /// When the options contradict each other or the underlay.
    pub fn new(options: OverlayOptions) -> Result<Self, OverlayError> {
        let underlay = options.underlay_v4.map(IpAddr::V4);
        let underlay = underlay.or(options.underlay_v6.map(IpAddr::V6));
        let underlay = underlay.ok_or(OverlayError::NoAddress)?;
        if options.vni == 0 || options.vni >= 1 << 24 {
            return Err(OverlayError::Vni(options.vni));
        }
        if options.direct_routing && options.mode != Mode::Vxlan {
            return Err(OverlayError::DirectRouting);
        }
        let family = if underlay.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        let overhead = options.mode.overhead(family) as u32;
        let least = LEAST_MTU + overhead;
        if options.uplink_mtu < least {
            let found = options.uplink_mtu;
            return Err(OverlayError::Mtu { found, least });
        }
        Ok(Self {
            mtu: options.uplink_mtu - overhead,
            underlay,
            options,
            outer: Outer::default(),
        })
    }

    /// What the programs must know: bits of [`config_flag`]. Where the kernel's device takes packets out of the overlay,
    /// the programs leave them to it.
    pub fn config_flags(&self) -> u32 {
        if self.outer.by_device {
            0
        } else if self.returns_directly() {
            self.options.mode.config_flags() | config_flag::DIRECT_RETURN
        } else {
            self.options.mode.config_flags()
        }
    }

    /// This node's underlay address.
    pub fn underlay(&self) -> IpAddr {
        self.underlay
    }

    /// Largest packet of a pod that reaches every peer, in bytes.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    pub fn options(&self) -> &OverlayOptions {
        &self.options
    }

    /// The MAC address that an earlier life of this node published, if it did for VXLAN: peers keep it over a restart.
    pub fn published_mac(earlier: &Attributes) -> Option<VtepMac> {
        [&earlier.backend_data, &earlier.backend_v6_data]
            .into_iter()
            .find_map(|data| serde_json::from_value::<BackendData>(data.clone()).ok())
            .map(|data| data.vtep_mac)
    }

    /// What this node's lease must say.
    pub fn attributes(&self) -> Attributes {
        let options = &self.options;
        let data = match options.mode {
            Mode::Vxlan => serde_json::to_value(BackendData {
                vni: options.vni,
                direct_return: self.returns_directly(),
                vtep_mac: options.mac,
            })
            .expect("a number and a string serialize"),
            Mode::Udp | Mode::Direct => Value::Null,
        };
        // Encapsulated, both families go by one underlay: an address of the other would be an invitation to use it.
        let by_v6 = options.mode == Mode::Direct || self.underlay.is_ipv6();
        let (backend_data, backend_v6_data) = if self.underlay.is_ipv4() {
            (data, Value::Null)
        } else {
            (Value::Null, data)
        };
        Attributes {
            public_ip: options.underlay_v4,
            public_ipv6: options.underlay_v6.filter(|_| by_v6),
            backend_type: options.mode.backend_type().to_owned(),
            backend_data,
            backend_v6_data,
        }
    }

    /// How to reach the holder of a lease. A node is one peer where packets are encapsulated, and one a family where
    /// they are only routed: the next hop of an IPv6 packet has an IPv6 address.
    ///
    /// # Errors
    ///
    /// Why the holder gets no route.
    pub fn peers(&self, lease: &Lease) -> Result<[Option<PeerRoutes>; 2], NotAPeer> {
        let options = &self.options;
        let attributes = &lease.attributes;
        let expected = options.mode.backend_type();
        if attributes.backend_type != expected {
            return Err(NotAPeer::OtherBackend {
                found: attributes.backend_type.clone(),
                expected,
            });
        }
        let v4 = attributes.public_ip.map(IpAddr::V4);
        let v4 = v4.ok_or(NotAPeer::NoAddress("IPv4"));
        let v6 = attributes.public_ipv6.map(IpAddr::V6);
        let v6 = v6.ok_or(NotAPeer::NoAddress("IPv6"));
        let of_family = |of_family: Filter| -> Vec<IpNetwork> {
            lease.subnets.iter().copied().filter(of_family).collect()
        };
        if options.mode == Mode::Direct {
            let routed = |remote: Result<IpAddr, NotAPeer>, has_underlay: bool, family: Filter| {
                let prefixes = of_family(family);
                if prefixes.is_empty() || !has_underlay {
                    return Ok(None);
                }
                let peer = peer_at(remote?, self.mtu);
                Ok(Some(PeerRoutes { peer, prefixes }))
            };
            return Ok([
                routed(v4, options.underlay_v4.is_some(), IpNetwork::is_ipv4)?,
                routed(v6, options.underlay_v6.is_some(), IpNetwork::is_ipv6)?,
            ]);
        }
        let (remote, data) = match self.underlay {
            IpAddr::V4(_) => (v4?, &attributes.backend_data),
            IpAddr::V6(_) => (v6?, &attributes.backend_v6_data),
        };
        let peer = self.encapsulated(remote, data, &lease.subnets)?;
        if !options.direct_routing || !self.is_on_link(remote) {
            let prefixes = lease.subnets.clone();
            return Ok([Some(PeerRoutes { peer, prefixes }), None]);
        }
        // A next hop has its packets' family: those of the other one are encapsulated here, too.
        let (own, other): (Filter, Filter) = match remote {
            IpAddr::V4(_) => (IpNetwork::is_ipv4, IpNetwork::is_ipv6),
            IpAddr::V6(_) => (IpNetwork::is_ipv6, IpNetwork::is_ipv4),
        };
        let routes = |peer, prefixes: Vec<IpNetwork>| {
            (!prefixes.is_empty()).then_some(PeerRoutes { peer, prefixes })
        };
        Ok([
            routes(peer_at(remote, options.uplink_mtu), of_family(own)),
            routes(peer, of_family(other)),
        ])
    }

    fn is_on_link(&self, remote: IpAddr) -> bool {
        let mut links = self.options.on_link.iter();
        links.any(|link| link.contains(remote))
    }

    fn encapsulated(
        &self,
        remote: IpAddr,
        data: &Value,
        subnets: &[IpNetwork],
    ) -> Result<Peer, NotAPeer> {
        let options = &self.options;
        let mut direct_return = false;
        let encapsulation = if options.mode == Mode::Udp {
            Encapsulation::Udp
        } else {
            let data: BackendData = serde_json::from_value(data.clone()).map_err(|source| {
                NotAPeer::BadBackendData {
                    text: data.to_string(),
                    source,
                }
            })?;
            if data.vni != options.vni {
                return Err(NotAPeer::OtherVni {
                    found: data.vni,
                    expected: options.vni,
                });
            }
            direct_return = data.direct_return && self.returns_directly() && fit_labels(subnets);
            Encapsulation::Vxlan {
                vni: options.vni,
                own_mac: options.mac,
                peer_mac: data.vtep_mac,
            }
        };
        let mut peer = peer_at(remote, self.mtu);
        let on_link = self.is_on_link(remote);
        encapsulation.fill(&mut peer, self.underlay, options.port, on_link);
        self.finish(&mut peer);
        if direct_return {
            peer.flags |= peer_flag::DIRECT_RETURN;
        }
        Ok(peer)
    }
}

/// Whether the pods of these subnets are told from each other by the part of an address that a label has.
fn fit_labels(subnets: &[IpNetwork]) -> bool {
    subnets
        .iter()
        .all(|subnet| subnet.is_ipv4() || subnet.prefix() >= LABELLED_PREFIX)
}

type Filter = fn(&IpNetwork) -> bool;

/// A peer to which packets are routed as they are.
pub(crate) fn peer_at(remote: IpAddr, mtu: u32) -> Peer {
    let mut underlay_addr = [0; 16];
    let underlay_family = match remote {
        IpAddr::V4(remote) => {
            underlay_addr[..4].copy_from_slice(&remote.octets());
            Family::V4
        }
        IpAddr::V6(remote) => {
            underlay_addr = remote.octets();
            Family::V6
        }
    };
    Peer {
        mode: peer_mode::DIRECT,
        underlay_family: underlay_family as u8,
        underlay_addr,
        mtu,
        ..Peer::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn overlay(mode: Mode) -> Overlay {
        Overlay::new(OverlayOptions {
            node_name: "a".to_owned(),
            mode,
            direct_routing: false,
            underlay_v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            underlay_v6: Some("2001:db8::1".parse().unwrap()),
            on_link: vec![
                "192.0.2.0/28".parse().unwrap(),
                "2001:db8::/120".parse().unwrap(),
            ],
            uplink_mtu: 1500,
            port: 8472,
            vni: 1,
            mac: VtepMac([2, 0, 0, 0, 0, 1]),
        })
        .unwrap()
    }

    fn flannel_lease() -> Lease {
        let attributes = Attributes {
            public_ip: Some(Ipv4Addr::new(192, 0, 2, 2)),
            backend_type: "vxlan".to_owned(),
            backend_data: json!({"VNI": 1, "VtepMAC": "12:c6:65:89:b4:e3"}),
            ..Attributes::default()
        };
        Lease {
            holder: "b".to_owned(),
            subnets: vec![
                "10.244.2.0/24".parse().unwrap(),
                "fd00:10:244:2::/64".parse().unwrap(),
            ],
            attributes,
            since: 1,
        }
    }

    #[test]
    fn both_subnets_of_a_flannel_node_lead_to_its_one_peer() {
        let [routes, none] = overlay(Mode::Vxlan).peers(&flannel_lease()).unwrap();
        assert_eq!(none, None);
        let routes = routes.unwrap();
        assert_eq!(routes.prefixes.len(), 2);
        assert_eq!(
            (routes.peer.mode, routes.peer.header_len, routes.peer.mtu),
            (peer_mode::VXLAN_ON_LINK, 50, 1450)
        );
        assert_eq!(routes.peer.underlay_addr[..4], [192, 0, 2, 2]);
        assert_eq!(
            routes.peer.header[36..42],
            [0x12, 0xc6, 0x65, 0x89, 0xb4, 0xe3]
        );
    }

    #[test]
    fn a_node_behind_a_router_is_looked_for_in_the_routes() {
        let mut lease = flannel_lease();
        lease.attributes.public_ip = Some(Ipv4Addr::new(192, 0, 2, 17));
        let [routes, _] = overlay(Mode::Vxlan).peers(&lease).unwrap();
        assert_eq!(routes.unwrap().peer.mode, peer_mode::VXLAN);
    }

    #[test]
    fn with_direct_routing_a_node_on_the_same_link_is_the_next_hop_and_one_behind_a_router_is_not()
    {
        let direct = Overlay::new(OverlayOptions {
            direct_routing: true,
            ..overlay(Mode::Vxlan).options
        })
        .unwrap();
        let mut lease = flannel_lease();
        let [v4, v6] = direct.peers(&lease).unwrap().map(Option::unwrap);
        assert_eq!((v4.peer.mode, v4.peer.mtu), (peer_mode::DIRECT, 1500));
        assert_eq!(v4.peer.underlay_addr[..4], [192, 0, 2, 2]);
        assert_eq!(v4.prefixes, lease.subnets[..1]);
        assert_eq!(
            (v6.peer.mode, v6.peer.mtu),
            (peer_mode::VXLAN_ON_LINK, 1450)
        );
        assert_eq!(v6.prefixes, lease.subnets[1..]);
        lease.attributes.public_ip = Some(Ipv4Addr::new(192, 0, 2, 17));
        let [both, none] = direct.peers(&lease).unwrap();
        assert_eq!(both.unwrap().peer.mode, peer_mode::VXLAN);
        assert_eq!(none, None);
        let error = Overlay::new(OverlayOptions {
            mode: Mode::Udp,
            ..direct.options
        });
        assert_eq!(error.unwrap_err(), OverlayError::DirectRouting);
    }

    #[test]
    fn what_one_node_publishes_makes_it_a_peer_of_the_other() {
        for mode in [Mode::Vxlan, Mode::Udp, Mode::Direct] {
            let lease = Lease {
                attributes: overlay(mode).attributes(),
                ..flannel_lease()
            };
            let other = Overlay::new(OverlayOptions {
                node_name: "b".to_owned(),
                ..overlay(mode).options
            })
            .unwrap();
            let [first, ipv6] = other.peers(&lease).unwrap();
            assert_eq!(first.unwrap().peer.underlay_addr[..4], [192, 0, 2, 1]);
            let ipv6 = ipv6.map(|routes| (routes.peer.underlay_addr[0], routes.prefixes.len()));
            assert_eq!(ipv6, (mode == Mode::Direct).then_some((0x20, 1)));
        }
    }

    #[test]
    fn the_published_mac_address_is_found_again_after_a_restart() {
        let found = Overlay::published_mac(&flannel_lease().attributes);
        assert_eq!(found.unwrap().to_string(), "12:c6:65:89:b4:e3");
        assert_eq!(Overlay::published_mac(&Attributes::default()), None);
    }

    #[test]
    fn a_node_that_cannot_be_reached_says_why() {
        let with = |change: &dyn Fn(&mut Attributes)| {
            let mut lease = flannel_lease();
            change(&mut lease.attributes);
            overlay(Mode::Vxlan).peers(&lease).unwrap_err().to_string()
        };
        let other = with(&|attributes| attributes.backend_type = "host-gw".to_owned());
        assert!(
            other.contains("\"host-gw\", this node uses \"vxlan\""),
            "{other}"
        );
        let vni = with(&|attributes| attributes.backend_data["VNI"] = json!(7));
        assert!(vni.contains("VNI is 7"), "{vni}");
        let data = with(&|attributes| attributes.backend_data = Value::Null);
        assert!(data.contains("backend data is \"null\""), "{data}");
        let address = with(&|attributes| attributes.public_ip = None);
        assert!(address.contains("no public IPv4 address"), "{address}");
    }

    #[test]
    fn without_an_ipv4_underlay_both_families_go_over_ipv6() {
        for (mode, header_len) in [(Mode::Vxlan, 70), (Mode::Udp, 48)] {
            let options = OverlayOptions {
                underlay_v4: None,
                ..overlay(mode).options
            };
            let own = Overlay::new(options.clone()).unwrap();
            let lease = Lease {
                attributes: own.attributes(),
                ..flannel_lease()
            };
            assert_eq!(
                Overlay::published_mac(&lease.attributes),
                (mode == Mode::Vxlan).then_some(options.mac)
            );
            let other = Overlay::new(OverlayOptions {
                node_name: "b".to_owned(),
                underlay_v6: Some("2001:db8::2".parse().unwrap()),
                ..options
            })
            .unwrap();
            let [routes, none] = other.peers(&lease).unwrap();
            assert_eq!(none, None);
            let PeerRoutes { peer, prefixes } = routes.unwrap();
            assert_eq!(prefixes, lease.subnets);
            assert_eq!(
                (peer.header_len, peer.mtu),
                (header_len, 1500 - u32::from(header_len))
            );
            assert_eq!(peer.underlay_addr[..4], [0x20, 1, 0x0d, 0xb8]);
            assert!(matches!(
                peer.mode,
                peer_mode::VXLAN_ON_LINK | peer_mode::UDP_ON_LINK
            ));
            // A node without IPv6 on its uplink cannot be reached.
            let error = other.peers(&flannel_lease());
            assert!(error.is_err(), "{error:?}");
        }
    }

    #[test]
    fn too_small_an_underlay_is_refused_with_the_least_mtu() {
        for (mode, least) in [(Mode::Vxlan, 1330), (Mode::Udp, 1308), (Mode::Direct, 1280)] {
            let with = |uplink_mtu| {
                Overlay::new(OverlayOptions {
                    uplink_mtu,
                    ..overlay(mode).options
                })
            };
            assert_eq!(with(least).unwrap().mtu(), 1280);
            let error = with(least - 1).unwrap_err().to_string();
            assert!(error.contains(&format!("at least {least}")), "{error}");
        }
    }
}
