//! An agent that restarts under traffic: nothing is lost, nothing is written.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use node_agent_maps::Attached;
use node_agent_model::{MapSink, Snapshot};
use tests_testkit::{
    Cluster, ServiceSpec, is_root, skip,
    traffic::{Server, ask_tcp, greeting},
};

#[test]
fn restarts_under_traffic_lose_nothing_and_write_nothing() {
    if !is_root() {
        return skip("needs root");
    }
    let mut cluster = Cluster::new(2).unwrap();
    let (client, client_at_socket) = (cluster.add_pod(0).unwrap(), cluster.add_pod(0).unwrap());
    let servers = [0, 1].map(|node| cluster.add_pod(node).unwrap());
    let vip: SocketAddr = "10.96.0.10:80".parse().unwrap();
    let backends = servers
        .each_ref()
        .map(|pod| SocketAddr::from((pod.ipv4(), 8080)));
    let _running: Vec<Server> = servers
        .iter()
        .zip(backends)
        .map(|(pod, addr)| pod.run(|| Server::tcp(addr, "backend")).unwrap())
        .collect();
    cluster.publish(&ServiceSpec::tcp(vip, backends)).unwrap();

    // One connection through all of it, and new ones all the time, by the socket and on the way.
    let mut stream = client
        .run_without_socket_programs(|| TcpStream::connect(vip))
        .unwrap();
    greeting(&mut stream).unwrap();
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failed = AtomicUsize::new(0);
    let ask = || {
        while !stop.load(Ordering::SeqCst) {
            match ask_tcp(vip) {
                Ok(_) => asked.fetch_add(1, Ordering::SeqCst),
                Err(_) => failed.fetch_add(1, Ordering::SeqCst),
            };
            // The connection table of a test is small.
            thread::sleep(Duration::from_millis(5));
        }
    };
    let before = snapshots(&cluster);
    thread::scope(|scope| {
        scope.spawn(|| client.run_without_socket_programs(ask));
        scope.spawn(|| client_at_socket.run(ask));
        // The threads above must end, whatever comes.
        let result = catch_unwind(AssertUnwindSafe(|| {
            for round in 0..3 {
                let seen = asked.load(Ordering::SeqCst);
                restart(&mut cluster);
                say(&mut stream, &format!("round {round}"));
                while asked.load(Ordering::SeqCst) == seen && failed.load(Ordering::SeqCst) == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }));
        stop.store(true, Ordering::SeqCst);
        result.unwrap_or_else(|panic| resume_unwind(panic));
    });
    assert_eq!(
        failed.into_inner(),
        0,
        "of {} connections",
        asked.into_inner()
    );
    assert_eq!(snapshots(&cluster), before, "the maps hold what they held");
}

/// Restarts every agent, and sees that it changed nothing.
fn restart(cluster: &mut Cluster) {
    for node in &mut cluster.nodes {
        let attached = node.restart().unwrap();
        assert!(
            attached.iter().all(|&one| one == Attached::Adopted),
            "{attached:?}"
        );
        for (map, done) in node.maps().operations() {
            assert_eq!(done.total(), 0, "{map}");
        }
    }
}

/// Sends a text to an echo server and reads it back.
fn say(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text.as_bytes());
}

fn snapshots(cluster: &Cluster) -> Vec<Snapshot> {
    cluster
        .nodes
        .iter()
        .map(|node| node.maps().snapshot().unwrap())
        .collect()
}
