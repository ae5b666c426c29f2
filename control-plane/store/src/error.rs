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

    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether the same request may succeed later without the caller changing it.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::FutureRevision { .. } | Self::Locked { .. })
    }
}
