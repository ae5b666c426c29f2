//! Watches as a chunked body: one line of JSON for each change.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use control_plane_registry::{Kind, Object, Watch, WatchItem, frame, frame_of};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::watch as signal;
use tokio::time::Sleep;

use crate::Api;
use crate::flow::Seat;
use crate::metrics::WatchGuard;
use crate::negotiate::Shape;
use crate::path::Target;
use crate::table::{self, Include};

/// A watch without `timeoutSeconds` ends after a time between this and twice this, so that watchers do not all come
/// back together.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);

/// What clients ask for has no bounds; the clock has.
const MAX_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);

/// One open watch.
struct Stream {
    kind: &'static Kind,
    watch: Watch,
    shape: Shape,
    include: Include,
    /// Made once: a timer for each event would cost more than the event.
    ends: Pin<Box<Sleep>>,
    stopping: BoxFuture<'static, ()>,
    done: bool,
    counted: WatchGuard,
    /// Held until the state at the beginning is told, which costs what a list costs.
    seat: Option<Arc<Seat>>,
}

/// How the watcher wants its objects.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub shape: Shape,
    pub include: Include,
}

/// The answer that goes on until the client leaves, the time is over, or the server stops.
pub fn stream(
    api: &Api,
    target: &Target,
    watch: Watch,
    form: Form,
    timeout: Option<u64>,
    seat: Option<Arc<Seat>>,
) -> Response {
    let kind = target.kind.0;
    let lasts = match timeout {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds).min(MAX_TIMEOUT),
        _ => DEFAULT_TIMEOUT.mul_f64(1.0 + rand::random::<f64>()),
    };
    let stream = Stream {
        kind,
        watch,
        shape: form.shape,
        include: form.include,
        ends: Box::pin(tokio::time::sleep(lasts)),
        stopping: stopped(api.stopping.clone()).boxed(),
        done: false,
        counted: api.metrics.watch(kind, !target.namespace.is_empty()),
        seat,
    };
    let chunks = futures::stream::unfold(stream, |mut stream| async {
        let chunk = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), stream))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    response
}

impl Stream {
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        if !self.watch.is_beginning() {
            self.seat = None;
        }
        let items = tokio::select! {
            items = self.watch.next() => Some(items?),
            () = &mut self.ends => None,
            () = &mut self.stopping => None,
        };
        let items = match items {
            Some(items) => items,
            None => self.last_word()?,
        };
        self.counted.sent(items.len());
        let mut lines = items.into_iter().map(|item| self.line(item));
        if lines.len() == 1 {
            return lines.next();
        }
        let mut chunk = Vec::new();
        for line in lines {
            chunk.extend_from_slice(&line);
        }
        Some(chunk.into())
    }

    fn last_word(&mut self) -> Option<Vec<WatchItem>> {
        self.done = true;
        self.watch.bookmark().map(|item| vec![item])
    }

    fn line(&self, item: WatchItem) -> Bytes {
        match item {
            WatchItem::Initial(object) => self.object("ADDED", &object),
            WatchItem::Change(kind, event) if self.shape == Shape::Object => event.frame(kind),
            WatchItem::Change(kind, event) => self.object(kind.word(), &event.object),
            WatchItem::Bookmark {
                revision,
                initial_end,
            } => frame(
                "BOOKMARK",
                self.bookmark(revision, initial_end).to_string().as_bytes(),
            ),
            WatchItem::Error(error) => frame("ERROR", error.status().to_string().as_bytes()),
        }
    }

    fn object(&self, word: &str, object: &Arc<Object>) -> Bytes {
        let shown = match self.shape {
            Shape::Object => return frame_of(word, object),
            Shape::Metadata => table::partial(&object.value()),
            Shape::Table => {
                let metadata = json!({"resourceVersion": object.revision.to_string()});
                table::make(self.kind, metadata, [object], self.include)
            }
        };
        frame(word, shown.to_string().as_bytes())
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> Value {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, version) = match self.shape {
            Shape::Object => (self.kind.kind, self.kind.api_version()),
            Shape::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
            Shape::Table => {
                let object = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
                let mut table = table::make(self.kind, metadata, [], self.include);
                table["rows"] = json!([{"cells": [], "object": object}]);
                return table;
            }
        };
        json!({"kind": kind, "apiVersion": version, "metadata": metadata})
    }
}

/// Waits until the server is to end.
async fn stopped(mut stopping: signal::Receiver<bool>) {
    // A sender that is gone says the same as one that says true.
    drop(stopping.wait_for(|stopping| *stopping).await);
}
