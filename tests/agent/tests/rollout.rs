//! All pods of a Deployment are replaced while clients outside of the cluster connect through a load balancer.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http::Method;
use serde_json::{Value, json};
use tests_agent::{
    Agent, Api, HealthCheck, LOAD_BALANCER_PORT, LoadBalancer, Pod, WebServer, eventually,
    runtime_in, without_root,
};
use tests_testkit::{Machine, Underlay};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// Connections a second.
const RATE: usize = 500;
/// One of so many connections lives as long as [`LONG`], the others for one exchange.
const LONG_ONE_OF: usize = 25;
const LONG: Duration = Duration::from_millis(1500);
/// From the word that a pod ends until it closes its listener, as a preStop hook's sleep: longer than the load balancer
/// takes to turn away from a node, and far longer than the agents take.
const PRE_STOP: Duration = Duration::from_millis(2500);
const PORT: u16 = 8080;
const HEALTH_CHECK_PORT: u16 = 30901;
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// A pod of the Deployment.
struct Replica {
    name: String,
    /// The node's number.
    node: u8,
    pod: Pod,
    server: WebServer,
    /// When it was told to end.
    terminating: Option<Instant>,
}

/// The Deployment's pods on the nodes, and what the API server is told of them.
struct Deployment<'a> {
    api: &'a Api,
    agents: &'a [Agent],
    replicas: VecDeque<Replica>,
    started: usize,
    /// Connections that pods took which are gone by now.
    served: BTreeMap<String, usize>,
}

#[test]
fn replacing_every_pod_under_500_connections_a_second_from_outside_fails_none() {
    if without_root() {
        return;
    }
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let agents = [1, 2, 3].map(|number| {
        let cidrs = [
            format!("10.244.{number}.0/24"),
            format!("fd00:10:244:{number}::/64"),
        ];
        Agent::node(&underlay, &api, number, &[&cidrs[0], &cidrs[1]], &[]).unwrap()
    });
    let service = api.call(Method::POST, "/api/v1/namespaces/default/services", Some(json!({
        "metadata": {"name": "web"},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ipFamilyPolicy": "RequireDualStack",
            "healthCheckNodePort": HEALTH_CHECK_PORT,
            "ports": [{"port": 80, "targetPort": PORT}]},
    })));
    let service = service.unwrap();
    let node_port = service.pointer("/spec/ports/0/nodePort").unwrap().as_u64();
    let node_port = u16::try_from(node_port.unwrap()).unwrap();
    let check = HealthCheck {
        port: HEALTH_CHECK_PORT,
        interval: Duration::from_millis(250),
        timeout: Duration::from_millis(1000),
        healthy_threshold: 2,
        unhealthy_threshold: 2,
    };
    let mut deployment = Deployment::new(&api, &agents).unwrap();
    // The third node has none.
    for node in [1, 1, 2] {
        deployment.add(node).unwrap();
    }
    let balancer = LoadBalancer::start(&underlay, 200, &[1, 2, 3], node_port, check).unwrap();
    eventually("the load balancer uses the nodes with pods", || {
        ensure!(balancer.used() == [1, 2], "{:?}", balancer.used());
        Ok(())
    })
    .unwrap();

    let client = underlay.machine(201).unwrap();
    let load = Load::start(&client, &balancer.machine);
    // Twice all pods: nodes get their first pod, keep some, lose their last.
    for node in [3, 2, 3, 1, 1, 2] {
        deployment.replace(node).unwrap();
    }
    deployment.finish().unwrap();
    // Clients that came last.
    std::thread::sleep(LONG);
    let outcome = load.finish();

    let turns = balancer.turns();
    println!(
        "{} connections in {:?}, {} failed, the slowest took {:?}; served: {:?}",
        outcome.made,
        outcome.took,
        outcome.failures.len(),
        outcome.slowest,
        deployment.served
    );
    for turn in &turns {
        println!("node n{} in use: {}", turn.node, turn.used);
    }
    assert!(
        outcome.failures.is_empty(),
        "{:#?}\n{:#?}",
        outcome.failures,
        balancer.failures()
    );
    assert_eq!(balancer.failures(), [""; 0]);
    let due = outcome.took.as_secs() as usize * RATE;
    assert!(outcome.made >= due * 99 / 100, "{} of {due}", outcome.made);
    for node in 1..=3 {
        assert!(
            turns.iter().any(|turn| turn.node == node && turn.used),
            "node {node} was never used"
        );
    }
    assert!(
        turns.iter().any(|turn| !turn.used),
        "no node lost its last pod"
    );
    assert_eq!(deployment.served.len(), 9);
    assert!(
        deployment.served.values().all(|&count| count > 0),
        "{:?}",
        deployment.served
    );
}

