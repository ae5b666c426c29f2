//! Answers that hold something until they are sent: the seats of a long list are not free before its last byte is on
//! its way, and a watch is not complete before it ends.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

/// Shorter bodies go into the socket's buffer at once: nothing is held for them.
const SHORT: u64 = 64 * 1024;

struct Held<T> {
    body: Body,
    _kept: T,
}

/// The response, which keeps `kept` until its body is sent or given up.
pub fn until_sent<T: Send + Unpin + 'static>(response: Response, kept: Option<T>) -> Response {
    let size = response.body().size_hint().exact();
    match kept {
        Some(kept) if size.is_none_or(|size| size > SHORT) => {
            response.map(|body| Body::new(Held { body, _kept: kept }))
        }
        _ => response,
    }
}

impl<T: Unpin> HttpBody for Held<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
