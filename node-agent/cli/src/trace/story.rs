//! What the packet code asked and was answered, in words.

use std::{cell::RefCell, collections::BTreeSet, net::IpAddr, time::Duration};

use ebpf_abi::{
    Affinity, Backend, Conn, ConnKey, Endpoint, Frontend, FrontendKey, Peer, Service, conn_flag,
    endpoint_flag, frontend_flag, peer_mode,
};
use node_agent_model::MapFamily;
use serde::Serialize;

use crate::{service::or_dash, status::interface, view::View, words};

/// The lines in the order in which they happened, each once: the code looks twice at a connection's first packet.
#[derive(Debug, Default)]
pub struct Story {
    lines: RefCell<Vec<Line>>,
    told: RefCell<BTreeSet<String>>,
}

/// One thing that the code looked at or would do.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Which part of the path: the name of the map's kind, or of the hook.
    pub at: &'static str,
    pub says: String,
}

impl Story {
    pub fn tell(&self, at: &'static str, says: impl Into<String>) {
        let says = says.into();
        if self.told.borrow_mut().insert(says.clone()) {
            self.lines.borrow_mut().push(Line { at, says });
        }
    }

    pub fn into_lines(self) -> Vec<Line> {
        self.lines.into_inner()
    }

    pub fn connection<A: MapFamily>(
        &self,
        key: &ConnKey<A>,
        found: Option<&(Conn<A>, bool)>,
        now_ns: u64,
    ) {
        let Some((conn, is_reply)) = found else {
            return self.tell("connection", format!("no entry for {}", tuple(key)));
        };
        let idle = Duration::from_nanos(now_ns.saturating_sub(conn.last_seen_ns));
        let (direction, other) = if *is_reply {
            ("an answer: ", conn.original)
        } else {
            ("", conn.reply)
        };
        let other_backend = conn.original.dst != conn.reply.src;
        let backend = match conn.flags & conn_flag::SERVICE {
            0 if other_backend => "another node chose the backend".to_owned(),
            0 => "masquerade".to_owned(),
            _ => format!(
                "backend id {} of epoch {}",
                conn.backend_id, conn.backend_epoch
            ),
        };
        self.tell(
            "connection",
            format!(
                "{direction}{} is known and becomes {}; {backend}, last packet {} ago",
                tuple(key),
                tuple(&other.reversed()),
                words::duration(idle)
            ),
        );
    }

    pub fn frontend<A: MapFamily>(
        &self,
        view: &View,
        key: &FrontendKey<A>,
        found: Option<Frontend>,
    ) {
        let addr = words::socket(key.addr.to_ip(), u16::from_be(key.port_be));
        let protocol = words::protocol(key.protocol);
        let Some(frontend) = found else {
            return self.tell("frontend", format!("no Service has {protocol} {addr}"));
        };
        let id = frontend.service_id;
        let service = view.services.get(&id).map_or_else(
            || format!("service id {id}"),
            |service| {
                format!(
                    "Service {} (port {}, policy {}, service id {id})",
                    service.label(),
                    or_dash(&service.port_name),
                    service.traffic_policy
                )
            },
        );
        let reach = match frontend.flags & frontend_flag::EXTERNAL {
            0 => "from inside the cluster only",
            _ => "from outside too",
        };
        let inside = match frontend.inside_id {
            same if same == id => String::new(),
            inside => format!("; clients inside the cluster take service id {inside}"),
        };
        self.tell(
            "frontend",
            format!("{protocol} {addr} belongs to {service}, reached {reach}{inside}"),
        );
    }

    pub fn admitted<A: MapFamily>(&self, source: A, admitted: bool) {
        let source = source.to_ip();
        self.tell(
            "source ranges",
            match admitted {
                true => format!("loadBalancerSourceRanges hold {source}"),
                false => format!("loadBalancerSourceRanges do not hold {source}"),
            },
        );
    }

    pub fn affinity(&self, found: Option<&Affinity>, now_ns: u64) {
        let Some(affinity) = found else {
            return self.tell("affinity", "the client was not here before");
        };
        let ago = Duration::from_nanos(now_ns.saturating_sub(affinity.last_ns));
        self.tell(
            "affinity",
            format!(
                "the client went to backend id {} of epoch {}, {} ago",
                affinity.backend_id,
                affinity.backend_epoch,
                words::duration(ago)
            ),
        );
    }

