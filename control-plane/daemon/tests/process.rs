//! The program as a user runs it: it starts, serves, refuses what is dangerous, ends watches on SIGTERM and comes back
//! with what it had.

mod common;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::{ask, fails, free_port, send, start, terminate};

#[test]
fn it_ends_watches_on_sigterm_and_comes_back_with_what_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let address = free_port();
    let mut daemon = start(dir.path(), address);
    let maps = "/api/v1/namespaces/default/configmaps";
    let body = r#"{"metadata":{"name":"m"},"data":{"a":"b"}}"#;
    assert_eq!(ask(address, "POST", maps, body).unwrap().0, 201);
    let watch = send(address, "GET", &format!("{maps}?watch=true"), "").unwrap();
    let mut lines = BufReader::new(watch).lines();
    let added = lines.find(|line| line.as_ref().unwrap().contains("ADDED"));
    assert!(added.is_some());
    terminate(&daemon);
    let began = Instant::now();
    // The body ends as a body should: with the last, empty chunk.
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(
        rest.iter()
            .rev()
            .find(|l| !l.is_empty())
            .map(String::as_str),
        Some("0")
    );
    assert!(daemon.0.wait().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(5));
    let _again = start(dir.path(), address);
    let (code, body) = ask(address, "GET", &format!("{maps}/m"), "").unwrap();
    assert_eq!(code, 200);
    assert!(body.contains(r#""a":"b""#), "{body}");
}

#[test]
fn it_says_what_is_wrong_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let said = fails(dir.path(), &["--listen", "0.0.0.0:0"]);
    assert!(
        said.contains("--dangerously-serve-plaintext-to-network"),
        "{said}"
    );
    let said = fails(dir.path(), &["--development-link", "10.0.0.1:1"]);
    assert!(said.contains("172.31.240.0/24"), "{said}");
    let said = fails(dir.path(), &["--service-cidr", "10.0.0.0/16,10.1.0.0/16"]);
    assert!(said.contains("service CIDRs"), "{said}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let said = fails(dir.path(), &["--listen", &taken]);
    assert!(
        said.contains(&format!("cannot listen on {taken}")),
        "{said}"
    );
    let address = free_port();
    let _running = start(dir.path(), address);
    let said = fails(dir.path(), &["--listen", "127.0.0.1:0"]);
    assert!(said.contains("open in another process"), "{said}");
}
