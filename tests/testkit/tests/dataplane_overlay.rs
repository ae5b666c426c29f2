//! Pods on two nodes and beyond: real packets through the overlay, in both families.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::net::{IpAddr, SocketAddr};

use tests_testkit::{
    Cluster, Node, Pod, ServiceSpec, Wrapping, is_root, skip,
    traffic::{Server, ask_tcp, ask_udp, noise, stream},
};

/// Two nodes with a pod each.
fn two_pods() -> (Cluster, [Pod; 2]) {
    let mut cluster = Cluster::new(2).unwrap();
    let pods = [0, 1].map(|node| cluster.add_pod(node).unwrap());
    (cluster, pods)
}

/// Both addresses of a pod, with a port.
fn addresses(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [(pod.ipv4(), port).into(), (pod.ipv6(), port).into()]
}

fn drops(cluster: &Cluster) -> Vec<(u8, &'static str, u64)> {
    let of_node = |node: &Node| {
        let drops = node.maps().drops().unwrap();
        let number = node.addresses.number;
        drops
            .into_iter()
            .filter(|(_, counter)| counter.packets > 0)
            .map(move |(reason, counter)| (number, reason.label(), counter.packets))
    };
    cluster.nodes.iter().flat_map(of_node).collect()
}

#[test]
fn pods_on_two_nodes_reach_each_other() {
    if !is_root() {
        return skip("needs root");
    }
    let (cluster, [a, b]) = two_pods();
    for addr in addresses(&b, 8080) {
        let _udp = b.run(|| Server::udp(addr, "udp")).unwrap();
        let answer = a.run(|| ask_udp(addr, 10));
        let answer =
            answer.unwrap_or_else(|error| panic!("{addr}: {error}: {:?}", drops(&cluster)));
        assert_eq!(
            answer.client.ip(),
            a.ip_for(addr.ip()),
            "the server sees the pod's address"
        );
        let _tcp = b.run(|| Server::tcp(addr, "tcp")).unwrap();
        assert_eq!(
            a.run(|| ask_tcp(addr)).unwrap().client.ip(),
            a.ip_for(addr.ip())
        );
    }
    assert_eq!(drops(&cluster), []);
}

#[test]
fn hosts_and_pods_reach_each_other() {
    if !is_root() {
        return skip("needs root");
    }
    let (cluster, [a, b]) = two_pods();
    let host = &cluster.nodes[0];
    for (pod, place) in [(&a, "own"), (&b, "other")] {
        for addr in addresses(pod, 8080) {
            let _tcp = pod.run(|| Server::tcp(addr, "tcp")).unwrap();
            let answer = host.run(|| ask_tcp(addr));
            let answer = answer.unwrap_or_else(|error| {
                panic!("{place} pod {addr}: {error}: {:?}", drops(&cluster))
            });
            let gateway: IpAddr = match addr.ip() {
                IpAddr::V4(_) => host.addresses.pod_v4(1).into(),
                IpAddr::V6(_) => host.addresses.pod_v6(1).into(),
            };
            assert_eq!(
                answer.client.ip(),
                gateway,
                "the host's address towards pods"
            );
        }
    }
    // From pods of both nodes to the first node's own addresses.
    let own = [
        IpAddr::from(host.machine.ipv4),
        IpAddr::from(host.machine.ipv6),
    ];
    for ip in own {
        let addr = SocketAddr::new(ip, 9000);
        let _tcp = host.run(|| Server::tcp(addr, "host")).unwrap();
        for (pod, place) in [(&a, "own"), (&b, "other")] {
            let answer = pod.run(|| ask_tcp(addr));
            answer.unwrap_or_else(|error| {
                panic!("{place} pod to {addr}: {error}: {:?}", drops(&cluster))
            });
        }
    }
    assert_eq!(drops(&cluster), []);
}

#[test]
fn packets_longer_than_the_mtu_arrive_in_fragments() {
    if !is_root() {
        return skip("needs root");
    }
    let (mut cluster, [a, b]) = two_pods();
    let vips: [SocketAddr; 2] =
        ["10.96.0.20:53", "[fd00:10:96::20]:53"].map(|vip| vip.parse().unwrap());
    for (addr, vip) in addresses(&b, 8080).into_iter().zip(vips) {
        let _udp = b.run(|| Server::udp(addr, "udp")).unwrap();
        cluster.publish(&ServiceSpec::udp(vip, [addr])).unwrap();
        for to in [addr, vip] {
            for length in [1400, 1423, 3000, 9000, 40000] {
                let answer = a.run(|| ask_udp(to, length));
                answer.unwrap_or_else(|error| {
                    panic!("{length} bytes to {to}: {error}: {:?}", drops(&cluster))
                });
            }
        }
    }
    assert_eq!(drops(&cluster), []);
}

/// Packets that a pod's interface sent.
fn sent_packets(pod: &Pod) -> usize {
    let table = pod
        .run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))
        .unwrap();
    let line = table
        .lines()
        .find_map(|line| line.trim().strip_prefix("eth0:"))
        .unwrap();
    line.split_whitespace().nth(9).unwrap().parse().unwrap()
}

