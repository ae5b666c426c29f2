//! One stored object as the cache keeps it: encoded once, with the few words that selection needs beside it.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;

use crate::json::Json;
use crate::kinds::Kind;

/// An object at one revision. Its bytes go to every reader as they are.
#[derive(Debug)]
pub struct Object {
    pub kind: &'static Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Sorted by key.
    pub labels: Vec<(String, String)>,
    /// The values of the kind's selectable fields, in the order of its table.
    pub fields: Vec<String>,
    /// The `resourceVersion`: the store's revision of the last write.
    pub revision: u64,
    /// The JSON, `resourceVersion` included.
    pub bytes: Bytes,
    /// When this process learned of it.
    pub received: Instant,
}

/// One change of an object.
#[derive(Debug)]
pub struct Event {
    pub kind: EventType,
    /// The object after the change; for a deletion, its last state with the revision of the deletion.
    pub object: Arc<Object>,
    /// The object before the change.
    pub previous: Option<Arc<Object>>,
    pub revision: u64,
    frames: [OnceLock<Bytes>; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Added,
    Modified,
    Deleted,
}

impl Object {
    /// Takes `value` as read from the store and gives it the `resourceVersion` of its revision (0: it has none,
    /// since it was not stored).
    #[must_use]
    pub fn new(kind: &'static Kind, mut value: Value, revision: u64) -> Self {
        if revision != 0 {
            value.put("/metadata/resourceVersion", revision.to_string());
        }
        let mut labels: Vec<(String, String)> = value
            .object("/metadata/labels")
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
            .collect();
        labels.sort();
        let bytes = serde_json::to_vec(&value).unwrap_or_default();
        Self {
            kind,
            namespace: value.text("/metadata/namespace").to_owned(),
            name: value.text("/metadata/name").to_owned(),
            uid: value.text("/metadata/uid").to_owned(),
            labels,
            fields: kind.fields.iter().map(|f| f.read(&value)).collect(),
            revision,
            bytes: bytes.into(),
            received: Instant::now(),
        }
    }

    /// The object as JSON, to look into or to change.
    #[must_use]
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels
            .binary_search_by(|(k, _)| k.as_str().cmp(key))
            .ok()
            .map(|at| self.labels[at].1.as_str())
    }
}

impl Event {
    #[must_use]
    pub fn new(kind: EventType, object: Arc<Object>, previous: Option<Arc<Object>>) -> Self {
        Self {
            kind,
            revision: object.revision,
            object,
            previous,
            frames: Default::default(),
        }
    }

    /// The line of a watch that says this change as `kind`, made once for all watchers.
    #[must_use]
    pub fn frame(&self, kind: EventType) -> Bytes {
        self.frames[kind as usize]
            .get_or_init(|| frame(kind.word(), &self.object.bytes))
            .clone()
    }
}

/// One line of a watch.
#[must_use]
pub fn frame(word: &str, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(word.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}

impl EventType {
    /// The word in the frame.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}
