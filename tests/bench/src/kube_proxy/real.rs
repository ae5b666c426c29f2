//! A kube-proxy on a node of a cell: started for as long as it takes to lay its rules, which it leaves behind.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{CLUSTER_CIDR, Mode, ServicePort};
use crate::api_stub::{ApiStub, Objects, meta};
use crate::cell::{CLIENT, Cell, OTHER_NODE, node_v4, pod_cidr_v4};
use crate::fairlead::cluster_ips;
use crate::server::ANSWER_PORT;

/// Ten thousand services take `iptables` some seconds.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const CONNECT: Duration = Duration::from_millis(500);

/// What one node's kube-proxy asks for.
struct World {
    node: Value,
    /// The ports of each Service.
    services: Vec<Vec<ServicePort>>,
}

/// Ended when dropped.
struct Running(Child);

pub(super) fn lay(
    program: &Path,
    mode: Mode,
    cell: &Cell,
    number: u8,
    ports: Vec<ServicePort>,
) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let api = ApiStub::new(World::new(number, ports));
    let node = cell.node(number);
    let listener = node.run(ApiStub::listener)?;
    let address = runtime.block_on(api.serve(listener))?;
    let log = tempfile::NamedTempFile::new()?;
    let tools = legacy_tools()?;
    let mut command = command(program, mode, number, address);
    command
        .env("PATH", tools.path())
        .stdin(Stdio::null())
        .stdout(log.reopen()?)
        .stderr(log.reopen()?);
    let mut running = node.run(|| Ok(Running(command.spawn()?)))?;
    wait(&mut running, cell, number)
        .with_context(|| std::fs::read_to_string(log.path()).unwrap_or_default())
}

fn command(program: &Path, mode: Mode, number: u8, api: SocketAddr) -> Command {
    let mode = match mode {
        Mode::Iptables => "iptables",
        Mode::Nftables => "nftables",
    };
    let mut command = Command::new(program);
    command
        .arg(format!("--master=http://{api}"))
        .arg(format!("--hostname-override=n{number}"))
        .arg(format!("--proxy-mode={mode}"))
        .arg(format!("--cluster-cidr={CLUSTER_CIDR}"))
        // Limits of the whole machine, which are not a namespace's to set.
        .args(["--conntrack-max-per-core=0", "--conntrack-min=0"]);
    command
}

/// A folder for `PATH` with `iptables` of the same kind as the bench's own rules are of, and with `nft`.
fn legacy_tools() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let link = |name: &str, target: &str| {
        let mut found = std::env::split_paths(&path).map(|folder| folder.join(target));
        let found = found.find(|file| file.exists());
        let found = found.with_context(|| format!("find {target}"))?;
        Ok::<_, anyhow::Error>(symlink(found, folder.path().join(name))?)
    };
    for family in ["iptables", "ip6tables"] {
        for tool in ["", "-save", "-restore"] {
            link(
                &format!("{family}{tool}"),
                &format!("{family}-legacy{tool}"),
            )?;
        }
    }
    link("nft", "nft")?;
    Ok(folder)
}

/// Until the node itself reaches a backend by its service: all rules come at once.
fn wait(running: &mut Running, cell: &Cell, number: u8) -> Result<()> {
    let service = SocketAddr::new(cluster_ips(OTHER_NODE)[0], ANSWER_PORT);
    let from = if number == CLIENT.node {
        &cell.client
    } else {
        &cell.other_node
    };
    let begun = Instant::now();
    loop {
        if let Some(status) = running.0.try_wait()? {
            bail!("it ended with {status}");
        }
        if from.run(|| Ok(TcpStream::connect_timeout(&service, CONNECT).is_ok()))? {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("{service} is not reached after {PATIENCE:?}");
        }
        thread::sleep(LOOK_EVERY);
    }
}

impl World {
    fn new(number: u8, ports: Vec<ServicePort>) -> Self {
        let name = format!("n{number}");
        let mut services: Vec<Vec<ServicePort>> = Vec::new();
        for port in ports {
            match services.last_mut() {
                Some(last) if last[0].cluster_ip == port.cluster_ip => last.push(port),
                _ => services.push(vec![port]),
            }
        }
        let node = json!({
            "metadata": {"name": name, "resourceVersion": "1000", "labels": {"kubernetes.io/hostname": name}},
            "spec": {"podCIDR": pod_cidr_v4(number), "podCIDRs": [pod_cidr_v4(number)]},
            "status": {"addresses": [{"type": "InternalIP", "address": node_v4(number)}]},
        });
        Self { node, services }
    }

    fn service(&self, number: u32) -> Value {
        let ports = &self.services[number as usize];
        let shown: Vec<Value> = ports
            .iter()
            .map(|port| json!({"name": port_name(port), "protocol": port.protocol.to_uppercase(), "port": port.port,
                "targetPort": port.port, "nodePort": port.node_port}))
            .collect();
        let has_node_port = ports.iter().any(|port| port.node_port.is_some());
        json!({
            "metadata": object_meta(ports, number, &json!({})),
            "spec": {"type": if has_node_port { "NodePort" } else { "ClusterIP" },
                "clusterIP": ports[0].cluster_ip, "clusterIPs": [ports[0].cluster_ip], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "externalTrafficPolicy": if has_node_port { "Cluster" } else { "" }, "ports": shown},
            "status": {"loadBalancer": {}},
        })
    }

    fn slice(&self, number: u32) -> Value {
        let ports = &self.services[number as usize];
        let shown: Vec<Value> = ports
            .iter()
            .map(|port| json!({"name": port_name(port), "protocol": port.protocol.to_uppercase(), "port": port.port}))
            .collect();
        // All ports of a service have the same endpoints.
        let endpoints: Vec<Value> = ports[0]
            .endpoints
            .iter()
            .map(|(ip, _)| json!({"addresses": [ip], "conditions": {"ready": true}, "nodeName": node_of(*ip)}))
            .collect();
        let labels = json!({"kubernetes.io/service-name": object_name(ports)});
        json!({"metadata": object_meta(ports, number, &labels), "addressType": "IPv4", "ports": shown, "endpoints": endpoints})
    }
}

impl Objects for World {
    fn count(&self, plural: &str) -> u32 {
        match plural {
            "services" | "endpointslices" => self.services.len() as u32,
            "nodes" => 1,
            _ => 0,
        }
    }

    fn object(&self, plural: &str, number: u32) -> Value {
        match plural {
            "services" => self.service(number),
            "endpointslices" => self.slice(number),
            _ => self.node.clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn object_meta(ports: &[ServicePort], number: u32, labels: &Value) -> Value {
    meta(object_name(ports), number, labels)
}

/// Of `namespace/name:port`.
fn object_name(ports: &[ServicePort]) -> &str {
    let name = ports[0].name.split_once('/').map_or("", |(_, name)| name);
    name.split_once(':').map_or(name, |(name, _)| name)
}

fn port_name(port: &ServicePort) -> &str {
    port.name.split_once(':').map_or("", |(_, name)| name)
}

/// The name of the node whose pods have such addresses.
fn node_of(ip: std::net::Ipv4Addr) -> String {
    let [_, _, node, _] = ip.octets();
    match ip.octets() {
        [10, 244, ..] => format!("n{node}"),
        _ => "elsewhere".to_owned(),
    }
}
