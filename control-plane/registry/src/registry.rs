//! The registry: what is open, and reading single objects.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use control_plane_store::{Store, StoreError};
use ipnetwork::IpNetwork;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::allocate::Claims;
use crate::cache::Cache;
use crate::errors::{ApiError, Result};
use crate::kinds::{Kind, Kinds};
use crate::object::Object;
use crate::quota::Turns;

/// All objects of a cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    cache: Arc<Cache>,
    claims: Arc<Claims>,
    turns: Arc<Turns>,
    /// Where Service `default/kubernetes` leads, once that is known.
    published: Arc<Mutex<Option<Vec<SocketAddr>>>>,
    /// Who is told how long the store takes.
    observer: Arc<OnceLock<Observer>>,
    /// The store failed in a way that only a restart mends.
    broken: Arc<AtomicBool>,
    tasks: Vec<AbortHandle>,
}

/// Is told of every request to the store about a kind: which operation, and how long it took.
struct Observer(Box<Tell>);

type Tell = dyn Fn(&'static str, &Kind, Duration) + Send + Sync;

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

/// What a cluster is made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The ranges of ClusterIPs, the primary family first; one or two, of different families.
    pub service_cidrs: Vec<IpNetwork>,
    /// The range of node ports.
    pub node_ports: RangeInclusive<u16>,
}

impl Default for Options {
    fn default() -> Self {
        let v4 = IpNetwork::V4(
            ipnetwork::Ipv4Network::new([10, 96, 0, 0].into(), 16)
                .expect("16 is a prefix length of IPv4"),
        );
        let v6 = IpNetwork::V6(
            ipnetwork::Ipv6Network::new([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0].into(), 112)
                .expect("112 is a prefix length of IPv6"),
        );
        Self {
            service_cidrs: vec![v4, v6],
            node_ports: 30000..=32767,
        }
    }
}

