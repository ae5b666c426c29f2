//! Services with real sockets and real packets, on two nodes, in both families.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::Barrier,
    thread,
    time::Duration,
};

use ebpf_abi::{Addr4, Addr6, conn_flag};
use node_agent_maps::{MapFamily, Maps};
use tests_testkit::{
    Cluster, Node, Pod, ServiceSpec, is_root, skip,
    traffic::{Server, ask_tcp, ask_udp, ask_udp_on, greeting},
};

const PORT: u16 = 8080;

/// A ClusterIP of each family.
fn vips() -> [SocketAddr; 2] {
    ["10.96.0.10:80", "[fd00:10:96::10]:80"].map(|vip| vip.parse().unwrap())
}

fn any(family: SocketAddr, port: u16) -> SocketAddr {
    if family.is_ipv4() {
        ([0, 0, 0, 0], port).into()
    } else {
        ([0_u16; 8], port).into()
    }
}

fn backend(pod: &Pod, vip: SocketAddr) -> SocketAddr {
    (pod.ip_for(vip.ip()), PORT).into()
}

/// TCP servers on pods, named by their order.
fn tcp_servers(pods: &[&Pod], vip: SocketAddr) -> Vec<Server> {
    let name = |index| format!("backend{index}");
    let start = |(index, pod): (usize, &&Pod)| {
        pod.run(|| Server::tcp(backend(pod, vip), &name(index)))
            .unwrap()
    };
    pods.iter().enumerate().map(start).collect()
}

/// UDP servers on pods, named by their order.
fn udp_servers(pods: &[&Pod], vip: SocketAddr) -> Vec<Server> {
    let name = |index| format!("backend{index}");
    let start = |(index, pod): (usize, &&Pod)| {
        pod.run(|| Server::udp(backend(pod, vip), &name(index)))
            .unwrap()
    };
    pods.iter().enumerate().map(start).collect()
}

fn counts(names: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

#[track_caller]
fn assert_no_drops(cluster: &Cluster) {
    for node in &cluster.nodes {
        let drops = node.maps().drops().unwrap();
        let counted: Vec<_> = drops
            .iter()
            .filter(|(_, counter)| counter.packets > 0)
            .collect();
        assert!(
            counted.is_empty(),
            "node {}: {counted:?}",
            node.addresses.number
        );
    }
}

#[test]
fn a_cluster_ip_is_balanced_in_turn_at_the_socket() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(2).unwrap();
    let pods = [0, 1, 1].map(|node| cluster.add_pod(node).unwrap());
    let client = cluster.add_pod(0).unwrap();
    for vip in vips() {
        let servers = tcp_servers(&pods.each_ref(), vip);
        let backends = pods.each_ref().map(|pod| backend(pod, vip));
        cluster.publish(&ServiceSpec::tcp(vip, backends)).unwrap();
        for (place, answers) in [
            (
                "pod",
                client.run(|| [(); 12].map(|()| ask_tcp(vip).unwrap())),
            ),
            (
                "host",
                cluster.nodes[0].run(|| [(); 12].map(|()| ask_tcp(vip).unwrap())),
            ),
        ] {
            for answer in &answers {
                assert_eq!(
                    answer.peer, vip,
                    "{place}: the client sees the address it asked for"
                );
            }
            let counts = counts(answers.map(|answer| answer.name));
            assert_eq!(
                counts.into_values().collect::<Vec<_>>(),
                [4, 4, 4],
                "{place} {vip}"
            );
        }
        drop(servers);
    }
    assert!(
        cluster.nodes.iter().all(|node| {
            let maps = node.maps();
            maps.v4.conns.count() == 0 && maps.v6.conns.count() == 0
        }),
        "what was balanced at the socket costs no tracked connection"
    );
    assert!(
        cluster.nodes.iter().all(|node| {
            let maps = node.maps();
            maps.v4.socket.entries().unwrap().is_empty()
                && maps.v6.socket.entries().unwrap().is_empty()
        }),
        "a socket that is gone is forgotten"
    );
    assert_no_drops(&cluster);
}

#[test]
fn a_cluster_ip_is_balanced_in_turn_on_the_way() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(2).unwrap();
    let pods = [0, 1, 1].map(|node| cluster.add_pod(node).unwrap());
    let client = cluster.add_pod(0).unwrap();
    for vip in vips() {
        let servers = tcp_servers(&pods.each_ref(), vip);
        let backends = pods.each_ref().map(|pod| backend(pod, vip));
        cluster.publish(&ServiceSpec::tcp(vip, backends)).unwrap();
        let ask = || [(); 12].map(|()| ask_tcp(vip).unwrap());
        for (place, source, answers) in [
            (
                "pod",
                client.ip_for(vip.ip()),
                client.run_without_socket_programs(ask),
            ),
            (
                "host",
                gateway(&cluster, vip.ip()),
                cluster.nodes[0].run_without_socket_programs(ask),
            ),
        ] {
            for answer in &answers {
                assert_eq!(
                    answer.client.ip(),
                    source,
                    "{place}: the backend sees the client"
                );
            }
            let counts = counts(answers.map(|answer| answer.name));
            assert_eq!(
                counts.into_values().collect::<Vec<_>>(),
                [4, 4, 4],
                "{place} {vip}"
            );
        }
        drop(servers);
    }
    assert_no_drops(&cluster);
}

