//! Addresses that are reached from outside, with real sockets: load balancers' and NodePorts, and who may come.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use ebpf_abi::{Addr4, Addr6};
use nix::errno::Errno;
use node_agent_maps::MapFamily;
use node_agent_model::{
    Algorithm, Change, ObjectName, PodShare, Protocol, Service, ServicePort, TrafficPolicy,
};
use tests_netns::{Agents, slice};
use tests_testkit::{
    Cluster, NetNs, Node, Pod, VethEnd, is_root, skip,
    traffic::{Server, ask_tcp, ask_udp},
};

const PORT: u16 = 8080;
const NODE_PORT: u16 = 30080;
/// An address of a load balancer in each family.
const VIPS: [&str; 2] = ["203.0.113.1", "2001:db8:113::1"];

/// Two nodes with a backend and a client each, TCP and UDP served.
struct Stage {
    cluster: Cluster,
    agents: Agents,
    clients: [Pod; 2],
    backends: [Pod; 2],
    servers: Vec<Server>,
}

impl Stage {
    fn new() -> Self {
        let mut cluster = Cluster::new(2).unwrap();
        let backends = [0, 1].map(|node| cluster.add_pod(node).unwrap());
        let clients = [0, 1].map(|node| cluster.add_pod(node).unwrap());
        let mut servers = Vec::new();
        for (index, pod) in backends.iter().enumerate() {
            for ip in [IpAddr::from(pod.ipv4()), pod.ipv6().into()] {
                let (addr, name) = (SocketAddr::new(ip, PORT), format!("backend{index}"));
                servers.push(pod.run(|| Server::tcp(addr, &name)).unwrap());
                servers.push(pod.run(|| Server::udp(addr, &name)).unwrap());
            }
        }
        for (vip, node) in VIPS.iter().zip([
            IpAddr::from(cluster.nodes[0].addresses.underlay_v4()),
            cluster.nodes[0].addresses.underlay_v6().into(),
        ]) {
            let netns = &cluster.outside.netns;
            netns.ip(&format!("route add {vip} via {node}")).unwrap();
        }
        let agents = Agents::new(&cluster);
        Self {
            cluster,
            agents,
            clients,
            backends,
            servers,
        }
    }

    /// Connections and packets that the backends got.
    fn served(&self) -> usize {
        self.servers.iter().map(Server::served).sum()
    }

    /// Connections that the first node keeps track of.
    fn connections(&self) -> usize {
        fn count<A: MapFamily>(node: &Node) -> usize {
            A::of(node.maps()).conns.entries().len()
        }
        let node = &self.cluster.nodes[0];
        count::<Addr4>(node) + count::<Addr6>(node)
    }

    /// Publishes the Service with the backends of these nodes (from 0 on).
    fn serve(&mut self, service: Service, backends: &[usize]) {
        let name = ObjectName::new("default", "web");
        let pods: Vec<_> = backends
            .iter()
            .map(|index| (&self.backends[*index], *index as u8 + 1))
            .collect();
        let slices = [true, false].map(|v4| {
            let (name, slice) = slice(&name, v4, PORT, &pods);
            Change::EndpointSlice(name, Some(slice))
        });
        let service = Change::Service(name, Some(service));
        let changes: Vec<Change> = slices.into_iter().chain([service]).collect();
        self.agents.change(&self.cluster, &changes).unwrap();
    }
}

fn service(external_policy: TrafficPolicy) -> Service {
    let port = |protocol| ServicePort {
        name: String::new(),
        protocol,
        port: 80,
        node_port: Some(NODE_PORT),
    };
    let parse = |texts: [&str; 2]| texts.map(|text| text.parse().unwrap()).to_vec();
    Service {
        cluster_ips: parse(["10.96.0.10", "fd00:10:96::10"]),
        load_balancer_ips: parse(VIPS),
        ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        external_policy,
        ..Service::default()
    }
}

fn vips() -> [SocketAddr; 2] {
    VIPS.map(|ip| SocketAddr::new(ip.parse().unwrap(), 80))
}

