//! Which requests are recorded, and how much of each: `audit.k8s.io/v1` `Policy`.
//!
//! <https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/#audit-policy>

use serde::Deserialize;

use super::Stage;
use crate::access::User;
use crate::attributes::Attributes;

/// How much is recorded; each level has what the one before has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    #[default]
    None,
    /// Who asked for what, when, and with which result.
    Metadata,
    /// The body of the request too.
    Request,
    /// The body of the answer too.
    RequestResponse,
}

/// The rules, of which the first that matches counts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    api_version: String,
    kind: String,
    #[serde(default)]
    #[expect(dead_code, reason = "policies have metadata, which means nothing here")]
    metadata: serde_json::Value,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Rule {
    level: Level,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Resources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// What a policy says about one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub level: Level,
    pub omit: Vec<Stage>,
    pub omit_managed_fields: bool,
}

/// Why a text is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("it cannot be read as audit.k8s.io/v1 Policy")]
    Parse(#[from] serde_yaml_ng::Error),
    #[error("it is {0}; give apiVersion: audit.k8s.io/v1 and kind: Policy")]
    Kind(String),
    #[error(
        "it has no rules, so that nothing would be recorded; give at least one, as in rules: [{{level: Metadata}}]"
    )]
    NoRules,
}

impl Policy {
    /// Reads a policy, YAML or JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let policy: Self = serde_yaml_ng::from_str(text)?;
        if (policy.api_version.as_str(), policy.kind.as_str()) != ("audit.k8s.io/v1", "Policy") {
            let found = format!("{} {}", policy.api_version, policy.kind);
            return Err(PolicyError::Kind(found));
        }
        if policy.rules.is_empty() {
            return Err(PolicyError::NoRules);
        }
        Ok(policy)
    }

    /// What to record of a request.
    pub fn decide(&self, user: &User, attributes: &Attributes) -> Decision {
        let Some(rule) = self.rules.iter().find(|r| r.matches(user, attributes)) else {
            return Decision::default();
        };
        let omit = self.omit_stages.iter().chain(&rule.omit_stages);
        Decision {
            level: rule.level,
            omit: omit.copied().collect(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

impl Rule {
    fn matches(&self, user: &User, attributes: &Attributes) -> bool {
        let any = |list: &[String], word: &str| list.is_empty() || list.iter().any(|w| w == word);
        if !any(&self.users, &user.name) || !any(&self.verbs, attributes.verb) {
            return false;
        }
        let groups = &self.user_groups;
        if !groups.is_empty() && !groups.iter().any(|group| user.is_in(group)) {
            return false;
        }
        let about_resources = !self.resources.is_empty() || !self.namespaces.is_empty();
        match attributes.target() {
            Some(_) if about_resources => {
                let resources = &self.resources;
                any(&self.namespaces, attributes.namespace())
                    && (resources.is_empty() || resources.iter().any(|r| r.covers(attributes)))
            }
            None if !self.urls.is_empty() => {
                self.urls.iter().any(|url| match url.strip_suffix('*') {
                    Some(prefix) => attributes.path.starts_with(prefix),
                    None => *url == attributes.path,
                })
            }
            _ => !about_resources && self.urls.is_empty(),
        }
    }
}

impl Resources {
    fn covers(&self, attributes: &Attributes) -> bool {
        let Some(kind) = attributes.kind() else {
            return false;
        };
        let named = |resource: &String| match resource.split_once('/') {
            None => {
                resource == "*" || (resource == kind.plural && attributes.subresource().is_empty())
            }
            Some((plural, subresource)) => {
                (plural == "*" || plural == kind.plural)
                    && (subresource == "*" || subresource == attributes.subresource())
            }
        };
        let names = &self.resource_names;
        self.group == kind.group
            && (self.resources.is_empty() || self.resources.iter().any(named))
            && (names.is_empty() || names.iter().any(|name| name == attributes.name()))
    }
}
