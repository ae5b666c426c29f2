//! A load balancer outside of the cluster, as a cloud's: it hands connections to the nodes whose health check answers.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use tests_testkit::{Machine, Underlay};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::{listener_in, runtime_in};

/// Where it listens, on all its addresses.
pub const PORT: u16 = 80;
/// How long it waits for a node to take a connection: longer than a lost SYN takes.
const CONNECT: Duration = Duration::from_secs(4);

/// How it decides that a node takes connections.
#[derive(Clone, Copy, Debug)]
pub struct HealthCheck {
    /// The Service's `healthCheckNodePort`.
    pub port: u16,
    pub interval: Duration,
    /// An answer that comes later counts as none.
    pub timeout: Duration,
    /// Good answers in a row until a node is used.
    pub healthy_threshold: u32,
    /// Bad answers in a row until it is used no more.
    pub unhealthy_threshold: u32,
}

/// A running load balancer; it ends when this is dropped.
#[derive(Debug)]
pub struct LoadBalancer {
    pub machine: Machine,
    shared: Arc<Shared>,
    /// Its threads live in the machine's network namespace.
    runtime: Option<Runtime>,
}

/// A node was taken in or out.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    pub at: Instant,
    /// The last byte of the node's addresses.
    pub node: u8,
    pub used: bool,
}

#[derive(Debug)]
struct Shared {
    node_port: u16,
    check: HealthCheck,
    nodes: Vec<Node>,
    next: AtomicUsize,
    turns: Mutex<Vec<Turn>>,
    failures: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Node {
    number: u8,
    used: AtomicBool,
}

impl LoadBalancer {
    /// Starts one on machine NUMBER in front of the nodes with these numbers.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub fn start(
        underlay: &Underlay,
        number: u8,
        nodes: &[u8],
        node_port: u16,
        check: HealthCheck,
    ) -> Result<Self> {
        let machine = underlay.machine(number)?;
        let runtime = runtime_in(&machine.netns)?;
        let node = |&number| Node {
            number,
            used: AtomicBool::new(false),
        };
        let shared = Arc::new(Shared {
            node_port,
            check,
            nodes: nodes.iter().map(node).collect(),
            next: AtomicUsize::new(0),
            turns: Mutex::default(),
            failures: Mutex::default(),
        });
        for index in 0..nodes.len() {
            runtime.spawn(shared.clone().watch(index));
        }
        let listener = listener_in(&runtime, PORT)?;
        runtime.spawn(shared.clone().serve(listener));
        Ok(Self {
            machine,
            shared,
            runtime: Some(runtime),
        })
    }

    /// The nodes that get connections.
    #[must_use]
    pub fn used(&self) -> Vec<u8> {
        let used = |node: &&Node| node.used.load(Ordering::Relaxed);
        let nodes = self.shared.nodes.iter().filter(used);
        nodes.map(|node| node.number).collect()
    }

    /// What its health checks decided so far.
    #[must_use]
    pub fn turns(&self) -> Vec<Turn> {
        locked(&self.shared.turns).clone()
    }

    /// The connections that no node took, each with the reason.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        locked(&self.shared.failures).clone()
    }
}

impl Drop for LoadBalancer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    /// Asks a node for ever.
    async fn watch(self: Arc<Self>, index: usize) {
        let (check, node) = (self.check, &self.nodes[index]);
        let mut timer = tokio::time::interval(check.interval);
        let mut in_a_row = 0;
        loop {
            timer.tick().await;
            let asked = tokio::time::timeout(check.timeout, is_healthy(node.number, check.port));
            let healthy = asked.await.unwrap_or(false);
            let used = node.used.load(Ordering::Relaxed);
            if healthy == used {
                in_a_row = 0;
                continue;
            }
            in_a_row += 1;
            let threshold = match healthy {
                true => check.healthy_threshold,
                false => check.unhealthy_threshold,
            };
            if in_a_row >= threshold {
                in_a_row = 0;
                node.used.store(healthy, Ordering::Relaxed);
                locked(&self.turns).push(Turn {
                    at: Instant::now(),
                    node: node.number,
                    used: healthy,
                });
            }
        }
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        while let Ok((client, peer)) = listener.accept().await {
            tokio::spawn(self.clone().carry(client, peer.ip().to_canonical()));
        }
    }

    /// Hands one connection on, in the client's family. There is no second try: what a node refuses is lost.
    async fn carry(self: Arc<Self>, mut client: TcpStream, peer: IpAddr) {
        let Some(number) = self.choose() else {
            return self.fail("no node is healthy".to_owned());
        };
        let ip: IpAddr = match peer {
            IpAddr::V4(_) => Underlay::ipv4(number).into(),
            IpAddr::V6(_) => Underlay::ipv6(number).into(),
        };
        let address = SocketAddr::new(ip, self.node_port);
        let connecting = tokio::time::timeout(CONNECT, TcpStream::connect(address));
        let mut node = match connecting.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.fail(format!("{address}: {error}")),
            Err(late) => return self.fail(format!("{address}: {late}")),
        };
        if let Err(error) = copy_bidirectional(&mut client, &mut node).await {
            self.fail(format!("{address}, under way: {error}"));
        }
    }

    /// One after the other.
    fn choose(&self) -> Option<u8> {
        let count = self.nodes.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let nodes = (first..first + count).map(|turn| &self.nodes[turn % count]);
        let mut used = nodes.filter(|node| node.used.load(Ordering::Relaxed));
        used.next().map(|node| node.number)
    }

    fn fail(&self, reason: String) {
        locked(&self.failures).push(reason);
    }
}

/// <https://kubernetes.io/docs/reference/networking/virtual-ips/#external-traffic-policy>: 200 means ready endpoints.
async fn is_healthy(node: u8, port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect((Underlay::ipv4(node), port)).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    ask.await
        .is_ok_and(|answer| answer.starts_with("HTTP/1.0 200"))
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
