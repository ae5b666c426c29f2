//! Large answers go out compressed to those who accept it, as kube-apiserver does: gzip above 128 KiB.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, header};
use hyper::body::Frame;

/// Smaller bodies cost less on the wire than in the processor.
const FROM: u64 = 128 * 1024;
/// So much is compressed in one go.
const PIECE: usize = 64 * 1024;
/// Less is not worth a chunk of its own.
const SENT_FROM: usize = 8 * 1024;

/// Whether the client reads gzip.
pub fn is_accepted(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let named = matches!(parts.next(), Some("gzip" | "*"));
            // Zero means: not this one (RFC 9110, section 12.4.2).
            let zero = |p: &str| p.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
            named && !parts.any(zero)
        })
}

/// The response, compressed as it is sent if its body is large enough.
pub fn gzip(response: Response) -> Response {
    let size = response.body().size_hint().exact();
    if size.is_none_or(|n| n <= FROM) || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let headers = &mut parts.headers;
    headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::new(Packed::new(body)))
}

/// A body that is compressed piece by piece: of a list of a hundred megabytes no more than a piece is in memory.
struct Packed {
    body: Body,
    /// What the body gave and is not compressed yet.
    rest: Bytes,
    /// Gone when its last bytes are sent.
    encoder: Option<GzEncoder<Vec<u8>>>,
    /// A piece takes half a millisecond: others get their turn before the next.
    pause: bool,
}

impl Packed {
    fn new(body: Body) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())),
            pause: false,
        }
    }

    /// Compresses the next piece; what is to be sent, if that is much already.
    fn pack(&mut self) -> io::Result<Option<Bytes>> {
        let Some(encoder) = &mut self.encoder else {
            return Ok(None);
        };
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        encoder.write_all(&piece)?;
        self.pause = true;
        let packed = encoder.get_mut();
        Ok((packed.len() >= SENT_FROM).then(|| std::mem::take(packed).into()))
    }
}

impl HttpBody for Packed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = |bytes: Bytes| Poll::Ready(Some(Ok(Frame::data(bytes))));
        let failed = |error| Poll::Ready(Some(Err(axum::Error::new(error))));
        loop {
            if std::mem::take(&mut self.pause) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !self.rest.is_empty() {
                match self.pack() {
                    Ok(Some(packed)) => return frame(packed),
                    Ok(None) => continue,
                    Err(error) => return failed(error),
                }
            }
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                // Trailers are none of ours.
                Some(Ok(more)) => self.rest = more.into_data().unwrap_or_default(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    return match self.encoder.take().map(GzEncoder::finish) {
                        Some(Ok(end)) => frame(end.into()),
                        Some(Err(error)) => failed(error),
                        None => Poll::Ready(None),
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_unpacks_to_what_was_there() {
        for size in [FROM as usize, FROM as usize + 1, 5 * PIECE + 7] {
            let text: Vec<u8> = (0..size).map(|at| (at * at / 7) as u8).collect();
            let response = gzip(Response::new(Body::from(text.clone())));
            let packed = response.headers().contains_key(header::CONTENT_ENCODING);
            assert_eq!(packed, size as u64 > FROM, "{size}");
            let body = axum::body::to_bytes(response.into_body(), usize::MAX);
            let sent = body.await.unwrap();
            if !packed {
                assert_eq!(sent, text);
                continue;
            }
            let mut read = Vec::new();
            let mut decoder = flate2::read::GzDecoder::new(&*sent);
            io::Read::read_to_end(&mut decoder, &mut read).unwrap();
            assert_eq!(read, text, "{size}");
        }
    }

    #[test]
    fn what_clients_accept() {
        for (text, want) in [
            ("gzip", true),
            ("identity", false),
            ("deflate, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("br, *", true),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, text.parse().unwrap());
            assert_eq!(is_accepted(&headers), want, "{text}");
        }
        assert!(!is_accepted(&HeaderMap::new()));
    }
}
