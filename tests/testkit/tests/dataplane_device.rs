//! NodePorts at the device: with XDP on the uplink, packets between a client outside and a backend on another node are
//! sent on before they become socket buffers; everything else goes its way as without.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    thread,
};

use node_agent_maps::{Attached, Dataplane, DeviceMode, Options};
use tests_testkit::{
    Bpffs, Cluster, Node, Pod, ServiceSpec, Underlay, Wrapping, is_root, skip, small_maps,
    traffic::{Server, ask_tcp, ask_udp, greeting, noise},
};

/// Two nodes with a pod each, XDP on the first one's uplink.
struct Scene {
    cluster: Cluster,
    /// Of the node with XDP, and of the other one.
    pods: [Pod; 2],
    _port: Port,
}

/// A program at the far end of the uplink, on the bridge: a veth hands what XDP sends back only to a device that has one.
/// Its maps are empty, so everything passes.
struct Port {
    // Dropped in this order: the bpffs holds its pins.
    _dataplane: Dataplane,
    _bpffs: Bpffs,
}

impl Port {
    fn new(underlay: &Underlay) -> Self {
        let bpffs = Bpffs::new().unwrap();
        let options = Options {
            max_entries: small_maps(),
            log: false,
        };
        let dataplane = Dataplane::open(&bpffs.pin_dir(), &options).unwrap();
        let port = underlay.netns().ifindex("port1").unwrap();
        let attach = || dataplane.attach_device(port, DeviceMode::Native);
        underlay.netns().run(attach).unwrap();
        Self {
            _dataplane: dataplane,
            _bpffs: bpffs,
        }
    }
}

impl Scene {
    fn new(mode: DeviceMode) -> Self {
        let mut cluster = Cluster::new(2).unwrap();
        let pods = [0, 1].map(|node| cluster.add_pod(node).unwrap());
        // A real device hands complete checksums up; on a veth that is the sender's choice.
        for sender in [&cluster.outside.netns, pods[0].netns(), pods[1].netns()] {
            sender.offload("eth0", "tx", false).unwrap();
        }
        let port = Port::new(&cluster.underlay);
        let node = &cluster.nodes[0];
        assert_eq!(attach(node, mode), Attached::Created);
        Self {
            cluster,
            pods,
            _port: port,
        }
    }

    /// A NodePort of the first node, for this family and a free port.
    fn node_port(&mut self, spec: &ServiceSpec, port: u16) -> SocketAddr {
        let node = self.cluster.nodes[0].ip_for(spec.backends[0].ip());
        let spec = spec.clone().with_node_port(node, port);
        self.cluster.publish(&spec).unwrap();
        (node, port).into()
    }

    fn outside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.cluster.outside.run(work)
    }
}

fn attach(node: &Node, mode: DeviceMode) -> Attached {
    let attach = || node.dataplane().attach_device(node.machine.ifindex, mode);
    node.netns().run(attach).unwrap()
}

/// The addresses of a pod, and ClusterIPs to go with them.
fn families(pod: &Pod) -> [(SocketAddr, SocketAddr); 2] {
    [
        ((pod.ipv4(), 8080).into(), "10.96.0.20:80".parse().unwrap()),
        (
            (pod.ipv6(), 8080).into(),
            "[fd00:10:96::20]:80".parse().unwrap(),
        ),
    ]
}

/// The address that a backend sees of a client outside.
fn source_nat(node: &Node, family: IpAddr) -> IpAddr {
    match family {
        IpAddr::V4(_) => node.addresses.pod_v4(0).into(),
        IpAddr::V6(_) => node.addresses.pod_v6(0).into(),
    }
}

#[test]
fn a_node_port_of_another_nodes_backend_needs_no_more_than_the_device() {
    if !is_root() {
        return skip("needs root");
    }
    for mode in DeviceMode::ALL {
        let mut scene = Scene::new(mode);
        let other = scene.pods[1].clone();
        let served = families(&other).map(|(backend, vip)| {
            let tcp = scene.node_port(&ServiceSpec::tcp(vip, [backend]), 30080);
            let udp = scene.node_port(&ServiceSpec::udp(vip, [backend]), 30081);
            let servers = other.run(|| [Server::tcp(backend, "tcp"), Server::udp(backend, "udp")]);
            (tcp, udp, servers.map(|server| server.unwrap()))
        });
        for wrapping in Wrapping::ALL {
            scene.cluster.wrap(wrapping).unwrap();
            for (tcp, udp, _) in &served {
                device_alone(&scene, *tcp, *udp, &format!("{mode:?} {wrapping:?} {tcp}"));
            }
        }
    }
}

