//! One stored object as the cache keeps it: its bytes as they are stored, with the few words that selection needs.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;

use crate::json::Json;
use crate::kinds::Kind;
use crate::outline::Outline;

/// An object at one revision.
///
/// It holds the bytes of the store themselves (the embedded store has them in memory too), which lack the
/// `resourceVersion`: that is put in on the way out.
#[derive(Debug)]
pub struct Object {
    pub kind: &'static Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    /// Sorted by key.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// The `resourceVersion`: the store's revision of the last write; 0 when it was not stored, and has none.
    pub revision: u64,
    stored: Bytes,
    /// The place in `stored` right behind the brace that opens `metadata`.
    metadata: usize,
    /// The values of the kind's selectable fields, in the order of its table; read when a selector asks.
    fields: OnceLock<Box<[String]>>,
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
    /// The lines of a watch that say it, by [`EventType`]; `None` when it is so old that they are not kept.
    frames: Mutex<Option<[Option<Bytes>; 3]>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Added,
    Modified,
    Deleted,
}

impl Object {
    /// Takes `value` with the `resourceVersion` of its revision (0: with none, since it was not stored).
    #[must_use]
    pub fn new(kind: &'static Kind, mut value: Value, revision: u64) -> Self {
        if revision != 0 {
            value.take_at("/metadata/resourceVersion");
            if value.object("/metadata").is_none() {
                value.put("/metadata", serde_json::Map::new());
            }
        }
        let stored = Bytes::from(serde_json::to_vec(&value).unwrap_or_default());
        let outline = Outline::read(&stored, "");
        let outline = outline.unwrap_or_else(|| Outline::of(&value, &stored));
        Self::with(kind, outline, stored, revision)
    }

    /// Takes the bytes that the store has under a key; `None` when they are no JSON object.
    #[must_use]
    pub fn of_stored(kind: &'static Kind, stored: &Bytes, revision: u64) -> Option<Self> {
        let api_version = kind.custom.map(|_| kind.api_version()).unwrap_or_default();
        if kind.conversion.is_none()
            && let Some(outline) = Outline::read(stored, &api_version)
        {
            return Some(Self::with(kind, outline, stored.clone(), revision));
        }
        let mut value: Value = serde_json::from_slice(stored)
            .ok()
            .filter(Value::is_object)?;
        if let Some(conversion) = kind.conversion {
            (conversion.from_stored)(&mut value);
        }
        if kind.custom.is_some() {
            value["apiVersion"] = api_version.into();
        }
        Some(Self::new(kind, value, revision))
    }

    /// The same object with another `resourceVersion`.
    #[must_use]
    pub fn at(&self, revision: u64) -> Self {
        Self {
            kind: self.kind,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            labels: self.labels.clone(),
            revision,
            stored: self.stored.clone(),
            metadata: self.metadata,
            fields: OnceLock::new(),
            received: Instant::now(),
        }
    }

    fn with(kind: &'static Kind, outline: Outline, stored: Bytes, revision: u64) -> Self {
        Self {
            kind,
            namespace: outline.namespace,
            name: outline.name,
            uid: outline.uid,
            labels: outline.labels,
            revision,
            stored,
            metadata: outline.metadata,
            fields: OnceLock::new(),
            received: Instant::now(),
        }
    }

    /// The object as JSON, to look into or to change.
    #[must_use]
    pub fn value(&self) -> Value {
        let mut value: Value = serde_json::from_slice(&self.stored).unwrap_or_default();
        if self.revision != 0 {
            value.put("/metadata/resourceVersion", self.revision.to_string());
        }
        value
    }

