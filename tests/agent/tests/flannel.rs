//! From flannel to ours, node by node, in both registries: nodes of both kinds share one overlay all the time, and what goes
//! between two nodes never stops while the third one changes over.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::json;
use tests_agent::{
    Agent, Api, Etcd, FlannelConfig, FlannelLease, FlannelNode, Flow, Kind, Pod, Registry, Servers,
    Stream, Traffic, eventually, flanneld, without_root,
};
use tests_testkit::{Machine, Underlay, skip};

/// Of the server at the other end of a connection.
const PORT: u16 = 7;

/// Far longer than a stream stands still on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster on its way from flannel.
struct Cluster<'a> {
    underlay: &'a Underlay,
    api: &'a Api,
    registry: Registry<'a>,
    config: FlannelConfig,
    /// What our agents are told besides.
    more: &'a [&'a str],
}

/// A node of it.
enum Member {
    Flannel(Box<FlannelNode>),
    Ours { pod: Pod, agent: Box<Agent> },
}

impl Member {
    fn pod(&self) -> &Pod {
        match self {
            Self::Flannel(node) => &node.pod,
            Self::Ours { pod, .. } => pod,
        }
    }

    fn machine(&self) -> &Machine {
        match self {
            Self::Flannel(node) => &node.machine,
            Self::Ours { agent, .. } => agent.machine(),
        }
    }

    /// Flannel's rules are those of a real flanneld.
    fn masquerades(&self) -> bool {
        matches!(self, Self::Ours { .. }) || flanneld().is_some()
    }
}

