//! The node's network, made in private namespaces and read back, with real packets of both families.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd,
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::Uid,
};
use node_agent_host::{
    Bandwidth, HOST_DEVICE, HOST_DEVICE_PEER, HostDevice, HostDeviceSpec, MacAddr, Network,
    NetworkError, POD_DEVICE, PodCidr, PodLinkSpec, RouteChanges, apply_host_sysctls, in_namespace,
    namespace_id,
};

const MTU: u32 = 1450;

/// A network namespace that lives as long as this value.
struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.0.as_raw_fd()
        ))
    }

    /// Runs `work` on a thread inside the namespace.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// As [`Namespace::run`], with a netlink connection.
    fn run_async<T: Send>(&self, work: impl AsyncFnOnce(Network) -> T + Send) -> T {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async { work(Network::connect().unwrap()).await })
        })
    }
}

/// Namespaces need root; without it the test says so and proves nothing.
fn without_root() -> bool {
    let missing = !Uid::effective().is_root();
    if missing {
        eprintln!("skipped: making network namespaces needs root");
    }
    missing
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn sysctl(path: &str) -> String {
    fs::read_to_string(format!("/proc/sys/net/{path}"))
        .unwrap()
        .trim()
        .to_owned()
}

fn cidrs() -> [PodCidr; 2] {
    ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|text| PodCidr::new(text.parse().unwrap()).unwrap())
}

async fn host_device(network: &Network) -> HostDevice {
    let gateways = cidrs().iter().map(PodCidr::gateway).collect();
    network
        .ensure_host_device(&HostDeviceSpec { mtu: MTU, gateways })
        .await
        .unwrap()
}

fn pod(uid: &str, ips: &[&str]) -> PodLinkSpec {
    PodLinkSpec {
        uid: uid.to_owned(),
        namespace: "default".to_owned(),
        name: format!("pod-{uid}"),
        device: POD_DEVICE.to_owned(),
        ips: ips.iter().map(|text| text.parse().unwrap()).collect(),
        gateways: cidrs().iter().map(PodCidr::gateway).collect(),
        mtu: MTU,
        bandwidth: Bandwidth::default(),
        sysctls: BTreeMap::new(),
    }
}

