//! `services`: ClusterIPs at growing numbers of services, beside kube-proxy's rules and plain routing.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use node_agent_maps::Dataplane;
use node_agent_overlay::Mode as OverlayMode;
use tests_figures::quantile;

use crate::Options;
use crate::agent::{self, Figures, Memory};
use crate::api_stub::Shape;
use crate::cell::{Cell, OTHER_NODE, SAME_NODE, Underlay, node_v4};
use crate::cgroup::Cgroup;
use crate::fairlead::{Setup, cluster_ips, install, node_port};
use crate::kube_proxy::Mode;
use crate::metric::Metric;
use crate::report::Row;
use crate::run::Bench;
use crate::server::PACKET_PORT;
use crate::session::{Comparison, Kind, Session};
use crate::way::{Source, Way};

const BENCH: &str = "services";
const SMALLEST: u16 = 10;
const USUAL: u16 = 1000;
const LARGE: u16 = 10_000;
const LARGEST: u16 = 30_000;
const MANY_ENDPOINTS: u32 = 10_000;
/// The measured ones among the services.
const MEASURED: u16 = 2;

const AGAINST_ROUTING: Kind = Kind::Target(&[
    (Metric::RequestResponse, 0.91),
    (Metric::Connect, 1.00),
    (Metric::PacketCpu, 0.74),
    (Metric::NewFlowCpu, 0.84),
]);
const AGAINST_NFTABLES: Kind = Kind::Target(&[
    (Metric::Connect, 0.74),
    (Metric::PacketCpu, 0.47),
    (Metric::NewFlowCpu, 0.17),
]);
const AGAINST_IPTABLES: Kind = Kind::Target(&[(Metric::NewFlowCpu, 0.03)]);
/// From the fewest services to the most.
const FLAT: Kind = Kind::Target(&[
    (Metric::RequestResponse, 1.02),
    (Metric::Connect, 1.02),
    (Metric::Transaction, 1.02),
    (Metric::PacketCpu, 1.02),
    (Metric::ManyFlowsCpu, 1.02),
    (Metric::NewFlowCpu, 1.02),
    (Metric::UnsegmentedTime, 1.02),
]);

/// A cell with our programs.
#[derive(Debug)]
struct Ours {
    /// As the rows name it: the number of services, or of endpoints.
    size: String,
    /// Of the measured service.
    endpoints: u32,
    cell: Cell,
    cgroup: Cgroup,
    dataplanes: Vec<Dataplane>,
}

/// A cell with kube-proxy's rules, or those that a kube-proxy laid.
#[derive(Debug)]
struct Rules {
    name: String,
    cell: Cell,
}

#[derive(Debug)]
struct Cells {
    routing: Cell,
    routing_again: Cell,
    ours: Vec<Ours>,
    rules: Vec<Rules>,
}

impl Ours {
    fn new(size: String, cell: Cell, services: u16, endpoints: u32) -> Result<Self> {
        let cgroup = Cgroup::new(&format!("services-{size}"))?;
        let name = format!("services-{size}");
        let setup = Setup {
            cgroup: Some(&cgroup),
            others: services - MEASURED,
            endpoints,
            ..Setup::new(&name, OverlayMode::Direct)
        };
        let dataplanes = install(&cell, &setup)?;
        Ok(Self {
            size,
            endpoints,
            cell,
            cgroup,
            dataplanes,
        })
    }

    fn packet_name(&self) -> String {
        format!("cluster-ip/{}", self.size)
    }

    fn socket_name(&self) -> String {
        format!("cluster-ip-socket/{}", self.size)
    }
}

