//! Pods on a real dockerd, told by a real API server: their life, their deletion, and agents that come and go.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod node;

use std::{
    fs,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use node::{TestNode, condition, get, in_netns, ip, on_a_node};
use serde_json::{Value, json};

fn ips(status: &Value) -> Vec<IpAddr> {
    status["podIPs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ip| ip["ip"].as_str().unwrap().parse().unwrap())
        .collect()
}

fn container<'a>(status: &'a Value, name: &str) -> &'a Value {
    let mut all = ["containerStatuses", "initContainerStatuses"]
        .into_iter()
        .flat_map(|key| {
            status[key]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default()
        });
    all.find(|container| container["name"] == name)
        .unwrap_or(&Value::Null)
}

/// A shell that does `script`.
fn shell(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": "busybox:1", "command": ["sh", "-c", script] })
}

const SLEEP: &str = "trap 'exit 0' TERM; sleep 1000000 & wait";

/// A server with a page that an init container writes, and a container beside it that notes how it ends.
fn web(log: &Path) -> Value {
    json!({
        "terminationGracePeriodSeconds": 20,
        "initContainers": [{
            "name": "page", "image": "busybox:1",
            "command": ["sh", "-c", "echo $(POD) on $(NODE) at $POD_IP for $(GREETING) > /www/index.html"],
            "env": [
                { "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
                { "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                { "name": "GREETING", "value": "$(POD)-visitors" },
            ],
            "volumeMounts": [{ "name": "www", "mountPath": "/www" }],
        }],
        "containers": [
            {
                "name": "server", "image": "busybox:1",
                "command": ["sh"],
                "args": ["-c", "trap 'exit 0' TERM; httpd -f -p [::]:8080 -h /www & wait"],
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "readinessProbe": { "httpGet": { "path": "/", "port": "http" }, "periodSeconds": 1 },
                "volumeMounts": [{ "name": "www", "mountPath": "/www", "readOnly": true }],
                "resources": {
                    "requests": { "cpu": "100m" },
                    "limits": { "cpu": "500m", "memory": "64Mi" },
                },
            },
            {
                "name": "beside", "image": "busybox:1",
                "command": ["sh", "-c", "trap 'echo asked > /log/asked; exit 0' TERM; sleep 1000000 & wait"],
                "lifecycle": { "preStop": { "exec": { "command": ["touch", "/log/hook"] } } },
                "volumeMounts": [{ "name": "log", "mountPath": "/log" }],
            },
        ],
        "volumes": [
            { "name": "www", "emptyDir": {} },
            { "name": "log", "hostPath": { "path": log.display().to_string(), "type": "Directory" } },
        ],
    })
}

#[test]
fn a_pod_runs_serves_and_goes_with_all_that_it_had() {
    on_a_node(async |node| {
        let kubelet = node.start_kubelet().await;
        let log = node.path("log");
        fs::create_dir_all(&log).unwrap();
        let pod = node.create_pod("web", web(&log)).await;
        let status = node.wait_ready("web").await;
        assert_eq!(status["phase"], "Running");
        assert_eq!(
            container(&status, "page")["state"]["terminated"]["reason"],
            "Completed"
        );
        assert_eq!(container(&status, "server")["restartCount"], 0);
        assert!(
            container(&status, "server")["containerID"]
                .as_str()
                .unwrap()
                .starts_with("docker://")
        );
        for type_ in [
            "PodScheduled",
            "Initialized",
            "ContainersReady",
            "PodReadyToStartContainers",
        ] {
            assert_eq!(condition(&status, type_), "True", "{type_}");
        }
        let addresses = ips(&status);
        assert_eq!(addresses.len(), 2);
        for address in &addresses {
            let expected = format!("web on node-1 at {} for web-visitors", addresses[0]);
            assert_eq!(get(*address, 8080).as_deref(), Ok(expected.as_str()));
        }
        let uid = pod.metadata.uid.clone().unwrap();
        let ids = node.containers(&pod);
        let beside = container(&status, "beside")["containerID"]
            .as_str()
            .unwrap()
            .trim_start_matches("docker://");
        let shared = node
            .docker(&["exec", beside, "wget", "-qO-", "http://127.0.0.1:8080/"])
            .unwrap();
        assert!(
            shared.starts_with("web on node-1"),
            "containers do not share the network: {shared}"
        );
        assert_eq!(
            node.docker(&["exec", beside, "hostname"]).as_deref(),
            Ok("web")
        );
        let server = container(&status, "server")["containerID"]
            .as_str()
            .unwrap()
            .trim_start_matches("docker://");
        let limits = node
            .docker(&[
                "inspect",
                "-f",
                "{{.HostConfig.CpuShares}} {{.HostConfig.CpuQuota}} {{.HostConfig.Memory}}",
                server,
            ])
            .unwrap();
        assert_eq!(limits, "102 50000 67108864");
        assert_eq!(
            ids.len(),
            4,
            "sandbox, init container and two containers: {ids:?}"
        );
        assert_eq!(*node.calls.lock().unwrap(), ["wired web"]);
        assert_eq!(kubelet.metrics().containers_started, 3);

        let asked = Instant::now();
        node.delete_pod("web", 20).await;
        node.wait_gone("web", 30).await;
        assert!(
            asked.elapsed() < Duration::from_secs(15),
            "a pod that ends at once took {:?}",
            asked.elapsed()
        );
        assert!(log.join("hook").exists(), "the preStop hook did not run");
        assert!(log.join("asked").exists(), "SIGTERM did not come");
        assert!(node.containers(&pod).is_empty());
        assert!(node.ipam.addresses(&uid).is_empty());
        assert_eq!(node.network.pod_links().await.unwrap(), []);
        assert!(!node.path("state").join("pods").join(&uid).exists());
        assert_eq!(*node.calls.lock().unwrap(), ["wired web", "unwired web"]);
    });
}

#[test]
fn an_agent_that_comes_back_finds_its_pods_and_touches_none() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        let spec = || {
            json!({
                "terminationGracePeriodSeconds": 2,
                "containers": [{
                    "name": "server", "image": "busybox:1", "command": ["httpd", "-f", "-p", "[::]:8080"],
                    "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1 },
                }],
            })
        };
        let stays = node.create_pod("stays", spec()).await;
        let goes = node.create_pod("goes", spec()).await;
        let forced = node.create_pod("forced", spec()).await;
        for name in ["stays", "goes", "forced"] {
            node.wait_ready(name).await;
        }
        let version = async |node: &TestNode| {
            node.pods()
                .get("stays")
                .await
                .unwrap()
                .metadata
                .resource_version
                .unwrap()
        };
        // Events of readiness may still be on their way into the last patch.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (before, ids) = (version(node).await, node.containers(&stays));
        node.stop_kubelet().await;
        node.calls.lock().unwrap().clear();
        node.delete_pod("goes", 2).await;
        node.delete_pod("forced", 0).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(
            node.containers(&goes).len(),
            2,
            "nothing must happen while no agent runs"
        );

        let kubelet = node.start_kubelet().await;
        node.wait_gone("goes", 30).await;
        node.wait_until(
            "what the forced deletion left is removed",
            Duration::from_secs(30),
            async |node| node.containers(&forced).is_empty() && node.ipam.leases().len() == 2,
        )
        .await;
        assert!(node.containers(&goes).is_empty());
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(
            node.containers(&stays),
            ids,
            "a healthy container was replaced"
        );
        assert_eq!(
            version(node).await,
            before,
            "the status of an unchanged pod was written again"
        );
        assert_eq!(kubelet.metrics().containers_started, 0);
        let calls = node.calls.lock().unwrap().clone();
        assert!(calls.contains(&"wired stays".to_owned()), "{calls:?}");
        assert!(
            calls.contains(&"unwired goes".to_owned())
                && calls.contains(&"unwired forced".to_owned()),
            "{calls:?}"
        );
        let links: Vec<String> = node
            .network
            .pod_links()
            .await
            .unwrap()
            .into_iter()
            .map(|link| link.name)
            .collect();
        assert_eq!(links, ["stays"]);
    });
}

