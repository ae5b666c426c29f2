//! The real helm: a chart with a hook is installed, upgraded, rolled back and uninstalled.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests_kubectl::Server;
use tokio::process::Child;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chart");

/// Runs a command of helm that waits for the chart's hook, and ends the hook's job as its pod would.
async fn with_hook(server: &Server, args: &[&str]) -> Result<String> {
    let helm: Child = server.helm_command(args)?.spawn()?;
    let done = r#"{"status":{"succeeded":1,"startTime":"2026-01-01T00:00:00Z","completionTime":"2026-01-01T00:00:01Z",
        "conditions":[{"type":"SuccessCriteriaMet","status":"True"},{"type":"Complete","status":"True"}]}}"#;
    let job = ["wait", "--for=create", "job/shop-migrate", "--timeout=20s"];
    server.kubectl(&job).await?;
    server
        .kubectl(&[
            "patch",
            "job",
            "shop-migrate",
            "--subresource=status",
            "--type=merge",
            "-p",
            done,
        ])
        .await?;
    said(helm.wait_with_output().await?)
}

fn said(output: Output) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

async fn helm(server: &Server, args: &[&str]) -> Result<String> {
    said(server.helm_command(args)?.output().await?)
}

async fn field(server: &Server, of: &str, path: &str) -> Result<String> {
    let path = format!("jsonpath={{{path}}}");
    server.kubectl(&["get", of, "-o", &path]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_lives_and_goes() -> Result<()> {
    let server = Server::start().await?;
    let installed = with_hook(&server, &["install", "shop", CHART]).await?;
    assert!(
        installed.contains("STATUS: deployed") && installed.contains("REVISION: 1"),
        "{installed}"
    );
    assert_eq!(
        field(&server, "deployment/shop", ".spec.replicas").await?,
        "2"
    );
    let gone = server.refused(&["get", "job", "shop-migrate"]).await?;
    assert!(gone.contains("not found"), "{gone}");
    let list: Value = serde_json::from_str(&helm(&server, &["list", "-o", "json"]).await?)?;
    assert_eq!(
        (&list[0]["name"], &list[0]["chart"]),
        (&"shop".into(), &"shop-1.2.3".into())
    );

    let more = [
        "upgrade",
        "shop",
        CHART,
        "--set",
        "replicas=3,image=busybox:2,extra=true",
    ];
    let upgraded = with_hook(&server, &more).await?;
    assert!(upgraded.contains("REVISION: 2"), "{upgraded}");
    assert_eq!(
        field(&server, "deployment/shop", ".spec.replicas").await?,
        "3"
    );
    let image = ".spec.template.spec.containers[0].image";
    assert_eq!(field(&server, "deployment/shop", image).await?, "busybox:2");
    assert_eq!(
        field(&server, "configmap/shop-extra", ".data.a").await?,
        "b"
    );

    helm(&server, &["rollback", "shop", "1"]).await?;
    assert_eq!(
        field(&server, "deployment/shop", ".spec.replicas").await?,
        "2"
    );
    assert_eq!(field(&server, "deployment/shop", image).await?, "busybox:1");
    let gone = server.refused(&["get", "configmap", "shop-extra"]).await?;
    assert!(gone.contains("not found"), "{gone}");
    let history = helm(&server, &["history", "shop", "-o", "json"]).await?;
    let history: Value = serde_json::from_str(&history)?;
    let statuses: Vec<&str> = history
        .as_array()
        .context("a list")?
        .iter()
        .filter_map(|r| r["status"].as_str())
        .collect();
    assert_eq!(statuses, ["superseded", "superseded", "deployed"]);
    let status = helm(&server, &["status", "shop"]).await?;
    assert!(
        status.contains("deployment.apps/shop") || status.contains("Deployment"),
        "{status}"
    );
    assert!(
        helm(&server, &["get", "manifest", "shop"])
            .await?
            .contains("busybox:1")
    );

    let uninstalled = helm(&server, &["uninstall", "shop"]).await?;
    assert!(
        uninstalled.contains("release \"shop\" uninstalled"),
        "{uninstalled}"
    );
    for of in ["deployment/shop", "service/shop"] {
        assert!(server.refused(&["get", of]).await?.contains("not found"));
    }
    assert_eq!(server.kubectl(&["get", "secrets", "-o", "name"]).await?, "");
    Ok(())
}
