//! Forged packets cannot push out, or keep away, the connections that work; a table full of those refuses the new.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use ebpf_abi::{DropReason, conn_flag};
use ebpf_packet::{ConnState, Inserted};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use node_agent_maps::{MapFamily, monotonic_now_ns};
use tests_testkit::{
    Cluster, Node, Pod, ServiceSpec, is_root,
    packet::{Frame, tcp_flag},
    skip,
    traffic::{Server, greeting},
};

const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd00:10:96::10]:80"];
const ESTABLISHED: usize = 100;
const FORGED: u32 = 100_000;

/// A client, and a service with a backend that listens.
struct Stage {
    cluster: Cluster,
    client: Pod,
    vip: SocketAddr,
    _backend: Server,
}

impl Stage {
    fn new(vip: &str) -> Self {
        let mut cluster = Cluster::new(1).unwrap();
        let (client, server) = (cluster.add_pod(0).unwrap(), cluster.add_pod(0).unwrap());
        let vip: SocketAddr = vip.parse().unwrap();
        let backend = SocketAddr::new(server.ip_for(vip.ip()), 8080);
        let running = server.run(|| Server::tcp(backend, "backend")).unwrap();
        cluster.publish(&ServiceSpec::tcp(vip, [backend])).unwrap();
        Self {
            cluster,
            client,
            vip,
            _backend: running,
        }
    }

    fn node(&self) -> &Node {
        &self.cluster.nodes[0]
    }

    fn connect(&self) -> io::Result<TcpStream> {
        self.client.run_without_socket_programs(|| {
            TcpStream::connect_timeout(&self.vip, Duration::from_secs(3))
        })
    }

    fn greeted(&self) -> TcpStream {
        let mut stream = self.connect().unwrap();
        greeting(&mut stream).unwrap();
        stream
    }

    fn counts(&self) -> [u32; 2] {
        let maps = self.node().maps();
        if self.vip.is_ipv4() {
            [maps.v4.conns.count(), maps.v4.conns.capacity()]
        } else {
            [maps.v6.conns.count(), maps.v6.conns.capacity()]
        }
    }

    fn refused(&self) -> u64 {
        let drops = self.node().maps().drops().unwrap();
        let full = drops
            .iter()
            .find(|(reason, _)| *reason == DropReason::ConnTableFull);
        full.unwrap().1.packets
    }
}

/// Every stream still carries what is sent.
fn assert_work(streams: &mut [TcpStream]) {
    use std::io::{Read, Write};
    for (n, stream) in streams.iter_mut().enumerate() {
        let sent = format!("still here {n}");
        stream.write_all(sent.as_bytes()).unwrap();
        let mut back = vec![0; sent.len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(String::from_utf8(back).unwrap(), sent);
    }
}

/// A sender that nobody has, of as many as there are forged packets.
fn forged(vip: SocketAddr, n: u32) -> IpAddr {
    let [_, a, b, c] = n.to_be_bytes();
    match vip {
        SocketAddr::V4(_) => Ipv4Addr::new(10, 200 + a, b, c).into(),
        SocketAddr::V6(_) => {
            Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, n.to_be_bytes()[1].into(), n as u16).into()
        }
    }
}

/// Sends packets with forged senders to the service, from inside the client's pod.
fn flood(stage: &Stage, numbers: std::ops::Range<u32>, flags: u8) {
    stage.client.run(|| {
        let family = match stage.vip {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let raw = socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap();
        let to = SockaddrStorage::from(SocketAddr::new(stage.vip.ip(), 0));
        for n in numbers {
            let frame = Frame::new(forged(stage.vip, n), stage.vip.ip());
            let packet = frame.tcp(40_000, stage.vip.port(), flags, b"").ip_bytes();
            while let Err(error) = sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty()) {
                assert_eq!(error, nix::errno::Errno::ENOBUFS, "packet {n}");
            }
        }
    });
}

