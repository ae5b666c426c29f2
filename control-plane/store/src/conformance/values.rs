//! Single keys and transactions.

use super::*;

pub async fn a_new_store_is_empty_and_stands_at_revision_one(store: AnyStore) {
    let all = store
        .range(KeyRange::prefix(""), 0, None)
        .await
        .expect("an empty range can be read");
    assert!(all.kvs.is_empty() && all.count == 0 && !all.more);
    assert_eq!((all.revision, revision(&store).await), (1, 1));
    assert_eq!(get(&store, "absent").await, None);
    assert_eq!(put(&store, "first", "1").await, 2);
}

pub async fn versions_and_revisions_count_as_in_etcd(store: AnyStore) {
    let created = put(&store, "key", "a").await;
    let updated = put(&store, "key", "a").await;
    assert_eq!(updated, created + 1, "the same value again is a change too");
    let kv = get(&store, "key").await.expect("the key exists");
    assert_eq!(
        (kv.create_revision, kv.mod_revision, kv.version),
        (created, updated, 2)
    );

    let deleted = delete(&store, "key").await;
    assert_eq!(deleted, updated + 1);
    assert_eq!(get(&store, "key").await, None);

    let again = put(&store, "key", "b").await;
    let kv = get(&store, "key").await.expect("the key exists again");
    assert_eq!(
        (kv.create_revision, kv.mod_revision, kv.version),
        (again, again, 1)
    );
}

pub async fn a_failed_comparison_changes_nothing_and_reads_the_other_keys(store: AnyStore) {
    let at = put(&store, "taken", "1").await;
    let txn = Txn::new()
        .when(Compare::unchanged("taken", at))
        .when(Compare::absent("taken"))
        .then(Op::put("taken", "2"))
        .then(Op::put("other", "2"))
        .else_get("taken")
        .else_get("absent");
    let response = store.txn(txn).await.expect("a comparison may fail");
    assert!(!response.succeeded && response.results.is_empty());
    assert_eq!(response.revision, at);
    assert_eq!(text(response.else_kvs[0].as_ref()), Some("1"));
    assert_eq!(response.else_kvs[1], None);
    assert_eq!(get(&store, "other").await, None);

    let done = store
        .txn(Txn::update("taken", at, "2"))
        .await
        .expect("the comparison holds");
    assert!(done.succeeded && done.else_kvs.is_empty());
    assert_eq!(text(done.results[0].previous.as_ref()), Some("1"));
    assert_eq!(text(done.results[0].current.as_ref()), Some("2"));
    let stale = store
        .txn(Txn::delete("taken", at))
        .await
        .expect("a comparison may fail");
    assert!(!stale.succeeded);
    assert_eq!(text(stale.else_kvs[0].as_ref()), Some("2"));
}

pub async fn a_transaction_without_a_change_takes_no_revision(store: AnyStore) {
    let at = put(&store, "key", "1").await;
    let mut events = watch(&store, "", at + 1).await;
    assert_eq!(delete(&store, "absent").await, at);
    let nothing = store.txn(Txn::new()).await.expect("an empty transaction");
    assert!(nothing.succeeded);
    assert_eq!((nothing.revision, revision(&store).await), (at, at));
    assert_silent(&mut events).await;
}

pub async fn one_transaction_is_one_revision(store: AnyStore) {
    let at = put(&store, "b", "old").await;
    let txn = Txn::new()
        .then(Op::put("a", "1"))
        .then(Op::delete("b"))
        .then(Op::put("c", "3"));
    let done = store.txn(txn).await.expect("the transaction succeeds");
    assert_eq!(done.revision, at + 1);
    assert_eq!(done.results.len(), 3);
    assert_eq!(text(done.results[1].previous.as_ref()), Some("old"));
    assert_eq!(done.results[1].current, None);

    let events = next_events(&mut watch(&store, "", at + 1).await, 3).await;
    assert!(events.iter().all(|event| event.revision == at + 1));
    let past = store
        .range(KeyRange::prefix(""), 0, Some(at))
        .await
        .expect("the past is retained");
    assert_eq!(past.count, 1, "no part of the transaction shows before it");
}

pub async fn a_key_twice_in_one_transaction_is_refused(store: AnyStore) {
    let txn = Txn::new().then(Op::put("k", "1")).then(Op::delete("k"));
    let refused = store.txn(txn).await;
    assert!(
        matches!(&refused, Err(StoreError::DuplicateKey { key }) if &**key == "k"),
        "{refused:?}"
    );
    assert_eq!(revision(&store).await, 1);
}

pub async fn an_empty_key_is_refused(store: AnyStore) {
    for txn in [
        Txn::new().then(Op::put("", "1")),
        Txn::new().then(Op::put("a", "1")).then(Op::delete("")),
        Txn::create("", "1"),
    ] {
        let refused = store.txn(txn).await;
        assert!(matches!(refused, Err(StoreError::EmptyKey)), "{refused:?}");
    }
    assert_eq!((get(&store, "").await, revision(&store).await), (None, 1));
}

pub async fn what_is_too_large_is_refused_by_its_name(store: AnyStore) {
    let big = Txn::new().then(Op::put("big", vec![b'x'; crate::MAX_ENTRY_BYTES]));
    let refused = store.txn(big).await;
    assert!(
        matches!(&refused, Err(StoreError::TooLarge { key, limit, .. })
            if &**key == "big" && *limit == crate::MAX_ENTRY_BYTES),
        "{refused:?}"
    );
    let fits = Txn::new().then(Op::put("fits", vec![b'x'; 1 << 20]));
    assert!(store.txn(fits).await.expect("a MiB fits").succeeded);
    let read = get(&store, "fits").await.expect("it is there");
    assert_eq!((read.value.len(), read.mod_revision), (1 << 20, 2));
}
