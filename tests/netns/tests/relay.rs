//! A packet that leaves the overlay and enters it again on the same node. The kernel does not clear
//! `skb->encapsulation` when the first header comes off and refuses to set it twice.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use ebpf_abi::DropReason;
use tests_testkit::{Cluster, Node, ServiceSpec, is_root, skip, traffic::Server};

const PATIENCE: Duration = Duration::from_secs(5);

fn dropped(node: &Node, reason: DropReason) -> u64 {
    let drops = node.maps().drops().unwrap();
    drops
        .iter()
        .find(|(counted, _)| *counted == reason)
        .map_or(0, |(_, counter)| counter.packets)
}

#[test]
fn a_packet_is_encapsulated_again_after_decapsulation() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(2).unwrap();
    let backend = cluster.add_pod(1).unwrap();
    let server = SocketAddr::new(backend.ipv4().into(), 8080);
    let server = backend.run(|| Server::udp(server, "backend")).unwrap();
    let node: IpAddr = cluster.nodes[0].addresses.underlay_v4().into();
    let spec = ServiceSpec::udp("10.96.0.10:80".parse().unwrap(), [server.addr]);
    cluster.publish(&spec.with_node_port(node, 30080)).unwrap();

    // A client outside that says it were a pod of the second node: the backend's answer comes to the first node by the
    // overlay and must go back to the second one by the overlay.
    let client: IpAddr = cluster.nodes[1].addresses.pod_v4(77).into();
    let outside = &cluster.outside.netns;
    outside
        .ip(&format!("addr add {client}/32 dev eth0"))
        .unwrap();
    let sent = outside.run(|| UdpSocket::bind((client, 5000))?.send_to(b"question", (node, 30080)));
    sent.unwrap();

    // The second node takes it for forged, as it comes from the first node's own address.
    let end = Instant::now() + PATIENCE;
    while dropped(&cluster.nodes[1], DropReason::OverlayUnknownPeer) == 0 {
        let here: Vec<_> = cluster.nodes[0].maps().drops().unwrap();
        assert!(
            Instant::now() < end,
            "no packet came back; served {}, dropped {here:?}",
            server.served()
        );
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(server.served(), 1);
    assert_eq!(dropped(&cluster.nodes[0], DropReason::RewriteFailed), 0);
}
