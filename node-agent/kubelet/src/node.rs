//! This node's Node object: made at registration, its status kept up to date.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec,
        NodeStatus, NodeSystemInfo,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, Time},
    },
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::{KubeletConfig, runtime::Runtime};

/// The version that the node reports as its kubelet's.
pub(crate) const KUBELET_VERSION: &str = concat!("v1.37.0-fairlead.", env!("CARGO_PKG_VERSION"));
/// `--max-pods` of the kubelet.
const MAX_PODS: u32 = 110;
/// How often the status is looked at (`nodeStatusUpdateFrequency`).
const LOOK: Duration = Duration::from_secs(10);
/// How often it is written although nothing changed (`nodeStatusReportFrequency`).
const WRITE_ANYWAY: Duration = Duration::from_secs(300);

/// Whether pods can run here, and if not, why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Readiness {
    Ready,
    Not(String),
}

/// Makes the Node, or brings the labels of the one that is there up to date; writes its first status.
pub(crate) async fn register(
    client: &Client,
    config: &KubeletConfig,
    runtime: &Runtime,
) -> anyhow::Result<Node> {
    let api: Api<Node> = Api::all(client.clone());
    let name = &config.node_name;
    let metadata = serde_json::json!({ "metadata": { "labels": labels(name) } });
    let patch = Patch::Merge(&metadata);
    let known = match api.patch(name, &PatchParams::default(), &patch).await {
        Ok(node) => node,
        Err(kube::Error::Api(answer)) if answer.code == 404 => {
            info!(node = name, "registering the node");
            let node = Node {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    labels: Some(labels(name)),
                    ..ObjectMeta::default()
                },
                spec: Some(NodeSpec::default()),
                ..Node::default()
            };
            api.create(&PostParams::default(), &node)
                .await
                .with_context(|| format!("create node {name}"))?
        }
        Err(error) => return Err(error).with_context(|| format!("label node {name}")),
    };
    let readiness = Readiness::Not("the network of pods is not set up yet".to_owned());
    let status = status(config, runtime, &readiness, known.status.as_ref()).await;
    write(&api, name, &status).await
}

/// Keeps the status up to date, for ever.
pub(crate) async fn keep_status(
    client: &Client,
    config: &KubeletConfig,
    runtime: &Runtime,
    readiness: impl Fn() -> Readiness,
    changed: &tokio::sync::Notify,
) -> ! {
    let api: Api<Node> = Api::all(client.clone());
    let mut written: Option<(NodeStatus, tokio::time::Instant)> = None;
    loop {
        let known = written.as_ref().map(|(status, _)| status);
        let status = status(config, runtime, &readiness(), known).await;
        let due = written.as_ref().is_none_or(|(known, at)| {
            at.elapsed() >= WRITE_ANYWAY || without_heartbeats(known) != without_heartbeats(&status)
        });
        if due {
            match write(&api, &config.node_name, &status).await {
                Ok(_) => {
                    debug!(node = config.node_name, "node status written");
                    written = Some((status, tokio::time::Instant::now()));
                }
                Err(error) => warn!(
                    node = config.node_name,
                    error = format!("{error:#}"),
                    "node status not written"
                ),
            }
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = changed.notified() => {}
        }
    }
}

/// Conditions are merged by their type, so those of others stay: the API's own merge rules for lists.
async fn write(api: &Api<Node>, name: &str, status: &NodeStatus) -> anyhow::Result<Node> {
    let patch = Patch::Strategic(status_patch(status)?);
    let written = api
        .patch_status(name, &PatchParams::default(), &patch)
        .await;
    written.with_context(|| format!("write the status of node {name}"))
}

/// Addresses have their type as merge key too, but a dual-stack node has two `InternalIP`s, whose
/// order says which is preferred: so that list is replaced, as Kubernetes' own kubelet does
/// (`fixupPatchForNodeStatusAddresses` in k8s.io/component-helpers).
fn status_patch(status: &NodeStatus) -> anyhow::Result<serde_json::Value> {
    let mut status = serde_json::to_value(status).context("encode the node's status")?;
    if let Some(addresses) = status["addresses"].as_array_mut() {
        addresses.insert(0, serde_json::json!({ "$patch": "replace" }));
    }
    Ok(serde_json::json!({ "status": status }))
}

