//! From leases to peers, and what this node's own lease says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ebpf_abi::{Family, Peer, overlay_header, peer_mode};
use ipnetwork::{IpNetwork, Ipv4Network};
use node_agent_model::PeerRoutes;
use serde_json::Value;

use crate::header::Vtep;
use crate::{Attributes, BackendData, Lease, VtepMac, vxlan_header};

/// Outer IPv4, UDP, VXLAN and inner Ethernet, in bytes.
pub const VXLAN_OVERHEAD_V4: u32 = 50;

/// How packets go to other nodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Encapsulated as flannel's `vxlan` backend does.
    Vxlan,
    /// Routed on a shared link, as flannel's `host-gw` backend does.
    Direct,
}

/// What an [`Overlay`] is made of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OverlayOptions {
    pub node_name: String,
    pub mode: Mode,
    /// This node's addresses on the uplink.
    pub underlay_v4: Option<Ipv4Addr>,
    pub underlay_v6: Option<Ipv6Addr>,
    /// IPv4 prefixes of the uplink's own link: peers in them need no route lookup.
    pub on_link_v4: Vec<Ipv4Network>,
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
}

/// The options cannot work.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OverlayError {
    #[error(
        "--overlay vxlan over the IPv6 underlay {0} is not there yet: give --uplink an interface with an IPv4 address, \
         or choose --overlay direct"
    )]
    Ipv6Underlay(Ipv6Addr),
    #[error("--uplink has no address: give it one, or name another interface")]
    NoAddress,
    #[error("--vni {0} has more than 24 bits: choose one from 1 to 16777215")]
    Vni(u32),
    #[error(
        "the uplink's MTU of {0} bytes leaves no room for IPv6 packets in the overlay: it must be at least 1330"
    )]
    Mtu(u32),
    #[error("--overlay {0:?} is unknown: choose vxlan or direct")]
    Mode(String),
}

/// Why a node gets no route.
#[derive(Debug, thiserror::Error)]
pub enum NotAPeer {
    #[error("it is this node")]
    Own,
    #[error("it has no podCIDR yet")]
    NoPodCidr,
    #[error("its annotation {0} is missing")]
    NoAnnotation(&'static str),
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
    BadAddress {
        annotation: &'static str,
        text: String,
    },
    #[error("it has no public {0} address")]
    NoAddress(&'static str),
    #[error(
        "its subnet {subnet} is claimed by {elder} too, whose lease is the elder: give one of them another podCIDR"
    )]
    Claimed { subnet: IpNetwork, elder: String },
}

impl Mode {
    /// The body of flannel's annotation.
    pub const fn backend_type(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Direct => "host-gw",
        }
    }
}

impl FromStr for Mode {
    type Err = OverlayError;

