//! A server that is too busy is asked again when it says, and once more after a while if it does not.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{Request, Response, StatusCode};
use kube::client::Body;
use tokio::time::Sleep;
use tower::BoxError;
use tower::retry::Policy;
use tracing::warn;

/// A server that asks for more is not believed.
const LONGEST: Duration = Duration::from_secs(300);

/// Sends a request again after `Retry-After`, as often as the answer has it (429 and 503, as
/// <https://kubernetes.io/docs/concepts/cluster-administration/flow-control/> and RFC 9110 section 10.2.3 say). Every
/// other failure goes to who asked: they have a backoff of their own.
#[derive(Clone, Copy, Debug)]
pub struct Patience;

impl<B> Policy<Request<Body>, Response<B>, BoxError> for Patience {
    type Future = Sleep;

    fn retry(
        &mut self,
        request: &mut Request<Body>,
        result: &mut Result<Response<B>, BoxError>,
    ) -> Option<Sleep> {
        let response = result.as_ref().ok()?;
        let wait = retry_after(response)?;
        let (status, path) = (response.status().as_u16(), request.uri().path());
        warn!(status, path, ?wait, "the API server is busy: asking again");
        Some(tokio::time::sleep(wait + spread(wait)))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        let mut copy = Request::new(request.body().try_clone()?);
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        *copy.headers_mut() = request.headers().clone();
        *copy.extensions_mut() = request.extensions().clone();
        Some(copy)
    }
}

/// The seconds that a busy server asks for.
fn retry_after<B>(response: &Response<B>) -> Option<Duration> {
    let busy = [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::SERVICE_UNAVAILABLE,
    ];
    if !busy.contains(&response.status()) {
        return None;
    }
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    Some(Duration::from_secs(seconds.parse().ok()?).min(LONGEST))
}

/// Up to a quarter more: all nodes may have been told the same.
fn spread(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.0..0.25))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, retry_after: Option<&str>) -> Response<()> {
        let mut response = Response::builder().status(status);
        if let Some(text) = retry_after {
            response = response.header(RETRY_AFTER, text);
        }
        response.body(()).unwrap()
    }

    #[test]
    fn only_a_busy_server_that_says_when_is_asked_again_at_once() {
        for (status, header, expected) in [
            (429, Some("7"), Some(7)),
            (503, Some("0"), Some(0)),
            (429, Some("99999"), Some(300)),
            (429, Some("-1"), None),
            (429, Some("Fri, 31 Dec 1999 23:59:59 GMT"), None),
            (429, None, None),
            (500, Some("7"), None),
            (200, Some("7"), None),
        ] {
            let wait = retry_after(&response(status, header));
            assert_eq!(
                wait,
                expected.map(Duration::from_secs),
                "{status} {header:?}"
            );
        }
        let wait = Duration::from_secs(8);
        assert!((0..1000).all(|_| spread(wait) < Duration::from_secs(2)));
    }
}
