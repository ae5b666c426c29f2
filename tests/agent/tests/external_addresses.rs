//! UDP and SCTP of a node's own processes to Services: nobody translates these at the socket, so their packets must find
//! the way to the programs, to external addresses too, and nothing else may lose its own.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::Read;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::Method;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use tests_agent::{Agent, Api, Pod, eventually, without_root};
use tests_testkit::traffic::{Server, ask_tcp, ask_udp};
use tests_testkit::{NetNs, Underlay};

/// Of the Service and of its pod, UDP's and SCTP's.
const PORTS: [u16; 2] = [5353, 5454];
const TARGETS: [u16; 2] = [8053, 8054];
/// Addresses that are nobody's but the Service's.
const EXTERNAL: [&str; 2] = ["203.0.113.1", "2001:db8:113::1"];
const LOAD_BALANCER: [&str; 2] = ["203.0.113.2", "2001:db8:113::2"];
const SERVICE: &str = "/api/v1/namespaces/default/services/dns";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
/// Nobody answers after this.
const PATIENCE: Duration = Duration::from_secs(1);

struct Scene {
    agents: [Agent; 2],
    pod: Pod,
    cluster_ips: Vec<IpAddr>,
    api: Api,
    underlay: Underlay,
}

impl Scene {
    /// Two nodes. The Service's pod is on the second; everybody asks from the first.
    fn start() -> Self {
        let underlay = Underlay::new(1500).unwrap();
        let api = Api::start(&underlay).unwrap();
        let agents = [1, 2].map(|number| {
            let v6 = format!("fd00:10:244:{number}::/64");
            let cidrs = [&format!("10.244.{number}.0/24"), v6.as_str()];
            Agent::node(&underlay, &api, number, &cidrs, &[]).unwrap()
        });
        // As a kubelet would.
        let node = agents[1].machine();
        let addresses = [node.ipv4.to_string(), node.ipv6.to_string()];
        let addresses = addresses.map(|ip| json!({"type": "InternalIP", "address": ip}));
        let status = json!({"status": {"addresses": addresses}});
        let path = "/api/v1/nodes/n2/status";
        api.call(Method::PATCH, path, Some(status)).unwrap();
        let pod = agents[1].pod("dns").unwrap();
        let scene = Self {
            cluster_ips: Vec::new(),
            agents,
            pod,
            api,
            underlay,
        };
        let router = "route add default via 192.0.2.254";
        scene.host().ip(router).unwrap();
        let cluster_ips = scene.publish().unwrap();
        scene.publish_pod().unwrap();
        Self {
            cluster_ips,
            ..scene
        }
    }

    /// Makes the Service, which names addresses of machines too, and answers its own.
    fn publish(&self) -> Result<Vec<IpAddr>> {
        let nodes = self.agents.each_ref().map(|agent| agent.machine());
        let external: Vec<String> = EXTERNAL
            .map(str::to_owned)
            .into_iter()
            .chain(nodes.map(|node| node.ipv4.to_string()))
            .chain([nodes[1].ipv6.to_string(), "192.0.2.254".into()])
            .collect();
        let ports = ["UDP", "SCTP"].iter().zip(PORTS).zip(TARGETS);
        let ports = ports.map(|((protocol, port), target)| {
            json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": port, "targetPort": target})
        });
        let service = json!({"metadata": {"name": "dns"}, "spec": {
            "type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack", "externalIPs": external,
            "ports": ports.collect::<Vec<_>>()}});
        let made = self.api.call(
            Method::POST,
            SERVICE.trim_end_matches("/dns"),
            Some(service),
        )?;
        let ingress = LOAD_BALANCER.map(|ip| json!({"ip": ip}));
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        self.api
            .call(Method::PATCH, &format!("{SERVICE}/status"), Some(status))?;
        let ips = made["spec"]["clusterIPs"].as_array();
        let ips = ips.context("no clusterIPs")?.iter();
        let parsed = ips.map(|ip| ip.as_str().unwrap_or_default().parse());
        Ok(parsed.collect::<Result<_, _>>()?)
    }

