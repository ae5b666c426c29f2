//! Watches that end as soon as they begin are not begun again at once.
//!
//! A watch that ends without an error is begun anew without a pause by who watches; a server, or a proxy in front of it,
//! that ends each at once would be asked without end, by every node.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Request;
use kube::client::Body;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

/// Between the answer to one watch and the next request for the same objects, so that whoever is asked never sees less,
/// however long the way to it takes; up to as much again is added at random.
const SHORTEST: Duration = Duration::from_secs(1);

/// Holds watches back.
#[derive(Clone, Debug, Default)]
pub struct PaceLayer(Arc<Begun>);

/// When each watch was begun last, by the path of its request.
type Begun = Mutex<HashMap<String, Instant>>;

/// The service of [`PaceLayer`].
#[derive(Clone, Debug)]
pub struct Pace<S> {
    begun: Arc<Begun>,
    inner: S,
}

impl<S> Layer<S> for PaceLayer {
    type Service = Pace<S>;

    fn layer(&self, inner: S) -> Pace<S> {
        Pace {
            begun: self.0.clone(),
            inner,
        }
    }
}

impl<S, R> Service<Request<Body>> for Pace<S>
where
    S: Service<Request<Body>, Response = R, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = R;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<R, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that is ready goes with the request.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        if !is_watch(&request) {
            return Box::pin(inner.call(request));
        }
        let (begun, path) = (self.begun.clone(), request.uri().path().to_owned());
        let wait = wait_for(&begun, &path);
        Box::pin(async move {
            tokio::time::sleep(wait).await;
            let answer = inner.call(request).await?;
            let now = Instant::now();
            let begun = &mut *begun.lock().unwrap_or_else(PoisonError::into_inner);
            begun.entry(path).and_modify(|last| *last = now.max(*last));
            Ok(answer)
        })
    }
}

/// How long the watch of these objects must wait, which then counts as begun.
fn wait_for(begun: &Begun, path: &str) -> Duration {
    let mut begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    let last = begun.get(path).copied();
    let next = match last.filter(|last| *last + SHORTEST > now) {
        Some(last) => last + SHORTEST.mul_f64(rand::random_range(1.0..2.0)),
        None => now,
    };
    begun.insert(path.to_owned(), next);
    next.saturating_duration_since(now)
}

fn is_watch(request: &Request<Body>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query
        .split('&')
        .any(|word| matches!(word, "watch=true" | "watch=1"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_ends_at_once_begins_once_a_second_and_lists_and_other_watches_are_not_kept()
     {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let inner = tower::service_fn(move |_: Request<Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Ok::<_, BoxError>(()) }
        });
        let mut paced = PaceLayer::default().layer(inner);
        let request = |path: &str| Request::get(path).body(Body::empty()).unwrap();
        let began = Instant::now();
        for _ in 0..10 {
            paced
                .call(request("/api/v1/nodes?watch=true&x=1"))
                .await
                .unwrap();
        }
        let took = began.elapsed();
        assert!(took > 9 * SHORTEST && took < 18 * SHORTEST, "{took:?}");
        // Neither of these waits, nor the first after a pause.
        tokio::time::advance(2 * SHORTEST).await;
        let began = Instant::now();
        for path in [
            "/api/v1/nodes",
            "/api/v1/nodes?limit=500",
            "/api/v1/services?watch=1",
            "/api/v1/nodes?watch=1",
        ] {
            paced.call(request(path)).await.unwrap();
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(asked.load(Ordering::Relaxed), 14);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_slow_to_answer_has_its_second_too() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        let inner = tower::service_fn(move |_: Request<Body>| {
            // The request takes half a second to arrive, the first time.
            let mut noted = noted.lock().unwrap();
            let way = Duration::from_millis(if noted.is_empty() { 500 } else { 0 });
            noted.push(Instant::now() + way);
            async move {
                tokio::time::sleep(way).await;
                Ok::<_, BoxError>(())
            }
        });
        let mut paced = PaceLayer::default().layer(inner);
        for _ in 0..2 {
            let request = Request::get("/api/v1/nodes?watch=1").body(Body::empty());
            paced.call(request.unwrap()).await.unwrap();
        }
        let arrived = asked.lock().unwrap();
        assert!(arrived[1] - arrived[0] >= SHORTEST, "{arrived:?}");
    }
}
