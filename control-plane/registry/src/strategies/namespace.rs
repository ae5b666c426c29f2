//! Namespaces: they end in two steps, so that their content can be removed between.

use serde_json::json;

use super::Strategy;
use crate::json::Json;
use crate::validate;

/// These hold the cluster itself.
pub const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

pub const NAMESPACE: Strategy = Strategy {
    name: validate::label,
    default: |namespace| {
        let name = namespace.text("/metadata/name").to_owned();
        if !name.is_empty() {
            namespace.put("/metadata/labels/kubernetes.io~1metadata.name", name);
        }
    },
    prepare_create: |namespace| {
        namespace.put("/spec/finalizers", json!(["kubernetes"]));
        namespace.put("/status", json!({"phase": "Active"}));
    },
    // Only the finalize subresource changes the finalizers of the specification.
    prepare_update: |new, old| new.put("/spec", old["spec"].clone()),
    keep: |name| {
        NAMESPACES
            .contains(&name)
            .then_some("this namespace may not be deleted")
    },
    terminate: |namespace| namespace.put("/status/phase", "Terminating"),
    waits: |namespace| !namespace.items("/spec/finalizers").is_empty(),
    ..Strategy::PLAIN
};
