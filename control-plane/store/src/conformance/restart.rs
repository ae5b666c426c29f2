//! Restarts: nothing that was said before is different after.

use super::*;

pub async fn a_restart_changes_nothing<P: Place>(mut place: P) {
    let store = place.open().await;
    let last = write_history(&store, 40).await;
    let (present, past) = (everything(&store, None).await, history(&store, 1).await);
    let halfway = everything(&store, Some(last / 2)).await;

    let store = place.restart(store).await;
    assert_eq!(revision(&store).await, last);
    assert_eq!(everything(&store, None).await, present);
    assert_eq!(everything(&store, Some(last / 2)).await, halfway);
    assert_eq!(history(&store, 1).await, past);

    let kept = &present[0];
    let stale = Txn::update(kept.key.clone(), kept.mod_revision - 1, "x");
    assert!(
        !store
            .txn(stale)
            .await
            .expect("a comparison may fail")
            .succeeded
    );
    let next = Txn::update(kept.key.clone(), kept.mod_revision, "x");
    let done = store.txn(next).await.expect("the comparison holds");
    assert_eq!((done.succeeded, done.revision), (true, last + 1));
    let current = done.results[0].current.as_ref().expect("it was put");
    assert_eq!(current.version, kept.version + 1);
    assert_eq!(current.create_revision, kept.create_revision);
}

pub async fn a_restart_remembers_compaction<P: Place>(mut place: P) {
    let store = place.open().await;
    let last = write_history(&store, 30).await;
    let oldest = last - 5;
    store.compact(oldest).await.expect("it has happened");
    let rest = history(&store, oldest).await;
    let present = everything(&store, None).await;

    let store = place.restart(store).await;
    assert_eq!(
        store.oldest_revision().await.expect("it can be read"),
        oldest
    );
    let refused = store.watch("", oldest - 1).await.err();
    assert!(
        matches!(refused, Some(StoreError::Compacted { requested, oldest: told })
            if requested == oldest - 1 && told == oldest),
        "{refused:?}"
    );
    assert_eq!(history(&store, oldest).await, rest);
    assert_eq!(everything(&store, None).await, present);
    assert_eq!(put(&store, "next", "1").await, last + 1);
}
