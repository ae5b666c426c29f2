//! Nobody gives away what he has not: roles with more than their author may do, and bindings to such roles, are refused.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#privilege-escalation-prevention-and-bootstrapping>

use control_plane_registry::errors::Result;
use control_plane_registry::json::Json;
use control_plane_registry::{ApiError, Kind, Registry};
use serde_json::Value;

use super::action::{Action, On, Resource};
use super::rbac::Rule;
use super::{Access, Authorization};
use crate::access::User;

const GROUP: &str = "rbac.authorization.k8s.io";

impl Access {
    /// Refuses an object by which `user` would give more than it has.
    ///
    /// # Errors
    /// 403 with the first permission that it lacks.
    pub fn check_grant(
        &self,
        registry: &Registry,
        user: &User,
        kind: &Kind,
        namespace: &str,
        object: &Value,
    ) -> Result<()> {
        if self.mode == Authorization::AlwaysAllow || kind.group != GROUP {
            return Ok(());
        }
        let rbac = self.rbac(registry);
        let cluster_wide = object.text("/roleRef/kind") == "ClusterRole";
        let referred = object.text("/roleRef/name");
        let (verb, resource, name, rules) = match kind.plural {
            "roles" | "clusterroles" => {
                let rules: Vec<Rule> =
                    serde_json::from_value(object["rules"].clone()).unwrap_or_default();
                (
                    "escalate",
                    kind.plural,
                    object.text("/metadata/name"),
                    rules,
                )
            }
            _ => {
                let resource = if cluster_wide {
                    "clusterroles"
                } else {
                    "roles"
                };
                let rules = rbac.role(cluster_wide, namespace, referred).to_vec();
                ("bind", resource, referred, rules)
            }
        };
        // Who may do this on purpose need not have the permissions.
        let on_purpose = Action {
            verb,
            on: On::Resource(Resource {
                group: GROUP,
                resource,
                subresource: "",
                namespace,
                name,
            }),
        };
        if self.decide(registry, user, &on_purpose).allowed {
            return Ok(());
        }
        let atoms = rules.iter().flat_map(|rule| rule.atoms(namespace));
        for atom in atoms {
            if !self.decide(registry, user, &atom).allowed {
                let why = format!(
                    "user {:?} is attempting to grant RBAC permissions not currently held: {}",
                    user.name,
                    atom.describe()
                );
                return Err(ApiError::forbidden(
                    kind,
                    object.text("/metadata/name"),
                    &why,
                ));
            }
        }
        Ok(())
    }
}
