//! Traces: what a collector gets of requests, and what requests lose when it is away.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::body::Body;
use common::Server;
use control_plane_apiserver::{Settings, Tracing, TracingConfiguration};
use http::{Method, StatusCode};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::server::TcpIncoming;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector: hands on every span that it is sent.
struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for resource in request.into_inner().resource_spans {
            let of = resource.resource.unwrap().attributes;
            assert!(of.iter().any(|pair| pair.key == "service.name"));
            for span in resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                let _ = self.0.send(span);
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector() -> (SocketAddr, mpsc::UnboundedReceiver<Span>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, spans) = mpsc::unbounded_channel();
    let served = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Collector(sender)))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(served);
    (address, spans)
}

async fn traced(endpoint: SocketAddr, rate: u32) -> (Server, Tracing) {
    let text = format!(
        "{{apiVersion: apiserver.config.k8s.io/v1, kind: TracingConfiguration, endpoint: '{endpoint}', samplingRatePerMillion: {rate}}}"
    );
    let tracing = Tracing::open(&TracingConfiguration::parse(&text).unwrap()).unwrap();
    let settings = Settings {
        tracing: Some(tracing.clone()),
        ..Settings::default()
    };
    (Server::start_with(settings).await, tracing)
}

/// Sends what is left, and answers all spans by name.
async fn sent(tracing: &Tracing, mut spans: mpsc::UnboundedReceiver<Span>) -> Vec<Span> {
    let tracing = tracing.clone();
    tokio::task::spawn_blocking(move || tracing.finish())
        .await
        .unwrap();
    let mut all = Vec::new();
    while let Ok(span) = spans.try_recv() {
        all.push(span);
    }
    all
}

fn attribute(span: &Span, name: &str) -> Option<Any> {
    let found = span.attributes.iter().find(|pair| pair.key == name)?;
    found.value.clone()?.value
}

fn text(span: &Span, name: &str) -> String {
    match attribute(span, name) {
        Some(Any::StringValue(text)) => text,
        _ => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_followed_into_the_store_within_its_clients_trace() {
    let (address, spans) = collector().await;
    let (server, tracing) = traced(address, 0).await;
    let headers = [
        ("traceparent", format!("00-{TRACE}-{PARENT}-01")),
        ("user-agent", "kubectl/v1.37".to_owned()),
    ];
    let headers = headers
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let body = json!({"metadata": {"name": "m"}}).to_string();
    let made = server.ask(Method::POST, MAPS, &headers, body).await;
    assert_eq!(made.status, StatusCode::CREATED);
    // Who says nothing, or that it is not traced, is not: the rate is 0.
    server.get(MAPS).await;
    let not = format!("00-{TRACE}-{PARENT}-00");
    server
        .ask(Method::GET, MAPS, &[("traceparent", &not)], Body::empty())
        .await;
    let spans = sent(&tracing, spans).await;
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    let request = "POST /api/v1/namespaces/{:namespace}/configmaps";
    assert_eq!(names, ["store create", request]);
    let [store, request] = spans.as_slice() else {
        panic!("two spans");
    };
    assert_eq!(hex(&request.trace_id), TRACE);
    assert_eq!(hex(&request.parent_span_id), PARENT);
    assert_eq!(
        (&store.trace_id, &store.parent_span_id),
        (&request.trace_id, &request.span_id)
    );
    assert!(store.start_time_unix_nano >= request.start_time_unix_nano);
    assert_eq!(text(store, "k8s.resource"), "configmaps");
    for (name, value) in [
        ("k8s.verb", "create"),
        ("k8s.resource", "configmaps"),
        ("k8s.namespace", "default"),
        ("user_agent.original", "kubectl/v1.37"),
        ("enduser.id", "system:anonymous"),
        ("audit-id", made.header("audit-id")),
    ] {
        assert_eq!(text(request, name), value, "{name}");
    }
    let code = attribute(request, "http.response.status_code");
    assert_eq!(code, Some(Any::IntValue(201)));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_full_rate_everybody_is_traced_and_bad_parents_begin_a_trace() {
    let (address, spans) = collector().await;
    let (server, tracing) = traced(address, 1_000_000).await;
    server.get(&format!("{MAPS}/nobody")).await;
    let headers = [("traceparent", "00-nonsense-01")];
    server
        .ask(Method::GET, "/healthz/x", &headers, Body::empty())
        .await;
    let spans = sent(&tracing, spans).await;
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    let get = "GET /api/v1/namespaces/{:namespace}/configmaps/{:name}";
    assert_eq!(names, [get, "GET /healthz"]);
    assert!(spans.iter().all(|span| span.parent_span_id.is_empty()));
    assert_ne!(spans[0].trace_id, spans[1].trace_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_waits_for_a_collector_that_is_away_or_does_not_answer() {
    // One that takes connections and never says a word.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let gone: SocketAddr = "127.0.0.1:9".parse().unwrap();
    for endpoint in [silent, gone] {
        let (server, _tracing) = traced(endpoint, 1_000_000).await;
        let began = Instant::now();
        // More than the queue of spans holds.
        for _ in 0..3000 {
            assert_eq!(server.get("/version").await.status, StatusCode::OK);
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(20), "{took:?}");
    }
}
