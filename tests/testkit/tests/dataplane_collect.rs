//! What the programs note of real connections is what the collection goes by.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use node_agent_maps::{FamilyMaps, GcReport, MapFamily, Timeouts, monotonic_now_ns};
use tests_testkit::{
    Cluster, Node, ServiceSpec, is_root, skip,
    traffic::{Server, ask_udp, greeting},
};

/// Collects as if this many seconds had passed, in both families.
fn collect_in(node: &Node, seconds: u64) -> GcReport {
    let now = monotonic_now_ns() + seconds * 1_000_000_000;
    let [v4, v6] = node.maps().collect(now, &Timeouts::default()).unwrap();
    GcReport {
        entries: v4.entries + v6.entries,
        deleted: v4.deleted + v6.deleted,
        capacity: v4.capacity + v6.capacity,
    }
}

#[test]
fn a_connection_is_collected_when_it_is_over_and_not_before() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(2).unwrap();
    let (client, server) = (cluster.add_pod(0).unwrap(), cluster.add_pod(1).unwrap());
    for vip in ["10.96.0.10:80", "[fd00:10:96::10]:80"] {
        let vip: SocketAddr = vip.parse().unwrap();
        let backend = SocketAddr::new(server.ip_for(vip.ip()), 8080);
        let _running = server.run(|| Server::tcp(backend, "backend")).unwrap();
        cluster.publish(&ServiceSpec::tcp(vip, [backend])).unwrap();
        let mut stream = client
            .run_without_socket_programs(|| TcpStream::connect(vip))
            .unwrap();
        greeting(&mut stream).unwrap();
        let node = &cluster.nodes[0];
        let report = collect_in(node, 3000);
        assert_eq!(
            (report.entries, report.deleted),
            (1, 0),
            "{vip}: established"
        );

        drop(stream);
        thread::sleep(Duration::from_millis(200));
        assert_eq!(
            collect_in(node, 30).deleted,
            0,
            "{vip}: late packets still find it"
        );
        assert_eq!(collect_in(node, 50).deleted, 1, "{vip}: closed by both");
    }
}

#[test]
fn a_connection_that_nobody_answers_is_collected_soon() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(1).unwrap();
    let (client, server) = (cluster.add_pod(0).unwrap(), cluster.add_pod(0).unwrap());
    // The pod is there, but its interface is down.
    server.netns().ip("link set eth0 down").unwrap();
    for vip in ["10.96.0.10:80", "[fd00:10:96::10]:80"] {
        let vip: SocketAddr = vip.parse().unwrap();
        let backend = SocketAddr::new(server.ip_for(vip.ip()), 8080);
        cluster.publish(&ServiceSpec::tcp(vip, [backend])).unwrap();
        cluster.publish(&ServiceSpec::udp(vip, [backend])).unwrap();
        client
            .run_without_socket_programs(|| {
                TcpStream::connect_timeout(&vip, Duration::from_millis(200))
            })
            .unwrap_err();
        client.run(|| ask_udp(vip, 10)).unwrap_err();
        let node = &cluster.nodes[0];
        let report = collect_in(node, 15);
        assert_eq!((report.entries, report.deleted), (2, 0), "{vip}");
        assert_eq!(collect_in(node, 25).deleted, 1, "{vip}: TCP");
        assert_eq!(collect_in(node, 65).deleted, 1, "{vip}: UDP");
    }
}

/// What a request leaves of a connection that is collected while it is on its way: its answer must find it still.
fn collect_around<A: MapFamily>(maps: &FamilyMaps<A>, request: impl FnOnce()) -> GcReport {
    let now = monotonic_now_ns() + 65_000_000_000;
    let idle = maps.mark_idle(now, &Timeouts::default()).unwrap();
    request();
    maps.end_idle(&idle, now, &Timeouts::default())
}

#[test]
fn a_request_that_comes_while_its_old_connection_is_collected_gets_its_answer() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(2).unwrap();
    let (client, server) = (cluster.add_pod(0).unwrap(), cluster.add_pod(1).unwrap());
    for vip in ["10.96.0.10:80", "[fd00:10:96::10]:80"] {
        let vip: SocketAddr = vip.parse().unwrap();
        let backend = SocketAddr::new(server.ip_for(vip.ip()), 8080);
        cluster.publish(&ServiceSpec::udp(vip, [backend])).unwrap();
        let asked = server.run(|| UdpSocket::bind(backend)).unwrap();
        let unset = SocketAddr::new(
            if vip.is_ipv4() {
                [0; 4].into()
            } else {
                [0; 16].into()
            },
            0,
        );
        let asking = client
            .run_without_socket_programs(|| {
                let socket = UdpSocket::bind(unset)?;
                socket.connect(vip).map(|()| socket)
            })
            .unwrap();
        let patience = Some(Duration::from_secs(5));
        asking.set_read_timeout(patience).unwrap();
        asked.set_read_timeout(patience).unwrap();
        let mut buffer = [0; 16];
        let mut request = || {
            asking.send(b"request").unwrap();
            asked.recv_from(&mut buffer).unwrap().1
        };
        request();
        let maps = cluster.nodes[0].maps();
        let mut from = None;
        let report = match vip {
            SocketAddr::V4(_) => collect_around(&maps.v4, || from = Some(request())),
            SocketAddr::V6(_) => collect_around(&maps.v6, || from = Some(request())),
        };
        assert_eq!((report.entries, report.deleted), (1, 0), "{vip}");
        asked.send_to(b"answer", from.unwrap()).unwrap();
        let length = asking.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"answer", "{vip}");
        assert_eq!(collect_in(&cluster.nodes[0], 65).deleted, 1, "{vip}: idle");
    }
}
