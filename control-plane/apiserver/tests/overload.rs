//! More requests than the server may work on at one time: who waits, who is refused, and who is not delayed.
//!
//! Over real connections. The server and its clients have threads of their own, but share the machine's processors.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::Server;
use control_plane_apiserver::{Limits, Settings};
use futures::future::join_all;
use http::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

/// Clients of the storm.
const CLIENTS: usize = 2_000;
/// What each of them lists.
const OBJECTS: usize = 1_000;
const NODES: usize = 20;
const HEARTBEAT_EVERY: Duration = Duration::from_millis(100);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// A server whose connections are served on threads of its own.
struct Busy {
    server: Server,
    address: SocketAddr,
    _runtime: Runtime,
}

impl Busy {
    fn start(limits: Limits) -> Self {
        let runtime = runtime();
        let (server, address) = runtime.block_on(async {
            let settings = Settings {
                limits,
                ..Settings::default()
            };
            let server = Server::start_with(settings).await;
            for first in (0..OBJECTS).step_by(50) {
                let objects = (first..first + 50).map(|at| {
                    let data = json!({"text": "x".repeat(300)});
                    let map = json!({"metadata": {"name": format!("m{at}")}, "data": data});
                    server.post("/api/v1/namespaces/default/configmaps", map)
                });
                for answer in join_all(objects).await {
                    assert_eq!(answer.status, StatusCode::CREATED);
                }
            }
            let (address, _) = server.listen().await;
            (server, address)
        });
        Self {
            server,
            address,
            _runtime: runtime,
        }
    }
}

/// One request on a connection that stays open; answers the status.
async fn exchange(stream: &mut TcpStream, request: &str) -> std::io::Result<(u16, u64)> {
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    let mut byte = [0; 1];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let field = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse::<u64>().ok())
    };
    let mut rest = field("content-length:").expect("a length");
    let mut buffer = vec![0; 64 * 1024];
    while rest > 0 {
        let want = buffer.len().min(usize::try_from(rest).unwrap());
        let got = stream.read(&mut buffer[..want]).await?;
        if got == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        rest -= got as u64;
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok((status, field("retry-after:").unwrap_or(0)))
}

/// Lists everything, coming back when told to; answers how often it was refused.
async fn relist(address: SocketAddr, client: usize) -> u32 {
    let request = format!(
        "GET /api/v1/configmaps HTTP/1.1\r\nhost: server\r\nuser-agent: client-{client}\r\n\r\n"
    );
    let mut refused = 0;
    let mut stream = TcpStream::connect(address).await.unwrap();
    loop {
        match exchange(&mut stream, &request).await.unwrap() {
            (200, _) => return refused,
            (429, after @ 1..) => {
                refused += 1;
                tokio::time::sleep(Duration::from_secs(after)).await;
            }
            other => panic!("unexpected answer {other:?}"),
        }
    }
}

/// Renews the leases of all nodes until told to stop; answers how long each renewal took.
async fn heartbeats(address: SocketAddr, stop: Arc<AtomicU32>) -> Vec<Duration> {
    let nodes = (0..NODES).map(|node| {
        let stop = stop.clone();
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let mut took = Vec::new();
            while stop.load(Ordering::Relaxed) == 0 {
                let body = json!({"metadata": {"name": format!("n{node}")}, "spec": {"holderIdentity": format!("n{node}")}});
                let body = body.to_string();
                let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
                let head = match took.len() {
                    0 => format!("POST {path}"),
                    _ => format!("PUT {path}/n{node}"),
                };
                let request = format!("{head} HTTP/1.1\r\nhost: server\r\nuser-agent: node-{node}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                let began = Instant::now();
                let (status, _) = exchange(&mut stream, &request).await.unwrap();
                took.push(began.elapsed());
                assert!(matches!(status, 200 | 201 | 409), "{status}");
                tokio::time::sleep(HEARTBEAT_EVERY).await;
            }
            took
        })
    });
    let all = join_all(nodes).await;
    all.into_iter().flat_map(|node| node.unwrap()).collect()
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() - 1) * percent / 100]
}

/// The heartbeats' p50 and p99 while `during` lasts.
fn measure(busy: &Busy, during: impl Future<Output = ()>) -> (Duration, Duration, usize) {
    let clients = runtime();
    let stop = Arc::new(AtomicU32::new(0));
    let nodes = runtime();
    let beating = nodes.spawn(heartbeats(busy.address, stop.clone()));
    clients.block_on(during);
    stop.store(1, Ordering::Relaxed);
    let mut times = nodes.block_on(beating).unwrap();
    let (half, most) = (percentile(&mut times, 50), percentile(&mut times, 99));
    (half, most, times.len())
}

async fn storm(address: SocketAddr) {
    let began = Instant::now();
    let clients = (0..CLIENTS).map(|client| tokio::spawn(relist(address, client)));
    let refused: u32 = join_all(clients)
        .await
        .into_iter()
        .map(|r| r.unwrap())
        .sum();
    println!(
        "{CLIENTS} clients have listed {OBJECTS} objects each in {:?}, after {refused} refusals",
        began.elapsed()
    );
}

