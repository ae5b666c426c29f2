//! OpenTelemetry traces, as an option: a span for each request, and within it one for each transaction of the store and
//! each question to a webhook, sent by OTLP over gRPC.
//!
//! As kube-apiserver: <https://kubernetes.io/docs/concepts/cluster-administration/system-traces/>. A client that sends a
//! sampled `traceparent` (<https://www.w3.org/TR/trace-context/>) is always traced.

use std::time::{Duration, SystemTime};

use control_plane_registry::Kind;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{
    FutureExt, Span, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use serde::Deserialize;

use crate::access::User;
use crate::attributes::Attributes;

/// As long as the last spans may take on their way when the server ends.
const LAST_WITHIN: Duration = Duration::from_secs(2);

/// `TracingConfiguration` of `apiserver.config.k8s.io`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TracingConfiguration {
    api_version: String,
    kind: String,
    /// Where the collector listens, as `HOST:PORT`; gRPC without TLS.
    #[serde(default = "here")]
    endpoint: String,
    /// Of a million requests whose clients say nothing of traces, how many are traced.
    #[serde(default)]
    sampling_rate_per_million: u32,
}

/// Why there can be no traces.
#[derive(Debug, thiserror::Error)]
pub enum TracingError {
    #[error("it cannot be read as TracingConfiguration of apiserver.config.k8s.io")]
    Parse(#[from] serde_yaml_ng::Error),
    #[error(
        "it is {0}; give apiVersion: apiserver.config.k8s.io/v1 (or v1beta1) and kind: TracingConfiguration"
    )]
    Kind(String),
    #[error("samplingRatePerMillion: {0} is more than all; give at most 1000000")]
    Rate(u32),
    #[error("endpoint: {0:?} is no address; give HOST:PORT, as in localhost:4317")]
    Endpoint(String),
    #[error("no exporter can be made")]
    Exporter(#[from] ExporterBuildError),
}

/// Makes spans and sends them in batches, from a thread of its own: nobody waits for a collector, and what it does not
/// take in time is dropped.
#[derive(Clone, Debug)]
pub struct Tracing {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// The span of one request.
#[derive(Debug)]
pub struct RequestSpan(Context);

fn here() -> String {
    "localhost:4317".to_owned()
}

impl TracingConfiguration {
    /// Reads the YAML of `--tracing-config-file`.
    ///
    /// # Errors
    /// [`TracingError`] names the field.
    pub fn parse(text: &str) -> Result<Self, TracingError> {
        let read: Self = serde_yaml_ng::from_str(text)?;
        let group = read.api_version.strip_prefix("apiserver.config.k8s.io/");
        if !matches!(group, Some("v1" | "v1beta1" | "v1alpha1"))
            || read.kind != "TracingConfiguration"
        {
            let given = format!("{} {}", read.api_version, read.kind);
            return Err(TracingError::Kind(given));
        }
        if read.sampling_rate_per_million > 1_000_000 {
            return Err(TracingError::Rate(read.sampling_rate_per_million));
        }
        let authority = read.endpoint.parse::<http::uri::Authority>();
        if authority.is_ok_and(|authority| authority.port_u16().is_some()) {
            return Ok(read);
        }
        Err(TracingError::Endpoint(read.endpoint))
    }
}

impl Tracing {
    /// Begins to trace. Connects when the first spans are to be sent.
    ///
    /// # Errors
    /// [`TracingError::Exporter`]. Within a runtime of tokio only.
    pub fn open(configuration: &TracingConfiguration) -> Result<Self, TracingError> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(format!("http://{}", configuration.endpoint))
            .build()?;
        let rate = f64::from(configuration.sampling_rate_per_million) / 1_000_000.0;
        let sampler = Sampler::parent_based(Sampler::TraceIdRatioBased(rate));
        let resource = Resource::builder_empty()
            .with_service_name("apiserver")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(resource)
            .build();
        Ok(Self {
            tracer: provider.tracer("fairlead"),
            provider,
        })
    }

