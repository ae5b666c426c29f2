//! Where a packet goes after translation: a pod of this node, the host, another node, out of the cluster.

use ebpf_abi::{Config, ConnKey, DropReason, Endpoint, config_flag, endpoint_flag, peer_mode};

use crate::{
    Ip, Node, Packet, encapsulate,
    ip::ETH_LEN,
    parse::{Headers, Kind},
    path::Origin,
    verdict::Step,
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

/// How to get to a destination. No enum with data: the verifier rejects that a payload which only some variants have
/// is copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) place: Place,
    /// Of a pod or the host.
    endpoint: Endpoint,
    /// Of another node.
    peer_id: u32,
}

impl Way {
    #[inline(always)]
    pub(crate) fn find<A: Ip, N: Node<A>>(node: &N, dst: &A) -> Self {
        let mut way = Self {
            place: Place::Outside,
            endpoint: Endpoint::default(),
            peer_id: 0,
        };
        if let Some(endpoint) = node.endpoint(dst) {
            way.endpoint = endpoint;
            way.place = if endpoint.flags & endpoint_flag::SOURCE_NAT != 0 {
                Place::SourceNat
            } else if endpoint.flags & endpoint_flag::HOST != 0 {
                Place::Host
            } else {
                Place::Pod
            };
        } else if let Some(peer_id) = node.route(dst) {
            way.place = Place::Peer;
            way.peer_id = peer_id;
        }
        way
    }

    /// Whether the address is a pod's: no frontend can have it.
    #[inline(always)]
    pub(crate) fn is_pod(&self) -> bool {
        matches!(self.place, Place::Pod | Place::Peer)
    }
}

/// A packet on its way, with what was decided about it.
#[derive(Clone, Copy)]
pub(crate) struct Forward<'a> {
    pub(crate) config: &'a Config,
    /// Whether the packet gets another tuple.
    pub(crate) translated: bool,
    pub(crate) origin: Origin,
}

impl Forward<'_> {
    /// Writes the decision into the packet and sends it its way.
    #[inline(always)]
    pub(crate) fn send<A: Ip, P: Packet, N: Node<A>>(
        self,
        packet: &mut P,
        node: &N,
        headers: &mut Headers<A>,
        target: &ConnKey<A>,
        way: Way,
    ) -> Step {
        match way.place {
            Place::Pod => {
                headers.set_macs(&way.endpoint.pod_mac, &way.endpoint.host_mac);
                self.finish(
                    packet,
                    headers,
                    target,
                    Step::to_pod(way.endpoint.ifindex),
                    true,
                )
            }
            Place::Host => self.to_host(packet, headers, target, &way.endpoint),
            Place::SourceNat => Step::drop(DropReason::NoConnection),
            Place::Peer => self.to_peer(packet, node, headers, target, way.peer_id),
            Place::Outside => self.outside(packet, headers, target),
        }
    }

    #[inline(always)]
    fn to_host<A: Ip, P: Packet>(
        self,
        packet: &mut P,
        headers: &mut Headers<A>,
        target: &ConnKey<A>,
        endpoint: &Endpoint,
    ) -> Step {
        if !self.translated && !matches!(self.origin, Origin::Overlay) {
            return Step::PASS;
        }
        headers.set_macs(&endpoint.pod_mac, &endpoint.host_mac);
        self.finish(packet, headers, target, Step::TO_HOST, false)
    }

    #[inline(always)]
    fn to_peer<A: Ip, P: Packet, N: Node<A>>(
        self,
        packet: &mut P,
        node: &N,
        headers: &mut Headers<A>,
        target: &ConnKey<A>,
        peer_id: u32,
    ) -> Step {
        match self.origin {
            Origin::Overlay if !self.translated => return Step::drop(DropReason::OverlayNotLocal),
            Origin::Network if !self.translated => return Step::PASS,
            _ => {}
        }
        let Some(peer) = node.peer(peer_id) else {
            return Step::drop(DropReason::NoPeer);
        };
        if is_longer_than(packet, headers, peer.mtu) {
            return Step::too_big(peer.mtu);
        }
        match peer.mode {
            peer_mode::VXLAN => {
                let step = self.finish(packet, headers, target, Step::to_network(0), true);
                if !step.is_to_network() {
                    return step;
                }
                match encapsulate::encapsulate::<A, P>(packet, peer) {
                    Ok(()) => step,
                    Err(reason) => Step::drop(reason),
                }
            }
            peer_mode::DIRECT => {
                self.finish(packet, headers, target, Step::to_network(peer_id), true)
            }
            _ => Step::drop(DropReason::NoPeer),
        }
    }

    #[inline(always)]
    fn outside<A: Ip, P: Packet>(
        self,
        packet: &mut P,
        headers: &mut Headers<A>,
        target: &ConnKey<A>,
    ) -> Step {
        if !self.translated {
            let masquerade = self.config.flags & config_flag::MASQUERADE != 0;
            match self.origin {
                Origin::Pod if masquerade => {}
                Origin::Overlay => return Step::drop(DropReason::OverlayNotLocal),
                _ => return Step::PASS,
            }
            return match headers.kind {
                Kind::Whole | Kind::FirstFragment => Step::OPEN_MASQUERADE,
                Kind::LaterFragment => Step::drop(DropReason::FragmentUnknown),
                _ => Step::drop(DropReason::NoConnection),
            };
        }
        if is_longer_than(packet, headers, self.config.uplink_mtu) {
            return Step::too_big(self.config.uplink_mtu);
        }
        self.finish(packet, headers, target, Step::to_network(0), true)
    }

    /// Writes the headers; `hop`: this node routes the packet, as far as it did not send it itself.
    #[inline(always)]
    fn finish<A: Ip, P: Packet>(
        self,
        packet: &mut P,
        headers: &mut Headers<A>,
        target: &ConnKey<A>,
        step: Step,
        hop: bool,
    ) -> Step {
        if step.is_to_network() && self.config.uplink_ifindex == 0 {
            return Step::drop(DropReason::NoConfig);
        }
        let hop = hop && !matches!(self.origin, Origin::Host);
        if hop && headers.ttl() <= 1 {
            return Step::drop(DropReason::TtlExceeded);
        }
        match headers.write(packet, target, self.translated, hop) {
            Ok(()) => step,
            Err(reason) => Step::drop(reason),
        }
    }
}

/// Whether the packet, or each segment that the device will cut from it, is longer than `mtu`; 0 means no limit.
#[inline(always)]
fn is_longer_than<A: Ip, P: Packet>(packet: &P, headers: &Headers<A>, mtu: u32) -> bool {
    let segment = packet.segment_payload();
    let len = if segment == 0 {
        headers.end - ETH_LEN as u32
    } else {
        headers.header_len + segment
    };
    mtu != 0 && len > mtu
}
