//! A node of ours and one whose kernel's vxlan device is set up as flannel does it, in one overlay.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

use tests_testkit::{
    ByDevice, Machine, NetNs, Node, NodeAddresses, Pod, Underlay, VethEnd, Wrapping, is_root,
    mac_text, skip,
    traffic::{Server, ask_tcp, ask_udp, noise, stream},
};

const OWN: u8 = 1;
const FLANNEL: u8 = 2;
const HEADERS: usize = 28;
/// What flannel leaves as the kernel has it: over IPv6 it drops packets without a UDP checksum.
const AS_FLANNEL: &str = "";

/// A node that runs flannel's vxlan backend, with one pod.
struct FlannelNode {
    machine: Machine,
    pod: NetNs,
    pod_mtu: u32,
}

impl FlannelNode {
    /// What flannel's vxlan backend programs: device, neighbour, FDB entry, route (pkg/backend/vxlan).
    fn new(underlay: &Underlay, ipv6: bool, checksum: &str) -> Self {
        let machine = underlay.machine(FLANNEL).unwrap();
        let (here, there) = (addresses(FLANNEL), addresses(OWN));
        let (gateway, gateway_mac) = (there.pod_v4(0), mac_text(there.vtep_mac()));
        machine.netns.sysctl("net/ipv4/ip_forward", "1").unwrap();
        let pod_mtu = wrapping(ipv6).mtu(underlay.mtu());
        let (local, remote): (IpAddr, IpAddr) = if ipv6 {
            (here.underlay_v6().into(), there.underlay_v6().into())
        } else {
            (here.underlay_v4().into(), there.underlay_v4().into())
        };
        machine
            .netns
            .ip(&format!(
                "link add flannel.1 mtu {pod_mtu} address {} type vxlan id 1 dstport 8472 local {local} dev eth0 \
                 nolearning {checksum}\n\
                 addr add {}/32 dev flannel.1\n\
                 link set flannel.1 up\n\
                 neigh replace {gateway} lladdr {gateway_mac} dev flannel.1 nud permanent",
                mac_text(here.vtep_mac()),
                here.pod_v4(0),
            ))
            .unwrap();
        let remote = remote.to_string();
        let entry = [
            "fdb",
            "add",
            &gateway_mac,
            "dev",
            "flannel.1",
            "dst",
            &remote,
            "self",
            "permanent",
        ];
        let status = machine.run(|| Command::new("bridge").args(entry).status());
        assert!(status.unwrap().success());
        let route = format!("route add {gateway}/24 via {gateway} dev flannel.1 onlink");
        machine.netns.ip(&route).unwrap();
        let pod = Self::pod(&machine, here, pod_mtu);
        Self {
            machine,
            pod,
            pod_mtu,
        }
    }

    fn pod(machine: &Machine, addresses: NodeAddresses, mtu: u32) -> NetNs {
        let pod = NetNs::new().unwrap();
        let end = |netns, name, number| VethEnd {
            netns,
            name,
            mac: [2, 0xfa, 0, 0, 0, number],
        };
        NetNs::veth(end(&machine.netns, "pod", 1), end(&pod, "eth0", 2), mtu).unwrap();
        let (gateway, own) = (addresses.pod_v4(1), addresses.pod_v4(2));
        machine
            .netns
            .ip(&format!("addr add {gateway}/24 dev pod"))
            .unwrap();
        pod.ip(&format!(
            "addr add {own}/24 dev eth0\nroute add default via {gateway}"
        ))
        .unwrap();
        pod
    }

    fn pod_addr(&self) -> SocketAddr {
        (addresses(self.machine.number).pod_v4(2), 8080).into()
    }
}

fn wrapping(ipv6: bool) -> Wrapping {
    Wrapping { bare: false, ipv6 }
}

/// A node of ours with a pod, and one of flannel's.
struct Mixed {
    node: Node,
    ours: Pod,
    flannel: FlannelNode,
    _underlay: Underlay,
}

/// Over IPv4 or IPv6.
fn mixed(ipv6: bool, checksum: &str) -> Mixed {
    let underlay = Underlay::new(1500).unwrap();
    let mut node = Node::new(&underlay, OWN).unwrap();
    node.connect(&[addresses(FLANNEL)]).unwrap();
    node.wrap(wrapping(ipv6), [addresses(FLANNEL)].into_iter())
        .unwrap();
    let ours = node.add_pod().unwrap();
    let flannel = FlannelNode::new(&underlay, ipv6, checksum);
    let mtu = flannel.pod_mtu;
    ours.netns()
        .ip(&format!("link set eth0 mtu {mtu}"))
        .unwrap();
    node.netns()
        .ip(&format!("link set {} mtu {mtu}", ours.ifname()))
        .unwrap();
    Mixed {
        node,
        ours,
        flannel,
        _underlay: underlay,
    }
}