/// The first node's own address towards pods.
fn gateway(cluster: &Cluster, family: IpAddr) -> IpAddr {
    let addresses = cluster.nodes[0].addresses;
    if family.is_ipv4() {
        addresses.pod_v4(1).into()
    } else {
        addresses.pod_v6(1).into()
    }
}

#[test]
fn udp_to_a_cluster_ip_is_answered_from_it() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(2).unwrap();
    let pods = [0, 1].map(|node| cluster.add_pod(node).unwrap());
    let client = cluster.add_pod(0).unwrap();
    for vip in vips() {
        let _servers = udp_servers(&pods.each_ref(), vip);
        let backends = pods.each_ref().map(|pod| backend(pod, vip));
        cluster.publish(&ServiceSpec::udp(vip, backends)).unwrap();
        for (place, answers) in [
            (
                "pod",
                client.run(|| [(); 8].map(|()| ask_udp(vip, 10).unwrap())),
            ),
            (
                "host",
                cluster.nodes[0].run(|| [(); 8].map(|()| ask_udp(vip, 10).unwrap())),
            ),
        ] {
            let counts = counts(answers.map(|answer| answer.name));
            assert_eq!(
                counts.into_values().collect::<Vec<_>>(),
                [4, 4],
                "{place} {vip}"
            );
        }
        // Packets of one flow stay with one backend.
        let flow = client.run(|| {
            let socket = UdpSocket::bind(any(vip, 0)).unwrap();
            socket.connect(vip).unwrap();
            [(); 6].map(|()| ask_udp_on(&socket, 10).unwrap().name)
        });
        assert_eq!(counts(flow).len(), 1, "{vip}");
    }
    assert_no_drops(&cluster);
}

#[test]
fn two_questions_at_once_on_one_socket_are_both_answered() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(2).unwrap();
    let pods = [0, 1].map(|node| cluster.add_pod(node).unwrap());
    let client = cluster.add_pod(0).unwrap();
    for vip in vips() {
        let _servers = udp_servers(&pods.each_ref(), vip);
        let backends = pods.each_ref().map(|pod| backend(pod, vip));
        cluster.publish(&ServiceSpec::udp(vip, backends)).unwrap();
        for round in 0..100 {
            let answers = client.run(|| ask_two_at_once(vip));
            let answers = answers.unwrap_or_else(|error| panic!("{vip}, {round}: {error}"));
            let [(first, a), (second, aaaa)] = answers;
            assert_eq!([a, aaaa], QUESTIONS, "{vip}, {round}: one answer to each");
            assert_eq!(first, second, "{vip}, {round}: one decision for both");
        }
    }
    assert_no_drops(&cluster);
}

/// Lengths of the two questions, and of the answers, by which these are told apart: longer than a greeting.
const QUESTIONS: [usize; 2] = [100, 200];

/// Asks as a resolver asks for A and AAAA: from one port of its own, and the connection is new to the node when both
/// come, on two processors. The servers' names and the lengths of the answers, sorted by these.
fn ask_two_at_once(vip: SocketAddr) -> std::io::Result<[(String, usize); 2]> {
    let socket = UdpSocket::bind(any(vip, 0))?;
    socket.connect(vip)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let start = Barrier::new(QUESTIONS.len());
    thread::scope(|scope| {
        let senders = QUESTIONS.map(|length| {
            let (socket, start) = (&socket, &start);
            scope.spawn(move || {
                start.wait();
                socket.send(&vec![b'?'; length])
            })
        });
        let mut sent = senders.into_iter();
        sent.try_for_each(|sender| sender.join().unwrap().map(drop))
    })?;
    let mut buffer = [0; 512];
    let mut answer = || {
        let length = socket.recv(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        let name = text.split(' ').next().unwrap_or_default().to_owned();
        std::io::Result::Ok((name, length))
    };
    let mut answers = [answer()?, answer()?];
    answers.sort_by_key(|(_, length)| *length);
    Ok(answers)
}

#[test]
fn a_node_port_reaches_backends_here_and_on_the_other_node() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(2).unwrap();
    let pods = [0, 1].map(|node| cluster.add_pod(node).unwrap());
    for vip in vips() {
        let _tcp = tcp_servers(&pods.each_ref(), vip);
        let _udp = udp_servers(&pods.each_ref(), vip);
        let backends = pods.each_ref().map(|pod| backend(pod, vip));
        let node = cluster.nodes[0].ip_for(vip.ip());
        let node_port = SocketAddr::new(node, 30080);
        let tcp = ServiceSpec::tcp(vip, backends).with_node_port(node, 30080);
        let udp = ServiceSpec::udp(vip, backends).with_node_port(node, 30080);
        cluster.publish(&tcp).unwrap();
        cluster.publish(&udp).unwrap();
        let outside = cluster.outside.ip_for(vip.ip());
        let addresses = cluster.nodes[0].addresses;
        let nat: IpAddr = match vip.ip() {
            IpAddr::V4(_) => addresses.pod_v4(0).into(),
            IpAddr::V6(_) => addresses.pod_v6(0).into(),
        };
        for (protocol, answers) in [
            (
                "TCP",
                cluster
                    .outside
                    .run(|| [(); 8].map(|()| ask_tcp(node_port).unwrap())),
            ),
            (
                "UDP",
                cluster
                    .outside
                    .run(|| [(); 8].map(|()| ask_udp(node_port, 10).unwrap())),
            ),
        ] {
            for answer in &answers {
                let seen = if answer.name == "backend0" {
                    outside
                } else {
                    nat
                };
                assert_eq!(
                    answer.client.ip(),
                    seen,
                    "{protocol}: what {} sees",
                    answer.name
                );
            }
            let counts = counts(answers.map(|answer| answer.name));
            assert_eq!(
                counts.into_values().collect::<Vec<_>>(),
                [4, 4],
                "{protocol} {vip}"
            );
        }
    }
    assert_no_drops(&cluster);
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(1).unwrap();
    let pod = cluster.add_pod(0).unwrap();
    for vip in vips() {
        let _tcp = tcp_servers(&[&pod], vip);
        let _udp = udp_servers(&[&pod], vip);
        cluster
            .publish(&ServiceSpec::tcp(vip, [backend(&pod, vip)]))
            .unwrap();
        cluster
            .publish(&ServiceSpec::udp(vip, [backend(&pod, vip)]))
            .unwrap();
        pod.run(|| ask_tcp(vip)).unwrap();
        pod.run_without_socket_programs(|| ask_tcp(vip)).unwrap();
        let answer = pod.run(|| ask_udp(vip, 10)).unwrap();
        assert_ne!(
            answer.client.ip(),
            pod.ip_for(vip.ip()),
            "the source is replaced"
        );
    }
    assert_no_drops(&cluster);
}

