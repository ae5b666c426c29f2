//! Workloads as a user drives them with kubectl: a whole control plane, a real kubelet, a real dockerd.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod node;

use std::time::Duration;

use node::{TestNode, kubectl::ok, on_a_node};
use serde_json::{Value, json};

const WAIT: &str = "trap 'exit 0' TERM; sleep 1000000 & wait";
const LIMIT: Duration = Duration::from_secs(90);

async fn start(node: &mut TestNode) {
    for tag in ["busybox:2", "busybox:3"] {
        node.docker(&["tag", "busybox:1", tag]).unwrap();
    }
    node.start_clients();
    node.start_kubelet().await;
}

async fn apply(node: &TestNode, object: &Value) {
    let arguments = ["apply", "-f", "-"];
    ok(
        &arguments,
        node.kubectl_with(&arguments, object.to_string()).await,
    );
}

fn template(command: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "busybox:1", "command": ["sh", "-c", command]}],
        },
    })
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": template(WAIT),
        },
    })
}

/// The images of the pods that are not about to go, sorted.
async fn images(node: &TestNode) -> Vec<String> {
    let pods = node
        .kubectl_ok(&["get", "pods", "-l", "app=web", "-o", "json"])
        .await;
    let pods: Value = serde_json::from_str(&pods).unwrap();
    let staying = pods["items"].as_array().unwrap().iter();
    let staying = staying.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let image = |pod: &Value| {
        pod["spec"]["containers"][0]["image"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let mut images: Vec<String> = staying.map(image).collect();
    images.sort();
    images
}

#[test]
fn a_deployment_is_rolled_out_scaled_undone_and_deleted_with_its_pods() {
    on_a_node(async |node| {
        start(node).await;
        apply(node, &deployment()).await;
        let rolled_out = ["rollout", "status", "deployment/web", "--timeout=80s"];
        node.kubectl_ok(&rolled_out).await;
        assert_eq!(images(node).await, ["busybox:1", "busybox:1"]);
        let named = node
            .kubectl_ok(&["exec", "deploy/web", "--", "hostname"])
            .await;
        assert!(named.starts_with("web-"), "{named}");
        node.kubectl_ok(&["set", "image", "deployment/web", "c=busybox:2"])
            .await;
        node.kubectl_ok(&rolled_out).await;
        assert_eq!(images(node).await, ["busybox:2", "busybox:2"]);
        node.kubectl_ok(&["scale", "deployment/web", "--replicas=3"])
            .await;
        node.kubectl_ok(&rolled_out).await;
        assert_eq!(images(node).await.len(), 3);
        let history = node
            .kubectl_ok(&["rollout", "history", "deployment/web"])
            .await;
        let revisions: Vec<&str> = history
            .lines()
            .filter_map(|line| {
                line.split_whitespace()
                    .next()?
                    .parse::<u32>()
                    .ok()
                    .map(|_| line)
            })
            .collect();
        assert_eq!(revisions.len(), 2, "{history}");
        node.kubectl_ok(&["rollout", "undo", "deployment/web"])
            .await;
        node.kubectl_ok(&rolled_out).await;
        assert_eq!(images(node).await, ["busybox:1"; 3]);
        let sets = node
            .kubectl_ok(&["get", "rs", "-l", "app=web", "-o", "name"])
            .await;
        assert_eq!(
            sets.lines().count(),
            2,
            "an undo uses the old set again: {sets}"
        );
        // A pod that goes is replaced.
        let pods = node
            .kubectl_ok(&["get", "pods", "-l", "app=web", "-o", "name"])
            .await;
        let first = pods.lines().next().unwrap();
        node.kubectl_ok(&["delete", first]).await;
        node.kubectl_ok(&rolled_out).await;
        assert_eq!(images(node).await.len(), 3);
        node.kubectl_ok(&["delete", "deployment", "web"]).await;
        node.wait_until("sets and pods are gone", LIMIT, async |node| {
            let left = node.kubectl_ok(&["get", "rs,pods", "-o", "name"]).await;
            left.is_empty()
        })
        .await;
    });
}

#[test]
fn a_broken_version_leaves_the_old_one_serving_and_a_paused_one_waits() {
    on_a_node(async |node| {
        start(node).await;
        let mut web = deployment();
        web["spec"]["progressDeadlineSeconds"] = json!(5);
        apply(node, &web).await;
        node.kubectl_ok(&["rollout", "status", "deployment/web", "--timeout=80s"])
            .await;
        node.kubectl_ok(&["set", "image", "deployment/web", "c=not-there:9"])
            .await;
        let failed = node
            .kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])
            .await;
        let error = node::kubectl::complaint(&failed);
        assert!(error.contains("exceeded its progress deadline"), "{error}");
        let available = [
            "get",
            "deploy",
            "web",
            "-o",
            "jsonpath={.status.availableReplicas}",
        ];
        assert_eq!(node.kubectl_ok(&available).await, "2");
        node.kubectl_ok(&["rollout", "pause", "deployment/web"])
            .await;
        node.kubectl_ok(&["set", "image", "deployment/web", "c=busybox:3"])
            .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let found = images(node).await;
        assert!(!found.contains(&"busybox:3".to_owned()), "{found:?}");
        node.kubectl_ok(&["rollout", "resume", "deployment/web"])
            .await;
        node.kubectl_ok(&["rollout", "status", "deployment/web", "--timeout=80s"])
            .await;
        assert_eq!(images(node).await, ["busybox:3", "busybox:3"]);
    });
}

