//! A node for tests: a network namespace with a real dockerd, a real API server and the kubelet, all removed on drop.
//!
//! In place of the dataplane stands the kernel's own routing: the hook routes each pod's address to its link.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(dead_code, reason = "each test file uses its part")]

mod daemons;
pub mod kubectl;

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use daemons::{SERVER, start_client, start_dockerd, start_server, stop};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, PostParams},
};
use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns, unshare},
    unistd::Uid,
};
use node_agent_host::{HostDeviceSpec, HostPorts, Ipam, Network, PodCidr};
use node_agent_kubelet::{Kubelet, KubeletConfig, PodHook, PodNetwork, PodWiring};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

pub const NODE: &str = "node-1";
/// The kubelet's own API: the namespace is the test's own.
pub const API_PORT: u16 = 10250;

/// The machinery of one node; the kubelet is started by [`TestNode::start_kubelet`].
pub struct TestNode {
    directory: tempfile::TempDir,
    dockerd: Child,
    server: Child,
    /// Scheduler and controllers, where a test wants them.
    clients: Vec<Child>,
    pub client: Client,
    pub ipam: Arc<Ipam>,
    pub network: Network,
    pub calls: Calls,
    kubelet: Option<(Kubelet, Vec<JoinHandle<()>>)>,
}

/// What the kubelet has told its hook: `wired NAME`, `unwired NAME`.
pub type Calls = Arc<Mutex<Vec<String>>>;

/// Runs `test` on a thread in a namespace of its own, or says why it cannot.
pub fn on_a_node(test: impl AsyncFnOnce(&mut TestNode) + Send) {
    if !Uid::effective().is_root() {
        return eprintln!("skipped: making network namespaces and running dockerd need root");
    }
    if Command::new("dockerd").arg("--version").output().is_err() {
        return eprintln!("skipped: there is no dockerd; `cargo xtask setup` installs it");
    }
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut node = TestNode::new().await;
                test(&mut node).await;
                node.stop_kubelet().await;
            });
        });
        inside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

impl TestNode {
    async fn new() -> Self {
        ip("link set lo up");
        let directory = tempfile::tempdir().unwrap();
        let dockerd = start_dockerd(directory.path());
        let server = start_server(directory.path());
        let mut node = Self {
            client: client(),
            ipam: Arc::new(Ipam::open(&directory.path().join("ipam"), cidrs()).unwrap()),
            network: Network::connect().unwrap(),
            calls: Calls::default(),
            kubelet: None,
            clients: Vec::new(),
            directory,
            dockerd,
            server,
        };
        node.wait_until("dockerd answers", Duration::from_secs(60), async |node| {
            node.docker(&["version"]).is_ok()
        })
        .await;
        node.import_images();
        let gateways = cidrs().iter().map(PodCidr::gateway).collect();
        node.network
            .ensure_host_device(&HostDeviceSpec {
                mtu: 1450,
                gateways,
            })
            .await
            .unwrap();
        node.wait_for_server().await;
        node
    }

    pub fn stop_server(&mut self) {
        stop(&mut self.server);
    }

    /// Starts the API server again on the same data.
    pub async fn start_server(&mut self) {
        self.server = start_server(self.directory.path());
        self.wait_for_server().await;
    }

    /// Starts the scheduler and the controllers: the rest of a control plane.
    pub fn start_clients(&mut self) {
        let roles = ["scheduler", "controllers"];
        self.clients = roles
            .map(|role| start_client(self.directory.path(), role))
            .into();
    }

    async fn wait_for_server(&mut self) {
        self.wait_until(
            "the API server answers",
            Duration::from_secs(60),
            async |node| node.pods().list(&ListParams::default()).await.is_ok(),
        )
        .await;
    }

