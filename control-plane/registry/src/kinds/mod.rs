//! The kinds: one row says everything that is particular to one. A kind without special behaviour needs only a row.

mod cluster;
mod core;
mod network;
mod workloads;

use std::sync::Arc;

use serde_json::Value;

use crate::custom::Custom;
use crate::schema::{Type, schema};
use crate::strategies::Strategy;
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
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    /// Where [`Subresource::Scale`] finds its numbers.
    pub scale: Option<ScalePaths>,
    /// How this version differs from the stored one; `None` for the stored one.
    pub conversion: Option<Conversion>,
    /// What field selectors may name, beside name and namespace.
    pub fields: &'static [SelectableField],
    pub printer: Printer,
    pub strategy: Strategy,
    /// For the rows that a CustomResourceDefinition made.
    pub custom: Option<&'static Custom>,
    /// What a user must know who takes the object for more than a note: a warning on every write.
    pub caveat: &'static str,
    /// Since when the kind is one to turn away from, and what to: a warning on every request for it.
    pub deprecated: &'static str,
}

/// One subresource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// `status`: get, patch, update.
    Status,
    /// `scale`: an `autoscaling/v1` `Scale`.
    Scale,
    /// `pods/eviction`: create.
    Eviction,
    /// `pods/binding`: create.
    Binding,
    /// `namespaces/finalize`: update.
    Finalize,
    /// `pods/ephemeralcontainers`: containers that are added to a pod that runs.
    EphemeralContainers,
    /// `pods/resize`: what containers that run may use.
    Resize,
    /// `serviceaccounts/token`: a `TokenRequest`.
    Token,
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
    /// The JSON pointer of a scalar.
    pub pointer: &'static str,
    /// What selectors write for an absent field: nothing, or `false`.
    pub absent: &'static str,
}

/// The JSON pointers behind `scale`.
#[derive(Clone, Copy, Debug)]
pub struct ScalePaths {
    pub spec_replicas: &'static str,
    pub status_replicas: &'static str,
    /// A `LabelSelector`, a map of labels, or a selector's text; empty: there is none.
    pub selector: &'static str,
}

/// How one version becomes the stored one and back; both change the object in place, `apiVersion` included.
#[derive(Clone, Copy, Debug)]
pub struct Conversion {
    pub to_stored: fn(&mut Value),
    pub from_stored: fn(&mut Value),
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

/// Kinds that are answered and not stored.
const CREATE: &[&str] = &["create"];
/// Kinds that are worked out when they are asked for.
const READ: &[&str] = &["get", "list"];
const STATUS: &[Subresource] = &[Subresource::Status];
const STATUS_SCALE: &[Subresource] = &[Subresource::Scale, Subresource::Status];
const ALL: &[&str] = &["all"];

const BY_REPLICAS: ScalePaths = ScalePaths {
    spec_replicas: "/spec/replicas",
    status_replicas: "/status/replicas",
    selector: "/spec/selector",
};

const NOT_ADMITTED: &str =
    "this server keeps the object and does not yet hold other requests against it";
const NOT_AGGREGATED: &str =
    "this server keeps the object and does not yet pass requests on to the service";

/// What `scale` subresources read and write; no resource of its own.
pub static SCALE: Kind = Kind {
    group: "autoscaling",
    kind: "Scale",
    plural: "scales",
    singular: "scale",
    schema: "io.k8s.api.autoscaling.v1.Scale",
    printer: table::SCALE,
    ..ROW
};

/// All kinds, grouped by group and version, in the order in which discovery shows them.
static GROUPS: [&[Kind]; 4] = [core::ROWS, workloads::ROWS, network::ROWS, cluster::ROWS];

/// Every row.
pub fn all() -> impl Iterator<Item = &'static Kind> {
    GROUPS.iter().flat_map(|rows| rows.iter())
}

/// The row with the given names, if there is one.
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    all().find(|k| k.group == group && k.version == version && k.plural == plural)
}

/// The kinds that a server has at one moment: the built-in ones, and those of definitions.
#[derive(Clone, Debug)]
pub struct Kinds(Arc<[&'static Kind]>);

impl Kinds {
    #[must_use]
    pub fn new(kinds: Vec<&'static Kind>) -> Self {
        Self(kinds.into())
    }

    pub fn all(&self) -> impl Iterator<Item = &'static Kind> {
        self.0.iter().copied()
    }

    /// The row with the given names, if there is one.
    #[must_use]
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
        self.of(group, version).find(|k| k.plural == plural)
    }

    /// The kinds of a group and version.
    pub fn of(&self, group: &str, version: &str) -> impl Iterator<Item = &'static Kind> {
        self.all()
            .filter(move |k| k.group == group && k.version == version)
    }

    /// Every group and version, in the order of preference.
    #[must_use]
    pub fn group_versions(&self) -> Vec<(&'static str, &'static str)> {
        let mut found: Vec<_> = Vec::new();
        for kind in self.all() {
            if !found.contains(&(kind.group, kind.version)) {
                found.push((kind.group, kind.version));
            }
        }
        found
    }
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

    /// The fields of its objects.
    #[must_use]
    pub fn object_type(&self) -> Option<&'static Type> {
        match self.custom {
            Some(custom) => Some(&custom.of),
            None => schema().get(self.schema),
        }
    }

    /// Whether its objects are kept, in this version of it: reviews and bindings are only answered.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        !self.prefix.is_empty() && self.conversion.is_none()
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
            Self::Scale => "scale",
            Self::Eviction => "eviction",
            Self::Binding => "binding",
            Self::Finalize => "finalize",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Token => "token",
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
            Self::Status | Self::Scale | Self::EphemeralContainers | Self::Resize => {
                &["get", "patch", "update"]
            }
            Self::Binding | Self::Eviction | Self::Token => &["create"],
            Self::Finalize => &["update"],
            Self::Log => &["get"],
            Self::Exec | Self::Attach | Self::PortForward => &["create", "get"],
            Self::Proxy => &["create", "delete", "get", "patch", "update"],
        }
    }
}

impl SelectableField {
    /// The text of the field, as selectors write it.
    #[must_use]
    pub fn read(&self, value: &Value) -> String {
        match value.pointer(self.pointer) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(flag)) => flag.to_string(),
            Some(Value::Number(number)) => number.to_string(),
            _ => self.absent.to_owned(),
        }
    }
}

macro_rules! fields {
    ($($name:literal => $pointer:literal),* $(,)?) => {
        &[$(SelectableField { name: $name, pointer: $pointer, absent: "" }),*]
    };
}
use fields;

/// What rows leave out.
pub(crate) const ROW: Kind = Kind {
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
    verbs: &VERBS,
    subresources: &[],
    scale: None,
    conversion: None,
    fields: &[],
    printer: table::PLAIN,
    strategy: Strategy::PLAIN,
    custom: None,
    caveat: "",
    deprecated: "",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_schema_and_its_own_keys() {
        for kind in all() {
            let definition = &schema().definitions[kind.schema];
            let gvk = &definition["x-kubernetes-group-version-kind"][0];
            assert_eq!(gvk["kind"], kind.kind);
            assert_eq!(gvk["group"], kind.group);
            assert_eq!(gvk["version"], kind.version);
            assert_eq!(kind.scale.is_some(), kind.has(Subresource::Scale));
            let stored = all().filter(|k| {
                k.conversion.is_none() && !k.prefix.is_empty() && k.prefix.starts_with(kind.prefix)
            });
            if kind.verbs != CREATE && kind.verbs != READ {
                assert_eq!(stored.count(), 1, "{}", kind.prefix);
            }
        }
    }
}