impl Cluster<'_> {
    fn machine(&self, number: u8) -> Machine {
        let machine = self.underlay.machine(number).unwrap();
        if self.config.backend == "udp" {
            // As a wire demands: a veth takes packets whose sums are yet to be made, and so would the process behind it.
            machine.netns.offload("eth0", "tx", false).unwrap();
        }
        if self.config.ipv6 {
            machine
                .netns
                .ip("addr flush dev eth0 scope global to 192.0.2.0/24")
                .unwrap();
        }
        machine
    }

    /// Three nodes of flannel's that reach each other.
    fn flannel(&self) -> Vec<Member> {
        let machines: Vec<Machine> = (1..=3).map(|number| self.machine(number)).collect();
        let leases: Vec<FlannelLease> = machines.iter().map(FlannelLease::of).collect();
        let start = |machine: Machine| {
            let name = name(&machine);
            if flanneld().is_some() {
                if let Registry::Nodes(api) = self.registry {
                    let subnet = self.config.subnet(&machine).to_string();
                    // A kubelet's Node has some; flanneld ends by a fault of its own where there is none.
                    let annotations =
                        json!({"volumes.kubernetes.io/controller-managed-attach-detach": "true"});
                    api.add_node(&name, &[&subnet], annotations).unwrap();
                }
                return self.real(machine);
            }
            let own = FlannelLease::of(&machine);
            own.publish(&name, self.registry).unwrap();
            FlannelNode::by_hand(machine, own, &leases).unwrap()
        };
        let nodes = machines.into_iter().map(start);
        nodes.map(|node| Member::Flannel(Box::new(node))).collect()
    }

    fn real(&self, machine: Machine) -> FlannelNode {
        let name = name(&machine);
        FlannelNode::real(machine, &name, self.registry, self.config).unwrap()
    }

    fn all_reach_each_other(&self, members: &[Member]) {
        for (number, one) in members.iter().enumerate() {
            for other in members[..number].iter() {
                for (from, to) in [(one, other), (other, one)] {
                    eventually("a pod of another node", || {
                        to.pod().answers_pod(from.pod())?;
                        to.pod().answers(&from.machine().netns)
                    })
                    .unwrap();
                }
            }
        }
        for member in members.iter().filter(|member| member.masquerades()) {
            self.outside_sees_its_node(member);
        }
    }

    /// By themselves: flannel's TUN proxy loses packets of others when much comes at once.
    fn all_stream_to_each_other(members: &[Member]) {
        for (number, one) in members.iter().enumerate() {
            for other in members[..number].iter() {
                send_in_bulk(one.pod(), other.pod());
                send_in_bulk(other.pod(), one.pod());
            }
        }
    }

    fn outside_sees_its_node(&self, member: &Member) {
        let outside = self.api.machine();
        let ip = outside.ip_for(member.pod().ips[0]);
        let outside = Pod {
            netns: outside.netns.again().unwrap(),
            ips: vec![ip],
        };
        let seen = outside.sees(&member.pod().netns, ip).unwrap();
        assert_eq!(seen, member.machine().ip_for(seen));
    }

    /// In the order of the page on coming from flannel.
    fn change_over(&self, member: Member) -> Member {
        let Member::Flannel(node) = member else {
            panic!("it has changed over already");
        };
        let name = name(&node.machine);
        if let Registry::Etcd(_) = self.registry {
            // Its lease is in etcd; the Node is for events and conditions.
            self.api.add_node(&name, &[], json!({})).unwrap();
        }
        let (machine, rest) = node.stop().unwrap();
        rest.remove(&machine.netns).unwrap();
        let server = self.config.flag(self.api, "--server", "--kubeconfig");
        let arguments = [&[server.as_str()], self.more].concat();
        let mut agent = Agent::start(&name, machine, &arguments).unwrap();
        agent.wait_ready().unwrap();
        let pod = agent.pod("c1").unwrap();
        let agent = Box::new(agent);
        Member::Ours { pod, agent }
    }

    /// As that page says too.
    fn go_back(&self, member: Member) -> Member {
        let Member::Ours { agent, .. } = member else {
            panic!("it is flannel's still");
        };
        let machine = agent.leave().unwrap();
        Member::Flannel(Box::new(self.real(machine)))
    }

    /// Does something to one node while traffic between the two others goes on.
    fn disturb(&self, members: &mut Vec<Member>, index: usize, step: fn(&Self, Member) -> Member) {
        let member = members.remove(index);
        let name = name(member.machine());
        let [from, to] = [members[0].pod(), members[1].pod()];
        let stream = Stream::start(from, to).unwrap();
        // Until the one before has given the port back.
        let _server = eventually("a port", || Servers::start([&to.netns], PORT)).unwrap();
        let from = from.netns.again().unwrap();
        let connection = Flow {
            kind: Kind::TcpLiving,
            from: &from,
            from_name: "a pod",
            to: SocketAddr::new(to.ips[0], PORT),
            seen_as_itself: true,
        };
        let traffic = Traffic::default();
        traffic.during(&[connection], |_| {
            members.insert(index, step(self, member));
            self.all_reach_each_other(members);
        });
        assert_eq!(traffic.faults(), [""; 0]);
        let settled = stream.settle().unwrap();
        println!(
            "{name} changed; between the others none lost of {settled:?}, nor of {} messages by a TCP connection",
            traffic.packets()
        );
        drop(stream);
        Self::all_stream_to_each_other(members);
    }

    fn change_over_node_by_node(&self) {
        let mut members = self.flannel();
        self.all_reach_each_other(&members);
        for index in 0..members.len() {
            self.disturb(&mut members, index, Self::change_over);
        }
        if flanneld().is_some() {
            self.disturb(&mut members, 1, Self::go_back);
        }
    }
}

/// A stream of full packets, which a device may be left to cut.
fn send_in_bulk(from: &Pod, to: &Pod) {
    let address = SocketAddr::new(to.ips[0], 0);
    let server = to.netns.run(|| TcpListener::bind(address)).unwrap();
    let address = server.local_addr().unwrap();
    let bytes: Vec<u8> = (0..1_u32 << 20).map(|number| (number / 7) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = from.netns.run(|| TcpStream::connect(address)).unwrap();
            stream.write_all(&bytes).unwrap();
        });
        let mut received = Vec::new();
        let mut stream = server.accept().unwrap().0;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_to_end(&mut received).unwrap();
        assert!(
            received == bytes,
            "{} bytes came, or others",
            received.len()
        );
    });
}

