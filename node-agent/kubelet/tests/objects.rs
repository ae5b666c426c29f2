//! What pods and nodes have to do with other objects: ConfigMaps, Secrets, Events, the Node and its Lease.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod node;

use std::time::Duration;

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Event, Node},
};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use node::{NODE, TestNode, condition, on_a_node};
use serde_json::{Value, json};

const SLEEP: &str = "trap 'exit 0' TERM; sleep 1000000 & wait";

fn first(status: &Value) -> &Value {
    &status["containerStatuses"][0]
}

async fn create_config_map(node: &TestNode, name: &str, data: Value) {
    let api: Api<ConfigMap> = Api::namespaced(node.client.clone(), "default");
    let map = json!({ "metadata": { "name": name }, "data": data });
    api.create(
        &PostParams::default(),
        &serde_json::from_value(map).unwrap(),
    )
    .await
    .unwrap();
}

async fn reasons(node: &TestNode, pod: &str) -> Vec<String> {
    let api: Api<Event> = Api::namespaced(node.client.clone(), "default");
    let events = api.list(&ListParams::default()).await.unwrap();
    let about = events
        .items
        .into_iter()
        .filter(|event| event.involved_object.name.as_deref() == Some(pod));
    about.filter_map(|event| event.reason).collect()
}

#[test]
fn config_maps_become_variables_and_files_and_a_missing_one_is_waited_for() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        create_config_map(
            node,
            "settings",
            json!({ "color": "blue", "page": "welcome" }),
        )
        .await;
        let spec = |map: &str| {
            json!({
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main", "image": "busybox:1", "command": ["sh", "-c", SLEEP],
                    "env": [
                        { "name": "COLOR", "valueFrom": { "configMapKeyRef": { "name": map, "key": "color" } } },
                        { "name": "MAYBE", "valueFrom": {
                            "configMapKeyRef": { "name": map, "key": "none", "optional": true } } },
                        { "name": "BOTH", "value": "$(COLOR) and $(COLOR)" },
                    ],
                    "envFrom": [{ "prefix": "S_", "configMapRef": { "name": map } }],
                    "volumeMounts": [{ "name": "files", "mountPath": "/files" }],
                }],
                "volumes": [{ "name": "files", "configMap": {
                    "name": map, "items": [{ "key": "page", "path": "site/index.html" }] } }],
            })
        };
        node.create_pod("reads", spec("settings")).await;
        let status = node.wait_ready("reads").await;
        let id = first(&status)["containerID"]
            .as_str()
            .unwrap()
            .trim_start_matches("docker://")
            .to_owned();
        let environment = node.docker(&["exec", &id, "env"]).unwrap();
        for line in [
            "COLOR=blue",
            "BOTH=blue and blue",
            "S_color=blue",
            "S_page=welcome",
        ] {
            assert!(
                environment.lines().any(|other| other == line),
                "{line} is not in {environment}"
            );
        }
        assert!(!environment.contains("MAYBE"), "{environment}");
        assert_eq!(
            node.docker(&["exec", &id, "cat", "/files/site/index.html"])
                .as_deref(),
            Ok("welcome")
        );

        node.create_pod("waits", spec("later")).await;
        let status = node
            .wait_for("waits", "waiting for its ConfigMap", 30, |status| {
                first(status)["state"]["waiting"]["reason"] == "CreateContainerConfigError"
            })
            .await;
        assert_eq!(
            first(&status)["state"]["waiting"]["message"],
            "ConfigMap \"later\" not found"
        );
        create_config_map(node, "later", json!({ "color": "red", "page": "at last" })).await;
        node.wait_ready("waits").await;
        node.wait_until(
            "the failure is an event",
            Duration::from_secs(10),
            async |node| {
                let reasons = reasons(node, "waits").await;
                ["Failed", "Pulled", "Created", "Started"]
                    .iter()
                    .all(|wanted| reasons.iter().any(|reason| reason == wanted))
            },
        )
        .await;
    });
}

#[test]
fn the_node_registers_reports_and_renews_its_lease() {
    on_a_node(async |node| {
        let nodes: Api<Node> = Api::all(node.client.clone());
        node.start_kubelet().await;
        let mut ready = Value::Null;
        node.wait_until("the node is Ready", Duration::from_secs(20), async |_| {
            ready = serde_json::to_value(nodes.get(NODE).await.unwrap()).unwrap();
            condition(&ready["status"], "Ready") == "True"
        })
        .await;
        assert_eq!(ready["metadata"]["labels"]["kubernetes.io/hostname"], NODE);
        assert_eq!(ready["metadata"]["labels"]["kubernetes.io/os"], "linux");
        assert_eq!(ready["status"]["capacity"]["pods"], "110");
        assert_eq!(
            ready["status"]["addresses"][0],
            json!({ "type": "InternalIP", "address": "127.0.0.1" })
        );
        assert_eq!(
            ready["status"]["addresses"][1],
            json!({ "type": "Hostname", "address": NODE })
        );
        let info = &ready["status"]["nodeInfo"];
        assert!(
            info["kubeletVersion"]
                .as_str()
                .unwrap()
                .starts_with("v1.37."),
            "{info}"
        );
        assert!(
            info["containerRuntimeVersion"]
                .as_str()
                .unwrap()
                .starts_with("docker://"),
            "{info}"
        );
        for pressure in ["MemoryPressure", "DiskPressure", "PIDPressure"] {
            assert_eq!(condition(&ready["status"], pressure), "False");
        }

        // A condition of somebody else survives what the kubelet writes.
        let other = json!({ "status": { "conditions": [
            { "type": "NetworkUnavailable", "status": "False", "reason": "FairleadIsUp" } ] } });
        nodes
            .patch_status(NODE, &PatchParams::default(), &Patch::Strategic(other))
            .await
            .unwrap();
        node.stop_kubelet().await;
        node.start_kubelet().await;
        let status = serde_json::to_value(nodes.get(NODE).await.unwrap()).unwrap();
        assert_eq!(
            condition(&status["status"], "NetworkUnavailable"),
            "False",
            "{:#}",
            status["status"]["conditions"]
        );

        let leases: Api<Lease> = Api::namespaced(node.client.clone(), "kube-node-lease");
        let renewed = async || {
            let lease = leases.get_opt(NODE).await.unwrap()?;
            assert_eq!(lease.spec.as_ref()?.lease_duration_seconds, Some(40));
            assert_eq!(lease.spec.as_ref()?.holder_identity.as_deref(), Some(NODE));
            lease.spec?.renew_time
        };
        let before = renewed().await;
        node.wait_until(
            "the lease is renewed",
            Duration::from_secs(15),
            async |_| {
                let now = renewed().await;
                now.is_some() && now != before
            },
        )
        .await;
    });
}