    /// Starts a kubelet as an agent would, beside whatever an earlier one has left.
    pub async fn start_kubelet(&mut self) -> Kubelet {
        let config = KubeletConfig {
            node_name: NODE.to_owned(),
            node_ips: vec!["127.0.0.1".parse().unwrap()],
            docker_socket: self.path("docker.sock"),
            pause_image: "fairlead/pause:latest".to_owned(),
            api_port: Some(API_PORT),
            state_dir: self.path("state"),
        };
        let kubelet = Kubelet::connect(config, self.client.clone()).await.unwrap();
        kubelet.register_node().await.unwrap();
        let wiring = PodWiring {
            network: self.network.clone(),
            ipam: self.ipam.clone(),
            host_ports: Arc::new(HostPorts::open(&self.path("host-ports")).unwrap()),
            mtu: Arc::new(1450.into()),
            hook: Arc::new(KernelRoutes {
                calls: self.calls.clone(),
            }),
        };
        let heartbeats = tokio::spawn({
            let kubelet = kubelet.clone();
            async move {
                kubelet.run_heartbeats().await;
            }
        });
        let pods = tokio::spawn({
            let kubelet = kubelet.clone();
            async move {
                let error = kubelet.run_pods(wiring).await.unwrap_err();
                panic!("the kubelet has stopped: {error:#}");
            }
        });
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let listener = TcpListener::bind((loopback, API_PORT)).await.unwrap();
        let api = tokio::spawn({
            let kubelet = kubelet.clone();
            async move {
                let error = kubelet.serve(listener, vec![loopback]).await.unwrap_err();
                panic!("the kubelet serves no more: {error:#}");
            }
        });
        self.kubelet = Some((kubelet.clone(), vec![heartbeats, pods, api]));
        kubelet
    }

    /// Stops the kubelet at once, as a kill would.
    pub async fn stop_kubelet(&mut self) {
        for task in self.kubelet.take().into_iter().flat_map(|(_, tasks)| tasks) {
            task.abort();
            match task.await {
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                _ => {}
            }
        }
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Makes a pod on this node from the `spec` of its manifest.
    pub async fn create_pod(&self, name: &str, mut spec: Value) -> Pod {
        spec["nodeName"] = json!(NODE);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "default", "labels": { "app": name } },
            "spec": spec,
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.pods()
            .create(&PostParams::default(), &pod)
            .await
            .unwrap()
    }

    pub async fn delete_pod(&self, name: &str, grace: u32) {
        let parameters = DeleteParams {
            grace_period_seconds: Some(grace),
            ..DeleteParams::default()
        };
        self.pods().delete(name, &parameters).await.unwrap();
    }

    /// The pod's status as JSON; null for a pod that is gone.
    pub async fn status(&self, name: &str) -> Value {
        let pod = self.pods().get_opt(name).await.unwrap();
        serde_json::to_value(pod.and_then(|pod| pod.status)).unwrap()
    }

