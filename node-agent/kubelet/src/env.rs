//! A container's environment: values, references to fields and to ConfigMaps and Secrets, and `$(VAR)`.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, Pod};

use crate::objects::{Objects, ObjectsError};

/// Why a container cannot be configured. Kubernetes calls it `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{kind} {name:?} not found")]
    NoObject { kind: &'static str, name: String },
    #[error("{kind} {name:?} has no key {key:?}")]
    NoKey {
        kind: &'static str,
        name: String,
        key: String,
    },
    #[error(
        "environment variable {variable}: {what} is not supported; give a value, a fieldRef or a key reference"
    )]
    Unsupported { variable: String, what: String },
    #[error("volume {volume}: only emptyDir, hostPath, configMap and secret are supported")]
    VolumeKind { volume: String },
    #[error("volumeMount {mount}: the pod has no volume {volume:?}")]
    NoVolume { mount: String, volume: String },
    #[error("volumeMount {mount}: subPath {path:?} leaves the volume")]
    SubPath { mount: String, path: String },
    #[error("hostPath {path} of volume {volume} is not a {wanted}")]
    HostPath {
        volume: String,
        path: String,
        wanted: String,
    },
    #[error("resource {resource} has the value {value:?}, which is no quantity")]
    Quantity { resource: String, value: String },
    #[error("{operation}")]
    Io {
        operation: String,
        #[source]
        source: std::io::Error,
    },
    #[error("read an object that the pod refers to")]
    Objects(#[from] ObjectsError),
}

/// What a pod may ask about itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PodFacts<'a> {
    pub pod: &'a Pod,
    pub pod_ips: &'a [IpAddr],
    pub host_ips: &'a [IpAddr],
}

impl PodFacts<'_> {
    /// The value of a `fieldPath` as `fieldRef` allows it; `None` if it is none of those.
    pub fn field(&self, path: &str) -> Option<String> {
        let metadata = &self.pod.metadata;
        let spec = self.pod.spec.as_ref();
        let first = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
        let all = |ips: &[IpAddr]| {
            ips.iter()
                .map(IpAddr::to_string)
                .collect::<Vec<_>>()
                .join(",")
        };
        let entry = |map: &Option<BTreeMap<String, String>>, key: &str| {
            map.as_ref()
                .and_then(|map| map.get(key))
                .cloned()
                .unwrap_or_default()
        };
        if let Some((map, key)) = path
            .strip_suffix("']")
            .and_then(|path| path.split_once("['"))
        {
            return match map {
                "metadata.labels" => Some(entry(&metadata.labels, key)),
                "metadata.annotations" => Some(entry(&metadata.annotations, key)),
                _ => None,
            };
        }
        Some(match path {
            "metadata.name" => metadata.name.clone()?,
            "metadata.namespace" => metadata.namespace.clone()?,
            "metadata.uid" => metadata.uid.clone()?,
            "spec.nodeName" => spec?.node_name.clone().unwrap_or_default(),
            "spec.serviceAccountName" => spec?.service_account_name.clone().unwrap_or_default(),
            "status.podIP" => first(self.pod_ips),
            "status.podIPs" => all(self.pod_ips),
            "status.hostIP" => first(self.host_ips),
            "status.hostIPs" => all(self.host_ips),
            _ => return None,
        })
    }
}

/// The container's environment in the order of its making; a later variable of the same name wins.
pub(crate) async fn environment(
    objects: &Objects,
    facts: PodFacts<'_>,
    container: &Container,
) -> Result<Vec<(String, String)>, ConfigError> {
    let namespace = facts.pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut variables: Vec<(String, String)> = Vec::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let reference = match (&source.config_map_ref, &source.secret_ref) {
            (Some(map), _) => ("ConfigMap", &map.name, map.optional),
            (None, Some(secret)) => ("Secret", &secret.name, secret.optional),
            (None, None) => continue,
        };
        let (kind, name, optional) = reference;
        match objects.data(kind, namespace, name).await? {
            Some(data) => {
                for (key, value) in data {
                    set(
                        &mut variables,
                        format!("{prefix}{key}"),
                        String::from_utf8_lossy(&value).into_owned(),
                    );
                }
            }
            None if optional == Some(true) => {}
            None => {
                return Err(ConfigError::NoObject {
                    kind,
                    name: name.clone(),
                });
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(expand(
                variable.value.as_deref().unwrap_or_default(),
                &variables,
            )),
            Some(source) => referenced(objects, facts, variable, source).await?,
        };
        if let Some(value) = value {
            set(&mut variables, variable.name.clone(), value);
        }
    }
    Ok(variables)
}

