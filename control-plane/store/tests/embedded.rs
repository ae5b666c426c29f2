//! The embedded store on a real file: conformance, restarts, refusals, and a size that stays bounded.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use control_plane_store::conformance::{AnyStore, Place};
use control_plane_store::embedded::{EmbeddedStore, Options, Retention};
use control_plane_store::{
    Event, KeyRange, KeyValue, Op, Revision, Store, StoreError, Txn, store_conformance,
};
use futures::StreamExt;
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn file(&self) -> PathBuf {
        self.0.path().join("store.redb")
    }
}

impl Place for Folder {
    async fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    async fn open(&mut self) -> AnyStore {
        Arc::new(open(&self.file()))
    }

    async fn restart(&mut self, store: AnyStore) -> AnyStore {
        drop(store);
        self.open().await
    }
}

store_conformance!(Folder);

fn keep_everything() -> Options {
    let retention = Retention {
        window: Duration::from_secs(86_400),
        ..Retention::default()
    };
    Options {
        retention,
        ..Options::default()
    }
}

fn open(path: &Path) -> EmbeddedStore {
    EmbeddedStore::open(path, keep_everything()).unwrap()
}

async fn put(store: &dyn Store, key: &str, value: impl Into<Vec<u8>>) -> Revision {
    let txn = Txn::new().then(Op::put(key, value.into()));
    store.txn(txn).await.unwrap().revision
}

async fn everything(store: &dyn Store, at: Option<Revision>) -> Vec<KeyValue> {
    store.range(KeyRange::prefix(""), 0, at).await.unwrap().kvs
}

/// All events from `from` to the present.
async fn events_from(store: &dyn Store, from: Revision) -> Vec<Event> {
    let last = store.revision().await.unwrap();
    let mut stream = store.watch("", from).await.unwrap();
    let mut events = Vec::new();
    let mut seen = from - 1;
    while seen < last {
        let batch = stream.next().await.unwrap().unwrap();
        events.extend(batch.events);
        seen = batch.revision;
    }
    events
}

/// A generator of the test's own, so that a failure can be repeated from its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Random transactions, compactions and restarts against the plainest model: a map for each revision.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_history_reads_the_same_before_and_after_a_restart() {
    for seed in 1..=12 {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("store.redb");
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ seed);
        let mut store = open(&path);
        let mut oldest = 1;
        let mut snapshots = BTreeMap::from([(1, BTreeMap::<String, Vec<u8>>::new())]);
        for step in 0..120 {
            match dice.roll(20) {
                0 => {
                    drop(store);
                    store = open(&path);
                }
                1 => {
                    let last = *snapshots.keys().next_back().unwrap();
                    oldest += dice.roll(last - oldest + 1);
                    store.compact(oldest).await.unwrap();
                }
                _ => {
                    let (last, mut state) = snapshots.pop_last().unwrap();
                    snapshots.insert(last, state.clone());
                    let mut txn = Txn::new();
                    let first = dice.roll(6);
                    let mut changed = false;
                    for key in (first..first + 1 + dice.roll(3)).map(|key| format!("key/{key}")) {
                        if dice.roll(3) == 0 {
                            changed |= state.remove(&key).is_some();
                            txn = txn.then(Op::delete(key));
                        } else {
                            let value = format!("{seed}/{step}").into_bytes();
                            changed = true;
                            state.insert(key.clone(), value.clone());
                            txn = txn.then(Op::put(key, value));
                        }
                    }
                    let at = store.txn(txn).await.unwrap().revision;
                    assert_eq!(at, last + u64::from(changed), "seed {seed} step {step}");
                    snapshots.insert(at, state);
                }
            }
            let at = oldest + dice.roll(snapshots.keys().next_back().unwrap() - oldest + 1);
            let seen: BTreeMap<String, Vec<u8>> = everything(&store, Some(at))
                .await
                .into_iter()
                .map(|kv| (kv.key.to_string(), kv.value.to_vec()))
                .collect();
            assert_eq!(
                seen, snapshots[&at],
                "seed {seed} step {step} revision {at}"
            );
        }
        let before = (
            everything(&store, None).await,
            events_from(&store, oldest).await,
        );
        drop(store);
        let store = open(&path);
        let after = (
            everything(&store, None).await,
            events_from(&store, oldest).await,
        );
        assert_eq!(
            before, after,
            "seed {seed}: with every revision, version and previous value"
        );
        assert_eq!(store.oldest_revision().await.unwrap(), oldest);
    }
}

#[tokio::test]
async fn a_watcher_that_compaction_overtakes_is_told_so() {
    let mut folder = Folder::new().await;
    let store = folder.open().await;
    put(&*store, "k", "1").await;
    let mut slow = store.watch("", 1).await.unwrap();
    put(&*store, "k", "2").await;
    let at = put(&*store, "k", "3").await;
    store.compact(at).await.unwrap();
    let refused = slow.next().await.unwrap();
    assert!(
        matches!(refused, Err(StoreError::Compacted { requested: 1, oldest }) if oldest == at),
        "{refused:?}"
    );
    assert!(
        slow.next().await.is_none(),
        "the stream ends after its error"
    );
}

