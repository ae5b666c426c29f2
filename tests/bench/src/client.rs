//! Slices of work as a client pod does it: requests on a kept connection, new connections, a stream, datagrams.

use std::io::{IoSlice, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrStorage, connect, sendmmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use tests_figures::median;

use crate::netns::Netns;
use crate::server::{MESSAGE_LEN, use_cubic};

/// Nothing that is measured takes this long: a lost packet must fail the bench and not hang it.
const TIMEOUT: Duration = Duration::from_secs(5);
const BLOCK: usize = 64 << 10;
/// Datagrams of a burst: fewer than the queue of a TUN device takes (500).
const BURST: usize = 256;
/// Payload of a datagram that makes a packet of 64 bytes with its Ethernet, IPv4 and UDP headers.
const SMALL_DATAGRAM: usize = 22;
/// Bytes that a socket may queue: a burst, with what the kernel adds to each.
pub const BUFFER: usize = 1 << 20;
/// When a mark that was lost is sent again.
const MARK_TIMEOUT: Duration = Duration::from_millis(20);

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
    measured: Measured,
    latencies: Vec<f64>,
}

/// What of a connection is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Measured {
    /// `connect()` alone.
    Connect,
    /// From `connect()` to the end of the answer.
    Whole,
}

/// UDP in bursts, each of which is waited for.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
    mark: u64,
    /// What the server had counted when it was asked last.
    received: u64,
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
    pub fn new(netns: &'a Netns, to: SocketAddr, measured: Measured) -> Self {
        Self {
            netns,
            to,
            measured,
            latencies: Vec::new(),
        }
    }

    /// Median over `count` connections, nanoseconds. Each has one request and is closed by the server.
    pub fn slice(&mut self, count: usize) -> Result<f64> {
        let Self {
            netns,
            to,
            measured,
            latencies,
        } = self;
        latencies.clear();
        netns.run(|| {
            for _ in 0..count {
                let start = Instant::now();
                let connect = connect_once(*to)?;
                let time = match measured {
                    Measured::Connect => connect,
                    Measured::Whole => start.elapsed(),
                };
                latencies.push(time.as_nanos() as f64);
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

impl Datagrams {
    pub fn new(netns: &Netns, to: SocketAddr) -> Result<Self> {
        let local = unspecified(to);
        let socket = netns.run(|| Ok(UdpSocket::bind(local)?))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(MARK_TIMEOUT))?;
        setsockopt(&socket, sockopt::SndBuf, &BUFFER)?;
        Ok(Self {
            socket,
            mark: 0,
            received: 0,
        })
    }

    /// Nanoseconds a datagram, over a burst that the server has counted to its end.
    ///
    /// What was lost on the way counts as not sent: the figure is the cost of one that arrives.
    pub fn slice(&mut self) -> Result<f64> {
        let start = Instant::now();
        send_burst(&self.socket)?;
        let received = self.count(start)?;
        let elapsed = start.elapsed().as_nanos() as f64;
        let arrived = received - std::mem::replace(&mut self.received, received);
        if arrived == 0 {
            bail!("none of {BURST} datagrams arrived");
        }
        Ok(elapsed / arrived as f64)
    }

    /// Asks the server how many have come; it reads in order, so that its answer follows all that arrived.
    fn count(&mut self, start: Instant) -> Result<u64> {
        self.mark += 1;
        let mark = self.mark.to_be_bytes();
        while start.elapsed() < TIMEOUT {
            self.socket.send(&mark)?;
            let mut answer = [0; 16];
            while let Ok(16) = self.socket.recv(&mut answer) {
                let (of, count) = answer.split_at(8);
                if of == mark {
                    let count = count.try_into().expect("the rest of 16 bytes are eight");
                    return Ok(u64::from_be_bytes(count));
                }
            }
        }
        bail!("the server did not answer within {TIMEOUT:?}")
    }
}

fn send_burst(socket: &UdpSocket) -> Result<()> {
    let message = [b'u'; SMALL_DATAGRAM];
    let slices = [IoSlice::new(&message)];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BURST, None);
    let mut sent = 0;
    while sent < BURST {
        let parts = vec![&slices; BURST - sent];
        let addresses = vec![None; BURST - sent];
        sent += sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            parts,
            addresses,
            [],
            MsgFlags::empty(),
        )?
        .count();
    }
    Ok(())
}

/// Sends one datagram and waits for its answer, so that a connection tracker takes the flow for established.
pub fn exchange(netns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<()> {
    let socket = netns.run(|| Ok(UdpSocket::bind(from)?))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    // The second packet after an answer makes the flow assured.
    for _ in 0..3 {
        socket.send(b"?")?;
        socket
            .recv(&mut [0; 8])
            .with_context(|| format!("no answer from {to}"))?;
    }
    Ok(())
}

fn unspecified(like: SocketAddr) -> SocketAddr {
    if like.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
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