#[test]
fn under_a_local_policy_outsiders_keep_their_address_and_pods_reach_every_backend() {
    if !is_root() {
        return skip("needs root");
    }
    let mut stage = Stage::new();
    stage.serve(service(TrafficPolicy::Local), &[0, 1]);
    let outside = &stage.cluster.outside;
    for vip in vips() {
        for answer in outside.run(|| [ask_tcp(vip), ask_udp(vip, 10), ask_tcp(vip)]) {
            let answer = answer.unwrap();
            assert_eq!(answer.name, "backend0", "only the node's own backend");
            assert_eq!(answer.client.ip(), outside.ip_for(vip.ip()));
        }
        // At the socket, and by packets.
        let tcp = stage.clients[0].run(|| [ask_tcp(vip), ask_tcp(vip)]);
        let udp = stage.clients[0].run(|| [ask_udp(vip, 10), ask_udp(vip, 10)]);
        for answers in [tcp, udp] {
            let names: BTreeSet<String> = answers.map(|answer| answer.unwrap().name).into();
            assert_eq!(names.len(), 2, "a pod takes every backend: {names:?}");
        }
    }
}

#[test]
fn a_client_outside_learns_how_long_a_packet_to_another_nodes_backend_may_be() {
    if !is_root() {
        return skip("needs root");
    }
    let mut stage = Stage::new();
    stage.serve(service(TrafficPolicy::Cluster), &[1]);
    let outside = &stage.cluster.outside;
    for ip in VIPS.map(|ip| stage.cluster.nodes[0].ip_for(ip.parse().unwrap())) {
        let addr = SocketAddr::new(ip, NODE_PORT);
        let headers = if addr.is_ipv4() { 28 } else { 48 };
        assert!(outside.run(|| ask_udp(addr, 1450 - headers)).is_ok());
        // The kernel sets DF, and cuts datagrams for a path of which it knows the MTU.
        let asked = outside.run(|| [ask_udp(addr, 1451 - headers), ask_udp(addr, 1500 - headers)]);
        let told = asked[0].as_ref().unwrap_err().raw_os_error();
        assert_eq!(told, Some(Errno::EMSGSIZE as i32));
        assert_eq!(asked[1].as_ref().unwrap().name, "backend1");
        let route = format!("route get {ip}");
        let route = outside.run(|| Command::new("ip").args(route.split(' ')).output());
        let route = String::from_utf8(route.unwrap().stdout).unwrap();
        assert!(route.contains("mtu 1450"), "{route}");
    }
}

/// A network behind the machine outside, whose packets must be shorter than those of the others.
fn behind_a_narrow_link(cluster: &Cluster, mtu: u32) -> NetNs {
    let (far, router) = (NetNs::new().unwrap(), &cluster.outside.netns);
    let end = |netns, name, last| VethEnd {
        netns,
        name,
        mac: [0x02, 0, 0xc6, 0x33, 0x64, last],
    };
    NetNs::veth(end(router, "far", 1), end(&far, "eth0", 2), mtu).unwrap();
    router
        .ip("addr add 198.51.100.1/24 dev far\naddr add 2001:db8:51::1/64 dev far nodad")
        .unwrap();
    for parameter in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        router.sysctl(parameter, "1").unwrap();
    }
    far.ip(
        "addr add 198.51.100.2/24 dev eth0\naddr add 2001:db8:51::2/64 dev eth0 nodad\n\
         route add default via 198.51.100.1\nroute add default via 2001:db8:51::1",
    )
    .unwrap();
    let (v4, v6) = (cluster.outside.ipv4, cluster.outside.ipv6);
    let routes = format!("route add 198.51.100.0/24 via {v4}\nroute add 2001:db8:51::/64 via {v6}");
    cluster.nodes[0].netns().ip(&routes).unwrap();
    far
}

#[test]
fn a_backend_on_another_node_learns_how_long_its_answers_to_the_outside_may_be() {
    if !is_root() {
        return skip("needs root");
    }
    const NARROW: u32 = 1300;
    let mut stage = Stage::new();
    stage.serve(service(TrafficPolicy::Cluster), &[1]);
    let far = behind_a_narrow_link(&stage.cluster, NARROW);
    for ip in VIPS.map(|ip| stage.cluster.nodes[0].ip_for(ip.parse().unwrap())) {
        let addr = SocketAddr::new(ip, NODE_PORT);
        assert_eq!(far.run(|| ask_udp(addr, 1000)).unwrap().name, "backend1");
        // The router tells the node that asked in its own name, which must tell the backend.
        let lost = far.run(|| ask_udp(addr, 1400)).unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::WouldBlock, "{addr}");
        assert_eq!(far.run(|| ask_udp(addr, 1400)).unwrap().name, "backend1");
    }
}

