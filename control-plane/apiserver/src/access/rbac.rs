//! Role-based access: who may do what, worked out of the Roles, ClusterRoles and their bindings that are stored.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>

use std::collections::HashMap;
use std::sync::Arc;

use control_plane_registry::json::Json;
use control_plane_registry::{Kind, Object, Registry, kinds, labels};
use serde::Deserialize;
use serde_json::{Value, json};

use super::action::{Action, On, Resource};
use super::user::User;

/// All roles and bindings.
#[derive(Debug, Default)]
pub struct Rbac {
    cluster_roles: HashMap<String, Vec<Rule>>,
    /// By namespace and name.
    roles: HashMap<(String, String), Vec<Rule>>,
    cluster_bindings: Vec<Binding>,
    /// By namespace.
    bindings: HashMap<String, Vec<Binding>>,
}

/// `PolicyRule`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub urls: Vec<String>,
}

#[derive(Debug)]
struct Binding {
    name: String,
    /// Of a ClusterRole, else of a Role of the same namespace.
    cluster_role: bool,
    role: String,
    subjects: Vec<Subject>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

/// The kinds that access is worked out of.
pub fn kinds_followed() -> [&'static Kind; 4] {
    [
        "clusterroles",
        "roles",
        "clusterrolebindings",
        "rolebindings",
    ]
    .map(|plural| {
        kinds::find("rbac.authorization.k8s.io", "v1", plural)
            .expect("the table of kinds has the rows of rbac.authorization.k8s.io")
    })
}

impl Rbac {
    pub fn compile(registry: &Registry) -> Self {
        let [cluster_roles, roles, cluster_bindings, bindings] =
            kinds_followed().map(|kind| registry.objects(kind));
        let mut rbac = Self {
            cluster_roles: all_rules(&cluster_roles),
            ..Self::default()
        };
        for role in roles {
            let key = (role.namespace.clone().into(), role.name.clone().into());
            rbac.roles.insert(key, rules(&role.value()["rules"]));
        }
        for object in cluster_bindings {
            rbac.cluster_bindings.push(Binding::of(&object));
        }
        for object in bindings {
            let own = rbac
                .bindings
                .entry(object.namespace.clone().into())
                .or_default();
            own.push(Binding::of(&object));
        }
        rbac
    }

    /// Why `user` may do this; `None` when nothing allows it.
    pub fn allows(&self, user: &User, action: &Action<'_>) -> Option<String> {
        let matches = |rules: &[Rule]| rules.iter().any(|rule| rule.allows(action));
        self.of(user, action.namespace())
            .find(|(_, rules)| matches(rules))
            .map(|(binding, _)| binding.reason(user, action.namespace()))
    }

    /// Every rule that holds for `user` in a namespace (empty: in the whole cluster).
    pub fn rules<'a>(&'a self, user: &'a User, namespace: &str) -> impl Iterator<Item = &'a Rule> {
        self.of(user, namespace).flat_map(|(_, rules)| rules)
    }

    /// The rules of a role that somebody refers to.
    pub fn role(&self, cluster: bool, namespace: &str, name: &str) -> &[Rule] {
        let found = if cluster {
            self.cluster_roles.get(name)
        } else {
            self.roles.get(&(namespace.to_owned(), name.to_owned()))
        };
        found.map_or(&[], Vec::as_slice)
    }

    fn of<'a>(
        &'a self,
        user: &'a User,
        namespace: &str,
    ) -> impl Iterator<Item = (&'a Binding, &'a [Rule])> {
        let own = self.bindings.get(namespace).map_or(&[][..], Vec::as_slice);
        let namespace = namespace.to_owned();
        let all = self.cluster_bindings.iter().chain(own);
        all.filter(|binding| binding.subjects.iter().any(|s| s.is(user)))
            .map(move |b| (b, self.role(b.cluster_role, &namespace, &b.role)))
    }
}

