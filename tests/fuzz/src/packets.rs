//! Frames: what the underlay sends, encapsulated in every way, and what pods and the host send.

use std::net::IpAddr;

use ebpf_abi::{Addr4, Addr6, DropReason, config_flag, direct_label, overlay_header as at};
use ebpf_packet::{Ip, Verdict, from_host, from_network, from_pod};
use node_agent_overlay::{Attributes, Lease, Mode, Overlay, OverlayOptions, VtepMac};

use crate::Target;
use support::{Frame, Has, Scene, Tcp, TestFamily, TestNode, Wire, labelled};

// The node of the packet crate's own tests: tables as trees, and a wire that refuses what the kernel's helpers refuse.
#[path = "../../../ebpf/packet/tests/path/support/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "those tests need more of it"
)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "it stands on its own scene"
)]
mod support;

pub const VXLAN: Target = Target {
    name: "decapsulate_vxlan",
    run: |data| decapsulate(Mode::Vxlan, data),
    seeds: || encapsulated(Mode::Vxlan),
};
pub const UDP: Target = Target {
    name: "decapsulate_udp",
    run: |data| decapsulate(Mode::Udp, data),
    seeds: || encapsulated(Mode::Udp),
};
/// What other nodes hand on, which may come from anywhere outside of the cluster.
pub const HANDED_ON: Target = Target {
    name: "handed_on",
    run: handed_on,
    seeds: labelled_frames,
};
pub const FROM_POD: Target = Target {
    name: "from_pod",
    run: |data| {
        let node = node(Mode::Vxlan, Underlay::V4);
        // A packet that opened a connection meets it the second time.
        for _ in 0..2 {
            from_pod(&mut Wire::new(data.to_vec()), &node);
        }
    },
    seeds: sent,
};
pub const FROM_HOST: Target = Target {
    name: "from_host",
    run: |data| {
        let node = node(Mode::Udp, Underlay::V6);
        for _ in 0..2 {
            from_host(&mut Wire::new(data.to_vec()), &node);
        }
    },
    seeds: sent,
};

const MACS: usize = 12;
const ETHERNET: usize = MACS + 2;

#[derive(Clone, Copy, Debug)]
enum Underlay {
    V4,
    V6,
}

/// Node 1, with two pods and a service in both families; nodes 2 and 3 are its peers.
fn node(mode: Mode, underlay: Underlay) -> TestNode {
    let mut node = Scene::<Addr4>::with_backends(&[(Addr4::pod(1, 3), 8080)]).node;
    let six = Scene::<Addr6>::with_backends(&[(Addr6::pod(1, 3), 8080)]).node;
    *node.tables_mut() = Has::<Addr6>::tables(&six).clone();
    let config = node.config.as_mut().expect("a scene has one");
    config.flags = mode.config_flags() | config_flag::MASQUERADE;
    for number in [2, 3] {
        node.peers
            .insert(number.into(), peer(mode, underlay, number));
    }
    node
}

/// As the agent would compute it.
fn peer(mode: Mode, underlay: Underlay, number: u8) -> ebpf_abi::Peer {
    let address = |number| match underlay {
        Underlay::V4 => IpAddr::from(Addr4::node(number).bytes),
        Underlay::V6 => IpAddr::from(Addr6::node(number).bytes),
    };
    let overlay = |number| {
        let (underlay_v4, underlay_v6) = match address(number) {
            IpAddr::V4(address) => (Some(address), None),
            IpAddr::V6(address) => (None, Some(address)),
        };
        let options = OverlayOptions {
            node_name: format!("n{number}"),
            mode,
            direct_routing: false,
            underlay_v4,
            underlay_v6,
            on_link: vec![],
            uplink_mtu: 1500,
            port: 8472,
            vni: 1,
            mac: VtepMac([2, 0x56, 0, 0, 0, number]),
        };
        Overlay::new(options).expect("these options are good")
    };
    let attributes: Attributes = overlay(number).attributes();
    let lease = Lease {
        holder: format!("n{number}"),
        subnets: vec![],
        attributes,
        since: 0,
    };
    let peers = overlay(1).peers(&lease).expect("it has our own mode");
    let [Some(routes), _] = peers else {
        panic!("a node is one peer where packets are encapsulated")
    };
    routes.peer
}

