//! Who asks: by a client certificate, a bearer token, or nobody that we know; and who somebody may act as.

use std::collections::BTreeMap;
use std::sync::Arc;

use control_plane_registry::errors::Result;
use control_plane_registry::{ApiError, Registry};
use http::request::Parts;
use http::{HeaderMap, header};

use super::tokens::ServiceAccounts;
use super::user::{AUTHENTICATED, User};
use crate::query;

/// Who a client certificate says that the client is; TLS has proved it.
#[derive(Clone, Debug)]
pub struct Certified(pub Arc<User>);

/// How clients can prove who they are.
#[derive(Clone, Debug, Default)]
pub struct Authenticators {
    /// By token.
    pub tokens: BTreeMap<String, Arc<User>>,
    pub service_accounts: Option<Arc<ServiceAccounts>>,
    /// Clients that do not say who they are, are refused.
    pub no_anonymous: bool,
}

impl Authenticators {
    /// Who sends this request.
    ///
    /// # Errors
    /// 401 for a token that nobody has, and for a client without any when those are not served.
    pub fn who(&self, registry: &Registry, head: &Parts) -> Result<Arc<User>> {
        if let Some(Certified(user)) = head.extensions.get() {
            return Ok(user.clone());
        }
        match bearer(&head.headers) {
            Some(token) => self.by_token(registry, token),
            None if self.no_anonymous => Err(ApiError::unauthorized()),
            None => Ok(User::anonymous()),
        }
    }

    fn by_token(&self, registry: &Registry, token: &str) -> Result<Arc<User>> {
        if let Some(user) = self.tokens.get(token) {
            return Ok(user.clone());
        }
        let accounts = self.service_accounts.as_ref();
        match accounts.map(|accounts| accounts.verify(registry, token, &[])) {
            Some(Ok(verified)) => Ok(Arc::new(verified.user)),
            Some(Err(why)) => {
                tracing::debug!(why, "a token was refused");
                Err(ApiError::unauthorized())
            }
            None => Err(ApiError::unauthorized()),
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Somebody else that a request is to be done as (`Impersonate-User` and its fellows).
#[derive(Debug)]
pub struct Impersonation {
    pub user: User,
    /// The groups that the client itself named, which it must be allowed to take.
    pub groups: Vec<String>,
}

/// Reads whom the client wants to act as.
///
/// # Errors
/// 400 for groups or extra without a user.
pub fn impersonation(headers: &HeaderMap) -> Result<Option<Impersonation>> {
    let one = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .into_iter()
        .filter_map(|value| value.to_str().ok().map(ToOwned::to_owned))
        .collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (
            name.as_str().strip_prefix("impersonate-extra-"),
            value.to_str(),
        ) {
            let values = extra.entry(query::decode(key)).or_default();
            values.push(value.to_owned());
        }
    }
    let uid = one("impersonate-uid").unwrap_or_default();
    let Some(name) = one("impersonate-user").filter(|name| !name.is_empty()) else {
        if groups.is_empty() && extra.is_empty() && uid.is_empty() {
            return Ok(None);
        }
        return Err(ApiError::bad_request(
            "requested impersonation without a user: give the header Impersonate-User too",
        ));
    };
    let mut user = match name.strip_prefix("system:serviceaccount:") {
        Some(account) if groups.is_empty() => {
            let (namespace, name) = account.split_once(':').unwrap_or((account, ""));
            User::of_service_account(namespace, name, uid)
        }
        _ if name == super::user::ANONYMOUS => (*User::anonymous()).clone(),
        _ => User::authenticated(name, uid, groups.clone()),
    };
    user.extra = extra;
    debug_assert!(user.is_anonymous() || user.is_in(AUTHENTICATED));
    Ok(Some(Impersonation { user, groups }))
}
