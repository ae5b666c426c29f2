//! `fairlead` on the pinned maps of real nodes with real connections, no agent running.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod cleanup;
mod reading;
mod static_mode;
mod trace;

use std::{ffi::OsString, net::SocketAddr, path::Path};

use ebpf_abi::{Family, ServiceName, name_policy};
use node_agent_model::{MapOp, PackedName};
use serde_json::Value;
use tests_testkit::{Cluster, Pod, Protocol, ServiceSpec};

/// Runs `fairlead` on these pins; what it wrote, or why it failed.
fn fairlead(pin_dir: &Path, args: &[&str]) -> Result<String, String> {
    let mut out = Vec::new();
    let args = ["fairlead", "--pin-dir", pin_dir.to_str().unwrap()]
        .into_iter()
        .chain(args.iter().copied())
        .map(OsString::from);
    match node_agent_cli::run(args, &mut out) {
        Ok(()) => Ok(String::from_utf8(out).unwrap()),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// As [`fairlead`], its JSON.
fn json(pin_dir: &Path, args: &[&str]) -> Value {
    let text = fairlead(pin_dir, &[args, &["-o", "json"]].concat()).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Two nodes; a client on the first, a backend on each, and Services `default/web` (TCP, port `http`) and `default/dns`
/// (UDP) in front of them, in the family of `vip`.
struct Stage {
    cluster: Cluster,
    client: Pod,
    servers: [Pod; 2],
    backends: [SocketAddr; 2],
    vip: SocketAddr,
}

impl Stage {
    fn new(vip: &str) -> Self {
        let mut cluster = Cluster::new(2).unwrap();
        let client = cluster.add_pod(0).unwrap();
        let servers = [0, 1].map(|node| cluster.add_pod(node).unwrap());
        let vip: SocketAddr = vip.parse().unwrap();
        let backends = servers
            .each_ref()
            .map(|pod| SocketAddr::new(pod.ip_for(vip.ip()), 8080));
        let node = cluster.nodes[0].ip_for(vip.ip());
        let web = ServiceSpec::tcp(vip, backends).with_node_port(node, 30080);
        let dns = ServiceSpec::udp(vip, backends);
        let family = if vip.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        for (spec, name, port, protocol) in [
            (&web, "web", "http", Protocol::Tcp),
            (&dns, "dns", "", Protocol::Udp),
        ] {
            let spec = cluster.publish(spec).unwrap();
            let name = ServiceName::new(
                "default",
                name,
                port,
                protocol.number(),
                name_policy::CLUSTER,
                family,
            );
            let name = Some(PackedName::from(&name));
            let op = MapOp::ServiceName { id: spec.id, name };
            cluster.nodes[0].apply(&[op]).unwrap();
        }
        Self {
            cluster,
            client,
            servers,
            backends,
            vip,
        }
    }

    fn pin_dir(&self) -> std::path::PathBuf {
        self.cluster.nodes[0].pin_dir()
    }

    fn client_addr(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.client.ip_for(self.vip.ip()), port)
    }
}