/// What is taken out of the overlay came from a peer, and what is inside from that peer's subnet.
fn decapsulate(mode: Mode, data: &[u8]) {
    for underlay in [Underlay::V4, Underlay::V6] {
        let node = node(mode, underlay);
        let mut wire = Wire::new(data.to_vec());
        let verdict = from_network(&mut wire, &node);
        match verdict {
            Verdict::Drop(DropReason::OverlayUnknownPeer | DropReason::OverlayBadHeader) => {
                assert_eq!(wire.bytes, data, "what is refused is left as it was");
            }
            // Nothing of what came by plain IP goes as deep into a packet as this takes away.
            Verdict::DeliverToPod { .. } if wire.bytes.len() + at::UDP_OVER_IPV4 <= data.len() => {
                came_from_its_node(&wire.bytes, data);
            }
            _ => {}
        }
    }
}

fn came_from_its_node(inner: &[u8], outer: &[u8]) {
    let number = match inner[MACS] {
        0x08 => {
            let source = Addr4::read(inner, ETHERNET + Addr4::SRC_AT);
            let number = source.bytes[2];
            assert_eq!(
                source,
                Addr4::pod(number, source.bytes[3]),
                "no pod's address"
            );
            number
        }
        _ => {
            let source = Addr6::read(inner, ETHERNET + Addr6::SRC_AT);
            let number = source.bytes[5];
            assert_eq!(
                source.bytes[..6],
                Addr6::pod(number, 0).bytes[..6],
                "no pod's address"
            );
            number
        }
    };
    assert!([2, 3].contains(&number), "a pod of a node that is no peer");
    let from = match outer[MACS] {
        0x08 => Addr4::read(outer, ETHERNET + Addr4::SRC_AT) == Addr4::node(number),
        _ => Addr6::read(outer, ETHERNET + Addr6::SRC_AT) == Addr6::node(number),
    };
    assert!(from, "another node's pod");
}

/// A packet that is handed on reaches a pod of this node from a peer alone, and no pod's address is its client's.
fn handed_on(data: &[u8]) {
    let mut node = node(Mode::Vxlan, Underlay::V4);
    let config = node.config.as_mut().expect("a scene has one");
    config.flags |= config_flag::DIRECT_RETURN;
    let label_at = ETHERNET + at::UDP_OVER_IPV4;
    let is_labelled = data.get(label_at) == Some(&direct_label::FLAGS)
        && data[MACS..ETHERNET] == Addr4::ETHERTYPE.to_ne_bytes();
    for _ in 0..2 {
        let mut wire = Wire::new(data.to_vec());
        let verdict = from_network(&mut wire, &node);
        // What came to a pod by plain IP is as long as it was.
        let came_out = wire.bytes.len() + at::VXLAN_OVER_IPV4 <= data.len();
        if is_labelled && came_out && matches!(verdict, Verdict::DeliverToPod { .. }) {
            let outer = Addr4::read(data, ETHERNET + Addr4::SRC_AT);
            assert!([2, 3].map(Addr4::node).contains(&outer), "no peer's");
            let client_is_a_pod = match wire.bytes[MACS] {
                0x08 => is_of_the_cluster::<Addr4>(&wire.bytes[ETHERNET + Addr4::SRC_AT..]),
                _ => is_of_the_cluster::<Addr6>(&wire.bytes[ETHERNET + Addr6::SRC_AT..]),
            };
            assert!(!client_is_a_pod, "in a pod's name");
        }
    }
}

/// Whether an address is one of this node's, or in a peer's subnet: what node 1 knows of the cluster.
fn is_of_the_cluster<A: TestFamily>(address: &[u8]) -> bool {
    let in_subnet = |node| {
        let prefix = A::prefix(node);
        address.starts_with(&prefix.addr.as_bytes()[..prefix.prefix_len as usize / 8])
    };
    let here = |host| address.starts_with(A::pod(1, host).as_bytes());
    [2, 3].into_iter().any(in_subnet) || (0..=3).any(here)
}

