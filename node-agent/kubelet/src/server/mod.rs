//! The kubelet's own API, as far as the API server uses it: logs, commands and ports of the pods on this node.
//!
//! Paths and parameters are those of Kubernetes' kubelet (`/containerLogs`, `/exec`, `/attach`, `/portForward`,
//! `/pods`, `/healthz`). It speaks HTTP/1.1 without TLS and knows no users yet, so it answers nobody but the API
//! server, whom it knows by address, and the caller must see to it that this is enough.

mod channels;
mod find;
mod logs;
mod port;
mod port_forward;
mod remote_command;
mod spdy;

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Request, State},
    http::StatusCode,
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use tokio::net::TcpListener;

use crate::{objects::Objects, runtime::Runtime};

/// What every request needs.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub runtime: Runtime,
    pub objects: Objects,
    pub node_name: String,
    /// Who is answered.
    pub callers: Arc<Vec<IpAddr>>,
}

/// A request that cannot be served, in the words that the API server hands on.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    message: String,
}

/// Serves for ever.
///
/// # Errors
///
/// The listener's.
pub(crate) async fn serve(listener: TcpListener, server: Server) -> anyhow::Result<Infallible> {
    let app = Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/pods", get(pods))
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(logs::container_logs),
        )
        // Any method: who was refused as a WebSocket tries POST and shows that answer.
        .route(
            "/exec/{namespace}/{pod}/{container}",
            any(remote_command::exec),
        )
        .route(
            "/attach/{namespace}/{pod}/{container}",
            any(remote_command::attach),
        )
        .route(
            "/portForward/{namespace}/{pod}",
            any(port_forward::port_forward),
        )
        .layer(from_fn_with_state(server.clone(), only_callers))
        .with_state(server)
        .into_make_service_with_connect_info::<SocketAddr>();
    // What is typed must arrive at once.
    let listener = axum::serve::ListenerExt::tap_io(listener, |io| {
        if let Err(error) = io.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    axum::serve(listener, app).await?;
    anyhow::bail!("the kubelet's server has ended")
}

async fn only_callers(
    State(server): State<Server>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let caller = peer.ip().to_canonical();
    if server.callers.contains(&caller) {
        return next.run(request).await;
    }
    tracing::warn!(%caller, path = request.uri().path(), "refused a request that is not the API server's");
    Refusal::new(
        StatusCode::FORBIDDEN,
        format!("this kubelet answers its API server only, which {caller} is not"),
    )
    .into_response()
}

/// The pods that are bound to this node.
async fn pods(State(server): State<Server>) -> Result<Response, Refusal> {
    let mut pods = server.objects.pods_of(&server.node_name).await?;
    pods.types.kind = "PodList".to_owned();
    "v1".clone_into(&mut pods.types.api_version);
    Ok(Json(pods).into_response())
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
}

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, crate::chain(&error))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, self.message).into_response()
    }
}