#[test]
fn a_frame_for_another_machine_is_neither_answered_nor_forwarded() {
    if !is_root() {
        return skip("needs root");
    }
    let mut stage = Stage::new();
    let promiscuous = "link set eth0 promisc on";
    stage.cluster.nodes[0].netns().ip(promiscuous).unwrap();
    // A backend here, one on the other node, none.
    for backends in [&[0][..], &[1], &[]] {
        stage.serve(service(TrafficPolicy::Cluster), backends);
        for ip in VIPS.map(|ip| stage.cluster.nodes[0].ip_for(ip.parse().unwrap())) {
            let addr = SocketAddr::new(ip, NODE_PORT);
            let outside = &stage.cluster.outside;
            // Nobody has this address: the bridge sends such a frame to every machine.
            let elsewhere = "lladdr 02:00:00:00:00:99 nud permanent";
            let neighbour = format!("neigh replace {ip} dev eth0 {elsewhere}");
            outside.netns.ip(&neighbour).unwrap();
            let before = (stage.served(), stage.connections());
            let tcp = outside.run(|| TcpStream::connect_timeout(&addr, Duration::from_secs(1)));
            let udp = outside.run(|| ask_udp(addr, 10));
            let kinds = [tcp.unwrap_err().kind(), udp.unwrap_err().kind()];
            let silence = [ErrorKind::TimedOut, ErrorKind::WouldBlock];
            assert_eq!(kinds, silence, "{addr} {backends:?}");
            let after = (stage.served(), stage.connections());
            assert_eq!(after, before, "{addr} {backends:?}");
            // Addressed to the node, the same arrives.
            outside
                .netns
                .ip(&format!("neigh del {ip} dev eth0"))
                .unwrap();
            let answer = outside.run(|| ask_udp(addr, 10));
            assert_eq!(answer.is_ok(), !backends.is_empty(), "{addr}: {answer:?}");
        }
    }
}

#[test]
fn a_pod_reaches_the_node_port_of_another_node() {
    if !is_root() {
        return skip("needs root");
    }
    let mut stage = Stage::new();
    // A backend behind the other node, one beside the client, one of each in turn.
    for backends in [&[0][..], &[1], &[0, 1]] {
        stage.serve(service(TrafficPolicy::Cluster), backends);
        for ip in VIPS.map(|ip| stage.cluster.nodes[0].ip_for(ip.parse().unwrap())) {
            let addr = SocketAddr::new(ip, NODE_PORT);
            let client = &stage.clients[1];
            let expected: BTreeSet<String> = backends
                .iter()
                .map(|index| format!("backend{index}"))
                .collect();
            for (how, answers) in [
                ("TCP", client.run(|| [ask_tcp(addr), ask_tcp(addr)])),
                ("UDP", client.run(|| [ask_udp(addr, 10), ask_udp(addr, 10)])),
            ] {
                let answers = answers.map(|answer| answer.unwrap());
                assert!(answers.iter().all(|answer| answer.peer == addr));
                let names: BTreeSet<String> = answers.map(|answer| answer.name).into();
                assert_eq!(names, expected, "{how} {addr}");
            }
        }
    }
}

