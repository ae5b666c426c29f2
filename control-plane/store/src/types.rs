//! The words that a store and its users exchange.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Result, StoreError};

/// The store's one counter: strictly increasing, one step for each transaction that changes something.
pub type Revision = u64;

/// A key. Cheap to clone; ordered by its bytes.
pub type Key = Arc<str>;

/// A key with its value and its place in history (the fields of etcd's `mvccpb.KeyValue`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Key,
    pub value: Bytes,
    /// The revision that made the key, since it was last absent.
    pub create_revision: Revision,
    /// The revision of the last put.
    pub mod_revision: Revision,
    /// How many puts since the key was last absent; 1 right after its creation.
    pub version: u64,
}

/// The answer to a get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetResponse {
    pub kv: Option<KeyValue>,
    /// The store's revision when it was read, at least `kv.mod_revision`.
    pub revision: Revision,
}

/// A half-open range of keys: `start` included, `end` not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    pub start: Key,
    /// `None`: to the last key.
    pub end: Option<Key>,
}

/// The answer to a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeResponse {
    /// In the byte order of their keys.
    pub kvs: Vec<KeyValue>,
    /// Whether `limit` cut the answer short.
    pub more: bool,
    /// How many keys the whole range holds, whatever the limit.
    pub count: usize,
    /// The revision that the answer describes: the one asked for, or the store's.
    pub revision: Revision,
}

/// A condition of a transaction: the key's `mod_revision` is this; 0 means that the key is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    pub key: Key,
    pub mod_revision: Revision,
}

/// A change that a transaction makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put { key: Key, value: Bytes },
    Delete { key: Key },
}

/// If all of `compares` hold then do all of `then`, else read `else_get`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub then: Vec<Op>,
    pub else_get: Vec<Key>,
}

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnResponse {
    /// Whether all the comparisons held.
    pub succeeded: bool,
    /// The transaction's own revision when it changed something, else the store's.
    pub revision: Revision,
    /// One for each of `then`, in order; empty when a comparison failed.
    pub results: Vec<OpResult>,
    /// One for each of `else_get`, in order; empty when the comparisons held.
    pub else_kvs: Vec<Option<KeyValue>>,
}

/// What one operation did to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpResult {
    /// The key before; `None`: it was absent.
    pub previous: Option<KeyValue>,
    /// The key after; `None`: it is absent.
    pub current: Option<KeyValue>,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub key: Key,
    /// The revision of the transaction that made the change.
    pub revision: Revision,
    /// The key after the change; `None` for a delete.
    pub kv: Option<KeyValue>,
    /// The key before the change; `None` for a creation.
    pub prev_kv: Option<KeyValue>,
}

/// Changes, in order. A revision is never split over two batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// Ordered by revision; may be empty (then the batch only reports progress).
    pub events: Vec<Event>,
    /// Everything up to this revision has been delivered: a resumed watch starts from this plus 1.
    pub revision: Revision,
}

impl KeyRange {
    /// Every key that starts with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &str) -> Self {
        Self {
            start: prefix.into(),
            end: prefix_end(prefix),
        }
    }

    /// From `start` (included) to `end` (not included).
    pub fn new(start: impl Into<Key>, end: impl Into<Key>) -> Self {
        Self {
            start: start.into(),
            end: Some(end.into()),
        }
    }

    /// The part of this range that comes after `key`: the next page of a listing that ended with `key`.
    #[must_use]
    pub fn after(self, key: &str) -> Self {
        let next: Key = format!("{key}\0").into();
        Self {
            start: next.max(self.start),
            end: self.end,
        }
    }
}

/// The first key after all those that start with `prefix`; `None` when there is none.
fn prefix_end(prefix: &str) -> Option<Key> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // The code points between U+D7FF and U+E000 are no characters.
        let next = match last {
            '\u{d7ff}' => Some('\u{e000}'),
            other => char::from_u32(u32::from(other) + 1),
        };
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect::<String>().into());
        }
    }
    None
}

impl Compare {
    /// The key was last put at `mod_revision`.
    pub fn unchanged(key: impl Into<Key>, mod_revision: Revision) -> Self {
        Self {
            key: key.into(),
            mod_revision,
        }
    }

    /// The key does not exist.
    pub fn absent(key: impl Into<Key>) -> Self {
        Self::unchanged(key, 0)
    }
}

impl Op {
    pub fn put(key: impl Into<Key>, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
        }
    }

    pub fn delete(key: impl Into<Key>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// The key that the operation changes.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    /// Key and value together, in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }
}

impl Txn {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds a change.
    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.then.push(op);
        self
    }

    /// Adds a key to read when a condition does not hold.
    #[must_use]
    pub fn else_get(mut self, key: impl Into<Key>) -> Self {
        self.else_get.push(key.into());
        self
    }

    /// Puts a key that must not exist; reads it if it does.
    pub fn create(key: impl Into<Key>, value: impl Into<Bytes>) -> Self {
        let key = key.into();
        Self::new()
            .when(Compare::absent(key.clone()))
            .then(Op::put(key.clone(), value))
            .else_get(key)
    }

    /// Puts a key that must still stand at `mod_revision`; reads it if it does not.
    pub fn update(key: impl Into<Key>, mod_revision: Revision, value: impl Into<Bytes>) -> Self {
        let key = key.into();
        Self::new()
            .when(Compare::unchanged(key.clone(), mod_revision))
            .then(Op::put(key.clone(), value))
            .else_get(key)
    }

    /// # Errors
    /// What is wrong with the transaction, whatever the store holds; `limit` is the most that a key and its value may
    /// have, in bytes.
    pub(crate) fn check(&self, limit: usize) -> Result<()> {
        let compared = self.compares.iter().map(|compare| &compare.key);
        let named = compared
            .chain(&self.else_get)
            .chain(self.then.iter().map(Op::key));
        if named.into_iter().any(|key| key.is_empty()) {
            return Err(StoreError::EmptyKey);
        }
        let mut changed = HashSet::new();
        for op in &self.then {
            if !changed.insert(op.key()) {
                return Err(StoreError::DuplicateKey {
                    key: op.key().clone(),
                });
            }
            if op.size() > limit {
                return Err(StoreError::TooLarge {
                    key: op.key().clone(),
                    size: op.size(),
                    limit,
                });
            }
        }
        Ok(())
    }

    /// Deletes a key that must still stand at `mod_revision`; reads it if it does not.
    pub fn delete(key: impl Into<Key>, mod_revision: Revision) -> Self {
        let key = key.into();
        Self::new()
            .when(Compare::unchanged(key.clone(), mod_revision))
            .then(Op::delete(key.clone()))
            .else_get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_range_ends_right_after_its_last_key() {
        let end = |prefix: &str| KeyRange::prefix(prefix).end.map(|key| key.to_string());
        assert_eq!(end("/registry/pods/"), Some("/registry/pods0".into()));
        assert_eq!(end("a\u{10ffff}"), Some("b".into()));
        assert_eq!(end("\u{d7ff}"), Some("\u{e000}".into()));
        assert_eq!(end("\u{10ffff}"), None);
        assert_eq!(end(""), None);
    }

    #[test]
    fn the_next_page_starts_after_the_last_key_and_never_before_the_range() {
        let range = KeyRange::prefix("b").after("b1");
        assert_eq!((&*range.start, range.end.as_deref()), ("b1\0", Some("c")));
        assert_eq!(&*KeyRange::prefix("b").after("a").start, "b");
    }
}
