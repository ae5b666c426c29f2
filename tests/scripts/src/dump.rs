//! The maps as a reader thinks of them: without ids, which depend on the order of arrival.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;

use ebpf_abi::{
    Addr4, Addr6, Peer, backend_state, endpoint_flag, frontend_flag, peer_mode, service_flag,
};
use node_agent_model::{MapFamily, Snapshot};

const FRONTEND_FLAGS: [(u32, &str); 3] = [
    (frontend_flag::EXTERNAL, "external"),
    (frontend_flag::SOURCE_RANGES, "filtered"),
    (frontend_flag::LOOPBACK, "loopback"),
];
const SERVICE_FLAGS: [(u32, &str); 3] = [
    (service_flag::DROP_IF_EMPTY, "drop-if-empty"),
    (service_flag::RANDOM, "random"),
    (service_flag::MAGLEV, "maglev"),
];
const ENDPOINT_FLAGS: [(u32, &str); 4] = [
    (endpoint_flag::HOST, "host"),
    (endpoint_flag::SOURCE_NAT, "source-nat"),
    (endpoint_flag::CLUSTER_IP, "cluster-ip"),
    (endpoint_flag::VIP, "vip"),
];

/// One block for each service, in the order of its first frontend; then backends that drain, endpoints and routes.
pub fn dump(maps: &Snapshot) -> String {
    let mut out = Vec::new();
    family::<Addr4>(maps, &mut out);
    family::<Addr6>(maps, &mut out);
    out.concat()
}

fn family<A: MapFamily>(maps: &Snapshot, out: &mut Vec<String>) {
    let half = A::half(maps);
    let mut services: BTreeMap<u32, String> = BTreeMap::new();
    let mut order = Vec::new();
    for (key, frontend) in &half.frontends {
        let protocol = protocol(key.protocol);
        let addr = socket(key.addr, key.port_be);
        let flags = names(frontend.flags, &FRONTEND_FLAGS);
        let mut line = |id: u32, text: String| {
            if !services.contains_key(&id) {
                order.push(id);
            }
            services.entry(id).or_default().push_str(&text);
        };
        line(
            frontend.service_id,
            format!("  frontend {addr} {protocol}{flags}\n"),
        );
        if frontend.inside_id != frontend.service_id {
            line(
                frontend.inside_id,
                format!("  inside of {addr} {protocol}\n"),
            );
        }
    }
    for id in order {
        let service = maps.services.get(&id).copied().unwrap_or_default();
        let affinity = match service.affinity_seconds {
            0 => String::new(),
            seconds => format!(" affinity {seconds} s, {} members", service.member_count),
        };
        let flags = names(service.flags, &SERVICE_FLAGS);
        let mut text = format!("service{flags}{affinity}\n{}", services[&id]);
        let ranges = half
            .ranges
            .iter()
            .filter(|key| key.service_id_be == id.to_be());
        for key in ranges {
            let _ = writeln!(
                text,
                "  source {}/{}",
                key.addr.to_ip(),
                key.prefix_len - 32
            );
        }
        text.push_str(&slots::<A>(maps, id));
        out.push(text);
    }
    let draining = half
        .backends
        .values()
        .filter(|backend| backend.state == backend_state::TERMINATING);
    let mut draining: Vec<_> = draining
        .map(|backend| {
            format!(
                "backend {} terminating\n",
                socket(backend.addr, backend.port_be)
            )
        })
        .collect();
    draining.sort();
    out.extend(draining);
    for (addr, endpoint) in &half.endpoints {
        let flags = names(endpoint.flags, &ENDPOINT_FLAGS);
        out.push(format!(
            "endpoint {} ifindex {}{flags}\n",
            addr.to_ip(),
            endpoint.ifindex
        ));
    }
    for (key, route) in &half.routes {
        let peer = maps.peers.get(&route.peer_id).copied().unwrap_or_default();
        out.push(format!(
            "route {}/{} {}\n",
            key.addr.to_ip(),
            key.prefix_len,
            peer_text(&peer)
        ));
    }
}

/// The slots in the order of their backends' addresses; how many each has, if more than one.
fn slots<A: MapFamily>(maps: &Snapshot, id: u32) -> String {
    let Some(service) = maps.services.get(&id) else {
        return "  missing\n".to_owned();
    };
    let mut counts: BTreeMap<_, usize> = BTreeMap::new();
    for slot in service.slot_base..service.slot_base + service.slot_count {
        let backend = maps
            .slots
            .get(&slot)
            .and_then(|id| A::half(maps).backends.get(id));
        let key =
            backend.map(|backend| (socket(backend.addr, backend.port_be), state(backend.state)));
        *counts.entry(key).or_default() += 1;
    }
    let mut text = String::new();
    for (backend, count) in counts {
        let backend = backend.map_or_else(
            || "missing".to_owned(),
            |(addr, state)| format!("{addr}{state}"),
        );
        let times = match count {
            1 => String::new(),
            _ => format!(" x{count}"),
        };
        let _ = writeln!(text, "  slot {backend}{times}");
    }
    text
}

/// The names of the bits that are set, each after a space.
fn names(flags: u32, of: &[(u32, &str)]) -> String {
    let set = of.iter().filter(|(bit, _)| flags & bit != 0);
    set.map(|(_, name)| format!(" {name}")).collect()
}

fn protocol(number: u8) -> &'static str {
    match number {
        6 => "TCP",
        17 => "UDP",
        132 => "SCTP",
        _ => "unknown protocol",
    }
}

fn socket<A: MapFamily>(addr: A, port_be: u16) -> SocketAddr {
    SocketAddr::new(addr.to_ip(), u16::from_be(port_be))
}

fn state(state: u16) -> &'static str {
    match state {
        backend_state::ACTIVE => "",
        backend_state::TERMINATING => " terminating",
        _ => " free",
    }
}

fn peer_text(peer: &Peer) -> String {
    let octets = &peer.underlay_addr;
    let addr = match peer.underlay_family {
        2 => format!("{}.{}.{}.{}", octets[0], octets[1], octets[2], octets[3]),
        _ => std::net::Ipv6Addr::from(*octets).to_string(),
    };
    let mac = &peer.header[36..42];
    match peer.mode {
        peer_mode::VXLAN => format!(
            "vxlan {addr} mac {:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x} mtu {}",
            mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], peer.mtu
        ),
        peer_mode::DIRECT => format!("direct {addr} mtu {}", peer.mtu),
        _ => "missing".to_owned(),
    }
}