/// A socket of the host at the pods' gateway.
fn gateway_socket(gateway: &str) -> UdpSocket {
    let socket = UdpSocket::bind((gateway, 9000)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    socket
}

#[test]
fn the_host_device_has_the_gateways_and_is_left_alone_when_it_is_right() {
    if without_root() {
        return;
    }
    Namespace::new().run_async(async |network| {
        let first = host_device(&network).await;
        assert_ne!(first.mac, MacAddr::default());
        let before = (ip("addr show dev fairlead0"), ip("neigh show"));
        assert_eq!(host_device(&network).await, first);
        assert_eq!((ip("addr show dev fairlead0"), ip("neigh show")), before);
        let (addresses, neighbours) = before;
        assert!(
            addresses.contains("inet 10.244.1.1/32 scope global fairlead0"),
            "{addresses}"
        );
        assert!(
            addresses.contains("inet6 fd00:10:244:1::1/128 scope global nodad"),
            "{addresses}"
        );
        assert!(
            !addresses.contains("tentative") && !addresses.contains("scope link"),
            "{addresses}"
        );
        assert!(
            addresses.contains("mtu 1450") && addresses.contains("state UP"),
            "{addresses}"
        );
        assert_eq!(neighbours.matches("PERMANENT").count(), 2, "{neighbours}");
        assert!(ip("link show dev fairlead1").contains("state UP"));
    });
}

#[test]
fn a_changed_pod_cidr_changes_the_gateway() {
    if without_root() {
        return;
    }
    Namespace::new().run_async(async |network| {
        host_device(&network).await;
        let spec = HostDeviceSpec {
            mtu: 1400,
            gateways: vec!["10.244.9.1".parse().unwrap()],
        };
        network.ensure_host_device(&spec).await.unwrap();
        let addresses = ip("addr show dev fairlead0");
        assert!(
            addresses.contains("inet 10.244.9.1/32") && addresses.contains("mtu 1400"),
            "{addresses}"
        );
        assert!(
            !addresses.contains("10.244.1.1") && !addresses.contains("fd00"),
            "{addresses}"
        );
    });
}

#[test]
fn an_interface_of_somebody_else_is_not_taken() {
    if without_root() {
        return;
    }
    Namespace::new().run_async(async |network| {
        ip(&format!("link add {HOST_DEVICE} type bridge"));
        ip(&format!("link add {HOST_DEVICE_PEER} type bridge"));
        let error = network
            .ensure_host_device(&HostDeviceSpec {
                mtu: MTU,
                gateways: Vec::new(),
            })
            .await
            .unwrap_err();
        assert!(matches!(error, NetworkError::NotOurs { .. }), "{error}");
    });
}

#[test]
fn host_routes_are_exactly_those_asked_for_and_prefer_the_gateway_as_source() {
    if without_root() {
        return;
    }
    Namespace::new().run_async(async |network| {
        ip("link set lo up");
        let device = host_device(&network).await;
        let prefixes = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.parse().unwrap())
                .collect::<Vec<_>>()
        };
        let all = prefixes(&[
            "10.244.0.0/16",
            "10.96.0.0/16",
            "fd00:10:96::/112",
            "fd00:10:244::/48",
        ]);
        let changes = network.set_host_routes(&device, &all).await.unwrap();
        assert_eq!(
            changes,
            RouteChanges {
                added: 4,
                removed: 0
            }
        );
        assert_eq!(
            network.set_host_routes(&device, &all).await.unwrap(),
            RouteChanges::default()
        );
        for (target, source) in [
            ("10.96.0.10", "10.244.1.1"),
            ("fd00:10:96::a", "fd00:10:244:1::1"),
        ] {
            let target: IpAddr = target.parse().unwrap();
            let any: IpAddr = if target.is_ipv4() {
                [0; 4].into()
            } else {
                [0; 16].into()
            };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.connect((target, 53)).unwrap();
            assert_eq!(
                socket.local_addr().unwrap().ip(),
                source.parse::<IpAddr>().unwrap()
            );
            socket.send(b"nobody").unwrap();
        }
        // No neighbour was asked for: only the two permanent entries exist.
        let neighbours = ip("neigh show");
        assert_eq!(neighbours.lines().count(), 2, "{neighbours}");
        ip("route add 192.0.2.0/24 dev fairlead0");
        let changes = network
            .set_host_routes(&device, &prefixes(&["10.96.0.0/16"]))
            .await
            .unwrap();
        assert_eq!(
            changes,
            RouteChanges {
                added: 0,
                removed: 3
            }
        );
        let routes = ip("route show");
        assert!(
            routes.contains("192.0.2.0/24"),
            "a route of somebody else was removed: {routes}"
        );
        assert!(
            routes.contains("10.96.0.0/16") && !routes.contains("10.244.0.0/16"),
            "{routes}"
        );
    });
}

#[test]
fn a_host_route_without_a_gateway_of_its_family_is_refused() {
    if without_root() {
        return;
    }
    Namespace::new().run_async(async |network| {
        let spec = HostDeviceSpec {
            mtu: MTU,
            gateways: vec!["10.244.1.1".parse().unwrap()],
        };
        let device = network.ensure_host_device(&spec).await.unwrap();
        let prefixes = ["fd00:10:96::/112".parse().unwrap()];
        let error = network
            .set_host_routes(&device, &prefixes)
            .await
            .unwrap_err();
        assert!(
            matches!(error, NetworkError::NoGatewayForPrefix { .. }),
            "{error}"
        );
    });
}

