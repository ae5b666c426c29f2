//! How others verify tokens of ServiceAccounts without asking this server: OpenID Connect discovery.
//!
//! <https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/#service-account-issuer-discovery>

use axum::extract::State;
use axum::response::Response;
use http::{HeaderValue, StatusCode};
use serde_json::Value;

use crate::access::ServiceAccounts;
use crate::{Api, respond};

pub async fn discovery(State(api): State<Api>) -> Response {
    document(&api, "application/json", ServiceAccounts::discovery)
}

pub async fn key_set(State(api): State<Api>) -> Response {
    document(&api, "application/jwk-set+json", ServiceAccounts::key_set)
}

fn document(api: &Api, content_type: &'static str, of: fn(&ServiceAccounts) -> Value) -> Response {
    match &api.settings.authenticators.service_accounts {
        Some(accounts) => respond::with_type(
            StatusCode::OK,
            HeaderValue::from_static(content_type),
            of(accounts).to_string().into(),
        ),
        None => respond::page_not_found(),
    }
}