async fn create_pods_that_end(node: &TestNode) {
    node.create_pod(
        "crashes",
        json!({ "containers": [shell("main", "exit 3")] }),
    )
    .await;
    node.create_pod(
        "once",
        json!({ "restartPolicy": "Never", "containers": [shell("main", "exit 0")] }),
    )
    .await;
    node.create_pod(
        "fails",
        json!({ "restartPolicy": "Never", "containers": [shell("main", "exit 7")] }),
    )
    .await;
    let marked = "test -e /v/mark && exit 0; touch /v/mark; exit 1";
    let mut again = shell("main", marked);
    again["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v" }]);
    node.create_pod(
            "again",
            json!({
                "restartPolicy": "OnFailure", "containers": [again], "volumes": [{ "name": "v", "emptyDir": {} }],
            }),
        )
        .await;
    let mut ill = shell("main", SLEEP);
    ill["livenessProbe"] = json!({ "exec": { "command": ["sh", "-c", "exit 1"] }, "periodSeconds": 1, "failureThreshold": 1 });
    node.create_pod(
        "ill",
        json!({ "containers": [ill], "terminationGracePeriodSeconds": 3 }),
    )
    .await;
    let mut missing = shell("main", SLEEP);
    missing["image"] = json!("not-here:1");
    missing["imagePullPolicy"] = json!("Never");
    node.create_pod("missing", json!({ "containers": [missing] }))
        .await;
}

