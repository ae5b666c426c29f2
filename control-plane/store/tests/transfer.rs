//! What a store holds, moved into another one: between a file and etcd, and through a backup.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use control_plane_store::conformance::Place;
use control_plane_store::embedded::{EmbeddedStore, Options};
use control_plane_store::etcd::testing::LocalEtcd;
use control_plane_store::{
    KeyRange, KeyValue, Op, Revision, Snapshot, Store, StoreError, Txn, backup, snapshot,
};
use futures::StreamExt;

const PREFIX: &str = "/registry/";

fn open(path: &Path) -> Arc<dyn Store> {
    Arc::new(EmbeddedStore::open(path, Options::default()).unwrap())
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    let txn = Txn::new().then(Op::put(key, value.to_owned()));
    store.txn(txn).await.unwrap().revision
}

/// Some keys with a past: changed, deleted, several of one transaction; and one that is not below the prefix.
async fn fill(store: &dyn Store) {
    put(store, "/elsewhere", "x").await;
    for n in 0..150 {
        put(
            store,
            &format!("/registry/configmaps/a/{n:03}"),
            &format!("{n}"),
        )
        .await;
    }
    put(store, "/registry/configmaps/a/007", "changed").await;
    let several = Txn::new()
        .then(Op::put("/registry/pods/a/one", "1"))
        .then(Op::put("/registry/pods/a/two", vec![b'x'; 700_000]))
        .then(Op::delete("/registry/configmaps/a/000"));
    store.txn(several).await.unwrap();
    let gone = Txn::new().then(Op::delete("/registry/configmaps/a/001"));
    store.txn(gone).await.unwrap();
}

fn contents(kvs: &[KeyValue]) -> Vec<(&str, &[u8])> {
    kvs.iter().map(|kv| (&*kv.key, &*kv.value)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_made_from_a_snapshot_goes_on_where_the_other_store_was() {
    let folder = tempfile::tempdir().unwrap();
    let source = open(&folder.path().join("source.redb"));
    fill(&*source).await;
    let taken = Snapshot::take(&*source, PREFIX).await.unwrap();
    assert_eq!(taken.kvs.len(), 150);
    let path = folder.path().join("target.redb");
    EmbeddedStore::create(&path, &taken, 0).unwrap();
    for _ in 0..2 {
        let target = open(&path);
        let all = target.range(KeyRange::prefix(""), 0, None).await.unwrap();
        assert_eq!(all.kvs, taken.kvs, "keys keep the revisions that they had");
        assert_eq!(all.revision, taken.revision);
        assert_eq!(target.oldest_revision().await.unwrap(), taken.revision + 1);
        let before = target.watch("", taken.revision).await.err();
        assert!(
            matches!(before, Some(StoreError::Compacted { .. })),
            "{before:?}"
        );
    }
    let target = open(&path);
    let mut changes = target.watch("", taken.revision + 1).await.unwrap();
    let old = taken.kvs.iter().find(|kv| kv.key.ends_with("007")).unwrap();
    let update = Txn::update(old.key.clone(), old.mod_revision, "next");
    let done = target.txn(update).await.unwrap();
    assert_eq!((done.succeeded, done.revision), (true, taken.revision + 1));
    let batch = changes.next().await.unwrap().unwrap();
    assert_eq!(batch.events[0].prev_kv.as_ref(), Some(old));
    drop((changes, target));
    assert_eq!(open(&path).revision().await.unwrap(), taken.revision + 1);

    let refused = EmbeddedStore::create(&path, &taken, 0);
    assert!(
        matches!(refused, Err(StoreError::Exists { .. })),
        "{refused:?}"
    );
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "nothing unfinished is left: {left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_made_later_hands_out_no_revision_again() {
    let folder = tempfile::tempdir().unwrap();
    let taken = Snapshot {
        revision: 7,
        kvs: Vec::new(),
    };
    let path = folder.path().join("target.redb");
    EmbeddedStore::create(&path, &taken, 1_000).unwrap();
    let target = open(&path);
    assert_eq!(target.revision().await.unwrap(), 1_000);
    assert_eq!(put(&*target, "k", "1").await, 1_001);
    drop(target);
    assert_eq!(put(&*open(&path), "k", "2").await, 1_002);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_moves_into_etcd_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let source = open(&folder.path().join("source.redb"));
    fill(&*source).await;
    let taken = Snapshot::take(&*source, PREFIX).await.unwrap();

    let mut etcd = LocalEtcd::new().await;
    let target = etcd.open().await;
    put(&*target, "/others/key", "stays").await;
    let floor = taken.revision + 40;
    let mut told = Vec::new();
    let note = |what: &str, done, of| told.push((what.to_owned(), done, of));
    let revision = taken.put_into(&*target, PREFIX, floor, note).await.unwrap();
    assert_eq!(told.last(), Some(&("keys".to_owned(), 150, 150)));
    let moved = Snapshot::take(&*target, PREFIX).await.unwrap();
    assert_eq!(contents(&moved.kvs), contents(&taken.kvs));
    assert_eq!(moved.revision, revision);
    assert!(
        moved.kvs.iter().all(|kv| kv.mod_revision > floor),
        "no revision means two things"
    );
    // Who followed the other store has to list again.
    for from in [taken.revision, revision - 1] {
        let refused = target.watch(PREFIX, from).await.err();
        assert!(
            matches!(refused, Some(StoreError::Compacted { .. })),
            "{refused:?}"
        );
    }

    let occupied = taken.put_into(&*target, PREFIX, 0, |_, _, _| {}).await;
    assert!(
        matches!(&occupied, Err(StoreError::Occupied { key }) if key.starts_with(PREFIX)),
        "{occupied:?}"
    );
    let path = folder.path().join("back.redb");
    EmbeddedStore::create(&path, &moved, 0).unwrap();
    let back = Snapshot::take(&*open(&path), PREFIX).await.unwrap();
    assert_eq!(back, moved);

    snapshot::clear(&*target, PREFIX).await.unwrap();
    let rest = target.range(KeyRange::prefix(""), 0, None).await.unwrap();
    assert_eq!(contents(&rest.kvs), [("/others/key", &b"stays"[..])]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_taken_under_load_is_one_moment() {
    let folder = tempfile::tempdir().unwrap();
    let mut etcd = LocalEtcd::new().await;
    let embedded = open(&folder.path().join("source.redb"));
    for store in [embedded, etcd.open().await] {
        // Two keys that always change together.
        let writer = {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0.. {
                    let txn = Txn::new()
                        .then(Op::put("/registry/a", format!("{n}")))
                        .then(Op::put(format!("/registry/m/{n}"), "x"))
                        .then(Op::put("/registry/z", format!("{n}")));
                    store.txn(txn).await.unwrap();
                }
            })
        };
        for _ in 0..20 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            let taken = Snapshot::take(&*store, PREFIX).await.unwrap();
            let mut bytes = Vec::new();
            backup::write(&taken, &mut bytes).unwrap();
            let read = backup::read(&bytes[..]).unwrap();
            let value = |key: &str| {
                read.kvs
                    .iter()
                    .find(|kv| &*kv.key == key)
                    .map(|kv| &kv.value)
            };
            assert_eq!(value("/registry/a"), value("/registry/z"));
        }
        writer.abort();
    }
}