fn labelled_frames() -> Vec<Vec<u8>> {
    fn of<A: TestFamily>() -> Vec<Vec<u8>> {
        let (client, asked) = ((A::outside(9), 45000), (A::node(2), 30080));
        [
            Frame::tcp(client, asked, Tcp::SYN),
            Frame::udp(client, asked),
            Frame::error(
                client.0,
                asked.0,
                3,
                3,
                &Frame::udp(asked, client).ip_bytes(),
            ),
        ]
        .map(|frame| labelled(2, 2, (A::pod(1, 3), 8080), &frame.bytes()).bytes)
        .to_vec()
    }
    [of::<Addr4>(), of::<Addr6>()].concat()
}

/// Frames of node 2 to node 1, made by the code that sends them.
fn encapsulated(mode: Mode) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for underlay in [Underlay::V4, Underlay::V6] {
        let node = node(mode, underlay);
        for inner in [inner::<Addr4>(1, 2), inner::<Addr6>(1, 2)].concat() {
            let mut wire = Wire::new(inner);
            from_pod(&mut wire, &node);
            frames.push(turned(wire.bytes, mode, underlay));
        }
    }
    frames
}

/// The frame from node 1 to node 2 as node 2's to node 1: the two numbers change places in all addresses. The kernel
/// would have written the outer EtherType when it made room.
fn turned(mut frame: Vec<u8>, mode: Mode, underlay: Underlay) -> Vec<u8> {
    let (ethertype, header, last) = match underlay {
        Underlay::V4 => (
            Addr4::ETHERTYPE,
            at::IPV4_LEN,
            [ETHERNET + 15, ETHERNET + 19],
        ),
        Underlay::V6 => (
            Addr6::ETHERTYPE,
            at::IPV6_LEN,
            [ETHERNET + 23, ETHERNET + 39],
        ),
    };
    frame[MACS..ETHERNET].copy_from_slice(&ethertype.to_ne_bytes());
    frame.swap(last[0], last[1]);
    let behind_udp = ETHERNET + header + at::UDP_LEN;
    let inner = match mode {
        Mode::Vxlan => behind_udp + at::VXLAN_LEN,
        Mode::Udp | Mode::Direct => behind_udp,
    };
    let (from, to) = match frame[inner] >> 4 {
        4 => (inner + 14, inner + 18),
        _ => (inner + 13, inner + 29),
    };
    frame.swap(from, to);
    frame
}

/// What pods of one node send to pods of another.
fn inner<A: TestFamily>(from: u8, to: u8) -> Vec<Vec<u8>> {
    let (here, there) = ((A::pod(from, 2), 45000), (A::pod(to, 2), 8080));
    let mut with_options = Frame::udp(here, there);
    with_options.options = vec![0, 0, 1, 4, 0, 0, 0, 0];
    [
        Frame::tcp(here, there, Tcp::SYN),
        Frame::udp(here, there),
        Frame::echo(here.0, there.0, true, 5),
        with_options,
    ]
    .iter()
    .map(Frame::bytes)
    .collect()
}

/// What pods and the host send, to everybody.
fn sent() -> Vec<Vec<u8>> {
    fn of<A: TestFamily>() -> Vec<Vec<u8>> {
        let here = (A::pod(1, 2), 45000);
        let mut frames = inner::<A>(1, 2);
        frames.extend(inner::<A>(1, 1));
        for there in [A::service(1), A::outside(1), A::node(1)] {
            frames.push(Frame::tcp(here, (there, 80), Tcp::SYN).bytes());
            frames.push(Frame::udp(here, (there, 80)).bytes());
        }
        let quoted = Frame::udp((A::service(1), 80), here).ip_bytes();
        let unreachable = if A::LEN == 4 { 3 } else { 1 };
        frames.push(Frame::error(here.0, A::service(1), unreachable, 0, &quoted).bytes());
        frames
    }
    [of::<Addr4>(), of::<Addr6>()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_of_each_overlay_reach_a_pod() {
        for mode in [Mode::Vxlan, Mode::Udp] {
            let seeds = encapsulated(mode);
            assert_eq!(seeds.len(), 16);
            for (number, seed) in seeds.into_iter().enumerate() {
                let underlay = if number < 8 {
                    Underlay::V4
                } else {
                    Underlay::V6
                };
                let mut wire = Wire::new(seed.clone());
                let verdict = from_network(&mut wire, &node(mode, underlay));
                assert!(
                    matches!(verdict, Verdict::DeliverToPod { .. }),
                    "{mode:?} {number}: {verdict:?}"
                );
                came_from_its_node(&wire.bytes, &seed);
            }
        }
    }
}