impl Rule {
    pub fn allows(&self, action: &Action<'_>) -> bool {
        if !has(&self.verbs, action.verb) {
            return false;
        }
        match action.on {
            On::Path(path) => self.urls.iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => url == path,
            }),
            On::Resource(resource) => self.covers(&resource),
        }
    }

    fn covers(&self, asked: &Resource<'_>) -> bool {
        let named = |resource: &String| match (resource.split_once('/'), asked.subresource) {
            _ if resource == "*" => true,
            (None, "") => resource == asked.resource,
            (Some((plural, subresource)), asked_subresource) => {
                subresource == asked_subresource && (plural == "*" || plural == asked.resource)
            }
            _ => false,
        };
        let names = &self.resource_names;
        has(&self.api_groups, asked.group)
            && self.resources.iter().any(named)
            && (names.is_empty() || names.iter().any(|name| name == asked.name))
    }

    /// The single permissions that the rule gives, each as an action; stars stand for themselves.
    pub fn atoms<'a>(&'a self, namespace: &'a str) -> Vec<Action<'a>> {
        let mut atoms = Vec::new();
        let names: Vec<&str> = match self.resource_names.as_slice() {
            [] => vec![""],
            names => names.iter().map(String::as_str).collect(),
        };
        for verb in &self.verbs {
            let paths = self.urls.iter().map(|url| On::Path(url));
            atoms.extend(paths.map(|on| Action { verb, on }));
            for group in &self.api_groups {
                for resource in &self.resources {
                    let (resource, subresource) =
                        resource.split_once('/').unwrap_or((resource, ""));
                    atoms.extend(names.iter().map(|name| Action {
                        verb,
                        on: On::Resource(Resource {
                            group,
                            resource,
                            subresource,
                            namespace,
                            name,
                        }),
                    }));
                }
            }
        }
        atoms
    }

    /// As `SelfSubjectRulesReview` shows it.
    pub fn shown(&self) -> Value {
        if !self.urls.is_empty() {
            return json!({"verbs": self.verbs, "nonResourceURLs": self.urls});
        }
        let mut rule =
            json!({"verbs": self.verbs, "apiGroups": self.api_groups, "resources": self.resources});
        if !self.resource_names.is_empty() {
            rule["resourceNames"] = json!(self.resource_names);
        }
        rule
    }
}

impl Binding {
    fn of(object: &Arc<Object>) -> Self {
        let value = object.value();
        Self {
            name: object.name.clone().into(),
            cluster_role: value.text("/roleRef/kind") == "ClusterRole",
            role: value.text("/roleRef/name").to_owned(),
            subjects: serde_json::from_value(value["subjects"].clone()).unwrap_or_default(),
        }
    }

    /// As the audit log tells it.
    fn reason(&self, user: &User, namespace: &str) -> String {
        let kind = if self.cluster_role {
            "ClusterRole"
        } else {
            "Role"
        };
        let subject = self.subjects.iter().find(|s| s.is(user));
        let subject = subject.map_or(String::new(), |s| format!("{} {:?}", s.kind, s.name));
        let place = match namespace {
            "" => String::new(),
            namespace => format!(" in {namespace:?}"),
        };
        format!(
            "RBAC: allowed by binding {:?} of {kind} {:?} to {subject}{place}",
            self.name, self.role
        )
    }
}

impl Subject {
    fn is(&self, user: &User) -> bool {
        match self.kind.as_str() {
            "User" => self.name == user.name,
            "Group" => user.is_in(&self.name),
            "ServiceAccount" => {
                user.service_account() == Some((self.namespace.as_str(), self.name.as_str()))
            }
            _ => false,
        }
    }
}

fn has(list: &[String], word: &str) -> bool {
    list.iter().any(|rule| rule == "*" || rule == word)
}

fn rules(value: &Value) -> Vec<Rule> {
    serde_json::from_value(value.clone()).unwrap_or_default()
}

/// The rules of every ClusterRole. One that aggregates has those of the roles that its selectors match, which may
/// aggregate in turn.
fn all_rules(roles: &[Arc<Object>]) -> HashMap<String, Vec<Rule>> {
    let values: Vec<(&str, Value)> = roles.iter().map(|r| (&*r.name, r.value())).collect();
    let mut all: HashMap<String, Vec<Rule>> = HashMap::new();
    for (name, _) in &values {
        let mut seen = Vec::new();
        let mut collected = Vec::new();
        collect(name, &values, &mut seen, &mut collected);
        all.insert((*name).to_owned(), collected);
    }
    all
}

fn collect<'a>(
    name: &'a str,
    all: &'a [(&'a str, Value)],
    seen: &mut Vec<&'a str>,
    rules_of: &mut Vec<Rule>,
) {
    if seen.contains(&name) {
        return;
    }
    seen.push(name);
    let Some((_, role)) = all.iter().find(|(n, _)| *n == name) else {
        return;
    };
    rules_of.extend(rules(&role["rules"]));
    for selector in role.items("/aggregationRule/clusterRoleSelectors") {
        let matching = all
            .iter()
            .filter(|(_, other)| labels::selects(selector, other.object("/metadata/labels")));
        for (other, _) in matching {
            collect(other, all, seen, rules_of);
        }
    }
}

#[cfg(test)]
#[path = "rbac_tests.rs"]
mod tests;