impl<'a> Deployment<'a> {
    fn new(api: &'a Api, agents: &'a [Agent]) -> Result<Self> {
        for (family, kind) in ["IPv4", "IPv6"].iter().enumerate() {
            api.call(Method::POST, SLICES, Some(json!({
                "metadata": {"name": format!("web-{family}"), "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": kind, "endpoints": [], "ports": [{"name": "", "port": PORT, "protocol": "TCP"}],
            })))?;
        }
        Ok(Self {
            api,
            agents,
            replicas: VecDeque::new(),
            started: 0,
            served: BTreeMap::new(),
        })
    }

    /// As a RollingUpdate with `maxSurge: 1, maxUnavailable: 0`: the oldest pod ends when the new one is ready.
    fn replace(&mut self, node: u8) -> Result<()> {
        self.add(node)?;
        let oldest = self
            .replicas
            .iter_mut()
            .find(|replica| replica.terminating.is_none());
        oldest.context("no pod is left")?.terminating = Some(Instant::now());
        self.publish()?;
        // The next one, while this one ends.
        let next = Instant::now() + PRE_STOP;
        while Instant::now() < next {
            self.end_those_that_are_due()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn add(&mut self, node: u8) -> Result<()> {
        let name = format!("web-{}", self.started);
        self.started += 1;
        let pod = self.agents[usize::from(node) - 1].pod(&name)?;
        let server = WebServer::start(&pod.netns, PORT, &name)?;
        self.replicas.push_back(Replica {
            name,
            node,
            pod,
            server,
            terminating: None,
        });
        self.publish()
    }

    /// The pods that have had their time close their listener and, when their clients are done, are gone.
    fn end_those_that_are_due(&mut self) -> Result<()> {
        let mut gone = Vec::new();
        for (index, replica) in self.replicas.iter().enumerate() {
            let Some(told) = replica.terminating.filter(|told| told.elapsed() > PRE_STOP) else {
                continue;
            };
            replica.server.close_listener();
            if replica.server.open() == 0 {
                gone.push(index);
            } else if told.elapsed() > 4 * PRE_STOP {
                bail!(
                    "{} still has {} clients",
                    replica.name,
                    replica.server.open()
                );
            }
        }
        for index in gone.into_iter().rev() {
            let replica = self.replicas.remove(index).context("it was there")?;
            self.publish()?;
            let plugin = self.agents[usize::from(replica.node) - 1].plugin();
            let conf = plugin.conf("1.1.0", &json!({}));
            plugin.call("DEL", &replica.name, &replica.pod.netns.path(), &conf)?;
            self.served.insert(replica.name, replica.server.accepted());
        }
        Ok(())
    }

    /// Waits for those that still end, and counts what the living ones served.
    fn finish(&mut self) -> Result<()> {
        while self
            .replicas
            .iter()
            .any(|replica| replica.terminating.is_some())
        {
            self.end_those_that_are_due()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        for replica in &self.replicas {
            self.served
                .insert(replica.name.clone(), replica.server.accepted());
        }
        Ok(())
    }

    /// What the EndpointSlice controller writes: a pod that ends serves until it is gone.
    fn publish(&self) -> Result<()> {
        for family in 0..2 {
            let endpoint = |replica: &Replica| -> Value {
                let ends = replica.terminating.is_some();
                json!({"addresses": [replica.pod.ips[family]], "nodeName": format!("n{}", replica.node),
                    "conditions": {"ready": !ends, "serving": true, "terminating": ends}})
            };
            let endpoints: Vec<Value> = self.replicas.iter().map(endpoint).collect();
            let path = format!("{SLICES}/web-{family}");
            self.api
                .call(Method::PATCH, &path, Some(json!({"endpoints": endpoints})))?;
        }
        Ok(())
    }
}

/// Clients that connect at a steady rate, whatever becomes of those before.
struct Load {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Runtime,
    running: tokio::task::JoinHandle<()>,
    began: Instant,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    made: AtomicUsize,
    failures: Mutex<Vec<String>>,
    slowest: Mutex<Duration>,
}

struct Outcome {
    made: usize,
    took: Duration,
    failures: Vec<String>,
    slowest: Duration,
}

impl Load {
    fn start(from: &Machine, to: &Machine) -> Self {
        let runtime = runtime_in(&from.netns).unwrap();
        let shared = Arc::new(Shared::default());
        let targets =
            [to.ipv4.into(), to.ipv6.into()].map(|ip| SocketAddr::new(ip, LOAD_BALANCER_PORT));
        // Pods see the load balancer, and no node.
        let seen = [to.ipv4.to_string(), to.ipv6.to_string()];
        let running = runtime.spawn(shared.clone().run(targets, seen));
        Self {
            shared,
            runtime,
            running,
            began: Instant::now(),
        }
    }

    fn finish(self) -> Outcome {
        self.shared.stop.store(true, Ordering::Relaxed);
        let took = self.began.elapsed();
        let shared = self.shared;
        self.runtime.block_on(self.running).unwrap();
        Outcome {
            made: shared.made.load(Ordering::Relaxed),
            took,
            failures: shared.failures.blocking_lock().clone(),
            slowest: *shared.slowest.blocking_lock(),
        }
    }
}

impl Shared {
    async fn run(self: Arc<Self>, targets: [SocketAddr; 2], seen: [String; 2]) {
        let mut timer = tokio::time::interval(Duration::from_secs(1) / RATE as u32);
        let began = Instant::now();
        let mut clients = JoinSet::new();
        for number in 0.. {
            timer.tick().await;
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let (shared, target, seen) =
                (self.clone(), targets[number % 2], seen[number % 2].clone());
            clients.spawn(async move {
                let (at, connecting) = (began.elapsed(), Instant::now());
                let exchanges = match number % LONG_ONE_OF {
                    0 => 10,
                    _ => 1,
                };
                let talk = async {
                    let stream = TcpStream::connect(target).await?;
                    talk(stream, number, exchanges, &seen, &shared, connecting).await
                };
                let outcome = tokio::time::timeout(Duration::from_secs(10), talk).await;
                let failure = match outcome {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(format!("{error:#}")),
                    Err(late) => Some(late.to_string()),
                };
                if let Some(failure) = failure {
                    let text = format!("connection {number} to {target} at {at:?}: {failure}");
                    shared.failures.lock().await.push(text);
                }
            });
            self.made.fetch_add(1, Ordering::Relaxed);
            while clients.try_join_next().is_some() {}
        }
        while clients.join_next().await.is_some() {}
    }
}

/// Each exchange must be answered, by the same pod, which sees the load balancer's own address.
async fn talk(
    mut stream: TcpStream,
    number: usize,
    exchanges: u32,
    seen: &str,
    shared: &Shared,
    connecting: Instant,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    let mut pod = None;
    for exchange in 0..exchanges {
        if exchange > 0 {
            tokio::time::sleep(LONG / exchanges).await;
        }
        let sent = format!("{number}.{exchange}");
        writer.write_all(format!("{sent}\n").as_bytes()).await?;
        let answer = lines
            .next_line()
            .await?
            .context("closed before the answer")?;
        if exchange == 0 {
            let mut slowest = shared.slowest.lock().await;
            *slowest = slowest.max(connecting.elapsed());
        }
        let words: Vec<&str> = answer.split(' ').collect();
        let [echoed, name, client] = words[..] else {
            bail!("answered {answer:?}");
        };
        ensure!(echoed == sent && client == seen, "answered {answer:?}");
        ensure!(
            *pod.get_or_insert(name.to_owned()) == name,
            "another pod answers: {answer:?}"
        );
    }
    Ok(())
}
