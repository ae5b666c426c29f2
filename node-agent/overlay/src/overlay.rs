//! From Nodes to peers and routes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ebpf_abi::{Family, Peer, overlay_header, peer_mode};
use ipnetwork::Ipv4Network;
use node_agent_model::{Change, Node, PeerRoutes};

use crate::annotation::{
    BACKEND_DATA, BACKEND_TYPE, BackendData, KUBE_SUBNET_MANAGER, PUBLIC_IP, PUBLIC_IP_OVERWRITE,
    PUBLIC_IPV6, PUBLIC_IPV6_OVERWRITE,
};
use crate::header::Vtep;
use crate::{VtepMac, vxlan_header};

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
#[derive(Clone, Debug)]
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

#[derive(Clone, Debug)]
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

/// Why a Node gets no route.
#[derive(Debug, thiserror::Error)]
pub enum NotAPeer {
    #[error("it is this node")]
    Own,
    #[error("it has no podCIDR yet")]
    NoPodCidr,
    #[error("its annotation {0} is missing")]
    NoAnnotation(&'static str),
    #[error("its annotation {BACKEND_TYPE} is {found:?}, this node uses {expected:?}")]
    OtherBackend {
        found: String,
        expected: &'static str,
    },
    #[error("its annotation {BACKEND_DATA} is {text:?}")]
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

    /// The MAC address that this Node published before, if it did for VXLAN: peers keep it over a restart.
    pub fn published_mac(annotations: &BTreeMap<String, String>) -> Option<VtepMac> {
        let data: BackendData = serde_json::from_str(annotations.get(BACKEND_DATA)?).ok()?;
        Some(data.vtep_mac)
    }

    /// What this node's Node object must say, given what it says now.
    pub fn annotations(&self, now: &BTreeMap<String, String>) -> BTreeMap<&'static str, String> {
        let options = &self.options;
        let data = match options.mode {
            Mode::Vxlan => {
                let data = BackendData {
                    vni: options.vni,
                    vtep_mac: options.mac,
                };
                serde_json::to_string(&data).expect("a number and a string serialize")
            }
            Mode::Direct => "null".to_owned(),
        };
        let mut wanted = BTreeMap::from([
            (KUBE_SUBNET_MANAGER, "true".to_owned()),
            (BACKEND_TYPE, options.mode.backend_type().to_owned()),
            (BACKEND_DATA, data),
        ]);
        let overwrite = |key| now.get(key).filter(|text| !text.is_empty()).cloned();
        if let Some(v4) = options.underlay_v4 {
            wanted.insert(
                PUBLIC_IP,
                overwrite(PUBLIC_IP_OVERWRITE).unwrap_or_else(|| v4.to_string()),
            );
        }
        // Over VXLAN both families go by the IPv4 underlay: an IPv6 one would be an invitation to use it.
        if let (Some(v6), Mode::Direct) = (options.underlay_v6, options.mode) {
            wanted.insert(
                PUBLIC_IPV6,
                overwrite(PUBLIC_IPV6_OVERWRITE).unwrap_or_else(|| v6.to_string()),
            );
        }
        wanted
    }

    /// What a Node, or its absence, means to the model; and if it gets no route, why.
    ///
    /// A node is one peer over VXLAN, and one a family where packets are only routed: the next hop of an IPv6 packet has
    /// an IPv6 address.
    pub fn changes(&self, name: &str, node: Option<&Node>) -> ([Change; 2], Option<NotAPeer>) {
        let (peers, reason) = match node.map(|node| self.peers(node)) {
            Some(Ok(peers)) => (peers, None),
            Some(Err(reason)) => ([None, None], Some(reason)),
            None => ([None, None], None),
        };
        let [first, ipv6] = peers;
        let changes = [
            Change::Peer(name.to_owned(), first),
            Change::Peer(format!("{name}/ipv6"), ipv6),
        ];
        (changes, reason)
    }

    fn peers(&self, node: &Node) -> Result<[Option<PeerRoutes>; 2], NotAPeer> {
        let options = &self.options;
        if node.name == options.node_name {
            return Err(NotAPeer::Own);
        }
        if node.pod_cidrs.is_empty() {
            return Err(NotAPeer::NoPodCidr);
        }
        let annotation =
            |key: &'static str| node.annotations.get(key).ok_or(NotAPeer::NoAnnotation(key));
        if annotation(KUBE_SUBNET_MANAGER)? != "true" {
            return Err(NotAPeer::NoAnnotation(KUBE_SUBNET_MANAGER));
        }
        let expected = options.mode.backend_type();
        let found = annotation(BACKEND_TYPE)?;
        if found != expected {
            return Err(NotAPeer::OtherBackend {
                found: found.clone(),
                expected,
            });
        }
        if let (Mode::Vxlan, Some(own)) = (options.mode, options.underlay_v4) {
            let remote = address(PUBLIC_IP, annotation(PUBLIC_IP)?)?;
            let peer = self.vxlan_peer(own, remote, annotation(BACKEND_DATA)?)?;
            return Ok([
                Some(PeerRoutes {
                    peer,
                    prefixes: node.pod_cidrs.clone(),
                }),
                None,
            ]);
        }
        let direct =
            |v4: bool, remote: Result<IpAddr, NotAPeer>| -> Result<Option<PeerRoutes>, NotAPeer> {
                let prefixes: Vec<_> = node
                    .pod_cidrs
                    .iter()
                    .copied()
                    .filter(|cidr| cidr.is_ipv4() == v4)
                    .collect();
                let has_underlay = if v4 {
                    options.underlay_v4.is_some()
                } else {
                    options.underlay_v6.is_some()
                };
                if prefixes.is_empty() || !has_underlay {
                    return Ok(None);
                }
                Ok(Some(PeerRoutes {
                    peer: direct_peer(remote?, self.mtu()),
                    prefixes,
                }))
            };
        let v4 = annotation(PUBLIC_IP)
            .and_then(|text| address::<Ipv4Addr>(PUBLIC_IP, text))
            .map(IpAddr::V4);
        let v6 = annotation(PUBLIC_IPV6)
            .and_then(|text| address::<Ipv6Addr>(PUBLIC_IPV6, text))
            .map(IpAddr::V6);
        Ok([direct(true, v4)?, direct(false, v6)?])
    }

