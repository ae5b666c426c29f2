//! The store in one file: history in memory for reads and watches, redb on disk for durability.
//!
//! One thread owns all writing and shares each `fsync` among the transactions that wait for it (group commit).
//! Reads and watches never touch the disk.

mod create;
mod disk;
mod mvcc;
mod verify;
mod watcher;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};

use crate::{
    GetResponse, KeyRange, RangeResponse, Result, Revision, Store, StoreError, Txn, TxnResponse,
    WatchStream,
};
use disk::Disk;
use mvcc::Mvcc;
use watcher::Watcher;
use writer::{Request, Writer};

/// A [`Store`] in one file of this machine.
///
/// Only one process can have the file open. Dropping the store waits for the writes that were accepted.
#[derive(Debug)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    published: watch::Receiver<Revision>,
    /// `None` only while dropping.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
    max_entry_bytes: usize,
}

/// How the embedded store behaves. The default fits a cluster of a few thousand objects.
#[derive(Clone, Debug)]
pub struct Options {
    pub retention: Retention,
    /// The largest key and value together, in bytes (etcd's `--max-request-bytes` is 1.5 MiB by default).
    pub max_entry_bytes: usize,
}

/// Which part of history outlives compaction, for reads of the past and for watchers that come back.
///
/// A revision goes when it is older than `window` and not among the last `min_revisions`, or when one of the upper
/// bounds is passed. The newest state of every key always stays.
#[derive(Clone, Debug)]
pub struct Retention {
    /// At least this long. After a restart the clock starts again for what was retained.
    pub window: Duration,
    /// At least so many revisions, however old.
    pub min_revisions: usize,
    /// Never more revisions than this, however young.
    pub max_revisions: usize,
    /// Never more bytes of changed keys and values than about this, however young.
    pub max_bytes: usize,
}

/// What the writer, the readers and the watchers have in common.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    mvcc: RwLock<Mvcc>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retention: Retention::default(),
            max_entry_bytes: crate::MAX_ENTRY_BYTES,
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(300),
            min_revisions: 1_000,
            max_revisions: 200_000,
            max_bytes: 128 << 20,
        }
    }
}

impl Shared {
    /// # Errors
    /// [`StoreError::Closed`] when the writer died halfway through a change of the state.
    fn read(&self) -> Result<RwLockReadGuard<'_, Mvcc>> {
        self.mvcc.read().map_err(|_| StoreError::Closed)
    }
}

impl EmbeddedStore {
    /// Opens the store of the file `path`, or makes it when there is none. The folder must exist.
    ///
    /// Blocks: it reads the whole file and verifies every checksum.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it, [`StoreError::Corrupted`] when it is damaged or something
    /// else, [`StoreError::Open`] when the file system refuses.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        let path = path.as_ref();
        let begun = Instant::now();
        let (disk, mvcc) = Disk::open(path)?;
        tracing::info!(
            path = %path.display(),
            revision = mvcc.revision(),
            oldest_revision = mvcc.oldest(),
            elapsed_ms = begun.elapsed().as_millis(),
            "store opened"
        );

        let (published_tx, published) = watch::channel(mvcc.revision());
        let shared = Arc::new(Shared {
            path: path.to_path_buf(),
            mvcc: RwLock::new(mvcc),
        });
        let (requests, inbox) = mpsc::channel();
        let writer = Writer::new(shared.clone(), disk, options.retention, published_tx);
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&inbox))
            .map_err(|source| StoreError::Open {
                path: path.to_path_buf(),
                source: source.into(),
            })?;
        Ok(Self {
            shared,
            published,
            requests: Some(requests),
            writer: Some(writer),
            max_entry_bytes: options.max_entry_bytes,
        })
    }

    /// The file that holds the store.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .as_ref()
            .ok_or(StoreError::Closed)?
            .send(request(reply))
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(path = %self.shared.path.display(), "the store's writer panicked");
        }
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<GetResponse> {
        let mvcc = self.shared.read()?;
        Ok(GetResponse {
            kv: mvcc.get(key),
            revision: mvcc.revision(),
        })
    }

    async fn range(
        &self,
        range: KeyRange,
        limit: usize,
        revision: Option<Revision>,
    ) -> Result<RangeResponse> {
        self.shared.read()?.range(&range, limit, revision)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        txn.check(self.max_entry_bytes)?;
        self.ask(|reply| Request::Txn { txn, reply }).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream> {
        let now = {
            let mvcc = self.shared.read()?;
            mvcc.check_retained(from)?;
            mvcc.revision()
        };
        let published = self.published.clone();
        let watcher = Watcher::new(self.shared.clone(), prefix, from, now, published);
        Ok(watcher.into_stream())
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.ask(|reply| Request::Compact { revision, reply }).await
    }

    async fn revision(&self) -> Result<Revision> {
        Ok(self.shared.read()?.revision())
    }

    async fn oldest_revision(&self) -> Result<Revision> {
        Ok(self.shared.read()?.oldest())
    }
}