#[test]
fn source_ranges_let_in_whom_they_name() {
    if !is_root() {
        return skip("needs root");
    }
    let mut stage = Stage::new();
    let range = |text: &str| text.parse().unwrap();
    let pod = &stage.clients[0];
    let admitted = |extra: &[String]| Service {
        source_ranges: extra.iter().map(|text| range(text)).collect(),
        ..service(TrafficPolicy::Cluster)
    };
    let outsiders = VIPS.map(|ip| stage.cluster.outside.ip_for(ip.parse().unwrap()));
    let pods = [pod.ipv4().to_string(), pod.ipv6().to_string()];
    let outsiders = outsiders.map(|ip| ip.to_string());

    stage.serve(admitted(&outsiders), &[0, 1]);
    let ask = |vip| [ask_tcp(vip), ask_udp(vip, 10)];
    for vip in vips() {
        let answers = stage.cluster.outside.run(|| ask(vip));
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        let answers = stage.clients[0].run(|| ask_udp(vip, 10));
        assert_eq!(answers.unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    stage.serve(admitted(&pods), &[0, 1]);
    for vip in vips() {
        let answers = stage.clients[0].run(|| ask(vip));
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        let answer = stage.cluster.outside.run(|| ask_udp(vip, 10));
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn a_node_port_on_loopback_serves_processes_of_the_host_alone() {
    if !is_root() {
        return skip("needs root");
    }
    let mut stage = Stage::new();
    stage.serve(service(TrafficPolicy::Cluster), &[0, 1]);
    for loopback in ["127.0.0.1", "::1"] {
        let addr = SocketAddr::new(loopback.parse().unwrap(), NODE_PORT);
        let answers = stage.cluster.nodes[0].run(|| [ask_tcp(addr), ask_tcp(addr)]);
        let answers = answers.map(|answer| answer.unwrap());
        assert!(answers.iter().all(|answer| answer.peer == addr));
        let names: BTreeSet<String> = answers.map(|answer| answer.name).into();
        assert_eq!(names.len(), 2, "{names:?}");
        let refused = stage.clients[0].run(|| ask_tcp(addr)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn without_backends_everybody_is_refused_at_once_and_dropped_under_a_local_policy() {
    if !is_root() {
        return skip("needs root");
    }
    let mut stage = Stage::new();
    let cluster_ips = service(TrafficPolicy::Cluster).cluster_ips;
    let kind = |answer: std::io::Result<_>| {
        answer
            .map(|_: tests_testkit::traffic::Answer| ())
            .unwrap_err()
            .kind()
    };
    stage.serve(service(TrafficPolicy::Cluster), &[]);
    for ip in cluster_ips {
        // Nobody listens behind 80, and nothing is known of 81.
        for port in [80, 81] {
            let addr = SocketAddr::new(ip, port);
            let ask = || {
                [
                    kind(ask_tcp(addr)),
                    kind(ask_udp(addr, 10)),
                    kind(ask_udp(addr, 0)),
                ]
            };
            let host = &stage.cluster.nodes[0];
            for (who, kinds) in [
                ("pod", stage.clients[0].run(ask)),
                (
                    "pod by packets",
                    stage.clients[0].run_without_socket_programs(ask),
                ),
                ("host", host.run(ask)),
                ("host by packets", host.run_without_socket_programs(ask)),
            ] {
                assert_eq!(kinds, [ErrorKind::ConnectionRefused; 3], "{who} {addr}");
            }
        }
    }
    let node_ports = VIPS.map(|ip| stage.cluster.nodes[0].ip_for(ip.parse().unwrap()));
    let mut addresses = node_ports.map(|ip| SocketAddr::new(ip, NODE_PORT)).to_vec();
    addresses.extend(vips());
    for addr in &addresses {
        let outside = &stage.cluster.outside;
        let kinds = outside.run(|| [kind(ask_tcp(*addr)), kind(ask_udp(*addr, 10))]);
        assert_eq!(kinds, [ErrorKind::ConnectionRefused; 2], "{addr}");
    }
    stage.serve(service(TrafficPolicy::Local), &[1]);
    for addr in addresses {
        let dropped = stage.cluster.outside.run(|| kind(ask_udp(addr, 10)));
        assert_eq!(dropped, ErrorKind::WouldBlock, "{addr}");
    }
}

#[test]
fn a_client_keeps_its_backend_at_the_socket_by_packets_and_from_outside() {
    if !is_root() {
        return skip("needs root");
    }
    let mut stage = Stage::new();
    for algorithm in [Algorithm::RoundRobin, Algorithm::Maglev] {
        let sticky = Service {
            affinity_seconds: 600,
            algorithm: Some(algorithm),
            ..service(TrafficPolicy::Cluster)
        };
        stage.serve(sticky, &[0, 1]);
        for vip in vips() {
            let tcp = || [(); 6].map(|()| ask_tcp(vip).unwrap().name);
            let udp = || [(); 6].map(|()| ask_udp(vip, 10).unwrap().name);
            let outside = &stage.cluster.outside;
            for names in [
                stage.clients[0].run(tcp),
                stage.clients[0].run(udp),
                outside.run(tcp),
                outside.run(udp),
            ] {
                let names: BTreeSet<String> = names.into();
                assert_eq!(names.len(), 1, "{algorithm:?} {vip}: {names:?}");
            }
        }
    }
}

#[test]
fn a_canary_gets_its_share_of_the_connections() {
    if !is_root() {
        return skip("needs root");
    }
    let mut stage = Stage::new();
    let canary = Service {
        shares: PodShare::parse_list("canary=5").unwrap(),
        ..service(TrafficPolicy::Cluster)
    };
    stage.serve(canary, &[0, 1]);
    for vip in vips() {
        let name = |answer: std::io::Result<tests_testkit::traffic::Answer>| answer.unwrap().name;
        let at_the_socket = stage.clients[0].run(|| [(); 40].map(|()| name(ask_tcp(vip))));
        let by_packets = stage
            .cluster
            .outside
            .run(|| [(); 40].map(|()| name(ask_udp(vip, 10))));
        for names in [at_the_socket, by_packets] {
            let share = names.iter().filter(|name| *name == "backend1").count();
            assert_eq!(share, 2, "{vip}: 5 % of 40");
        }
    }
}