#[test]
fn a_pod_reaches_its_gateway_at_once_in_both_families_with_strict_checks_on() {
    if without_root() {
        return;
    }
    let (node, container) = (Namespace::new(), Namespace::new());
    node.run(|| fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap());
    // What Docker does to a container without a network.
    container.run(|| fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
    let spec = pod("u1", &["10.244.1.7", "fd00:10:244:1::7"]);
    node.run_async(async |network| {
        ip("link set lo up");
        let device = host_device(&network).await;
        let prefixes: Vec<_> = cidrs().iter().map(PodCidr::network).collect();
        network.set_host_routes(&device, &prefixes).await.unwrap();
        apply_host_sysctls(&(61000..=63999)).unwrap();
        let link = network.wire_pod(&spec, &container.path()).await.unwrap();
        assert_eq!(network.pod_links().await.unwrap(), [link]);
    });
    for (gateway, source) in [
        ("10.244.1.1", "10.244.1.7"),
        ("fd00:10:244:1::1", "fd00:10:244:1::7"),
    ] {
        let receiver = node.run(|| gateway_socket(gateway));
        container.run(|| {
            let any: IpAddr = if gateway.contains(':') {
                [0; 16].into()
            } else {
                [0; 4].into()
            };
            UdpSocket::bind((any, 0))
                .unwrap()
                .send_to(b"hello", (gateway, 9000))
                .unwrap();
        });
        let mut buffer = [0; 16];
        let (length, from) = receiver.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], from.ip()),
            (&b"hello"[..], source.parse().unwrap())
        );
    }
    container.run(|| {
        let neighbours = ip("neigh show");
        assert_eq!(neighbours.matches("PERMANENT").count(), 2, "{neighbours}");
        assert_eq!(
            neighbours.lines().count(),
            2,
            "something else was resolved: {neighbours}"
        );
        assert!(ip("link show dev eth0").contains("mtu 1450"));
        assert!(ip("link show dev lo").contains("UP,LOWER_UP"));
    });
    assert_eq!(
        node.run(|| sysctl("ipv4/conf/fairlead1/rp_filter")),
        "1",
        "others stay strict"
    );
}

#[test]
fn wiring_a_pod_again_changes_nothing_and_a_new_sandbox_gets_the_link() {
    if without_root() {
        return;
    }
    let (node, first, second) = (Namespace::new(), Namespace::new(), Namespace::new());
    let spec = pod("u2", &["10.244.1.8", "fd00:10:244:1::8"]);
    node.run_async(async |network| {
        let link = network.wire_pod(&spec, &first.path()).await.unwrap();
        assert_eq!(
            network.wire_pod(&spec, &first.path()).await.unwrap(),
            link,
            "a second call made another link"
        );
        let moved = network.wire_pod(&spec, &second.path()).await.unwrap();
        assert_ne!(moved.ifindex, link.ifindex);
        assert_eq!(
            (moved.ifname, moved.host_mac, moved.pod_mac),
            (link.ifname, link.host_mac, link.pod_mac)
        );
        assert!(network.unwire_pod("u2").await.unwrap());
        assert!(!network.unwire_pod("u2").await.unwrap());
        assert_eq!(network.pod_links().await.unwrap(), []);
    });
    for namespace in [&first, &second] {
        namespace.run(|| assert!(!ip("link show").contains("eth0")));
    }
}

#[test]
fn a_link_that_was_left_half_made_is_completed() {
    if without_root() {
        return;
    }
    let (node, container) = (Namespace::new(), Namespace::new());
    let spec = pod("u3", &["10.244.1.9"]);
    node.run_async(async |network| {
        let link = network.wire_pod(&spec, &container.path()).await.unwrap();
        ip(&format!("link set {} down", link.ifname));
        container.run(|| ip("addr flush dev eth0"));
        assert_eq!(
            network.wire_pod(&spec, &container.path()).await.unwrap(),
            link
        );
        assert!(ip(&format!("link show {}", link.ifname)).contains("UP,LOWER_UP"));
    });
    container.run(|| {
        assert!(ip("addr show dev eth0").contains("inet 10.244.1.9/32"));
        let routes = ip("route show");
        assert!(
            routes.contains("default via 10.244.1.1 dev eth0") && routes.contains("onlink"),
            "{routes}"
        );
    });
}

