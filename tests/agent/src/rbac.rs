//! What the roles of a manifest allow, as the API server's RBAC authorizer understands them.
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>

use std::path::Path;

use anyhow::{Context, Result};
use http::Method;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use serde::Deserialize;
use serde_json::Value;

use crate::Seen;

/// The rules, each with the namespace that it holds in; those of a ClusterRole hold everywhere.
#[derive(Debug, Default)]
pub struct Rules(Vec<(Option<String>, PolicyRule)>);

/// A request as a rule speaks of it.
#[derive(Debug, Eq, PartialEq)]
struct Attributes {
    verb: &'static str,
    group: String,
    namespace: Option<String>,
    /// With its subresource: `nodes/status`.
    resource: String,
    name: Option<String>,
}

impl Rules {
    /// Of all roles in a file.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or a role is none.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut rules = Vec::new();
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let object = Value::deserialize(document)?;
            match object["kind"].as_str() {
                Some("ClusterRole") => {
                    let role: ClusterRole = serde_json::from_value(object)?;
                    rules.extend(role.rules.into_iter().flatten().map(|rule| (None, rule)));
                }
                Some("Role") => {
                    let role: Role = serde_json::from_value(object)?;
                    let namespace = role.metadata.namespace;
                    let of_role = role.rules.into_iter().flatten();
                    rules.extend(of_role.map(|rule| (namespace.clone(), rule)));
                }
                _ => {}
            }
        }
        Ok(Self(rules))
    }

    /// Whether one of them grants the request.
    #[must_use]
    pub fn allow(&self, seen: &Seen) -> bool {
        let Some(asked) = attributes(seen) else {
            return false;
        };
        let has = |list: &Option<Vec<String>>, word: &str| {
            list.iter()
                .flatten()
                .any(|item| item == "*" || item == word)
        };
        self.0.iter().any(|(namespace, rule)| {
            let names = rule.resource_names.iter().flatten();
            let mut names = names.peekable();
            (namespace.is_none() || *namespace == asked.namespace)
                && (rule
                    .verbs
                    .iter()
                    .any(|verb| verb == "*" || verb == asked.verb))
                && has(&rule.api_groups, &asked.group)
                && has(&rule.resources, &asked.resource)
                && (names.peek().is_none() || names.any(|name| Some(name) == asked.name.as_ref()))
        })
    }

    /// The verbs and resources of the rules that none of these requests needed.
    #[must_use]
    pub fn unused(&self, seen: &[Seen]) -> Vec<String> {
        let asked: Vec<Attributes> = seen.iter().filter_map(attributes).collect();
        let mut unused = Vec::new();
        for (_, rule) in &self.0 {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    let used =
                        |asked: &Attributes| asked.verb == verb && asked.resource == *resource;
                    if !asked.iter().any(used) {
                        unused.push(format!("{verb} {resource}"));
                    }
                }
            }
        }
        unused
    }
}

/// Of a path such as `/apis/GROUP/VERSION/namespaces/NAMESPACE/RESOURCE/NAME/SUBRESOURCE`.
fn attributes(seen: &Seen) -> Option<Attributes> {
    let mut words = seen.path.trim_matches('/').split('/').map(str::to_owned);
    let group = match words.next()?.as_str() {
        "api" => String::new(),
        "apis" => words.next()?,
        _ => return None,
    };
    let _version = words.next()?;
    let mut rest: Vec<String> = words.collect();
    let mut namespace = None;
    if rest.len() > 2 && rest[0] == "namespaces" {
        namespace = Some(rest[1].clone());
        rest.drain(..2);
    }
    let name = rest.get(1).cloned();
    let resource = match (rest.first(), rest.get(2)) {
        (Some(resource), Some(sub)) => format!("{resource}/{sub}"),
        (Some(resource), None) => resource.clone(),
        (None, _) => return None,
    };
    let verb = match seen.method {
        Method::GET if seen.is_watch() => "watch",
        Method::GET if name.is_some() => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => return None,
    };
    Some(Attributes {
        verb,
        group,
        namespace,
        resource,
        name,
    })
}