impl Mixed {
    /// Everything arrives, in both directions, and nothing was dropped.
    fn check(&self) {
        check_datagrams(&self.ours, &self.flannel);
        check_streams(&self.ours, &self.flannel);
        check_hosts(self);
        let drops = self.node.maps().drops().unwrap();
        let drops: Vec<_> = drops
            .into_iter()
            .filter(|(_, count)| count.packets > 0)
            .collect();
        assert!(drops.is_empty(), "{drops:?}");
    }
}

/// The nodes themselves reach the other's pod.
fn check_hosts(mixed: &Mixed) {
    let Mixed {
        node,
        ours,
        flannel,
        ..
    } = mixed;
    let theirs = flannel.pod_addr();
    let _server = flannel.pod.run(|| Server::tcp(theirs, "theirs")).unwrap();
    node.run(|| ask_tcp(theirs)).unwrap();
    let own = SocketAddr::from((ours.ipv4(), 7070));
    let _server = ours.run(|| Server::tcp(own, "ours")).unwrap();
    flannel.machine.run(|| ask_tcp(own)).unwrap();
}

fn addresses(number: u8) -> NodeAddresses {
    NodeAddresses { number }
}

/// Both directions, from nothing to what takes many fragments.
fn check_datagrams(ours: &Pod, flannel: &FlannelNode) {
    let fits = flannel.pod_mtu as usize - HEADERS;
    let own = SocketAddr::from((ours.ipv4(), 8080));
    let theirs = flannel.pod_addr();
    let _servers = [
        ours.run(|| Server::udp(own, "ours")).unwrap(),
        flannel.pod.run(|| Server::udp(theirs, "theirs")).unwrap(),
    ];
    for length in [0, 1, 2, 63, 64, 576, fits - 1, fits, fits + 1, 9000, 65_000] {
        for (client, to) in [(ours.netns(), theirs), (&flannel.pod, own)] {
            let answer = client.run(|| ask_udp(to, length));
            let answer = answer.unwrap_or_else(|error| panic!("{length} bytes to {to}: {error}"));
            assert_ne!(answer.client.ip(), to.ip());
        }
    }
}

fn check_streams(ours: &Pod, flannel: &FlannelNode) {
    let bytes = noise(4 << 20);
    let (own, theirs) = (SocketAddr::from((ours.ipv4(), 9090)), flannel.pod_addr());
    for offload in ["with", "without"] {
        if offload == "without" {
            for pod in [ours.netns(), &flannel.pod] {
                pod.ip("link set eth0 gso_max_segs 1").unwrap();
            }
        }
        let there = stream(ours, &flannel.pod, theirs, theirs, &bytes).unwrap();
        assert!(there == bytes, "to flannel's pod {offload} offload");
        let back = stream(&flannel.pod, ours, own, own, &bytes).unwrap();
        assert!(back == bytes, "from flannel's pod {offload} offload");
    }
}

#[test]
fn a_node_of_ours_and_one_of_flannel_share_an_overlay() {
    if !is_root() {
        return skip("needs root");
    }
    for (ipv6, checksum) in [
        (false, "noudpcsum"),
        (false, "udpcsum"),
        (true, "udp6zerocsumrx udp6zerocsumtx"),
    ] {
        mixed(ipv6, checksum).check();
    }
}

#[test]
fn without_a_checksum_nothing_reaches_flannels_device_over_ipv6() {
    if !is_root() {
        return skip("needs root");
    }
    let Mixed { ours, flannel, .. } = &mixed(true, AS_FLANNEL);
    let theirs = flannel.pod_addr();
    let _server = flannel.pod.run(|| Server::udp(theirs, "theirs")).unwrap();
    ours.run(|| ask_udp(theirs, 10)).unwrap_err();
}

#[test]
fn with_checksums_flannels_device_takes_everything_as_it_is_set() {
    if !is_root() {
        return skip("needs root");
    }
    for ipv6 in [false, true] {
        let mixed = mixed(ipv6, AS_FLANNEL);
        let others = [addresses(FLANNEL)];
        let made = mixed.node.use_device(ByDevice::Checksums, ipv6, &others);
        made.unwrap();
        mixed.check();
    }
}

#[test]
fn the_kernels_device_can_do_it_all() {
    if !is_root() {
        return skip("needs root");
    }
    for ipv6 in [false, true] {
        let mixed = mixed(ipv6, AS_FLANNEL);
        let others = [addresses(FLANNEL)];
        let made = mixed.node.use_device(ByDevice::Everything, ipv6, &others);
        made.unwrap();
        mixed.check();
    }
}
