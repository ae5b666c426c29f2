//! What one request may cost, and how the server says that it is too much; how it is asked how it is.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use common::Server;
use control_plane_apiserver::{Limits, Settings};
use http::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_with_a_status() {
    let server = Server::start().await;
    let long = "x".repeat(128 * 1024 + 1);
    let answer = server
        .get(&format!("{MAPS}?labelSelector={}", &long[..60_000]))
        .await;
    assert_ne!(answer.status, StatusCode::URI_TOO_LONG);
    let headers = [("x-large", long.as_str())];
    let answer = server.ask(Method::GET, MAPS, &headers, Body::empty()).await;
    assert_eq!(answer.status.as_u16(), 431);
    let status = answer.json();
    assert_eq!(status["kind"], "Status");
    assert_eq!(
        status["message"],
        "Request header fields too large: limit is 131072"
    );
    let limits = Limits {
        header_bytes: 100,
        ..Limits::default()
    };
    let small = Server::start_with(Settings {
        limits,
        ..Settings::default()
    })
    .await;
    let answer = small
        .get(&format!("{MAPS}?labelSelector={}", &long[..200]))
        .await;
    assert_eq!(answer.status, StatusCode::URI_TOO_LONG);
    assert_eq!(
        answer.json()["message"],
        "Request URI too long: limit is 100"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_too_long_is_given_up_and_a_watch_is_not() {
    let limits = Limits {
        request_timeout: Duration::from_secs(1),
        ..Limits::default()
    };
    let server = Server::start_with(Settings {
        limits,
        ..Settings::default()
    })
    .await;
    // A body that never comes.
    let never = Body::from_stream(futures::stream::pending::<std::io::Result<Bytes>>());
    let began = Instant::now();
    let answer = server.ask(Method::POST, MAPS, &[], never).await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(answer.json()["reason"], "Timeout");
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(5),
        "{took:?}"
    );
    // The client may want to know earlier.
    let never = Body::from_stream(futures::stream::pending::<std::io::Result<Bytes>>());
    let began = Instant::now();
    let answer = server
        .ask(Method::POST, &format!("{MAPS}?timeout=100ms"), &[], never)
        .await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(began.elapsed() < Duration::from_secs(1));
    let answer = server.get(&format!("{MAPS}?timeout=soon")).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);

    let mut watch = server.watch(&format!("{MAPS}?watch=true"), &[]).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    server
        .post(MAPS, json!({"metadata": {"name": "late"}}))
        .await;
    assert_eq!(
        watch.next().await.unwrap()["object"]["metadata"]["name"],
        "late"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_compressed_for_those_who_accept_it() {
    let server = Server::start().await;
    for at in 0..4 {
        let map =
            json!({"metadata": {"name": format!("m{at}")}, "data": {"t": "text ".repeat(10_000)}});
        server.post(MAPS, map).await;
    }
    let plain = server.get(MAPS).await;
    assert!(plain.body.len() > 200_000 && plain.header("content-encoding").is_empty());
    let gzip = [("accept-encoding", "gzip")];
    let packed = server.ask(Method::GET, MAPS, &gzip, Body::empty()).await;
    assert_eq!(packed.header("content-encoding"), "gzip");
    assert_eq!(packed.header("vary"), "Accept-Encoding");
    assert!(packed.body.len() < 20_000, "{}", packed.body.len());
    let mut text = Vec::new();
    let mut reader = flate2::read::GzDecoder::new(packed.body.as_slice());
    std::io::Read::read_to_end(&mut reader, &mut text).unwrap();
    assert_eq!(text, plain.body);
    let one = server
        .ask(Method::GET, &format!("{MAPS}/m0"), &gzip, Body::empty())
        .await;
    assert_eq!(
        one.header("content-encoding"),
        "",
        "50 kB are sent as they are"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_are_named_and_can_be_left_out() {
    let server = Server::start().await;
    let verbose = server.get("/readyz?verbose").await;
    assert_eq!(
        verbose.text(),
        "[+]ping ok\n[+]etcd ok\n[+]watch-cache ok\n[+]shutdown ok\nreadyz check passed\n"
    );
    assert_eq!(server.get("/livez/ping").await.text(), "ok");
    assert_eq!(
        server.get("/livez/nothing").await.status,
        StatusCode::NOT_FOUND
    );
    let excluded = server
        .get("/livez?verbose&exclude=etcd&exclude=nothing")
        .await;
    assert_eq!(
        excluded.text(),
        "[+]ping ok\n[+]etcd excluded: ok\nwarn: some health checks cannot be excluded: no matches for \"nothing\"\nlivez check passed\n"
    );
    server.stop.send_replace(true);
    let stopping = server.get("/readyz").await;
    assert_eq!(stopping.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        stopping
            .text()
            .contains("[-]shutdown failed: the server is about to end")
    );
    assert_eq!(server.get("/livez").await.text(), "ok");
    assert_eq!(server.get("/readyz?exclude=shutdown").await.text(), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_the_names_of_kube_apiserver() {
    let server = Server::start().await;
    server.post(MAPS, json!({"metadata": {"name": "m"}})).await;
    server.get(&format!("{MAPS}/none")).await;
    let mut watch = server.watch(&format!("{MAPS}?watch=true"), &[]).await;
    watch.next().await;
    let metrics = server.get("/metrics").await.text();
    for line in [
        "apiserver_request_total{verb=\"POST\",group=\"\",version=\"v1\",resource=\"configmaps\",subresource=\"\",scope=\"resource\",component=\"apiserver\",code=\"201\"} 1",
        "apiserver_request_total{verb=\"GET\",group=\"\",version=\"v1\",resource=\"configmaps\",subresource=\"\",scope=\"resource\",component=\"apiserver\",code=\"404\"} 1",
        "apiserver_request_duration_seconds_count{verb=\"POST\",group=\"\",version=\"v1\",resource=\"configmaps\",subresource=\"\",scope=\"resource\",component=\"apiserver\"} 1",
        "apiserver_current_inflight_requests{request_kind=\"mutating\"} 0",
        "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1",
        "apiserver_longrunning_requests{verb=\"WATCH\",group=\"\",version=\"v1\",resource=\"configmaps\",subresource=\"\",scope=\"namespace\",component=\"apiserver\"} 1",
        "apiserver_watch_events_total{group=\"\",version=\"v1\",resource=\"configmaps\"} 1",
        "etcd_request_duration_seconds_count{operation=\"create\",group=\"\",resource=\"configmaps\"} 1",
        "apiserver_storage_objects{group=\"\",resource=\"configmaps\"} 1",
        "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"node-high\"} 98",
    ] {
        assert!(metrics.contains(&format!("{line}\n")), "{line}\n{metrics}");
    }
}

/// A raw connection, since a client library would hide what happens to it.
struct Raw(TcpStream);

impl Raw {
    async fn send(&mut self, request: &str) {
        self.0.write_all(request.as_bytes()).await.unwrap();
    }

    /// Everything until `end` was read, or the connection ended.
    async fn read_until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&text).contains(end) {
            let read = tokio::time::timeout(Duration::from_secs(5), self.0.read(&mut buffer)).await;
            match read.expect("something within five seconds").unwrap_or(0) {
                0 => break,
                got => text.extend_from_slice(&buffer[..got]),
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_answers_what_is_open_and_sends_watchers_elsewhere() {
    let server = Server::start().await;
    let (address, serving) = server.listen().await;
    let connect = async || Raw(TcpStream::connect(address).await.unwrap());
    let (mut watching, mut writing, mut idle) = (connect().await, connect().await, connect().await);
    watching
        .send(&format!(
            "GET {MAPS}?watch=true&allowWatchBookmarks=true HTTP/1.1\r\nhost: s\r\n\r\n"
        ))
        .await;
    watching.read_until("\r\n\r\n").await;
    idle.send("GET /livez HTTP/1.1\r\nhost: s\r\n\r\n").await;
    idle.read_until("ok").await;
    // Half a request is open when the end begins.
    let body = r#"{"metadata":{"name":"last"}}"#;
    let (first, second) = body.split_at(10);
    writing
        .send(&format!(
            "POST {MAPS} HTTP/1.1\r\nhost: s\r\ncontent-length: {}\r\n\r\n{first}",
            body.len()
        ))
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.stop.send_replace(true);
    let rest = watching.read_until("\r\n0\r\n").await;
    assert!(rest.contains("BOOKMARK"), "{rest}");
    writing.send(second).await;
    let answer = writing.read_until("last").await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert_eq!(
        idle.read_until("never").await,
        "",
        "an idle connection is closed"
    );
    let ended = tokio::time::timeout(Duration::from_secs(5), serving).await;
    ended.expect("the server ends").unwrap().unwrap();
    assert!(
        TcpStream::connect(address).await.is_err(),
        "nobody listens any more"
    );
}