#[test]
fn a_job_runs_to_its_end_and_one_that_cannot_says_so() {
    on_a_node(async |node| {
        start(node).await;
        let create = [
            "create",
            "job",
            "once",
            "--image=busybox:1",
            "--",
            "echo",
            "done",
        ];
        node.kubectl_ok(&create).await;
        node.kubectl_ok(&[
            "wait",
            "--for=condition=complete",
            "job/once",
            "--timeout=80s",
        ])
        .await;
        assert_eq!(node.kubectl_ok(&["logs", "job/once"]).await, "done\n");
        let script = "echo $JOB_COMPLETION_INDEX; [ $JOB_COMPLETION_INDEX != 1 ] || sleep 1";
        let mut pod = template(script);
        pod["spec"]["restartPolicy"] = json!("Never");
        let spec = json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed", "template": pod});
        apply(node, &json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "many"}, "spec": spec})).await;
        node.kubectl_ok(&[
            "wait",
            "--for=condition=complete",
            "job/many",
            "--timeout=80s",
        ])
        .await;
        let said = node.kubectl_ok(&["logs", "-l", "job-name=many"]).await;
        let mut said: Vec<&str> = said.lines().collect();
        said.sort_unstable();
        assert_eq!(said, ["0", "1", "2"]);
        let indexes = [
            "get",
            "job",
            "many",
            "-o",
            "jsonpath={.status.completedIndexes}",
        ];
        assert_eq!(node.kubectl_ok(&indexes).await, "0-2");
        let mut pod = template("exit 1");
        pod["spec"]["restartPolicy"] = json!("Never");
        let spec = json!({"backoffLimit": 0, "template": pod});
        apply(node, &json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "broken"}, "spec": spec})).await;
        node.kubectl_ok(&[
            "wait",
            "--for=condition=failed",
            "job/broken",
            "--timeout=80s",
        ])
        .await;
        let reason = [
            "get",
            "job",
            "broken",
            "-o",
            "jsonpath={.status.conditions[-1].reason}",
        ];
        assert_eq!(node.kubectl_ok(&reason).await, "BackoffLimitExceeded");
        node.kubectl_ok(&["delete", "jobs", "--all"]).await;
        node.wait_until("the jobs' pods are gone", LIMIT, async |node| {
            node.kubectl_ok(&["get", "pods", "-o", "name"])
                .await
                .is_empty()
        })
        .await;
    });
}

#[test]
fn a_daemon_set_has_its_pod_on_the_node_and_follows_its_template() {
    on_a_node(async |node| {
        start(node).await;
        let spec = json!({"selector": {"matchLabels": {"app": "web"}}, "template": template(WAIT)});
        apply(node, &json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web"}, "spec": spec})).await;
        let rolled_out = ["rollout", "status", "daemonset/web", "--timeout=80s"];
        node.kubectl_ok(&rolled_out).await;
        assert_eq!(images(node).await, ["busybox:1"]);
        node.kubectl_ok(&["set", "image", "daemonset/web", "c=busybox:2"])
            .await;
        node.kubectl_ok(&rolled_out).await;
        assert_eq!(images(node).await, ["busybox:2"]);
        node.kubectl_ok(&["rollout", "undo", "daemonset/web"]).await;
        node.kubectl_ok(&rolled_out).await;
        assert_eq!(images(node).await, ["busybox:1"]);
        let revisions = node
            .kubectl_ok(&["get", "controllerrevisions", "-o", "name"])
            .await;
        assert_eq!(
            revisions.lines().count(),
            2,
            "an undo uses the old revision again: {revisions}"
        );
        // A cordoned node keeps its daemons; a label that the set asks for and the node has not sends them away.
        node.kubectl_ok(&["cordon", node::NODE]).await;
        let pods = node.kubectl_ok(&["get", "pods", "-o", "name"]).await;
        node.kubectl_ok(&["delete", pods.trim()]).await;
        node.wait_until(
            "the daemon is back on a cordoned node",
            LIMIT,
            async |node| {
                let found = node.kubectl_ok(&["get", "pods", "-o", "name"]).await;
                found != pods && found.lines().count() == 1
            },
        )
        .await;
        let elsewhere = r#"{"spec":{"template":{"spec":{"nodeSelector":{"disk":"fast"}}}}}"#;
        node.kubectl_ok(&["patch", "daemonset", "web", "-p", elsewhere])
            .await;
        node.wait_until("the daemon leaves", LIMIT, async |node| {
            node.kubectl_ok(&["get", "pods", "-o", "name"])
                .await
                .is_empty()
        })
        .await;
        node.kubectl_ok(&["label", "node", node::NODE, "disk=fast"])
            .await;
        node.kubectl_ok(&rolled_out).await;
        node.kubectl_ok(&["delete", "daemonset", "web"]).await;
        node.wait_until("pods and revisions are gone", LIMIT, async |node| {
            node.kubectl_ok(&["get", "pods,controllerrevisions", "-o", "name"])
                .await
                .is_empty()
        })
        .await;
    });
}