fn name(machine: &Machine) -> String {
    format!("n{}", machine.number)
}

fn say_which() {
    if let Some(path) = flanneld() {
        return println!("with {}", path.display());
    }
    without_flanneld("it; the kernel's device in its shape stands for it");
}

/// Whether none was given, which is then printed.
fn without_flanneld(what: &str) -> bool {
    let missing = flanneld().is_none();
    if missing {
        skip(&format!(
            "no real flanneld was given (cargo xtask test --flanneld PATH), so without {what}"
        ));
    }
    missing
}

/// With leases in Nodes.
fn nodes_change_over(config: FlannelConfig, more: &[&str]) {
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let cluster = Cluster {
        underlay: &underlay,
        api: &api,
        registry: Registry::Nodes(&api),
        config,
        more,
    };
    cluster.change_over_node_by_node();
}

/// With leases in etcd, which tells our agents the rest of the configuration too.
fn etcd_changes_over(config: FlannelConfig) {
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let Some(etcd) = Etcd::start(&api, &config.json()).unwrap() else {
        return skip("there is no etcd: install etcd-server");
    };
    let endpoints = format!("--flannel-etcd-endpoints={}", etcd.url());
    let cluster = Cluster {
        underlay: &underlay,
        api: &api,
        registry: Registry::Etcd(&etcd),
        config,
        more: &[&endpoints],
    };
    cluster.change_over_node_by_node();
}

#[test]
fn a_cluster_whose_leases_are_nodes_changes_over_from_flannel_node_by_node() {
    if without_root() {
        return;
    }
    say_which();
    let config = FlannelConfig {
        backend: "vxlan",
        direct_routing: false,
        ipv6: false,
        nftables: false,
    };
    nodes_change_over(config, &[]);
}

#[test]
fn a_cluster_whose_leases_are_in_etcd_changes_over_from_flannel_node_by_node() {
    if without_root() {
        return;
    }
    say_which();
    let config = FlannelConfig {
        backend: "vxlan",
        direct_routing: false,
        ipv6: false,
        nftables: true,
    };
    etcd_changes_over(config);
}

#[test]
fn a_cluster_of_the_udp_backend_changes_over_from_flannel_node_by_node() {
    if without_root() || without_flanneld("its TUN proxy") {
        return;
    }
    let config = FlannelConfig {
        backend: "udp",
        direct_routing: false,
        ipv6: false,
        nftables: false,
    };
    nodes_change_over(config, &["--overlay=udp"]);
}

#[test]
fn a_cluster_of_the_host_gw_backend_changes_over_from_flannel_node_by_node() {
    if without_root() || without_flanneld("its own routes") {
        return;
    }
    let config = FlannelConfig {
        backend: "host-gw",
        direct_routing: false,
        ipv6: false,
        nftables: true,
    };
    etcd_changes_over(config);
}

#[test]
fn a_cluster_with_direct_routing_changes_over_from_flannel_node_by_node() {
    if without_root() || without_flanneld("its direct routes") {
        return;
    }
    let config = FlannelConfig {
        backend: "vxlan",
        direct_routing: true,
        ipv6: false,
        nftables: false,
    };
    nodes_change_over(config, &["--direct-routing"]);
}

#[test]
fn a_cluster_of_ipv6_alone_changes_over_from_flannel_node_by_node() {
    if without_root() || without_flanneld("its device over IPv6") {
        return;
    }
    let config = FlannelConfig {
        backend: "vxlan",
        direct_routing: false,
        ipv6: true,
        nftables: false,
    };
    nodes_change_over(config, &[]);
}
