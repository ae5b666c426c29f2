//! The backend pod's process: answers requests, closes connections first, swallows streams, counts datagrams.
//!
//! It is a process of its own, as a pod is, on the same core as the client.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use crate::client::BUFFER;
use crate::process::be_ready;

/// Port of the service that answers each request on a kept connection.
pub const ANSWER_PORT: u16 = 8080;
/// Port of the service that answers one request and closes.
pub const CLOSE_PORT: u16 = 8081;
/// Port of the service that reads and throws away.
pub const SINK_PORT: u16 = 8082;
/// UDP port that live frames are sent to; they are dropped before. Whatever else comes there is sent back.
pub const PACKET_PORT: u16 = 8083;
/// UDP port that counts datagrams.
pub const DATAGRAM_PORT: u16 = 8084;

/// Bytes of a request and of its answer.
pub const MESSAGE_LEN: usize = 64;

/// Listens on `addresses` and serves until nobody needs it.
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
        for (port, handle) in [
            (PACKET_PORT, send_back as fn(&UdpSocket) -> io::Result<()>),
            (DATAGRAM_PORT, count),
        ] {
            let address = SocketAddr::new(address, port);
            let socket =
                UdpSocket::bind(address).with_context(|| format!("listen on {address}"))?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            thread::spawn(move || handle(&socket));
        }
    }
    be_ready()
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

fn send_back(socket: &UdpSocket) -> io::Result<()> {
    let mut message = [0; MESSAGE_LEN];
    loop {
        let (len, from) = socket.recv_from(&mut message)?;
        // A client that went away measures nothing.
        let _ = socket.send_to(&message[..len], from);
    }
}

/// Counts each client's datagrams; one of eight bytes is a mark, and is answered with itself and the count so far.
fn count(socket: &UdpSocket) -> io::Result<()> {
    let mut message = [0; MESSAGE_LEN];
    let mut counts = HashMap::new();
    loop {
        let (len, from) = socket.recv_from(&mut message)?;
        let received = counts.entry(from).or_insert(0_u64);
        if len == 8 {
            let mut answer = [0; 16];
            answer[..8].copy_from_slice(&message[..8]);
            answer[8..].copy_from_slice(&received.to_be_bytes());
            // As above.
            let _ = socket.send_to(&answer, from);
        } else {
            *received += 1;
        }
    }
}

fn swallow(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while matches!(stream.read(&mut buffer), Ok(n) if n > 0) {}
}
