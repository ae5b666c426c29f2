//! Many at once.

use super::*;

pub async fn of_many_creators_one_wins(store: AnyStore) {
    let creators = (0..32).map(|creator: u32| {
        let store = store.clone();
        tokio::spawn(async move {
            let value = creator.to_string();
            let response = store.txn(Txn::create("prize", value.clone())).await;
            let response = response.expect("a comparison may fail");
            if !response.succeeded {
                let winner = response.else_kvs[0].clone();
                assert_ne!(text(winner.as_ref()), Some(&*value));
            }
            response.succeeded
        })
    });
    let mut won = 0;
    for creator in futures::future::join_all(creators).await {
        won += u32::from(creator.expect("no creator panics"));
    }
    assert_eq!((won, revision(&store).await), (1, 2));
}

pub async fn every_watcher_sees_the_same_order(store: AnyStore) {
    const WRITERS: usize = 8;
    const WRITES: usize = 25;
    let mut early = watch(&store, "", 1).await;
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            for write in 0..WRITES {
                let at = put(&store, &format!("{writer}"), &write.to_string()).await;
                let seen = get(&store, &format!("{writer}")).await;
                assert_eq!(
                    text(seen.as_ref()),
                    Some(&*write.to_string()),
                    "own write unseen"
                );
                revisions.push(at);
            }
            assert!(revisions.is_sorted());
            revisions
        })
    });
    let mut acknowledged = HashSet::new();
    for writer in futures::future::join_all(writers).await {
        acknowledged.extend(writer.expect("no writer panics"));
    }
    let followed = next_events(&mut early, WRITERS * WRITES).await;
    let replayed = next_events(&mut watch(&store, "", 2).await, WRITERS * WRITES).await;
    assert_eq!(followed, replayed);
    let seen: Vec<Revision> = followed.iter().map(|event| event.revision).collect();
    let expected: Vec<Revision> = (2..).take(WRITERS * WRITES).collect();
    assert_eq!(seen, expected, "revisions have no gap");
    assert!(seen.iter().all(|at| acknowledged.contains(at)));
}

/// Reads, changes and writes back until nobody was faster, as clients with optimistic locking do.
async fn add_one(store: &AnyStore, key: &str) {
    loop {
        let kv = get(store, key).await.expect("the counter is there");
        let number: u64 = text(Some(&kv))
            .and_then(|t| t.parse().ok())
            .expect("a number");
        let txn = Txn::update(key, kv.mod_revision, (number + 1).to_string());
        if store
            .txn(txn)
            .await
            .expect("a comparison may fail")
            .succeeded
        {
            return;
        }
    }
}

pub async fn no_update_under_contention_is_lost_or_done_twice(store: AnyStore) {
    const WRITERS: usize = 12;
    const WRITES: usize = 10;
    put(&store, "counter", "0").await;
    let mut followed = watch(&store, "counter", 2).await;
    let writers = (0..WRITERS).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..WRITES {
                add_one(&store, "counter").await;
            }
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer.expect("no writer panics");
    }
    let events = next_events(&mut followed, 1 + WRITERS * WRITES).await;
    let seen: Vec<Option<&str>> = events.iter().map(|e| text(e.kv.as_ref())).collect();
    let expected: Vec<String> = (0..=WRITERS * WRITES).map(|n| n.to_string()).collect();
    let expected: Vec<Option<&str>> = expected.iter().map(|n| Some(n.as_str())).collect();
    assert_eq!(seen, expected, "each update builds on the one before");
}

pub async fn what_moves_between_two_keys_is_never_seen_in_neither(store: AnyStore) {
    const MOVES: usize = 15;
    put(&store, "side/a", "the token").await;
    let first = revision(&store).await;
    let movers = (0..4).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut moved = 0;
            while moved < MOVES {
                let sides = everything(&store, None).await;
                assert_eq!(sides.len(), 1, "the token is in one place: {sides:?}");
                let from = &sides[0];
                let to = if &*from.key == "side/a" {
                    "side/b"
                } else {
                    "side/a"
                };
                let txn = Txn::new()
                    .when(Compare::unchanged(from.key.clone(), from.mod_revision))
                    .when(Compare::absent(to))
                    .then(Op::delete(from.key.clone()))
                    .then(Op::put(to, from.value.clone()));
                let done = store.txn(txn).await.expect("a comparison may fail");
                moved += usize::from(done.succeeded);
            }
        })
    });
    for mover in futures::future::join_all(movers).await {
        mover.expect("no mover panics");
    }
    let last = revision(&store).await;
    assert_eq!(last, first + 4 * MOVES as u64, "one revision a move");
    for at in first..=last {
        assert_eq!(everything(&store, Some(at)).await.len(), 1, "at {at}");
    }
}
