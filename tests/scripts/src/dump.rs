//! The maps as a reader thinks of them: without ids, which depend on the order of arrival.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;

use ebpf_abi::{Addr4, Addr6, Peer, backend_state, endpoint_flag, frontend_flag, peer_mode};
use node_agent_model::{MapFamily, Snapshot};

/// One block for each service, in the order of its first frontend; then backends that drain, endpoints and routes.
pub fn dump(maps: &Snapshot) -> String {
    let mut out = Vec::new();
    family::<Addr4>(maps, &mut out);
    family::<Addr6>(maps, &mut out);
    out.concat()
}

fn family<A: MapFamily>(maps: &Snapshot, out: &mut Vec<String>) {
    let half = A::half(maps);
    let mut services: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let mut order = Vec::new();
    for (key, frontend) in &half.frontends {
        let protocol = if key.protocol == 17 { "UDP" } else { "TCP" };
        let external = if frontend.flags & frontend_flag::EXTERNAL != 0 {
            " external"
        } else {
            ""
        };
        let line = format!(
            "  frontend {} {protocol}{external}\n",
            socket(key.addr, key.port_be)
        );
        if !services.contains_key(&frontend.service_id) {
            order.push(frontend.service_id);
        }
        services.entry(frontend.service_id).or_default().push(line);
    }
    for id in order {
        let mut text = format!("service\n{}", services[&id].concat());
        match maps.services.get(&id) {
            None => text.push_str("  missing\n"),
            Some(service) => {
                for slot in service.slot_base..service.slot_base + service.slot_count {
                    let backend = maps.slots.get(&slot).and_then(|id| half.backends.get(id));
                    let line =
                        backend.map(|backend| socket(backend.addr, backend.port_be).to_string());
                    let state = backend.map_or("", |backend| state(backend.state));
                    let _ = writeln!(
                        text,
                        "  slot {}{state}",
                        line.unwrap_or_else(|| "missing".to_owned())
                    );
                }
            }
        }
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
        let flags = [
            (endpoint_flag::HOST, " host"),
            (endpoint_flag::SOURCE_NAT, " source-nat"),
        ];
        let flags: String = flags
            .iter()
            .filter(|(bit, _)| endpoint.flags & bit != 0)
            .map(|(_, name)| *name)
            .collect();
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
