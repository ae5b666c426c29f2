//! Whatever comes, the answer is a Status that blames the client, and the server goes on within its memory.
//!
//! The requests are drawn from a fixed seed, so that every run is the same; `PROPTEST_CASES` asks for another number of
//! them, `PROPTEST_RNG_SEED` for others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod draw;
mod protobuf;
mod text;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use common::{Answer, Server};
use http::Method;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};
use tokio::runtime::Runtime;

use crate::draw::Drawn;

/// What the process may hold at its most, in MiB: several times what it does.
const MEMORY_MAX: u64 = 256;

/// A server with some objects to hit.
struct Target {
    runtime: Runtime,
    server: Server,
}

impl Target {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(Server::start());
        let target = Self { runtime, server };
        for (path, object) in draw::objects() {
            let made = target.ask(Method::POST, &path, &[], object.to_string().into_bytes());
            // The namespace of the samples is there already, and some of them are of two versions.
            assert!(
                [201, 409].contains(&made.status.as_u16()),
                "{path}: {}",
                made.text()
            );
        }
        target
    }

    fn ask(&self, method: Method, uri: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        self.runtime.block_on(async {
            // A watch would go on; what it is told at once is enough.
            let ask = self.server.ask(method, uri, headers, body);
            tokio::time::timeout(Duration::from_secs(20), ask)
                .await
                .expect("an answer within 20 seconds")
        })
    }

    /// Sends what was drawn and looks at the answer.
    fn check(&self, drawn: &Drawn) -> TestCaseResult {
        let headers: Vec<(&str, &str)> = drawn
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let answer = self.ask(
            drawn.method.clone(),
            &drawn.uri,
            &headers,
            drawn.body.clone(),
        );
        let status = answer.status.as_u16();
        // An answer to HEAD has no body that could say more.
        if status < 400 || (drawn.method == Method::HEAD && status < 500) {
            return Ok(());
        }
        let text = answer.text();
        // What Kubernetes says of paths outside its API.
        if status == 404 && text == "404 page not found\n" {
            return Ok(());
        }
        let said: serde_json::Value = serde_json::from_str(&text)
            .map_err(|_| TestCaseError::fail(format!("{status}, no Status: {text}")))?;
        prop_assert_eq!(&said["kind"], "Status");
        prop_assert_eq!(&said["code"], status);
        // Clients wait for a version that has not happened; Kubernetes calls that a Timeout.
        let future = said["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge";
        prop_assert!(status < 500 || (status == 504 && future), "{}", text);
        Ok(())
    }

    fn run(&self, cases: u32, drawn: impl Strategy<Value = Drawn>) {
        let asked = std::env::var("PROPTEST_CASES")
            .ok()
            .and_then(|text| text.parse().ok());
        let config = Config {
            cases: asked.unwrap_or(cases),
            failure_persistence: None,
            ..Config::default()
        };
        let seed = std::env::var("PROPTEST_RNG_SEED")
            .ok()
            .and_then(|text| text.parse().ok());
        let seed: u64 = seed.unwrap_or(5);
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed.to_le_bytes().repeat(4));
        let mut runner = TestRunner::new_with_rng(config, rng);
        runner.run(&drawn, |drawn| self.check(&drawn)).unwrap();
        let ready = self.ask(Method::GET, "/readyz", &[], Vec::new());
        assert_eq!(ready.status, 200);
        let peak = peak_memory();
        assert!(peak < MEMORY_MAX, "it held {peak} MiB");
        println!("{cases} cases, at most {peak} MiB");
    }
}

/// The most that this process has held, in MiB (proc(5), `VmHWM`).
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap();
    kilobytes / 1024
}

#[test]
fn words_of_the_api_in_any_order_are_answered() {
    Target::start().run(1000, draw::requests());
}

#[test]
fn objects_with_wrong_values_anywhere_are_answered() {
    Target::start().run(600, draw::mutated_objects());
}

#[test]
fn protobuf_of_any_shape_is_answered() {
    Target::start().run(1000, protobuf::requests());
}

#[test]
fn yaml_of_any_shape_is_answered() {
    Target::start().run(600, text::yaml());
}

#[test]
fn paths_selectors_tokens_and_watches_are_answered() {
    Target::start().run(600, draw::reads());
}

/// Bytes that are no HTTP get no answer of the API, and do not disturb it.
#[test]
fn a_connection_with_garbage_harms_no_other() {
    let runtime = Runtime::new().unwrap();
    let (address, server) = runtime.block_on(async {
        let server = Server::start().await;
        (server.listen().await.0, server)
    });
    let mut runner = TestRunner::new_with_rng(
        Config {
            cases: 150,
            failure_persistence: None,
            ..Config::default()
        },
        TestRng::from_seed(RngAlgorithm::ChaCha, &[5; 32]),
    );
    let outcome = runner.run(&text::garbage(), |bytes| {
        let answer = talk(address, &bytes);
        let head = String::from_utf8_lossy(&answer).into_owned();
        let code = head.split(' ').nth(1).unwrap_or_default();
        prop_assert!(
            !code.starts_with('5'),
            "{:?} -> {}",
            String::from_utf8_lossy(&bytes),
            head
        );
        Ok(())
    });
    outcome.unwrap();
    let url = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(url.as_bytes()).unwrap();
    let mut well = String::new();
    stream.read_to_string(&mut well).unwrap();
    assert!(well.starts_with("HTTP/1.1 200"), "{well}");
    drop(server);
}

/// What the server says to these bytes until it ends the connection or is silent for a moment.
fn talk(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    // The server may have ended the connection before everything is written.
    drop(stream.write_all(bytes));
    drop(stream.shutdown(std::net::Shutdown::Write));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    answer
}