/// Asks NodePorts of the first node while nothing but the device's program can translate there.
fn device_alone(scene: &Scene, tcp: SocketAddr, udp: SocketAddr, what: &str) {
    // The kernel finds the neighbours.
    let first = scene.outside(|| ask_tcp(tcp));
    first.unwrap_or_else(|error| panic!("{what}: {error}"));
    let node = &scene.cluster.nodes[0];
    assert!(node.dataplane().detach("from_network").unwrap());
    for _ in 0..20 {
        let answer = scene.outside(|| ask_tcp(tcp));
        let answer = answer.unwrap_or_else(|error| panic!("{what}: TCP: {error}"));
        assert_eq!(answer.client.ip(), source_nat(node, tcp.ip()), "{what}");
        let answer = scene.outside(|| ask_udp(udp, 64));
        let answer = answer.unwrap_or_else(|error| panic!("{what}: UDP: {error}"));
        assert_eq!(answer.client.ip(), source_nat(node, udp.ip()), "{what}");
    }
    let attach = || node.dataplane().attach_uplink(node.machine.ifindex);
    assert_eq!(node.netns().run(attach).unwrap(), Attached::Created);
}

#[test]
fn a_frame_for_another_machine_passes_the_device_untouched() {
    if !is_root() {
        return skip("needs root");
    }
    for mode in DeviceMode::ALL {
        let mut scene = Scene::new(mode);
        let other = scene.pods[1].clone();
        for (backend, vip) in families(&other) {
            let what = format!("{mode:?} {backend}");
            let to = scene.node_port(&ServiceSpec::udp(vip, [backend]), 30081);
            let server = other.run(|| Server::udp(backend, "udp")).unwrap();
            // The kernel finds the neighbours.
            scene.outside(|| ask_udp(to, 64)).unwrap();
            let served = server.served();
            let netns = &scene.cluster.outside.netns;
            // Nobody has this address: the bridge sends such a frame to every machine.
            let elsewhere = "lladdr 02:00:00:00:00:99 nud permanent";
            let neighbour = format!("neigh replace {} dev eth0 {elsewhere}", to.ip());
            netns.ip(&neighbour).unwrap();
            let error = scene.outside(|| ask_udp(to, 64)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{what}");
            assert_eq!(server.served(), served, "{what}");
            netns
                .ip(&format!("neigh del {} dev eth0", to.ip()))
                .unwrap();
            scene.outside(|| ask_udp(to, 64)).unwrap();
        }
    }
}

#[test]
fn what_the_device_does_not_take_goes_on_as_without_it() {
    if !is_root() {
        return skip("needs root");
    }
    for mode in DeviceMode::ALL {
        let mut scene = Scene::new(mode);
        let [own, other] = scene.pods.clone();
        let bytes = noise(4 << 20);
        for ((near, near_vip), (far, far_vip)) in families(&own).into_iter().zip(families(&other)) {
            let what = format!("{mode:?} {near}");
            let _near = own.run(|| Server::tcp(near, "near")).unwrap();
            let _far = other.run(|| Server::tcp(far, "far")).unwrap();
            // A backend of this node, straight and through a NodePort.
            let to_near = scene.node_port(&ServiceSpec::tcp(near_vip, [near]), 31000);
            let answer = scene.outside(|| ask_tcp(to_near)).unwrap();
            assert_eq!(answer.name, "near", "{what}");
            // Pods of two nodes, by the overlay.
            assert_eq!(other.run(|| ask_tcp(near)).unwrap().name, "near", "{what}");
            assert_eq!(own.run(|| ask_tcp(far)).unwrap().name, "far", "{what}");
            // Packets that are too long for the overlay are answered with its MTU, after which the stream goes on.
            let mut far_vip = far_vip;
            far_vip.set_port(81);
            let to_far = scene.node_port(&ServiceSpec::tcp(far_vip, [far]), 31001);
            let back = scene.outside(|| echo(to_far, &bytes));
            assert!(back == bytes, "{what}: {} bytes came back", back.len());
            // A NodePort without backend is refused at once.
            let mut nobody = near_vip;
            nobody.set_port(82);
            let mut spec = ServiceSpec::tcp(nobody, [near]);
            spec.backends.clear();
            let node = scene.cluster.nodes[0].ip_for(near.ip());
            let refused: SocketAddr = (node, 31002).into();
            scene
                .cluster
                .publish(&spec.with_node_port(node, 31002))
                .unwrap();
            let error = scene.outside(|| ask_tcp(refused)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{what}");
        }
    }
}

#[test]
fn a_restart_keeps_the_device_program_and_another_mode_takes_its_place() {
    if !is_root() {
        return skip("needs root");
    }
    let scene = Scene::new(DeviceMode::Native);
    let node = &scene.cluster.nodes[0];
    assert_eq!(attach(node, DeviceMode::Native), Attached::Adopted);
    assert_eq!(attach(node, DeviceMode::Generic), Attached::Created);
    let names = || -> Vec<String> {
        let links = node.dataplane().links().unwrap();
        let names = links.into_iter().map(|link| link.name);
        names.filter(|name| name.contains("device")).collect()
    };
    assert_eq!(names(), ["from_device_generic"]);
    node.dataplane().detach_device().unwrap();
    assert_eq!(names(), [""; 0]);
}

/// What a server sends back of `bytes`.
fn echo(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).unwrap();
    greeting(&mut stream).unwrap();
    let mut sending = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            sending.write_all(bytes).unwrap();
            sending.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        // A time-out ends it with what came.
        stream.read_to_end(&mut back).ok();
        back
    })
}
