//! Making answers.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use control_plane_registry::ApiError;
use http::{HeaderValue, StatusCode, header};
use serde_json::Value;

/// `application/json`, not to be kept by anybody on the way.
pub fn json(status: StatusCode, value: &Value) -> Response {
    bytes(status, value.to_string().into())
}

/// A body that is JSON already.
pub fn bytes(status: StatusCode, body: Bytes) -> Response {
    with_type(status, HeaderValue::from_static("application/json"), body)
}

/// A body that is JSON as it comes.
pub fn body<B>(status: StatusCode, body: B) -> Response
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    with_body(
        status,
        HeaderValue::from_static("application/json"),
        Body::new(body),
    )
}

pub fn with_type(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Response {
    with_body(status, content_type, Body::from(body))
}

fn with_body(status: StatusCode, content_type: HeaderValue, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    response
}

pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response {
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    with_type(status, plain, body.into())
}

/// A `Status` with what was wrong.
pub fn error(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if status.is_server_error() {
        tracing::warn!(code = error.code, %error, "request failed");
    }
    let mut response = json(status, &error.status());
    if error.retry_after > 0 {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, error.retry_after.into());
    }
    response
}

/// For paths that are nothing of the API.
pub fn page_not_found() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// Adds one `Warning` header for each text.
pub fn warn(mut response: Response, warnings: &[String]) -> Response {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}
