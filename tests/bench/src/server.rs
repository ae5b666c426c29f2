//! The backend pod's process: answers requests, closes connections first, swallows streams.
//!
//! It is a process of its own, as a pod is, on the same core as the client; it ends when its standard input does,
//! so also when the bench is killed.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};

use crate::netns::Netns;

/// Port of the service that answers each request on a kept connection.
pub const ANSWER_PORT: u16 = 8080;
/// Port of the service that answers one request and closes.
pub const CLOSE_PORT: u16 = 8081;
/// Port of the service that reads and throws away.
pub const SINK_PORT: u16 = 8082;
/// UDP port that live frames are sent to; nobody listens, they are dropped before.
pub const PACKET_PORT: u16 = 8083;

/// Bytes of a request and of its answer.
pub const MESSAGE_LEN: usize = 64;

/// The running process; it goes when this does.
#[derive(Debug)]
pub struct Server {
    child: Child,
    _stdin: ChildStdin,
}

impl Server {
    /// Starts the process inside `netns` and waits until it listens on each of `addresses`.
    pub fn start(netns: &Netns, addresses: &[IpAddr]) -> Result<Self> {
        let program = std::env::current_exe().context("find the path of this program")?;
        let mut child = netns.run(|| {
            Command::new(program)
                .arg("serve")
                .args(addresses.iter().map(IpAddr::to_string))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("start the server")
        })?;
        let stdin = child
            .stdin
            .take()
            .context("stdin of a child that was asked for a pipe")?;
        let stdout = child
            .stdout
            .take()
            .context("stdout of a child that was asked for a pipe")?;
        let server = Self {
            child,
            _stdin: stdin,
        };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line != "ready\n" {
            bail!("the server on {addresses:?} did not start");
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process itself: listens on `addresses`, says so, and serves until its standard input ends.
pub fn serve(addresses: &[IpAddr]) -> Result<()> {
    for &address in addresses {
        for (port, handle) in [
            (ANSWER_PORT, answer as fn(TcpStream)),
            (CLOSE_PORT, answer_once),
            (SINK_PORT, swallow),
        ] {
            let socket = SocketAddr::new(address, port);
            let listener =
                TcpListener::bind(socket).with_context(|| format!("listen on {socket}"))?;
            use_cubic(&listener)?;
            thread::spawn(move || accept(&listener, handle));
        }
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Pacing, as bbr does it, would measure its timers. The machine's own setting stays as it is.
pub fn use_cubic(socket: &impl AsFd) -> Result<()> {
    setsockopt(socket, sockopt::TcpCongestion, &OsString::from("cubic"))
        .context("choose cubic for a socket")
}

fn accept(listener: &TcpListener, handle: fn(TcpStream)) {
    let one_shot = handle as usize == answer_once as fn(TcpStream) as usize;
    for stream in listener.incoming().flatten() {
        if one_shot {
            handle(stream);
        } else {
            thread::spawn(move || handle(stream));
        }
    }
}

fn answer(mut stream: TcpStream) {
    let mut message = [0; MESSAGE_LEN];
    if stream.set_nodelay(true).is_err() {
        return;
    }
    while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {}
}

/// Closes first, so that the TIME_WAIT is on this side, where the sysctl keeps them few.
fn answer_once(mut stream: TcpStream) {
    let mut message = [0; MESSAGE_LEN];
    if stream.read_exact(&mut message).is_ok() {
        // A client that went away measures nothing.
        let _ = stream.write_all(&message);
    }
}

fn swallow(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while matches!(stream.read(&mut buffer), Ok(n) if n > 0) {}
}
