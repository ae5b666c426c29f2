//! Many writers of the same objects, a thousand watchers, and a server that is compacted and started anew under them: no
//! update is lost, and every watcher sees each object's last state, no event twice and none out of order.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod watcher;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use control_plane_store::etcd::testing::LocalEtcd;
use control_plane_store::{EmbeddedStore, EtcdStore, Store, embedded, etcd};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tests_control_plane::{client, serve};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use watcher::Watcher;

const WRITERS: usize = 64;
const OBJECTS: usize = 8;
const ROUNDS: usize = 4;
const WATCHERS: usize = 1_000;
const END: &str = "the-end";
const PATIENCE: Duration = Duration::from_secs(120);
/// A server that is away is asked again so soon.
const PAUSE: Duration = Duration::from_millis(20);

/// Where the server keeps its objects.
#[derive(Clone)]
enum Place {
    File(PathBuf),
    Etcd(etcd::Options),
}

/// An API server that can be ended as by a crash.
struct Server {
    runtime: Runtime,
    store: Arc<dyn Store>,
    address: SocketAddr,
}

/// What a writer knows of its increments of the shared counters: those that were acknowledged, and those that may have
/// been done.
#[derive(Default)]
struct Counted {
    sure: usize,
    maybe: usize,
}

impl Place {
    async fn open(self) -> Arc<dyn Store> {
        match self {
            Self::File(path) => {
                let open = || EmbeddedStore::open(path, embedded::Options::default()).unwrap();
                Arc::new(tokio::task::spawn_blocking(open).await.unwrap())
            }
            Self::Etcd(options) => Arc::new(EtcdStore::connect(options).await.unwrap()),
        }
    }
}

impl Server {
    async fn start(place: Place) -> Self {
        let runtime = Runtime::new().unwrap();
        let started = runtime.spawn(async {
            let store = place.open().await;
            (store.clone(), serve(store).await)
        });
        let (store, address) = started.await.unwrap();
        Self {
            runtime,
            store,
            address,
        }
    }

    /// Cuts everybody off.
    async fn end(self) {
        let Self { runtime, store, .. } = self;
        let end = move || {
            runtime.shutdown_timeout(PATIENCE);
            drop(store);
        };
        tokio::task::spawn_blocking(end).await.unwrap();
    }
}

fn maps(address: SocketAddr) -> Api<ConfigMap> {
    let client: Client = client(address);
    Api::default_namespaced(client)
}

fn map(name: &str) -> ConfigMap {
    let map = json!({"metadata": {"name": name}, "data": {"count": "0"}});
    serde_json::from_value(map).unwrap()
}

fn value<'a>(map: &'a ConfigMap, key: &str) -> &'a str {
    map.data
        .as_ref()
        .and_then(|data| data.get(key))
        .map_or("", String::as_str)
}

/// What became of one attempt to write.
#[derive(Debug, PartialEq)]
enum Attempt {
    Done,
    /// It was surely not done: somebody else was faster.
    Refused,
    /// It may have been done, or the server was away.
    Unknown,
}

fn attempt<T: std::fmt::Debug>(result: kube::Result<T>) -> Attempt {
    match result {
        Ok(_) => Attempt::Done,
        Err(kube::Error::Api(status)) => match status.code {
            409 | 422 | 503 => Attempt::Refused,
            504 => Attempt::Unknown,
            _ => panic!("{status:?}"),
        },
        Err(_) => Attempt::Unknown,
    }
}

