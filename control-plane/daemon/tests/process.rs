//! The program as a user runs it: it starts, serves, refuses what is dangerous, ends watches on SIGTERM and comes back
//! with what it had.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Killed if the test ends before it does.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fairlead-control-plane"));
    command
        .arg("--data-dir")
        .arg(dir)
        .args(args)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// A port that is free now.
fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

/// Starts the daemon and waits until it says that it is ready.
fn start(dir: &Path, address: SocketAddr) -> Daemon {
    let daemon = command(dir, &["--listen", &address.to_string()])
        .stderr(Stdio::null())
        .spawn()
        .expect("the daemon");
    let daemon = Daemon(daemon);
    let give_up = Instant::now() + Duration::from_secs(20);
    while !matches!(ask(address, "GET", "/readyz", ""), Some((200, _))) {
        assert!(Instant::now() < give_up, "not ready within 20 s");
        std::thread::sleep(Duration::from_millis(50));
    }
    daemon
}

/// One request on a connection of its own.
fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = send(address, method, path, body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let code = answer.split(' ').nth(1)?.parse().ok()?;
    Some((code, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

fn send(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(head.as_bytes()).ok()?;
    Some(stream)
}

fn terminate(daemon: &Daemon) {
    let pid = daemon.0.id().to_string();
    let killed = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(killed.expect("kill runs").success());
}

fn fails(dir: &Path, args: &[&str]) -> String {
    let Output { status, stderr, .. } = command(dir, args).output().expect("the daemon");
    assert!(!status.success());
    String::from_utf8(stderr).expect("UTF-8")
}

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
