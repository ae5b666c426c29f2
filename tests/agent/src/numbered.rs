//! Numbered requests and answers by flows of every kind, while something is done to the nodes: what is lost, answered
//! twice, answered by another server or shown another client is noted.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{Shutdown, setsockopt, shutdown};
use rustix::process::nice;
use tests_testkit::NetNs;

/// Far longer than an answer takes on a busy machine: what comes later is lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// UDP requests under way at once, far fewer than a socket's buffer holds.
const WINDOW: u64 = 8;
/// Of every UDP socket, in bytes: what all clients have under way at once fits many times, whichever server gets it.
const BUFFER: usize = 8 << 20;
/// Clients that ask without a pause take all of every processor; what is tested is not to wait for its turn a minute.
const NICENESS: i32 = 10;
/// Between two flows of one client, so that the connection tables, which keep what is over for a minute, hold them all.
const PAUSE: Duration = Duration::from_millis(3);
/// Flow and number.
const REQUEST: usize = 16;
/// The same, the server, and the client's address and port as the server sees them.
const ANSWER: usize = REQUEST + 1 + 16 + 2;

/// What a client does over and over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// One UDP socket from the beginning to the end.
    UdpLiving,
    /// A new UDP socket for each window of requests.
    UdpNew,
    /// One TCP connection from the beginning to the end.
    TcpLiving,
    /// A new TCP connection for each request.
    TcpNew,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::UdpLiving, Self::UdpNew, Self::TcpLiving, Self::TcpNew];
}

/// A client.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    pub kind: Kind,
    pub from: &'a NetNs,
    /// For people.
    pub from_name: &'static str,
    pub to: SocketAddr,
    /// The server must see the client's own address and port.
    pub seen_as_itself: bool,
}

/// Servers that answer on UDP and TCP; they end when this is dropped.
#[derive(Debug)]
pub struct Servers {
    stop: Arc<AtomicBool>,
    listeners: Vec<TcpListener>,
}

/// What is counted while the flows run.
#[derive(Debug, Default)]
pub struct Traffic {
    stop: AtomicBool,
    /// Requests and answers.
    packets: AtomicU64,
    flows: AtomicU64,
    faults: Mutex<Vec<String>>,
}

impl Servers {
    /// One in each namespace, on all addresses.
    ///
    /// # Errors
    ///
    /// When somebody has the port.
    pub fn start<'a>(places: impl IntoIterator<Item = &'a NetNs>, port: u16) -> Result<Self> {
        let mut servers = Self {
            stop: Arc::default(),
            listeners: Vec::new(),
        };
        for (id, netns) in (1..).zip(places) {
            let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            let (udp, tcp) = netns.run(|| (UdpSocket::bind(any), TcpListener::bind(any)));
            let (udp, tcp) = (udp?, tcp?);
            udp.set_read_timeout(Some(Duration::from_millis(100)))?;
            setsockopt(&udp, RcvBufForce, &BUFFER)?;
            servers.listeners.push(tcp.try_clone()?);
            let stop = servers.stop.clone();
            thread::spawn(move || answer_udp(&udp, id, &stop));
            thread::spawn(move || {
                // Shutting the listener down ends this.
                while let Ok((stream, client)) = tcp.accept() {
                    thread::spawn(move || answer_tcp(stream, client, id));
                }
            });
        }
        Ok(servers)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for listener in &self.listeners {
            // Nothing can be done if it fails, and the process ends it anyway.
            shutdown(listener.as_raw_fd(), Shutdown::Both).ok();
        }
    }
}

