//! The roles and bindings that every cluster has where roles decide who may do what.

use futures::future::try_join_all;
use serde_json::{Map, Value, json};

use crate::errors::{ApiError, Result};
use crate::json::Json;
use crate::registry::Registry;

const GROUP: &str = "rbac.authorization.k8s.io";
const DEFAULTS: &str = include_str!("roles.yaml");

impl Registry {
    /// Makes those that are not there; what is there is left as it is.
    ///
    /// # Errors
    /// The registry's.
    pub async fn make_roles(&self) -> Result<()> {
        let all: Value =
            serde_yaml_ng::from_str(DEFAULTS).map_err(|error| ApiError::internal(&error))?;
        for (plural, object) in [
            ("clusterroles", role as fn(&str, &Value) -> Value),
            ("clusterrolebindings", binding),
        ] {
            let objects = all[plural].as_object().into_iter().flat_map(Map::iter);
            let objects = objects.map(|(name, about)| object(name, about));
            // Together, so that they are one commit to the disk.
            try_join_all(objects.map(|object| self.ensure(GROUP, plural, "", object))).await?;
        }
        Ok(())
    }
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    })
}

fn role(name: &str, about: &Value) -> Value {
    let mut role = json!({"metadata": metadata(name), "rules": about["rules"]});
    if about.has("/label") {
        role["metadata"]["labels"][about.text("/label")] = "true".into();
    }
    if about.has("/aggregate") {
        let selector = json!({"matchLabels": {about.text("/aggregate"): "true"}});
        role["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
    }
    role
}

fn binding(name: &str, about: &Value) -> Value {
    let subject = |kind: &str, name: &Value| json!({"kind": kind, "apiGroup": GROUP, "name": name});
    let groups = about.items("/groups").iter().map(|g| subject("Group", g));
    let users = about.items("/users").iter().map(|u| subject("User", u));
    json!({
        "metadata": metadata(name),
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": about["role"]},
        "subjects": groups.chain(users).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_binding_names_a_role_and_every_rule_says_what_it_is_about() {
        let all: Value = serde_yaml_ng::from_str(DEFAULTS).unwrap();
        for (name, binding) in all["clusterrolebindings"].as_object().unwrap() {
            assert!(
                all["clusterroles"].get(binding.text("/role")).is_some(),
                "{name}"
            );
        }
        for (name, role) in all["clusterroles"].as_object().unwrap() {
            for rule in role.items("/rules") {
                assert!(!rule.items("/verbs").is_empty(), "{name}");
                let about = rule.has("/nonResourceURLs") || rule.has("/apiGroups");
                assert!(about, "{name}: {rule}");
            }
        }
    }
}
