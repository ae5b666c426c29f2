//! The caches of all kinds, found by the keys of the store.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::ops::Bound;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;

use control_plane_store::{KeyValue, StoreError};
use futures::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::{DEFINITIONS, KindCache, State, decode};
use crate::kinds::Kinds;
use crate::object::Object;

/// So many objects are decoded at a time: enough to be worth a thread's turn.
const SHARE: usize = 1_000;

#[derive(Debug)]
pub(super) struct Table {
    pub(super) caches: Vec<KindCache>,
    /// By their prefix, none of which begins with another, the caches of the versions that show its objects.
    by_prefix: BTreeMap<&'static str, Vec<usize>>,
    pub(super) kinds: Kinds,
}

impl Table {
    pub(super) fn new(caches: Vec<KindCache>) -> Self {
        let kinds = Kinds::new(caches.iter().map(|k| k.kind).collect());
        let mut by_prefix: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (at, cache) in caches.iter().enumerate() {
            if !cache.kind.prefix.is_empty() {
                by_prefix.entry(cache.kind.prefix).or_default().push(at);
            }
        }
        Self {
            caches,
            by_prefix,
            kinds,
        }
    }

    /// The kinds that a key belongs to (one for each version that shows it), and the rest of the key.
    pub(super) fn find<'a>(&self, key: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
        let below = (Bound::Unbounded, Bound::Included(key));
        let nearest = self.by_prefix.range::<str, _>(below).next_back();
        nearest
            .and_then(|(prefix, caches)| Some((key.strip_prefix(prefix)?, caches)))
            .into_iter()
            .flat_map(|(rest, caches)| caches.iter().map(move |at| (*at, rest)))
    }

    /// The objects of all kinds. To decode them is most of what a start costs, so all processors share in it, while
    /// the store reads on.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn decode_all(
        self: &Arc<Self>,
        parts: impl Stream<Item = Result<Vec<KeyValue>, StoreError>>,
    ) -> Result<Vec<State>, StoreError> {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let shares = parts
            .map_ok(|part| stream::iter(shares(part)).map(Ok))
            .try_flatten();
        let decoding = shares.map_ok(|share| {
            let table = self.clone();
            let decoding = tokio::task::spawn_blocking(move || table.decode(&share));
            decoding.map(|done| Ok(done.unwrap_or_else(|panic| resume_unwind(panic.into_panic()))))
        });
        let mut decoded = pin!(decoding.try_buffered(processors));
        let mut objects: Vec<Vec<_>> = self.caches.iter().map(|_| Vec::new()).collect();
        while let Some(share) = decoded.try_next().await? {
            for (at, rest, object) in share {
                objects[at].push((rest, object));
            }
        }
        let state = |objects: Vec<_>| State {
            objects: objects.into_iter().collect(),
            ..State::default()
        };
        Ok(objects.into_iter().map(state).collect())
    }

    /// The objects under these keys, each with the place of its cache and its key there.
    fn decode(&self, kvs: &[KeyValue]) -> Vec<(usize, String, Arc<Object>)> {
        let found = kvs.iter().flat_map(|kv| {
            let places = self.find(&kv.key);
            places.filter_map(move |(at, rest)| {
                let object = decode(self.caches[at].kind, kv)?;
                Some((at, rest.to_owned(), object))
            })
        });
        found.collect()
    }

    pub(super) fn definitions(&self) -> Vec<Value> {
        let own = self.caches.iter().find(|k| k.kind.prefix == DEFINITIONS);
        let objects = own.map(|k| k.read().objects.values().cloned().collect::<Vec<_>>());
        objects.into_iter().flatten().map(|o| o.value()).collect()
    }
}

fn shares(part: Vec<KeyValue>) -> impl Iterator<Item = Vec<KeyValue>> {
    let mut rest = part.into_iter();
    std::iter::from_fn(move || {
        let share: Vec<_> = rest.by_ref().take(SHARE).collect();
        (!share.is_empty()).then_some(share)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds;

    #[tokio::test]
    async fn every_object_is_there_in_whatever_parts_it_comes() {
        let table = Arc::new(Table::new(kinds::all().map(KindCache::new).collect()));
        let kind = kinds::find("", "v1", "configmaps").unwrap();
        let stored = |at: usize| {
            let name = format!("m{at:05}");
            let value = json!({"metadata": {"name": name, "namespace": "a"}});
            KeyValue {
                key: format!("{}a/{name}", kind.prefix).into(),
                value: value.to_string().into(),
                create_revision: 2,
                mod_revision: at as u64 + 2,
                version: 1,
            }
        };
        let kvs: Vec<_> = (0..2 * SHARE + 7).map(stored).collect();
        let (one, two) = kvs.split_at(SHARE + 3);
        let parts = [one, two, &[]].map(|part| Ok(part.to_vec()));
        let states = table.decode_all(stream::iter(parts)).await.unwrap();
        let mut caches = table.caches.iter();
        let at = caches.position(|cache| std::ptr::eq(cache.kind, kind));
        let read: Vec<u64> = states[at.unwrap()]
            .objects
            .values()
            .map(|object| object.revision)
            .collect();
        let want: Vec<u64> = kvs.iter().map(|kv| kv.mod_revision).collect();
        assert_eq!(read, want);
        let others: usize = states.iter().map(|state| state.objects.len()).sum();
        assert_eq!(others, kvs.len());
    }
}
