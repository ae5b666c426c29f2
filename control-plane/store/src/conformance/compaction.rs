//! Compaction: what it forgets and what it keeps.

use super::*;

pub async fn compaction_forgets_the_past_and_keeps_the_present(store: AnyStore) {
    let first = put(&store, "kept", "1").await;
    put(&store, "changed", "old").await;
    put(&store, "gone", "1").await;
    delete(&store, "gone").await;
    let at = put(&store, "changed", "new").await;
    let last = put(&store, "later", "1").await;

    store.compact(at).await.expect("the revision has happened");
    store
        .compact(at)
        .await
        .expect("compacting again is no error");
    store.compact(first).await.expect("nor is compacting less");
    assert_eq!(store.oldest_revision().await.expect("it can be read"), at);
    for refused in [
        store
            .range(KeyRange::prefix(""), 0, Some(at - 1))
            .await
            .err(),
        store.watch("", at - 1).await.err(),
    ] {
        assert!(
            matches!(refused, Some(StoreError::Compacted { requested, oldest })
                if requested == at - 1 && oldest == at),
            "{refused:?}"
        );
    }
    let past = store
        .range(KeyRange::prefix(""), 0, Some(at))
        .await
        .expect("the compacted revision itself can be read");
    let keys: Vec<_> = past.kvs.iter().map(|kv| &*kv.key).collect();
    assert_eq!(keys, ["changed", "kept"]);
    let kept = get(&store, "kept").await.expect("old keys stay");
    assert_eq!((kept.mod_revision, kept.version), (first, 1));
    let events = next_events(&mut watch(&store, "", at).await, 2).await;
    assert_eq!((events[0].revision, events[1].revision), (at, last));

    let future = store.compact(last + 1).await;
    assert!(
        matches!(future, Err(StoreError::FutureRevision { .. })),
        "{future:?}"
    );
}

pub async fn compaction_does_not_disturb_watches_that_keep_up(store: AnyStore) {
    let mut stream = watch(&store, "k", 1).await;
    for round in 0..5 {
        let at = put(&store, "k", &round.to_string()).await;
        assert_eq!(next_events(&mut stream, 1).await[0].revision, at);
        store.compact(at).await.expect("the revision has happened");
    }
}
