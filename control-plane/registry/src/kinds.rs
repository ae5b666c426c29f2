//! The kinds: one row says everything that is particular to one. A kind without special behaviour needs only a row.

use serde_json::Value;

use crate::json::Json;
use crate::strategies::{self, Strategy};
use crate::table::{self, Printer};

/// One kind of the API.
#[derive(Debug)]
pub struct Kind {
    /// The API group; empty for core.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// Where its objects stand in the store, with a slash at the end: Kubernetes' own keys.
    pub prefix: &'static str,
    /// The OpenAPI name of its type.
    pub schema: &'static str,
    pub subresources: &'static [Subresource],
    /// What field selectors may name, beside name and namespace.
    pub fields: &'static [SelectableField],
    pub printer: Printer,
    pub strategy: Strategy,
}

/// One subresource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// `status`: get, patch, update.
    Status,
    /// `pods/binding`: create.
    Binding,
    /// `namespaces/finalize`: update.
    Finalize,
    /// `pods/log`: what a container has written.
    Log,
    /// `pods/exec`: a command in a container.
    Exec,
    /// `pods/attach`: the streams of a container's own program.
    Attach,
    /// `pods/portforward`: connections to a pod's ports.
    PortForward,
    /// `nodes/proxy`, `pods/proxy`: HTTP to what serves there.
    Proxy,
}

/// A field that selectors may name.
#[derive(Debug)]
pub struct SelectableField {
    pub name: &'static str,
    pub read: fn(&Value) -> String,
}

/// What can be done to every kind.
pub const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// The row with the given names, if there is one.
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    TABLE
        .iter()
        .find(|k| k.group == group && k.version == version && k.plural == plural)
}

/// Every group and version, in the order of preference.
#[must_use]
pub fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut all: Vec<_> = Vec::new();
    for kind in TABLE {
        if !all.contains(&(kind.group, kind.version)) {
            all.push((kind.group, kind.version));
        }
    }
    all
}

impl Kind {
    /// The key of one object.
    #[must_use]
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}{name}", self.scope(namespace))
    }

    /// The prefix of the keys of one namespace; of all objects when `namespace` is empty.
    #[must_use]
    pub fn scope(&self, namespace: &str) -> String {
        if namespace.is_empty() {
            self.prefix.to_owned()
        } else {
            format!("{}{namespace}/", self.prefix)
        }
    }

    /// `apiVersion` of its objects.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// As messages name it: `services`, `leases.coordination.k8s.io`.
    #[must_use]
    pub fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    #[must_use]
    pub fn has(&self, subresource: Subresource) -> bool {
        self.subresources.contains(&subresource)
    }
}

impl Subresource {
    /// The last part of its path.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Binding => "binding",
            Self::Finalize => "finalize",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
        }
    }

    #[must_use]
    pub fn verbs(self) -> &'static [&'static str] {
        match self {
            Self::Status => &["get", "patch", "update"],
            Self::Binding => &["create"],
            Self::Finalize => &["update"],
            Self::Log => &["get"],
            Self::Exec | Self::Attach | Self::PortForward => &["create", "get"],
            Self::Proxy => &["create", "delete", "get", "patch", "update"],
        }
    }
}

macro_rules! fields {
    ($($name:literal => $pointer:literal),* $(,)?) => {
        &[$(SelectableField { name: $name, read: |v| plain(v, $pointer) }),*]
    };
}

/// The text of a scalar field, as selectors write it.
fn plain(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// Selectors write false for an absent flag.
fn flag(value: &Value, pointer: &str) -> String {
    value.flag(pointer).to_string()
}

/// What rows leave out.
const ROW: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    prefix: "",
    schema: "",
    subresources: &[],
    fields: &[],
    printer: table::PLAIN,
    strategy: Strategy::PLAIN,
};

