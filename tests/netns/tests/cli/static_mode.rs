//! A whole agent without any API server: a file says the Services. What it does is seen from outside: by `fairlead`,
//! by a load balancer's question, and after its death.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tests_testkit::{Bpffs, Machine, Underlay, is_root, program, skip};

use crate::{cleanup::cleanup_args, fairlead, json};

const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 32123
  clusterIP: 10.96.0.10
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: shop
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.2], nodeName: n1}
- {addresses: [10.244.2.2], nodeName: n2}
"#;

/// A machine on which agents can be started.
struct Stage {
    machine: Machine,
    bpffs: Bpffs,
    directory: tempfile::TempDir,
    binary: PathBuf,
    _underlay: Underlay,
}

/// Killed when it is dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Stage {
    fn new() -> Self {
        let underlay = Underlay::new(1500).unwrap();
        Self {
            machine: underlay.machine(1).unwrap(),
            bpffs: Bpffs::new().unwrap(),
            directory: tempfile::tempdir().unwrap(),
            binary: program("node-agent-daemon", "fairlead-node-agent").unwrap(),
            _underlay: underlay,
        }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("services.yaml")
    }

    fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// By rename, as an operator's tool does it.
    fn write(&self, services: &str) {
        let new = self.directory.path().join("new");
        fs::write(&new, services).unwrap();
        fs::rename(&new, self.file()).unwrap();
    }

    fn command(&self) -> Command {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .unwrap();
        let ifindex = self.machine.ifindex;
        let uplink = self
            .machine
            .netns
            .run(|| nix::net::if_::if_indextoname(ifindex))
            .unwrap();
        let mut command = Command::new(&self.binary);
        command
            .args([
                "--node-name=n1",
                "--pod-cidr=10.244.1.0/24",
                "--socket-lb=false",
            ])
            .args([
                "--service-cidr=10.96.0.0/16",
                "--uplink",
                uplink.to_str().unwrap(),
            ])
            .arg("--services-file")
            .arg(self.file())
            .arg("--pin-dir")
            .arg(self.bpffs.pin_dir())
            .arg("--state-dir")
            .arg(self.state_dir())
            .stderr(log)
            .stdin(Stdio::null());
        command
    }

    fn start(&self) -> Agent {
        Agent(self.machine.netns.run(|| self.command().spawn()).unwrap())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn fairlead(&self, args: &[&str]) -> Result<String, String> {
        self.machine
            .netns
            .run(|| fairlead(&self.bpffs.pin_dir(), args))
    }

    fn json(&self, args: &[&str]) -> Value {
        self.machine.netns.run(|| json(&self.bpffs.pin_dir(), args))
    }

    /// Waits until the agent's answer to /readyz is as `good` wants it.
    fn wait_ready(&self, good: impl Fn(&str) -> bool) {
        let until = Instant::now() + Duration::from_secs(60);
        let mut last = String::new();
        while Instant::now() < until {
            if let Ok(text) = self.fairlead(&["status", "-o", "json"]) {
                let status: Value = serde_json::from_str(&text).unwrap();
                last = status["agent"]["readiness"].to_string();
                if good(last.trim_matches('"')) {
                    return;
                }
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("never ready: {last}\n{}", self.log());
    }

    /// The answer of a server on the machine.
    fn ask(&self, port: u16) -> String {
        self.machine.netns.run(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
    }
}

#[test]
fn an_agent_serves_a_file_of_services_and_what_it_left_serves_on_after_its_death() {
    if !is_root() {
        return skip("needs root");
    }
    let stage = Stage::new();
    stage.write(SERVICES);
    let agent = stage.start();
    stage.wait_ready(|answer| answer == "ok");
    let web = stage.json(&["service", "get", "shop/web"]);
    let backends = web["services"][0]["backends"].as_array().unwrap().clone();
    assert_eq!(backends.len(), 2, "{web:#}");
    assert_eq!(web["services"][0]["portName"], "http");
    // The file's Service is a load balancer's: it asks, and only endpoints of this node count.
    let answer = stage.ask(32123);
    assert!(
        answer.contains("200 OK") && answer.contains("\"localEndpoints\":1"),
        "{answer}"
    );
    let metrics = stage.machine.netns.run(|| {
        let mut stream = TcpStream::connect("127.0.0.1:10256").unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    for line in [
        "kubeproxy_sync_proxy_rules_service_changes_total 1\n",
        "fairlead_map_entries{map=\"frontend4",
        "fairlead_drop_packets_total{reason=\"no_backend\"} 0\n",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }

    // A second agent would write over the first.
    let second = stage.machine.netns.run(|| {
        stage
            .command()
            .args(["--listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .output()
    });
    let second = second.unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    let owner = format!("in use by process {}", agent.0.id());
    assert!(!second.status.success() && said.contains(&owner), "{said}");
    let refused = stage.fairlead(&["cleanup"]).unwrap_err();
    assert!(refused.contains(&owner), "{refused}");

    // A bad file keeps what was, and is told.
    stage.write(&SERVICES.replace("port: 80}", "port: 0}"));
    stage.wait_ready(|answer| answer.starts_with("ok") && answer.contains("spec.ports[0].port"));
    assert_eq!(stage.json(&["service", "get", "shop/web"]), web);
    // A good one is taken.
    stage.write(&SERVICES.replace("- {addresses: [10.244.1.2], nodeName: n1}\n", ""));
    stage.wait_ready(|answer| answer == "ok");
    let until = Instant::now() + Duration::from_secs(10);
    while !stage.ask(32123).contains("503") && Instant::now() < until {
        thread::sleep(Duration::from_millis(50));
    }
    assert!(stage.ask(32123).contains("\"localEndpoints\":0"));
    let now = stage.json(&["service", "get", "shop/web"]);
    assert_eq!(
        now["services"][0]["backends"].as_array().unwrap().len(),
        1,
        "{now:#}"
    );

    drop(agent);
    assert_eq!(stage.json(&["service", "get", "shop/web"]), now);
    let status = stage.json(&["status"]);
    assert!(status["agent"]["process"].is_null());
    assert!(
        status["programs"].as_array().unwrap().len() >= 2,
        "{status:#}"
    );
    let state_dir = stage.state_dir();
    let args = cleanup_args(stage.directory.path(), state_dir.to_str().unwrap());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let text = stage.fairlead(&args).unwrap();
    for part in ["from_network", "fairlead0", "ip_forward", "10.96.0.0/16"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!stage.bpffs.pin_dir().exists());
    assert!(!state_dir.exists(), "{text}");
}
