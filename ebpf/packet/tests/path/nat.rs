//! Source NAT: pods that leave the cluster, ports that run out, addresses that only answers may reach.

use ebpf_abi::DropReason;
use ebpf_packet::Verdict;

use crate::support::{Frame, Has, Scene, Tcp, TestFamily, TestNode, in_both_families};

in_both_families! {
    a_pod_leaves_the_cluster_with_the_nodes_address
    a_port_of_the_range_is_kept
    an_echo_leaves_the_cluster_with_another_identifier
    ports_run_out_with_a_reason
    without_masquerade_the_stack_decides
    a_backend_outside_of_the_cluster_sees_the_node
    a_client_outside_is_answered_by_the_pod_that_it_asked
    only_a_client_outside_of_the_cluster_is_remembered
    nothing_but_an_answer_reaches_the_source_nat_address
    the_hosts_own_packets_make_no_hop
    packets_of_the_link_go_to_the_stack
    the_host_gets_a_pods_packet_from_its_stack
    a_packet_without_configuration_goes_to_the_stack
}

fn masqueraded<A: TestFamily>(scene: &Scene<A>, port: u16) -> (A, u16)
where
    TestNode: Has<A>,
{
    let request = Frame::udp((A::pod(1, 2), port), (A::outside(8), 53));
    let mut wire = request.wire();
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::ToNetwork { next_hop_peer: 0 }
    );
    let transport = 14 + A::HEADER_LEN;
    let source = (
        A::read(&wire.bytes, 14 + A::SRC_AT),
        u16::from_be_bytes([wire.bytes[transport], wire.bytes[transport + 1]]),
    );
    assert_eq!(
        wire.bytes[14..],
        request
            .rewritten(source, (A::outside(8), 53))
            .ttl(63)
            .ip_bytes()
    );
    source
}

fn a_pod_leaves_the_cluster_with_the_nodes_address<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let source = masqueraded(&scene, 45000);
    assert_eq!(source.0, A::node(1));
    assert!(Scene::<A>::NAT_PORTS.contains(&source.1));
    assert_eq!(masqueraded(&scene, 45000), source, "the second packet too");
    let answer = Frame::udp((A::outside(8), 53), source);
    let mut wire = answer.wire();
    let verdict = scene.network_sends(&mut wire);
    scene.assert_delivered(
        verdict,
        &wire,
        2,
        &answer.rewritten((A::outside(8), 53), (A::pod(1, 2), 45000)),
    );
}

fn a_port_of_the_range_is_kept<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    for port in [*Scene::<A>::NAT_PORTS.start(), *Scene::<A>::NAT_PORTS.end()] {
        assert_eq!(masqueraded(&scene, port), (A::node(1), port));
    }
}

fn an_echo_leaves_the_cluster_with_another_identifier<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let request = Frame::echo(A::pod(1, 2), A::outside(8), true, 77);
    let mut wire = request.wire();
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::ToNetwork { next_hop_peer: 0 }
    );
    let at = 14 + A::HEADER_LEN + 4;
    let id = u16::from_be_bytes([wire.bytes[at], wire.bytes[at + 1]]);
    assert!(Scene::<A>::NAT_PORTS.contains(&id));
    assert_eq!(
        wire.bytes[14..],
        Frame::echo(A::node(1), A::outside(8), true, id)
            .ttl(63)
            .ip_bytes()
    );
    let mut wire = Frame::echo(A::outside(8), A::node(1), false, id).wire();
    let verdict = scene.network_sends(&mut wire);
    scene.assert_delivered(
        verdict,
        &wire,
        2,
        &Frame::echo(A::outside(8), A::pod(1, 2), false, 77),
    );
}

fn ports_run_out_with_a_reason<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let mut refused = 0;
    for port in 1000..1400 {
        let mut wire = Frame::udp((A::pod(1, 2), port), (A::outside(8), 53)).wire();
        match scene.pod_sends(&mut wire) {
            Verdict::ToNetwork { .. } => {}
            verdict => {
                assert_eq!(verdict, Verdict::Drop(DropReason::NoNatPort));
                refused += 1;
            }
        }
    }
    let ports = Scene::<A>::NAT_PORTS.count();
    assert_eq!(scene.conn_count(), ports, "every port is found in the end");
    assert_eq!(refused, 400 - ports);
    // Another destination has all ports to itself.
    let mut wire = Frame::udp((A::pod(1, 2), 1000), (A::outside(8), 54)).wire();
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::ToNetwork { next_hop_peer: 0 }
    );
}

fn without_masquerade_the_stack_decides<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = Scene::<A>::new();
    scene.node.config.as_mut().expect("set").flags = 0;
    let mut wire = Frame::udp((A::pod(1, 2), 1), (A::outside(8), 53)).wire();
    let before = wire.clone();
    assert_eq!(scene.pod_sends(&mut wire), Verdict::Pass);
    assert_eq!(wire, before);
}

