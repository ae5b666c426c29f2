//! Ports of the node that lead to pods (`hostPort`), as a container runtime passes them on to the CNI plugin.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests_agent::{Agent, Api, Pod, eventually, without_root};
use tests_testkit::{Machine, NetNs, Underlay};

const PATIENCE: Duration = Duration::from_millis(1500);

fn mapping(host: u16, container: u16, protocol: &str, ip: &str) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol, "hostIP": ip})
}

fn with(mappings: &[Value]) -> Value {
    json!({"runtimeConfig": {"portMappings": mappings}})
}

/// A node with a pod whose ports 80 (TCP) and 53 (UDP) are the node's 8080 and 8053, a machine outside, and a second node
/// with a pod.
struct Scene {
    pod: Pod,
    other: Pod,
    outside: Machine,
    agents: [Agent; 2],
    api: Api,
    _underlay: Underlay,
}

impl Scene {
    fn start() -> Self {
        let underlay = Underlay::new(1500).unwrap();
        let api = Api::start(&underlay).unwrap();
        let agents = [1, 2].map(|number| {
            let cidrs = [
                format!("10.244.{number}.0/24"),
                format!("fd00:10:244:{number}::/64"),
            ];
            Agent::node(&underlay, &api, number, &[&cidrs[0], &cidrs[1]], &[]).unwrap()
        });
        let ports = with(&[mapping(8080, 80, "tcp", ""), mapping(8053, 53, "udp", "")]);
        let (pod, _) = agents[0].attach("web", &ports).unwrap();
        let other = agents[1].pod("c1").unwrap();
        Self {
            pod,
            other,
            outside: underlay.machine(9).unwrap(),
            agents,
            api,
            _underlay: underlay,
        }
    }

    fn node(&self) -> &Machine {
        self.agents[0].machine()
    }

    /// Port 8080 of the node, from everywhere; the pod sees who asks.
    fn tcp_everywhere(&self) -> Result<()> {
        let node = self.node();
        for ip in [IpAddr::from(node.ipv4), node.ipv6.into()] {
            let outside = self.outside.ip_for(ip);
            let seen = tcp(&self.pod, 80, &self.outside.netns, (ip, 8080).into())?;
            ensure!(seen == outside, "{outside} is seen as {seen}");
            tcp(&self.pod, 80, &self.other.netns, (ip, 8080).into())?;
        }
        Ok(())
    }
}

/// Connects from a namespace to an address that leads to the pod's port; who the pod sees.
fn tcp(pod: &Pod, port: u16, from: &NetNs, to: SocketAddr) -> Result<IpAddr> {
    let ip = pod.ips.iter().find(|ip| ip.is_ipv4() == to.is_ipv4());
    let server = pod.netns.run(|| TcpListener::bind((*ip.unwrap(), port)))?;
    server.set_nonblocking(true)?;
    let _client = from
        .run(|| TcpStream::connect_timeout(&to, PATIENCE))
        .with_context(|| format!("connect to {to}"))?;
    // The client is connected one packet before the server is.
    let (_, client) = eventually("the pod accepts", || Ok(server.accept()?))?;
    Ok(client.ip())
}

fn udp(pod: &Pod, port: u16, from: &NetNs, to: SocketAddr) -> Result<()> {
    let ip = pod.ips.iter().find(|ip| ip.is_ipv4() == to.is_ipv4());
    let server = pod.netns.run(|| UdpSocket::bind((*ip.unwrap(), port)))?;
    server.set_read_timeout(Some(PATIENCE))?;
    let client = from.run(|| {
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
            .parse()
            .unwrap();
        let client = UdpSocket::bind(any)?;
        client.connect(to)?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.send(b"?")?;
        std::io::Result::Ok(client)
    })?;
    let mut byte = [0];
    let (_, asked_by) = server.recv_from(&mut byte)?;
    server.send_to(b"!", asked_by)?;
    client.recv(&mut byte)?;
    ensure!(byte == *b"!", "{byte:?}");
    Ok(())
}

