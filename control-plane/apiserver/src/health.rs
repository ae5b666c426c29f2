//! Who we are and how we are: `/version`, `/livez`, `/readyz`.

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use crate::{Api, respond};

/// The Kubernetes API that is followed; the part behind `+` is ours, which semantic versioning ignores in comparisons.
const FOLLOWS: (&str, &str) = ("1", "37");

pub async fn version() -> Response {
    let (major, minor) = FOLLOWS;
    let own = env!("CARGO_PKG_VERSION");
    let body = json!({
        "major": major,
        "minor": minor,
        "gitVersion": format!("v{major}.{minor}.0+fairlead-{own}"),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, platform()),
    });
    respond::json(StatusCode::OK, &body)
}

/// Go's names of architectures.
fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The process runs.
pub async fn live() -> Response {
    respond::text(StatusCode::OK, "ok")
}

/// The store answers and the server is not about to end.
pub async fn ready(State(api): State<Api>) -> Response {
    if *api.stopping.borrow() {
        return respond::text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n");
    }
    match api.registry.check().await {
        Ok(()) => respond::text(StatusCode::OK, "ok"),
        Err(error) => respond::text(StatusCode::SERVICE_UNAVAILABLE, format!("store: {error}\n")),
    }
}