#[test]
fn an_address_without_a_gateway_is_refused_before_anything_is_made() {
    if without_root() {
        return;
    }
    let (node, container) = (Namespace::new(), Namespace::new());
    let mut spec = pod("u4", &["10.244.1.9", "fd00:10:244:1::9"]);
    spec.gateways.truncate(1);
    node.run_async(async |network| {
        let error = network
            .wire_pod(&spec, &container.path())
            .await
            .unwrap_err();
        assert!(matches!(error, NetworkError::NoGateway { .. }), "{error}");
        assert_eq!(network.pod_links().await.unwrap(), []);
    });
}

#[test]
fn a_namespace_that_is_gone_is_named() {
    if without_root() {
        return;
    }
    let node = Namespace::new();
    node.run_async(async |network| {
        let error = network
            .wire_pod(&pod("u5", &["10.244.1.9"]), "/proc/1/no-such-ns".as_ref())
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "namespace /proc/1/no-such-ns: open");
    });
}

#[test]
fn the_uplink_is_found_by_name_and_by_the_default_route() {
    if without_root() {
        return;
    }
    Namespace::new().run_async(async |network| {
        assert!(matches!(
            network.uplink(None).await,
            Err(NetworkError::NoDefaultRoute)
        ));
        assert!(matches!(
            network.uplink(Some("eth7")).await,
            Err(NetworkError::NoInterface { .. })
        ));
        ip("link add eth0 mtu 1500 type veth peer name other");
        ip("link set eth0 up");
        ip("link set other up");
        assert!(matches!(
            network.uplink(Some("eth0")).await,
            Err(NetworkError::NoAddress { .. })
        ));
        ip("addr add 172.31.240.11/24 dev eth0");
        ip("addr add fd00:fa1e::11/64 dev eth0 nodad");
        ip("route add default via 172.31.240.254");
        let uplink = network.uplink(None).await.unwrap();
        assert_eq!(uplink, network.uplink(Some("eth0")).await.unwrap());
        assert_eq!((uplink.name.as_str(), uplink.mtu), ("eth0", 1500));
        assert_eq!(
            uplink.v4,
            ["172.31.240.11".parse::<std::net::Ipv4Addr>().unwrap()]
        );
        assert_eq!(
            uplink.v6,
            ["fd00:fa1e::11".parse::<std::net::Ipv6Addr>().unwrap()]
        );
        assert_eq!(
            uplink.on_link,
            ["172.31.240.11/24", "fd00:fa1e::11/64"]
                .map(|link| link.parse::<ipnetwork::IpNetwork>().unwrap())
        );
        let shown = ip("link show dev eth0");
        assert!(shown.contains(&uplink.mac.to_string()), "{shown}");
    });
}

#[test]
fn host_sysctls_are_set_once_and_keep_what_was_there() {
    if without_root() {
        return;
    }
    Namespace::new().run(|| {
        fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "8080,9148").unwrap();
        ip("link add eth0 type veth peer name other");
        for _ in 0..2 {
            apply_host_sysctls(&(61000..=63999)).unwrap();
            assert_eq!(
                sysctl("ipv4/ip_local_reserved_ports"),
                "8080,9148,61000-63999"
            );
            assert_eq!(sysctl("ipv4/ip_forward"), "1");
            assert_eq!(sysctl("ipv6/conf/all/forwarding"), "1");
            assert_eq!(sysctl("ipv6/conf/eth0/accept_ra"), "2");
        }
    });
}

#[test]
fn work_in_a_namespace_sees_that_namespace_and_leaves_the_caller_where_it_was() {
    if without_root() {
        return;
    }
    let other = Namespace::new();
    let path = other.path();
    Namespace::new().run_async(async |_| {
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let expected = namespace_id(&path).unwrap();
        let inside = in_namespace(&path, async |_| {
            namespace_id("/proc/thread-self/ns/net".as_ref())
        })
        .await
        .unwrap();
        assert_eq!(inside, expected);
        assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), own);
    });
}