#[test]
fn a_port_of_the_node_leads_to_its_pod_over_a_restart_and_until_it_goes() {
    if without_root() {
        return;
    }
    let mut scene = Scene::start();
    scene.tcp_everywhere().unwrap();
    for ip in [IpAddr::from(scene.node().ipv4), scene.node().ipv6.into()] {
        udp(&scene.pod, 53, &scene.outside.netns, (ip, 8053).into()).unwrap();
    }
    scene.agents[0].kill().unwrap();
    scene.tcp_everywhere().unwrap();
    scene.agents[0].again().unwrap();
    scene.agents[0].wait_ready().unwrap();
    scene.tcp_everywhere().unwrap();
    let metrics = scene.agents[0].get("/metrics").unwrap();
    assert!(
        metrics.contains(r#"fairlead_map_failures_total{map="frontend4_v2"} 0"#),
        "{metrics}"
    );
    let plugin = scene.agents[0].plugin();
    let conf = plugin.conf("1.1.0", &json!({}));
    plugin.call("DEL", "web", "", &conf).unwrap();
    let refused = scene.outside.run(|| {
        let to = SocketAddr::from((scene.node().ipv4, 8080));
        TcpStream::connect_timeout(&to, PATIENCE)
    });
    assert_eq!(
        refused.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    assert_eq!(
        std::fs::read_dir(scene.agents[0].path("state/host-ports"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_port_is_given_once_and_the_second_pod_is_told_who_has_it() {
    if without_root() {
        return;
    }
    let scene = Scene::start();
    let agent = &scene.agents[0];
    let refused = |container: &str, mappings: &[Value]| -> String {
        let netns = NetNs::new().unwrap();
        let conf = agent.plugin().conf("1.1.0", &with(mappings));
        let error = agent
            .plugin()
            .refused("ADD", container, &netns.path(), &conf)
            .unwrap();
        assert!(netns.ifindex("eth0").is_err(), "it is not half attached");
        error.to_string()
    };
    let error = refused("c2", &[mapping(8080, 81, "tcp", "192.0.2.1")]);
    assert!(
        error.contains("8080/TCP") && error.contains("default/pod-web"),
        "{error}"
    );
    let error = refused("c2", &[mapping(0, 81, "tcp", "")]);
    assert!(error.contains("hostPort is 0"), "{error}");
    // Another protocol, another port; at one address of the node only.
    let (pod, _) = agent
        .attach(
            "c2",
            &with(&[
                mapping(8080, 53, "udp", ""),
                mapping(8081, 80, "tcp", "192.0.2.1"),
            ]),
        )
        .unwrap();
    let node = scene.node();
    udp(&pod, 53, &scene.outside.netns, (node.ipv4, 8080).into()).unwrap();
    tcp(&pod, 80, &scene.outside.netns, (node.ipv4, 8081).into()).unwrap();
    assert!(tcp(&pod, 80, &scene.outside.netns, (node.ipv6, 8081).into()).is_err());
    scene.tcp_everywhere().unwrap();
    // A port that a Service has.
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}});
    scene
        .api
        .ask(async move |client| {
            let services = kube::Api::default_namespaced(client);
            let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(service)?;
            services.create(&Default::default(), &service).await?;
            Ok(())
        })
        .unwrap();
    let dump = || -> Result<()> {
        let metrics = agent.get("/metrics")?;
        let entries = metrics
            .lines()
            .find_map(|line| line.strip_prefix(r#"fairlead_map_entries{map="frontend4_v2"} "#));
        // At each address of the node: those of both pods, and the Service's; its ClusterIP.
        let entries: u32 = entries.context("no metric")?.parse()?;
        ensure!(entries >= 9, "{entries}");
        Ok(())
    };
    eventually("the NodePort is served", dump).unwrap();
    let error = refused("c3", &[mapping(30080, 80, "tcp", "")]);
    assert!(
        error.contains("30080/TCP") && error.contains("Service default/web"),
        "{error}"
    );
    // What the runtime forgets is collected, and its port is free.
    let mut list = agent.plugin().conf("1.1.0", &json!({}));
    list["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth0"}]);
    agent.plugin().call("GC", "", "", &list).unwrap();
    let (pod, _) = agent
        .attach("c4", &with(&[mapping(8080, 80, "tcp", "")]))
        .unwrap();
    tcp(&pod, 80, &scene.outside.netns, (node.ipv4, 8080).into()).unwrap();
}