    /// Appends the JSON, `resourceVersion` included.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        if self.revision == 0 {
            out.extend_from_slice(&self.stored);
            return;
        }
        let (head, tail) = self.stored.split_at(self.metadata);
        out.extend_from_slice(head);
        out.extend_from_slice(b"\"resourceVersion\":\"");
        out.extend_from_slice(self.revision.to_string().as_bytes());
        out.push(b'"');
        if self.has_metadata() {
            out.push(b',');
        }
        out.extend_from_slice(tail);
    }

    /// The JSON, `resourceVersion` included.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.size());
        self.write_to(&mut out);
        out.into()
    }

    /// How many bytes [`Self::bytes`] has.
    #[must_use]
    pub fn size(&self) -> usize {
        const AROUND: usize = "\"resourceVersion\":\"\"".len();
        if self.revision == 0 {
            return self.stored.len();
        }
        let digits = self.revision.ilog10() as usize + 1;
        self.stored.len() + AROUND + digits + usize::from(self.has_metadata())
    }

    /// Whether `metadata` says anything as it is stored.
    fn has_metadata(&self) -> bool {
        let inside = &self.stored[self.metadata..];
        !inside.trim_ascii_start().starts_with(b"}")
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        let labels = &self.labels;
        labels
            .binary_search_by(|(k, _)| (**k).cmp(key))
            .ok()
            .map(|at| &*labels[at].1)
    }

    /// The value of the kind's selectable field at this place of its table.
    #[must_use]
    pub fn field(&self, at: usize) -> &str {
        let read = || {
            let value = self.value();
            self.kind.fields.iter().map(|f| f.read(&value)).collect()
        };
        &self.fields.get_or_init(read)[at]
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
            frames: Mutex::new(Some(Default::default())),
        }
    }

    /// The line of a watch that says this change as `kind`, made once for all watchers.
    #[must_use]
    pub fn frame(&self, kind: EventType) -> Bytes {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *frames {
            Some(frames) => {
                let made = || frame_of(kind.word(), &self.object);
                frames[kind as usize].get_or_insert_with(made).clone()
            }
            None => frame_of(kind.word(), &self.object),
        }
    }

    /// Lets the lines go: whoever still needs one makes it anew.
    pub(crate) fn forget_frames(&self) {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        *frames = None;
    }
}

/// The line of a watch that says `word` of an object.
#[must_use]
pub fn frame_of(word: &str, object: &Object) -> Bytes {
    line(word, object.size(), |out| object.write_to(out))
}

/// The line of a watch that says `word` of what this JSON shows.
#[must_use]
pub fn frame(word: &str, object: &[u8]) -> Bytes {
    line(word, object.len(), |out| out.extend_from_slice(object))
}

fn line(word: &str, size: usize, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut line = Vec::with_capacity(size + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(word.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    write(&mut line);
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds;

    fn pod(stored: &str, revision: u64) -> Object {
        let kind = kinds::find("", "v1", "pods").unwrap();
        Object::of_stored(kind, &Bytes::copy_from_slice(stored.as_bytes()), revision).unwrap()
    }

    /// However it stands in the store, readers see one object with its version.
    #[test]
    fn the_version_is_that_of_the_store_whatever_the_bytes_say() {
        let whole = json!({"metadata": {"name": "n", "resourceVersion": "7"}, "spec": {}});
        for stored in [
            r#"{"metadata":{"name":"n"},"spec":{}}"#,
            r#"{"spec":{},"metadata": { "name":"n","resourceVersion":"3"}}"#,
        ] {
            let object = pod(stored, 7);
            let read: Value = serde_json::from_slice(&object.bytes()).unwrap();
            assert_eq!(read, whole);
            assert_eq!(object.value(), whole);
            assert_eq!(object.bytes().len(), object.size());
            assert_eq!(object.at(8).value()["metadata"]["resourceVersion"], "8");
        }
        for stored in [
            r#"{"metadata":{ }}"#,
            r#"{"kind":"Pod","metadata":null}"#,
            "{}",
        ] {
            let bytes = pod(stored, 7).bytes();
            assert_eq!(bytes.len(), pod(stored, 7).size(), "{stored}");
            let read: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(
                read["metadata"],
                json!({"resourceVersion": "7"}),
                "{stored}"
            );
        }
    }

    #[test]
    fn what_was_not_stored_has_no_version() {
        let kind = kinds::find("", "v1", "pods").unwrap();
        let object = Object::new(kind, json!({"metadata": {"name": "n"}}), 0);
        assert_eq!(&*object.bytes(), br#"{"metadata":{"name":"n"}}"#);
    }

    #[test]
    fn odd_labels_and_fields_are_read_as_before() {
        let object = pod(
            r#"{"metadata":{"labels":{"b":"2","a":1}},"spec":{"nodeName":"x"}}"#,
            1,
        );
        assert_eq!(
            (object.label("a"), object.label("b")),
            (Some(""), Some("2"))
        );
        let at = object
            .kind
            .fields
            .iter()
            .position(|f| f.name == "spec.nodeName");
        assert_eq!(object.field(at.unwrap()), "x");
    }

    #[test]
    fn a_line_that_was_let_go_is_the_same_when_it_is_made_anew() {
        let object = Arc::new(pod(r#"{"metadata":{"name":"n"}}"#, 2));
        let event = Event::new(EventType::Added, object, None);
        let kept = event.frame(EventType::Added);
        event.forget_frames();
        assert_eq!(event.frame(EventType::Added), kept);
        assert!(kept.starts_with(br#"{"type":"ADDED","object":{"metadata":{"#));
    }
}
