//! Every kind that is served takes every verb, patch and selector that discovery names for it, and answers as it should.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use control_plane_registry::{Kind, Subresource, kinds};
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use http::{Method, Request, StatusCode, header};
use kube::Client;
use kube::client::Body;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tests_kubectl::Server;

const MANIFESTS: &[&str] = &[
    include_str!("manifests/core.yaml"),
    include_str!("manifests/workloads.yaml"),
    include_str!("manifests/cluster.yaml"),
    include_str!("manifests/reviews.yaml"),
];

const NAMESPACE: &str = "default";
const JSON: &str = "application/json";

/// One kind, one object of it, and the server.
struct Sweep<'a> {
    client: &'a Client,
    kind: &'static Kind,
    sample: Value,
}

/// The objects of the manifests, by `apiVersion` and `kind`; the first of each.
fn samples() -> Result<BTreeMap<(String, String), Value>> {
    let mut samples = BTreeMap::new();
    for manifest in MANIFESTS {
        for document in serde_yaml_ng::Deserializer::from_str(manifest) {
            let object = Value::deserialize(document)?;
            let text = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
            samples
                .entry((text("apiVersion"), text("kind")))
                .or_insert(object);
        }
    }
    Ok(samples)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_takes_every_verb_that_is_served() -> Result<()> {
    let server = Server::start().await?;
    let client = Client::try_from(kube::Config::new(server.url().parse()?))?;
    let samples = samples()?;
    let mut faults = Vec::new();
    for kind in kinds::all() {
        let key = (kind.api_version(), kind.kind.to_owned());
        let Some(sample) = samples.get(&key) else {
            faults.push(format!("{key:?}: tests/manifests has no object of it"));
            continue;
        };
        let mut sample = sample.clone();
        if kind.namespaced {
            sample["metadata"]["namespace"] = NAMESPACE.into();
        }
        let sweep = Sweep {
            client: &client,
            kind,
            sample,
        };
        if let Err(error) = sweep.run().await {
            faults.push(format!("{key:?}: {error:#}"));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

impl Sweep<'_> {
    async fn run(mut self) -> Result<()> {
        if self.kind.kind == "Binding" {
            return self.bind().await;
        }
        if !self.kind.verbs.contains(&"create") {
            return self.observe().await;
        }
        let labelled = self.sample["metadata"].get("labels").is_some();
        if self.kind.verbs.contains(&"list") {
            if !labelled {
                self.sample["metadata"]["labels"] = json!({});
            }
            self.sample["metadata"]["labels"]["sweep"] = "yes".into();
        }
        self.create().await.context("create")?;
        if !self.kind.verbs.contains(&"list") {
            return Ok(());
        }
        self.read().await.context("read")?;
        self.select().await.context("select")?;
        self.change().await.context("change")?;
        for subresource in self.kind.subresources {
            let name = subresource.name();
            self.subresource(*subresource).await.with_context(|| name)?;
        }
        self.remove().await.context("remove")
    }

    /// What the server alone makes is there, and selectors find it or not.
    async fn observe(&self) -> Result<()> {
        let read = self.get(&self.path()).await?;
        ensure!(read["metadata"]["name"] == self.name(), "it read {read}");
        for (selector, wanted) in [
            (format!("fieldSelector=metadata.name%3D{}", self.name()), 1),
            (format!("fieldSelector=metadata.name!%3D{}", self.name()), 0),
            ("labelSelector=!sweep".to_owned(), 1),
            ("labelSelector=sweep".to_owned(), 0),
        ] {
            let list = self
                .get(&format!("{}?{selector}", self.collection()))
                .await?;
            let found = list["items"].as_array().context("a list")?.len();
            ensure!(found == wanted, "{selector} finds {found}");
        }
        Ok(())
    }

    async fn create(&self) -> Result<()> {
        let dry = self.ask(
            Method::POST,
            "",
            "?dryRun=All&fieldValidation=Strict",
            JSON,
            &self.sample,
        );
        dry.await.context("as a dry run")?;
        if self.kind.verbs.contains(&"list") {
            self.is_gone().await?;
        }
        let made = self
            .ask(
                Method::POST,
                "",
                "?fieldValidation=Strict",
                JSON,
                &self.sample,
            )
            .await?;
        ensure!(made["kind"] == self.kind.kind, "it answered {made}");
        Ok(())
    }

    async fn read(&self) -> Result<()> {
        let read = self.get(&self.path()).await?;
        ensure!(read["metadata"]["name"] == self.name(), "it read {read}");
        let mut watch = Box::pin(
            self.client
                .request_stream(
                    Request::get(format!(
                        "{}?watch=1&resourceVersion=0&fieldSelector=metadata.name={}",
                        self.collection(),
                        self.name()
                    ))
                    .body(Vec::new())?,
                )
                .await?,
        )
        .lines();
        let line = watch.try_next().await?.context("the watch goes on")?;
        let event: Value = serde_json::from_str(&line)?;
        ensure!(
            event["type"] == "ADDED" && event["object"]["kind"] == self.kind.kind,
            "{event}"
        );
        let table = Request::get(self.path()).header(
            header::ACCEPT,
            "application/json;as=Table;v=v1;g=meta.k8s.io",
        );
        let (_, table) = self.send(table.body(Body::empty())?).await?;
        let row = &table["rows"][0]["cells"];
        let columns = table["columnDefinitions"].as_array().map_or(0, Vec::len);
        ensure!(
            row.as_array().is_some_and(|cells| cells.len() == columns),
            "{table}"
        );
        Ok(())
    }

    /// Labels and every field that selectors may name, as they are and as they are not.
    async fn select(&self) -> Result<()> {
        let object = self.get(&self.path()).await?;
        let mut selectors = vec![
            ("labelSelector=sweep%3Dyes".to_owned(), true),
            ("labelSelector=sweep%3Dno".to_owned(), false),
            ("labelSelector=!sweep".to_owned(), false),
        ];
        let mut fields = vec![("metadata.name", self.name().to_owned())];
        if self.kind.namespaced {
            fields.push(("metadata.namespace", NAMESPACE.to_owned()));
        }
        fields.extend(self.kind.fields.iter().map(|f| (f.name, f.read(&object))));
        for (field, value) in fields {
            selectors.push((format!("fieldSelector={field}%3D{value}"), true));
            selectors.push((format!("fieldSelector={field}!%3D{value}"), false));
        }
        for (selector, wanted) in selectors {
            let list = self
                .get(&format!("{}?{selector}", self.collection()))
                .await?;
            let items = list["items"].as_array().context("a list")?;
            let found = items
                .iter()
                .any(|item| item["metadata"]["name"] == self.name());
            ensure!(found == wanted, "{selector} finds it: {found}");
        }
        Ok(())
    }

    async fn change(&self) -> Result<()> {
        let path = self.path();
        let mut object = self.get(&path).await?;
        object["metadata"]["annotations"] = json!({"update": "yes"});
        self.ask_path(Method::PUT, &path, JSON, &object)
            .await
            .context("update")?;
        let note = |name: &str| json!({"metadata": {"annotations": {(name): "yes"}}});
        let mut applied = note("apply");
        applied["apiVersion"] = self.kind.api_version().into();
        applied["kind"] = self.kind.kind.into();
        let added = json!([{"op": "add", "path": "/metadata/annotations/json", "value": "yes"}]);
        let mut last = Value::Null;
        for (name, media, patch) in [
            ("json", "application/json-patch+json", added),
            ("merge", "application/merge-patch+json", note("merge")),
            (
                "strategic",
                "application/strategic-merge-patch+json",
                note("strategic"),
            ),
            ("apply", "application/apply-patch+yaml", applied),
        ] {
            let how = if name == "apply" {
                "?fieldManager=sweep"
            } else {
                ""
            };
            let path = format!("{path}{how}");
            last = self
                .ask_path(Method::PATCH, &path, media, &patch)
                .await
                .context(name)?;
        }
        let mut want = json!({"update": "yes", "json": "yes", "merge": "yes", "strategic": "yes", "apply": "yes"});
        if self.kind.kind == "DaemonSet" {
            // The server's own, which the update above has left out.
            want["deprecated.daemonset.template.generation"] = "1".into();
        }
        ensure!(
            last["metadata"]["annotations"] == want,
            "after all changes: {last}"
        );
        Ok(())
    }

    async fn subresource(&self, subresource: Subresource) -> Result<()> {
        let path = format!("{}/{}", self.path(), subresource.name());
        match subresource {
            Subresource::Status
            | Subresource::Scale
            | Subresource::EphemeralContainers
            | Subresource::Resize => {
                let applies = subresource != Subresource::Scale;
                self.change_part(&path, applies).await
            }
            // They have flows of their own, or lead to a kubelet.
            _ => Ok(()),
        }
    }

    /// A part is read, written back, and patched in every way to what it is.
    async fn change_part(&self, path: &str, applies: bool) -> Result<()> {
        let part = self.get(path).await?;
        self.ask_path(Method::PUT, path, JSON, &part)
            .await
            .context("update")?;
        let same = json!({"status": {}});
        let test = json!([{"op": "test", "path": "/kind", "value": part["kind"]}]);
        for (media, patch) in [
            ("application/json-patch+json", &test),
            ("application/merge-patch+json", &same),
            ("application/strategic-merge-patch+json", &same),
        ] {
            self.ask_path(Method::PATCH, path, media, patch)
                .await
                .context(media)?;
        }
        if applies {
            let applied =
                json!({"apiVersion": part["apiVersion"], "kind": part["kind"], "status": {}});
            let path = format!("{path}?fieldManager=sweep&force=true");
            let media = "application/apply-patch+yaml";
            self.ask_path(Method::PATCH, &path, media, &applied)
                .await
                .context(media)?;
        }
        Ok(())
    }

    async fn remove(&self) -> Result<()> {
        self.ask_path(
            Method::DELETE,
            &format!("{}?gracePeriodSeconds=0", self.path()),
            "",
            &Value::Null,
        )
        .await?;
        self.is_gone().await?;
        if !self.kind.verbs.contains(&"deletecollection") {
            return Ok(());
        }
        self.ask(Method::POST, "", "", JSON, &self.sample)
            .await
            .context("once more")?;
        let these = format!(
            "{}?labelSelector=sweep%3Dyes&gracePeriodSeconds=0",
            self.collection()
        );
        self.ask_path(Method::DELETE, &these, "", &Value::Null)
            .await?;
        self.is_gone().await
    }

    /// A pod is bound by a Binding, in both places where one can be made.
    async fn bind(&self) -> Result<()> {
        let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
        let collection = self.collection();
        for (name, path) in [("one", format!("{pods}/one/binding")), ("two", collection)] {
            let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
            self.ask_path(Method::POST, &pods, JSON, &pod).await?;
            let binding =
                json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}});
            self.ask_path(Method::POST, &path, JSON, &binding).await?;
            let bound = self.get(&format!("{pods}/{name}")).await?;
            ensure!(bound["spec"]["nodeName"] == "n1", "it is bound: {bound}");
        }
        Ok(())
    }

    /// Gone, or going once its finalizers are done.
    async fn is_gone(&self) -> Result<()> {
        let (status, left) = self
            .send(Request::get(self.path()).body(Body::empty())?)
            .await?;
        let goes = left["metadata"]["deletionTimestamp"].is_string();
        ensure!(
            status == StatusCode::NOT_FOUND || goes,
            "it is still there: {left}"
        );
        Ok(())
    }

    fn name(&self) -> &str {
        self.sample["metadata"]["name"].as_str().unwrap_or_default()
    }

    fn collection(&self) -> String {
        let root = if self.kind.group.is_empty() {
            "/api"
        } else {
            "/apis"
        };
        let version = self.kind.api_version();
        let namespace = if self.kind.namespaced {
            format!("/namespaces/{NAMESPACE}")
        } else {
            String::new()
        };
        format!("{root}/{version}{namespace}/{}", self.kind.plural)
    }

    fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name())
    }

    async fn get(&self, path: &str) -> Result<Value> {
        self.ask_path(Method::GET, path, "", &Value::Null).await
    }

    async fn ask(
        &self,
        method: Method,
        below: &str,
        query: &str,
        media: &str,
        body: &Value,
    ) -> Result<Value> {
        let path = format!("{}{below}{query}", self.collection());
        self.ask_path(method, &path, media, body).await
    }

    /// The answer, which must be a good one.
    async fn ask_path(
        &self,
        method: Method,
        path: &str,
        media: &str,
        body: &Value,
    ) -> Result<Value> {
        let body = match body {
            Value::Null => Body::empty(),
            body => Body::from(body.to_string().into_bytes()),
        };
        let mut request = Request::builder().method(method.clone()).uri(path);
        if !media.is_empty() {
            request = request.header(header::CONTENT_TYPE, media);
        }
        let (status, answer) = self.send(request.body(body)?).await?;
        if !status.is_success() {
            bail!("{method} {path}: {status} {}", answer["message"]);
        }
        Ok(answer)
    }

    async fn send(&self, request: Request<Body>) -> Result<(StatusCode, Value)> {
        let response = self.client.send(request).await?;
        let status = response.status();
        let bytes = response.into_body().collect_bytes().await?;
        Ok((status, serde_json::from_slice(&bytes)?))
    }
}
