//! What can go wrong in a store, named after the operation.

use std::path::PathBuf;

use crate::types::{Key, Revision};

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The underlying cause, for the log.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("revision {requested} has been compacted; the oldest retained revision is {oldest}")]
    Compacted {
        requested: Revision,
        oldest: Revision,
    },

    #[error("revision {requested} has not happened yet; the store is at {current}")]
    FutureRevision {
        requested: Revision,
        current: Revision,
    },

    #[error("a transaction changes key {key:?} twice; put each key at most once")]
    DuplicateKey { key: Key },

    #[error("key {key:?} with its value has {size} bytes, more than the limit of {limit}")]
    TooLarge { key: Key, size: usize, limit: usize },

    #[error("cannot open the store {path:?}")]
    Open {
        path: PathBuf,
        #[source]
        source: Source,
    },

    #[error(
        "the store {path:?} is open in another process; stop that process, or choose another file"
    )]
    Locked { path: PathBuf },

    #[error(
        "the store {path:?} is damaged or is no Fairlead store; it was left as it is: restore it from a backup, or move it away to start empty"
    )]
    Corrupted {
        path: PathBuf,
        #[source]
        source: Source,
    },

    #[error("cannot write to the store {path:?}; it takes no more writes until it is opened again")]
    Write {
        path: PathBuf,
        #[source]
        source: Source,
    },

    #[error(
        "the disk that holds the store {path:?} is full, and the store takes no more writes; what was acknowledged is safe. Free some space and start again"
    )]
    DiskFull {
        path: PathBuf,
        #[source]
        source: Source,
    },

    #[error("the store {path:?} is there already, and nothing is ever written over it")]
    Exists { path: PathBuf },

    #[error("key {key:?} is there already")]
    Occupied { key: Key },

    #[error("the store is closed")]
    Closed,

    #[error("a key is empty; give every key at least one byte")]
    EmptyKey,

    #[error(
        "none of the etcd servers {servers} answers; check --etcd-servers, that they run, and with https the certificates"
    )]
    Unreachable {
        /// Their client URLs, with commas between.
        servers: String,
        #[source]
        source: Source,
    },

    #[error(
        "etcd did not say whether it did the write; read the key again before writing it once more"
    )]
    Unanswered {
        #[source]
        source: Source,
    },

    #[error("etcd refused the request; check the user, the certificates and what they may do")]
    Refused {
        #[source]
        source: Source,
    },

    #[error("etcd is at version {version}; 3.4 or newer is needed")]
    TooOld { version: String },

    #[error(
        "etcd has no space left (its alarm NOSPACE); compact and defragment it, or raise --quota-backend-bytes, then disarm the alarm with etcdctl"
    )]
    QuotaReached {
        #[source]
        source: Source,
    },

    #[error(
        "the store went back from revision {seen} to {current}: it was replaced or put back to an older state"
    )]
    WentBack { seen: Revision, current: Revision },

    #[error("key \"{key}\" is no text; it was not written by us: remove it, or use another etcd")]
    ForeignKey {
        /// Its bytes, those that are not printable escaped.
        key: String,
    },
}

impl StoreError {
    /// Whether the same request may succeed later without the caller changing it.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::FutureRevision { .. } | Self::Locked { .. } | Self::Unreachable { .. }
        )
    }
}
