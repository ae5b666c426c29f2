//! Watches: nothing missed, one order, selectors that come and go, bookmarks, and an honest "too old".

mod common;

use std::time::Duration;

use common::{Cluster, config_map, kind};
use control_plane_registry::selector::{FieldSelector, LabelSelector};
use control_plane_registry::{ListOptions, Options, VersionMatch, Watch, WatchItem, WatchOptions};
use serde_json::json;

/// What a watcher heard: the word, the name, the revision.
type Heard = (&'static str, String, u64);

async fn hear(watch: &mut Watch, count: usize) -> Vec<Heard> {
    let mut heard = Vec::new();
    while heard.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(5), watch.next());
        let items = next.await.expect("something within five seconds");
        for item in items.expect("the watch goes on") {
            heard.push(match item {
                WatchItem::Initial(o) => ("ADDED", o.name.to_string(), o.revision),
                WatchItem::Change(kind, event) => {
                    (kind.word(), event.object.name.to_string(), event.revision)
                }
                WatchItem::Bookmark {
                    revision,
                    initial_end,
                } => ("BOOKMARK", initial_end.to_string(), revision),
                WatchItem::Error(error) => ("ERROR", error.message, 0),
            });
        }
    }
    heard
}

fn words(heard: &[Heard]) -> Vec<(&str, &str)> {
    heard.iter().map(|(w, n, _)| (*w, n.as_str())).collect()
}

async fn watch(cluster: &Cluster, options: WatchOptions) -> Watch {
    cluster
        .registry
        .watch(kind("configmaps"), "default", options)
        .await
        .expect("a watch")
}

#[tokio::test(flavor = "multi_thread")]
async fn list_then_watch_misses_nothing_and_all_watchers_hear_one_order() {
    let cluster = Cluster::new().await;
    let registry = cluster.registry.clone();
    cluster
        .create("configmaps", config_map("before", ""))
        .await
        .unwrap();
    let list = registry
        .list(kind("configmaps"), "default", &ListOptions::default())
        .await
        .unwrap();
    let from = WatchOptions {
        resource_version: Some(list.revision),
        ..WatchOptions::default()
    };
    let mut watches = vec![
        watch(&cluster, from.clone()).await,
        watch(&cluster, from.clone()).await,
    ];
    let writes = (0..100).map(|n| cluster.create("configmaps", config_map(&format!("m{n}"), "")));
    for outcome in futures::future::join_all(writes).await {
        outcome.unwrap();
    }
    // One more begins late, from the same revision.
    watches.push(watch(&cluster, from).await);
    let mut all = Vec::new();
    for watch in &mut watches {
        all.push(hear(watch, 100).await);
    }
    assert_eq!(all[0], all[1]);
    assert_eq!(all[0], all[2]);
    assert!(all[0].windows(2).all(|pair| pair[0].2 < pair[1].2));
    assert!(
        all[0]
            .iter()
            .all(|(word, name, _)| *word == "ADDED" && name != "before")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_ceases_to_match_is_deleted_for_the_watcher() {
    let cluster = Cluster::new().await;
    let mut watch = watch(
        &cluster,
        WatchOptions {
            labels: LabelSelector::parse("app=a").unwrap(),
            ..WatchOptions::default()
        },
    )
    .await;
    cluster
        .create("configmaps", config_map("m", "1"))
        .await
        .unwrap();
    for app in [json!("a"), json!("b"), json!("a")] {
        let patch = json!({"metadata": {"labels": {"app": app}}});
        cluster.patch("configmaps", "m", patch).await.unwrap();
    }
    let patch = json!({"data": {"v": "2"}});
    cluster.patch("configmaps", "m", patch).await.unwrap();
    cluster.delete("configmaps", "m").await.unwrap();
    let heard = hear(&mut watch, 5).await;
    let want = ["ADDED", "DELETED", "ADDED", "MODIFIED", "DELETED"];
    assert_eq!(heard.iter().map(|h| h.0).collect::<Vec<_>>(), want);
    assert!(heard.windows(2).all(|pair| pair[0].2 < pair[1].2));
}

#[tokio::test(flavor = "multi_thread")]
async fn initial_events_end_with_a_bookmark() {
    let cluster = Cluster::new().await;
    for name in ["a", "b"] {
        cluster
            .create("configmaps", config_map(name, ""))
            .await
            .unwrap();
    }
    let mut watch = watch(
        &cluster,
        WatchOptions {
            bookmarks: true,
            send_initial_events: Some(true),
            version_match: Some(VersionMatch::NotOlderThan),
            ..WatchOptions::default()
        },
    )
    .await;
    let heard = hear(&mut watch, 3).await;
    assert_eq!(
        words(&heard),
        [("ADDED", "a"), ("ADDED", "b"), ("BOOKMARK", "true")]
    );
    assert!(heard[2].2 >= heard[1].2);
    cluster
        .create("configmaps", config_map("c", ""))
        .await
        .unwrap();
    assert_eq!(words(&hear(&mut watch, 1).await), [("ADDED", "c")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_one_name_hears_of_no_other() {
    let cluster = Cluster::new().await;
    let mut watch = watch(
        &cluster,
        WatchOptions {
            fields: FieldSelector::parse(kind("configmaps"), "metadata.name=b").unwrap(),
            ..WatchOptions::default()
        },
    )
    .await;
    for name in ["a", "b", "c"] {
        cluster
            .create("configmaps", config_map(name, ""))
            .await
            .unwrap();
    }
    cluster.delete("configmaps", "b").await.unwrap();
    let heard = hear(&mut watch, 2).await;
    assert_eq!(words(&heard), [("ADDED", "b"), ("DELETED", "b")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_goes_on_after_a_restart_where_it_was() {
    let cluster = Cluster::new().await;
    let made = cluster
        .create("configmaps", config_map("m", "1"))
        .await
        .unwrap();
    let seen: u64 = made["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    cluster
        .patch("configmaps", "m", json!({"data": {"v": "2"}}))
        .await
        .unwrap();
    cluster.delete("configmaps", "m").await.unwrap();
    let cluster = cluster.restart(Options::default()).await;
    let mut watch = watch(
        &cluster,
        WatchOptions {
            resource_version: Some(seen),
            ..WatchOptions::default()
        },
    )
    .await;
    let heard = hear(&mut watch, 2).await;
    assert_eq!(words(&heard), [("MODIFIED", "m"), ("DELETED", "m")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_has_not_happened_is_refused_after_a_short_wait() {
    let cluster = Cluster::new().await;
    let options = WatchOptions {
        resource_version: Some(999_999_999),
        ..WatchOptions::default()
    };
    let error = cluster
        .registry
        .watch(kind("configmaps"), "default", options)
        .await
        .unwrap_err();
    assert_eq!(error.code, 504);
    assert!(
        error
            .message
            .starts_with("Timeout: Too large resource version: 999999999, current: ")
    );
}