#[test]
fn a_service_without_backends_refuses_at_once() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(1).unwrap();
    let client = cluster.add_pod(0).unwrap();
    for vip in vips() {
        cluster.publish(&ServiceSpec::tcp(vip, [])).unwrap();
        let error = client.run(|| ask_tcp(vip)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{vip}: {error}");
    }
}

#[test]
fn a_withdrawn_service_is_gone() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(1).unwrap();
    let (server, client) = (cluster.add_pod(0).unwrap(), cluster.add_pod(0).unwrap());
    let vip = vips()[0];
    let _server = tcp_servers(&[&server], vip);
    let service = cluster
        .publish(&ServiceSpec::tcp(vip, [backend(&server, vip)]))
        .unwrap();
    client.run(|| ask_tcp(vip)).unwrap();
    cluster.withdraw(&service).unwrap();
    client.run(|| ask_tcp(vip)).unwrap_err();
}

/// Connects from a fixed port, as a client does that has bound its socket.
fn connect_from(local: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
        sockopt,
    };
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, SockType::Stream, SockFlag::empty(), None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    let patience = nix::sys::time::TimeVal::new(3, 0);
    setsockopt(&fd, sockopt::SendTimeout, &patience)?;
    // A RST at the end instead of TIME_WAIT, so that the port is free for the next connection.
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&fd, sockopt::Linger, &linger)?;
    use std::os::fd::AsRawFd;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(local))?;
    connect(fd.as_fd().as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(fd))
}

/// Waits until the node has seen that no connection goes on: a busy kernel may take the RST of one processor after the
/// SYN of another.
fn wait_for_resets(node: &Node) {
    fn all_reset<A: MapFamily>(maps: &Maps) -> bool {
        let conns = A::of(maps).conns.entries();
        conns
            .iter()
            .all(|conn| conn.flags & conn_flag::TCP_RST != 0)
    }
    for _ in 0..500 {
        if all_reset::<Addr4>(node.maps()) && all_reset::<Addr6>(node.maps()) {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("a connection was not reset");
}

#[test]
fn a_direct_connection_after_one_through_the_service_is_not_rewritten() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(2).unwrap();
    let client = cluster.add_pod(0).unwrap();
    let servers = [0, 1].map(|node| cluster.add_pod(node).unwrap());
    for server in &servers {
        for vip in vips() {
            let _server = tcp_servers(&[server], vip);
            let direct = backend(server, vip);
            cluster
                .publish(&ServiceSpec::tcp(vip, [direct]).with_id(1))
                .unwrap();
            let local = SocketAddr::new(client.ip_for(vip.ip()), 45000);
            for (round, to) in [vip, direct, vip, direct].into_iter().enumerate() {
                let answer = client.run_without_socket_programs(|| {
                    let mut stream = connect_from(local, to)?;
                    greeting(&mut stream)
                });
                let answer =
                    answer.unwrap_or_else(|error| panic!("round {round} to {to}: {error}"));
                assert_eq!(answer.client, local, "round {round} to {to}");
                wait_for_resets(&cluster.nodes[0]);
            }
        }
    }
    assert_no_drops(&cluster);
}
