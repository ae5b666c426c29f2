//! What a client is told at once: that nobody serves it, or that a service's address is alive.

use ebpf_abi::{DropReason, Endpoint, endpoint_flag, frontend_flag, service_flag};
use ebpf_packet::{Caller, Connect, Verdict, connect};

use crate::support::{Frame, Has, Scene, Tcp, TestFamily, TestNode, in_both_families};

in_both_families! {
    a_connection_to_a_service_without_backends_is_reset
    a_reset_answers_the_numbers_that_were_sent
    a_reset_is_not_answered
    a_datagram_to_a_service_without_backends_is_answered_with_port_unreachable
    an_unknown_port_of_a_cluster_ip_is_refused
    a_node_port_without_backends_is_refused_to_the_outside
    the_host_is_refused_by_its_own_interface
    under_a_local_policy_packets_without_a_backend_here_are_dropped
    a_socket_is_refused_or_left_to_the_packets_as_packets_are
    a_ping_of_a_cluster_ip_is_answered
    a_ping_of_a_load_balancers_address_is_answered_to_everybody
    other_ports_of_a_load_balancers_address_are_left_alone
    a_cluster_ip_is_silent_towards_the_outside
}

const CLIENT: u16 = 45000;

fn vip<A: TestFamily>(port: u16) -> (A, u16) {
    (A::service(1), port)
}

fn pod<A: TestFamily>() -> (A, u16) {
    (A::pod(1, 2), CLIENT)
}

/// The frame with its Ethernet addresses exchanged: back to where it came from.
fn turned(mut bytes: Vec<u8>) -> Vec<u8> {
    for i in 0..6 {
        bytes.swap(i, i + 6);
    }
    bytes
}

/// The reset of this segment, field by field.
fn reset<A: TestFamily>(src: (A, u16), dst: (A, u16), seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let mut frame = Frame::tcp(src, dst, flags);
    frame.transport.truncate(20);
    frame.transport[4..8].copy_from_slice(&seq.to_be_bytes());
    frame.transport[8..12].copy_from_slice(&ack.to_be_bytes());
    frame.transport[14..16].fill(0);
    own(&frame)
}

/// The frame as this node itself would send it, to where it came from.
fn own<A: TestFamily>(frame: &Frame<A>) -> Vec<u8> {
    let mut bytes = turned(frame.bytes());
    if A::LEN == 4 {
        // No identification, no 'do not fragment'.
        bytes[18..22].fill(0);
        bytes[24..26].fill(0);
        let check = crate::support::internet_checksum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&check.to_be_bytes());
    }
    bytes
}

fn port_unreachable<A: TestFamily>(to: A, quoted: &Frame<A>) -> Vec<u8> {
    let quoted = &quoted.ip_bytes()[..A::HEADER_LEN + 8];
    let (kind, code) = if A::LEN == 4 { (3, 3) } else { (1, 4) };
    own(&Frame::error(A::node(1), to, kind, code, quoted))
}

fn a_connection_to_a_service_without_backends_is_reset<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let mut syn = Frame::tcp(pod::<A>(), vip(80), Tcp::SYN);
    syn.transport.truncate(20);
    let mut wire = syn.wire();
    assert_eq!(scene.pod_sends(&mut wire), Verdict::Reflect);
    let expected = reset::<A>(vip(80), pod(), 0, 2, Tcp::RST | Tcp::ACK);
    assert_eq!(wire.bytes, expected);
    assert_eq!(scene.conn_count(), 0);
}

fn a_reset_answers_the_numbers_that_were_sent<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    // 15 bytes of payload from number 1 on, and the end of the stream; nothing acknowledged.
    let mut wire = Frame::tcp(pod::<A>(), vip(80), Tcp::FIN).wire();
    assert_eq!(scene.pod_sends(&mut wire), Verdict::Reflect);
    let expected = reset::<A>(vip(80), pod(), 0, 17, Tcp::RST | Tcp::ACK);
    assert_eq!(wire.bytes, expected);
    // The other side is expected to go on from what this one acknowledges.
    let mut wire = Frame::tcp(pod::<A>(), vip(80), Tcp::ACK).wire();
    assert_eq!(scene.pod_sends(&mut wire), Verdict::Reflect);
    assert_eq!(wire.bytes, reset::<A>(vip(80), pod(), 2, 0, Tcp::RST));
}

fn a_reset_is_not_answered<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let mut wire = Frame::tcp(pod::<A>(), vip(80), Tcp::RST).wire();
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::Drop(DropReason::NoBackend)
    );
}

fn a_datagram_to_a_service_without_backends_is_answered_with_port_unreachable<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    // One without payload: there is no more to quote than its header.
    for datagram in [
        Frame::udp(pod::<A>(), vip(80)),
        Frame::udp_with(pod(), vip(80), b""),
    ] {
        let mut wire = datagram.wire();
        assert_eq!(scene.pod_sends(&mut wire), Verdict::Reflect);
        assert_eq!(wire.bytes, port_unreachable(A::pod(1, 2), &datagram));
    }
}

fn an_unknown_port_of_a_cluster_ip_is_refused<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::with_backends(&[(A::pod(1, 3), 8080)]);
    let mut wire = Frame::tcp(pod::<A>(), vip(81), Tcp::SYN).wire();
    assert_eq!(scene.pod_sends(&mut wire), Verdict::Reflect);
    assert_eq!(
        wire.bytes,
        reset::<A>(vip(81), pod(), 0, 17, Tcp::RST | Tcp::ACK)
    );
    let datagram = Frame::udp(pod(), vip(81));
    let mut wire = datagram.wire();
    assert_eq!(scene.pod_sends(&mut wire), Verdict::Reflect);
    assert_eq!(wire.bytes, port_unreachable(A::pod(1, 2), &datagram));
    let other = Frame::new(A::pod(1, 2), A::service(1), 47, vec![7; 40]);
    let mut wire = other.wire();
    assert_eq!(scene.pod_sends(&mut wire), Verdict::Reflect);
    let quoted = A::HEADER_LEN + 20;
    let at = 14 + A::HEADER_LEN + 8;
    assert_eq!(wire.bytes[at..], other.ip_bytes()[..quoted]);
}