    fn from_str(text: &str) -> Result<Self, OverlayError> {
        match text {
            "vxlan" => Ok(Self::Vxlan),
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
        match (options.underlay_v4, options.underlay_v6) {
            (None, None) => return Err(OverlayError::NoAddress),
            (None, Some(v6)) if options.mode == Mode::Vxlan => {
                return Err(OverlayError::Ipv6Underlay(v6));
            }
            _ => {}
        }
        if options.vni == 0 || options.vni >= 1 << 24 {
            return Err(OverlayError::Vni(options.vni));
        }
        let overlay = Self { options };
        // RFC 8200 section 5: a link that carries IPv6 has an MTU of at least 1280 bytes.
        if overlay.mtu() < 1280 {
            return Err(OverlayError::Mtu(overlay.options.uplink_mtu));
        }
        Ok(overlay)
    }

    /// Largest packet of a pod that reaches every peer, in bytes.
    pub fn mtu(&self) -> u32 {
        match self.options.mode {
            Mode::Vxlan => self.options.uplink_mtu.saturating_sub(VXLAN_OVERHEAD_V4),
            Mode::Direct => self.options.uplink_mtu,
        }
    }

    pub fn options(&self) -> &OverlayOptions {
        &self.options
    }

    /// The MAC address that an earlier life of this node published, if it did for VXLAN: peers keep it over a restart.
    pub fn published_mac(earlier: &Attributes) -> Option<VtepMac> {
        let data: BackendData = serde_json::from_value(earlier.backend_data.clone()).ok()?;
        Some(data.vtep_mac)
    }

    /// What this node's lease must say.
    pub fn attributes(&self) -> Attributes {
        let options = &self.options;
        let backend_data = match options.mode {
            Mode::Vxlan => serde_json::to_value(BackendData {
                vni: options.vni,
                vtep_mac: options.mac,
            })
            .expect("a number and a string serialize"),
            Mode::Direct => Value::Null,
        };
        Attributes {
            public_ip: options.underlay_v4,
            // Over VXLAN both families go by the IPv4 underlay: an IPv6 one would be an invitation to use it.
            public_ipv6: options.underlay_v6.filter(|_| options.mode == Mode::Direct),
            backend_type: options.mode.backend_type().to_owned(),
            backend_data,
            backend_v6_data: Value::Null,
        }
    }

    /// How to reach the holder of a lease. A node is one peer over VXLAN, and one a family where packets are only
    /// routed: the next hop of an IPv6 packet has an IPv6 address.
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
        let no_v4 = NotAPeer::NoAddress("IPv4");
        if let (Mode::Vxlan, Some(own)) = (options.mode, options.underlay_v4) {
            let remote = attributes.public_ip.ok_or(no_v4)?;
            let routes = PeerRoutes {
                peer: self.vxlan_peer(own, remote, &attributes.backend_data)?,
                prefixes: lease.subnets.clone(),
            };
            return Ok([Some(routes), None]);
        }
        let direct = |v4: bool, remote: Result<IpAddr, NotAPeer>| {
            let of_family = |subnet: &IpNetwork| subnet.is_ipv4() == v4;
            let prefixes: Vec<_> = lease.subnets.iter().copied().filter(of_family).collect();
            let has_underlay = if v4 {
                options.underlay_v4.is_some()
            } else {
                options.underlay_v6.is_some()
            };
            if prefixes.is_empty() || !has_underlay {
                return Ok(None);
            }
            let peer = direct_peer(remote?, self.mtu());
            Ok(Some(PeerRoutes { peer, prefixes }))
        };
        let v4 = attributes.public_ip.map(IpAddr::V4).ok_or(no_v4);
        let v6 = attributes.public_ipv6.map(IpAddr::V6);
        let v6 = v6.ok_or(NotAPeer::NoAddress("IPv6"));
        Ok([direct(true, v4)?, direct(false, v6)?])
    }

    fn vxlan_peer(&self, own: Ipv4Addr, remote: Ipv4Addr, data: &Value) -> Result<Peer, NotAPeer> {
        let data: BackendData =
            serde_json::from_value(data.clone()).map_err(|source| NotAPeer::BadBackendData {
                text: data.to_string(),
                source,
            })?;
        let options = &self.options;
        if data.vni != options.vni {
            return Err(NotAPeer::OtherVni {
                found: data.vni,
                expected: options.vni,
            });
        }
        let own = Vtep {
            underlay: own,
            mac: options.mac,
        };
        let peer = Vtep {
            underlay: remote,
            mac: data.vtep_mac,
        };
        let (header, header_sum) = vxlan_header(own, peer, options.port, options.vni);
        Ok(Peer {
            header,
            header_sum,
            header_len: overlay_header::VXLAN_OVER_IPV4 as u16,
            mode: if options.on_link_v4.iter().any(|link| link.contains(remote)) {
                peer_mode::VXLAN_ON_LINK
            } else {
                peer_mode::VXLAN
            },
            ..direct_peer(remote.into(), self.mtu())
        })
    }
}

fn direct_peer(remote: IpAddr, mtu: u32) -> Peer {
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
            underlay_v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            underlay_v6: Some("2001:db8::1".parse().unwrap()),
            on_link_v4: vec!["192.0.2.0/28".parse().unwrap()],
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
    fn what_one_node_publishes_makes_it_a_peer_of_the_other() {
        for mode in [Mode::Vxlan, Mode::Direct] {
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
    fn an_ipv6_underlay_is_refused_with_the_way_out() {
        let options = OverlayOptions {
            underlay_v4: None,
            ..overlay(Mode::Vxlan).options
        };
        assert!(
            Overlay::new(options.clone())
                .unwrap_err()
                .to_string()
                .contains("--overlay direct")
        );
        assert!(
            Overlay::new(OverlayOptions {
                mode: Mode::Direct,
                ..options
            })
            .is_ok()
        );
    }
}
