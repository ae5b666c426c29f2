//! Making, changing and removing objects with kubectl.

use anyhow::Result;
use serde_json::{Value, json};
use tests_kubectl::Server;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: admin, port: 81}
";

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: p1
  labels: {app: web}
spec:
  nodeName: n1
  containers:
  - name: c
    image: busybox:1
    ports:
    - containerPort: 8080
";

fn ports(service: &Value) -> Vec<(i64, Value)> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports
        .map(|p| (p["port"].as_i64().unwrap_or(0), p["targetPort"].clone()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_creates_changes_and_leaves_alone() -> Result<()> {
    let server = Server::start().await?;
    assert_eq!(server.apply(SERVICE).await?, "service/web created\n");
    assert_eq!(server.apply(SERVICE).await?, "service/web unchanged\n");
    let first = server.json(&["get", "service", "web"]).await?;
    assert_eq!(ports(&first), [(80, json!(8080)), (81, json!(81))]);
    // One port is changed, one goes, one comes, and somebody else's label stays.
    server
        .kubectl(&["label", "service", "web", "other=x"])
        .await?;
    let changed = SERVICE
        .replace("8080", "9090")
        .replace("{name: admin, port: 81}", "{name: metrics, port: 82}");
    assert_eq!(server.apply(&changed).await?, "service/web configured\n");
    let second = server.json(&["get", "service", "web"]).await?;
    assert_eq!(ports(&second), [(80, json!(9090)), (82, json!(82))]);
    assert_eq!(second["metadata"]["labels"]["other"], "x");
    assert_eq!(second["spec"]["clusterIP"], first["spec"]["clusterIP"]);
    let diff = server.with_manifest(&["diff"], &changed).await?;
    assert_eq!(diff, "");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn create_replace_and_dry_run() -> Result<()> {
    let server = Server::start().await?;
    let out = server
        .with_manifest(&["create", "--dry-run=server"], POD)
        .await?;
    assert_eq!(out, "pod/p1 created (server dry run)\n");
    assert!(
        server
            .refused(&["get", "pod", "p1"])
            .await?
            .contains("pods \"p1\" not found")
    );
    server.with_manifest(&["create"], POD).await?;
    let again = server.manifest(POD)?;
    let again = server
        .refused(&["create", "-f", again.to_str().unwrap()])
        .await?;
    assert!(
        again.contains("Error from server (AlreadyExists)"),
        "{again}"
    );
    let newer = POD.replace("busybox:1", "busybox:2");
    assert_eq!(
        server.with_manifest(&["replace"], &newer).await?,
        "pod/p1 replaced\n"
    );
    let pod = server.json(&["get", "pod", "p1"]).await?;
    assert_eq!(pod["spec"]["containers"][0]["image"], "busybox:2");
    let other = server.manifest(&newer.replace("nodeName: n1", "nodeName: n2"))?;
    let refused = server
        .refused(&["replace", "-f", other.to_str().unwrap()])
        .await?;
    assert!(
        refused.contains("pod updates may not change fields other than"),
        "{refused}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn label_annotate_and_every_kind_of_patch() -> Result<()> {
    let server = Server::start().await?;
    server.apply(SERVICE).await?;
    assert_eq!(
        server.kubectl(&["label", "svc", "web", "a=1"]).await?,
        "service/web labeled\n"
    );
    assert_eq!(
        server.kubectl(&["label", "svc", "web", "a-"]).await?,
        "service/web unlabeled\n"
    );
    server
        .kubectl(&["annotate", "svc", "web", "note=x"])
        .await?;
    for (kind, patch) in [
        (
            "json",
            r#"[{"op":"replace","path":"/spec/ports/0/port","value":8000}]"#,
        ),
        ("merge", r#"{"metadata":{"annotations":{"note":null}}}"#),
        (
            "strategic",
            r#"{"spec":{"ports":[{"port":81,"targetPort":"x"}]}}"#,
        ),
    ] {
        let out = server
            .kubectl(&["patch", "svc", "web", "--type", kind, "-p", patch])
            .await?;
        assert_eq!(out, "service/web patched\n", "{kind}");
    }
    let service = server.json(&["get", "svc", "web"]).await?;
    assert_eq!(ports(&service), [(8000, json!(8080)), (81, json!("x"))]);
    assert_eq!(service["metadata"]["annotations"].get("note"), None);
    let status = r#"{"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"}]}}}"#;
    server
        .kubectl(&[
            "patch",
            "svc",
            "web",
            "--subresource=status",
            "--type=merge",
            "-p",
            status,
        ])
        .await?;
    let ip = "jsonpath={.status.loadBalancer.ingress[0].ip}";
    assert_eq!(
        server.kubectl(&["get", "svc", "web", "-o", ip]).await?,
        "192.0.2.1"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn edit_cordon_and_taint() -> Result<()> {
    let server = Server::start().await?;
    server.apply(SERVICE).await?;
    let mut edit = server.command(&["edit", "service", "web"]);
    edit.env("KUBE_EDITOR", "sed -i 's/app: web/app: other/'");
    let edited = edit.output().await?;
    assert!(
        edited.status.success(),
        "{}",
        String::from_utf8_lossy(&edited.stderr)
    );
    let selector = "jsonpath={.spec.selector.app}";
    assert_eq!(
        server
            .kubectl(&["get", "svc", "web", "-o", selector])
            .await?,
        "other"
    );
    server
        .apply("{apiVersion: v1, kind: Node, metadata: {name: n1}}")
        .await?;
    server.kubectl(&["cordon", "n1"]).await?;
    server
        .kubectl(&["taint", "node", "n1", "a=b:NoSchedule"])
        .await?;
    let node = server.json(&["get", "node", "n1"]).await?;
    assert_eq!(node["spec"]["unschedulable"], true);
    assert_eq!(
        node["spec"]["taints"],
        json!([{"key": "a", "value": "b", "effect": "NoSchedule"}])
    );
    server.kubectl(&["uncordon", "n1"]).await?;
    server.kubectl(&["taint", "node", "n1", "a-"]).await?;
    let node = server.json(&["get", "node", "n1"]).await?;
    assert_eq!(node["spec"].get("unschedulable"), None);
    assert_eq!(node["spec"].get("taints"), None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_waits_until_the_kubelet_is_done() -> Result<()> {
    let server = Server::start().await?;
    server.apply(POD).await?;
    let delete = server.spawn(&["delete", "pod", "p1", "--timeout=20s"])?;
    let marked = "--for=jsonpath={.metadata.deletionGracePeriodSeconds}=30";
    server
        .kubectl(&["wait", marked, "pod/p1", "--timeout=10s"])
        .await?;
    let table = server.kubectl(&["get", "pod", "p1"]).await?;
    assert!(table.contains("Terminating"), "{table}");
    // What a kubelet does at the end.
    server
        .kubectl(&[
            "delete",
            "pod",
            "p1",
            "--grace-period=0",
            "--force",
            "--wait=false",
        ])
        .await?;
    let done = delete.wait_with_output().await?;
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    server.apply(SERVICE).await?;
    assert_eq!(
        server
            .kubectl(&["delete", "svc", "-l", "none=such"])
            .await?,
        "No resources found\n"
    );
    let out = server.kubectl(&["delete", "svc", "web"]).await?;
    assert_eq!(out, "service \"web\" deleted from default namespace\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_named() -> Result<()> {
    let server = Server::start().await?;
    for (manifest, want) in [
        (
            SERVICE.replace("selector", "selectr"),
            "Service in version \"v1\" cannot be handled as a Service: strict decoding error: unknown field \"spec.selectr\"",
        ),
        (
            SERVICE.replace("port: 81", "port: 99999"),
            "spec.ports[1].port: Invalid value: 99999: must be between 1 and 65535, inclusive",
        ),
        (
            SERVICE.replace("port: 81", "port: \"81\""),
            "json: cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32",
        ),
        (
            SERVICE.replace("name: web", "name: web\n  namespace: nope"),
            "namespaces \"nope\" not found",
        ),
        (
            SERVICE.replace("selector:", "clusterIP: 10.97.0.1\n  selector:"),
            "the provided IP (10.97.0.1) is not in the valid range. The range of valid IPs is 10.96.0.0/16",
        ),
        (
            POD.replace("image: busybox:1", "imagePullPolicy: Sometimes"),
            "* spec.containers[0].image: Required value\n* spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (
            POD.replace("apiVersion: v1", "apiVersion: v2"),
            "no matches for kind \"Pod\" in version \"v2\"",
        ),
        (
            "{apiVersion: apps/v1, kind: Deploymint, metadata: {name: d}}".to_owned(),
            "no matches for kind \"Deploymint\" in version \"apps/v1\"",
        ),
    ] {
        let path = server.manifest(&manifest)?;
        let said = server
            .refused(&["apply", "-f", path.to_str().unwrap()])
            .await?;
        assert!(said.contains(want), "wanted: {want}\nsaid: {said}");
    }
    Ok(())
}