#[test]
fn a_stream_arrives_whole_with_and_without_segmentation_offload() {
    if !is_root() {
        return skip("needs root");
    }
    let (mut cluster, [a, b]) = two_pods();
    let bytes = noise(16 << 20);
    let vips: [SocketAddr; 2] =
        ["10.96.0.30:80", "[fd00:10:96::30]:80"].map(|vip| vip.parse().unwrap());
    for offload in ["on", "off"] {
        if offload == "off" {
            // What the pod's stack cannot leave to the device it cuts itself.
            a.netns().ip("link set eth0 gso_max_segs 1").unwrap();
        }
        for (addr, vip) in addresses(&b, 8080).into_iter().zip(vips) {
            cluster.publish(&ServiceSpec::tcp(vip, [addr])).unwrap();
            for to in [addr, vip] {
                let before = sent_packets(&a);
                let arrived = stream(&a, &b, addr, to, &bytes).unwrap();
                assert!(arrived == bytes, "to {to}, offload {offload}");
                // Whole super-packets, or one packet for each segment.
                let (sent, segments) = (sent_packets(&a) - before, bytes.len() / 1450);
                assert_eq!(
                    sent < segments / 4,
                    offload == "on",
                    "{sent} packets, {segments} segments"
                );
                assert_eq!(
                    sent > segments,
                    offload == "off",
                    "{sent} packets, {segments} segments"
                );
            }
        }
    }
    assert_eq!(drops(&cluster), []);
}

#[test]
fn every_way_of_wrapping_carries_datagrams_fragments_and_streams() {
    if !is_root() {
        return skip("needs root");
    }
    let (cluster, [a, b]) = two_pods();
    let bytes = noise(8 << 20);
    for (wrapping, port) in Wrapping::ALL.into_iter().zip(8080..) {
        cluster.wrap(wrapping).unwrap();
        for (pod, node) in [&a, &b].into_iter().zip(&cluster.nodes) {
            set_mtu(node, pod, wrapping.mtu(1500));
        }
        for addr in addresses(&b, port) {
            let explain = |what: &str| format!("{what} to {addr} by {wrapping:?}");
            let arrived = stream(&a, &b, addr, addr, &bytes)
                .unwrap_or_else(|error| panic!("{}: {error}", explain("stream")));
            assert!(arrived == bytes, "{}", explain("stream"));
            let _udp = b.run(|| Server::udp(addr, "udp")).unwrap();
            for length in [0, 1, 1300, 20000] {
                let answer = a.run(|| ask_udp(addr, length)).unwrap_or_else(|error| {
                    panic!("{}: {error}: {:?}", explain("UDP"), drops(&cluster))
                });
                assert_eq!(
                    answer.client.ip(),
                    a.ip_for(addr.ip()),
                    "{}",
                    explain("UDP")
                );
            }
        }
    }
    assert_eq!(drops(&cluster), []);
}

fn set_mtu(node: &Node, pod: &Pod, mtu: u32) {
    pod.netns().ip(&format!("link set eth0 mtu {mtu}")).unwrap();
    let host_side = format!("link set {} mtu {mtu}", pod.ifname());
    node.netns().ip(&host_side).unwrap();
}

#[test]
fn a_pod_that_sends_too_long_packets_is_told_the_mtu() {
    if !is_root() {
        return skip("needs root");
    }
    let (cluster, [a, b]) = two_pods();
    set_mtu(&cluster.nodes[0], &a, 1500);
    for addr in addresses(&b, 8080) {
        let _udp = b.run(|| Server::udp(addr, "udp")).unwrap();
        // The first packet is too long for the overlay and lost; its sender learns why, and cuts the next.
        let headers = if addr.is_ipv4() { 28 } else { 48 };
        a.run(|| ask_udp(addr, 1500 - headers)).unwrap_err();
        let answer = a.run(|| ask_udp(addr, 1500 - headers));
        answer.unwrap_or_else(|error| panic!("{addr}: {error}: {:?}", drops(&cluster)));
    }
    // TCP learns it too.
    let bytes = noise(1 << 20);
    for addr in addresses(&b, 8081) {
        assert!(
            stream(&a, &b, addr, addr, &bytes).unwrap() == bytes,
            "{addr}"
        );
    }
}

#[test]
fn traffic_out_of_the_cluster_gets_the_node_address() {
    if !is_root() {
        return skip("needs root");
    }
    let (cluster, [a, _]) = two_pods();
    let (outside, node) = (&cluster.outside, &cluster.nodes[0]);
    for ip in [IpAddr::from(outside.ipv4), IpAddr::from(outside.ipv6)] {
        let addr = SocketAddr::new(ip, 7000);
        let _tcp = outside.run(|| Server::tcp(addr, "outside")).unwrap();
        let _udp = outside.run(|| Server::udp(addr, "outside")).unwrap();
        for (protocol, answer) in [
            ("TCP", a.run(|| ask_tcp(addr))),
            ("UDP", a.run(|| ask_udp(addr, 10))),
        ] {
            let answer = answer.unwrap_or_else(|error| {
                panic!("{protocol} {addr}: {error}: {:?}", drops(&cluster))
            });
            assert_eq!(answer.client.ip(), node.ip_for(ip), "{protocol}");
            assert!(
                (20000..=23999).contains(&answer.client.port()),
                "{protocol}: {answer:?}"
            );
        }
    }
    assert_eq!(drops(&cluster), []);
}
