//! The store in real etcd: conformance, and what only etcd can do to it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use control_plane_store::conformance::Place;
use control_plane_store::etcd::testing::LocalEtcd;
use control_plane_store::etcd::{EtcdStore, Options};
use control_plane_store::{
    KeyRange, Op, Revision, Store, StoreError, Txn, WatchStream, store_conformance,
};
use etcd_client::{Client, PermissionType};
use futures::StreamExt;

store_conformance!(LocalEtcd);

const PATIENCE: Duration = Duration::from_secs(30);

async fn put(
    store: &dyn Store,
    key: &str,
    value: impl Into<Vec<u8>>,
) -> Result<Revision, StoreError> {
    let txn = Txn::new().then(Op::put(key, value.into()));
    store.txn(txn).await.map(|done| done.revision)
}

/// What the watch says until it has told `count` events: their revisions.
async fn follow(stream: &mut WatchStream, count: usize) -> Vec<Revision> {
    let mut revisions = Vec::new();
    while revisions.len() < count {
        let batch = tokio::time::timeout(PATIENCE, stream.next()).await;
        let batch = batch.expect("the watch goes on in time").unwrap().unwrap();
        revisions.extend(batch.events.iter().map(|event| event.revision));
    }
    revisions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_through_a_restart_of_etcd() {
    let mut etcd = LocalEtcd::new().await;
    let store = etcd.open().await;
    let mut stream = store.watch("k", 2).await.unwrap();
    put(&*store, "k", "1").await.unwrap();
    assert_eq!(follow(&mut stream, 1).await, [2]);
    etcd.kill(0);
    let refused = store.get("k").await;
    assert!(
        matches!(&refused, Err(StoreError::Unreachable { servers, .. }) if *servers == etcd.urls()[0]),
        "{refused:?}"
    );
    let refused = put(&*store, "k", "never").await;
    assert!(
        matches!(refused, Err(StoreError::Unreachable { .. })),
        "a write that was never sent is not unknown: {refused:?}"
    );
    etcd.revive(0);
    etcd.wait_for(0).await;
    put(&*store, "k", "2").await.unwrap();
    put(&*store, "other", "x").await.unwrap();
    put(&*store, "k", "3").await.unwrap();
    assert_eq!(follow(&mut stream, 2).await, [3, 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_was_made_anew_ends_the_watches() {
    let mut etcd = LocalEtcd::new().await;
    let store = etcd.open().await;
    let mut stream = store.watch("", 2).await.unwrap();
    for n in 0..5 {
        put(&*store, "k", format!("{n}")).await.unwrap();
    }
    follow(&mut stream, 5).await;
    etcd.wipe(0);
    etcd.revive(0);
    etcd.wait_for(0).await;
    let ended = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap();
    assert!(
        matches!(
            ended,
            Some(Err(StoreError::WentBack {
                seen: 6,
                current: 1
            }))
        ),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_history_is_compacted_by_itself() {
    let etcd = LocalEtcd::new().await;
    let options = Options {
        retention: Some(Duration::from_millis(300)),
        ..etcd.options()
    };
    let stores = [
        EtcdStore::connect(options.clone()).await.unwrap(),
        EtcdStore::connect(options).await.unwrap(),
    ];
    let mut stream = stores[0].watch("k", 2).await.unwrap();
    let begun = Instant::now();
    let mut next = 2;
    loop {
        assert_eq!(put(&stores[1], "k", "x").await.unwrap(), next);
        assert_eq!(
            follow(&mut stream, 1).await,
            [next],
            "a watch that keeps up"
        );
        next += 1;
        let oldest = stores[1].oldest_revision().await.unwrap();
        assert!(oldest < next);
        if oldest > 10 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing is compacted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused = stores[0].watch("k", 2).await.err();
    assert!(
        matches!(refused, Some(StoreError::Compacted { .. })),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_that_etcd_does_not_know_is_told_so() {
    let etcd = LocalEtcd::new().await;
    let mut admin = Client::connect(etcd.urls(), None).await.unwrap();
    admin.user_add("root", "secret", None).await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.user_add("fairlead", "word", None).await.unwrap();
    admin.role_add("registry").await.unwrap();
    let all = etcd_client::Permission::new(PermissionType::Readwrite, "\0").with_from_key();
    admin.role_grant_permission("registry", all).await.unwrap();
    admin.user_grant_role("fairlead", "registry").await.unwrap();
    admin.user_add("guest", "guest", None).await.unwrap();
    admin.auth_enable().await.unwrap();
    let user = |name: &str, password: &str| Options {
        user: Some((name.to_owned(), password.to_owned())),
        ..etcd.options()
    };
    for (options, cause) in [
        (etcd.options(), "user name is empty"),
        (user("fairlead", "wrong"), "invalid user ID or password"),
        (user("guest", "guest"), "permission denied"),
    ] {
        let refused = EtcdStore::connect(options).await.unwrap_err();
        let told = std::error::Error::source(&refused).unwrap().to_string();
        assert!(matches!(refused, StoreError::Refused { .. }), "{refused:?}");
        assert!(told.contains(cause), "{told}");
    }
    let store = EtcdStore::connect(user("fairlead", "word")).await.unwrap();
    let mut stream = store.watch("k", 2).await.unwrap();
    let at = put(&store, "k", "1").await.unwrap();
    assert_eq!(follow(&mut stream, 1).await, [at]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_full_refuses_writes_and_can_be_read() {
    let quota = ["--quota-backend-bytes", "4000000"];
    let etcd = LocalEtcd::start_with(1, "http", &quota);
    etcd.wait_for(0).await;
    let store = EtcdStore::connect(etcd.options()).await.unwrap();
    let mut kept = 0;
    let refused = loop {
        match put(&store, &format!("k/{kept}"), vec![b'x'; 500_000]).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 100, "the quota is never reached");
    };
    assert!(
        matches!(refused, StoreError::QuotaReached { .. }),
        "{refused:?}"
    );
    assert!(refused.to_string().contains("NOSPACE"), "{refused}");
    let all = store.range(KeyRange::prefix("k/"), 0, None).await.unwrap();
    assert_eq!(all.count, kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_others_disturb_only_where_they_are() {
    let etcd = LocalEtcd::new().await;
    let store: Arc<dyn Store> = Arc::new(EtcdStore::connect(etcd.options()).await.unwrap());
    let mut stream = store.watch("/registry/", 2).await.unwrap();
    let mut other = Client::connect(etcd.urls(), None).await.unwrap();
    other.put(&b"/other/\xff"[..], "x", None).await.unwrap();
    let at = put(&*store, "/registry/k", "1").await.unwrap();
    assert_eq!(follow(&mut stream, 1).await, [at]);
    let ours = store
        .range(KeyRange::prefix("/registry/"), 0, None)
        .await
        .unwrap();
    assert_eq!(ours.count, 1);
    let all = store.range(KeyRange::prefix(""), 0, None).await;
    assert!(
        matches!(&all, Err(StoreError::ForeignKey { key }) if key == r"/other/\xff"),
        "{all:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_never_was_is_passed_over() {
    let etcd = LocalEtcd::new().await;
    let servers = [vec!["http://127.0.0.1:9".to_owned()], etcd.urls()].concat();
    let options = Options {
        servers,
        ..etcd.options()
    };
    let begun = Instant::now();
    let store = EtcdStore::connect(options).await.unwrap();
    put(&store, "k", "1").await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}