    fn publish_pod(&self) -> Result<()> {
        for (family, ip) in ["IPv4", "IPv6"].iter().zip(&self.pod.ips) {
            let slice = json!({
                "metadata": {"name": format!("dns-{}", family.to_lowercase()),
                    "labels": {"kubernetes.io/service-name": "dns"}},
                "addressType": family, "endpoints": [{"addresses": [ip], "nodeName": "n2"}],
                "ports": [{"name": "udp", "port": TARGETS[0], "protocol": "UDP"},
                    {"name": "sctp", "port": TARGETS[1], "protocol": "SCTP"}]});
            self.api.call(Method::POST, SLICES, Some(slice))?;
        }
        Ok(())
    }

    fn host(&self) -> &NetNs {
        &self.agents[0].machine().netns
    }

    /// Every address at which the Service is reached.
    fn addresses(&self) -> Vec<IpAddr> {
        let external = [EXTERNAL, LOAD_BALANCER].concat();
        let external = external.iter().map(|text| text.parse().unwrap());
        external.chain(self.cluster_ips.iter().copied()).collect()
    }

    fn udp(&self, address: IpAddr) -> Result<()> {
        let service = SocketAddr::new(address, PORTS[0]);
        let answer = self.host().run(|| ask_udp(service, 100));
        let answer = answer.with_context(|| format!("UDP to {service}"))?;
        ensure!(answer.name == "dns", "{answer:?}");
        Ok(())
    }

    /// A packet with a right checksum each way. From one port twice, the second would be given another one.
    fn sctp(&self, address: IpAddr, port: u16) -> Result<()> {
        let service = SocketAddr::new(address, PORTS[1]);
        let [server, client] = [&self.pod.netns, self.host()].map(|netns| raw_sctp(netns, service));
        let (server, client) = (server?, client?);
        let asked = sctp_packet(port, PORTS[1]);
        client.send_to(&asked, &SocketAddr::new(address, 0).into())?;
        let (asked, from) = receive(&server).with_context(|| format!("SCTP to {service}"))?;
        ensure!(
            asked == sctp_packet(port, TARGETS[1]),
            "the pod got {asked:?}"
        );
        let answer = sctp_packet(TARGETS[1], port);
        server.send_to(&answer, &SocketAddr::new(from, 0).into())?;
        let (answer, from) = receive(&client).with_context(|| format!("SCTP from {service}"))?;
        ensure!(from == address, "{from} answered");
        ensure!(answer == sctp_packet(PORTS[1], port), "got {answer:?}");
        Ok(())
    }

    fn rules(&self) -> String {
        let rules = ["-4 rule show", "-6 rule show"].map(|words| self.agents[0].ip(words).unwrap());
        rules.concat()
    }
}

#[test]
fn udp_and_sctp_of_a_nodes_own_processes_reach_services_by_every_address() {
    if without_root() {
        return;
    }
    let mut scene = Scene::start();
    let _servers: Vec<Server> = {
        let ips = scene.pod.ips.iter();
        let server = |ip: &IpAddr| {
            let address = SocketAddr::new(*ip, TARGETS[0]);
            scene.pod.netns.run(|| Server::udp(address, "dns")).unwrap()
        };
        ips.map(server).collect()
    };
    for (address, port) in scene.addresses().into_iter().zip(40_000..) {
        eventually("UDP", || scene.udp(address)).unwrap();
        scene.sctp(address, port).unwrap();
        println!("{address}: UDP and SCTP of the host were balanced");
    }
    what_is_a_machines_stays_so(&scene);
    what_was_removed_comes_back(&scene);
    scene.api.call(Method::DELETE, SERVICE, None).unwrap();
    eventually("rules without a Service", || {
        let rules = scene.rules();
        ensure!(!rules.contains("64250"), "{rules}");
        Ok(())
    })
    .unwrap();
    scene.publish().unwrap();
    // An answer alone proves no rule: what the node sends by its uplink may reach the other node, which balances it too.
    eventually("rules again", || {
        let rules = scene.rules().matches("64250").count();
        ensure!(rules == 4, "{rules} rules");
        Ok(())
    })
    .unwrap();
    scene.udp(EXTERNAL[0].parse().unwrap()).unwrap();
    scene.agents[0].kill().unwrap();
    let removed = scene.agents[0].clean().unwrap();
    for (kind, count) in [("\"rule\"", 4), ("203.0.113.1", 1)] {
        assert_eq!(removed.matches(kind).count(), count, "{removed}");
    }
    assert!(!scene.rules().contains("64250"), "{}", scene.rules());
}

