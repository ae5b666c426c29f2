//! The few words of a stored object that reading and selecting need, found without building the whole.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::json::Json;

/// What [`Object`](crate::Object) keeps beside its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// Empty for cluster-scoped kinds.
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    /// Sorted by key.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// The place right behind the brace that opens `metadata`.
    pub metadata: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Whole<'a> {
    api_version: Option<&'a str>,
    #[serde(borrow)]
    metadata: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    namespace: Box<str>,
    #[serde(default)]
    name: Box<str>,
    #[serde(default)]
    uid: Box<str>,
    #[serde(default)]
    labels: BTreeMap<Box<str>, Box<str>>,
    resource_version: Option<IgnoredAny>,
}

impl Outline {
    /// Reads `bytes`; `None` for anything but an object as this server stores it: in `api_version` (empty: in any), and
    /// without a `resourceVersion`.
    pub fn read(bytes: &[u8], api_version: &str) -> Option<Self> {
        let whole: Whole = serde_json::from_slice(bytes).ok()?;
        if !api_version.is_empty() && whole.api_version != Some(api_version) {
            return None;
        }
        let text = whole.metadata.get();
        // A sequence of the fields' values would be taken for a struct too.
        let metadata: Metadata = text
            .starts_with('{')
            .then(|| serde_json::from_str(text).ok())??;
        if metadata.resource_version.is_some() {
            return None;
        }
        Some(Self {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            labels: metadata.labels.into_iter().collect(),
            metadata: inside(bytes, text),
        })
    }

    /// The same of any object; `bytes` are its JSON, and its `metadata` is an object.
    pub fn of(value: &Value, bytes: &[u8]) -> Self {
        let mut labels: Vec<(Box<str>, Box<str>)> = value
            .object("/metadata/labels")
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into()))
            .collect();
        labels.sort();
        let whole: Option<Whole> = serde_json::from_slice(bytes).ok();
        Self {
            namespace: value.text("/metadata/namespace").into(),
            name: value.text("/metadata/name").into(),
            uid: value.text("/metadata/uid").into(),
            labels: labels.into(),
            metadata: whole.map_or(0, |whole| inside(bytes, whole.metadata.get())),
        }
    }
}

/// The place right behind the brace that opens `metadata`, which is `text`, in `bytes`.
fn inside(bytes: &[u8], text: &str) -> usize {
    text.as_ptr() as usize - bytes.as_ptr() as usize + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_an_object_and_the_place_of_its_version() {
        let bytes = br#"{"apiVersion":"v1","data":{"metadata":"{"},"metadata": {"labels":{"b":"2","a":"\u0031"},"name":"n","namespace":"s","uid":"u"}}"#;
        let outline = Outline::read(bytes, "v1").unwrap();
        assert_eq!(
            (&*outline.namespace, &*outline.name, &*outline.uid),
            ("s", "n", "u")
        );
        let labels = [("a".into(), "1".into()), ("b".into(), "2".into())];
        assert_eq!(*outline.labels, labels);
        assert!(bytes[outline.metadata..].starts_with(br#""labels""#));
    }

    #[test]
    fn what_this_server_would_not_store_is_left_to_the_long_way() {
        for other in [
            r#"{"metadata":{"name":"n","resourceVersion":"7"}}"#,
            r#"{"metadata":{"name":null}}"#,
            r#"{"metadata":{"labels":{"a":1}}}"#,
            r#"{"metadata":["s","n","u"]}"#,
            r#"{"metadata":{},"metadata":{}}"#,
            r#"{"kind":"x"}"#,
            "[]",
            "{",
        ] {
            assert_eq!(Outline::read(other.as_bytes(), ""), None, "{other}");
        }
        let other_version = br#"{"apiVersion":"a/v2","metadata":{}}"#;
        assert!(Outline::read(other_version, "a/v1").is_none());
        assert!(Outline::read(other_version, "").is_some());
    }
}
