//! The columns of nodes, namespaces, events, leases and of data.

use serde_json::{Value, json};

use super::{AGE, Column, NAME, Printer, age, column, count, name, or, or_none, since, wide};
use crate::json::Json;
use crate::strategies::NEW_EVENT_CONVERSION;

pub const NODE: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "The status of the node."),
        column("Roles", "The roles of the node."),
        AGE,
        column("Version", "The version that the node's agent reports."),
        wide("Internal-IP", "The address of the node inside the cluster."),
        wide("External-IP", "The address of the node from outside."),
        wide("OS-Image", "The operating system of the node."),
        wide("Kernel-Version", "The kernel of the node."),
        wide("Container-Runtime", "The container runtime of the node."),
    ],
    row: |node, now| {
        let info = |field: &str| {
            let text = node.text(&format!("/status/nodeInfo/{field}"));
            or(text, "<unknown>")
        };
        vec![
            name(node),
            json!(node_status(node)),
            json!(roles(node)),
            age(node, now),
            json!(node.text("/status/nodeInfo/kubeletVersion")),
            address(node, "InternalIP"),
            address(node, "ExternalIP"),
            info("osImage"),
            info("kernelVersion"),
            info("containerRuntimeVersion"),
        ]
    },
    ..super::PLAIN
};

pub const NAMESPACE: Printer = Printer {
    columns: &[NAME, column("Status", "The status of the namespace."), AGE],
    row: |namespace, now| {
        vec![
            name(namespace),
            json!(namespace.text("/status/phase")),
            age(namespace, now),
        ]
    },
    ..super::PLAIN
};

pub const COMPONENT_STATUS: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "Whether the component is healthy."),
        column("Message", "What it says of itself."),
        column("Error", "Why it is not healthy."),
    ],
    row: |component, _| {
        let healthy = component
            .items("/conditions")
            .iter()
            .find(|condition| condition.text("/type") == "Healthy");
        let said = |field: &str| healthy.map_or("", |condition| condition.text(field));
        let status = match said("/status") {
            "True" => "Healthy",
            "False" => "Unhealthy",
            _ => "Unknown",
        };
        vec![
            name(component),
            json!(status),
            json!(said("/message")),
            json!(said("/error")),
        ]
    },
    ..super::PLAIN
};

pub const CONFIG_MAP: Printer = Printer {
    columns: &[NAME, count("Data", "The number of entries."), AGE],
    row: |map, now| {
        let entries = ["/data", "/binaryData"].map(|p| map.object(p).map_or(0, |m| m.len()));
        vec![
            name(map),
            json!(entries.iter().sum::<usize>()),
            age(map, now),
        ]
    },
    ..super::PLAIN
};

pub const SECRET: Printer = Printer {
    columns: &[
        NAME,
        column("Type", "What the secret is for."),
        count("Data", "The number of entries."),
        AGE,
    ],
    row: |secret, now| {
        vec![
            name(secret),
            json!(secret.text("/type")),
            json!(secret.object("/data").map_or(0, |d| d.len())),
            age(secret, now),
        ]
    },
    ..super::PLAIN
};

pub const SERVICE_ACCOUNT: Printer = Printer {
    columns: &[NAME, AGE],
    row: |account, now| vec![name(account), age(account, now)],
    ..super::PLAIN
};

pub const LEASE: Printer = Printer {
    columns: &[NAME, column("Holder", "Who holds the lease."), AGE],
    row: |lease, now| {
        vec![
            name(lease),
            json!(lease.text("/spec/holderIdentity")),
            age(lease, now),
        ]
    },
    ..super::PLAIN
};

pub const EVENT: Printer = Printer {
    columns: &[
        column("Last Seen", "The time since the event was last recorded."),
        column("Type", "Normal or Warning."),
        column("Reason", "Why it happened, in one word."),
        column("Object", "What it is about."),
        wide("Subobject", "The part of the object that it is about."),
        wide("Source", "Who reported it."),
        column("Message", "What happened."),
        wide("First Seen", "The time since the event was first recorded."),
        Column {
            kind: "integer",
            ..wide("Count", "How often it was recorded.")
        },
        Column {
            priority: 1,
            ..NAME
        },
    ],
    row: |event, now| {
        let fallback = match event.text("/eventTime") {
            "" => event.text("/metadata/creationTimestamp"),
            time => time,
        };
        let seen = |field: &str| match event.text(field) {
            "" => since(fallback, now),
            time => since(time, now),
        };
        let last = match event.text("/series/lastObservedTime") {
            "" => seen("/lastTimestamp"),
            time => since(time, now),
        };
        let kind = event.text("/involvedObject/kind").to_lowercase();
        let about = event.text("/involvedObject/name");
        let source = [event.text("/source/component"), event.text("/source/host")];
        let source: Vec<&str> = source.into_iter().filter(|s| !s.is_empty()).collect();
        let source = match source.is_empty() {
            true => event.text("/reportingComponent").to_owned(),
            false => source.join(", "),
        };
        let times = event.integer("/series/count").or(event.integer("/count"));
        vec![
            json!(last),
            json!(event.text("/type")),
            json!(event.text("/reason")),
            json!(format!("{kind}/{about}")),
            json!(event.text("/involvedObject/fieldPath")),
            json!(source),
            json!(event.text("/message").trim()),
            json!(seen("/firstTimestamp")),
            json!(times.unwrap_or(1)),
            name(event),
        ]
    },
    ..super::PLAIN
};

/// The same columns over the names of `events.k8s.io`.
pub const NEW_EVENT: Printer = Printer {
    row: |event, now| {
        let mut core = event.clone();
        (NEW_EVENT_CONVERSION.to_stored)(&mut core);
        (EVENT.row)(&core, now)
    },
    ..EVENT
};

fn node_status(node: &Value) -> String {
    let ready = node
        .items("/status/conditions")
        .iter()
        .find(|c| c.text("/type") == "Ready");
    let mut status = match ready.map(|c| c.text("/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node.flag("/spec/unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = node
        .object("/metadata/labels")
        .into_iter()
        .flatten()
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some("") | None => (key == "kubernetes.io/role").then(|| value.as_str())?,
                role => role,
            },
        )
        .collect();
    roles.sort_unstable();
    if roles.is_empty() {
        return "<none>".into();
    }
    roles.join(",")
}

fn address(node: &Value, kind: &str) -> Value {
    let address = node
        .items("/status/addresses")
        .iter()
        .find(|a| a.text("/type") == kind);
    or_none(address.map_or("", |a| a.text("/address")))
}
