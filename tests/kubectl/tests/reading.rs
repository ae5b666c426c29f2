//! Looking at objects with kubectl: tables, descriptions, selectors, pages, documentation.

use anyhow::Result;
use tests_kubectl::Server;

const OBJECTS: &str = r#"
apiVersion: v1
kind: Node
metadata:
  name: n1
  labels: {node-role.kubernetes.io/worker: ""}
---
apiVersion: v1
kind: Pod
metadata:
  name: p1
  labels: {app: web, tier: front}
spec:
  nodeName: n1
  containers:
  - {name: c, image: "busybox:1"}
---
apiVersion: v1
kind: Pod
metadata:
  name: p2
  labels: {app: db}
spec:
  containers:
  - {name: c, image: "busybox:1"}
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  type: NodePort
  clusterIP: 10.96.0.77
  selector: {app: web}
  ports:
  - {port: 80, nodePort: 30080}
"#;

/// An event as a kubelet records it, about the object with UID.
const EVENT: &str = r#"
apiVersion: v1
kind: Event
metadata: {name: p1.1}
involvedObject: {apiVersion: v1, kind: Pod, namespace: default, name: p1, uid: UID}
reason: Started
message: Started container c
type: Normal
source: {component: kubelet, host: n1}
"#;

const RUNNING: &str = r#"{"status":{"phase":"Running","podIP":"10.244.0.5","startTime":"2026-01-01T00:00:00Z",
"conditions":[{"type":"Ready","status":"True"}],
"containerStatuses":[{"name":"c","ready":true,"restartCount":2,"image":"busybox:1","imageID":"",
"state":{"running":{"startedAt":"2026-01-01T00:00:00Z"}}}]}}"#;

async fn server() -> Result<Server> {
    let server = Server::start().await?;
    server.apply(OBJECTS).await?;
    let patch = ["patch", "pod", "p1", "--subresource=status", "-p", RUNNING];
    server.kubectl(&patch).await?;
    let uid = server.json(&["get", "pod", "p1"]).await?["metadata"]["uid"].clone();
    let event = EVENT.replace("UID", uid.as_str().unwrap_or_default());
    server.apply(&event).await?;
    Ok(server)
}

/// The words of each line, without the age.
fn cells(table: &str, columns: &[usize]) -> Vec<Vec<String>> {
    table
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            columns.iter().map(|at| words[*at].to_owned()).collect()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_pods_services_and_nodes() -> Result<()> {
    let server = server().await?;
    let pods = server.kubectl(&["get", "pods", "-o", "wide"]).await?;
    assert_eq!(
        cells(&pods, &[0, 1, 2, 3, 5, 6]),
        [
            ["NAME", "READY", "STATUS", "RESTARTS", "IP", "NODE"],
            ["p1", "1/1", "Running", "2", "10.244.0.5", "n1"],
            ["p2", "0/1", "Pending", "0", "<none>", "<none>"],
        ]
    );
    let services = server.kubectl(&["get", "svc", "web", "-o", "wide"]).await?;
    assert_eq!(
        cells(&services, &[0, 1, 2, 3, 4, 6])[1],
        [
            "web",
            "NodePort",
            "10.96.0.77",
            "<none>",
            "80:30080/TCP",
            "app=web"
        ]
    );
    let nodes = server.kubectl(&["get", "nodes"]).await?;
    assert_eq!(cells(&nodes, &[0, 1, 2])[1], ["n1", "Unknown", "worker"]);
    let all = server.kubectl(&["get", "all", "-A"]).await?;
    assert!(
        all.contains("pod/p1") && all.contains("service/web"),
        "{all}"
    );
    let sorted = server
        .kubectl(&[
            "get",
            "pods",
            "--sort-by=.metadata.labels.app",
            "-o",
            "name",
        ])
        .await?;
    assert_eq!(sorted, "pod/p2\npod/p1\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_and_pages() -> Result<()> {
    let server = server().await?;
    for (args, want) in [
        (["-l", "app=web"], "pod/p1\n"),
        (["-l", "app in (db),!tier"], "pod/p2\n"),
        (["--field-selector", "spec.nodeName=n1"], "pod/p1\n"),
        (["--field-selector", "status.phase!=Running"], "pod/p2\n"),
        (["--chunk-size", "1"], "pod/p1\npod/p2\n"),
    ] {
        let out = server
            .kubectl(&["get", "pods", args[0], args[1], "-o", "name"])
            .await?;
        assert_eq!(out, want, "{args:?}");
    }
    let unknown = server
        .refused(&["get", "pods", "--field-selector", "spec.foo=1"])
        .await?;
    assert!(
        unknown.contains("field label not supported: spec.foo"),
        "{unknown}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptions_and_events() -> Result<()> {
    let server = server().await?;
    let pod = server.kubectl(&["describe", "pod", "p1"]).await?;
    for part in [
        "Node:             n1/",
        "IP:               10.244.0.5",
        "QoS Class:       BestEffort",
        "Started container c",
    ] {
        assert!(pod.contains(part), "no {part:?} in {pod}");
    }
    let service = server.kubectl(&["describe", "svc", "web"]).await?;
    assert!(
        service.contains("NodePort:                 <unset>  30080/TCP"),
        "{service}"
    );
    let node = server.kubectl(&["describe", "node", "n1"]).await?;
    assert!(node.contains("Roles:              worker"), "{node}");
    assert!(node.contains("default                     p1"), "{node}");
    let events = server.kubectl(&["events", "--for", "pod/p1"]).await?;
    assert!(events.contains("Started container c"), "{events}");
    let events = server.kubectl(&["get", "events"]).await?;
    assert_eq!(
        cells(&events, &[1, 2, 3])[1],
        ["Normal", "Started", "pod/p1"]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn documentation_and_discovery() -> Result<()> {
    let server = server().await?;
    let explained = server
        .kubectl(&["explain", "pod.spec.containers.ports"])
        .await?;
    assert!(
        explained.contains("containerPort\t<integer> -required-"),
        "{explained}"
    );
    let explained = server
        .kubectl(&["explain", "endpointslice.endpoints"])
        .await?;
    assert!(
        explained.contains("GROUP:      discovery.k8s.io"),
        "{explained}"
    );
    let resources = server.kubectl(&["api-resources", "-o", "name"]).await?;
    for name in ["pods", "services", "leases.coordination.k8s.io"] {
        assert!(resources.lines().any(|line| line == name), "{resources}");
    }
    let versions = server.kubectl(&["api-versions"]).await?;
    for version in [
        "apps/v1",
        "autoscaling/v1",
        "autoscaling/v2",
        "batch/v1",
        "v1",
    ] {
        assert!(versions.lines().any(|line| line == version), "{versions}");
    }
    let version = server.kubectl(&["version"]).await?;
    assert!(version.contains("Server Version: v1."), "{version}");
    assert_eq!(server.kubectl(&["get", "--raw", "/readyz"]).await?, "ok");
    Ok(())
}
