//! Handing a kubelet's answer on: a body as it comes, an error as a `Status`, an upgraded connection byte by byte.

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use control_plane_registry::ApiError;
use control_plane_registry::errors::Result;
use futures::StreamExt;
use http::{HeaderMap, HeaderName, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::watch as signal;

use super::kubelet::{Kubelet, KubeletError};
use crate::Api;

/// As much of an error's text as is handed on, in bytes.
const ERROR_MAX: usize = 2048;

/// What belongs to one connection and not to the message (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// A client's request with the connection that it may become.
pub struct Handed {
    pub request: http::Request<Body>,
    upgrade: Option<OnUpgrade>,
}

impl Handed {
    /// Takes a request for `path` at the other end. An upgrade that the client asks for is asked for there.
    ///
    /// # Errors
    /// 400 for a path that cannot be asked for.
    pub fn new(mut request: Request, path: &str) -> Result<Self> {
        let wanted = request.headers().get(header::UPGRADE).cloned();
        let upgrade = wanted.as_ref().map(|_| hyper::upgrade::on(&mut request));
        let uri = path
            .parse()
            .map_err(|error| ApiError::bad_request(format!("invalid path {path:?}: {error}")))?;
        *request.uri_mut() = uri;
        *request.version_mut() = http::Version::HTTP_11;
        remove_hop_by_hop(request.headers_mut());
        if let Some(protocol) = wanted {
            let headers = request.headers_mut();
            headers.insert(header::UPGRADE, protocol);
            headers.insert(
                header::CONNECTION,
                http::HeaderValue::from_static("Upgrade"),
            );
        }
        Ok(Self { request, upgrade })
    }

    /// Sends it by `send` and hands the answer on as it is.
    pub async fn answer<F>(
        self,
        api: &Api,
        send: impl FnOnce(http::Request<Body>) -> F,
    ) -> Result<Response, KubeletError>
    where
        F: Future<Output = Result<http::Response<Incoming>, KubeletError>>,
    {
        let mut answer = send(self.request).await?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(client) = self.upgrade
        {
            let other = hyper::upgrade::on(&mut answer);
            tokio::spawn(splice(client, other, api.stopping.clone()));
            return Ok(answer.map(|_| Body::empty()));
        }
        remove_hop_by_hop(answer.headers_mut());
        let (parts, body) = answer.into_parts();
        Ok(Response::from_parts(
            parts,
            until_stopping(body, &api.stopping),
        ))
    }
}

/// Asks a kubelet for `path` as the client asks us; a refusal becomes a `Status`.
///
/// # Errors
/// The refusal, or that the kubelet does not answer.
pub async fn to_kubelet(
    api: &Api,
    kubelet: &Kubelet,
    path: &str,
    request: Request,
) -> Result<Response> {
    let handed = Handed::new(request, path)?;
    let answer = handed.answer(api, |request| kubelet.send(request)).await;
    let answer = answer.map_err(|error| ApiError::internal(&error))?;
    let status = answer.status();
    if !status.is_client_error() && !status.is_server_error() {
        return Ok(answer);
    }
    let body = Limited::new(answer.into_body(), ERROR_MAX).collect().await;
    let text = body.map(|body| body.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    Err(match status {
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => ApiError::bad_request(text),
        _ => ApiError::internal(&KubeletError::Answer(text)),
    })
}

/// A body that ends with the server: nobody waits for the end of a log that is followed.
fn until_stopping(body: Incoming, stopping: &signal::Receiver<bool>) -> Body {
    let mut stopping = stopping.clone();
    let stopped = async move {
        drop(stopping.wait_for(|stopping| *stopping).await);
    };
    Body::from_stream(body.into_data_stream().take_until(Box::pin(stopped)))
}

async fn splice(client: OnUpgrade, other: OnUpgrade, mut stopping: signal::Receiver<bool>) {
    let carried = async {
        let (client, other) = tokio::try_join!(client, other)?;
        let (mut client, mut other) = (TokioIo::new(client), TokioIo::new(other));
        // Either end may break off: that is how many such connections end.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut other).await;
        Ok::<_, hyper::Error>(())
    };
    tokio::select! {
        carried = carried => if let Err(error) = carried {
            tracing::debug!(%error, "a connection was not upgraded");
        },
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.into_iter().chain(named) {
        headers.remove(name);
    }
}
