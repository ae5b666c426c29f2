//! Flannel's registry in etcd v3 (flannel `pkg/subnet/etcd`): `PREFIX/config` is the network's configuration, each key
//! below `PREFIX/subnets` a node's lease, kept by a lease of etcd that the node renews.

mod follow;
mod key;

pub use key::{NoLease, etcd_lease};

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, KeyValue, PutOptions, Txn, TxnOp,
};
use ipnetwork::IpNetwork;
use rand::Rng;
use tokio::sync::{Mutex, Notify, mpsc};
use tracing::{info, warn};

use crate::{Attributes, Lease, LeaseEvent, NetConf, OwnLease, Range, Registry, RegistryError};

/// How often a subnet is chosen again when another node was faster.
const RACES: u32 = 10;
/// How many subnets are tried by chance before all are tried in order.
const CHANCES: usize = 100;
const RETRY: Duration = Duration::from_millis(500);
/// Renewing is tried again this long after it failed.
const RENEW_AGAIN: Duration = Duration::from_secs(60);
/// etcd answers in milliseconds, or not at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the registry is, and how this node keeps its lease.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// URLs.
    pub endpoints: Vec<String>,
    pub connect: ConnectOptions,
    /// Flannel's `--etcd-prefix`, without a slash at its end.
    pub prefix: String,
    /// How long a lease lives without being renewed: a day, at flannel.
    pub ttl: Duration,
    /// How long before its end it is renewed: flannel's `--subnet-lease-renew-margin`.
    pub renew_margin: Duration,
    /// This node's address on the underlay, by which it finds its lease again.
    pub public_ip: Option<Ipv4Addr>,
    /// The subnets that this node had, to ask for first.
    pub earlier: Vec<IpNetwork>,
}

/// Flannel's registry.
pub struct EtcdRegistry {
    client: Client,
    options: EtcdOptions,
    config: NetConf,
    own: Mutex<Option<Own>>,
    own_changed: Notify,
}

/// This node's lease as it was last written.
#[derive(Clone, Debug)]
struct Own {
    key: String,
    attributes: Attributes,
    /// `None` for a reservation, which has no end.
    expires: Option<Instant>,
}

/// A key with its value.
#[derive(Debug)]
struct Entry {
    key: String,
    lease: Lease,
    /// Without a lease of etcd it never expires.
    reserved: bool,
}

impl std::fmt::Debug for EtcdRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdRegistry")
            .field("prefix", &self.options.prefix)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl EtcdOptions {
    /// A registry as flannel's defaults make it.
    pub fn new(endpoints: Vec<String>) -> Self {
        let connect = ConnectOptions::new()
            .with_timeout(PATIENCE)
            .with_connect_timeout(PATIENCE)
            .with_require_leader(true)
            // A registry that went without a word is noticed, and a watch begins anew.
            .with_keep_alive(Duration::from_secs(5), Duration::from_secs(5))
            .with_keep_alive_while_idle(true);
        Self {
            endpoints,
            connect,
            prefix: "/coreos.com/network".to_owned(),
            ttl: Duration::from_secs(24 * 3600),
            renew_margin: Duration::from_secs(3600),
            public_ip: None,
            earlier: Vec::new(),
        }
    }

    /// Trusts this authority, and shows this certificate, all in PEM; etcd's URLs are then https.
    #[must_use]
    pub fn with_tls(mut self, authority: &[u8], identity: Option<(&[u8], &[u8])>) -> Self {
        let mut tls = etcd_client::TlsOptions::new()
            .ca_certificate(etcd_client::Certificate::from_pem(authority));
        if let Some((certificate, key)) = identity {
            tls = tls.identity(etcd_client::Identity::from_pem(certificate, key));
        }
        self.connect = self.connect.with_tls(tls);
        self
    }
}

impl EtcdRegistry {
    /// Connects and reads the configuration.
    ///
    /// # Errors
    ///
    /// When etcd does not answer, or has no configuration that can serve.
    pub async fn open(options: EtcdOptions) -> Result<Self, RegistryError> {
        let connect = Client::connect(&options.endpoints, Some(options.connect.clone()));
        let mut client = connect.await.map_err(failed("connect"))?;
        let key = format!("{}/config", options.prefix);
        let found = client.get(key.clone(), None).await;
        let found = found.map_err(failed(&format!("get {key}")))?;
        let Some(text) = found.kvs().first() else {
            return Err(RegistryError::NoConfig { key });
        };
        let config =
            NetConf::parse(text.value()).map_err(|source| RegistryError::Config { key, source })?;
        Ok(Self {
            client,
            options,
            config,
            own: Mutex::default(),
            own_changed: Notify::new(),
        })
    }

    pub fn config(&self) -> &NetConf {
        &self.config
    }

    fn subnets_key(&self) -> String {
        format!("{}/subnets/", self.options.prefix)
    }