/// Why a registry could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "service CIDRs: give one range, or one of each address family, each with room for at least 8 addresses"
    )]
    ServiceCidrs,
    #[error("node port range: it must begin at 1 or later and not end before it begins")]
    NodePorts,
    #[error("cannot read the store")]
    Read(#[source] StoreError),
    #[error("cannot make the objects that every cluster has")]
    Bootstrap(#[source] ApiError),
}

impl Registry {
    /// Opens the registry over a store: reads everything, follows it from then on, and makes sure that the objects exist
    /// that every cluster has (its namespaces and Service `default/kubernetes`).
    ///
    /// # Errors
    /// Options that make no cluster, or a store that cannot be read.
    pub async fn open(store: Arc<dyn Store>, options: Options) -> Result<Self, OpenError> {
        check(&options)?;
        let cache = Arc::new(Cache::new());
        let claims = Arc::new(Claims::new(options.service_cidrs, options.node_ports));
        let (ready, filled) = tokio::sync::oneshot::channel();
        let follower = {
            let (cache, store, claims) = (cache.clone(), store.clone(), claims.clone());
            tokio::spawn(async move { cache.run(store, claims, ready).await })
        };
        let mut registry = Inner {
            store,
            cache,
            claims,
            turns: Arc::default(),
            published: Arc::default(),
            observer: Arc::default(),
            broken: Arc::default(),
            tasks: vec![follower.abort_handle()],
        };
        match filled.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(OpenError::Read(error)),
            Err(_) => return Err(OpenError::Read(StoreError::Closed)),
        }
        // The housekeeper must not keep the registry alive that ends it.
        let own = Self(Arc::new(registry.share()));
        let housekeeper = tokio::spawn(async move { own.keep_house().await });
        registry.tasks.push(housekeeper.abort_handle());
        let registry = Self(Arc::new(registry));
        registry.bootstrap().await.map_err(OpenError::Bootstrap)?;
        Ok(registry)
    }

    /// The object with this name.
    ///
    /// `resource_version`: `None` for the latest state, `Some(n)` for one not older than `n`.
    ///
    /// # Errors
    /// 404 when there is none, 504 when `n` has not happened.
    pub async fn get(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        resource_version: Option<u64>,
    ) -> Result<Arc<Object>> {
        self.settle(resource_version).await?;
        self.cached(kind, namespace, name)
            .ok_or_else(|| ApiError::not_found(kind, name))
    }

    /// The kinds that there are now.
    #[must_use]
    pub fn kinds(&self) -> Kinds {
        self.cache().kinds()
    }

    /// The revision of the latest change that readers see.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.cache().revision()
    }

    /// All objects of a kind that are in memory now, without asking the store whether there are newer ones.
    #[must_use]
    pub fn objects(&self, kind: &Kind) -> Vec<Arc<Object>> {
        self.cache().list(kind, "", "").0
    }

    /// The object with this name that is in memory now, without asking the store whether there is a newer one.
    #[must_use]
    pub fn peek(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.cached(kind, namespace, name)
    }

    /// How many objects of a kind there are in a namespace (empty: in all).
    #[must_use]
    pub fn count(&self, kind: &Kind, namespace: &str) -> usize {
        self.cache().count(kind, namespace)
    }

    /// Moves with every change of the kind's objects.
    #[must_use]
    pub fn changes(&self, kind: &Kind) -> watch::Receiver<()> {
        self.cache().subscribe(kind)
    }

    /// Waits until readers see everything that the store has.
    ///
    /// # Errors
    /// 504 when that takes more than three seconds, or the store's.
    pub async fn caught_up(&self) -> Result<()> {
        self.settle(None).await
    }

    /// Whether the store answers and takes writes.
    ///
    /// # Errors
    /// The store's error as a Status.
    pub async fn check(&self) -> Result<()> {
        if self.0.broken.load(Ordering::Relaxed) {
            return Err(ApiError::unavailable(
                "the store takes no more writes; its log says why. Restart the control plane",
            ));
        }
        self.0.store.revision().await?;
        Ok(())
    }

    /// From now on tells `observer` how long each request to the store takes: `create`, `update`, `delete` or `list`. Only
    /// the first one counts.
    pub fn observe_store(
        &self,
        observer: impl Fn(&'static str, &Kind, Duration) + Send + Sync + 'static,
    ) {
        // A second server over the same registry leaves the numbers to the first.
        let _ = self.0.observer.set(Observer(Box::new(observer)));
    }

    /// Tells the observer of a request to the store that began at `began`.
    pub(crate) fn observed(&self, operation: &'static str, kind: &Kind, began: Instant) {
        if let Some(Observer(tell)) = self.0.observer.get() {
            tell(operation, kind, began.elapsed());
        }
    }

    /// Notes that the store failed in a way that only a restart mends.
    pub(crate) fn note_failure(&self, error: &StoreError) {
        if matches!(
            error,
            StoreError::Write { .. } | StoreError::DiskFull { .. } | StoreError::Closed
        ) {
            self.0.broken.store(true, Ordering::Relaxed);
        }
    }

    /// Waits until the cache is as new as a reader asks.
    pub(crate) async fn settle(&self, resource_version: Option<u64>) -> Result<()> {
        let revision = match resource_version {
            Some(0) => return Ok(()),
            Some(revision) => revision,
            None => self.0.store.revision().await?,
        };
        if revision <= self.cache().revision() {
            return Ok(());
        }
        self.cache().wait(revision).await
    }

    pub(crate) fn cached(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.cache().get(kind, &kind.key(namespace, name))
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.0.cache
    }

    pub(crate) fn shared_cache(&self) -> Arc<Cache> {
        self.0.cache.clone()
    }

    pub(crate) fn store(&self) -> &dyn Store {
        self.0.store.as_ref()
    }

    pub(crate) fn published(&self) -> MutexGuard<'_, Option<Vec<SocketAddr>>> {
        let published = &self.0.published;
        published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn turns(&self) -> &Turns {
        &self.0.turns
    }

    pub(crate) fn claims(&self) -> &Claims {
        &self.0.claims
    }
}

impl Inner {
    fn share(&self) -> Self {
        Self {
            store: self.store.clone(),
            cache: self.cache.clone(),
            claims: self.claims.clone(),
            turns: self.turns.clone(),
            published: self.published.clone(),
            observer: self.observer.clone(),
            broken: self.broken.clone(),
            tasks: Vec::new(),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

fn check(options: &Options) -> Result<(), OpenError> {
    let cidrs = &options.service_cidrs;
    let roomy = |c: &IpNetwork| c.prefix() <= if c.is_ipv4() { 29 } else { 125 };
    let ok = match cidrs.as_slice() {
        [one] => roomy(one),
        [one, other] => roomy(one) && roomy(other) && one.is_ipv4() != other.is_ipv4(),
        _ => false,
    };
    if !ok {
        return Err(OpenError::ServiceCidrs);
    }
    if options.node_ports.is_empty() || *options.node_ports.start() == 0 {
        return Err(OpenError::NodePorts);
    }
    Ok(())
}
