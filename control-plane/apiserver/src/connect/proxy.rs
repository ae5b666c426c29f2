//! `nodes/proxy` and `pods/proxy`: HTTP to a node's kubelet or to a port of a pod, under the API server's address.
//!
//! The name in the path is `NAME`, `NAME:PORT` or `SCHEME:NAME:PORT`. Bodies are handed on as they are: links in pages are
//! not rewritten, so what is to be looked at in a browser needs relative ones.

use axum::extract::Request;
use axum::response::Response;
use control_plane_registry::ApiError;
use control_plane_registry::errors::Result;
use http::{HeaderValue, StatusCode, header};

use super::kubelet::{self, Kubelet, KubeletError};
use super::pod::Pod;
use super::relay::Handed;
use super::tunnel;
use crate::path::Target;
use crate::{Api, respond};

/// What a name in a proxy's path means.
#[derive(Debug, PartialEq)]
struct Named<'a> {
    name: &'a str,
    port: Option<u16>,
}

/// Hands `request` on to what the path names.
///
/// # Errors
/// What is missing on the way there.
pub async fn open(api: &Api, target: &Target, request: Request) -> Result<Response> {
    let raw = request.uri().path();
    let below = below(raw, target);
    let Some(below) = below.filter(|below| !below.is_empty()) else {
        return Ok(with_slash(request.uri()));
    };
    let path = match request.uri().query() {
        Some(query) => format!("{below}?{query}"),
        None => below.to_owned(),
    };
    let named = Named::parse(&target.name)?;
    let handed = Handed::new(request, &path)?;
    let answer = if target.kind.0.kind == "Node" {
        let node = Kubelet::of_node(api, named.name).await?;
        let mut address = node.address;
        address.set_port(named.port.unwrap_or(address.port()));
        let send = |request| async move {
            let stream = kubelet::dial(address).await?;
            kubelet::exchange(stream, &address.to_string(), request).await
        };
        handed.answer(api, send).await
    } else {
        to_pod(api, &target.namespace, &named, handed).await?
    };
    answer.map_err(|error| unreachable(&error))
}

async fn to_pod(
    api: &Api,
    namespace: &str,
    named: &Named<'_>,
    handed: Handed,
) -> Result<Result<Response, KubeletError>> {
    let pod = Pod::find(api, namespace, named.name).await?;
    if pod.node().is_empty() {
        let message = format!("pod {} does not have a host assigned", named.name);
        return Err(ApiError::bad_request(message));
    }
    let port = named.port.or_else(|| pod.first_port()).unwrap_or(80);
    let kubelet = Kubelet::of_node(api, pod.node()).await?;
    let way = pod.port_forward_to(&[&port.to_string()]);
    let host = format!("{}:{port}", pod.ip());
    let send = |request| async move {
        let mut tunnel = tunnel::open(&kubelet, &way).await?;
        match kubelet::exchange(tunnel.stream, &host, request).await {
            Ok(answer) => Ok(answer),
            // Why the port cannot be had says more than that its connection ended.
            Err(error) => Err(match tunnel.failure.try_recv() {
                Ok(failure) => KubeletError::Answer(failure),
                Err(_) => error,
            }),
        }
    };
    Ok(handed.answer(api, send).await)
}

/// What follows `/proxy` in a path as the client wrote it; `None` if nothing does.
fn below<'a>(raw: &'a str, target: &Target) -> Option<&'a str> {
    // /api/v1/nodes/N/proxy or /api/v1/namespaces/NS/pods/P/proxy
    let parts = if target.namespace.is_empty() { 5 } else { 7 };
    let mut slashes = raw.match_indices('/').map(|(at, _)| at);
    slashes.nth(parts).map(|at| &raw[at..])
}

/// A directory is asked for with a slash, or its relative links would lead elsewhere.
fn with_slash(uri: &http::Uri) -> Response {
    let query = uri
        .query()
        .map_or_else(String::new, |query| format!("?{query}"));
    let location = format!("{}/{query}", uri.path());
    let mut response = respond::text(StatusCode::MOVED_PERMANENTLY, "");
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn unreachable(error: &KubeletError) -> ApiError {
    let mut text = format!("error trying to reach service: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    ApiError::unavailable(text)
}

impl<'a> Named<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return Err(Self::invalid(text)),
        };
        if scheme == "https" {
            let message =
                format!("invalid proxy request {text:?}: https is not there yet, use http");
            return Err(ApiError::bad_request(message));
        }
        let port = match port {
            "" => None,
            number => Some(number.parse().map_err(|_| Self::invalid(text))?),
        };
        if name.is_empty() || port == Some(0) || !matches!(scheme, "" | "http") {
            return Err(Self::invalid(text));
        }
        Ok(Self { name, port })
    }

    fn invalid(text: &str) -> ApiError {
        ApiError::bad_request(format!(
            "invalid proxy request {text:?}: give NAME, NAME:PORT or http:NAME:PORT"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_have_a_scheme_and_a_port() {
        let named = |name, port| Named { name, port };
        for (text, expected) in [
            ("web", named("web", None)),
            ("web:8080", named("web", Some(8080))),
            ("http:web:8080", named("web", Some(8080))),
            ("http:web:", named("web", None)),
        ] {
            assert_eq!(Named::parse(text).unwrap(), expected, "{text}");
        }
        for wrong in [
            "",
            ":80",
            "web:0",
            "web:http",
            "ftp:web:80",
            "https:web:1",
            "a:b:c:d",
        ] {
            assert_eq!(Named::parse(wrong).unwrap_err().code, 400, "{wrong}");
        }
    }
}