impl Cells {
    /// `kube_proxy`: one that lays rules of its own beside those of the bench.
    fn new(kube_proxy: Option<&Path>) -> Result<Self> {
        let mut ours = Vec::new();
        for services in [SMALLEST, USUAL, LARGE, LARGEST] {
            let cell = Cell::new(Underlay::Routing)?;
            ours.push(Ours::new(services.to_string(), cell, services, 1)?);
        }
        let size = format!("{MANY_ENDPOINTS}-endpoints");
        ours.push(Ours::new(
            size,
            Cell::with_many_pods()?,
            SMALLEST,
            MANY_ENDPOINTS,
        )?);
        let mut rules = Vec::new();
        for (mode, kind, services) in [
            (Mode::Iptables, "iptables", SMALLEST),
            (Mode::Iptables, "iptables", LARGE),
            (Mode::Nftables, "nftables", SMALLEST),
            (Mode::Nftables, "nftables", USUAL),
        ] {
            let mut cell = Cell::new(Underlay::Routing)?;
            mode.lay(&mut cell, services)?;
            let name = format!("{kind}/{services}");
            rules.push(Rules { name, cell });
            if let Some(program) = kube_proxy {
                let mut cell = Cell::new(Underlay::Routing)?;
                mode.lay_by(program, &mut cell, services)?;
                let name = format!("kube-proxy-{kind}/{services}");
                rules.push(Rules { name, cell });
            }
        }
        Ok(Self {
            routing: Cell::new(Underlay::Routing)?,
            routing_again: Cell::new(Underlay::Routing)?,
            ours,
            rules,
        })
    }

    /// From the client pod to the service of the other node's pod.
    fn cluster_ip(&self) -> Session<'_> {
        let pod = OTHER_NODE.v4().into();
        let service = cluster_ips(OTHER_NODE)[0];
        let way = |name: &str, cell, to| Way::new(name, cell, to, OTHER_NODE);
        let mut ways = vec![
            way("routing", &self.routing, pod),
            way("routing-again", &self.routing_again, pod),
        ];
        let mut comparisons = vec![Comparison::new("routing-again", "routing", Kind::Noise)];
        for ours in &self.ours {
            let (packet, socket) = (ours.packet_name(), ours.socket_name());
            ways.push(way(&packet, &ours.cell, service).by(&ours.dataplanes));
            ways.push(
                way(&socket, &ours.cell, service)
                    .by(&ours.dataplanes)
                    .inside(&ours.cgroup),
            );
            // Connections to 10,000 addresses in turn cost the kernel itself more than to one.
            let kind = match ours.endpoints {
                1 => AGAINST_ROUTING,
                _ => Kind::Plain,
            };
            comparisons.push(Comparison::new(packet, "routing", kind));
            comparisons.push(Comparison::new(socket, "routing", kind));
        }
        for rules in &self.rules {
            ways.push(way(&rules.name, &rules.cell, service));
            comparisons.push(Comparison::new(&rules.name, "routing", Kind::Plain));
        }
        for path in ["cluster-ip", "cluster-ip-socket"] {
            let at = |size: u16| format!("{path}/{size}");
            let many = format!("{path}/{MANY_ENDPOINTS}-endpoints");
            comparisons.extend([
                Comparison::new(at(LARGEST), at(SMALLEST), FLAT),
                Comparison::new(many, at(SMALLEST), Kind::Plain),
            ]);
            for by in ["", "kube-proxy-"] {
                let (nftables, iptables) = (
                    format!("{by}nftables/{USUAL}"),
                    format!("{by}iptables/{LARGE}"),
                );
                if self.rules.iter().any(|rules| rules.name == nftables) {
                    comparisons.extend([
                        Comparison::new(at(USUAL), nftables, AGAINST_NFTABLES),
                        Comparison::new(at(LARGE), iptables, AGAINST_IPTABLES),
                    ]);
                }
            }
        }
        Session {
            ways,
            comparisons,
            metrics: &[
                Metric::RequestResponse,
                Metric::Connect,
                Metric::Transaction,
                Metric::PacketCpu,
                Metric::ManyFlowsCpu,
                Metric::NewFlowCpu,
                Metric::UnsegmentedTime,
            ],
            fewer_rounds: 2,
        }
    }

    /// From outside to a NodePort of node 1, whose backend is on one node or the other.
    fn node_port(&self) -> Session<'_> {
        let mut ways = Vec::new();
        let mut comparisons = Vec::new();
        for (place, backend) in [("same-node", SAME_NODE), ("other-node", OTHER_NODE)] {
            let way = |name: &str, cell, to: IpAddr, port| Way {
                source: Source::Outside { port },
                ..Way::new(format!("{name}/{place}"), cell, to, backend)
            };
            let pod = backend.v4().into();
            let (node, port) = (node_v4(1).into(), node_port(backend));
            let routing = format!("routing/{place}");
            ways.push(way("routing", &self.routing, pod, PACKET_PORT));
            ways.push(way("routing-again", &self.routing_again, pod, PACKET_PORT));
            comparisons.push(Comparison::new(
                format!("routing-again/{place}"),
                &routing,
                Kind::Noise,
            ));
            for ours in self.ours.iter().filter(|o| o.size == USUAL.to_string()) {
                let name = format!("node-port/{USUAL}");
                ways.push(way(&name, &ours.cell, node, port).by(&ours.dataplanes));
                comparisons.push(Comparison::new(
                    format!("{name}/{place}"),
                    &routing,
                    Kind::Plain,
                ));
            }
            for rules in &self.rules {
                let name = format!("node-port-{}", rules.name);
                ways.push(way(&name, &rules.cell, node, port));
                comparisons.push(Comparison::new(
                    format!("{name}/{place}"),
                    &routing,
                    Kind::Plain,
                ));
            }
        }
        Session {
            ways,
            comparisons,
            metrics: &[Metric::PacketCpu, Metric::NewFlowCpu],
            fewer_rounds: 3,
        }
    }
}