    pub fn service(&self, id: u32, found: Option<Service>) {
        match found {
            None => self.tell("service", format!("service id {id} is not there")),
            Some(service) if service.slot_count == 0 => self.tell("service", "it has no backend"),
            Some(service) => self.tell(
                "service",
                format!(
                    "it has {} slots from slot {} on",
                    service.slot_count, service.slot_base
                ),
            ),
        }
    }

    pub fn turn(&self, turn: u32) {
        self.tell(
            "service",
            format!("{turn} connections came before: this one has the next turn"),
        );
    }

    pub fn backend<A: MapFamily>(&self, id: u32, backend: &Backend<A>) {
        self.tell(
            "backend",
            format!(
                "backend id {id} is {}, {}, epoch {}",
                words::socket(backend.addr.to_ip(), u16::from_be(backend.port_be)),
                words::backend(backend.state),
                backend.epoch
            ),
        );
    }

    pub fn endpoint<A: MapFamily>(&self, addr: A, endpoint: &Endpoint) {
        let ip = addr.to_ip();
        let what = if endpoint.flags & endpoint_flag::SOURCE_NAT != 0 {
            "this node's address for source NAT".to_owned()
        } else if endpoint.flags & endpoint_flag::HOST != 0 {
            "an address of this host".to_owned()
        } else {
            format!("a pod of this node, behind {}", interface(endpoint.ifindex))
        };
        self.tell("endpoint", format!("{ip} is {what}"));
    }

    pub fn route<A: MapFamily>(&self, view: &View, addr: A, found: Option<u32>) {
        let ip = addr.to_ip();
        match found {
            None => self.tell(
                "route",
                format!("{ip} is neither on this node nor on a node that it knows"),
            ),
            Some(id) => {
                let peer = view.held.peers.get(&id);
                let peer = peer.map_or_else(|| "which is not there".into(), describe);
                self.tell("route", format!("{ip} lies on peer {id}, {peer}"));
            }
        }
    }

    pub fn tracked<A: MapFamily>(&self, key: &ConnKey<A>, target: &ConnKey<A>, flags: u32) {
        let nat = match flags & (conn_flag::SOURCE_NAT | conn_flag::DIRECT_RETURN) {
            0 => "",
            conn_flag::SOURCE_NAT => ", by source NAT",
            _ => " on the backend's node, to which they are handed on as they are",
        };
        let becomes = |key: &ConnKey<A>, target: &ConnKey<A>| {
            format!("{} would become {}", tuple(key), tuple(target))
        };
        let answers = becomes(&target.reversed(), &key.reversed());
        self.tell("tracking", format!("answers {answers}"));
        let packets = becomes(key, target);
        self.tell("tracking", format!("packets {packets}{nat}"));
    }

    pub fn taken<A: MapFamily>(&self, key: &ConnKey<A>) {
        self.tell(
            "tracking",
            format!("{} is taken by another connection", tuple(key)),
        );
    }

    pub fn forgotten<A: MapFamily>(&self, key: &ConnKey<A>) {
        self.tell("tracking", format!("{} would be forgotten", tuple(key)));
    }
}

/// Where a peer is and how packets get there.
pub fn describe(peer: &Peer) -> String {
    let mode = match peer.mode {
        peer_mode::VXLAN | peer_mode::VXLAN_ON_LINK => "by VXLAN to",
        peer_mode::UDP | peer_mode::UDP_ON_LINK => "in bare UDP to",
        peer_mode::DIRECT => "by plain routing to",
        _ => return "whose id is not in use".into(),
    };
    let octets = &peer.underlay_addr;
    let ip = if peer.underlay_family == ebpf_abi::Family::V4 as u8 {
        IpAddr::from([octets[0], octets[1], octets[2], octets[3]])
    } else {
        IpAddr::from(*octets)
    };
    format!("{mode} {ip}, MTU {}", peer.mtu)
}

fn tuple<A: MapFamily>(key: &ConnKey<A>) -> String {
    format!(
        "{} {} -> {}",
        words::protocol(key.protocol),
        words::end(key.src, key.src_port_be, key.protocol),
        words::end(key.dst, key.dst_port_be, key.protocol)
    )
}
