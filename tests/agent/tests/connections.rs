//! Connections that were balanced when their socket connected: counted by Service, and closed when their backend is gone.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::Method;
use serde_json::{Value, json};
use tests_agent::{Agent, Api, Pod, WebServer, eventually, without_root};
use tests_testkit::{NetNs, Underlay};

const PORT: u16 = 8080;
const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// A node that closes connections to backends that are gone, and a Service of two pods, in both families.
struct Stage {
    agent: Agent,
    api: Api,
    pods: [(Pod, WebServer); 2],
    addresses: Vec<IpAddr>,
    _underlay: Underlay,
}

/// A process in a network namespace, as a pod has one.
struct Process(Child);

#[test]
fn connections_of_pods_and_of_the_node_to_a_backend_that_is_gone_are_closed_and_others_go_on() {
    if without_root() {
        return;
    }
    let stage = Stage::new("--close-gone-connections=true").unwrap();
    let client = stage.agent.pod("client").unwrap();
    let _process = Process::in_namespace(&client.netns);
    for (place, what) in [
        (&client.netns, "a pod"),
        (&stage.agent.machine().netns, "the node"),
    ] {
        for &ip in &stage.addresses {
            stage.publish(&[0, 1]).unwrap();
            let to = SocketAddr::new(ip, 80);
            let [mut leaving, mut staying] = stage.one_to_each(place, to).unwrap();
            // A pod that ends and still serves keeps its connections.
            stage.publish(&[1]).unwrap();
            let mut byte = [0];
            let error = leaving.read(&mut byte).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{what} to {to}");
            assert_eq!(talk(&mut staying).unwrap(), "web-1", "{what} to {to}");
            println!("{what} to {to}: closed");
        }
    }
    eventually("they are counted", || {
        let closed = metric(&stage.agent, "fairlead_connections_closed_total")?;
        ensure!(closed == Some(4), "{closed:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn nothing_is_closed_unless_it_is_asked_for_and_connections_are_counted_by_service() {
    if without_root() {
        return;
    }
    let stage = Stage::new("--close-gone-connections=false").unwrap();
    let client = stage.agent.pod("client").unwrap();
    let to = SocketAddr::new(stage.addresses[0], 80);
    let [mut leaving, staying] = stage.one_to_each(&client.netns, to).unwrap();
    // One more, packet by packet: this thread's sockets are not in the node's control group.
    let packets = client.netns.run(|| TcpStream::connect(to)).unwrap();
    let series = r#"fairlead_service_connections{namespace="default",service="web"}"#;
    let counted = |expected: i64| {
        eventually("the count", || {
            let count = metric(&stage.agent, series)?;
            ensure!(count == Some(expected), "{count:?}, and not {expected}");
            Ok(())
        })
    };
    counted(3).unwrap();
    stage.publish(&[1]).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(talk(&mut leaving).unwrap(), "web-0");
    drop((leaving, staying));
    // What went packet by packet is remembered for a while.
    counted(1).unwrap();
    drop(packets);
}

impl Stage {
    fn new(flag: &str) -> Result<Self> {
        let underlay = Underlay::new(1500)?;
        let api = Api::start(&underlay)?;
        let cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64"];
        let agent = Agent::node(&underlay, &api, 1, &cidrs, &[flag])?;
        let pod = |name: &str| -> Result<(Pod, WebServer)> {
            let pod = agent.pod(name)?;
            let server = WebServer::start(&pod.netns, PORT, name)?;
            Ok((pod, server))
        };
        let pods = [pod("web-0")?, pod("web-1")?];
        let service = json!({"metadata": {"name": "web"},
            "spec": {"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80, "targetPort": PORT}]}});
        let service = api.call(Method::POST, SERVICES, Some(service))?;
        let ips = service["spec"]["clusterIPs"]
            .as_array()
            .context("no clusterIPs")?;
        let ips = ips
            .iter()
            .map(|ip| Ok(ip.as_str().unwrap_or_default().parse()?));
        let addresses = ips.collect::<Result<_>>()?;
        for (family, kind) in ["IPv4", "IPv6"].iter().enumerate() {
            let slice = json!({
                "metadata": {"name": format!("web-{family}"), "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": kind, "endpoints": [], "ports": [{"name": "", "port": PORT, "protocol": "TCP"}],
            });
            api.call(Method::POST, SLICES, Some(slice))?;
        }
        let stage = Self {
            agent,
            api,
            pods,
            addresses,
            _underlay: underlay,
        };
        stage.publish(&[0, 1])?;
        Ok(stage)
    }

    /// Puts these pods, and no others, behind the Service.
    fn publish(&self, pods: &[usize]) -> Result<()> {
        for family in 0..2 {
            let endpoint = |&pod: &usize| json!({"addresses": [self.pods[pod].0.ips[family]], "nodeName": "n1", "conditions": {"ready": true}});
            let endpoints: Vec<Value> = pods.iter().map(endpoint).collect();
            let path = format!("{SLICES}/web-{family}");
            self.api
                .call(Method::PATCH, &path, Some(json!({"endpoints": endpoints})))?;
        }
        Ok(())
    }

    /// Connections by the socket programs, one to each pod: they come in turn.
    fn one_to_each(&self, place: &NetNs, to: SocketAddr) -> Result<[TcpStream; 2]> {
        eventually("a connection to each", || {
            let mut found = [None, None];
            for _ in 0..2 {
                let mut stream = place.run(|| {
                    self.agent.cgroup().enter()?;
                    Ok::<_, anyhow::Error>(TcpStream::connect_timeout(&to, Duration::from_secs(1))?)
                })?;
                stream.set_read_timeout(Some(Duration::from_secs(20)))?;
                let index = usize::from(talk(&mut stream)? == "web-1");
                found[index] = Some(stream);
            }
            match found {
                [Some(first), Some(second)] => Ok([first, second]),
                _ => anyhow::bail!("both went to one pod"),
            }
        })
    }
}

impl Process {
    fn in_namespace(netns: &NetNs) -> Self {
        let child = netns.run(|| Command::new("sleep").arg("600").spawn());
        Self(child.unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Which pod answers a line.
fn talk(stream: &mut TcpStream) -> Result<String> {
    stream.write_all(b"who\n")?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    let answer = String::from_utf8(answer)?;
    Ok(answer.split(' ').nth(1).context("no name")?.to_owned())
}

fn metric(agent: &Agent, series: &str) -> Result<Option<i64>> {
    let text = agent.get("/metrics")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    Ok(line.map(str::parse).transpose()?)
}