    /// All leases that can be read, and the revision at which they are so.
    async fn list(&self) -> Result<(Vec<Entry>, i64), RegistryError> {
        let key = self.subnets_key();
        let options = GetOptions::new().with_prefix();
        let found = self.client.clone().get(key, Some(options)).await;
        let found = found.map_err(failed("list the leases"))?;
        let revision = found.header().map_or(0, |header| header.revision());
        let entries = found.kvs().iter().filter_map(|pair| {
            let entry = self.entry(pair);
            if let Err(reason) = &entry {
                warn!(key = %String::from_utf8_lossy(pair.key()), reason, "no lease");
            }
            entry.ok()
        });
        Ok((entries.collect(), revision))
    }

    fn entry(&self, pair: &KeyValue) -> Result<Entry, String> {
        let key = pair.key_str().map_err(|error| error.to_string())?;
        let holder = self.holder(key).unwrap_or_default();
        let lease = etcd_lease(holder, pair.value(), pair.create_revision());
        Ok(Entry {
            key: key.to_owned(),
            lease: lease.map_err(|error| error.to_string())?,
            reserved: pair.lease() == 0,
        })
    }

    /// The last part of a key.
    fn holder<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(self.options.prefix.as_str())?
            .strip_prefix("/subnets/")
    }

    /// This node's entry: the one with its public address.
    fn own_of(entries: &[Entry], public_ip: Option<Ipv4Addr>) -> Option<&Entry> {
        let own = public_ip?;
        let is_own = |entry: &&Entry| entry.lease.attributes.public_ip == Some(own);
        entries.iter().find(is_own)
    }

    /// One try to have a lease; `None` if another node was faster.
    async fn try_acquire(&self, attributes: &Attributes) -> Result<Option<Own>, RegistryError> {
        let (entries, _) = self.list().await?;
        let mut wanted = self.options.earlier.clone();
        if let Some(entry) = Self::own_of(&entries, attributes.public_ip) {
            if self.fits(&entry.lease.subnets) {
                info!(key = entry.key, "this node's lease is taken up again");
                let since = Some(entry.lease.since);
                return self
                    .put(&entry.key, attributes, since, !entry.reserved)
                    .await;
            }
            info!(
                key = entry.key,
                "this node's lease does not fit the configuration: it is given back"
            );
            let deleted = self.client.clone().delete(entry.key.clone(), None).await;
            deleted.map_err(failed("delete a lease"))?;
        }
        let taken: Vec<IpNetwork> = entries
            .iter()
            .flat_map(|entry| entry.lease.subnets.clone())
            .collect();
        let is_free = |subnet: &IpNetwork| !taken.iter().any(|other| overlap(*other, *subnet));
        if !self.fits(&wanted) || !wanted.iter().all(is_free) {
            wanted = Vec::new();
            for range in &self.config.ranges {
                wanted.push(choose(range, is_free)?);
            }
        }
        let name = key::name(&wanted).ok_or(RegistryError::NoPublicIp)?;
        let key = format!("{}{name}", self.subnets_key());
        self.put(&key, attributes, None, true).await
    }

    /// Whether the configuration gives such subnets, one of each family.
    fn fits(&self, subnets: &[IpNetwork]) -> bool {
        let ranges = &self.config.ranges;
        let given = |range: &Range| subnets.iter().any(|subnet| range.gives(*subnet));
        subnets.len() == ranges.len() && ranges.iter().all(given)
    }

    /// Writes a lease if its key is still the one that was created at revision `since`, or still is none; `None` if it
    /// is not. The new lease of etcd takes the earlier one's place, which then ends by itself.
    async fn put(
        &self,
        key: &str,
        attributes: &Attributes,
        since: Option<i64>,
        expires: bool,
    ) -> Result<Option<Own>, RegistryError> {
        let mut client = self.client.clone();
        let seconds = i64::try_from(self.options.ttl.as_secs()).unwrap_or(i64::MAX);
        let begun = Instant::now();
        let lease = match expires {
            true => {
                let granted = client.lease_grant(seconds, None).await;
                Some(granted.map_err(failed("grant a lease"))?)
            }
            false => None,
        };
        let options = lease
            .as_ref()
            .map(|lease| PutOptions::new().with_lease(lease.id()));
        let value = serde_json::to_vec(attributes).expect("strings and JSON serialize");
        let condition = Compare::create_revision(key, CompareOp::Equal, since.unwrap_or(0));
        let txn = Txn::new()
            .when([condition])
            .and_then([TxnOp::put(key, value, options)]);
        let done = client.txn(txn).await.map_err(failed("write a lease"));
        let written = done.as_ref().is_ok_and(|done| done.succeeded());
        if let (false, Some(lease)) = (written, &lease) {
            // It would end by itself, in a day.
            let _ = client.lease_revoke(lease.id()).await;
        }
        done?;
        Ok(written.then(|| Own {
            key: key.to_owned(),
            attributes: attributes.clone(),
            expires: lease.map(|lease| {
                let ttl = u64::try_from(lease.ttl()).unwrap_or(0);
                begun + Duration::from_secs(ttl)
            }),
        }))
    }

    /// Writes the own lease anew. If it was removed, its subnets are asked for again: the pods have their addresses.
    async fn renew_own(&self, own: &Own, attributes: &Attributes) -> Result<Own, RegistryError> {
        let found = self.client.clone().get(own.key.as_str(), None).await;
        let found = found.map_err(failed("get this node's lease"))?;
        let lost = || RegistryError::Lost {
            key: own.key.clone(),
        };
        let since = match found.kvs().first() {
            Some(pair) => {
                let holder: Option<Attributes> = serde_json::from_slice(pair.value()).ok();
                let holder = holder.and_then(|holder| holder.public_ip);
                let ours = [own.attributes.public_ip, attributes.public_ip];
                if holder.is_some() && !ours.contains(&holder) {
                    return Err(lost());
                }
                Some((pair.create_revision(), pair.lease() != 0))
            }
            None => {
                warn!(
                    key = own.key,
                    "this node's lease was removed: it is written again"
                );
                None
            }
        };
        let (since, expires) = since.unzip();
        self.put(&own.key, attributes, since, expires.unwrap_or(true))
            .await?
            .ok_or_else(lost)
    }

    /// When the own lease is to be renewed.
    fn due(&self, own: &Own) -> Duration {
        let Some(expires) = own.expires else {
            return RENEW_AGAIN;
        };
        let left = expires.saturating_duration_since(Instant::now());
        left.saturating_sub(self.options.renew_margin)
    }
}

