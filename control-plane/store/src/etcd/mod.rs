//! The store in an etcd cluster, 3.4 or newer, whose revisions, transactions and watches are the model of [`Store`].
//!
//! Keys and values stand in etcd as they are given, so `etcdctl get` reads them. Where the two models differ:
//!
//! | the store | etcd |
//! |---|---|
//! | `compact(R)` keeps R with what was before each of its changes | compaction to R - 1, which needs R - 1 for that |
//! | the oldest revision | one after the compacted one, which a watch from before is told |
//! | revision 0 is before everything | 0 is now, so 1 is asked for |
//! | the empty key, and the end of everything | `\0`, in either place |
//! | how far a watch is | every key is watched, so each revision shows up |
//! | the key after a put | made of the key before, which etcd tells, and the transaction's revision |
//!
//! Old history is compacted by [`Options::retention`].

mod convert;
mod fault;
mod latest;
mod members;
mod requests;
mod watcher;

#[cfg(feature = "testing")]
pub mod testing;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use futures::{StreamExt, TryStreamExt};
use tokio::task::AbortHandle;

use crate::{
    GetResponse, KeyRange, PartStream, RangeResponse, Result, Revision, Store, StoreError, Txn,
    TxnResponse, WatchStream,
};
use requests::Requests;
use watcher::Watcher;

/// The oldest version that has all that is asked of it.
const OLDEST_VERSION: (u64, u64) = (3, 4);

/// A [`Store`] in an etcd cluster.
#[derive(Debug)]
pub struct EtcdStore {
    requests: Arc<Requests>,
    compactor: Option<AbortHandle>,
}

/// How to reach etcd, and what to keep.
#[derive(Clone, Debug)]
pub struct Options {
    /// The client URLs of the members, as `http://10.0.0.1:2379` or `https://…`.
    pub servers: Vec<String>,
    /// For `https` URLs.
    pub tls: Option<Tls>,
    /// Name and password, where etcd's own authentication is on. The user needs to read the whole key space.
    pub user: Option<(String, String)>,
    /// History is compacted once it is this old (kube-apiserver's `--etcd-compaction-interval`); `None` leaves it to
    /// etcd or to somebody else.
    pub retention: Option<Duration>,
    /// How long a request is tried. By default 10 s: longer than the 7 s after which etcd says that it could not do a
    /// write, and than an election.
    pub patience: Duration,
    /// The largest key and value together, in bytes (etcd's `--max-request-bytes` is 1.5 MiB by default).
    pub max_entry_bytes: usize,
}

/// Certificates, each in PEM form.
#[derive(Clone)]
pub struct Tls {
    /// Of the authority that signed the members' certificates.
    pub ca: Vec<u8>,
    /// Our certificate and its key, where etcd asks for them.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Options {
    /// The cluster with these client URLs.
    #[must_use]
    pub fn new(servers: Vec<String>) -> Self {
        Self {
            servers,
            tls: None,
            user: None,
            retention: Some(Duration::from_secs(300)),
            patience: Duration::from_secs(10),
            max_entry_bytes: crate::MAX_ENTRY_BYTES,
        }
    }

    fn connect_options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(2))
            .with_tcp_keepalive(Duration::from_secs(30))
            // A member that is cut off from the others says so, and does not serve what is old.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(tls) = &self.tls {
            let mut with = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some((certificate, key)) = &tls.identity {
                with = with.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(with);
        }
        if let Some((name, password)) = &self.user {
            options = options.with_user(name, password);
        }
        options
    }
}

impl EtcdStore {
    /// Connects to a cluster of which at least one member must answer.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] when none answers in time, [`StoreError::Refused`] when it does not let us in,
    /// [`StoreError::TooOld`] before version 3.4.
    pub async fn connect(options: Options) -> Result<Self> {
        let requests = Arc::new(Requests::new(&options));
        let version = requests.version().await?;
        if !is_new_enough(&version) {
            return Err(StoreError::TooOld { version });
        }
        let revision = requests.revision().await?;
        let servers = requests.members.urls();
        tracing::info!(servers, version, revision, "store opened");
        let compactor = options.retention.map(|window| {
            let task = tokio::spawn(compact_every(requests.clone(), window));
            task.abort_handle()
        });
        Ok(Self {
            requests,
            compactor,
        })
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        if let Some(compactor) = &self.compactor {
            compactor.abort();
        }
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<GetResponse> {
        self.requests.get(key).await
    }

    async fn range(
        &self,
        range: KeyRange,
        limit: usize,
        revision: Option<Revision>,
    ) -> Result<RangeResponse> {
        self.requests.range(range, limit, revision).await
    }

    fn parts(&self, range: KeyRange, revision: Revision) -> PartStream<'_> {
        let pages = self.requests.pages(range, 0, Some(revision));
        pages.map_ok(|page| page.kvs).boxed()
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        self.requests.txn(&txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream> {
        let now = self.requests.revision().await?;
        if from <= now {
            self.requests.oldest().await?;
            self.requests.check_known(from)?;
        }
        // etcd takes 0 for "from now on".
        let watcher = Watcher::new(self.requests.clone(), prefix, from.max(1), now);
        Ok(watcher.into_stream())
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.requests.compact(revision).await
    }

    async fn revision(&self) -> Result<Revision> {
        self.requests.revision().await
    }

    async fn oldest_revision(&self) -> Result<Revision> {
        self.requests.oldest().await
    }
}

/// Compacts what is older than `window`. Several API servers may do so side by side: the oldest one's turn has then
/// nothing left to do.
async fn compact_every(requests: Arc<Requests>, window: Duration) {
    let mut old = None;
    loop {
        let now = requests.revision().await;
        if let Some(revision) = old {
            match requests.compact(revision).await {
                Ok(()) => tracing::debug!(revision, "history compacted"),
                Err(error) => tracing::warn!(%error, revision, "cannot compact; trying again"),
            }
        }
        old = now.ok().or(old);
        tokio::time::sleep(window).await;
    }
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u64>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= OLDEST_VERSION,
        _ => false,
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of the log.
        let identity = self.identity.is_some();
        f.debug_struct("Tls").field("identity", &identity).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_3_4_are_told_apart() {
        for (version, ok) in [
            ("3.4.23", true),
            ("3.5.0-rc.1", true),
            ("3.10.1", true),
            ("4.0.0", true),
            ("3.3.27", false),
            ("2.3.8", false),
            ("unknown", false),
        ] {
            assert_eq!(is_new_enough(version), ok, "{version}");
        }
    }
}
