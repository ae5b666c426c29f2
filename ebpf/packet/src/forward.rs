//! Where a packet goes after translation: a pod of this node, the host, another node, out of the cluster.

use ebpf_abi::{Config, DropReason, KEEPS_SOURCE, Peer, config_flag, endpoint_flag, peer_mode};

use crate::{
    Ip, Node, Packet, PeerEvent, direct_return, encapsulate,
    ip::ETH_LEN,
    parse::{Headers, Kind},
    path::Origin,
    verdict::Step,
    write::Target,
};

/// Where a destination lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// A pod of this node.
    Pod,
    Host,
    /// The node's own address for source NAT: nothing listens there.
    SourceNat,
    /// Another node.
    Peer,
    /// Neither here nor on a known node.
    Outside,
}

/// Addresses of services are nowhere: a packet that no frontend took goes on as any other.
const SERVICE: u32 = endpoint_flag::CLUSTER_IP | endpoint_flag::VIP;

/// How to get to a destination. No enum with data: the verifier rejects that a payload which only some variants have
/// is copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) place: Place,
    /// See [`endpoint_flag`].
    pub(crate) flags: u32,
    /// Of a pod: the host side of its veth.
    ifindex: u32,
    /// Of a pod or the host: see [`Packet::store_ethernet`].
    macs: [u32; 3],
    /// Of another node.
    pub(crate) peer_id: u32,
}

impl Way {
    #[inline(always)]
    pub(crate) fn find<A: Ip, N: Node<A>>(node: &N, dst: &A) -> Self {
        let mut way = Self {
            place: Place::Outside,
            flags: 0,
            ifindex: 0,
            macs: [0; 3],
            peer_id: 0,
        };
        if let Some(endpoint) = node.endpoint(dst) {
            way.flags = endpoint.flags;
            way.ifindex = endpoint.ifindex;
            way.macs = endpoint.macs();
            way.place = if way.flags & endpoint_flag::SOURCE_NAT != 0 {
                Place::SourceNat
            } else if way.flags & endpoint_flag::HOST != 0 {
                Place::Host
            } else if way.flags & SERVICE != 0 {
                Place::Outside
            } else {
                Place::Pod
            };
        } else if let Some(peer_id) = node.route(dst) {
            way.place = Place::Peer;
            way.peer_id = peer_id;
        }
        way
    }

    /// Whether the address is a service's.
    #[inline(always)]
    pub(crate) fn is_service(&self) -> bool {
        self.flags & SERVICE != 0
    }

    /// Whether the address is a pod's: no frontend can have it.
    #[inline(always)]
    pub(crate) fn is_pod(&self) -> bool {
        matches!(self.place, Place::Pod | Place::Peer)
    }
}

/// A packet on its way, with what was decided about it.
#[derive(Clone, Copy)]
pub(crate) struct Forward<'a, A> {
    pub(crate) config: &'a Config,
    /// The tuple that the packet gets, if it gets another one.
    pub(crate) target: Option<Target<'a, A>>,
    pub(crate) origin: Origin,
    /// The packet keeps its tuple: `target` only says to which backend of another node it is handed on.
    pub(crate) hands_on: bool,
}

