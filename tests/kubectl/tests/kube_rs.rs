//! kube-rs as programs use it: a reflector's store, the controller runtime with owned objects and finalizers, waiting,
//! recorded events, both ways of discovery, metadata alone, and every kind of patch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{Stream, StreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{
    DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent,
    WatchParams,
};
use kube::core::{GroupVersionKind, ObjectMeta};
use kube::discovery::Discovery;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::events::{EventType, Recorder, Reporter};
use kube::runtime::finalizer::{Event as Finalizer, finalizer};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use tests_kubectl::Server;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
const FINALIZER: &str = "example.com/copies";

fn client(server: &Server) -> Result<Client> {
    Ok(Client::try_from(kube::Config::new(server.url().parse()?))?)
}

fn config_map(name: &str, data: &[(&str, &str)]) -> ConfigMap {
    let data = data.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([("copy".to_owned(), "yes".to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(data.collect()),
        ..ConfigMap::default()
    }
}

/// Waits until `so` holds.
async fn until(what: &str, mut so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !so().await? {
        ensure!(
            tokio::time::Instant::now() < end,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reflector_holds_what_is_there() -> Result<()> {
    let server = Server::start().await?;
    let api: Api<ConfigMap> = Api::namespaced(client(&server)?, "default");
    for number in 0..20 {
        let object = config_map(&format!("c{number}"), &[("a", "1")]);
        api.create(&PostParams::default(), &object).await?;
    }
    for config in [
        watcher::Config::default().labels("copy=yes").page_size(7),
        watcher::Config::default()
            .labels("copy=yes")
            .streaming_lists(),
    ] {
        let (store, writer) = reflector::store();
        let stream = watcher(api.clone(), config).default_backoff();
        let followed = tokio::spawn(reflector::reflector(writer, stream).for_each(|_| async {}));
        tokio::time::timeout(PATIENCE, store.wait_until_ready()).await??;
        assert_eq!(store.len(), 20);
        let key = ObjectRef::new("c3").within("default");
        let patch = Patch::Merge(json!({"data": {"a": "2"}}));
        api.patch("c3", &PatchParams::default(), &patch).await?;
        let shown = async || Ok(value_of(&store, &key).as_deref() == Some("2"));
        until("the store shows the change", shown).await?;
        api.delete("c4", &DeleteParams::default()).await?;
        until("the store forgets", async || Ok(store.len() == 19)).await?;
        api.create(&PostParams::default(), &config_map("c4", &[]))
            .await?;
        let back = Patch::Merge(json!({"data": {"a": "1"}}));
        api.patch("c3", &PatchParams::default(), &back).await?;
        followed.abort();
    }
    Ok(())
}

fn value_of(store: &Store<ConfigMap>, key: &ObjectRef<ConfigMap>) -> Option<String> {
    store.get(key)?.data.as_ref()?.get("a").cloned()
}

/// Keeps a Secret beside each ConfigMap, and takes it away before the ConfigMap goes.
async fn copy(object: Arc<ConfigMap>, client: Arc<Client>) -> Result<Action, CopyError> {
    let api: Api<ConfigMap> = Api::namespaced((*client).clone(), "default");
    let secrets: Api<Secret> = Api::namespaced((*client).clone(), "default");
    let outcome = finalizer(&api, FINALIZER, object, |event| async move {
        match event {
            Finalizer::Apply(object) => {
                let owner = object
                    .controller_owner_ref(&())
                    .into_iter()
                    .collect::<Vec<_>>();
                let copy = json!({
                    "apiVersion": "v1", "kind": "Secret",
                    "metadata": {"name": object.name_any(), "ownerReferences": owner},
                    "stringData": object.data,
                });
                let how = PatchParams::apply("copier").force();
                secrets
                    .patch(&object.name_any(), &how, &Patch::Apply(copy))
                    .await?;
            }
            Finalizer::Cleanup(object) => {
                let gone = secrets
                    .delete(&object.name_any(), &DeleteParams::default())
                    .await;
                gone.map(drop).or_else(|error| match error {
                    kube::Error::Api(status) if status.is_not_found() => Ok(()),
                    other => Err(other),
                })?;
            }
        }
        Ok::<_, kube::Error>(Action::await_change())
    });
    outcome.await.map_err(|error| CopyError(Box::new(error)))
}

#[derive(Debug)]
struct CopyError(Box<kube::runtime::finalizer::Error<kube::Error>>);

impl std::fmt::Display for CopyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot copy: {}", self.0)
    }
}

impl std::error::Error for CopyError {}

fn controller(client: &Client) -> impl Stream + use<> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let again = |_: Arc<ConfigMap>, error: &CopyError, _: Arc<Client>| {
        println!("{error}");
        Action::requeue(Duration::from_millis(100))
    };
    Controller::new(maps, watcher::Config::default().labels("copy=yes"))
        .owns(secrets, watcher::Config::default())
        .run(copy, again, Arc::new(client.clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_keeps_its_objects_and_cleans_up() -> Result<()> {
    let server = Server::start().await?;
    let client = client(&server)?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    maps.create(&PostParams::default(), &config_map("early", &[("a", "1")]))
        .await?;
    let runs = tokio::spawn(controller(&client).for_each(|_| async {}));
    maps.create(&PostParams::default(), &config_map("late", &[("a", "1")]))
        .await?;
    let value = async |name: &str| -> Result<Option<String>> {
        let secret = secrets.get_opt(name).await?;
        let data = secret
            .and_then(|s| s.data)
            .and_then(|d| d.get("a").cloned());
        Ok(data.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()))
    };
    for name in ["early", "late"] {
        until("there is a copy", async || {
            Ok(value(name).await?.as_deref() == Some("1"))
        })
        .await?;
    }
    // A copy that somebody removes comes back; a change of the original reaches it.
    secrets.delete("early", &DeleteParams::default()).await?;
    until("the copy is back", async || {
        Ok(value("early").await?.is_some())
    })
    .await?;
    let patch = Patch::Merge(json!({"data": {"a": "2"}}));
    maps.patch("late", &PatchParams::default(), &patch).await?;
    until("the copy follows", async || {
        Ok(value("late").await?.as_deref() == Some("2"))
    })
    .await?;
    let uid = maps.get("late").await?.uid().context("a uid")?;
    maps.delete("late", &DeleteParams::default()).await?;
    let gone = await_condition(maps.clone(), "late", conditions::is_deleted(&uid));
    tokio::time::timeout(PATIENCE, gone).await??;
    assert_eq!(secrets.get_opt("late").await?, None);
    runs.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_discoveries_find_the_same_and_dynamic_objects_work() -> Result<()> {
    let server = Server::start().await?;
    let client = client(&server)?;
    let names = |discovery: &Discovery| -> Vec<String> {
        let groups = discovery.groups_alphabetical();
        let resources = groups
            .iter()
            .flat_map(|group| group.recommended_resources());
        let mut names: Vec<String> = resources
            .map(|(r, capabilities)| {
                format!("{}/{} {:?}", r.api_version, r.plural, capabilities.scope)
            })
            .collect();
        names.sort();
        names
    };
    let legacy = Discovery::new(client.clone()).run().await?;
    let aggregated = Discovery::new(client.clone()).run_aggregated().await?;
    assert_eq!(names(&legacy), names(&aggregated));
    let kind = GroupVersionKind::gvk("apps", "v1", "Deployment");
    let (resource, _) = legacy
        .resolve_gvk(&kind)
        .context("Deployments are served")?;
    let api: Api<DynamicObject> = Api::namespaced_with(client, "default", &resource);
    let body = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}},
    });
    let made = api
        .create(&PostParams::default(), &serde_json::from_value(body)?)
        .await?;
    assert_eq!(made.data["spec"]["replicas"], 1);
    let listed = api.list_metadata(&ListParams::default()).await?;
    assert_eq!(listed.items[0].name_any(), "web");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_scale_status_and_refusals_are_typed() -> Result<()> {
    let server = Server::start().await?;
    let client = client(&server)?;
    let api: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let web = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}},
    });
    let made = api
        .patch("web", &PatchParams::apply("a"), &Patch::Apply(&web))
        .await?;
    assert_eq!(made.managed_fields()[0].manager.as_deref(), Some("a"));
    let three = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 3}});
    let refused = api
        .patch("web", &PatchParams::apply("b"), &Patch::Apply(&three))
        .await;
    let status = match refused {
        Err(kube::Error::Api(status)) => status,
        other => anyhow::bail!("a conflict is expected, not {other:?}"),
    };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert!(
        status.message.contains("conflict with \"a\""),
        "{}",
        status.message
    );
    let operations: json_patch::Patch =
        serde_json::from_value(json!([{"op": "replace", "path": "/spec/replicas", "value": 4}]))?;
    let how = PatchParams::default();
    api.patch("web", &how, &Patch::<Value>::Json(operations))
        .await?;
    let second =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "d", "image": "i:1"}]}}}});
    let merged = api.patch("web", &how, &Patch::Strategic(second)).await?;
    let pod = merged.spec.template.spec.context("a template")?;
    assert_eq!(pod.containers.len(), 2);
    let scale = Patch::Merge(json!({"spec": {"replicas": 7}}));
    assert_eq!(
        api.patch_scale("web", &how, &scale)
            .await?
            .spec
            .and_then(|s| s.replicas),
        Some(7)
    );
    let status = Patch::Merge(json!({"status": {"replicas": 7}}));
    let shown = api.patch_status("web", &how, &status).await?;
    assert_eq!(shown.status.and_then(|s| s.replicas), Some(7));
    let mut stale = api.get("web").await?;
    api.restart("web").await?;
    stale.labels_mut().insert("a".into(), "b".into());
    let refused = api.replace("web", &PostParams::default(), &stale).await;
    assert!(
        matches!(&refused, Err(kube::Error::Api(s)) if s.is_conflict()),
        "{refused:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_recorded_and_pods_waited_for() -> Result<()> {
    let server = Server::start().await?;
    let client = client(&server)?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}]},
    }))?;
    let made = pods.create(&PostParams::default(), &pod).await?;
    let recorder = Recorder::new(client.clone(), Reporter::from("tests"));
    let event = kube::runtime::events::Event {
        type_: EventType::Normal,
        reason: "Began".into(),
        note: Some("It begins".into()),
        action: "Begin".into(),
        secondary: None,
    };
    // The second of the same is counted with the first.
    for _ in 0..2 {
        recorder.publish(&event, &made.object_ref(&())).await?;
    }
    let events: Api<Event> = Api::namespaced(client, "default");
    let listed = events.list(&ListParams::default()).await?;
    assert_eq!(listed.items.len(), 1);
    assert_eq!(listed.items[0].series.as_ref().map(|s| s.count), Some(2));
    let mut watch = pods
        .watch(&WatchParams::default().fields("metadata.name=p"), "0")
        .await?
        .boxed();
    let first = watch.next().await.context("the watch goes on")??;
    assert!(matches!(first, WatchEvent::Added(_)), "{first:?}");
    let runs = tokio::spawn(await_condition(
        pods.clone(),
        "p",
        conditions::is_pod_running(),
    ));
    let running = Patch::Merge(json!({"status": {"phase": "Running"}}));
    pods.patch_status("p", &PatchParams::default(), &running)
        .await?;
    tokio::time::timeout(PATIENCE, runs).await???;
    Ok(())
}
