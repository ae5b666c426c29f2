//! Addresses that are reached from outside: who gets which backends, and who may come at all.

use ebpf_abi::{DropReason, Frontend, RangeKey, frontend_flag};
use ebpf_packet::{Caller, Connect, Verdict, connect};

use crate::support::{Frame, Has, Scene, Tcp, TestFamily, TestNode, in_both_families};

in_both_families! {
    a_load_balancers_address_leads_outsiders_to_local_backends_and_keeps_their_address
    pods_and_processes_take_every_backend_behind_an_external_address
    a_socket_takes_every_backend_behind_an_external_address
    a_source_outside_the_ranges_is_dropped_wherever_it_comes_from
    a_socket_leaves_source_ranges_to_the_packets
    a_node_port_on_loopback_serves_sockets_of_the_host_alone
}

const CLIENT: u16 = 45000;
const VIP: u8 = 77;
/// The set of the policy `Local`, and that of every backend.
const LOCAL: u32 = 1;
const CLUSTER: u32 = 2;

struct Socket(u64);

impl Caller for Socket {
    fn netns_cookie(&self) -> u64 {
        self.0
    }
}

/// An external address under the policy `Local`: one backend here, one on node 2.
fn scene<A: TestFamily>(flags: u32) -> Scene<A>
where
    TestNode: Has<A>,
{
    let mut scene = Scene::<A>::with_backends(&[(A::pod(1, 3), 8080)]);
    scene.set_backends(CLUSTER, &[(A::pod(2, 9), 8080)]);
    let frontend = Frontend {
        service_id: LOCAL,
        inside_id: CLUSTER,
        flags: frontend_flag::EXTERNAL | flags,
    };
    scene.set_frontend(A::outside(VIP), 80, frontend);
    scene
}

fn a_load_balancers_address_leads_outsiders_to_local_backends_and_keeps_their_address<
    A: TestFamily,
>()
where
    TestNode: Has<A>,
{
    let scene = scene::<A>(0);
    let (client, vip) = ((A::outside(9), CLIENT), (A::outside(VIP), 80));
    let request = Frame::tcp(client, vip, Tcp::SYN);
    let mut wire = request.wire();
    let verdict = scene.network_sends(&mut wire);
    let backend = (A::pod(1, 3), 8080);
    scene.assert_delivered(verdict, &wire, 3, &request.rewritten(client, backend));
    let answer = Frame::tcp(backend, client, Tcp::SYN | Tcp::ACK);
    let mut wire = answer.wire();
    assert_eq!(
        scene.pod_sends(&mut wire),
        Verdict::ToNetwork { next_hop_peer: 0 }
    );
    let expected = answer.rewritten(vip, client).ttl(63);
    assert_eq!(wire.bytes[14..], expected.ip_bytes());
}

fn pods_and_processes_take_every_backend_behind_an_external_address<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = scene::<A>(0);
    let (vip, backend) = ((A::outside(VIP), 80), (A::pod(2, 9), 8080));
    let client = (A::pod(1, 2), CLIENT);
    let request = Frame::udp(client, vip);
    let mut wire = request.wire();
    let verdict = scene.pod_sends(&mut wire);
    scene.assert_encapsulated(verdict, &wire, &request.rewritten(client, backend));
    let client = (A::pod(1, 1), CLIENT);
    let request = Frame::udp(client, vip);
    let mut wire = request.wire();
    let verdict = scene.host_sends(&mut wire);
    // The host sent it itself: no hop.
    let expected = request.rewritten(client, backend).ttl(65);
    scene.assert_encapsulated(verdict, &wire, &expected);
}

fn a_socket_takes_every_backend_behind_an_external_address<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = scene::<A>(0);
    let connected = connect(&scene.node, &Socket(7), A::outside(VIP), 80_u16.to_be());
    let Connect::Backend(origin) = connected else {
        panic!("{connected:?}")
    };
    assert_eq!(origin.backend_addr, A::pod(2, 9));
}

fn a_source_outside_the_ranges_is_dropped_wherever_it_comes_from<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let mut scene = scene::<A>(frontend_flag::SOURCE_RANGES);
    let (bits, half) = (A::LEN as u32 * 8, A::LEN as u32 * 8 - 8);
    let ranges = &mut scene.node.tables_mut().ranges;
    ranges.push(RangeKey::new(LOCAL, A::outside(9), bits));
    ranges.push(RangeKey::new(LOCAL, A::pod(1, 0), bits));
    // Another service's ranges are its own.
    ranges.push(RangeKey::new(CLUSTER, A::outside(0), half));
    let vip = (A::outside(VIP), 80);
    let from = |client| Frame::tcp((client, CLIENT), vip, Tcp::SYN).wire();
    let refused = Verdict::Drop(DropReason::SourceNotAllowed);
    assert_eq!(scene.network_sends(&mut from(A::outside(8))), refused);
    assert_eq!(scene.pod_sends(&mut from(A::pod(1, 2))), refused);
    assert_eq!(scene.conn_count(), 0);
    let admitted = scene.network_sends(&mut from(A::outside(9)));
    assert_eq!(admitted, Verdict::DeliverToPod { ifindex: 103 });

    let ranges = &mut scene.node.tables_mut().ranges;
    ranges.push(RangeKey::new(LOCAL, A::pod(1, 2), half));
    let admitted = scene.pod_sends(&mut from(A::pod(1, 2)));
    assert_eq!(admitted, Verdict::ToNetwork { next_hop_peer: 0 });
}

fn a_socket_leaves_source_ranges_to_the_packets<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = scene::<A>(frontend_flag::SOURCE_RANGES);
    let connected = connect(&scene.node, &Socket(7), A::outside(VIP), 80_u16.to_be());
    assert_eq!(connected, Connect::Unchanged);
}

fn a_node_port_on_loopback_serves_sockets_of_the_host_alone<A: TestFamily>()
where
    TestNode: Has<A>,
{
    let scene = scene::<A>(frontend_flag::LOOPBACK);
    let at = |netns| connect(&scene.node, &Socket(netns), A::outside(VIP), 80_u16.to_be());
    assert_eq!(at(Scene::<A>::HOST_NETNS + 1), Connect::Unchanged);
    assert!(matches!(at(Scene::<A>::HOST_NETNS), Connect::Backend(_)));
    let mut wire = Frame::tcp((A::outside(9), CLIENT), (A::outside(VIP), 80), Tcp::SYN).wire();
    assert_eq!(scene.network_sends(&mut wire), Verdict::Pass);
}