#[test]
fn a_syn_flood_takes_no_established_connection_and_keeps_no_new_one_away() {
    if !is_root() {
        return skip("needs root");
    }
    for vip in VIPS {
        let stage = Stage::new(vip);
        let mut streams: Vec<_> = (0..ESTABLISHED).map(|_| stage.greeted()).collect();
        let start = Instant::now();
        for part in 0..10 {
            let first = part * FORGED / 10;
            flood(&stage, first..first + FORGED / 10, tcp_flag::SYN);
            assert_work(&mut streams);
            streams.push(stage.greeted());
        }
        let took = start.elapsed();
        let [count, capacity] = stage.counts();
        println!("{vip}: {FORGED} forged SYNs in {took:?}, {count} of {capacity} connections");
        assert!(took < Duration::from_secs(60), "{took:?}");
        assert!(FORGED > 5 * capacity, "the flood is larger than the table");
        assert!(count > capacity / 2, "{count}: the flood filled the table");
        assert_work(&mut streams);
    }
}

#[test]
fn forged_acks_do_no_more_than_forged_syns() {
    if !is_root() {
        return skip("needs root");
    }
    for vip in VIPS {
        let stage = Stage::new(vip);
        let mut streams: Vec<_> = (0..ESTABLISHED).map(|_| stage.greeted()).collect();
        let half = FORGED / 4;
        flood(&stage, 0..half, tcp_flag::SYN);
        flood(&stage, 0..half, tcp_flag::ACK);
        streams.push(stage.greeted());
        assert_work(&mut streams);
    }
}

/// Fills the table with connections that are established.
fn fill<A: MapFamily>(node: &Node, client: A) {
    let conns = &A::of(node.maps()).conns;
    let state = ConnState {
        last_seen_ns: monotonic_now_ns(),
        flags: conn_flag::OPEN | conn_flag::ANSWERED | conn_flag::CONFIRMED,
        protocol: 6,
        ..ConnState::default()
    };
    for n in conns.count()..conns.capacity() {
        let key = ebpf_abi::ConnKey {
            src: client,
            dst: client,
            src_port_be: n as u16,
            dst_port_be: (n >> 16) as u16,
            protocol: 6,
            pad: [0; 3],
        };
        let target = ebpf_abi::ConnKey {
            dst_port_be: 0xffff,
            ..key
        };
        assert_eq!(conns.insert(&key, &target, &state).unwrap(), Inserted::Done);
    }
}

#[test]
fn a_table_full_of_established_connections_refuses_the_new_and_keeps_the_old() {
    if !is_root() {
        return skip("needs root");
    }
    for vip in VIPS {
        let stage = Stage::new(vip);
        let mut streams: Vec<_> = (0..10).map(|_| stage.greeted()).collect();
        match stage.client.ip_for(stage.vip.ip()) {
            IpAddr::V4(ip) => fill::<ebpf_abi::Addr4>(stage.node(), ip.into()),
            IpAddr::V6(ip) => fill::<ebpf_abi::Addr6>(stage.node(), ip.into()),
        }
        let [count, capacity] = stage.counts();
        assert_eq!(count, capacity);
        assert_eq!(stage.refused(), 0);
        let error = stage.connect().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        assert!(stage.refused() > 0, "the drop is counted");
        assert_work(&mut streams);

        // As soon as one goes there is room for one.
        match stage.node().maps() {
            maps if stage.vip.is_ipv4() => make_room::<ebpf_abi::Addr4>(maps),
            maps => make_room::<ebpf_abi::Addr6>(maps),
        }
        streams.push(stage.greeted());
        assert_work(&mut streams);
    }
}

/// Takes one of those out that [`fill`] put in.
fn make_room<A: MapFamily>(maps: &node_agent_maps::Maps) {
    let conns = &A::of(maps).conns;
    let filler = conns
        .entries()
        .into_iter()
        .find(|conn| conn.backend_id == 0);
    assert!(conns.remove(&filler.unwrap().original).unwrap());
}