#[async_trait]
impl Registry for EtcdRegistry {
    async fn earlier(
        &self,
        waiting: &(dyn Fn(String) + Sync),
    ) -> Result<Attributes, RegistryError> {
        loop {
            match self.list().await {
                Ok((entries, _)) => {
                    let own = Self::own_of(&entries, self.options.public_ip);
                    return Ok(own
                        .map(|entry| entry.lease.attributes.clone())
                        .unwrap_or_default());
                }
                Err(error) => waiting(chain(&error)),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn acquire(
        &self,
        attributes: &Attributes,
        waiting: &(dyn Fn(String) + Sync),
    ) -> Result<OwnLease, RegistryError> {
        if attributes.public_ip.is_none() {
            return Err(RegistryError::NoPublicIp);
        }
        let mut races = 0;
        while races < RACES {
            match self.try_acquire(attributes).await {
                Ok(Some(own)) => {
                    let holder = self.holder(&own.key).unwrap_or_default().to_owned();
                    let subnets = key::subnets(&holder).unwrap_or_default();
                    *self.own.lock().await = Some(own);
                    return Ok(OwnLease { holder, subnets });
                }
                Ok(None) => races += 1,
                Err(error @ RegistryError::Etcd { .. }) => {
                    waiting(chain(&error));
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(RegistryError::Races(RACES))
    }

    async fn renew(&self, attributes: &Attributes) -> Result<Duration, RegistryError> {
        let mut own = self.own.lock().await;
        let Some(earlier) = own.clone() else {
            return Ok(RENEW_AGAIN);
        };
        let found = self.client.clone().get(earlier.key.as_str(), None).await;
        let found = found.map_err(failed("get this node's lease"))?;
        let wanted = serde_json::to_value(attributes).ok();
        let as_wanted = found.kvs().first().is_some_and(|pair| {
            let present: Option<serde_json::Value> = serde_json::from_slice(pair.value()).ok();
            present.is_some() && present == wanted
        });
        if !as_wanted || self.due(&earlier).is_zero() {
            *own = Some(self.renew_own(&earlier, attributes).await?);
        }
        Ok(own
            .as_ref()
            .map_or(RENEW_AGAIN, |own| self.due(own).min(RENEW_AGAIN)))
    }

    async fn own_changed(&self) {
        self.own_changed.notified().await;
    }

    async fn follow(&self, events: &mpsc::Sender<LeaseEvent>) {
        self.follow_for_ever(events).await;
    }
}

/// A free subnet, by chance among all: nodes that join at once mostly choose different ones.
fn choose(range: &Range, is_free: impl Fn(&IpNetwork) -> bool) -> Result<IpNetwork, RegistryError> {
    let count = range.count();
    let mut random = rand::rng();
    let by_chance = (0..CHANCES)
        .filter(|_| count > 0)
        .map(|_| random.random_range(0..count));
    let in_order = 0..count;
    by_chance
        .chain(in_order)
        .map(|number| range.subnet(number))
        .find(is_free)
        .ok_or(RegistryError::OutOfSubnets {
            network: range.network,
        })
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

fn failed(operation: &str) -> impl FnOnce(etcd_client::Error) -> RegistryError {
    let operation = operation.to_owned();
    move |source| RegistryError::Etcd {
        operation,
        source: Box::new(source),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