    fn vxlan_peer(&self, own: Ipv4Addr, remote: Ipv4Addr, data: &str) -> Result<Peer, NotAPeer> {
        let data: BackendData =
            serde_json::from_str(data).map_err(|source| NotAPeer::BadBackendData {
                text: data.to_owned(),
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

fn address<A: FromStr>(annotation: &'static str, text: &str) -> Result<A, NotAPeer> {
    text.parse().map_err(|_| NotAPeer::BadAddress {
        annotation,
        text: text.to_owned(),
    })
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

    fn flannel_node() -> Node {
        let annotations = [
            (KUBE_SUBNET_MANAGER, "true"),
            (BACKEND_TYPE, "vxlan"),
            (BACKEND_DATA, r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#),
            (PUBLIC_IP, "192.0.2.2"),
        ];
        Node {
            name: "b".to_owned(),
            internal_ips: vec![],
            pod_cidrs: vec![
                "10.244.2.0/24".parse().unwrap(),
                "fd00:10:244:2::/64".parse().unwrap(),
            ],
            annotations: annotations
                .map(|(key, text)| (key.to_owned(), text.to_owned()))
                .into(),
        }
    }

    #[test]
    fn both_pod_cidrs_of_a_flannel_node_lead_to_its_one_peer() {
        let [routes, none] = overlay(Mode::Vxlan).peers(&flannel_node()).unwrap();
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
        let mut node = flannel_node();
        node.annotations
            .insert(PUBLIC_IP.to_owned(), "192.0.2.17".to_owned());
        let [routes, _] = overlay(Mode::Vxlan).peers(&node).unwrap();
        assert_eq!(routes.unwrap().peer.mode, peer_mode::VXLAN);
    }

    #[test]
    fn what_one_node_publishes_makes_it_a_peer_of_the_other() {
        for mode in [Mode::Vxlan, Mode::Direct] {
            let published = overlay(mode).annotations(&BTreeMap::new());
            let annotations = published
                .into_iter()
                .map(|(key, text)| (key.to_owned(), text))
                .collect();
            let node = Node {
                name: "a".to_owned(),
                annotations,
                ..flannel_node()
            };
            let other = Overlay::new(OverlayOptions {
                node_name: "b".to_owned(),
                ..overlay(mode).options
            })
            .unwrap();
            let [first, ipv6] = other.peers(&node).unwrap();
            assert_eq!(first.unwrap().peer.underlay_addr[..4], [192, 0, 2, 1]);
            let ipv6 = ipv6.map(|routes| (routes.peer.underlay_addr[0], routes.prefixes.len()));
            assert_eq!(ipv6, (mode == Mode::Direct).then_some((0x20, 1)));
            assert!(matches!(overlay(mode).peers(&node), Err(NotAPeer::Own)));
        }
    }

    #[test]
    fn the_published_mac_address_is_found_again_after_a_restart() {
        let node = flannel_node();
        assert_eq!(
            Overlay::published_mac(&node.annotations)
                .unwrap()
                .to_string(),
            "12:c6:65:89:b4:e3"
        );
        assert_eq!(Overlay::published_mac(&BTreeMap::new()), None);
    }

    #[test]
    fn the_administrators_address_is_published_in_place_of_the_uplinks() {
        let now = BTreeMap::from([(PUBLIC_IP_OVERWRITE.to_owned(), "198.51.100.7".to_owned())]);
        assert_eq!(
            overlay(Mode::Vxlan).annotations(&now)[PUBLIC_IP],
            "198.51.100.7"
        );
    }

    #[test]
    fn a_node_that_cannot_be_reached_says_why() {
        let with = |key: &str, text: &str| {
            let mut node = flannel_node();
            node.annotations.insert(key.to_owned(), text.to_owned());
            overlay(Mode::Vxlan).peers(&node).unwrap_err().to_string()
        };
        assert!(with(BACKEND_TYPE, "host-gw").contains("\"host-gw\", this node uses \"vxlan\""));
        assert!(
            with(BACKEND_DATA, r#"{"VNI":7,"VtepMAC":"12:c6:65:89:b4:e3"}"#).contains("VNI is 7")
        );
        assert!(with(BACKEND_DATA, "null").contains("backend-data is \"null\""));
        assert!(with(PUBLIC_IP, "2001:db8::1").contains("public-ip"));
        let bare = Node {
            annotations: BTreeMap::new(),
            ..flannel_node()
        };
        assert!(
            overlay(Mode::Vxlan)
                .peers(&bare)
                .unwrap_err()
                .to_string()
                .contains("is missing")
        );
        let waiting = Node {
            pod_cidrs: vec![],
            ..flannel_node()
        };
        assert!(matches!(
            overlay(Mode::Vxlan).peers(&waiting),
            Err(NotAPeer::NoPodCidr)
        ));
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
