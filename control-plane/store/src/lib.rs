//! Bytes under keys, with etcd's model: one revision counter, transactions, ranges, watches, compaction.
//!
//! This crate knows no Kubernetes: it never parses a value and gives no meaning to a key beyond its order.
//! [`Store`] is the seam; [`embedded`] keeps everything in one file, [`etcd`] in an etcd cluster, and both pass the
//! same [`conformance`] suite.

#![forbid(unsafe_code)]

pub mod backup;
pub mod conformance;
pub mod embedded;
mod error;
pub mod etcd;
pub mod snapshot;
mod types;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};

pub use embedded::EmbeddedStore;
pub use error::{Result, StoreError};
pub use etcd::EtcdStore;
pub use snapshot::Snapshot;
pub use types::{
    Compare, Event, EventKind, GetResponse, Key, KeyRange, KeyValue, Op, OpResult, RangeResponse,
    Revision, Txn, TxnResponse, WatchBatch,
};

/// The largest key and value together, in bytes, unless told otherwise: etcd's `--max-request-bytes` by default.
pub const MAX_ENTRY_BYTES: usize = 3 << 19;

/// What [`Store::watch`] returns. After an `Err` the stream ends.
pub type WatchStream = BoxStream<'static, Result<WatchBatch>>;

/// What [`Store::parts`] returns.
pub type PartStream<'a> = BoxStream<'a, Result<Vec<KeyValue>>>;

/// A key-value store with etcd's guarantees.
///
/// - **Linearizable.** A read that starts after a write was answered sees that write.
/// - **Durable.** `txn` answers only after the write would survive a power cut.
/// - **One order.** Every transaction that changes something takes the next revision; all watchers see the
///   changes in the order of their revisions.
/// - **First revision.** A new store stands at revision 1; its first write makes revision 2 (as in etcd), so 0 can
///   mean "absent" in a [`Compare`].
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// The key now, and the store's revision at that moment.
    async fn get(&self, key: &str) -> Result<GetResponse>;

    /// The keys of `range` in byte order, at most `limit` of them (0: no limit).
    ///
    /// With `revision` the answer is the past: exactly what a range at that revision would have said.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when that past is gone, [`StoreError::FutureRevision`] when it has not happened.
    async fn range(
        &self,
        range: KeyRange,
        limit: usize,
        revision: Option<Revision>,
    ) -> Result<RangeResponse>;

    /// What [`Self::range`] without a limit says at `revision`, in parts: one can be worked on while the next is read.
    ///
    /// # Errors
    /// Those of [`Self::range`]; the stream ends with them.
    fn parts(&self, range: KeyRange, revision: Revision) -> PartStream<'_> {
        let whole = async move { Ok(self.range(range, 0, Some(revision)).await?.kvs) };
        stream::once(whole).boxed()
    }

    /// If every comparison holds, does all of `then` under one new revision; else reads `else_get`.
    ///
    /// A transaction that changes nothing (only deletes of absent keys, or no operations) succeeds and takes no
    /// revision. A put always takes one, even when the value is the same as before.
    ///
    /// # Errors
    /// [`StoreError::DuplicateKey`] when two operations name the same key, [`StoreError::EmptyKey`],
    /// [`StoreError::TooLarge`], and those of a store that cannot write. After [`StoreError::Write`],
    /// [`StoreError::DiskFull`] and [`StoreError::Unanswered`] it is unknown whether the write happened; after any
    /// other it did not.
    async fn txn(&self, txn: Txn) -> Result<TxnResponse>;

    /// All changes of keys that start with `prefix`, from revision `from` on (that revision included): first the
    /// retained past, then the present, without a gap between.
    ///
    /// When the past is replayed, up to the revision at which the watch was made, the stream says so: by the batch
    /// that reaches it, which is empty if the last of the past does not concern `prefix`.
    ///
    /// `from` may lie in the future: the watch then waits for it. To follow a range read at revision R, watch
    /// from R + 1.
    ///
    /// A watcher that reads too slowly gets [`StoreError::Compacted`] as its last item once history before its
    /// position is gone; nothing is ever buffered for it without bound.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when `from` is older than the oldest retained revision.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream>;

    /// Forgets history before `revision`: reads at and watches from `revision` or later still work, earlier ones
    /// get [`StoreError::Compacted`] (in etcd, compacted by somebody else, one revision earlier can still be read).
    /// Compacting what is compacted already is no error.
    ///
    /// # Errors
    /// [`StoreError::FutureRevision`] when `revision` has not happened.
    async fn compact(&self, revision: Revision) -> Result<()>;

    /// The revision of the last change; 1 for a store that was never written.
    async fn revision(&self) -> Result<Revision>;

    /// The oldest revision that can still be watched from. It is the one after the present where no history is left;
    /// the present itself can always be read.
    async fn oldest_revision(&self) -> Result<Revision>;
}
