//! The program as a process, and requests to it.
#![allow(dead_code, reason = "every test file uses its part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Killed if the test ends before it does.
pub struct Daemon(pub Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn command(dir: &Path, args: &[&str]) -> Command {
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
pub fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

/// Starts the daemon and waits until it says that it is ready.
pub fn start(dir: &Path, address: SocketAddr) -> Daemon {
    start_with(dir, address, &[])
}

/// As [`start`], with more flags.
pub fn start_with(dir: &Path, address: SocketAddr, args: &[&str]) -> Daemon {
    let daemon = command(dir, &["--listen", &address.to_string()])
        .args(args)
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
pub fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = send(address, method, path, body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let code = answer.split(' ').nth(1)?.parse().ok()?;
    Some((code, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

pub fn send(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(head.as_bytes()).ok()?;
    Some(stream)
}

pub fn terminate(daemon: &Daemon) {
    let pid = daemon.0.id().to_string();
    let killed = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(killed.expect("kill runs").success());
}

pub fn fails(dir: &Path, args: &[&str]) -> String {
    let Output { status, stderr, .. } = command(dir, args).output().expect("the daemon");
    assert!(!status.success());
    String::from_utf8(stderr).expect("UTF-8")
}