#[test]
fn containers_that_end_are_restarted_as_the_policy_says() {
    on_a_node(async |node| {
        let kubelet = node.start_kubelet().await;
        create_pods_that_end(node).await;

        let status = node
            .wait_for("once", "Succeeded", 60, |status| {
                status["phase"] == "Succeeded"
            })
            .await;
        assert_eq!(
            container(&status, "main")["state"]["terminated"]["exitCode"],
            0
        );
        assert_eq!(condition(&status, "Ready"), "False");
        let status = node
            .wait_for("fails", "Failed", 60, |status| status["phase"] == "Failed")
            .await;
        assert_eq!(
            container(&status, "main")["state"]["terminated"]["exitCode"],
            7
        );
        assert_eq!(
            container(&status, "main")["state"]["terminated"]["reason"],
            "Error"
        );
        let status = node
            .wait_for("again", "Succeeded", 60, |status| {
                status["phase"] == "Succeeded"
            })
            .await;
        assert_eq!(container(&status, "main")["restartCount"], 1);
        let status = node
            .wait_for("crashes", "in back-off", 60, |status| {
                container(status, "main")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            })
            .await;
        assert_eq!(status["phase"], "Running");
        assert_eq!(
            container(&status, "main")["restartCount"],
            1,
            "the first restart comes at once, the next waits"
        );
        assert_eq!(
            container(&status, "main")["lastState"]["terminated"]["exitCode"],
            3
        );
        let message = container(&status, "main")["state"]["waiting"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            message
                .starts_with("back-off 10s restarting failed container=main pod=crashes_default("),
            "{message}"
        );
        node.wait_for("crashes", "restarted after the back-off", 30, |status| {
            container(status, "main")["restartCount"] == 2
        })
        .await;
        node.wait_for("ill", "restarted", 60, |status| {
            container(status, "main")["restartCount"] != 0
        })
        .await;
        let status = node.status("missing").await;
        assert_eq!(
            container(&status, "main")["state"]["waiting"]["reason"],
            "ErrImageNeverPull"
        );
        assert_eq!(status["phase"], "Pending");
        assert!(kubelet.metrics().container_restarts >= 3);
        assert!(kubelet.metrics().container_failures >= 1);
        // A pod that has ended keeps its logs, and neither sandbox nor addresses.
        let once = node.pods().get("once").await.unwrap();
        assert_eq!(node.containers(&once).len(), 1);
        assert!(
            node.ipam
                .addresses(once.metadata.uid.as_deref().unwrap())
                .is_empty()
        );
    });
}

#[test]
fn a_sandbox_that_dies_is_replaced_with_the_same_addresses() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        let pod = node
            .create_pod("web", json!({ "containers": [shell("main", SLEEP)] }))
            .await;
        let before = node.wait_ready("web").await;
        let name = format!(
            "k8s_POD_web_default_{}_0",
            pod.metadata.uid.as_deref().unwrap()
        );
        node.docker(&["kill", &name]).unwrap();
        let after = node
            .wait_for("web", "restarted", 60, |status| {
                container(status, "main")["restartCount"] == 1
                    && condition(status, "Ready") == "True"
            })
            .await;
        assert_eq!(ips(&before), ips(&after));
        let name = format!(
            "k8s_POD_web_default_{}_1",
            pod.metadata.uid.as_deref().unwrap()
        );
        let pid = node
            .docker(&["inspect", "-f", "{{.State.Pid}}", &name])
            .unwrap();
        let addresses = in_netns(format!("/proc/{pid}/ns/net").as_ref(), || {
            ip("addr show dev eth0")
        });
        for address in ips(&after) {
            assert!(addresses.contains(&address.to_string()), "{addresses}");
        }
    });
}

#[test]
fn the_grace_is_given_and_not_exceeded() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        let deaf = "trap '' TERM; while true; do sleep 1; done";
        let deaf_pod = node
            .create_pod("deaf", json!({ "containers": [shell("main", deaf)] }))
            .await;
        let mut slow = shell("main", SLEEP);
        slow["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": 3 } } });
        node.create_pod("slow", json!({ "containers": [slow] }))
            .await;
        for name in ["deaf", "slow"] {
            node.wait_ready(name).await;
        }
        let asked = Instant::now();
        node.delete_pod("deaf", 4).await;
        node.delete_pod("slow", 20).await;
        node.wait_for("slow", "gone", 30, Value::is_null).await;
        let took = asked.elapsed();
        assert!(
            took >= Duration::from_secs(3) && took < Duration::from_secs(12),
            "preStop sleep of 3 s: {took:?}"
        );
        node.wait_gone("deaf", 30).await;
        let took = asked.elapsed();
        assert!(
            took >= Duration::from_secs(3) && took < Duration::from_secs(12),
            "a grace of 4 s took {took:?}"
        );
        assert!(node.containers(&deaf_pod).is_empty());
    });
}
