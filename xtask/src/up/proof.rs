//! The proof: clients in every position ask the service, and who answered is counted.

mod verdict;

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::cluster::{Pod, Service};
use super::node;
use super::place::{self, Place};
use super::progress::Wait;
use super::table;

/// What is asked of whom.
#[derive(Debug)]
pub struct Proof {
    pods: Vec<Pod>,
    service: Service,
    clients: Vec<Client>,
    requests: u32,
}

#[derive(Debug, Clone)]
struct Client {
    kind: Kind,
    /// The node whose dataplane chooses the backend: the client's own, or for one outside the
    /// node whose NodePort it asks.
    node: Place,
}

#[derive(Debug, Clone)]
enum Kind {
    Pod(Pod),
    Host,
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Protocol {
    Http,
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Family {
    Ipv4,
    Ipv6,
}

/// What the probe prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Tally {
    sent: u32,
    replies: u32,
    p50_us: f64,
    backends: BTreeMap<String, Answers>,
    errors: BTreeMap<String, u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Answers {
    count: u32,
    p50_us: f64,
}

/// One client's run over one protocol and family.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    client: String,
    protocol: Protocol,
    family: Family,
    tally: Tally,
    #[serde(skip)]
    index: usize,
}

const CELLS: [(Protocol, Family); 4] = [
    (Protocol::Http, Family::Ipv4),
    (Protocol::Http, Family::Ipv6),
    (Protocol::Udp, Family::Ipv4),
    (Protocol::Udp, Family::Ipv6),
];

// === impl Proof ===

impl Proof {
    pub fn new(nodes: u8, mut pods: Vec<Pod>, service: Service, requests: u32) -> Proof {
        pods.sort_by(|left, right| left.name.cmp(&right.name));
        let mut clients = Vec::new();
        for node in place::nodes(nodes) {
            if let Some(pod) = pods.iter().find(|pod| pod.node == node.name()) {
                clients.push(Client {
                    kind: Kind::Pod(pod.clone()),
                    node: node.clone(),
                });
            }
            clients.push(Client {
                kind: Kind::Host,
                node: node.clone(),
            });
            clients.push(Client {
                kind: Kind::Outside,
                node,
            });
        }
        Proof {
            pods,
            service,
            clients,
            requests,
        }
    }

    /// Endpoints reach the nodes one after the other; counts mean something only from then on.
    pub fn has_converged(&self) -> Result<Wait<()>> {
        let count = u32::try_from(self.pods.len() * 2).context("too many pods")?;
        for client in self
            .clients
            .iter()
            .filter(|client| !matches!(client.kind, Kind::Pod(_)))
        {
            for (protocol, family) in CELLS {
                let tally = self.probe(client, protocol, family, count, 500)?;
                if tally.backends.len() != self.pods.len() || tally.replies != tally.sent {
                    return Ok(Wait::Pending(format!(
                        "{}, {protocol:?} {family:?}: {} of {} backends answer",
                        client.label(),
                        tally.backends.len(),
                        self.pods.len()
                    )));
                }
            }
        }
        Ok(Wait::Done(()))
    }

    pub fn run(&self) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for (index, client) in self.clients.iter().enumerate() {
            for (protocol, family) in CELLS {
                let tally = self.probe(client, protocol, family, self.requests, 2000)?;
                outcomes.push(Outcome {
                    client: client.label(),
                    protocol,
                    family,
                    tally,
                    index,
                });
            }
        }
        Ok(outcomes)
    }

    fn probe(
        &self,
        client: &Client,
        protocol: Protocol,
        family: Family,
        count: u32,
        timeout_ms: u32,
    ) -> Result<Tally> {
        let target = self.target(client, protocol, family)?;
        let (flag, value) = match protocol {
            Protocol::Http => ("--http", format!("http://{target}/")),
            Protocol::Udp => ("--udp", target),
        };
        let mut command = match &client.kind {
            Kind::Pod(pod) => {
                let mut command = node::command(&client.node, "docker");
                command.args(["exec", &pod.container, "/hello"]);
                command
            }
            Kind::Host => node::command(&client.node, place::hello_binary()),
            Kind::Outside => node::command(&Place::Outside, place::hello_binary()),
        };
        command
            .args([
                "probe",
                flag,
                &value,
                "--json",
                "--count",
                &count.to_string(),
            ])
            .args(["--timeout-ms", &timeout_ms.to_string()]);
        let output = command
            .output()
            .with_context(|| format!("cannot start the probe of {}", client.label()))?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "the probe of {} said: {}",
                client.label(),
                String::from_utf8_lossy(&output.stderr).trim()
            )
        })
    }

    fn target(&self, client: &Client, protocol: Protocol, family: Family) -> Result<String> {
        let (address, port) = if matches!(client.kind, Kind::Outside) {
            let (ipv4, ipv6) = client.node.addresses();
            let port = match protocol {
                Protocol::Http => self.service.http_node_port,
                Protocol::Udp => self.service.echo_node_port,
            };
            (if family == Family::Ipv4 { ipv4 } else { ipv6 }, port)
        } else {
            let of_family = |address: &&String| address.contains(':') == (family == Family::Ipv6);
            let address = self.service.cluster_ips.iter().find(of_family);
            let port = if protocol == Protocol::Http { 80 } else { 9000 };
            (
                address
                    .with_context(|| format!("the service has no {family:?} ClusterIP"))?
                    .clone(),
                port,
            )
        };
        Ok(match family {
            Family::Ipv4 => format!("{address}:{port}"),
            Family::Ipv6 => format!("[{address}]:{port}"),
        })
    }

    /// Keeps the single runs for whoever wants more than the table.
    pub fn save(&self, outcomes: &[Outcome]) -> Result<()> {
        let path = place::folder().join("proof.json");
        fs::write(&path, serde_json::to_string_pretty(outcomes)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

// === impl Client, Protocol, Family ===

impl Client {
    fn label(&self) -> String {
        let node = self.node.name();
        match &self.kind {
            Kind::Pod(pod) => format!("pod {} on {node}", pod.name),
            Kind::Host => format!("host process on {node}"),
            Kind::Outside => format!("outside machine to {node}"),
        }
    }
}

impl Protocol {
    fn label(self) -> &'static str {
        match self {
            Protocol::Http => "HTTP/TCP",
            Protocol::Udp => "UDP",
        }
    }
}

impl Family {
    fn label(self) -> &'static str {
        match self {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        }
    }
}