/// Writes by this writer's way, again until it is done; counts what it adds.
async fn write(
    writer: usize,
    server: watch::Receiver<SocketAddr>,
    done: Arc<AtomicUsize>,
) -> Counted {
    let mut counted = Counted::default();
    for round in 0..ROUNDS {
        let name = format!("shared-{}", (writer / 5 + round) % OBJECTS);
        loop {
            // A client of its own each time: connections to a server that is gone are no matter here.
            let maps = maps(*server.borrow());
            let outcome = match writer % 5 {
                0 => add_by_update(&maps, &name).await,
                1 => add_by_json_patch(&maps, &name).await,
                way => set_own_key(&maps, &name, writer, round, way).await,
            };
            if writer % 5 < 2 {
                counted.sure += usize::from(outcome == Attempt::Done);
                counted.maybe += usize::from(outcome == Attempt::Unknown);
            }
            if outcome == Attempt::Done {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    counted
}

/// Optimistic locking by the `resourceVersion` of an update.
async fn add_by_update(maps: &Api<ConfigMap>, name: &str) -> Attempt {
    let Ok(mut read) = maps.get(name).await else {
        return Attempt::Refused;
    };
    let count: usize = value(&read, "count").parse().unwrap();
    let data = read.data.as_mut().unwrap();
    data.insert("count".into(), (count + 1).to_string());
    attempt(maps.replace(name, &PostParams::default(), &read).await)
}

/// Optimistic locking by the `test` of a JSON patch.
async fn add_by_json_patch(maps: &Api<ConfigMap>, name: &str) -> Attempt {
    let Ok(read) = maps.get(name).await else {
        return Attempt::Refused;
    };
    let count: usize = value(&read, "count").parse().unwrap();
    let patch = json!([
        {"op": "test", "path": "/data/count", "value": count.to_string()},
        {"op": "replace", "path": "/data/count", "value": (count + 1).to_string()},
    ]);
    let patch = Patch::<Value>::Json(serde_json::from_value(patch).unwrap());
    attempt(maps.patch(name, &PatchParams::default(), &patch).await)
}

/// A key that nobody else writes; it stays, whatever the others do to the object.
async fn set_own_key(
    maps: &Api<ConfigMap>,
    name: &str,
    writer: usize,
    round: usize,
    way: usize,
) -> Attempt {
    let data = json!({"data": {format!("writer-{writer}"): round.to_string()}});
    let params = PatchParams::apply(&format!("writer-{writer}")).force();
    let result = match way {
        2 => {
            maps.patch(name, &PatchParams::default(), &Patch::Merge(data))
                .await
        }
        3 => {
            maps.patch(name, &PatchParams::default(), &Patch::Strategic(data))
                .await
        }
        _ => {
            let mut config = data;
            config["apiVersion"] = "v1".into();
            config["kind"] = "ConfigMap".into();
            maps.patch(name, &params, &Patch::Apply(config)).await
        }
    };
    attempt(result)
}

async fn reached(done: &AtomicUsize, share: usize) {
    let begun = Instant::now();
    while done.load(Ordering::Relaxed) < WRITERS * ROUNDS / share {
        assert!(begun.elapsed() < PATIENCE, "the writers do not get on");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn run(place: Place) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let begun = Instant::now();
    let server = Server::start(place.clone()).await;
    let (moved, address) = watch::channel(server.address);
    for object in 0..OBJECTS {
        let map = map(&format!("shared-{object}"));
        maps(server.address)
            .create(&PostParams::default(), &map)
            .await
            .unwrap();
    }
    let list = maps(server.address)
        .list(&ListParams::default())
        .await
        .unwrap();
    let version: u64 = list.metadata.resource_version.unwrap().parse().unwrap();
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS {
        let watcher = Watcher {
            version,
            ..Watcher::default()
        };
        watchers.spawn(watcher.follow(address.clone()));
    }
    let done = Arc::new(AtomicUsize::new(0));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(writer, address.clone(), done.clone()));
    }
    reached(&done, 4).await;
    let compacted = server.store.revision().await.unwrap();
    server.store.compact(compacted).await.unwrap();
    reached(&done, 2).await;
    server.end().await;
    let written = done.load(Ordering::Relaxed);
    assert!(written < WRITERS * ROUNDS, "it is ended too late");
    let server = Server::start(place).await;
    moved.send_replace(server.address);
    let mut counted = Counted::default();
    while let Some(own) = writers.join_next().await {
        let own = own.unwrap();
        counted.sure += own.sure;
        counted.maybe += own.maybe;
    }
    maps(server.address)
        .create(&PostParams::default(), &map(END))
        .await
        .unwrap();
    let last = maps(server.address)
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    no_update_is_lost(&last, &counted);
    let state: HashMap<String, u64> = last
        .iter()
        .map(|map| {
            (
                map.name_any(),
                map.resource_version().unwrap().parse().unwrap(),
            )
        })
        .collect();
    let mut relisted = 0;
    while let Some(watcher) = tokio::time::timeout(PATIENCE, watchers.join_next())
        .await
        .unwrap()
    {
        let watcher = watcher.unwrap();
        assert_eq!(watcher.state, state, "a watcher's last state");
        relisted += watcher.relisted;
    }
    println!(
        "{} writes, {} more of unknown outcome, {relisted} relists, {:.1} s",
        WRITERS * ROUNDS,
        counted.maybe,
        begun.elapsed().as_secs_f64()
    );
    server.end().await;
}

fn no_update_is_lost(last: &[ConfigMap], counted: &Counted) {
    let count: usize = last
        .iter()
        .map(|map| value(map, "count").parse::<usize>().unwrap())
        .sum();
    let expected = counted.sure..=counted.sure + counted.maybe;
    assert!(expected.contains(&count), "{count} of {expected:?}");
    for writer in (0..WRITERS).filter(|writer| writer % 5 >= 2) {
        for round in 0..ROUNDS {
            let name = format!("shared-{}", (writer / 5 + round) % OBJECTS);
            let map = last.iter().find(|map| map.name_any() == name).unwrap();
            let found = value(map, &format!("writer-{writer}"));
            assert_eq!(found, round.to_string(), "writer {writer} in {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_told_twice_on_the_embedded_store() {
    let folder = tempfile::tempdir().unwrap();
    run(Place::File(folder.path().join("store.redb"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_told_twice_on_etcd() {
    let etcd = LocalEtcd::start(1).await;
    run(Place::Etcd(etcd.options())).await;
}
