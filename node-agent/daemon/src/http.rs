//! `/healthz`, `/readyz`, `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
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
    let served = Served {
        readiness,
        registry: Arc::new(registry),
    };
    let app = Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(served);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "the HTTP server ended");
        }
    });
    Ok(())
}

async fn healthz(State(served): State<Served>) -> Response {
    if served.readiness.is_alive() {
        "ok\n".into_response()
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "the reconciler has ended\n",
        )
            .into_response()
    }
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
