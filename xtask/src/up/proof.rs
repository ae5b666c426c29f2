//! The proof: clients in every position ask the service, and who answered is counted.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::cluster::{Pod, Service};
use super::node;
use super::place::{self, Place};
use super::progress::Wait;
use super::table::{self, Row};

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

/// Where a client stands, seen from the backend that answered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    PodBeside,
    PodElsewhere,
    Host,
    Outside,
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

    pub fn legend(&self) -> String {
        let pods = self
            .pods
            .iter()
            .map(|pod| format!("{} on {}", pod.name, pod.node));
        format!(
            "{} requests per client and row; backends: {}",
            self.requests,
            pods.collect::<Vec<_>>().join(", ")
        )
    }

    /// One row per position, protocol and family, over all clients in that position.
    pub fn rows(&self, outcomes: &[Outcome]) -> Vec<Row> {
        let mut rows = Vec::new();
        for position in Position::ALL {
            for (protocol, family) in CELLS {
                let fitting = outcomes
                    .iter()
                    .filter(|outcome| (outcome.protocol, outcome.family) == (protocol, family))
                    .filter(|outcome| position.covers(&self.clients[outcome.index].kind));
                rows.extend(self.row(position, protocol, family, &fitting.collect::<Vec<_>>()));
            }
        }
        rows
    }

    fn row(
        &self,
        position: Position,
        protocol: Protocol,
        family: Family,
        outcomes: &[&Outcome],
    ) -> Option<Row> {
        let mut counts = vec![0; self.pods.len()];
        let mut p50s = Vec::new();
        let (mut lost, mut spread) = (0, 0);
        for outcome in outcomes {
            let node = self.clients[outcome.index].node.name();
            for (pod, count) in self.pods.iter().zip(&mut counts) {
                if let Some(answers) = outcome.tally.backends.get(&pod.name)
                    && position.includes(pod.node == node)
                {
                    *count += answers.count;
                    p50s.push(answers.p50_us);
                }
            }
            lost += outcome.tally.sent - outcome.tally.replies;
            spread = spread.max(self.spread(&outcome.tally));
        }
        let replies: u32 = counts.iter().sum();
        if replies + lost == 0 {
            // With one node, or one pod per node, a position may have no client.
            return None;
        }
        Some(Row {
            position: position.label(),
            protocol: format!("{} {}", protocol.label(), family.label()),
            replies,
            requests: replies + lost,
            counts,
            spread,
            p50_us: table::median(p50s),
        })
    }

    /// The largest difference between the counts of any two backends.
    fn spread(&self, tally: &Tally) -> u32 {
        let count = |pod: &Pod| {
            tally
                .backends
                .get(&pod.name)
                .map_or(0, |answers| answers.count)
        };
        let most = self.pods.iter().map(count).max().unwrap_or(0);
        most - self.pods.iter().map(count).min().unwrap_or(0)
    }

    /// What is wrong: a lost reply, a stranger's reply, or TCP that is not round robin.
    pub fn faults(&self, outcomes: &[Outcome]) -> Vec<String> {
        let mut faults = Vec::new();
        for outcome in outcomes {
            let who = format!(
                "{}, {} {}",
                outcome.client,
                outcome.protocol.label(),
                outcome.family.label()
            );
            let tally = &outcome.tally;
            if tally.replies != tally.sent {
                faults.push(format!(
                    "{who}: {} of {} replies, errors {:?}",
                    tally.replies, tally.sent, tally.errors
                ));
            }
            for name in tally
                .backends
                .keys()
                .filter(|name| self.pods.iter().all(|pod| pod.name != **name))
            {
                faults.push(format!("{who}: {name} answered, which is no backend"));
            }
            if outcome.protocol == Protocol::Http && self.spread(tally) > 1 {
                let counts: Vec<String> = tally
                    .backends
                    .iter()
                    .map(|(name, answers)| format!("{name} {}", answers.count))
                    .collect();
                faults.push(format!(
                    "{who}: counts differ by {}: {}",
                    self.spread(tally),
                    counts.join(", ")
                ));
            }
        }
        faults
    }

    pub fn verdict(&self, outcomes: &[Outcome]) -> String {
        let sent: u32 = outcomes.iter().map(|outcome| outcome.tally.sent).sum();
        format!(
            "{sent} of {sent} requests answered; for TCP the counts of any two backends differ by at most 1 on every node.\nEach client's own counts: {}",
            place::folder().join("proof.json").display()
        )
    }
}

// === impl Client, Position, Protocol, Family ===

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