#[test]
fn a_pod_on_the_hosts_network_has_the_nodes_addresses_and_no_link() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        let container =
            json!({ "name": "main", "image": "busybox:1", "command": ["sh", "-c", SLEEP] });
        let spec = json!({ "hostNetwork": true, "terminationGracePeriodSeconds": 1, "containers": [container] });
        let pod = node.create_pod("host", spec).await;
        let status = node.wait_ready("host").await;
        assert_eq!(status["podIP"], "127.0.0.1");
        assert_eq!(status["hostIP"], "127.0.0.1");
        let id = first(&status)["containerID"]
            .as_str()
            .unwrap()
            .trim_start_matches("docker://")
            .to_owned();
        let links = node.docker(&["exec", &id, "ip", "link"]).unwrap();
        assert!(
            links.contains("fairlead0"),
            "not the node's network: {links}"
        );
        assert!(node.calls.lock().unwrap().is_empty());
        assert!(node.ipam.leases().is_empty());
        node.delete_pod("host", 1).await;
        node.wait_gone("host", 20).await;
        assert!(node.containers(&pod).is_empty());
    });
}

#[test]
fn containers_are_restarted_while_the_api_server_is_away_and_reported_when_it_is_back() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        let container =
            json!({ "name": "main", "image": "busybox:1", "command": ["sh", "-c", SLEEP] });
        let pod = node
            .create_pod("works", json!({ "containers": [container] }))
            .await;
        let status = node.wait_ready("works").await;
        let id = first(&status)["containerID"]
            .as_str()
            .unwrap()
            .trim_start_matches("docker://")
            .to_owned();
        node.stop_server();
        node.docker(&["kill", &id]).unwrap();
        let name = format!(
            "k8s_main_works_default_{}_1",
            pod.metadata.uid.as_deref().unwrap()
        );
        node.wait_until(
            "the container runs again",
            Duration::from_secs(30),
            async |node| {
                node.docker(&["inspect", "-f", "{{.State.Running}}", &name])
                    .as_deref()
                    == Ok("true")
            },
        )
        .await;
        node.start_server().await;
        node.wait_for("works", "reported", 60, |status| {
            first(status)["restartCount"] == 1
        })
        .await;
    });
}

#[test]
fn a_mounted_config_map_follows_its_object_and_an_agent_that_restarts_goes_on() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        let maps = Api::<ConfigMap>::namespaced(node.client.clone(), "default");
        let map =
            json!({ "metadata": { "name": "settings" }, "data": { "colour": "blue", "old": "x" } });
        let map: ConfigMap = serde_json::from_value(map).unwrap();
        maps.create(&PostParams::default(), &map).await.unwrap();
        let mut container =
            json!({ "name": "main", "image": "busybox:1", "command": ["sh", "-c", SLEEP] });
        container["volumeMounts"] = json!([{ "name": "settings", "mountPath": "/settings" }]);
        let volumes = json!([{ "name": "settings", "configMap": { "name": "settings" } }]);
        let spec = json!({ "terminationGracePeriodSeconds": 0, "containers": [container], "volumes": volumes });
        node.create_pod("reader", spec).await;
        node.wait_ready("reader").await;
        let read = async |node: &TestNode| {
            let files = "cd /settings; for file in *; do echo $file=$(cat $file); done";
            node.kubectl_ok(&["exec", "reader", "--", "sh", "-c", files])
                .await
        };
        assert_eq!(read(node).await, "colour=blue\nold=x\n");
        let change = async |data: Value| {
            let patch = Patch::Merge(json!({ "data": data }));
            maps.patch("settings", &PatchParams::default(), &patch)
                .await
                .unwrap();
        };
        change(json!({ "colour": "green", "old": null, "new": "y" })).await;
        let limit = Duration::from_secs(60);
        node.wait_until("the files are new", limit, async |node| {
            read(node).await == "colour=green\nnew=y\n"
        })
        .await;
        node.stop_kubelet().await;
        change(json!({ "colour": "red" })).await;
        node.start_kubelet().await;
        node.wait_until("the files are new again", limit, async |node| {
            read(node).await == "colour=red\nnew=y\n"
        })
        .await;
    });
}
