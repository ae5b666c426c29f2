//! The columns that `kubectl get` shows. Follows `pkg/printers/internalversion/printers.go` of Kubernetes.

mod cluster;
mod network;
mod pod;
mod policy;
mod storage;
mod workloads;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::custom::Path;
use crate::json::Json;

pub use cluster::{
    COMPONENT_STATUS, CONFIG_MAP, EVENT, LEASE, NAMESPACE, NEW_EVENT, NODE, SECRET, SERVICE_ACCOUNT,
};
pub use network::{ENDPOINT_SLICE, ENDPOINTS, SERVICE};
pub use pod::POD;
pub use policy::{
    API_SERVICE, CREATED, FLOW_SCHEMA, INGRESS, INGRESS_CLASS, IP_ADDRESS, MUTATING_POLICY,
    NETWORK_POLICY, POLICY_BINDING, PRIORITY_CLASS, PRIORITY_LEVEL, RESOURCE_QUOTA, ROLE_BINDING,
    RUNTIME_CLASS, SERVICE_CIDR, VALIDATING_POLICY, WEBHOOKS,
};
pub use storage::{
    ATTRIBUTES_CLASS, CSI_DRIVER, CSI_NODE, PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM,
    STORAGE_CLASS, VOLUME_ATTACHMENT,
};
pub use workloads::{
    AUTOSCALER, AUTOSCALER_V1, CONTROLLER_REVISION, CRON_JOB, DAEMON_SET, DEPLOYMENT,
    DISRUPTION_BUDGET, JOB, POD_TEMPLATE, REPLICA_SET, REPLICATION_CONTROLLER, SCALE, STATEFUL_SET,
};

/// How a kind is shown.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    pub columns: &'static [Column],
    /// The cells of one object at a moment.
    pub row: fn(&Value, Timestamp) -> Vec<Value>,
    /// Where the cells after the name are found, for custom resources; empty: `row` makes them.
    pub paths: &'static [Path],
}

impl Printer {
    /// The cells of one object.
    #[must_use]
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        if self.paths.is_empty() {
            return (self.row)(object, now);
        }
        let own = self.columns.iter().skip(1).zip(self.paths);
        let own = own.map(|(column, path)| path.cell(column.kind, object, now));
        std::iter::once(name(object)).chain(own).collect()
    }
}

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`.
    pub kind: &'static str,
    /// `name` for the column that names the object.
    pub format: &'static str,
    pub description: &'static str,
    /// 0: always shown; 1: only with `-o wide`.
    pub priority: u8,
}

/// For kinds without columns of their own.
pub const PLAIN: Printer = Printer {
    columns: &[NAME, column("Created At", "When the object was created.")],
    row: |object, _| {
        vec![
            object["metadata"]["name"].clone(),
            object["metadata"]["creationTimestamp"].clone(),
        ]
    },
    paths: &[],
};

pub(crate) const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "Name must be unique within a namespace.",
    priority: 0,
};

pub(crate) const AGE: Column = column("Age", "The time since the object was created.");

pub(crate) const fn column(name: &'static str, description: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        description,
        priority: 0,
    }
}

const fn wide(name: &'static str, description: &'static str) -> Column {
    Column {
        priority: 1,
        ..column(name, description)
    }
}

const fn count(name: &'static str, description: &'static str) -> Column {
    Column {
        kind: "integer",
        ..column(name, description)
    }
}

/// `metadata.name`.
fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

/// The age cell: the time since `metadata.creationTimestamp`.
fn age(object: &Value, now: Timestamp) -> Value {
    since(object.text("/metadata/creationTimestamp"), now).into()
}

/// The time since `then`; `<unknown>` when it is no time.
pub(crate) fn since(then: &str, now: Timestamp) -> String {
    match then.parse::<Timestamp>() {
        Ok(then) => duration(now.duration_since(then).as_secs()),
        Err(_) => "<unknown>".into(),
    }
}

/// A duration for people, as `k8s.io/apimachinery/pkg/util/duration` `HumanDuration` writes it.
#[must_use]
pub fn duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |major: i64, unit: &str, minor: i64, small: &str| {
        if minor == 0 {
            format!("{major}{unit}")
        } else {
            format!("{major}{unit}{minor}{small}")
        }
    };
    let s = seconds;
    match s {
        ..-1 => "<invalid>".into(),
        -1..0 => "0s".into(),
        _ if s < 2 * MINUTE => format!("{s}s"),
        _ if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        _ if s < 3 * HOUR => format!("{}m", s / MINUTE),
        _ if s < 8 * HOUR => two(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        _ if s < 2 * DAY => format!("{}h", s / HOUR),
        _ if s < 8 * DAY => two(s / DAY, "d", s % DAY / HOUR, "h"),
        _ if s < 2 * YEAR => format!("{}d", s / DAY),
        _ if s < 8 * YEAR => two(s / YEAR, "y", s % YEAR / DAY, "d"),
        _ => format!("{}y", s / YEAR),
    }
}

/// A text, or `<none>`.
fn or_none(text: &str) -> Value {
    or(text, "<none>")
}

fn or(text: &str, otherwise: &str) -> Value {
    json!(if text.is_empty() { otherwise } else { text })
}

/// Labels as `a=b,c=d`, or `<none>`.
fn labels(object: &Value, pointer: &str) -> Value {
    let pairs: Vec<String> = object
        .object(pointer)
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    or_none(&pairs.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_for_people() {
        for (seconds, want) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (135, "2m15s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (4 * 3600 + 60, "4h1m"),
            (9 * 3600, "9h"),
            (50 * 3600, "2d2h"),
            (30 * 86400, "30d"),
            (3 * 365 * 86400 + 86400, "3y1d"),
            (-1, "0s"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(duration(seconds), want, "{seconds}");
        }
    }

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        let object = json!({"metadata": {"name": "x"}});
        for kind in crate::kinds::all() {
            let cells = (kind.printer.row)(&object, Timestamp::now());
            assert_eq!(cells.len(), kind.printer.columns.len(), "{}", kind.kind);
        }
    }
}