#[tokio::test]
async fn watches_end_when_the_store_is_closed() {
    let mut folder = Folder::new().await;
    let store = folder.open().await;
    let mut stream = store.watch("", 2).await.unwrap();
    drop(store);
    assert!(matches!(stream.next().await, Some(Err(StoreError::Closed))));
}

#[tokio::test]
async fn a_second_opener_is_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.redb");
    let first = open(&path);
    let refused = EmbeddedStore::open(&path, Options::default()).unwrap_err();
    assert!(matches!(&refused, StoreError::Locked { path: named } if *named == path));
    assert!(refused.to_string().contains("store.redb"), "{refused}");
    drop(first);
    open(&path);
}

#[tokio::test]
async fn an_entry_over_the_limit_is_refused_and_nothing_else_is_lost() {
    let mut folder = Folder::new().await;
    let store = folder.open().await;
    let txn = Txn::new()
        .then(Op::put("small", "1"))
        .then(Op::put("large", vec![0; 3 << 19]));
    let refused = store.txn(txn).await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::TooLarge { key, .. } if &**key == "large"),
        "{refused:?}"
    );
    assert_eq!(put(&*store, "small", "1").await, 2);
}

#[tokio::test]
async fn a_missing_folder_is_named() {
    let refused = EmbeddedStore::open("/nonexistent/store.redb", Options::default()).unwrap_err();
    assert!(matches!(refused, StoreError::Open { .. }), "{refused:?}");
    assert!(refused.to_string().contains("/nonexistent/store.redb"));
}

/// A store of a few dozen pages, closed properly.
async fn closed_store(folder: &TempDir) -> (PathBuf, Vec<KeyValue>) {
    let path = folder.path().join("store.redb");
    let store = open(&path);
    for number in 0..200 {
        put(&store, &format!("key/{number}"), vec![7; 900]).await;
    }
    let content = everything(&store, None).await;
    drop(store);
    (path, content)
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("notes.txt");
    let content = b"shopping list".repeat(4_000);
    std::fs::write(&path, &content).unwrap();
    let refused = EmbeddedStore::open(&path, Options::default()).unwrap_err();
    assert!(matches!(&refused, StoreError::Corrupted { path: named, .. } if *named == path));
    assert!(refused.to_string().contains("notes.txt"), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), content);
}

#[tokio::test]
async fn a_truncated_file_is_refused() {
    let folder = TempDir::new().unwrap();
    let (path, _) = closed_store(&folder).await;
    let size = std::fs::metadata(&path).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(size / 2).unwrap();
    let refused = EmbeddedStore::open(&path, Options::default()).unwrap_err();
    assert!(
        matches!(refused, StoreError::Corrupted { .. }),
        "{refused:?}"
    );
}

/// A flipped bit either hits a byte that no one needs, or the store refuses to open. It never opens with less.
#[tokio::test]
async fn a_flipped_bit_never_goes_unnoticed() {
    let folder = TempDir::new().unwrap();
    let (path, content) = closed_store(&folder).await;
    let bytes = std::fs::read(&path).unwrap();
    let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let mut dice = Dice(77);
    let mut refused = 0;
    for _ in 0..100 {
        let at = used[usize::try_from(dice.roll(used.len() as u64)).unwrap()];
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << dice.roll(8);
        std::fs::write(&path, &damaged).unwrap();
        match EmbeddedStore::open(&path, keep_everything()) {
            Ok(store) => assert_eq!(everything(&store, None).await, content, "byte {at}"),
            Err(StoreError::Corrupted { .. }) => refused += 1,
            Err(other) => panic!("byte {at}: {other:?}"),
        }
    }
    assert!(refused > 30, "only {refused} of 100 damages were seen");
}

/// A few leases renewed without end, as in every cluster: neither the file nor the history may grow with time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_stays_bounded_under_endless_updates() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.redb");
    let retention = Retention {
        window: Duration::ZERO,
        min_revisions: 200,
        ..Retention::default()
    };
    let options = Options {
        retention,
        ..Options::default()
    };
    let store = Arc::new(EmbeddedStore::open(&path, options).unwrap());
    let size = || std::fs::metadata(&path).unwrap().len();
    let mut early = 0;
    for round in 0..40 {
        let writers = (0..100).map(|writer| {
            let store = store.clone();
            async move { put(&*store, &format!("lease/{writer}"), vec![round; 4_000]).await }
        });
        futures::future::join_all(writers).await;
        if round == 9 {
            early = size();
        }
    }
    assert!(size() <= early * 2, "{early} bytes grew to {}", size());
    let retained = store.revision().await.unwrap() - store.oldest_revision().await.unwrap();
    assert!(retained <= 400, "{retained} revisions are retained");
    assert_eq!(everything(&*store, None).await.len(), 100);
}
