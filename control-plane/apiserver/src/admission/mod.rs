//! Who is asked about a write before it is stored: webhooks, and whether its author gives away more than it has.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/>

mod call;
mod hooks;
mod matching;
mod policies;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use control_plane_cel::Budget;
use control_plane_registry::admission::{Admission, Operation, Proposed};
use control_plane_registry::errors::Result;
use control_plane_registry::json::Json;
use control_plane_registry::{ApiError, PatchType, Subresource, merge};
use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::Api;
use crate::access::{Authorization, User};
use crate::follow::Followed;
use crate::spans::Tracing;
use call::Verdict;
use hooks::{Hook, Hooks};
use policies::Policies;

/// The webhooks and policies that there are.
#[derive(Debug)]
pub struct Webhooks {
    hooks: Followed<Hooks>,
    policies: Followed<Policies>,
}

/// What those who were asked have to say to the client's user.
pub type Warnings = Arc<Mutex<Vec<String>>>;

/// Asks on behalf of one request.
#[derive(Debug)]
struct Gate {
    api: Api,
    user: Arc<User>,
    hooks: Arc<Hooks>,
    policies: Arc<Policies>,
    warnings: Warnings,
}

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            hooks: Followed::new(hooks::kinds_followed()),
            policies: Followed::new(policies::kinds_followed()),
        }
    }
}

/// Who is asked about a request of `user`; `None` when nobody would say anything.
pub fn gate(api: &Api, user: &Arc<User>, warnings: &Warnings) -> Option<Arc<dyn Admission>> {
    let hooks = api.webhooks.hooks.get(&api.registry, Hooks::compile);
    let policies = &api.webhooks.policies;
    let policies = policies.get(&api.registry, Policies::compile);
    let nobody = hooks.is_empty() && policies.is_empty();
    if api.access.mode == Authorization::AlwaysAllow && nobody {
        return None;
    }
    Some(Arc::new(Gate {
        api: api.clone(),
        user: user.clone(),
        hooks,
        policies,
        warnings: warnings.clone(),
    }))
}

#[async_trait]
impl Admission for Gate {
    async fn mutate(&self, proposed: &Proposed<'_>, object: &mut Value) -> Result<()> {
        for hook in &self.hooks.mutating {
            if !hook.is_about(&self.api.registry, proposed, Some(object)) {
                continue;
            }
            let Some(verdict) = self.ask(hook, proposed, Some(object)).await? else {
                continue;
            };
            if !verdict.patch.is_null() {
                *object = merge::apply(proposed.kind, object, &verdict.patch, PatchType::Json)
                    .map_err(|error| failed(hook, &error.to_string()))?;
            }
        }
        Ok(())
    }

    async fn validate(&self, proposed: &Proposed<'_>, object: Option<&Value>) -> Result<()> {
        if let Some(object) = object {
            let (access, registry) = (&self.api.access, &self.api.registry);
            let Proposed {
                kind, namespace, ..
            } = *proposed;
            access.check_grant(registry, &self.user, kind, namespace, object)?;
        }
        self.judge(proposed, object)?;
        let asked = self.hooks.validating.iter();
        let asked = asked.filter(|hook| hook.is_about(&self.api.registry, proposed, object));
        // They change nothing, so that their order does not matter.
        try_join_all(asked.map(|hook| self.ask(hook, proposed, object))).await?;
        Ok(())
    }
}

impl Gate {
    fn warn(&self, texts: impl IntoIterator<Item = String>) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        warnings.extend(texts);
    }

    /// Holds a write against the policies.
    fn judge(&self, proposed: &Proposed<'_>, object: Option<&Value>) -> Result<()> {
        if self.policies.is_empty() {
            return Ok(());
        }
        let request = self.request(proposed, object);
        let judged = self
            .policies
            .judge(&self.api.registry, proposed, object, &request);
        self.warn(judged?);
        Ok(())
    }

    /// The verdict of a hook that allows the write; `None` from one that is not asked, or cannot be and need not be.
    async fn ask(
        &self,
        hook: &Hook,
        proposed: &Proposed<'_>,
        object: Option<&Value>,
    ) -> Result<Option<Verdict>> {
        let request = self.request(proposed, object);
        if !hook.conditions.is_empty() {
            let variables = matching::variables(&request, object, proposed);
            match hook
                .conditions
                .hold(&variables, &mut Budget::new(matching::STEPS))
            {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(_) if hook.may_fail() => return Ok(None),
                Err(why) => return Err(failed(hook, &why)),
            }
        }
        if proposed.dry_run && hook.has_side_effects() {
            return Err(ApiError::bad_request(format!(
                "admission webhook {:?} does not support dry run: its sideEffects are neither None nor NoneOnDryRun",
                hook.name
            )));
        }
        let tracing = self.api.settings.tracing.as_ref();
        let asked = call::ask(&self.api, hook, &request);
        match Tracing::asking(tracing, &hook.name, asked).await {
            Ok(mut verdict) if verdict.allowed => {
                self.warn(std::mem::take(&mut verdict.warnings));
                Ok(Some(verdict))
            }
            Ok(verdict) => Err(denied(hook, &verdict.status)),
            Err(why) if hook.may_fail() => {
                tracing::warn!(
                    hook = hook.name,
                    why,
                    "a webhook was not asked, which its failurePolicy allows"
                );
                Ok(None)
            }
            Err(why) => Err(failed(hook, &why)),
        }
    }

    /// `admission.k8s.io/v1` `AdmissionRequest`.
    fn request(&self, proposed: &Proposed<'_>, object: Option<&Value>) -> Value {
        let kind = proposed.kind;
        let operation = match proposed.operation {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
        };
        let of = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
        let resource =
            json!({"group": kind.group, "version": kind.version, "resource": kind.plural});
        let mut request = json!({
            "uid": uuid::Uuid::new_v4().to_string(),
            "kind": of,
            "resource": resource,
            "requestKind": of,
            "requestResource": resource,
            "operation": operation,
            "userInfo": self.user.info(),
            "object": object,
            "oldObject": proposed.old,
            "dryRun": proposed.dry_run,
            "options": null,
        });
        for (field, value) in [
            ("name", proposed.name),
            ("namespace", proposed.namespace),
            (
                "subResource",
                proposed.subresource.map_or("", Subresource::name),
            ),
        ] {
            if !value.is_empty() {
                request[field] = value.into();
            }
        }
        request
    }
}

fn failed(hook: &Hook, why: &str) -> ApiError {
    ApiError::internal_text(format!(
        "Internal error occurred: failed calling webhook {:?}: {why}",
        hook.name
    ))
}

/// The hook's own words in a `Status` of ours.
fn denied(hook: &Hook, status: &Value) -> ApiError {
    let mut text = format!("admission webhook {:?} denied the request", hook.name);
    let (message, reason) = (status.text("/message"), status.text("/reason"));
    match (message, reason) {
        ("", "") => text.push_str(" without explanation"),
        ("", reason) => text.push_str(&format!(": {reason}")),
        (message, _) => text.push_str(&format!(": {message}")),
    }
    let code = status
        .integer("/code")
        .and_then(|code| u16::try_from(code).ok());
    ApiError::denied(
        code.filter(|code| (400..600).contains(code)).unwrap_or(403),
        text,
    )
}