/// All kinds, grouped by group and version, in the order in which discovery shows them.
pub static TABLE: &[Kind] = &[
    Kind {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        prefix: "/registry/configmaps/",
        schema: "io.k8s.api.core.v1.ConfigMap",
        printer: table::CONFIG_MAP,
        strategy: strategies::CONFIG_MAP,
        ..ROW
    },
    Kind {
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        prefix: "/registry/services/endpoints/",
        schema: "io.k8s.api.core.v1.Endpoints",
        printer: table::ENDPOINTS,
        strategy: strategies::ENDPOINTS,
        ..ROW
    },
    Kind {
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        prefix: "/registry/events/",
        schema: "io.k8s.api.core.v1.Event",
        fields: fields!(
            "involvedObject.kind" => "/involvedObject/kind",
            "involvedObject.namespace" => "/involvedObject/namespace",
            "involvedObject.name" => "/involvedObject/name",
            "involvedObject.uid" => "/involvedObject/uid",
            "involvedObject.apiVersion" => "/involvedObject/apiVersion",
            "involvedObject.resourceVersion" => "/involvedObject/resourceVersion",
            "involvedObject.fieldPath" => "/involvedObject/fieldPath",
            "reason" => "/reason",
            "reportingComponent" => "/reportingComponent",
            "source" => "/source/component",
            "type" => "/type",
        ),
        printer: table::EVENT,
        strategy: strategies::EVENT,
        ..ROW
    },
    Kind {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        prefix: "/registry/namespaces/",
        schema: "io.k8s.api.core.v1.Namespace",
        subresources: &[Subresource::Finalize, Subresource::Status],
        fields: fields!("status.phase" => "/status/phase"),
        printer: table::NAMESPACE,
        strategy: strategies::NAMESPACE,
        ..ROW
    },
    Kind {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        prefix: "/registry/minions/",
        schema: "io.k8s.api.core.v1.Node",
        subresources: &[Subresource::Proxy, Subresource::Status],
        fields: &[SelectableField {
            name: "spec.unschedulable",
            read: |v| flag(v, "/spec/unschedulable"),
        }],
        printer: table::NODE,
        strategy: strategies::NODE,
        ..ROW
    },
    Kind {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        prefix: "/registry/pods/",
        schema: "io.k8s.api.core.v1.Pod",
        subresources: &[
            Subresource::Attach,
            Subresource::Binding,
            Subresource::Exec,
            Subresource::Log,
            Subresource::PortForward,
            Subresource::Proxy,
            Subresource::Status,
        ],
        fields: fields!(
            "spec.nodeName" => "/spec/nodeName",
            "spec.restartPolicy" => "/spec/restartPolicy",
            "spec.schedulerName" => "/spec/schedulerName",
            "spec.serviceAccountName" => "/spec/serviceAccountName",
            "spec.hostNetwork" => "/spec/hostNetwork",
            "status.phase" => "/status/phase",
            "status.podIP" => "/status/podIP",
            "status.nominatedNodeName" => "/status/nominatedNodeName",
        ),
        printer: table::POD,
        strategy: strategies::POD,
        ..ROW
    },
    Kind {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        prefix: "/registry/secrets/",
        schema: "io.k8s.api.core.v1.Secret",
        fields: fields!("type" => "/type"),
        printer: table::SECRET,
        strategy: strategies::SECRET,
        ..ROW
    },
    Kind {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        prefix: "/registry/serviceaccounts/",
        schema: "io.k8s.api.core.v1.ServiceAccount",
        printer: table::SERVICE_ACCOUNT,
        strategy: strategies::SERVICE_ACCOUNT,
        ..ROW
    },
    Kind {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        prefix: "/registry/services/specs/",
        schema: "io.k8s.api.core.v1.Service",
        subresources: &[Subresource::Status],
        fields: fields!("spec.clusterIP" => "/spec/clusterIP", "spec.type" => "/spec/type"),
        printer: table::SERVICE,
        strategy: strategies::SERVICE,
        ..ROW
    },
    Kind {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        prefix: "/registry/leases/",
        schema: "io.k8s.api.coordination.v1.Lease",
        printer: table::LEASE,
        strategy: strategies::LEASE,
        ..ROW
    },
    Kind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        prefix: "/registry/endpointslices/",
        schema: "io.k8s.api.discovery.v1.EndpointSlice",
        printer: table::ENDPOINT_SLICE,
        strategy: strategies::ENDPOINT_SLICE,
        ..ROW
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_schema_and_its_own_keys() {
        for kind in TABLE {
            let definition = &crate::schema::schema().definitions[kind.schema];
            let gvk = &definition["x-kubernetes-group-version-kind"][0];
            assert_eq!(gvk["kind"], kind.kind);
            assert_eq!(gvk["group"], kind.group);
            assert_eq!(gvk["version"], kind.version);
            let same = TABLE.iter().filter(|k| k.prefix.starts_with(kind.prefix));
            assert_eq!(same.count(), 1, "{}", kind.prefix);
        }
    }
}