fn a_backend_outside_of_the_cluster_sees_the_node<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let (client, vip, backend) = (
        (A::pod(1, 2), 20001),
        (A::service(1), 80),
        (A::outside(8), 8080),
    );
    let scene = Scene::<A>::with_backends(&[backend]);
    let request = Frame::tcp(client, vip, Tcp::SYN);
    let mut wire = request.wire();
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::ToNetwork { next_hop_peer: 0 }
    );
    let source = (A::node(1), 20001);
    assert_eq!(
        wire.bytes[14..],
        request.rewritten(source, backend).ttl(63).ip_bytes()
    );
    let answer = Frame::tcp(backend, source, Tcp::SYN | Tcp::ACK);
    let mut wire = answer.wire();
    let verdict = scene.network_sends(&mut wire);
    scene.assert_delivered(verdict, &wire, 2, &answer.rewritten(vip, client));
}

fn a_client_outside_is_answered_by_the_pod_that_it_asked<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let (client, pod) = ((A::outside(8), 20002), (A::pod(1, 2), 80));
    for (request, answer) in [
        (
            Frame::tcp(client, pod, Tcp::SYN),
            Frame::tcp(pod, client, Tcp::SYN | Tcp::ACK),
        ),
        (Frame::udp(client, pod), Frame::udp(pod, client)),
        (
            Frame::echo(client.0, pod.0, true, 7),
            Frame::echo(pod.0, client.0, false, 7),
        ),
    ] {
        for _ in 0..2 {
            let mut wire = request.wire();
            let verdict = scene.network_sends(&mut wire);
            scene.assert_delivered(verdict, &wire, 2, &request);
            let mut wire = answer.wire();
            assert_eq!(
                scene.pod_sends(&mut wire),
                Verdict::ToNetwork { next_hop_peer: 0 }
            );
            assert_eq!(wire.bytes[14..], answer.clone().ttl(63).ip_bytes());
        }
    }
    // What the pod begins itself still gets the node's address.
    assert_eq!(masqueraded(&scene, 45000).0, A::node(1));
}

fn only_a_client_outside_of_the_cluster_is_remembered<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = Scene::<A>::new();
    let sends = |scene: &Scene<A>, source| {
        let request = Frame::udp((source, 20003), (A::pod(1, 2), 80));
        let mut wire = request.wire();
        let verdict = scene.network_sends(&mut wire);
        scene.assert_delivered(verdict, &wire, 2, &request);
        scene.conn_count()
    };
    assert_eq!(sends(&scene, A::pod(2, 2)), 0, "a pod of another node");
    scene.node.config.as_mut().expect("set").flags = 0;
    assert_eq!(sends(&scene, A::outside(8)), 0, "no masquerade");
}

fn nothing_but_an_answer_reaches_the_source_nat_address<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let mut wire = Frame::udp((A::pod(1, 2), 1), (A::pod(1, 0), 2)).wire();
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::Drop(DropReason::NoConnection)
    );
    let mut wire = scene.overlay(2, &Frame::udp((A::pod(2, 2), 1), (A::pod(1, 0), 2)));
    assert_eq!(
        scene.network_sends(&mut wire),
        Verdict::Drop(DropReason::NoConnection)
    );
}

fn the_hosts_own_packets_make_no_hop<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let frame = Frame::udp((A::pod(1, 1), 1), (A::pod(2, 3), 2)).ttl(1);
    let mut wire = frame.wire();
    let verdict = scene.host_sends(&mut wire);
    scene.assert_encapsulated(verdict, &wire, &frame.ttl(2));
    let mut wire = Frame::udp((A::pod(1, 1), 1), (A::outside(3), 2)).wire();
    assert_eq!(scene.host_sends(&mut wire), Verdict::Pass);
}

fn packets_of_the_link_go_to_the_stack<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    let link: Vec<A> = match A::LEN {
        4 => [[224, 0, 0, 1], [255, 255, 255, 255], [169, 254, 1, 1]]
            .iter()
            .filter_map(|bytes| A::from_bytes(bytes))
            .collect(),
        _ => [[0xff, 0x02], [0xfe, 0x80]]
            .iter()
            .filter_map(|start| A::from_bytes(&[&start[..], &[0; 13], &[1]].concat()))
            .collect(),
    };
    assert!(link.len() >= 2);
    for dst in link {
        let mut wire = Frame::udp((A::pod(1, 2), 1), (dst, 2)).wire();
        assert_eq!(scene.pod_sends(&mut wire), Verdict::Pass);
    }
}

fn the_host_gets_a_pods_packet_from_its_stack<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = Scene::<A>::new();
    for dst in [A::node(1), A::pod(1, 1)] {
        let mut wire = Frame::udp((A::pod(1, 2), 1), (dst, 2)).wire();
        let before = wire.clone();
        assert_eq!(scene.pod_sends(&mut wire), Verdict::Pass);
        assert_eq!(wire, before);
    }
}

fn a_packet_without_configuration_goes_to_the_stack<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = Scene::<A>::new();
    scene.node.config = None;
    let mut wire = Frame::udp((A::pod(1, 2), 1), (A::pod(1, 3), 2)).wire();
    assert_eq!(scene.pod_sends(&mut wire), Verdict::Pass);
}