impl<A: Ip> Forward<'_, A> {
    /// Writes the decision into the packet and sends it its way; counts it where that leads to another node.
    #[inline(always)]
    pub(crate) fn send<P: Packet, N: Node<A>>(
        self,
        packet: &mut P,
        node: &N,
        headers: &mut Headers<A>,
        way: Way,
    ) -> Step {
        let step = self.send_on(packet, node, headers, way);
        if matches!(way.place, Place::Peer) {
            let bytes = headers.end - ETH_LEN as u32;
            if step.is_to_network() || step.is_to_device() {
                node.count_peer(way.peer_id, PeerEvent::Sent, bytes);
            } else if step.is_drop() {
                node.count_peer(way.peer_id, PeerEvent::Dropped, bytes);
            }
        }
        step
    }

    #[inline(always)]
    fn send_on<P: Packet, N: Node<A>>(
        self,
        packet: &mut P,
        node: &N,
        headers: &mut Headers<A>,
        way: Way,
    ) -> Step {
        // This node routes the packet, unless it sent it itself.
        let mut hop = !matches!(self.origin, Origin::Host);
        let mut overlay = None;
        // The Ethernet header, unless it is written anew where the packet leaves.
        let mut link = None;
        let step = match way.place {
            Place::Pod => {
                link = Some(way.macs);
                if way.flags & endpoint_flag::LIMITED != 0 {
                    Step::to_device(way.ifindex)
                } else {
                    Step::to_pod(way.ifindex)
                }
            }
            Place::Host if self.target.is_none() && !matches!(self.origin, Origin::Overlay) => {
                return Step::PASS;
            }
            Place::Host => {
                hop = false;
                link = Some(way.macs);
                Step::TO_HOST
            }
            Place::SourceNat => return Step::drop(DropReason::NoConnection),
            Place::Peer => {
                let peer = match self.peer(packet, node, headers, way.peer_id) {
                    Ok(peer) => peer,
                    Err(step) => return step,
                };
                if peer.mode == peer_mode::DIRECT {
                    Step::to_network(way.peer_id)
                } else if peer.device_ifindex != 0
                    && encapsulate::needs_device(packet, headers, peer)
                {
                    link = Some(encapsulate::device_macs(peer));
                    Step::to_device(peer.device_ifindex)
                } else {
                    overlay = Some(peer);
                    let on_link =
                        matches!(peer.mode, peer_mode::VXLAN_ON_LINK | peer_mode::UDP_ON_LINK);
                    Step::to_network(if on_link { way.peer_id } else { 0 })
                }
            }
            Place::Outside => match self.outside(packet, node, headers) {
                Ok(()) => Step::to_network(0),
                Err(step) => return step,
            },
        };
        if step.is_to_network() && self.config.uplink_ifindex == 0 {
            return Step::drop(DropReason::NoConfig);
        }
        if hop && headers.ttl() <= 1 {
            return Step::TIME_EXCEEDED;
        }
        let written = if self.hands_on { None } else { self.target };
        if let Err(reason) = headers.write(packet, written, hop) {
            return Step::drop(reason);
        }
        if let Some(macs) = link
            && packet.store_ethernet(macs, A::ETHERTYPE).is_err()
        {
            return Step::drop(DropReason::RewriteFailed);
        }
        if let Some(peer) = overlay
            && let Err(reason) = encapsulate::encapsulate(packet, headers, peer)
        {
            return Step::drop(reason);
        }
        if self.hands_on
            && let Err(reason) = direct_return::label(packet, self.config, overlay, self.target)
        {
            return Step::drop(reason);
        }
        step
    }

    /// The peer to which a packet may go.
    #[inline(always)]
    fn peer<'n, P: Packet, N: Node<A>>(
        self,
        packet: &P,
        node: &'n N,
        headers: &Headers<A>,
        peer_id: u32,
    ) -> Result<&'n Peer, Step> {
        match self.origin {
            Origin::Overlay if self.target.is_none() => {
                return Err(Step::drop(DropReason::OverlayNotLocal));
            }
            Origin::Network if self.target.is_none() => return Err(Step::PASS),
            _ => {}
        }
        let Some(peer) = node.peer(peer_id) else {
            return Err(Step::drop(DropReason::NoPeer));
        };
        if peer.mode == peer_mode::NONE || peer.mode > peer_mode::DEVICE {
            return Err(Step::drop(DropReason::NoPeer));
        }
        if is_longer_than(packet, headers, peer.mtu) {
            return Err(Step::too_big(peer.mtu));
        }
        Ok(peer)
    }

    /// Whether a packet may leave the cluster.
    #[inline(always)]
    fn outside<P: Packet, N: Node<A>>(
        self,
        packet: &P,
        node: &N,
        headers: &Headers<A>,
    ) -> Result<(), Step> {
        if self.target.is_none() {
            let masquerade = masquerades(node, self.config, &headers.tuple().dst);
            return Err(match self.origin {
                Origin::Overlay => Step::drop(DropReason::OverlayNotLocal),
                Origin::Pod if masquerade => match headers.kind {
                    Kind::WHOLE | Kind::FIRST_FRAGMENT => Step::OPEN_MASQUERADE,
                    Kind::LATER_FRAGMENT => Step::drop(DropReason::FragmentUnknown),
                    _ => Step::drop(DropReason::NoConnection),
                },
                _ => Step::PASS,
            });
        }
        if is_longer_than(packet, headers, self.config.uplink_mtu) {
            return Err(Step::too_big(self.config.uplink_mtu));
        }
        Ok(())
    }
}

/// Whether a pod shows the node's address to this one, which lies outside of the cluster.
#[inline(always)]
pub(crate) fn masquerades<A: Ip, N: Node<A>>(node: &N, config: &Config, dst: &A) -> bool {
    config.flags & config_flag::MASQUERADE != 0 && !node.admits(KEEPS_SOURCE, dst)
}

/// Whether the packet, or each segment that the device will cut from it, is longer than `mtu`; 0 means no limit.
#[inline(always)]
pub(crate) fn is_longer_than<A: Ip, P: Packet>(packet: &P, headers: &Headers<A>, mtu: u32) -> bool {
    let segment = packet.segment_payload();
    let len = if segment == 0 {
        headers.end - ETH_LEN as u32
    } else {
        headers.header_len + segment
    };
    mtu != 0 && len > mtu
}
