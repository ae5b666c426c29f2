//! What a single request may cost: its head's size and its time. (The size of bodies: [`crate::body`].)

use std::time::Duration;

use axum::response::Response;
use control_plane_registry::ApiError;
use control_plane_registry::errors::Result;
use http::request::Parts;

use crate::query::Query;

/// Refuses a head that is too large.
///
/// # Errors
/// 414 for the path with the query, 431 for the headers.
pub fn check_head(head: &Parts, bytes: usize) -> Result<()> {
    let uri = &head.uri;
    let line = uri.path().len() + uri.query().map_or(0, str::len);
    if line > bytes {
        return Err(ApiError::uri_too_long(bytes));
    }
    let headers = head.headers.iter();
    let size: usize = headers.map(|(n, v)| n.as_str().len() + v.len()).sum();
    if size > bytes {
        return Err(ApiError::headers_too_large(bytes));
    }
    Ok(())
}

/// How long a request may take: what the client asks for in `timeout`, but not more than the server allows.
///
/// # Errors
/// 400 for a timeout that is no duration.
pub fn time_for(query: Option<&str>, most: Duration) -> Result<Duration> {
    if !query.is_some_and(|q| q.contains("timeout=")) {
        return Ok(most);
    }
    let query = Query::parse(query);
    let asked = match query.get("timeout") {
        "" => return Ok(most),
        text => parse_duration(text).ok_or_else(|| {
            ApiError::bad_request(format!(
                "invalid timeout specified in the request URL - {text:?} is no duration; give one as in 30s or 1m30s"
            ))
        })?,
    };
    Ok(if asked.is_zero() {
        most
    } else {
        asked.min(most)
    })
}

/// The answer, or a `Status` that it took too long.
///
/// # Errors
/// 504 after `time`. Whether a write was done by then is not known.
pub async fn within(time: Duration, answer: impl Future<Output = Response>) -> Result<Response> {
    let timeout = tokio::time::timeout(time, answer).await;
    timeout.map_err(|_| ApiError::timeout())
}

/// Go's `time.ParseDuration`, without signs: `90s`, `1m30s`, `250ms`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = rest.split_at(end.unwrap_or(rest.len()));
        seconds += number
            * match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = after;
    }
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|_| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_ask_for_less_time_and_not_for_more() {
        let most = Duration::from_secs(60);
        for (query, want) in [
            (None, Some(60_000)),
            (Some("timeout=32s"), Some(32_000)),
            (Some("a=b&timeout=1m0.5s"), Some(60_000)),
            (Some("timeout=1500ms"), Some(1_500)),
            (Some("timeout=0"), Some(60_000)),
            (Some("timeout="), Some(60_000)),
            (Some("timeoutSeconds=5"), Some(60_000)),
            (Some("timeout=5"), None),
            (Some("timeout=1e999s"), None),
            (Some("timeout=-1s"), None),
        ] {
            let time = time_for(query, most).ok();
            assert_eq!(time.map(|t| t.as_millis()), want, "{query:?}");
        }
    }
}
