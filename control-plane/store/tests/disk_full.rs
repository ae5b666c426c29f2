//! A full disk: writes are refused with a reason, what was acknowledged stays, and with space all goes on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::error::Error;
use std::path::Path;

use control_plane_store::embedded::{EmbeddedStore, Options};
use control_plane_store::{KeyRange, Op, Snapshot, Store, StoreError, Txn};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` on a file system of 8 MiB that only its own thread, and threads that it starts, can see.
fn on_a_small_disk(test: fn(&Path)) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a file system of its own needs root, for mount(2)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let (kind, size) = (Some("tmpfs"), Some("size=8m"));
            mount(kind, folder.path(), kind, MsFlags::empty(), size).unwrap();
            test(folder.path());
        };
        scope.spawn(run).join().unwrap();
    });
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

async fn put(store: &EmbeddedStore, key: &str, bytes: usize) -> Result<u64, StoreError> {
    let txn = Txn::new().then(Op::put(key, vec![b'x'; bytes]));
    store.txn(txn).await.map(|done| done.revision)
}

#[test]
fn a_full_disk_refuses_writes_and_keeps_what_was_acknowledged() {
    on_a_small_disk(|folder| {
        let path = folder.join("store.redb");
        let open = || EmbeddedStore::open(&path, Options::default());
        let store = open().unwrap();
        let mut acknowledged = 0;
        let refused = loop {
            match block_on(put(&store, &format!("key/{acknowledged:04}"), 20_000)) {
                Ok(_) => acknowledged += 1,
                Err(error) => break error,
            }
            assert!(acknowledged < 1_000, "the disk does not fill up");
        };
        assert!(
            matches!(&refused, StoreError::DiskFull { path: named, .. } if *named == path),
            "{refused:?}"
        );
        let text = refused.to_string();
        assert!(
            text.contains("is full") && text.contains("Free some space"),
            "{text}"
        );
        let cause = refused.source().unwrap().to_string();
        assert!(cause.contains("No space left on device"), "{cause}");

        // It can still be read, and goes on refusing.
        let keys = |store: &EmbeddedStore| {
            let all = block_on(store.range(KeyRange::prefix("key/"), 0, None)).unwrap();
            all.kvs.len()
        };
        assert_eq!(keys(&store), acknowledged);
        let again = block_on(put(&store, "small", 1));
        assert!(
            matches!(again, Err(StoreError::DiskFull { .. })),
            "{again:?}"
        );

        // A snapshot has no room either, and leaves nothing behind that looks like a store.
        let taken = block_on(Snapshot::take(&store, "")).unwrap();
        let copy = folder.join("copy.redb");
        let refused = EmbeddedStore::create(&copy, &taken, 0);
        assert!(
            matches!(refused, Err(StoreError::DiskFull { .. })),
            "{refused:?}"
        );
        let left: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");

        drop(store);
        // More space, as an operator would make it.
        let size = Some("size=64m");
        let none = None::<&str>;
        mount(none, folder, none, MsFlags::MS_REMOUNT, size).unwrap();
        let store = open().unwrap();
        assert_eq!(keys(&store), acknowledged, "an acknowledged write is gone");
        block_on(put(&store, "small", 1)).unwrap();
    });
}

#[test]
fn a_store_that_does_not_fit_is_refused_by_name() {
    on_a_small_disk(|folder| {
        std::fs::write(folder.join("filler"), vec![0; 9 << 20]).unwrap_err();
        let path = folder.join("store.redb");
        let refused = EmbeddedStore::open(&path, Options::default()).unwrap_err();
        assert!(
            matches!(&refused, StoreError::DiskFull { path: named, .. } if *named == path),
            "{refused:?}"
        );
    });
}