impl Position {
    const ALL: [Position; 4] = [
        Position::PodBeside,
        Position::PodElsewhere,
        Position::Host,
        Position::Outside,
    ];

    fn label(self) -> &'static str {
        match self {
            Position::PodBeside => "pod beside the backend",
            Position::PodElsewhere => "pod on another node",
            Position::Host => "host process on a node",
            Position::Outside => "outside machine by NodePort",
        }
    }

    fn covers(self, kind: &Kind) -> bool {
        match self {
            Position::PodBeside | Position::PodElsewhere => matches!(kind, Kind::Pod(_)),
            Position::Host => matches!(kind, Kind::Host),
            Position::Outside => matches!(kind, Kind::Outside),
        }
    }

    /// Whether an answer of a backend on the client's node, or on another, belongs to this row.
    fn includes(self, same_node: bool) -> bool {
        match self {
            Position::PodBeside => same_node,
            Position::PodElsewhere => !same_node,
            Position::Host | Position::Outside => true,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn proof() -> Proof {
        let pod = |name: &str, node: &str| Pod {
            name: name.into(),
            node: node.into(),
            container: String::new(),
        };
        let service = Service {
            cluster_ips: vec!["10.96.0.9".into(), "fd00:10:96::9".into()],
            http_node_port: 30080,
            echo_node_port: 30900,
        };
        Proof::new(2, vec![pod("b", "n2"), pod("a", "n1")], service, 4)
    }

    fn outcome(index: usize, protocol: Protocol, counts: &[(&str, u32)]) -> Outcome {
        let answers = |count: &u32| Answers {
            count: *count,
            p50_us: 10.0,
        };
        let tally = Tally {
            sent: 4,
            replies: counts.iter().map(|(_, count)| count).sum(),
            p50_us: 10.0,
            backends: counts
                .iter()
                .map(|(name, count)| (name.to_string(), answers(count)))
                .collect(),
            errors: BTreeMap::new(),
        };
        Outcome {
            client: "client".into(),
            protocol,
            family: Family::Ipv4,
            tally,
            index,
        }
    }

    #[test]
    fn an_even_and_complete_run_has_no_fault() {
        assert!(
            proof()
                .faults(&[outcome(0, Protocol::Http, &[("a", 2), ("b", 2)])])
                .is_empty()
        );
    }

    #[test]
    fn a_lost_reply_is_a_fault() {
        assert!(
            proof().faults(&[outcome(0, Protocol::Udp, &[("a", 2), ("b", 1)])])[0]
                .contains("3 of 4 replies")
        );
    }

    #[test]
    fn a_backend_that_never_answers_tcp_is_a_fault() {
        assert!(
            proof().faults(&[outcome(0, Protocol::Http, &[("a", 4)])])[0].contains("differ by 4")
        );
    }

    #[test]
    fn uneven_udp_is_none() {
        assert!(
            proof()
                .faults(&[outcome(0, Protocol::Udp, &[("a", 4)])])
                .is_empty()
        );
    }

    #[test]
    fn an_answer_of_a_stranger_is_a_fault() {
        let faults = proof().faults(&[outcome(0, Protocol::Udp, &[("a", 2), ("stranger", 2)])]);
        assert!(faults[0].contains("no backend"));
    }

    #[test]
    fn a_pods_answers_are_split_by_where_the_backend_is() {
        let rows = proof().rows(&[outcome(0, Protocol::Http, &[("a", 1), ("b", 3)])]);
        let shown: Vec<_> = rows
            .iter()
            .map(|row| (row.position, row.counts.clone()))
            .collect();
        assert_eq!(
            shown,
            [
                ("pod beside the backend", vec![1, 0]),
                ("pod on another node", vec![0, 3])
            ]
        );
    }

    #[test]
    fn targets_are_the_cluster_ip_inside_and_the_node_port_outside() {
        let proof = proof();
        let target = |index: usize, protocol, family| {
            proof
                .target(&proof.clients[index], protocol, family)
                .unwrap()
        };
        assert_eq!(target(0, Protocol::Http, Family::Ipv4), "10.96.0.9:80");
        assert_eq!(
            target(1, Protocol::Udp, Family::Ipv6),
            "[fd00:10:96::9]:9000"
        );
        assert_eq!(
            target(2, Protocol::Http, Family::Ipv6),
            "[fd00:fa1e::11]:30080"
        );
        assert_eq!(
            target(5, Protocol::Udp, Family::Ipv4),
            "172.31.240.12:30900"
        );
    }
}