impl Traffic {
    /// Runs the flows while `work` goes on, and one exchange of each flow before and after it.
    pub fn during<T>(&self, flows: &[Flow<'_>], work: impl FnOnce(&Self) -> T) -> T {
        thread::scope(|scope| {
            for flow in flows {
                scope.spawn(move || {
                    if let Err(error) = flow.from.run(|| self.client(flow)) {
                        let Flow {
                            kind,
                            from_name,
                            to,
                            ..
                        } = flow;
                        self.fault(format!("{kind:?} from {from_name} to {to}: {error:#}"));
                    }
                });
            }
            // The clients end too if it panics.
            let _ending = Ending(&self.stop);
            work(self)
        })
    }

    /// Requests and answers so far.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// Sockets so far.
    pub fn flows(&self) -> u64 {
        self.flows.load(Ordering::Relaxed)
    }

    /// What went wrong, a flow at most once.
    pub fn faults(&self) -> Vec<String> {
        self.noted().clone()
    }

    fn fault(&self, text: String) {
        self.noted().push(text);
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.faults
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn client(&self, flow: &Flow<'_>) -> Result<()> {
        // Of this thread.
        nice(NICENESS)?;
        match flow.kind {
            Kind::UdpLiving => {
                let (socket, mut asked) = self.udp(flow)?;
                self.until_the_end(|| self.exchange_udp(&socket, &mut asked))
            }
            Kind::UdpNew => self.until_the_end(|| {
                let (socket, mut asked) = self.udp(flow)?;
                self.exchange_udp(&socket, &mut asked)?;
                self.exchange_udp(&socket, &mut asked)?;
                thread::sleep(PAUSE);
                Ok(())
            }),
            Kind::TcpLiving => {
                let (mut stream, mut asked) = self.tcp(flow)?;
                self.until_the_end(|| self.exchange_tcp(&mut stream, &mut asked))
            }
            Kind::TcpNew => self.until_the_end(|| {
                let (mut stream, mut asked) = self.tcp(flow)?;
                self.exchange_tcp(&mut stream, &mut asked)?;
                thread::sleep(PAUSE);
                Ok(())
            }),
        }
    }

    fn until_the_end(&self, mut exchange: impl FnMut() -> Result<()>) -> Result<()> {
        loop {
            let last = self.stop.load(Ordering::Relaxed);
            exchange()?;
            if last {
                return Ok(());
            }
        }
    }

    fn udp(&self, flow: &Flow<'_>) -> Result<(UdpSocket, Asked)> {
        let any: SocketAddr = match flow.to {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(flow.to)?;
        setsockopt(&socket, RcvBufForce, &BUFFER)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let asked = self.asked(flow, socket.local_addr()?);
        Ok((socket, asked))
    }

    fn tcp(&self, flow: &Flow<'_>) -> Result<(TcpStream, Asked)> {
        let stream = TcpStream::connect_timeout(&flow.to, PATIENCE).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let asked = self.asked(flow, stream.local_addr()?);
        Ok((stream, asked))
    }

    fn asked(&self, flow: &Flow<'_>, own: SocketAddr) -> Asked {
        Asked {
            flow: self.flows.fetch_add(1, Ordering::Relaxed),
            next: 0,
            waiting: BTreeSet::new(),
            server: None,
            seen_as: flow.seen_as_itself.then_some(own),
        }
    }

    fn exchange_udp(&self, socket: &UdpSocket, asked: &mut Asked) -> Result<()> {
        for _ in 0..WINDOW {
            let request = asked.request();
            socket.send(&request).context("send")?;
        }
        let mut answer = [0; ANSWER + 1];
        while !asked.waiting.is_empty() {
            let received = socket.recv(&mut answer);
            let length = received.with_context(|| asked.missing())?;
            asked.answered(&answer[..length])?;
        }
        self.packets.fetch_add(2 * WINDOW, Ordering::Relaxed);
        Ok(())
    }

    fn exchange_tcp(&self, stream: &mut TcpStream, asked: &mut Asked) -> Result<()> {
        let request = asked.request();
        stream.write_all(&request).context("send")?;
        let mut answer = [0; ANSWER];
        stream
            .read_exact(&mut answer)
            .with_context(|| asked.missing())?;
        asked.answered(&answer)?;
        self.packets.fetch_add(2, Ordering::Relaxed);
        Ok(())
    }
}

struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One socket's requests.
struct Asked {
    flow: u64,
    next: u64,
    waiting: BTreeSet<u64>,
    /// All of its answers come from the same one.
    server: Option<u8>,
    seen_as: Option<SocketAddr>,
}

impl Asked {
    fn request(&mut self) -> [u8; REQUEST] {
        let mut request = [0; REQUEST];
        request[..8].copy_from_slice(&self.flow.to_be_bytes());
        request[8..].copy_from_slice(&self.next.to_be_bytes());
        self.waiting.insert(self.next);
        self.next += 1;
        request
    }

    fn answered(&mut self, answer: &[u8]) -> Result<()> {
        ensure!(
            answer.len() == ANSWER,
            "an answer of {} bytes",
            answer.len()
        );
        let number = |at: usize| {
            answer[at..at + 8]
                .iter()
                .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
        };
        let (flow, request, server) = (number(0), number(8), answer[REQUEST]);
        ensure!(
            flow == self.flow,
            "an answer for flow {flow} came to {}",
            self.flow
        );
        ensure!(
            self.waiting.remove(&request),
            "{request} was answered twice, or never asked"
        );
        let first = *self.server.get_or_insert(server);
        ensure!(
            server == first,
            "request {request}: server {first}, then {server}"
        );
        if let Some(own) = self.seen_as {
            ensure!(
                answer[REQUEST + 1..] == address_bytes(own),
                "request {request}: seen as another client"
            );
        }
        Ok(())
    }

    fn missing(&self) -> String {
        format!(
            "no answer to {:?} of {}, server {:?}",
            self.waiting, self.next, self.server
        )
    }
}

fn address_bytes(address: SocketAddr) -> [u8; 18] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&address.port().to_be_bytes());
    bytes
}

fn answer_to(request: &[u8], id: u8, client: SocketAddr) -> [u8; ANSWER] {
    let mut answer = [0; ANSWER];
    answer[..REQUEST].copy_from_slice(request);
    answer[REQUEST] = id;
    answer[REQUEST + 1..].copy_from_slice(&address_bytes(client));
    answer
}

fn answer_udp(socket: &UdpSocket, id: u8, stop: &AtomicBool) {
    let mut request = [0; REQUEST];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((REQUEST, client)) = socket.recv_from(&mut request) {
            // A client that is gone is its own affair.
            socket
                .send_to(&answer_to(&request, id, client), client)
                .ok();
        }
    }
}