/// The Service names the second node's addresses, and this one's; and an address that is a Service's may be a machine's
/// besides.
fn what_is_a_machines_stays_so(scene: &Scene) {
    let node = scene.agents[1].machine();
    for ip in [IpAddr::from(node.ipv4), node.ipv6.into()] {
        let address = SocketAddr::new(ip, PORTS[0] + 1);
        let _server = node.netns.run(|| Server::udp(address, "node")).unwrap();
        let answer = scene.host().run(|| ask_udp(address, 100)).unwrap();
        assert_eq!(answer.name, "node");
    }
    let machine = scene.underlay.machine(60).unwrap();
    machine.netns.ip("addr add 203.0.113.1/32 dev lo").unwrap();
    let route = format!("route add 203.0.113.1 via {}", machine.ipv4);
    scene.host().ip(&route).unwrap();
    let address: SocketAddr = "203.0.113.1:22".parse().unwrap();
    let _server = machine.netns.run(|| Server::tcp(address, "ssh")).unwrap();
    let answer = scene.host().run(|| ask_tcp(address)).unwrap();
    assert_eq!(answer.name, "ssh", "TCP keeps its way");
    let events = scene.api.events().unwrap();
    for whose in [
        "to 192.0.2.1 are not balanced: Service default/dns names an address of this node",
        "to 192.0.2.2 are not balanced: Service default/dns names a node's address",
        "to 192.0.2.254 are not balanced: Service default/dns names a router of this node",
    ] {
        let said = events
            .iter()
            .any(|(reason, message)| reason == "ExternalAddressLeftOut" && message.contains(whose));
        assert!(said, "{whose}: {events:?}");
    }
}

fn what_was_removed_comes_back(scene: &Scene) {
    let host = scene.host();
    let address: IpAddr = EXTERNAL[0].parse().unwrap();
    for (what, by_hand) in [
        ("a route", "route del 203.0.113.1 table 64250"),
        ("a rule", "rule del ipproto udp table 64250"),
    ] {
        host.ip(by_hand).unwrap();
        let begun = Instant::now();
        eventually(what, || {
            let events = scene.api.events()?;
            let restored = events.iter().filter(|(reason, message)| {
                reason == "HostStateRestored" && message.contains("external addresses")
            });
            ensure!(
                restored.count() > usize::from(what == "a rule"),
                "{events:?}"
            );
            scene.udp(address)
        })
        .unwrap();
        println!("{what} was put back after {:?}", begun.elapsed());
    }
}

/// A socket for whole SCTP packets: the kernel's own SCTP need not be there.
fn raw_sctp(netns: &NetNs, service: SocketAddr) -> Result<Socket> {
    let socket = netns.run(|| {
        let protocol = Protocol::from(132);
        Socket::new(Domain::for_address(service), Type::RAW, Some(protocol))
    })?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A packet, its IP header left out, and who sent it.
fn receive(socket: &Socket) -> Result<(Vec<u8>, IpAddr)> {
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let (_, from) = socket.peek_from(&mut buffer)?;
    let from = from.as_socket().context("no address")?.ip();
    let mut bytes = [0; 2048];
    let mut reader = socket;
    let length = reader.read(&mut bytes)?;
    // Only IPv4 shows the header (raw(7)); it has no options here.
    let header = if from.is_ipv4() { 20 } else { 0 };
    Ok((bytes[header..length].to_vec(), from))
}

/// With one chunk of data, its checksum computed whole (RFC 9260 appendix A).
fn sctp_packet(source: u16, destination: u16) -> Vec<u8> {
    let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    bytes.extend([0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0]);
    bytes.extend([0, 3, 0, 21, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(b"hello\0\0\0");
    let check = !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1))
        })
    });
    bytes[8..12].copy_from_slice(&check.to_le_bytes());
    bytes
}
