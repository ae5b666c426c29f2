//! Slices of TCP work as a client pod does it: requests on a kept connection, new connections, a stream.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::netns::Netns;
use crate::server::{MESSAGE_LEN, use_cubic};
use crate::stats::median;

/// Nothing that is measured takes this long: a lost packet must fail the bench and not hang it.
const TIMEOUT: Duration = Duration::from_secs(5);
const BLOCK: usize = 64 << 10;

/// Requests on one kept connection.
#[derive(Debug)]
pub struct Requests {
    stream: TcpStream,
    latencies: Vec<f64>,
}

/// Connections to one address, each with one request.
#[derive(Debug)]
pub struct Connects<'a> {
    netns: &'a Netns,
    to: SocketAddr,
    latencies: Vec<f64>,
}

/// Bytes on one kept connection.
#[derive(Debug)]
pub struct Stream {
    stream: TcpStream,
    block: Vec<u8>,
}

impl Requests {
    pub fn new(netns: &Netns, to: SocketAddr) -> Result<Self> {
        Ok(Self {
            stream: open(netns, to)?,
            latencies: Vec::new(),
        })
    }

    /// Median latency of `count` requests and answers of 64 bytes, nanoseconds.
    pub fn slice(&mut self, count: usize) -> Result<f64> {
        let mut message = [b'r'; MESSAGE_LEN];
        self.latencies.clear();
        for _ in 0..count {
            let start = Instant::now();
            self.stream.write_all(&message)?;
            self.stream.read_exact(&mut message)?;
            self.latencies.push(start.elapsed().as_nanos() as f64);
        }
        Ok(median(&mut self.latencies))
    }
}

impl<'a> Connects<'a> {
    pub fn new(netns: &'a Netns, to: SocketAddr) -> Self {
        Self {
            netns,
            to,
            latencies: Vec::new(),
        }
    }

    /// Median latency of `connect()` over `count` connections, nanoseconds. Each connection then has one request and
    /// is closed by the server, outside the measured time.
    pub fn slice(&mut self, count: usize) -> Result<f64> {
        let (to, latencies) = (self.to, &mut self.latencies);
        latencies.clear();
        self.netns.run(|| {
            for _ in 0..count {
                latencies.push(connect_once(to)?.as_nanos() as f64);
            }
            Ok(median(latencies))
        })
    }
}

impl Stream {
    pub fn new(netns: &Netns, to: SocketAddr) -> Result<Self> {
        Ok(Self {
            stream: open(netns, to)?,
            block: vec![b's'; BLOCK],
        })
    }

    /// Nanoseconds a KiB, over `count` blocks of 64 KiB until the last byte is acknowledged.
    pub fn slice(&mut self, count: usize) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..count {
            self.stream.write_all(&self.block)?;
        }
        while unacknowledged(&self.stream)? > 0 {
            if start.elapsed() > TIMEOUT {
                bail!("the stream was not acknowledged within {TIMEOUT:?}");
            }
            thread::yield_now();
        }
        Ok(start.elapsed().as_nanos() as f64 / (count * BLOCK / 1024) as f64)
    }
}

fn open(netns: &Netns, to: SocketAddr) -> Result<TcpStream> {
    let (stream, _) = netns.run(|| connect_timed(to))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn connect_once(to: SocketAddr) -> Result<Duration> {
    let (mut stream, elapsed) = connect_timed(to)?;
    stream.write_all(&[b'c'; MESSAGE_LEN])?;
    let mut answer = Vec::with_capacity(MESSAGE_LEN);
    stream.read_to_end(&mut answer)?;
    if answer.len() != MESSAGE_LEN {
        bail!(
            "the server answered {} bytes instead of {MESSAGE_LEN}",
            answer.len()
        );
    }
    Ok(elapsed)
}

/// A connection and what `connect()` took.
fn connect_timed(to: SocketAddr) -> Result<(TcpStream, Duration)> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    use_cubic(&socket)?;
    let timeout = TimeVal::new(i64::try_from(TIMEOUT.as_secs())?, 0);
    setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
    let address = SockaddrStorage::from(to);
    let start = Instant::now();
    connect(socket.as_raw_fd(), &address).with_context(|| format!("connect to {to}"))?;
    let elapsed = start.elapsed();
    Ok((TcpStream::from(socket), elapsed))
}

/// Bytes that the peer has not acknowledged: `SIOCOUTQ` (tcp(7)).
fn unacknowledged(stream: &TcpStream) -> Result<i32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (SIOCOUTQ on a socket) writes one int to the pointer, which is a live local of that type.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    nix::errno::Errno::result(result).context("ask for the unacknowledged bytes")?;
    Ok(bytes)
}
