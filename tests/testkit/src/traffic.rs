//! Servers that say who they are and whom they see, and clients that ask them.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{Shutdown, shutdown};

use crate::{NetNs, Pod};

/// How long a client waits: far longer than any answer takes, far shorter than TCP's own patience.
const PATIENCE: Duration = Duration::from_secs(5);

/// A server on a thread, stopped when it is dropped.
#[derive(Debug)]
pub struct Server {
    pub addr: SocketAddr,
    served: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    listener: Option<TcpListener>,
}

/// What a server said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// The server's name.
    pub name: String,
    /// The client's address as the server sees it.
    pub client: SocketAddr,
    /// The server's address as the client's socket tells it (`getpeername`).
    pub peer: SocketAddr,
}

impl Server {
    /// A TCP server that greets each connection with its name and the client's address, then sends back what it gets.
    /// To be called where its socket shall be, such as in [`crate::Pod::run`].
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub fn tcp(addr: SocketAddr, name: &str) -> Result<Self> {
        let listener = TcpListener::bind(addr).with_context(|| format!("bind TCP {addr}"))?;
        let server = Self::new(listener.local_addr()?, Some(listener.try_clone()?));
        let (served, name) = (Arc::clone(&server.served), name.to_owned());
        thread::spawn(move || {
            // Shutting the listener down ends this.
            while let Ok((stream, client)) = listener.accept() {
                served.fetch_add(1, Ordering::SeqCst);
                let greeting = format!("{name} {client}\n");
                thread::spawn(move || echo(stream, &greeting));
            }
        });
        Ok(server)
    }

    /// A UDP server that answers each packet with its name, the client's address and the packet's length.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub fn udp(addr: SocketAddr, name: &str) -> Result<Self> {
        let socket = UdpSocket::bind(addr).with_context(|| format!("bind UDP {addr}"))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let server = Self::new(socket.local_addr()?, None);
        let (served, stop) = (Arc::clone(&server.served), Arc::clone(&server.stop));
        let name = name.to_owned();
        thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while !stop.load(Ordering::SeqCst) {
                let Ok((length, client)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                served.fetch_add(1, Ordering::SeqCst);
                let mut answer = format!("{name} {client}\n").into_bytes();
                // The same length back, so that a long packet gets a long answer.
                answer.resize(answer.len().max(length), b'.');
                // A client that is gone is its own affair.
                socket.send_to(&answer, client).ok();
            }
        });
        Ok(server)
    }

    /// Connections or packets so far.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    fn new(addr: SocketAddr, listener: Option<TcpListener>) -> Self {
        Self {
            addr,
            served: Arc::default(),
            stop: Arc::default(),
            listener,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(listener) = &self.listener {
            // Wakes the thread in accept(2); nothing can be done if it fails, and the process ends it anyway.
            shutdown(listener.as_raw_fd(), Shutdown::Both).ok();
        }
    }
}

/// Connects and reads the greeting.
///
/// # Errors
///
/// When the connection is refused, does not come within five seconds, or is closed before the greeting.
pub fn ask_tcp(addr: SocketAddr) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    greeting(&mut stream)
}

/// Reads a server's greeting from a connection.
///
/// # Errors
///
/// When it does not come within five seconds.
pub fn greeting(stream: &mut TcpStream) -> io::Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let peer = stream.peer_addr()?;
    let mut text = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        text.push(byte[0]);
    }
    parse(&text, peer)
}

/// Sends one packet of `length` bytes on a connected socket, so that only an answer from `addr` counts.
///
/// # Errors
///
/// When no answer comes within a second.
pub fn ask_udp(addr: SocketAddr, length: usize) -> io::Result<Answer> {
    let any: SocketAddr = if addr.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(addr)?;
    ask_udp_on(&socket, length)
}

/// As [`ask_udp`], on a socket that is connected already.
///
/// # Errors
///
/// When no answer comes within a second.
pub fn ask_udp_on(socket: &UdpSocket, length: usize) -> io::Result<Answer> {
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.send(&vec![b'?'; length])?;
    let mut buffer = vec![0; 65536];
    let received = socket.recv(&mut buffer)?;
    let line = buffer[..received]
        .split(|&byte| byte == b'\n')
        .next()
        .unwrap_or_default();
    parse(line, socket.peer_addr()?)
}

fn parse(line: &[u8], peer: SocketAddr) -> io::Result<Answer> {
    let text = String::from_utf8_lossy(line);
    let parsed = text.split_once(' ').and_then(|(name, client)| {
        Some(Answer {
            name: name.to_owned(),
            client: client.parse().ok()?,
            peer,
        })
    });
    parsed.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("`{text}` is no greeting"),
        )
    })
}

fn echo(mut stream: TcpStream, greeting: &str) {
    // A client that went away ends the copy: that is not the server's failure.
    if stream.write_all(greeting.as_bytes()).is_ok()
        && let Ok(mut reader) = stream.try_clone()
    {
        io::copy(&mut reader, &mut stream).ok();
    }
    stream.shutdown(std::net::Shutdown::Write).ok();
}

/// Where a client or a server runs.
pub trait Place {
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T;
}

impl Place for Pod {
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        Pod::run(self, work)
    }
}

impl Place for NetNs {
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        NetNs::run(self, work)
    }
}

/// Sends `bytes` one way by TCP and answers what arrived.
///
/// # Errors
///
/// When the connection cannot be made or stalls for ten seconds.
pub fn stream(
    from: &impl Place,
    to: &impl Place,
    listen: SocketAddr,
    connect: SocketAddr,
    bytes: &[u8],
) -> Result<Vec<u8>> {
    const STALLED: Option<Duration> = Some(Duration::from_secs(10));
    let listener = to.run(|| TcpListener::bind(listen))?;
    let length = bytes.len();
    let receiver = thread::spawn(move || -> Result<Vec<u8>> {
        let (mut stream, _) = listener.accept().context("accept")?;
        stream.set_read_timeout(STALLED)?;
        let mut arrived = Vec::with_capacity(length);
        stream.read_to_end(&mut arrived).context("receive")?;
        Ok(arrived)
    });
    from.run(|| -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&connect, PATIENCE).context("connect")?;
        stream.set_write_timeout(STALLED)?;
        stream.write_all(bytes).context("send")
    })?;
    receiver
        .join()
        .map_err(|_| anyhow!("the receiver panicked"))?
}

/// Bytes without a pattern that a shifted or doubled segment would keep.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