/// Half of the bench.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Part {
    /// What the agent costs: half a minute.
    Agent,
    /// What packets and connections cost.
    Packets,
}

/// Runs the bench, or a part of it, prints its table and writes its rows.
pub fn run(options: &Options, only: Option<Part>, kube_proxy: Option<&Path>) -> Result<()> {
    let mut bench = Bench::start(BENCH, options)?;
    let mut agents = Vec::new();
    if only != Some(Part::Packets) {
        agents = agent_rows()?;
        bench.note("agents");
    }
    if only != Some(Part::Agent) {
        let cells = Cells::new(kube_proxy)?;
        bench.measure(&[cells.cluster_ip(), cells.node_port()])?;
    }
    bench.outcome.rows.extend(agents);
    bench.finish_by_metric()
}

/// What the agent costs at each size.
fn agent_rows() -> Result<Vec<Row>> {
    let three = |services: u16| Shape {
        services: services.into(),
        slices: 1,
        endpoints: 3,
    };
    let mut rows = Vec::new();
    for services in [SMALLEST, USUAL, LARGE, LARGEST] {
        let name = services.to_string();
        rows.extend(agent_at(&name, three(services), services == LARGEST)?);
    }
    let one = Shape {
        services: 1,
        slices: MANY_ENDPOINTS / 100,
        endpoints: 100,
    };
    let name = format!("{MANY_ENDPOINTS}-endpoints");
    rows.extend(agent_at(&name, one, false)?);
    Ok(rows)
}

fn agent_at(size: &str, shape: Shape, has_limits: bool) -> Result<Vec<Row>> {
    let Figures {
        from_lists,
        from_start,
        mut changes,
        memory,
        maps,
    } = agent::measure(shape).with_context(|| format!("measure the agent at {size}"))?;
    let Memory {
        resident,
        resident_peak,
        anonymous,
    } = memory;
    changes.sort_by(f64::total_cmp);
    let case = format!("agent/{size}");
    let row = |metric, unit, value, limit: Option<f64>| {
        Row::absolute(
            BENCH,
            &case,
            metric,
            unit,
            value,
            limit.filter(|_| has_limits),
        )
    };
    let (p50, p99) = (quantile(&changes, 0.5), quantile(&changes, 0.99));
    Ok(vec![
        row("programming_p50", "ms", p50, None),
        row("programming_p99", "ms", p99, Some(5.0)),
        row("cold_start_from_lists", "s", from_lists, Some(1.0)),
        row("cold_start", "s", from_start, None),
        row("agent_memory", "MiB", resident, Some(100.0)),
        row("agent_memory_anonymous", "MiB", anonymous, None),
        row("agent_memory_peak", "MiB", resident_peak, None),
        row("map_memory", "MiB", maps, Some(64.0)),
    ])
}