#[test]
fn two_thousand_clients_that_list_everything_do_not_delay_heartbeats() {
    let busy = Busy::start(Limits::default());
    let quiet = measure(&busy, async {
        tokio::time::sleep(Duration::from_secs(3)).await
    });
    let stormy = measure(&busy, storm(busy.address));
    println!("heartbeats (p50, p99, count): quiet {quiet:?}, in the storm {stormy:?}");
    // The processors are shared with the clients, and with whoever else is on the machine. A kubelet gives a renewal ten
    // seconds, and a Lease is good for forty.
    let bound = quiet.1 * 10 + Duration::from_millis(250);
    assert!(
        stormy.1 < bound,
        "p99 in the storm {:?}, bound {bound:?}",
        stormy.1
    );
    let metrics = runtime().block_on(busy.server.get("/metrics")).text();
    let waited =
        "apiserver_flowcontrol_dispatched_requests_total{priority_level=\"global-default\"";
    assert!(metrics.contains(waited), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_level_refuses_with_the_time_to_come_back() {
    let limits = Limits {
        reading: 1,
        writing: 1,
        fairness: false,
        ..Limits::default()
    };
    let server = Server::start_with(Settings {
        limits,
        ..Settings::default()
    })
    .await;
    // A write whose body does not come holds the only seat for writing.
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<bytes::Bytes>>(1);
    let slow = axum::body::Body::from_stream(tokio_stream(receiver));
    let uri = "/api/v1/namespaces/default/configmaps";
    let writing = server.send(Method::POST, uri, &[], slow);
    let refused = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let answer = server.post(uri, json!({"metadata": {"name": "b"}})).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        let status = answer.json();
        assert_eq!(status["reason"], "TooManyRequests");
        let after: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1..=2).contains(&after));
        assert_eq!(status["details"]["retryAfterSeconds"], after);
        // Reading and looking after the server go on.
        assert_eq!(server.get(uri).await.status, StatusCode::OK);
        assert_eq!(server.get("/readyz").await.status, StatusCode::OK);
        let body = bytes::Bytes::from_static(br#"{"metadata":{"name":"a"}}"#);
        sender.send(Ok(body)).await.unwrap();
        drop(sender);
    };
    let (written, ()) = tokio::join!(writing, refused);
    assert_eq!(written.status(), StatusCode::CREATED);
    let answer = server.post(uri, json!({"metadata": {"name": "b"}})).await;
    assert_eq!(answer.status, StatusCode::CREATED, "the seat is free again");
    let metrics = server.get("/metrics").await.text();
    let rejected = "apiserver_flowcontrol_rejected_requests_total{priority_level=\"mutating\",flow_schema=\"mutating\",reason=\"concurrency-limit\"} 1";
    assert!(metrics.contains(rejected), "{metrics}");
}

fn tokio_stream<T: Send + 'static>(
    receiver: tokio::sync::mpsc::Receiver<T>,
) -> impl futures::Stream<Item = T> + Send {
    futures::stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_name_the_schema_and_the_level_that_they_were_queued_by() {
    let server = Server::start().await;
    let flow = "/apis/flowcontrol.apiserver.k8s.io/v1";
    let uid = async |uri: String| {
        let object = server.get(&uri).await.json();
        object["metadata"]["uid"].as_str().unwrap().to_owned()
    };
    let default = uid(format!("{flow}/flowschemas/global-default")).await;
    let answer = server.get("/api/v1/namespaces/default/pods").await;
    assert_eq!(answer.header("x-kubernetes-pf-flowschema-uid"), default);
    let level = uid(format!("{flow}/prioritylevelconfigurations/global-default")).await;
    assert_eq!(answer.header("x-kubernetes-pf-prioritylevel-uid"), level);
    let heartbeats = uid(format!("{flow}/flowschemas/unproved-heartbeats")).await;
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n";
    let answer = server.get(lease).await;
    assert_eq!(answer.header("x-kubernetes-pf-flowschema-uid"), heartbeats);

    // Other objects, other classes, at once.
    let schema = json!({"metadata": {"name": "pods-first"}, "spec": {
        "priorityLevelConfiguration": {"name": "exempt"}, "matchingPrecedence": 50,
        "rules": [{"subjects": [{"kind": "Group", "group": {"name": "system:unauthenticated"}}],
            "resourceRules": [{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"], "namespaces": ["*"]}]}]}});
    let made = server.post(&format!("{flow}/flowschemas"), schema).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    assert_eq!(made.header("warning"), "");
    let made = made.json()["metadata"]["uid"].as_str().unwrap().to_owned();
    let began = Instant::now();
    loop {
        let answer = server.get("/api/v1/namespaces/default/pods").await;
        if answer.header("x-kubernetes-pf-flowschema-uid") == made {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "still another class"
        );
    }
}
