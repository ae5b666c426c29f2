//! Real etcd processes on loopback, one or a cluster of them, for tests.
#![allow(
    clippy::missing_panics_doc,
    reason = "a test that cannot start its etcd fails by panicking"
)]

use std::net::TcpListener;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{EtcdStore, Options};
use crate::conformance::{AnyStore, Place};

/// Far longer than a start takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PORTS: Range<u16> = 21_000..29_000;

/// An etcd cluster whose members run on ports of loopback with their data in a temporary folder; all of it ends and
/// goes when this is dropped.
#[derive(Debug)]
pub struct LocalEtcd {
    members: Vec<Member>,
    folder: TempDir,
}

/// One member; killed when dropped.
#[derive(Debug)]
struct Member {
    name: String,
    client_url: String,
    peer_url: String,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl LocalEtcd {
    /// Starts `size` members that form a cluster; they may not be ready yet. `arguments` go to each of them.
    ///
    /// # Panics
    /// When there is no `etcd` in PATH; `cargo xtask setup` installs it.
    #[must_use]
    pub fn start_with(size: usize, scheme: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ports = free_ports(size * 2);
        let mut members: Vec<Member> = (0..size)
            .map(|at| Member {
                name: format!("m{at}"),
                client_url: format!("{scheme}://127.0.0.1:{}", ports[2 * at]),
                peer_url: format!("http://127.0.0.1:{}", ports[2 * at + 1]),
                arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
                process: None,
            })
            .collect();
        let cluster: Vec<String> = members
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer_url))
            .collect();
        let cluster = cluster.join(",");
        for member in &mut members {
            member.arguments.extend([
                "--initial-cluster".into(),
                cluster.clone(),
                "--initial-cluster-token".into(),
                // Nobody else's members join.
                cluster.clone(),
            ]);
        }
        let mut etcd = Self { members, folder };
        (0..size).for_each(|at| etcd.revive(at));
        etcd
    }

    /// Starts `size` members and waits until they answer.
    pub async fn start(size: usize) -> Self {
        let etcd = Self::start_with(size, "http", &[]);
        for at in 0..size {
            etcd.wait_for(at).await;
        }
        etcd
    }

    /// All members' client URLs.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|m| m.client_url.clone()).collect()
    }

    /// How to reach all members, without compaction.
    #[must_use]
    pub fn options(&self) -> Options {
        Options {
            retention: None,
            ..Options::new(self.urls())
        }
    }

    /// How to reach one member only.
    #[must_use]
    pub fn options_of(&self, at: usize) -> Options {
        Options {
            servers: vec![self.members[at].client_url.clone()],
            ..self.options()
        }
    }

    /// Waits until the member answers, with a leader.
    pub async fn wait_for(&self, at: usize) {
        Self::wait(&self.options_of(at)).await;
    }

    /// Waits until one of these members answers, with a leader.
    pub async fn wait(options: &Options) {
        let begun = Instant::now();
        loop {
            match EtcdStore::connect(options.clone()).await {
                Ok(_) => return,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "etcd does not start: {error}"),
            }
        }
    }

    /// Ends a member at once, with SIGKILL.
    pub fn kill(&mut self, at: usize) {
        self.members[at].kill();
    }

    /// Ends a member and takes its data away.
    pub fn wipe(&mut self, at: usize) {
        self.kill(at);
        let data = self.folder.path().join(&self.members[at].name);
        std::fs::remove_dir_all(data).expect("the member had data");
    }

    /// Starts a member again on the data that it had.
    pub fn revive(&mut self, at: usize) {
        let data = self.folder.path().join(&self.members[at].name);
        let log = self
            .folder
            .path()
            .join(format!("{}.log", self.members[at].name));
        self.members[at].start(data, log);
    }

    /// Stops a member without ending it: its connections stay, and nothing answers.
    pub fn freeze(&self, at: usize) {
        self.members[at].signal(Signal::SIGSTOP);
    }

    /// Lets a frozen member go on.
    pub fn thaw(&self, at: usize) {
        self.members[at].signal(Signal::SIGCONT);
    }

    /// Which member leads.
    pub async fn leader(&self) -> usize {
        let begun = Instant::now();
        loop {
            for (at, url) in self.urls().iter().enumerate() {
                if leads(url).await {
                    return at;
                }
            }
            assert!(begun.elapsed() < PATIENCE, "no member leads");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Place for LocalEtcd {
    async fn new() -> Self {
        Self::start(1).await
    }

    async fn open(&mut self) -> AnyStore {
        let store = EtcdStore::connect(self.options()).await;
        Arc::new(store.expect("the member answers"))
    }

    async fn restart(&mut self, store: AnyStore) -> AnyStore {
        drop(store);
        for at in 0..self.members.len() {
            self.kill(at);
            self.revive(at);
        }
        for at in 0..self.members.len() {
            self.wait_for(at).await;
        }
        self.open().await
    }
}

async fn leads(url: &str) -> bool {
    let ask = async {
        let mut client = etcd_client::Client::connect([url], None).await?;
        let status = client.status().await?;
        let own = status.header().map(etcd_client::ResponseHeader::member_id);
        Ok::<_, etcd_client::Error>(own == Some(status.leader()))
    };
    matches!(
        tokio::time::timeout(Duration::from_secs(2), ask).await,
        Ok(Ok(true))
    )
}

/// Ports of loopback that are free now, below those that the system gives to connections: a member that is down for
/// a moment would lose such a port.
fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test processes that run side by side begin at different places.
    let begin = std::process::id().wrapping_mul(41);
    let candidates = (0..PORTS.len()).map(|_| {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let place = begin.wrapping_add(step) as usize % PORTS.len();
        PORTS.start + u16::try_from(place).expect("a place within a range of ports")
    });
    let free = candidates.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    let ports: Vec<u16> = free.take(count).collect();
    assert_eq!(ports.len(), count, "no ports are free in {PORTS:?}");
    ports
}

impl Member {
    fn start(&mut self, data: PathBuf, log: PathBuf) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("the folder is there");
        let process = Command::new("etcd")
            .args(["--name", &self.name])
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &self.client_url])
            .args(["--advertise-client-urls", &self.client_url])
            .args(["--listen-peer-urls", &self.peer_url])
            .args(["--initial-advertise-peer-urls", &self.peer_url])
            .args(&self.arguments)
            // Settings of the machine's own etcd are not for this one.
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd starts; `cargo xtask setup` installs it");
        self.process = Some(process);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("the member runs");
        let pid = i32::try_from(process.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("the member is our child");
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself, which is as good.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}