    /// Sends what is left.
    pub fn finish(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST_WITHIN) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }

    /// The span of a request that begins now.
    pub(crate) fn begin(
        &self,
        attributes: &Attributes,
        head: &Parts,
        audit_id: &HeaderValue,
    ) -> RequestSpan {
        let parent = TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &Headers(&head.headers));
        let name = format!("{} {}", head.method, pattern(attributes, &head.uri));
        let span = self
            .tracer
            .span_builder(name)
            .with_kind(SpanKind::Server)
            .start_with_context(&self.tracer, &parent);
        if span.span_context().is_sampled() {
            return RequestSpan(parent.with_span(described(span, attributes, head, audit_id)));
        }
        RequestSpan(parent.with_span(span))
    }

    /// Tells of a request to the store that is over now, where it belongs to a request that is traced.
    pub(crate) fn stored(&self, operation: &'static str, kind: &Kind, took: Duration) {
        let context = Context::current();
        if !context.span().span_context().is_sampled() {
            return;
        }
        let end = SystemTime::now();
        let mut span = self
            .tracer
            .span_builder(format!("store {operation}"))
            .with_kind(SpanKind::Client)
            .with_start_time(end - took)
            .with_attributes([
                KeyValue::new("db.operation.name", operation),
                KeyValue::new("k8s.group", kind.group),
                KeyValue::new("k8s.resource", kind.plural),
            ])
            .start_with_context(&self.tracer, &context);
        span.end_with_timestamp(end);
    }

    /// Follows a question to a webhook; an error of it is the span's.
    pub(crate) async fn asking<T, E: std::fmt::Display>(
        tracing: Option<&Self>,
        hook: &str,
        question: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let Some(tracing) = tracing else {
            return question.await;
        };
        let span = tracing
            .tracer
            .span_builder("admission webhook")
            .with_kind(SpanKind::Client)
            .with_attributes([KeyValue::new("webhook", hook.to_owned())])
            .start(&tracing.tracer);
        let context = Context::current_with_span(span);
        let answer = question.with_context(context.clone()).await;
        if let Err(error) = &answer {
            context.span().set_status(Status::error(error.to_string()));
        }
        context.span().end();
        answer
    }
}

impl RequestSpan {
    /// Does `work` as a part of the span.
    pub async fn within<F: Future>(&self, work: F) -> F::Output {
        work.with_context(self.0.clone()).await
    }

    pub fn end(self, user: Option<&User>, status: StatusCode) {
        let span = self.0.span();
        if let Some(user) = user {
            span.set_attribute(KeyValue::new("enduser.id", user.name.clone()));
        }
        let code = i64::from(status.as_u16());
        span.set_attribute(KeyValue::new("http.response.status_code", code));
        if status.is_server_error() {
            span.set_status(Status::error(status.to_string()));
        }
        span.end();
    }
}

/// Tells somebody else who is asked now which trace the question belongs to.
pub fn propagate(headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject(&mut HeadersMut(headers));
}

fn described<S: Span>(
    mut span: S,
    attributes: &Attributes,
    head: &Parts,
    audit_id: &HeaderValue,
) -> S {
    let agent = head.headers.get(header::USER_AGENT);
    let query = head.uri.query().unwrap_or_default();
    for (name, value) in [
        ("http.request.method", head.method.as_str()),
        ("url.path", head.uri.path()),
        ("url.query", query),
        (
            "user_agent.original",
            agent.and_then(|a| a.to_str().ok()).unwrap_or_default(),
        ),
        ("audit-id", audit_id.to_str().unwrap_or_default()),
        ("k8s.verb", attributes.verb),
        ("k8s.group", attributes.kind().map_or("", |kind| kind.group)),
        (
            "k8s.resource",
            attributes.kind().map_or("", |kind| kind.plural),
        ),
        ("k8s.subresource", attributes.subresource()),
        ("k8s.namespace", attributes.namespace()),
        ("k8s.name", attributes.name()),
    ] {
        if !value.is_empty() {
            span.set_attribute(KeyValue::new(name, value.to_owned()));
        }
    }
    span
}

/// The path with placeholders for what clients name, so that spans of one kind have one name.
fn pattern(attributes: &Attributes, uri: &http::Uri) -> String {
    let Some(target) = attributes.target() else {
        // What follows the first word of other paths may be anything.
        let first = uri.path().split('/').nth(1).unwrap_or_default();
        return format!("/{first}");
    };
    let kind = target.kind.0;
    let mut path = match kind.group {
        "" => format!("/api/{}", kind.version),
        group => format!("/apis/{group}/{}", kind.version),
    };
    if !target.namespace.is_empty() {
        path.push_str("/namespaces/{:namespace}");
    }
    path.push('/');
    path.push_str(kind.plural);
    if !target.name.is_empty() {
        path.push_str("/{:name}");
    }
    if !attributes.subresource().is_empty() {
        path.push('/');
        path.push_str(attributes.subresource());
    }
    path
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = HeaderName::from_bytes(key.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&value)) {
            self.0.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_names_the_field_that_is_wrong() {
        let of = |rest: &str| {
            let text = format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\n{rest}"
            );
            TracingConfiguration::parse(&text).map_err(|error| error.to_string())
        };
        assert_eq!(of("").unwrap().endpoint, "localhost:4317");
        let rate = of("samplingRatePerMillion: 1000001").unwrap_err();
        assert!(
            rate.starts_with("samplingRatePerMillion: 1000001"),
            "{rate}"
        );
        for wrong in ["https://a", "nowhere", "a:b"] {
            let error = of(&format!("endpoint: {wrong:?}")).unwrap_err();
            assert!(error.starts_with("endpoint: "), "{error}");
        }
        let other = TracingConfiguration::parse("apiVersion: v1\nkind: Policy");
        assert!(
            other
                .unwrap_err()
                .to_string()
                .starts_with("it is v1 Policy")
        );
    }
}
