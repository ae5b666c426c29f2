//! The Kubernetes API over HTTP: verbs, discovery, OpenAPI, Tables, watches and Status errors over the registry.
//!
//! This is the only crate of the control plane that knows HTTP.

#![forbid(unsafe_code)]

pub mod access;
mod admission;
mod attributes;
pub mod audit;
mod body;
mod chain;
mod components;
mod compress;
mod connect;
mod discovery;
mod flow;
mod follow;
mod health;
mod held;
mod identity;
mod limits;
mod list;
mod metrics;
mod negotiate;
mod openapi;
mod path;
mod query;
mod respond;
mod serve;
mod settings;
mod spans;
mod table;
pub mod tls;
mod verbs;
mod watch;

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Router, middleware};
use control_plane_registry::{ApiError, Registry};
use http::StatusCode;
use tokio::sync::watch as signal;

use crate::access::Access;
use crate::admission::Webhooks;
use crate::chain::Context;
use crate::flow::FlowControl;
use crate::metrics::Metrics;
use crate::openapi::Documents;

pub use limits::parse_duration;
pub use serve::{serve, serve_tls};
pub use settings::{Limits, Settings};
pub use spans::{Tracing, TracingConfiguration, TracingError};

/// What every handler needs.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub registry: Registry,
    pub settings: Arc<Settings>,
    pub documents: Arc<Documents>,
    pub metrics: Arc<Metrics>,
    pub flow: FlowControl,
    pub access: Arc<Access>,
    pub webhooks: Arc<Webhooks>,
    /// Turns true when the server is to end: watches close.
    pub stopping: signal::Receiver<bool>,
}

impl Api {
    fn new(registry: Registry, settings: Settings, stopping: signal::Receiver<bool>) -> Self {
        let metrics = Metrics::default();
        metrics.follow_store(&registry, settings.tracing.clone());
        let limits = &settings.limits;
        let flow = FlowControl::new(limits, metrics.flow.clone());
        let access = Access::new(settings.authenticators.clone(), settings.authorization);
        Self {
            registry,
            settings: Arc::new(settings),
            documents: Arc::default(),
            metrics: Arc::new(metrics),
            flow,
            access: Arc::new(access),
            webhooks: Arc::default(),
            stopping,
        }
    }

    /// Whether clients should go elsewhere.
    pub fn is_leaving(&self) -> bool {
        let leaving = self.settings.leaving.as_ref();
        *self.stopping.borrow() || leaving.is_some_and(|leaving| *leaving.borrow())
    }
}

/// The API of `registry`, with default settings. When `stopping` turns true, watches end with a last bookmark and
/// `/readyz` says no, so that the server can shut down without cutting anybody off.
pub fn app(registry: Registry, stopping: signal::Receiver<bool>) -> Router {
    app_with(registry, Settings::default(), stopping)
}

/// The API of `registry`, as [`app`], with other settings.
pub fn app_with(
    registry: Registry,
    settings: Settings,
    stopping: signal::Receiver<bool>,
) -> Router {
    let api = Api::new(registry, settings, stopping);
    Router::new()
        .route("/version", get(health::version))
        // Clients generated from OpenAPI ask with the slash that its paths have.
        .route("/version/", get(health::version))
        .route("/healthz", get(health::health))
        .route("/livez", get(health::live))
        .route("/livez/{check}", get(health::one_live))
        .route("/readyz", get(health::ready))
        .route("/readyz/{check}", get(health::one_ready))
        .route("/metrics", get(metrics::show))
        .route(
            "/.well-known/openid-configuration",
            get(identity::discovery),
        )
        .route("/openid/v1/jwks", get(identity::key_set))
        .route("/openapi/v2", get(openapi::version_2))
        .route("/openapi/v3", get(openapi::index))
        .route("/openapi/v3/{*path}", get(openapi::document))
        .route("/api", get(discovery::core))
        .route("/api/", get(discovery::core))
        .route("/apis", get(discovery::groups))
        .route("/apis/", get(discovery::groups))
        .fallback(resource)
        .method_not_allowed_fallback(async || respond::error(&ApiError::method_not_allowed()))
        .layer(middleware::from_fn_with_state(api.clone(), chain::run))
        .with_state(api)
}

/// Everything below `/api/` and `/apis/`.
async fn resource(
    State(api): State<Api>,
    Extension(context): Extension<Context>,
    request: Request,
) -> Response {
    let kinds = api.registry.kinds();
    match &context.attributes.parsed {
        path::Parsed::Resource(target) => {
            verbs::handle(api, target.clone(), context.clone(), request).await
        }
        path::Parsed::Versions { group, version } => discovery::legacy(&kinds, group, version),
        path::Parsed::Group(group) => discovery::group(&kinds, group),
        path::Parsed::Root => respond::json(StatusCode::OK, &discovery::root_paths(&kinds)),
        path::Parsed::UnknownResource => respond::error(&ApiError::unknown_resource()),
        path::Parsed::Nothing => respond::page_not_found(),
    }
}
