//! Everything that a store holds below a prefix, at one revision: taken from one store, put into another.

use futures::{StreamExt, stream};

use crate::{Compare, Key, KeyRange, KeyValue, Op, Result, Revision, Store, StoreError, Txn};

/// One transaction copies at most so many keys (etcd's `--max-txn-ops` is 128 by default)…
const BATCH_KEYS: usize = 100;
/// …with at most so many bytes, beyond its first key.
const BATCH_BYTES: usize = 256 << 10;
/// How many writes are under way at once when revisions are passed over.
const PASSING: usize = 64;
/// History may be compacted while it is read; more often than this it is not bad luck.
const TRIES: usize = 3;

/// The keys below a prefix at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The store's revision that this describes; no key is newer.
    pub revision: Revision,
    /// In the byte order of their keys.
    pub kvs: Vec<KeyValue>,
}

impl Snapshot {
    /// Reads all of `store` that begins with `prefix`. Others may write meanwhile; their writes are left out.
    ///
    /// # Errors
    /// The store's.
    pub async fn take(store: &dyn Store, prefix: &str) -> Result<Self> {
        let mut tries = 1;
        loop {
            match store.range(KeyRange::prefix(prefix), 0, None).await {
                Ok(all) => {
                    return Ok(Self {
                        revision: all.revision,
                        kvs: all.kvs,
                    });
                }
                Err(StoreError::Compacted { .. }) if tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the keys of this snapshot, which must not be there, in a store that goes on from its own revisions but at
    /// least from `floor`: so none is handed out again that the snapshot's store has handed out.
    ///
    /// Forgets the store's history afterwards, since a client of the other store must not follow it. Answers the
    /// store's revision then. `progress` hears how many revisions were passed over, or keys made, of how many.
    ///
    /// # Errors
    /// The store's; [`StoreError::Occupied`] for a key that is there.
    pub async fn put_into(
        &self,
        store: &dyn Store,
        prefix: &str,
        floor: Revision,
        mut progress: impl FnMut(&str, u64, u64) + Send,
    ) -> Result<Revision> {
        pass_over(store, prefix, floor, &mut progress).await?;
        let mut made = 0;
        for batch in batches(&self.kvs) {
            create(store, batch).await?;
            made += batch.len();
            progress("keys", made as u64, self.kvs.len() as u64);
        }
        let revision = store.revision().await?;
        store.compact(revision).await?;
        Ok(revision)
    }
}

/// Deletes every key below `prefix`.
///
/// # Errors
/// The store's.
pub async fn clear(store: &dyn Store, prefix: &str) -> Result<()> {
    loop {
        let some = store.range(KeyRange::prefix(prefix), BATCH_KEYS, None);
        let some = some.await?;
        if some.kvs.is_empty() {
            return Ok(());
        }
        let txn = some
            .kvs
            .iter()
            .fold(Txn::new(), |txn, kv| txn.then(Op::delete(kv.key.clone())));
        store.txn(txn).await?;
    }
}

/// Writes until the store stands at `floor`: there is no other way to move etcd's counter.
async fn pass_over(
    store: &dyn Store,
    prefix: &str,
    floor: Revision,
    progress: &mut (impl FnMut(&str, u64, u64) + Send),
) -> Result<()> {
    let begin = store.revision().await?;
    if begin >= floor {
        return Ok(());
    }
    let key: Key = format!("{prefix}passing-over-revisions").into();
    // The last step is the removal of the key.
    let total = floor - begin;
    let mut steps = stream::iter(1..total)
        .map(|_| store.txn(Txn::new().then(Op::put(key.clone(), "x"))))
        .buffer_unordered(PASSING);
    let mut done = 0;
    while let Some(step) = steps.next().await {
        step?;
        done += 1;
        progress("revisions", done, total);
    }
    drop(steps);
    store
        .txn(Txn::new().then(Op::put(key.clone(), "x")))
        .await?;
    store.txn(Txn::new().then(Op::delete(key))).await?;
    Ok(())
}

async fn create(store: &dyn Store, batch: &[KeyValue]) -> Result<()> {
    let txn = batch.iter().fold(Txn::new(), |txn, kv| {
        txn.when(Compare::absent(kv.key.clone()))
            .then(Op::put(kv.key.clone(), kv.value.clone()))
            .else_get(kv.key.clone())
    });
    let answer = store.txn(txn).await?;
    if answer.succeeded {
        return Ok(());
    }
    let taken = answer.else_kvs.into_iter().flatten().next();
    Err(StoreError::Occupied {
        key: taken.map_or_else(|| batch[0].key.clone(), |kv| kv.key),
    })
}

/// Cuts the keys into parts of one transaction each.
fn batches(kvs: &[KeyValue]) -> impl Iterator<Item = &[KeyValue]> {
    let mut rest = kvs;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = rest.iter().take(BATCH_KEYS).take_while(|kv| {
            let first = bytes == 0;
            bytes += kv.key.len() + kv.value.len();
            first || bytes <= BATCH_BYTES
        });
        let (batch, later) = rest.split_at(fitting.count());
        rest = later;
        (!batch.is_empty()).then_some(batch)
    })
}

/// What is wrong with keys that claim to be the content of a store at `revision`.
pub(crate) fn fault(revision: Revision, kvs: &[KeyValue]) -> Option<String> {
    for (kv, next) in kvs.iter().zip(kvs.iter().skip(1).map(Some).chain([None])) {
        let key = &kv.key;
        if key.is_empty() {
            return Some("a key is empty".into());
        }
        if next.is_some_and(|next| next.key <= kv.key) {
            return Some(format!("key {key:?} is not in order"));
        }
        let ordered = 1 < kv.create_revision
            && kv.create_revision <= kv.mod_revision
            && kv.mod_revision <= revision;
        if !ordered || kv.version == 0 {
            return Some(format!("key {key:?} has impossible revisions"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &str, bytes: usize) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: vec![b'x'; bytes].into(),
            create_revision: 2,
            mod_revision: 2,
            version: 1,
        }
    }

    #[test]
    fn transactions_stay_below_what_etcd_takes() {
        let mut kvs: Vec<KeyValue> = (0..250).map(|n| kv(&format!("s{n:03}"), 10)).collect();
        kvs.push(kv("t", BATCH_BYTES * 3));
        kvs.push(kv("u", BATCH_BYTES - 5));
        kvs.push(kv("v", 100));
        let sizes: Vec<usize> = batches(&kvs).map(<[_]>::len).collect();
        assert_eq!(sizes, [100, 100, 50, 1, 1, 1]);
        assert_eq!(batches(&[]).count(), 0);
    }

    #[test]
    fn impossible_contents_are_named() {
        assert_eq!(fault(2, &[kv("a", 1), kv("b", 1)]), None);
        for (revision, kvs) in [
            (2, vec![kv("b", 1), kv("a", 1)]),
            (2, vec![kv("a", 1), kv("a", 1)]),
            (1, vec![kv("a", 1)]),
            (2, vec![kv("", 1)]),
        ] {
            assert!(fault(revision, &kvs).is_some(), "{kvs:?}");
        }
    }
}