async fn status(
    config: &KubeletConfig,
    runtime: &Runtime,
    readiness: &Readiness,
    known: Option<&NodeStatus>,
) -> NodeStatus {
    let version = runtime.version().await;
    let ready = match (&version, readiness) {
        (Err(error), _) => Err(format!(
            "container runtime is down: {}",
            crate::chain(error)
        )),
        (Ok(_), Readiness::Not(why)) => Err(why.clone()),
        (Ok(_), Readiness::Ready) => Ok(()),
    };
    let ready = match ready {
        Ok(()) => (
            "Ready",
            "True",
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        ),
        Err(why) => ("Ready", "False", "KubeletNotReady", why),
    };
    let sufficient = |type_, reason, message: &str| (type_, "False", reason, message.to_owned());
    let conditions = [
        sufficient(
            "MemoryPressure",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        sufficient(
            "DiskPressure",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        sufficient(
            "PIDPressure",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        ready,
    ];
    let internal = config
        .node_ips
        .iter()
        .map(|ip| ("InternalIP", ip.to_string()));
    let addresses = internal.chain([("Hostname", config.node_name.clone())]);
    let version = version.ok().or_else(|| {
        let known = known?
            .node_info
            .as_ref()?
            .container_runtime_version
            .strip_prefix("docker://")?;
        Some(known.to_owned())
    });
    let capacity = capacity();
    NodeStatus {
        addresses: Some(
            addresses
                .map(|(type_, address)| NodeAddress {
                    type_: type_.to_owned(),
                    address,
                })
                .collect(),
        ),
        allocatable: Some(capacity.clone()),
        capacity: Some(capacity),
        daemon_endpoints: config.api_port.map(|port| NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(port),
            }),
        }),
        conditions: Some(
            conditions
                .map(|condition| node_condition(condition, known))
                .into(),
        ),
        node_info: Some(system_info(&version.unwrap_or_default())),
        ..NodeStatus::default()
    }
}

fn node_condition(
    (type_, status, reason, message): (&str, &str, &str, String),
    known: Option<&NodeStatus>,
) -> NodeCondition {
    let now = Time(Timestamp::now());
    let mut before = known
        .iter()
        .flat_map(|known| known.conditions.iter().flatten());
    let before = before.find(|condition| condition.type_ == type_ && condition.status == status);
    NodeCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: before
            .and_then(|condition| condition.last_transition_time.clone())
            .or_else(|| Some(now.clone())),
        last_heartbeat_time: Some(now),
    }
}

fn without_heartbeats(status: &NodeStatus) -> NodeStatus {
    let mut status = status.clone();
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
    }
    status
}

fn labels(name: &str) -> BTreeMap<String, String> {
    [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// The architecture as Go calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

fn capacity() -> BTreeMap<String, Quantity> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory_total(&meminfo).unwrap_or(0);
    [
        ("cpu", cpus.to_string()),
        ("memory", format!("{memory}Ki")),
        ("pods", MAX_PODS.to_string()),
    ]
    .map(|(resource, amount)| (resource.to_owned(), Quantity(amount)))
    .into()
}

/// `MemTotal` of `/proc/meminfo`, in KiB.
fn memory_total(meminfo: &str) -> Option<u64> {
    meminfo.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse()
            .ok()
    })
}

fn system_info(runtime_version: &str) -> NodeSystemInfo {
    let read = |path: &str| {
        fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    let release = read("/etc/os-release");
    let os_image = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or("Linux", |name| name.trim_matches('"'));
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: format!("docker://{runtime_version}"),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: read("/etc/machine-id"),
        operating_system: "linux".to_owned(),
        os_image: os_image.to_owned(),
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
        ..NodeSystemInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_of_a_dual_stack_node_survive_the_merge() {
        let address = |address: &str| NodeAddress {
            type_: "InternalIP".to_owned(),
            address: address.to_owned(),
        };
        let status = NodeStatus {
            addresses: Some(vec![address("172.31.240.11"), address("fd00:fa1e::11")]),
            ..NodeStatus::default()
        };
        let patch = status_patch(&status).unwrap();
        assert_eq!(patch["status"]["addresses"][0]["$patch"], "replace");
        assert_eq!(patch["status"]["addresses"][1]["address"], "172.31.240.11");
        assert_eq!(patch["status"]["addresses"][2]["address"], "fd00:fa1e::11");
    }

    #[test]
    fn the_memory_is_read_from_meminfo() {
        assert_eq!(
            memory_total("MemTotal:       24623456 kB\nMemFree: 1 kB\n"),
            Some(24_623_456)
        );
        assert_eq!(memory_total("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let first = node_condition(("Ready", "True", "KubeletReady", String::new()), None);
        let at = Time(Timestamp::UNIX_EPOCH);
        let known = NodeStatus {
            conditions: Some(vec![NodeCondition {
                last_transition_time: Some(at.clone()),
                ..first
            }]),
            ..NodeStatus::default()
        };
        let same = node_condition(
            ("Ready", "True", "KubeletReady", String::new()),
            Some(&known),
        );
        assert_eq!(same.last_transition_time, Some(at.clone()));
        let other = node_condition(
            ("Ready", "False", "KubeletNotReady", String::new()),
            Some(&known),
        );
        assert_ne!(other.last_transition_time, Some(at));
    }
}