fn answer_tcp(mut stream: TcpStream, client: SocketAddr, id: u8) {
    let mut request = [0; REQUEST];
    let mut exchange = || -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            stream.read_exact(&mut request)?;
            stream.write_all(&answer_to(&request, id, client))?;
        }
    };
    // It ends when the client closes.
    exchange().ok();
}

/// TCP segments of a namespace that were sent again and had not arrived: those that the peer did report as doubles
/// (RFC 2883) had only been slow.
///
/// # Errors
///
/// When the kernel does not tell.
pub fn lost_segments(netns: &NetNs) -> Result<u64> {
    let sent_again = counter(netns, "snmp", "Tcp:", "RetransSegs")?;
    let doubles = counter(netns, "netstat", "TcpExt:", "TCPDSACKRecv")?;
    Ok(sent_again.saturating_sub(doubles))
}

/// Datagrams of both families that came to a socket of a namespace and did not fit into its buffer: lost by the test and
/// not by the network.
///
/// # Errors
///
/// When the kernel does not tell.
pub fn overflown_datagrams(netns: &NetNs) -> Result<u64> {
    // A socket of both families counts what it gets in IPv4 here too.
    counter(netns, "snmp", "Udp:", "RcvbufErrors")
}

/// A file of counters has a line of names and a line of numbers for each protocol.
fn counter(netns: &NetNs, file: &str, protocol: &str, name: &str) -> Result<u64> {
    let text = netns.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")))?;
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let names = lines.next().context("no names")?.split(' ');
    let mut pairs = names.zip(lines.next().context("no numbers")?.split(' '));
    let (_, number) = pairs
        .find(|(found, _)| *found == name)
        .with_context(|| format!("the kernel has no {protocol}{name}"))?;
    Ok(number.parse()?)
}
