//! What people do with kubectl from day to day, each with what it prints.

use anyhow::{Context, Result};
use serde_json::json;
use tests_kubectl::{Server, columns};

const SHOP: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web, tier: front}, annotations: {deployment.kubernetes.io/revision: '2'}}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: 'busybox:2'}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {app: web}}
data: {a: '1'}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: more, labels: {app: web}}
data: {a: '2', b: '3'}
---
apiVersion: v1
kind: Secret
metadata: {name: key, labels: {app: other}}
stringData: {password: x}
";

async fn shop() -> Result<Server> {
    let server = Server::start().await?;
    server.apply(SHOP).await?;
    Ok(server)
}

/// Runs each command, written with blanks between its words, and compares what it prints.
async fn expect(server: &Server, cases: &[(&str, &str)]) -> Result<()> {
    for (line, want) in cases {
        let args: Vec<&str> = line.split(' ').collect();
        assert_eq!(server.kubectl(&args).await?, *want, "{line}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_output() -> Result<()> {
    let server = shop().await?;
    expect(
        &server,
        &[
            ("get cm -l app=web -o name", "configmap/more\nconfigmap/settings\n"),
            ("get cm,secret -l app!=web -o name --field-selector metadata.name!=kube-root-ca.crt", "secret/key\n"),
            ("get cm settings -o jsonpath={.data.a}", "1"),
            ("get cm -l app=web -o jsonpath={.items[*].data.a}", "2 1"),
            ("get cm -l app=web -o custom-columns=N:.metadata.name,A:.data.a --no-headers", "more       2\nsettings   1\n"),
            ("get cm settings -o go-template={{.data.a}}", "1"),
            ("get cm -l app=web --sort-by=.data.a -o name", "configmap/settings\nconfigmap/more\n"),
            ("get cm -l app=web --chunk-size=1 -o name", "configmap/more\nconfigmap/settings\n"),
            ("get cm none --ignore-not-found", ""),
            ("get deploy/web -o jsonpath={.spec.template.spec.containers[*].image}", "busybox:2"),
        ],
    )
    .await?;
    let shown = columns(
        &server
            .kubectl(&["get", "cm", "-l", "app=web", "-L", "app", "--show-labels"])
            .await?,
    );
    assert_eq!(shown[0], ["NAME", "DATA", "AGE", "APP", "LABELS"]);
    assert_eq!(
        [&shown[1][1], &shown[1][3], &shown[1][4]],
        ["2", "web", "app=web"]
    );
    let all = columns(
        &server
            .kubectl(&["get", "cm", "-A", "-l", "app=web"])
            .await?,
    );
    assert_eq!(all[1][..2], ["default", "more"]);
    let yaml = server
        .kubectl(&["get", "secret", "key", "-o", "yaml"])
        .await?;
    assert!(
        yaml.contains("password: eA==") && yaml.contains("type: Opaque"),
        "{yaml}"
    );
    let missing = server.refused(&["get", "cm", "none"]).await?;
    assert_eq!(
        missing,
        "Error from server (NotFound): configmaps \"none\" not found\n"
    );
    let unknown = server.refused(&["get", "gizmos"]).await?;
    assert_eq!(
        unknown,
        "error: the server doesn't have a resource type \"gizmos\"\n"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_annotations_and_settings() -> Result<()> {
    let server = shop().await?;
    let refused = server
        .refused(&["label", "cm", "settings", "app=x"])
        .await?;
    assert!(
        refused.contains("'app' already has a value (web), and --overwrite is false"),
        "{refused}"
    );
    expect(
        &server,
        &[
            (
                "label cm settings app=x --overwrite",
                "configmap/settings labeled\n",
            ),
            ("label cm settings --list", "app=x\n"),
            ("label cm settings app-", "configmap/settings unlabeled\n"),
            (
                "annotate deploy web note=y",
                "deployment.apps/web annotated\n",
            ),
            (
                "annotate deploy web note-",
                "deployment.apps/web annotated\n",
            ),
            (
                "set image deploy/web c=busybox:3",
                "deployment.apps/web image updated\n",
            ),
            (
                "set resources deploy/web --limits=cpu=100m,memory=64Mi",
                "deployment.apps/web resource requirements updated\n",
            ),
            (
                "set serviceaccount deploy/web robot",
                "deployment.apps/web serviceaccount updated\n",
            ),
            (
                "set env deploy/web A=1 --list",
                "# Deployment web, container c\nA=1\n",
            ),
            (
                "patch deploy web --subresource=scale --type=merge -p {\"spec\":{\"replicas\":4}}",
                "scale.autoscaling/web patched\n",
            ),
            (
                "autoscale deploy web --min=1 --max=3 --name=auto",
                "horizontalpodautoscaler.autoscaling/auto autoscaled\n",
            ),
            (
                "expose deploy web --port=80 --name=front",
                "service/front exposed\n",
            ),
            (
                "set selector svc front app=other",
                "service/front selector updated\n",
            ),
        ],
    )
    .await?;
    let deployment = server.json(&["get", "deploy", "web"]).await?;
    let spec = &deployment["spec"];
    assert_eq!(spec["replicas"], 4);
    assert_eq!(spec["template"]["spec"]["serviceAccountName"], "robot");
    assert_eq!(
        spec["template"]["spec"]["containers"][0]["resources"]["limits"],
        json!({"cpu": "100m", "memory": "64Mi"})
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_has_a_history_and_goes_back() -> Result<()> {
    let server = shop().await?;
    let deployment = server.json(&["get", "deploy", "web"]).await?;
    let uid = deployment["metadata"]["uid"].as_str().context("a uid")?;
    // What the deployment controller would have left behind.
    for (revision, image) in [("1", "busybox:1"), ("2", "busybox:2")] {
        let set = format!(
            "{{apiVersion: apps/v1, kind: ReplicaSet, metadata: {{name: web-{revision}, labels: {{app: web, pod-template-hash: h{revision}}}, annotations: {{deployment.kubernetes.io/revision: '{revision}'}}, ownerReferences: [{{apiVersion: apps/v1, kind: Deployment, name: web, uid: {uid}, controller: true}}]}}, spec: {{replicas: 0, selector: {{matchLabels: {{app: web, pod-template-hash: h{revision}}}}}, template: {{metadata: {{labels: {{app: web, pod-template-hash: h{revision}}}}}, spec: {{containers: [{{name: c, image: '{image}'}}]}}}}}}}}"
        );
        server.apply(&set).await?;
    }
    let history = server
        .kubectl(&["rollout", "history", "deploy/web"])
        .await?;
    assert_eq!(
        history,
        "deployment.apps/web \nREVISION  CHANGE-CAUSE\n1         <none>\n2         <none>\n\n"
    );
    let first = server
        .kubectl(&["rollout", "history", "deploy/web", "--revision=1"])
        .await?;
    assert!(first.contains("Image:\tbusybox:1"), "{first}");
    expect(
        &server,
        &[
            (
                "rollout undo deploy/web",
                "deployment.apps/web rolled back\n",
            ),
            (
                "get deploy web -o jsonpath={.spec.template.spec.containers[0].image}",
                "busybox:1",
            ),
            ("rollout pause deploy/web", "deployment.apps/web paused\n"),
            ("rollout resume deploy/web", "deployment.apps/web resumed\n"),
            (
                "rollout restart deploy/web",
                "deployment.apps/web restarted\n",
            ),
        ],
    )
    .await?;
    let described = server.kubectl(&["describe", "deploy", "web"]).await?;
    assert!(
        described.contains("RollingUpdateStrategy:  25% max unavailable, 25% max surge"),
        "{described}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_replaced_pruned_and_deleted() -> Result<()> {
    let server = shop().await?;
    let path = server.manifest(SHOP.split("---").nth(1).context("a part")?)?;
    let path = path.to_str().context("UTF-8")?;
    let before = server.json(&["get", "cm", "settings"]).await?;
    let replaced = server.kubectl(&["replace", "--force", "-f", path]).await?;
    assert_eq!(
        replaced,
        "configmap \"settings\" deleted from default namespace\nconfigmap/settings replaced\n"
    );
    let after = server.json(&["get", "cm", "settings"]).await?;
    assert_ne!(before["metadata"]["uid"], after["metadata"]["uid"]);
    // What is labelled and not in the manifest goes.
    server.apply(SHOP).await?;
    let pruned = server
        .kubectl(&[
            "apply",
            "-f",
            path,
            "--prune",
            "-l",
            "app=web",
            "--prune-allowlist=core/v1/ConfigMap",
        ])
        .await?;
    assert!(pruned.contains("configmap/more pruned"), "{pruned}");
    expect(
        &server,
        &[
            (
                "delete cm settings --dry-run=server",
                "configmap \"settings\" deleted from default namespace (server dry run)\n",
            ),
            ("get cm settings -o name", "configmap/settings\n"),
            (
                "delete cm -l app=web",
                "configmap \"settings\" deleted from default namespace\n",
            ),
            (
                "delete secret --field-selector metadata.name=key",
                "secret \"key\" deleted from default namespace\n",
            ),
            (
                "delete deploy --all",
                "deployment.apps \"web\" deleted from default namespace\n",
            ),
            ("create ns shop", "namespace/shop created\n"),
            (
                "run p --image=busybox:1 -n shop --labels=a=b",
                "pod/p created\n",
            ),
            ("get pods -n shop -l a=b -o name", "pod/p\n"),
            (
                "delete pod p -n shop --now",
                "pod \"p\" deleted from shop namespace\n",
            ),
            ("wait --for=delete pod/p -n shop --timeout=5s", ""),
        ],
    )
    .await?;
    let gone = server.refused(&["delete", "cm", "none"]).await?;
    assert!(gone.contains("configmaps \"none\" not found"), "{gone}");
    let kept = server.refused(&["delete", "ns", "default"]).await?;
    assert!(kept.contains("this namespace may not be deleted"), "{kept}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_and_watching() -> Result<()> {
    let server = shop().await?;
    let watch = server.spawn(&[
        "get",
        "cm",
        "-l",
        "app=web",
        "-w",
        "--output-watch-events",
        "--request-timeout=4s",
    ])?;
    let wait = server.spawn(&[
        "wait",
        "--for=jsonpath={.data.a}=9",
        "cm/settings",
        "--timeout=10s",
    ])?;
    let created = server.spawn(&["wait", "--for=create", "cm/late", "--timeout=10s"])?;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    server
        .kubectl(&["patch", "cm", "settings", "-p", r#"{"data":{"a":"9"}}"#])
        .await?;
    server.kubectl(&["create", "cm", "late"]).await?;
    server.kubectl(&["delete", "cm", "more"]).await?;
    for (child, want) in [
        (wait, "configmap/settings condition met\n"),
        (created, "configmap/late condition met\n"),
    ] {
        let output = child.wait_with_output().await?;
        assert_eq!(
            String::from_utf8(output.stdout)?,
            want,
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let seen = String::from_utf8(watch.wait_with_output().await?.stdout)?;
    let words: Vec<Vec<&str>> = seen
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    for want in [["MODIFIED", "settings"], ["DELETED", "more"]] {
        assert!(
            words.iter().any(|w| w.starts_with(&want)),
            "no {want:?} in {seen}"
        );
    }
    let never = server
        .refused(&[
            "wait",
            "--for=condition=Available",
            "deploy/web",
            "--timeout=1s",
        ])
        .await?;
    assert!(
        never.contains("timed out waiting for the condition on deployments/web"),
        "{never}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_says_of_itself() -> Result<()> {
    let server = shop().await?;
    let info = server.kubectl(&["cluster-info"]).await?;
    assert!(info.contains("is running at"), "{info}");
    let top = server.refused(&["top", "nodes"]).await?;
    assert_eq!(top, "error: Metrics API not available\n");
    let namespaced = server
        .kubectl(&[
            "api-resources",
            "--namespaced=false",
            "--verbs=list",
            "-o",
            "name",
        ])
        .await?;
    assert!(
        namespaced.contains("storageclasses.storage.k8s.io\n") && !namespaced.contains("pods\n"),
        "{namespaced}"
    );
    let explained = server
        .kubectl(&["explain", "deployment.spec.strategy", "--recursive"])
        .await?;
    assert!(
        explained.contains("rollingUpdate") && explained.contains("maxSurge\t<IntOrString>"),
        "{explained}"
    );
    let older = server
        .kubectl(&["explain", "hpa", "--api-version=autoscaling/v1"])
        .await?;
    assert!(older.contains("VERSION:    v1"), "{older}");
    let raw = server
        .kubectl(&[
            "get",
            "--raw",
            "/apis/apps/v1/namespaces/default/deployments/web/scale",
        ])
        .await?;
    assert!(raw.contains("\"kind\":\"Scale\""), "{raw}");
    assert_eq!(server.kubectl(&["get", "--raw", "/livez"]).await?, "ok");
    let events = server.kubectl(&["events"]).await?;
    assert_eq!(events, "");
    let mut proxy = server.spawn(&["proxy", "--port=0"])?;
    let mut line = [0u8; 128];
    let stdout = proxy.stdout.as_mut().context("its output")?;
    let read = tokio::io::AsyncReadExt::read(stdout, &mut line).await?;
    let said = String::from_utf8_lossy(&line[..read]).into_owned();
    assert!(said.contains("Starting to serve on 127.0.0.1:"), "{said}");
    proxy.kill().await?;
    let folder =
        server.manifest("{resources: [], configMapGenerator: [{name: made, literals: [a=b]}]}")?;
    let place = folder.parent().context("a folder")?.join("overlay");
    std::fs::create_dir(&place)?;
    std::fs::rename(&folder, place.join("kustomization.yaml"))?;
    let made = server
        .kubectl(&["apply", "-k", place.to_str().context("UTF-8")?])
        .await?;
    assert!(
        made.starts_with("configmap/made-") && made.ends_with(" created\n"),
        "{made}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cascade_is_left_to_the_garbage_collector() -> Result<()> {
    let server = Server::start().await?;
    // The garbage collector is asked by finalizers.
    for (cascade, finalizer) in [("orphan", "orphan"), ("foreground", "foregroundDeletion")] {
        server.kubectl(&["create", "cm", cascade]).await?;
        let how = format!("--cascade={cascade}");
        server
            .kubectl(&["delete", "cm", cascade, &how, "--wait=false"])
            .await?;
        let held = server.json(&["get", "cm", cascade]).await?;
        assert_eq!(held["metadata"]["finalizers"], json!([finalizer]));
        let let_go = r#"{"metadata":{"finalizers":null}}"#;
        server
            .kubectl(&["patch", "cm", cascade, "--type=merge", "-p", let_go])
            .await?;
        assert!(
            server
                .refused(&["get", "cm", cascade])
                .await?
                .contains("not found")
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_the_priority_of_its_class() -> Result<()> {
    let server = Server::start().await?;
    server
        .kubectl(&["create", "priorityclass", "high", "--value=1000"])
        .await?;
    let overrides =
        |class: &str| format!("--overrides={{\"spec\":{{\"priorityClassName\":\"{class}\"}}}}");
    server
        .kubectl(&["run", "q", "--image=i", &overrides("high")])
        .await?;
    let pod = server.json(&["get", "pod", "q"]).await?;
    assert_eq!(pod["spec"]["priority"], 1000);
    server
        .kubectl(&["run", "s", "--image=i", &overrides("system-node-critical")])
        .await?;
    let none = server
        .refused(&["run", "r", "--image=i", &overrides("none")])
        .await?;
    assert!(
        none.contains("no PriorityClass with name none was found"),
        "{none}"
    );
    Ok(())
}
