//! Who we are and how we are: `/version`, `/livez`, `/readyz`, `/healthz`, each check also by its own path.
//!
//! <https://kubernetes.io/docs/reference/using-api/health-checks/>

use std::fmt::Write;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use crate::query::Query;
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

/// One thing that can be well or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    /// The process answers.
    Ping,
    /// The store answers and takes writes. Named as Kubernetes names it, whatever the store is.
    Etcd,
    /// What is served from memory has seen what the store has.
    WatchCache,
    /// The server is not about to end.
    Shutdown,
}

const LIVE: &[Check] = &[Check::Ping, Check::Etcd];
const READY: &[Check] = &[Check::Ping, Check::Etcd, Check::WatchCache, Check::Shutdown];

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Etcd => "etcd",
            Self::WatchCache => "watch-cache",
            Self::Shutdown => "shutdown",
        }
    }

    /// # Errors
    /// What is not well.
    async fn run(self, api: &Api) -> Result<(), String> {
        match self {
            Self::Ping => Ok(()),
            Self::Etcd => api.registry.check().await.map_err(|e| e.to_string()),
            Self::WatchCache => api.registry.caught_up().await.map_err(|e| e.to_string()),
            Self::Shutdown if api.is_leaving() => Err("the server is about to end".to_owned()),
            Self::Shutdown => Ok(()),
        }
    }
}

/// Whether the process should go on.
pub async fn live(State(api): State<Api>, request: Request) -> Response {
    all(&api, "livez", LIVE, request.uri().query()).await
}

/// Whether requests should be sent here.
pub async fn ready(State(api): State<Api>, request: Request) -> Response {
    all(&api, "readyz", READY, request.uri().query()).await
}

/// The old path for both.
pub async fn health(State(api): State<Api>, request: Request) -> Response {
    all(&api, "healthz", LIVE, request.uri().query()).await
}

pub async fn one_live(State(api): State<Api>, Path(name): Path<String>) -> Response {
    one(&api, LIVE, &name).await
}

pub async fn one_ready(State(api): State<Api>, Path(name): Path<String>) -> Response {
    one(&api, READY, &name).await
}

/// The checks of a path, but for those that `?exclude=` names; a line each with `?verbose` or when one fails.
async fn all(api: &Api, path: &str, checks: &[Check], query: Option<&str>) -> Response {
    let query = Query::parse(query);
    let mut excluded: Vec<&str> = query.all("exclude").flat_map(|e| e.split(',')).collect();
    excluded.retain(|name| !name.is_empty());
    let mut lines = String::new();
    let mut well = true;
    for check in checks {
        let name = check.name();
        // Writing to a string cannot fail.
        let _ = match excluded.iter().position(|e| *e == name) {
            Some(at) => {
                excluded.remove(at);
                writeln!(lines, "[+]{name} excluded: ok")
            }
            None => match check.run(api).await {
                Ok(()) => writeln!(lines, "[+]{name} ok"),
                Err(why) => {
                    well = false;
                    writeln!(lines, "[-]{name} failed: {why}")
                }
            },
        };
    }
    if !excluded.is_empty() {
        let names: Vec<String> = excluded.iter().map(|e| format!("{e:?}")).collect();
        let _ = writeln!(
            lines,
            "warn: some health checks cannot be excluded: no matches for {}",
            names.join(",")
        );
    }
    match (well, query.flag("verbose")) {
        (true, false) => respond::text(StatusCode::OK, "ok"),
        (true, true) => respond::text(StatusCode::OK, format!("{lines}{path} check passed\n")),
        (false, _) => respond::text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{lines}{path} check failed\n"),
        ),
    }
}

async fn one(api: &Api, checks: &[Check], name: &str) -> Response {
    let Some(check) = checks.iter().find(|check| check.name() == name) else {
        return respond::page_not_found();
    };
    match check.run(api).await {
        Ok(()) => respond::text(StatusCode::OK, "ok"),
        Err(why) => respond::text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