async fn referenced(
    objects: &Objects,
    facts: PodFacts<'_>,
    variable: &EnvVar,
    source: &EnvVarSource,
) -> Result<Option<String>, ConfigError> {
    let unsupported = |what: &str| ConfigError::Unsupported {
        variable: variable.name.clone(),
        what: what.to_owned(),
    };
    if let Some(field) = &source.field_ref {
        let found = facts.field(&field.field_path);
        return found
            .map(Some)
            .ok_or_else(|| unsupported(&format!("fieldRef {}", field.field_path)));
    }
    let (kind, name, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(map), _) => ("ConfigMap", &map.name, &map.key, map.optional),
        (None, Some(secret)) => ("Secret", &secret.name, &secret.key, secret.optional),
        (None, None) => return Err(unsupported("this valueFrom")),
    };
    let namespace = facts.pod.metadata.namespace.as_deref().unwrap_or_default();
    let data = objects.data(kind, namespace, name).await?;
    match data.as_ref().map(|data| data.get(key)) {
        Some(Some(value)) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        _ if optional == Some(true) => Ok(None),
        Some(None) => Err(ConfigError::NoKey {
            kind,
            name: name.clone(),
            key: key.clone(),
        }),
        None => Err(ConfigError::NoObject {
            kind,
            name: name.clone(),
        }),
    }
}

/// Replaces `$(VAR)` by the variable's value; `$$` is a dollar sign; what names no variable stays as it is.
pub(crate) fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
            continue;
        }
        let name = rest
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'));
        let Some((name, after)) = name else {
            expanded.push('$');
            continue;
        };
        match variables.iter().find(|(other, _)| other == name) {
            Some((_, value)) => expanded.push_str(value),
            None => {
                expanded.push_str("$(");
                expanded.push_str(name);
                expanded.push(')');
            }
        }
        rest = after;
    }
    expanded.push_str(rest);
    expanded
}

fn set(variables: &mut Vec<(String, String)>, name: String, value: String) {
    variables.retain(|(other, _)| *other != name);
    variables.push((name, value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_as_the_api_documents_it() {
        let variables = [
            ("A".to_owned(), "1".to_owned()),
            ("EMPTY".to_owned(), String::new()),
        ];
        for (given, expected) in [
            ("x$(A)y", "x1y"),
            ("$(A)$(A)", "11"),
            ("$(EMPTY)", ""),
            ("$(NOT_THERE)", "$(NOT_THERE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(A", "$(A"),
            ("100$", "100$"),
            ("$A", "$A"),
        ] {
            assert_eq!(expand(given, &variables), expected, "{given}");
        }
    }

    #[test]
    fn a_pod_can_ask_for_its_own_fields() {
        let mut pod = Pod::default();
        pod.metadata.name = Some("web".to_owned());
        pod.metadata.labels = Some(BTreeMap::from([("app".to_owned(), "hello".to_owned())]));
        let ips = ["10.244.1.7", "fd00::7"].map(|ip| ip.parse().unwrap());
        let facts = PodFacts {
            pod: &pod,
            pod_ips: &ips,
            host_ips: &ips[..1],
        };
        assert_eq!(facts.field("metadata.name").as_deref(), Some("web"));
        assert_eq!(
            facts.field("metadata.labels['app']").as_deref(),
            Some("hello")
        );
        assert_eq!(
            facts.field("metadata.annotations['app']").as_deref(),
            Some("")
        );
        assert_eq!(
            facts.field("status.podIPs").as_deref(),
            Some("10.244.1.7,fd00::7")
        );
        assert_eq!(facts.field("status.hostIP").as_deref(), Some("10.244.1.7"));
        assert_eq!(facts.field("spec.containers"), None);
    }
}
