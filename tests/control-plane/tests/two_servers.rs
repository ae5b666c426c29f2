//! Two API servers over one etcd cluster: what one writes the other reads at once, and both serve the same watch
//! stream, through the end of the leading member too.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use control_plane_store::EtcdStore;
use control_plane_store::etcd::Options;
use control_plane_store::etcd::testing::LocalEtcd;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tests_control_plane::{client, serve};
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(60);
const WRITERS: usize = 4;
const ROUNDS: usize = 25;
const END: &str = "the-end";

/// A change as a watcher sees it: what happened, to which object, at which version, with which content.
type Seen = (&'static str, String, String, Option<String>);

/// An API server whose requests begin at the member `first`.
async fn server(etcd: &LocalEtcd, first: usize) -> Client {
    let mut servers = etcd.urls();
    servers.rotate_left(first);
    let options = Options {
        servers,
        ..etcd.options()
    };
    let store = EtcdStore::connect(options).await.unwrap();
    client(serve(Arc::new(store)).await)
}

fn maps(client: &Client) -> Api<ConfigMap> {
    Api::default_namespaced(client.clone())
}

fn map(name: &str, value: &str) -> ConfigMap {
    let map = json!({"metadata": {"name": name}, "data": {"v": value}});
    serde_json::from_value(map).unwrap()
}

fn value(map: &ConfigMap) -> Option<String> {
    map.data.as_ref()?.get("v").cloned()
}

fn code<T>(result: &kube::Result<T>) -> u16 {
    match result {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(other) => panic!("{other}"),
    }
}

/// Everything that a watch tells from `version` until the last object of the test.
async fn follow(client: Client, version: String) -> Vec<Seen> {
    let mut seen = Vec::new();
    let params = WatchParams::default();
    let maps = maps(&client);
    let mut stream = maps.watch(&params, &version).await.unwrap().boxed();
    while let Some(event) = stream.try_next().await.unwrap() {
        let (word, object) = match event {
            WatchEvent::Added(object) => ("ADDED", object),
            WatchEvent::Modified(object) => ("MODIFIED", object),
            WatchEvent::Deleted(object) => ("DELETED", object),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(error) => panic!("{error:?}"),
        };
        let name = object.name_any();
        let over = name == END;
        let version = object.resource_version().unwrap();
        seen.push((word, name, version, value(&object)));
        if over {
            return seen;
        }
    }
    panic!("the watch ended by itself");
}

/// Makes, counts up and removes objects at one server, and reads each at the other. Answers how many additions to the
/// shared counter were acknowledged, and how many may have been done.
async fn write(own: Client, other: Client, writer: usize, rounds: Arc<AtomicUsize>) -> (u64, u64) {
    let (own, other) = (maps(&own), maps(&other));
    let mut added = (0, 0);
    for round in 0..ROUNDS {
        rounds.fetch_add(1, Ordering::Relaxed);
        let name = format!("{writer}-{round}");
        let made = own.create(&PostParams::default(), &map(&name, "x")).await;
        assert!(matches!(code(&made), 200 | 503 | 504), "{made:?}");
        if let Ok(made) = made {
            let read = other.get(&name).await;
            assert!(
                matches!(code(&read), 200 | 503),
                "not seen at once: {read:?}"
            );
            if let Ok(read) = read {
                assert_eq!(read.resource_version(), made.resource_version());
            }
            if round % 3 == 0 {
                let gone = other.delete(&name, &DeleteParams::default()).await;
                assert!(matches!(code(&gone), 200 | 503 | 504), "a delete failed");
            }
        }
        let Ok(mut counter) = own.get("counter").await else {
            continue;
        };
        let number: u64 = value(&counter).unwrap().parse().unwrap();
        counter.data = map("", &(number + 1).to_string()).data;
        let done = own
            .replace("counter", &PostParams::default(), &counter)
            .await;
        match code(&done) {
            200 => added.0 += 1,
            504 => added.1 += 1,
            409 | 503 => {}
            _ => panic!("{done:?}"),
        }
    }
    added
}

async fn run(etcd: &mut LocalEtcd, kill: Option<usize>) {
    let (first, second) = (server(etcd, 0).await, server(etcd, 1).await);
    let counter = map("counter", "0");
    let made = maps(&first).create(&PostParams::default(), &counter).await;
    let version = made.unwrap().resource_version().unwrap();
    let watches =
        [&first, &second].map(|client| tokio::spawn(follow(client.clone(), version.clone())));
    let mut writers = JoinSet::new();
    let rounds = Arc::new(AtomicUsize::new(0));
    for writer in 0..WRITERS {
        let mut clients = [first.clone(), second.clone()];
        clients.rotate_left(writer % 2);
        let [own, other] = clients;
        writers.spawn(write(own, other, writer, rounds.clone()));
    }
    if let Some(member) = kill {
        while rounds.load(Ordering::Relaxed) < WRITERS * ROUNDS / 5 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(writers.try_join_next().is_none(), "it is killed too late");
        etcd.kill(member);
    }
    let (mut sure, mut maybe) = (0, 0);
    while let Some(added) = writers.join_next().await {
        let added = added.unwrap();
        (sure, maybe) = (sure + added.0, maybe + added.1);
    }
    let end = maps(&second)
        .create(&PostParams::default(), &map(END, "x"))
        .await;
    end.unwrap();
    let [one, other] = watches.map(|watch| async {
        let seen = tokio::time::timeout(PATIENCE, watch).await;
        seen.expect("the watch tells everything in time").unwrap()
    });
    let (one, other) = (one.await, other.await);
    assert_eq!(one, other, "the two servers tell different stories");
    let versions: Vec<u64> = one.iter().map(|seen| seen.2.parse().unwrap()).collect();
    assert!(versions.is_sorted_by(|a, b| a < b), "out of order or twice");
    let count = maps(&first).get("counter").await.unwrap();
    let count: u64 = value(&count).unwrap().parse().unwrap();
    assert!(
        (sure..=sure + maybe).contains(&count),
        "{count} of {sure}+{maybe}"
    );
    let listed = maps(&first).list(&ListParams::default()).await.unwrap();
    let again = maps(&second).list(&ListParams::default()).await.unwrap();
    assert_eq!(listed.items, again.items);
    println!(
        "{} events at both; {sure} additions, {maybe} unknown",
        one.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_servers_serve_the_same_watch_stream() {
    let mut etcd = LocalEtcd::start(1).await;
    run(&mut etcd, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_end_of_the_leader_is_no_gap_in_any_watch() {
    let mut etcd = LocalEtcd::start(3).await;
    let leader = etcd.leader().await;
    run(&mut etcd, Some(leader)).await;
}
