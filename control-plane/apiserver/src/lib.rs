//! The Kubernetes API over HTTP: verbs, discovery, OpenAPI, Tables, watches and Status errors over the registry.
//!
//! This is the only crate of the control plane that knows HTTP.

#![forbid(unsafe_code)]

mod body;
mod connect;
mod discovery;
mod health;
mod metrics;
mod negotiate;
mod openapi;
mod path;
mod query;
mod respond;
mod table;
mod verbs;
mod watch;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use control_plane_registry::Registry;
use http::StatusCode;
use tokio::sync::watch as signal;

use crate::metrics::Metrics;
use crate::openapi::Documents;

/// What every handler needs.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub registry: Registry,
    pub documents: Arc<Documents>,
    pub metrics: Arc<Metrics>,
    /// Turns true when the server is to end: watches close.
    pub stopping: signal::Receiver<bool>,
}

/// The API of `registry`. When `stopping` turns true, watches end with a last bookmark and `/readyz` says no, so that
/// the server can shut down without cutting anybody off.
pub fn app(registry: Registry, stopping: signal::Receiver<bool>) -> Router {
    let api = Api {
        registry,
        documents: Arc::default(),
        metrics: Arc::new(Metrics::default()),
        stopping,
    };
    Router::new()
        .route("/version", get(health::version))
        .route("/healthz", get(health::live))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::show))
        .route("/openapi/v2", get(openapi::version_2))
        .route("/openapi/v3", get(openapi::index))
        .route("/openapi/v3/{*path}", get(openapi::document))
        .route("/api", get(discovery::core))
        .route("/apis", get(discovery::groups))
        .fallback(resource)
        .layer(axum::middleware::from_fn_with_state(api.clone(), observe))
        .with_state(api)
}

/// Everything below `/api/` and `/apis/`.
async fn resource(State(api): State<Api>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let kinds = api.registry.kinds();
    match path::parse(&kinds, &path) {
        path::Parsed::Resource(target) => verbs::handle(api, target, request).await,
        path::Parsed::Versions { group, version } => discovery::legacy(&kinds, group, version),
        path::Parsed::Group(group) => discovery::group(&kinds, group),
        path::Parsed::Root => respond::json(StatusCode::OK, &discovery::root_paths(&kinds)),
        path::Parsed::UnknownResource => {
            respond::error(&control_plane_registry::ApiError::unknown_resource())
        }
        path::Parsed::Nothing => respond::page_not_found(),
    }
}

/// Counts requests and says what was asked and answered.
async fn observe(
    State(api): State<Api>,
    request: Request,
    next: axum::middleware::Next,
) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let uri = request.uri().clone();
    let response = next.run(request).await;
    let took = began.elapsed();
    let status = response.status();
    api.metrics.count(&method, status, took);
    tracing::debug!(%method, %uri, status = status.as_u16(), ?took, "request");
    response
}

/// Serves `app` on one listener until `stopping` turns true, and then until the open requests are answered.
///
/// # Errors
/// The listener's.
pub async fn serve(
    listener: tokio::net::TcpListener,
    app: Router,
    mut stopping: signal::Receiver<bool>,
) -> std::io::Result<()> {
    // A watch sends many small lines, each of which somebody waits for.
    let listener = axum::serve::ListenerExt::tap_io(listener, |io| {
        if let Err(error) = io.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            drop(stopping.wait_for(|stopping| *stopping).await);
        })
        .await
}