fn a_node_port_without_backends_is_refused_to_the_outside<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let (client, node) = ((A::outside(9), CLIENT), (A::node(1), Scene::<A>::NODE_PORT));
    let mut wire = Frame::tcp(client, node, Tcp::SYN).wire();
    assert_eq!(scene.network_sends(&mut wire), Verdict::Reflect);
    assert_eq!(wire.bytes, reset(node, client, 0, 17, Tcp::RST | Tcp::ACK));
}

fn the_host_is_refused_by_its_own_interface<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let client = (A::pod(1, 1), CLIENT);
    for port in [80, 81] {
        let mut wire = Frame::tcp(client, vip(port), Tcp::SYN).wire();
        assert_eq!(scene.host_sends(&mut wire), Verdict::ToHost);
        let expected = reset(vip(port), client, 0, 17, Tcp::RST | Tcp::ACK);
        assert_eq!(wire.bytes, expected);
    }
}

fn under_a_local_policy_packets_without_a_backend_here_are_dropped<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = Scene::<A>::new();
    let service = scene.node.services.get_mut(&1).expect("the scene has it");
    service.flags = service_flag::DROP_IF_EMPTY;
    let mut wire = Frame::tcp(pod::<A>(), vip(80), Tcp::SYN).wire();
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::Drop(DropReason::NoLocalBackend)
    );
}

fn a_socket_is_refused_or_left_to_the_packets_as_packets_are<A: TestFamily>()
where
    TestNode: Has<A>,
{
    struct Pod;
    impl Caller for Pod {
        fn netns_cookie(&self) -> u64 {
            7
        }
    }
    let mut scene = Scene::<A>::new();
    let connected = connect(&scene.node, &Pod, A::service(1), 80_u16.to_be());
    assert_eq!(connected, Connect::Refused);
    let service = scene.node.services.get_mut(&1).expect("the scene has it");
    service.flags = service_flag::DROP_IF_EMPTY;
    let connected = connect(&scene.node, &Pod, A::service(1), 80_u16.to_be());
    assert_eq!(connected, Connect::Unchanged);
}

fn a_ping_of_a_cluster_ip_is_answered<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let ping = Frame::echo(A::pod(1, 2), A::service(1), true, 77).ttl(9);
    let mut wire = ping.wire();
    assert_eq!(scene.pod_sends(&mut wire), Verdict::Reflect);
    let reply = Frame::echo(A::service(1), A::pod(1, 2), false, 77);
    assert_eq!(wire.bytes, turned(reply.bytes()));
    let mut wire = Frame::echo(A::pod(1, 1), A::service(1), true, 77).wire();
    assert_eq!(scene.host_sends(&mut wire), Verdict::ToHost);
}

/// A load balancer's address with one port, TCP and UDP.
fn balanced<A: TestFamily>() -> Scene<A>
where
    TestNode: Has<A>,
{
    let mut scene = Scene::<A>::with_backends(&[(A::pod(1, 3), 8080)]);
    scene.frontend(A::outside(77), 80, 1, frontend_flag::EXTERNAL);
    let vip = Endpoint {
        flags: endpoint_flag::VIP,
        ..Endpoint::default()
    };
    let endpoints = &mut scene.node.tables_mut().endpoints;
    endpoints.insert(A::outside(77), vip);
    scene
}

fn a_ping_of_a_load_balancers_address_is_answered_to_everybody<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = balanced::<A>();
    let mut wire = Frame::echo(A::outside(9), A::outside(77), true, 5).wire();
    assert_eq!(scene.network_sends(&mut wire), Verdict::Reflect);
    let reply = Frame::echo(A::outside(77), A::outside(9), false, 5);
    assert_eq!(wire.bytes, turned(reply.bytes()));
    let mut wire = Frame::echo(A::pod(1, 2), A::outside(77), true, 5).wire();
    assert_eq!(scene.pod_sends(&mut wire), Verdict::Reflect);
}

fn other_ports_of_a_load_balancers_address_are_left_alone<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = balanced::<A>();
    let mut wire = Frame::tcp((A::outside(9), CLIENT), (A::outside(77), 22), Tcp::SYN).wire();
    let sent = wire.bytes.clone();
    assert_eq!(scene.network_sends(&mut wire), Verdict::Pass);
    assert_eq!(wire.bytes, sent);
    // A pod's connection leaves the cluster as any other.
    let mut wire = Frame::tcp(pod::<A>(), (A::outside(77), 22), Tcp::SYN).wire();
    let left = Verdict::ToNetwork { next_hop_peer: 0 };
    assert_eq!(scene.pod_sends(&mut wire), left);
}

fn a_cluster_ip_is_silent_towards_the_outside<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let client = A::outside(9);
    let mut wire = Frame::tcp((client, CLIENT), vip(81), Tcp::SYN).wire();
    assert_eq!(scene.network_sends(&mut wire), Verdict::Pass);
    let mut wire = Frame::echo(client, A::service(1), true, 5).wire();
    assert_eq!(scene.network_sends(&mut wire), Verdict::Pass);
}