    /// Waits until the status of a pod is as wanted; fails with the last status otherwise.
    pub async fn wait_for(
        &self,
        name: &str,
        what: &str,
        seconds: u64,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            let status = self.status(name).await;
            if wanted(&status) {
                return status;
            }
            assert!(
                Instant::now() < end,
                "pod {name}: not {what} within {seconds} s: {status:#}\n{}",
                self.docker(&["ps", "-a"]).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub async fn wait_gone(&self, name: &str, seconds: u64) {
        self.wait_for(name, "gone", seconds, |status| status.is_null())
            .await;
    }

    pub async fn wait_ready(&self, name: &str) -> Value {
        self.wait_for(name, "ready", 60, |status| {
            condition(status, "Ready") == "True"
        })
        .await
    }

    pub async fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut holds: impl AsyncFnMut(&Self) -> bool,
    ) {
        let end = Instant::now() + limit;
        while !holds(self).await {
            assert!(
                Instant::now() < end,
                "not within {} s: {what}\n{}",
                limit.as_secs(),
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Runs the docker client against this node's daemon.
    pub fn docker(&self, arguments: &[&str]) -> Result<String, String> {
        let socket = format!("unix://{}", self.path("docker.sock").display());
        let output = Command::new("docker")
            .args(["-H", &socket])
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        }
    }

    /// The ids of the pod's containers, its sandbox included.
    pub fn containers(&self, pod: &Pod) -> Vec<String> {
        let filter = format!(
            "label=io.kubernetes.pod.uid={}",
            pod.metadata.uid.as_deref().unwrap()
        );
        let ids = self
            .docker(&["ps", "-aq", "--no-trunc", "--filter", &filter])
            .unwrap();
        let mut ids: Vec<String> = ids.lines().map(str::to_owned).collect();
        ids.sort();
        ids
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn logs(&self) -> String {
        [
            "dockerd.log",
            "server.log",
            "scheduler.log",
            "controllers.log",
        ]
        .map(|name| {
            let text = fs::read_to_string(self.path(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(15).collect();
            format!(
                "{name}:\n{}\n",
                lines.into_iter().rev().collect::<Vec<_>>().join("\n")
            )
        })
        .concat()
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some((_, tasks)) = self.kubelet.take() {
            tasks.iter().for_each(JoinHandle::abort);
        }
        if let Ok(ids) = self.docker(&["ps", "-aq"]) {
            let ids: Vec<&str> = ids.lines().collect();
            if !ids.is_empty() {
                let _ = self.docker(&[&["rm", "-f"], ids.as_slice()].concat());
            }
        }
        let servers = [&mut self.server, &mut self.dockerd];
        self.clients.iter_mut().chain(servers).for_each(stop);
        // What dockerd leaves mounted would keep the directory from being removed.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| Path::new(point).starts_with(self.directory.path())) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
}

/// Routes pods by the kernel, in place of the dataplane.
struct KernelRoutes {
    calls: Calls,
}

#[async_trait]
impl PodHook for KernelRoutes {
    async fn pod_wired(&self, pod: &PodNetwork) -> anyhow::Result<()> {
        for address in &pod.ips {
            ip(&format!(
                "neigh replace {address} lladdr {} dev {}",
                pod.pod_mac, pod.ifname
            ));
            ip(&format!("route replace {address} dev {}", pod.ifname));
        }
        // That no container runs yet is the promise that is kept to the dataplane.
        self.calls
            .lock()
            .unwrap()
            .push(format!("wired {}", pod.name));
        Ok(())
    }

    async fn pod_unwired(&self, pod: &PodNetwork) -> anyhow::Result<()> {
        self.calls
            .lock()
            .unwrap()
            .push(format!("unwired {}", pod.name));
        Ok(())
    }
}

/// The status of a condition; empty if there is none.
pub fn condition<'a>(status: &'a Value, type_: &str) -> &'a str {
    let conditions = status["conditions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let found = conditions
        .iter()
        .find(|condition| condition["type"] == type_);
    found
        .and_then(|condition| condition["status"].as_str())
        .unwrap_or_default()
}

pub fn cidrs() -> Vec<PodCidr> {
    ["10.244.1.0/24", "fd00:10:244:1::/64"]
        .map(|text| PodCidr::new(text.parse().unwrap()).unwrap())
        .into()
}

/// A GET from the node: the body of the answer, or why there is none.
pub fn get(address: IpAddr, port: u16) -> Result<String, String> {
    let exchange = || -> std::io::Result<String> {
        let limit = Duration::from_secs(3);
        let mut stream = TcpStream::connect_timeout(&(address, port).into(), limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|error| error.to_string())?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.trim().to_owned()),
        _ => Err(answer),
    }
}

pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `work` on a thread in the network namespace at `path`.
pub fn in_netns<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    let target = File::open(path).unwrap();
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(target.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        inside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn client() -> Client {
    let config = Config::new(format!("http://{SERVER}").parse().unwrap());
    Client::try_from(config).unwrap()
}
