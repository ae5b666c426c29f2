//! `/healthz`, `/livez`, `/readyz`, `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::readiness::Readiness;

#[derive(Clone, Debug)]
struct Served {
    readiness: Arc<Readiness>,
    registry: Arc<Registry>,
}

/// Binds at once, serves in a task.
///
/// # Errors
///
/// When the address is taken.
pub async fn serve(
    listen: SocketAddr,
    readiness: Arc<Readiness>,
    registry: Registry,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("--listen {listen}"))?;
    let app = router(readiness, registry);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "the HTTP server ended");
        }
    });
    Ok(())
}

fn router(readiness: Arc<Readiness>, registry: Registry) -> Router {
    let served = Served {
        readiness,
        registry: Arc::new(registry),
    };
    Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(served)
}

/// For load balancers: 503 also when the Node is about to go, so that they stop sending it connections (KEP-3836).
async fn healthz(State(served): State<Served>) -> Response {
    let eligible = served.readiness.is_eligible();
    health(
        served.readiness.is_alive() && eligible,
        json!({"nodeEligible": eligible}),
        &served.readiness,
    )
}

/// For what would start the agent again: a Node that is about to go is no reason.
async fn livez(State(served): State<Served>) -> Response {
    health(served.readiness.is_alive(), json!({}), &served.readiness)
}

/// Body and headers as kube-proxy has them.
fn health(good: bool, mut body: Value, readiness: &Readiness) -> Response {
    let time = |time: SystemTime| jiff::Timestamp::try_from(time).map(|time| time.to_string());
    body["currentTime"] = json!(time(SystemTime::now()).unwrap_or_default());
    let updated = readiness.updated_at().map(time);
    body["lastUpdated"] = json!(updated.and_then(Result::ok));
    let status = match good {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, body.to_string()).into_response()
}

async fn readyz(State(served): State<Served>) -> Response {
    let reasons = served.readiness.not_ready();
    if reasons.is_empty() {
        let warnings = served.readiness.warnings();
        let warnings: String = warnings
            .iter()
            .map(|warning| format!("warning: {warning}\n"))
            .collect();
        return format!("ok\n{warnings}").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response()
}

async fn metrics(State(served): State<Served>) -> Response {
    // The maps are read for each scrape, by system calls that block.
    let encoded = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &served.registry).map(|()| text)
    })
    .await;
    match encoded {
        Ok(Ok(text)) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], text).into_response()
        }
        _ => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics could not be read\n",
        )
            .into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    async fn get(readiness: &Arc<Readiness>, path: &str) -> (StatusCode, Value) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let router = router(readiness.clone(), Registry::default());
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 16).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_node_that_is_about_to_go_is_unhealthy_but_alive() {
        let readiness = Arc::new(Readiness::default());
        let (status, body) = get(&readiness, "/healthz").await;
        assert_eq!(
            (status, &body["nodeEligible"]),
            (StatusCode::OK, &json!(true))
        );
        assert!(
            body["currentTime"]
                .as_str()
                .is_some_and(|time| time.ends_with('Z'))
        );

        readiness.set_leaving(true);
        let (status, body) = get(&readiness, "/healthz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body["nodeEligible"], false);
        let (status, body) = get(&readiness, "/livez").await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.get("nodeEligible").is_none());

        readiness.set_leaving(false);
        assert_eq!(get(&readiness, "/healthz").await.0, StatusCode::OK);
    }
}
