//! Watching with kubectl and with kube-rs, both ways in which clients begin a watch.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use tests_kubectl::Server;
use tokio::io::{AsyncBufReadExt, BufReader};

fn config_map(name: &str) -> String {
    format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}}}, data: {{a: b}}}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_shows_changes_as_they_happen() -> Result<()> {
    let server = Server::start().await?;
    server.apply(&config_map("one")).await?;
    let mut watch = server.spawn(&["get", "cm", "-w", "--output-watch-events"])?;
    let out = watch.stdout.take().context("it is piped")?;
    let mut lines = BufReader::new(out).lines();
    let mut next = async || -> Result<Vec<String>> {
        let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await??;
        let line = line.context("the watch goes on")?;
        Ok(line.split_whitespace().map(ToOwned::to_owned).collect())
    };
    assert_eq!(next().await?, ["EVENT", "NAME", "DATA", "AGE"]);
    assert_eq!(next().await?[..3], ["ADDED", "one", "1"]);
    server.apply(&config_map("two")).await?;
    assert_eq!(next().await?[..3], ["ADDED", "two", "1"]);
    let patch = r#"{"data":{"c":"d"}}"#;
    server.kubectl(&["patch", "cm", "two", "-p", patch]).await?;
    assert_eq!(next().await?[..3], ["MODIFIED", "two", "2"]);
    server.kubectl(&["delete", "cm", "two"]).await?;
    assert_eq!(next().await?[..3], ["DELETED", "two", "2"]);
    watch.kill().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_waits_for_what_comes_and_goes() -> Result<()> {
    let server = Server::start().await?;
    server.apply(&config_map("one")).await?;
    let value = "--for=jsonpath={.data.ready}=yes";
    let wait = server.spawn(&["wait", value, "cm/one", "--timeout=20s"])?;
    let gone = server.spawn(&["wait", "--for=delete", "cm/one", "--timeout=20s"])?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let patch = r#"{"data":{"ready":"yes"}}"#;
    server.kubectl(&["patch", "cm", "one", "-p", patch]).await?;
    let met = wait.wait_with_output().await?;
    assert_eq!(
        String::from_utf8(met.stdout)?,
        "configmap/one condition met\n"
    );
    server.kubectl(&["delete", "cm", "one"]).await?;
    assert!(gone.wait_with_output().await?.status.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_rs_follows_by_list_and_watch_and_by_streaming() -> Result<()> {
    let server = Server::start().await?;
    server.apply(&config_map("one")).await?;
    let client = Client::try_from(kube::Config::new(server.url().parse()?))?;
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    for config in [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
    ] {
        let mut watch = watcher::watcher(api.clone(), config).boxed();
        let mut next = async || -> Result<String> {
            let event = tokio::time::timeout(Duration::from_secs(10), watch.try_next()).await??;
            let name = |o: ConfigMap| o.metadata.name.unwrap_or_default();
            Ok(match event.context("the watch goes on")? {
                Event::Init => "init".into(),
                Event::InitApply(o) => format!("has {}", name(o)),
                Event::InitDone => "done".into(),
                Event::Apply(o) => format!("apply {}", name(o)),
                Event::Delete(o) => format!("delete {}", name(o)),
            })
        };
        for want in ["init", "has one", "done"] {
            assert_eq!(next().await?, want);
        }
        server.apply(&config_map("two")).await?;
        assert_eq!(next().await?, "apply two");
        server.kubectl(&["delete", "cm", "two"]).await?;
        assert_eq!(next().await?, "delete two");
    }
    Ok(())
}
