//! Flannel's registry in a real etcd.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Client, PutOptions};
use node_agent_overlay::{
    Attributes, EtcdOptions, EtcdRegistry, Lease, LeaseEvent, OwnLease, Registry, RegistryError,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc;

const PREFIX: &str = "/coreos.com/network";

/// An etcd of one member on loopback; it ends when this is dropped.
struct Etcd {
    child: Child,
    client: u16,
    peer: u16,
    directory: TempDir,
}

impl Etcd {
    /// `None` where there is no etcd, with a word.
    fn start() -> Option<Self> {
        let free = || {
            TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port()
        };
        let directory = tempfile::tempdir().unwrap();
        let (client, peer) = (free(), free());
        match spawn(&directory, client, peer) {
            Ok(child) => Some(Self {
                child,
                client,
                peer,
                directory,
            }),
            Err(error) => {
                println!("skipped: etcd does not start, install etcd-server: {error}");
                None
            }
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn again(&mut self) {
        self.child = spawn(&self.directory, self.client, self.peer).unwrap();
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    async fn connect(&self) -> Client {
        let begun = Instant::now();
        loop {
            if let Ok(mut client) = Client::connect([self.url()], None).await
                && client.get("ready", None).await.is_ok()
            {
                return client;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "etcd does not answer"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// With flannel's configuration in it.
    async fn with_config(&self, config: serde_json::Value) -> Client {
        let mut client = self.connect().await;
        client
            .put(format!("{PREFIX}/config"), config.to_string(), None)
            .await
            .unwrap();
        client
    }

    fn options(&self) -> EtcdOptions {
        EtcdOptions::new(vec![self.url()])
    }

    async fn registry(&self) -> EtcdRegistry {
        EtcdRegistry::open(self.options()).await.unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have been killed by the test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(directory: &TempDir, client: u16, peer: u16) -> std::io::Result<Child> {
    let (client, peer) = (
        format!("http://127.0.0.1:{client}"),
        format!("http://127.0.0.1:{peer}"),
    );
    Command::new("etcd")
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("default={peer}")])
        .args(["--heartbeat-interval=50", "--election-timeout=500"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

fn config() -> serde_json::Value {
    json!({"Network": "10.64.0.0/10", "Backend": {"Type": "vxlan"}})
}

fn attributes(number: u32) -> Attributes {
    Attributes {
        public_ip: Some(Ipv4Addr::from(0xc000_0200 + number)),
        backend_type: "vxlan".to_owned(),
        backend_data: json!({"VNI": 1, "VtepMAC": format!("02:00:00:00:00:{:02x}", number % 256)}),
        ..Attributes::default()
    }
}

async fn acquire(registry: &EtcdRegistry, number: u32) -> OwnLease {
    registry
        .acquire(&attributes(number), &|reason| println!("waiting: {reason}"))
        .await
        .unwrap()
}

/// The keys and values below `PREFIX/subnets`, and whether they end.
async fn stored(client: &mut Client) -> BTreeMap<String, (String, bool)> {
    let options = etcd_client::GetOptions::new().with_prefix();
    let found = client
        .get(format!("{PREFIX}/subnets/"), Some(options))
        .await
        .unwrap();
    let pairs = found.kvs().iter().map(|pair| {
        let key = pair
            .key_str()
            .unwrap()
            .trim_start_matches(PREFIX)
            .to_owned();
        (
            key,
            (pair.value_str().unwrap().to_owned(), pair.lease() != 0),
        )
    });
    pairs.collect()
}

/// Follows a registry and keeps what it tells, until asked.
struct Follower {
    events: mpsc::Receiver<LeaseEvent>,
    leases: BTreeMap<String, Lease>,
    lists: usize,
}

impl Follower {
    fn of(registry: &Arc<EtcdRegistry>) -> Self {
        let (sender, events) = mpsc::channel(16);
        let registry = registry.clone();
        tokio::spawn(async move { registry.follow(&sender).await });
        Self {
            events,
            leases: BTreeMap::new(),
            lists: 0,
        }
    }

    async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        while !is_so(self) {
            let event = tokio::time::timeout(Duration::from_secs(30), self.events.recv()).await;
            match event
                .unwrap_or_else(|_| panic!("{what}: {:?}", self.leases))
                .unwrap()
            {
                LeaseEvent::Put(holder, lease, _) => {
                    self.leases.insert(holder, lease.unwrap());
                }
                LeaseEvent::Gone(holder, _) => {
                    self.leases.remove(&holder);
                }
                LeaseEvent::Listed => self.lists += 1,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_written_as_flannel_writes_it_and_taken_up_again() {
    let Some(etcd) = Etcd::start() else { return };
    let mut client = etcd
        .with_config(json!({"Network": "10.5.0.0/16", "SubnetMin": "10.5.52.0", "SubnetMax": "10.5.52.0",
            "EnableIPv6": true, "IPv6Network": "2001:cafe:42::/56", "IPv6SubnetMax": "2001:cafe:42:1::",
            "Backend": {"Type": "vxlan"}}))
        .await;
    let registry = etcd.registry().await;
    let own = acquire(&registry, 1).await;
    assert_eq!(own.holder, "10.5.52.0-24&2001:cafe:42:1::-64");
    let value = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#;
    let expected = BTreeMap::from([(format!("/subnets/{}", own.holder), (value.to_owned(), true))]);
    assert_eq!(stored(&mut client).await, expected);
    // The same node again, by its address; another finds nothing left.
    assert_eq!(acquire(&etcd.registry().await, 1).await, own);
    let options = EtcdOptions {
        public_ip: attributes(1).public_ip,
        ..etcd.options()
    };
    let again = EtcdRegistry::open(options).await.unwrap();
    assert_eq!(again.earlier(&|_| {}).await.unwrap(), attributes(1));
    let other = etcd.registry().await;
    let error = other.acquire(&attributes(2), &|_| {}).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::OutOfSubnets { .. }),
        "{error}"
    );
    let nobody = other
        .acquire(&Attributes::default(), &|_| {})
        .await
        .unwrap_err();
    assert!(matches!(nobody, RegistryError::NoPublicIp), "{nobody}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_is_missing_or_wrong_is_named() {
    let Some(etcd) = Etcd::start() else { return };
    let mut client = etcd.connect().await;
    let error = EtcdRegistry::open(etcd.options()).await.unwrap_err();
    assert!(
        error.to_string().contains("/coreos.com/network/config"),
        "{error}"
    );
    let key = format!("{PREFIX}/config");
    client
        .put(key, r#"{"Network":"10.5.0.0/16","SubnetLen":31}"#, None)
        .await
        .unwrap();
    let error = EtcdRegistry::open(etcd.options()).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("SubnetLen"), "{source}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_lives_as_long_as_it_is_renewed_and_comes_back_under_its_own_subnet() {
    let Some(etcd) = Etcd::start() else { return };
    let mut client = etcd.with_config(config()).await;
    let options = EtcdOptions {
        ttl: Duration::from_secs(3),
        renew_margin: Duration::from_secs(2),
        ..etcd.options()
    };
    let registry = Arc::new(EtcdRegistry::open(options).await.unwrap());
    let mut follower = Follower::of(&registry);
    let own = acquire(&registry, 1).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        let next = registry.renew(&attributes(1)).await.unwrap();
        tokio::time::sleep(next.min(Duration::from_secs(1))).await;
    }
    assert_eq!(
        stored(&mut client).await.len(),
        1,
        "more than two lifetimes have passed"
    );
    follower
        .until("the lease is told", |all| {
            all.leases.contains_key(&own.holder)
        })
        .await;
    // Nobody renews: it ends, and everybody hears it.
    follower
        .until("the lease ends", |all| all.leases.is_empty())
        .await;
    assert!(stored(&mut client).await.is_empty());
    // Its node comes back and asks for the subnets that its pods have.
    registry.renew(&attributes(1)).await.unwrap();
    assert!(
        stored(&mut client)
            .await
            .contains_key(&format!("/subnets/{}", own.holder))
    );
    // Unless somebody else has them by now.
    let key = format!("{PREFIX}/subnets/{}", own.holder);
    let thief = serde_json::to_string(&attributes(9)).unwrap();
    client.put(key, thief.clone(), None).await.unwrap();
    let error = registry.renew(&attributes(1)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Lost { .. }), "{error}");
    assert_eq!(stored(&mut client).await.values().next().unwrap().0, thief);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_stays_one_and_a_lease_outside_the_network_is_given_back() {
    let Some(etcd) = Etcd::start() else { return };
    let mut client = etcd.with_config(config()).await;
    let reserved = format!("{PREFIX}/subnets/10.64.7.0-24");
    client
        .put(reserved, r#"{"PublicIP":"192.0.2.1"}"#, None)
        .await
        .unwrap();
    let registry = etcd.registry().await;
    assert_eq!(acquire(&registry, 1).await.holder, "10.64.7.0-24");
    registry.renew(&attributes(1)).await.unwrap();
    let all = stored(&mut client).await;
    let (value, ends) = &all["/subnets/10.64.7.0-24"];
    assert!(!ends && value.contains("VtepMAC"), "{all:?}");
    let granted = client.lease_grant(600, None).await.unwrap();
    let outside = format!("{PREFIX}/subnets/10.1.1.0-24");
    let options = PutOptions::new().with_lease(granted.id());
    client
        .put(outside, r#"{"PublicIP":"192.0.2.2"}"#, Some(options))
        .await
        .unwrap();
    let own = acquire(&etcd.registry().await, 2).await;
    assert!(own.holder.starts_with("10."), "{own:?}");
    assert!(
        !stored(&mut client)
            .await
            .contains_key("/subnets/10.1.1.0-24")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missed_when_etcd_was_away_and_has_forgotten_its_history() {
    let Some(mut etcd) = Etcd::start() else {
        return;
    };
    let mut client = etcd.with_config(config()).await;
    let registry = Arc::new(etcd.registry().await);
    let mut follower = Follower::of(&registry);
    for number in 1..=3 {
        acquire(&etcd.registry().await, number).await;
    }
    follower
        .until("three leases", |all| all.leases.len() == 3)
        .await;
    let lists = follower.lists;
    let victim = follower.leases.keys().next().unwrap().clone();
    etcd.kill();
    etcd.again();
    // While the follower finds its way back, a lease goes, another changes, and the history is compacted.
    let mut revision = 0;
    let mut fresh = etcd.connect().await;
    drop(std::mem::replace(&mut client, fresh.clone()));
    fresh
        .delete(format!("{PREFIX}/subnets/{victim}"), None)
        .await
        .unwrap();
    for number in 0..50 {
        let put = fresh
            .put("elsewhere", number.to_string(), None)
            .await
            .unwrap();
        revision = put.header().unwrap().revision();
    }
    fresh.compact(revision, None).await.unwrap();
    follower
        .until("the lease is gone", |all| all.leases.len() == 2)
        .await;
    assert!(!follower.leases.contains_key(&victim));
    follower
        .until("listed again", |all| all.lists > lists)
        .await;
    // And it goes on from there. What is no lease is passed over.
    client
        .put(format!("{PREFIX}/subnets/notes"), "x", None)
        .await
        .unwrap();
    client
        .put(format!("{PREFIX}/subnets/10.64.9.0-24"), "{", None)
        .await
        .unwrap();
    acquire(&etcd.registry().await, 4).await;
    follower
        .until("a new lease", |all| all.leases.len() == 3)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_nodes_that_join_at_once_get_a_thousand_subnets() {
    const NODES: u32 = 1000;
    let Some(etcd) = Etcd::start() else { return };
    let mut client = etcd.with_config(config()).await;
    let watching = Arc::new(etcd.registry().await);
    let mut follower = Follower::of(&watching);
    let begun = Instant::now();
    let mut joining = tokio::task::JoinSet::new();
    for number in 0..NODES {
        let options = etcd.options();
        joining.spawn(async move {
            let registry = EtcdRegistry::open(options).await.unwrap();
            acquire(&registry, number).await
        });
    }
    let mut subnets = BTreeSet::new();
    while let Some(own) = joining.join_next().await {
        subnets.extend(own.unwrap().subnets);
    }
    assert_eq!(subnets.len(), 1000);
    follower
        .until("all leases are told", |all| all.leases.len() == 1000)
        .await;
    assert_eq!(stored(&mut client).await.len(), 1000);
    println!("{NODES} nodes joined in {:?}", begun.elapsed());
}
