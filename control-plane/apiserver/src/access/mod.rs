//! Who asks, and whether they may.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/>

mod action;
mod authenticate;
mod escalation;
mod rbac;
pub(crate) mod review;
mod tokens;
mod user;

use std::sync::Arc;

use control_plane_registry::errors::Result;
use control_plane_registry::{ApiError, Registry};
use http::HeaderMap;
use http::request::Parts;

use crate::attributes::Attributes;
use crate::audit::Record;
use crate::follow::Followed;

pub use action::{Action, On, Resource};
use authenticate::Impersonation;
pub use authenticate::{Authenticators, Certified};
use rbac::Rbac;
pub use tokens::{KeyPair, ServiceAccounts};
pub use user::{MASTERS, User};

/// Who may do what (`--authorization-mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authorization {
    /// Everybody everything.
    #[default]
    AlwaysAllow,
    /// What the stored roles and bindings say.
    Rbac,
}

/// Authentication and authorization of one server.
#[derive(Debug)]
pub struct Access {
    pub authenticators: Authenticators,
    pub mode: Authorization,
    rbac: Followed<Rbac>,
}

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    /// Empty when there is nothing to say.
    pub reason: String,
}

impl Access {
    pub fn new(authenticators: Authenticators, mode: Authorization) -> Self {
        Self {
            authenticators,
            mode,
            rbac: Followed::new(rbac::kinds_followed()),
        }
    }

    /// Who sends a request, and as whom it is to be done.
    ///
    /// # Errors
    /// 401 for a client that is refused, 403 for one that may not act as somebody else.
    pub fn who(&self, registry: &Registry, head: &Parts) -> Result<(Arc<User>, Option<Arc<User>>)> {
        let user = self.authenticators.who(registry, head)?;
        let Some(other) = impersonation_of(&head.headers)? else {
            return Ok((user, None));
        };
        self.check_impersonation(registry, &user, &other)?;
        Ok((user, Some(Arc::new(other.user))))
    }

    /// Lets a request pass, or not.
    ///
    /// # Errors
    /// 403 with who may not do what.
    pub fn check(
        &self,
        registry: &Registry,
        user: &User,
        attributes: &Attributes,
        record: Option<&mut Record>,
    ) -> Result<()> {
        let action = Action::of(attributes);
        let decision = self.decide(registry, user, &action);
        if let Some(record) = record {
            record.decided(decision.allowed, &decision.reason);
        }
        if decision.allowed {
            return Ok(());
        }
        Err(refusal(user, &action, attributes))
    }

    /// Whether `user` may do `action`.
    pub fn decide(&self, registry: &Registry, user: &User, action: &Action<'_>) -> Decision {
        if self.mode == Authorization::AlwaysAllow {
            return Decision {
                allowed: true,
                reason: String::new(),
            };
        }
        let reason = match user.is_in(MASTERS) {
            true => Some(String::new()),
            false => self.rbac(registry).allows(user, action),
        };
        Decision {
            allowed: reason.is_some(),
            reason: reason.unwrap_or_default(),
        }
    }

    fn rbac(&self, registry: &Registry) -> Arc<Rbac> {
        self.rbac.get(registry, Rbac::compile)
    }

    fn check_impersonation(
        &self,
        registry: &Registry,
        user: &User,
        wanted: &Impersonation,
    ) -> Result<()> {
        let account = wanted.user.service_account();
        let resource = |group, resource, subresource, namespace, name| Resource {
            group,
            resource,
            subresource,
            namespace,
            name,
        };
        let mut all = vec![match account {
            Some((namespace, name)) => resource("", "serviceaccounts", "", namespace, name),
            None => resource("", "users", "", "", &wanted.user.name),
        }];
        let groups = wanted.groups.iter();
        all.extend(groups.map(|group| resource("", "groups", "", "", group)));
        let authentication = "authentication.k8s.io";
        if !wanted.user.uid.is_empty() {
            all.push(resource(authentication, "uids", "", "", &wanted.user.uid));
        }
        for (key, values) in &wanted.user.extra {
            let values = values.iter();
            all.extend(values.map(|v| resource(authentication, "userextras", key, "", v)));
        }
        for one in all {
            let action = Action {
                verb: "impersonate",
                on: On::Resource(one),
            };
            if !self.decide(registry, user, &action).allowed {
                return Err(ApiError::forbidden_action(
                    one.group,
                    one.resource,
                    one.name,
                    &format!("User {:?} cannot {}", user.name, action.describe()),
                ));
            }
        }
        Ok(())
    }
}

fn impersonation_of(headers: &HeaderMap) -> Result<Option<Impersonation>> {
    // Nearly no request has one: look only for the common start.
    let any = headers
        .keys()
        .any(|name| name.as_str().starts_with("impersonate-"));
    if any {
        authenticate::impersonation(headers)
    } else {
        Ok(None)
    }
}

fn refusal(user: &User, action: &Action<'_>, attributes: &Attributes) -> ApiError {
    let why = format!("User {:?} cannot {}", user.name, action.describe());
    match attributes.kind() {
        Some(kind) => ApiError::forbidden_action(kind.group, kind.plural, attributes.name(), &why),
        None => ApiError::forbidden_path(&why),
    }
}
