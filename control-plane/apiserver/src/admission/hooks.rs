//! Webhook configurations, compiled: which hooks are asked about which writes.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>

use control_plane_registry::admission::Proposed;
use control_plane_registry::json::Json;
use control_plane_registry::{Kind, Registry, kinds};
use serde::Deserialize;
use serde_json::Value;

use super::matching::{Conditions, Matching, NAMES};

const GROUP: &str = "admissionregistration.k8s.io";

/// All hooks, in the order of their configurations' names.
#[derive(Debug, Default)]
pub struct Hooks {
    pub mutating: Vec<Hook>,
    pub validating: Vec<Hook>,
}

/// One webhook.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    pub name: String,
    pub client_config: ClientConfig,
    #[serde(flatten)]
    matching: Matching,
    /// When it is asked, beside that.
    #[serde(skip)]
    pub conditions: Conditions,
    #[serde(default)]
    failure_policy: String,
    #[serde(default)]
    side_effects: String,
    /// Seconds.
    #[serde(default = "ten")]
    pub timeout_seconds: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientConfig {
    pub url: Option<String>,
    pub service: Option<Service>,
    /// Base64 of PEM.
    #[serde(default)]
    pub ca_bundle: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    #[serde(default)]
    pub path: String,
    #[serde(default = "https")]
    pub port: u16,
}

fn ten() -> u64 {
    10
}

fn https() -> u16 {
    443
}

/// The kinds that hooks are made of: mutating, validating.
pub fn kinds_followed() -> [&'static Kind; 2] {
    [
        "mutatingwebhookconfigurations",
        "validatingwebhookconfigurations",
    ]
    .map(|plural| {
        kinds::find(GROUP, "v1", plural)
            .expect("the table of kinds has the rows of admissionregistration.k8s.io")
    })
}

impl Hooks {
    pub fn compile(registry: &Registry) -> Self {
        let [mutating, validating] = kinds_followed().map(|kind| {
            let configurations = registry.objects(kind).into_iter();
            let hooks = configurations.flat_map(|object| {
                let hooks = object.value().items("/webhooks").to_vec();
                hooks.into_iter().filter_map(move |hook| {
                    let conditions = Conditions::compile(hook.items("/matchConditions"), &NAMES);
                    // What was validated when it was stored can be read.
                    let read: Result<Hook, _> = serde_json::from_value(hook);
                    let read = read.inspect_err(|error| {
                        tracing::warn!(name = object.name, %error, "a webhook is left out");
                    });
                    Some(Hook {
                        conditions,
                        ..read.ok()?
                    })
                })
            });
            hooks.collect()
        });
        Self {
            mutating,
            validating,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.mutating.is_empty() && self.validating.is_empty()
    }
}

impl Hook {
    /// Whether a failure to ask is passed over.
    pub fn may_fail(&self) -> bool {
        self.failure_policy == "Ignore"
    }

    /// Whether asking changes something elsewhere, even when the write is only a rehearsal.
    pub fn has_side_effects(&self) -> bool {
        !matches!(self.side_effects.as_str(), "None" | "NoneOnDryRun")
    }

    /// Whether the hook is asked about a write; `object` is the new object, none for a deletion.
    pub fn is_about(
        &self,
        registry: &Registry,
        proposed: &Proposed<'_>,
        object: Option<&Value>,
    ) -> bool {
        // Nobody may lock himself out of the very objects that would let him in again.
        if proposed.kind.group == GROUP && proposed.kind.plural.ends_with("webhookconfigurations") {
            return false;
        }
        self.matching.is_about(registry, proposed, object)
    }
}
