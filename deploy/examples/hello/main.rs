//! The example workload, one static binary without dependencies: a server that answers with its
//! own name over HTTP and UDP, a pause process, and a probe that counts who answered.
//!
//! ```text
//! hello serve [--http PORT] [--udp PORT] [--name NAME]
//!                                              HTTP on :8080, UDP echo on :9000, IPv4 and IPv6
//! hello pause                                  waits for SIGTERM (the sandbox's first process)
//! hello probe --http URL | --udp ADDR:PORT     one new connection (or socket) per request
//!       [--count N] [--rate N a second] [--timeout-ms N] [--json]
//! ```

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::process::ExitCode;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

const HTTP_PORT: u16 = 8080;
const ECHO_PORT: u16 = 9000;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some("serve") => Server::parse(&arguments[1..]).and_then(|server| server.serve()),
        Some("pause") => pause(),
        Some("probe") => probe(&arguments[1..]),
        _ => Err("usage: hello serve [--http PORT] [--udp PORT] [--name NAME] | pause | probe --http URL|--udp ADDR:PORT [--count N] [--rate N] [--timeout-ms N] [--json]".to_string()),
    };
    match outcome {
        Ok(code) => code,
        Err(message) => {
            eprintln!("hello: {message}");
            ExitCode::from(2)
        }
    }
}

// === signals ===

// The kernel delivers no signal with the default action to the first process of a PID namespace
// (pid_namespaces(7)): without a handler a pod would sit out its whole grace period.
mod signal {
    const SIGINT: i32 = 2;
    const SIGTERM: i32 = 15;

    unsafe extern "C" {
        fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
        fn _exit(code: i32) -> !;
    }

    extern "C" fn leave(_number: i32) {
        // SAFETY: _exit is async-signal-safe (signal-safety(7)) and takes no pointer.
        unsafe { _exit(0) }
    }

    pub fn exit_on_termination() {
        for number in [SIGINT, SIGTERM] {
            // SAFETY: the handler has the C signature that signal(2) asks for and calls only _exit.
            unsafe {
                signal(number, leave);
            }
        }
    }
}

// === serve ===

fn pause() -> Result<ExitCode, String> {
    signal::exit_on_termination();
    loop {
        thread::park();
    }
}

struct Server {
    http_port: u16,
    echo_port: u16,
    name: String,
}

impl Server {
    fn parse(arguments: &[String]) -> Result<Server, String> {
        let mut server = Server {
            http_port: HTTP_PORT,
            echo_port: ECHO_PORT,
            name: own_name(),
        };
        let mut rest = arguments.iter();
        while let Some(flag) = rest.next() {
            let mut value = || rest.next().ok_or(format!("{flag} needs a value"));
            match flag.as_str() {
                "--http" => server.http_port = number(flag, value()?)?,
                "--udp" => server.echo_port = number(flag, value()?)?,
                "--name" => server.name.clone_from(value()?),
                _ => return Err(format!("serve: unknown flag {flag}")),
            }
        }
        Ok(server)
    }

    fn serve(self) -> Result<ExitCode, String> {
        signal::exit_on_termination();
        let Server {
            http_port,
            echo_port,
            name,
        } = self;
        // A pod has one address of each family, so a wildcard socket answers from the address that
        // was asked: the route back leaves it no other source.
        let echo: Vec<UdpSocket> = ["[::]", "0.0.0.0"]
            .iter()
            .filter_map(|host| UdpSocket::bind(format!("{host}:{echo_port}")).ok())
            .collect();
        if echo.is_empty() {
            return Err(format!("cannot bind UDP port {echo_port}"));
        }
        for socket in echo {
            let name = name.clone();
            thread::spawn(move || answer_datagrams(&socket, &name));
        }
        let listener = TcpListener::bind(format!("[::]:{http_port}"))
            .or_else(|_| TcpListener::bind(format!("0.0.0.0:{http_port}")))
            .map_err(|error| format!("cannot bind TCP port {http_port}: {error}"))?;
        println!("hello: {name} serves HTTP on :{http_port} and UDP echo on :{echo_port}");
        for stream in listener.incoming().flatten() {
            let name = name.clone();
            thread::spawn(move || {
                if let Err(error) = answer_http(stream, &name) {
                    eprintln!("hello: http: {error}");
                }
            });
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn own_name() -> String {
    env::var("POD_NAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map(|name| name.trim().to_string())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "hello".to_string())
}

fn answer_datagrams(socket: &UdpSocket, name: &str) {
    let mut buffer = [0_u8; 65_535];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((_, client)) => {
                if let Err(error) = socket.send_to(name.as_bytes(), client) {
                    eprintln!("hello: udp to {client}: {error}");
                }
            }
            Err(error) => eprintln!("hello: udp: {error}"),
        }
    }
}

fn answer_http(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request = Vec::new();
    let mut chunk = [0_u8; 1024];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        let length = stream.read(&mut chunk)?;
        if length == 0 || request.len() > 16 * 1024 {
            return Ok(());
        }
        request.extend_from_slice(&chunk[..length]);
    }
    let body = format!("{name}\n");
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())
}

// === probe ===

enum Target {
    Http {
        address: SocketAddr,
        host: String,
        path: String,
    },
    Udp(SocketAddr),
}

struct Options {
    target: Target,
    count: u32,
    /// Between the starts of two requests; zero means one after the other.
    pace: Duration,
    timeout: Duration,
    json: bool,
}

#[derive(Default)]
struct Tally {
    latencies: Vec<Duration>,
    by_backend: BTreeMap<String, Vec<Duration>>,
    errors: BTreeMap<String, u32>,
}

fn probe(arguments: &[String]) -> Result<ExitCode, String> {
    let options = Options::parse(arguments)?;
    let mut tally = Tally::default();
    let begun = Instant::now();
    for number in 0..options.count {
        thread::sleep((options.pace * number).saturating_sub(begun.elapsed()));
        let start = Instant::now();
        match options.target.ask(options.timeout) {
            Ok(backend) => {
                let latency = start.elapsed();
                tally.latencies.push(latency);
                tally.by_backend.entry(backend).or_default().push(latency);
            }
            Err(error) => *tally.errors.entry(error.to_string()).or_default() += 1,
        }
    }
    if options.json {
        println!("{}", tally.json(options.count));
    } else {
        print!("{}", tally.text(options.count));
    }
    Ok(if tally.errors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Options, String> {
        let (mut target, mut count, mut rate, mut timeout, mut json) =
            (None, 1, 0, 1000_u64, false);
        let mut rest = arguments.iter();
        while let Some(flag) = rest.next() {
            let mut value = || rest.next().ok_or(format!("{flag} needs a value"));
            match flag.as_str() {
                "--http" => target = Some(Target::http(value()?)?),
                "--udp" => target = Some(Target::Udp(resolve(value()?)?)),
                "--count" => count = number(flag, value()?)?,
                "--rate" => rate = number(flag, value()?)?,
                "--timeout-ms" => timeout = number(flag, value()?)?,
                "--json" => json = true,
                _ => return Err(format!("probe: unknown flag {flag}")),
            }
        }
        let target = target.ok_or("probe: give --http URL or --udp ADDR:PORT")?;
        Ok(Options {
            target,
            count,
            pace: Duration::from_secs(1).checked_div(rate).unwrap_or_default(),
            timeout: Duration::from_millis(timeout),
            json,
        })
    }
}

fn number<N: FromStr>(flag: &str, text: &str) -> Result<N, String> {
    text.parse()
        .map_err(|_| format!("{flag} {text}: not a whole number"))
}

fn resolve(text: &str) -> Result<SocketAddr, String> {
    text.to_socket_addrs()
        .map_err(|error| format!("{text}: {error}"))?
        .next()
        .ok_or_else(|| format!("{text}: no address"))
}

impl Target {
    fn http(url: &str) -> Result<Target, String> {
        let rest = url
            .strip_prefix("http://")
            .ok_or(format!("{url}: only http:// is known"))?;
        let (host, path) = match rest.find('/') {
            Some(slash) => (&rest[..slash], &rest[slash..]),
            None => (rest, "/"),
        };
        let has_port = host
            .rfind(':')
            .is_some_and(|colon| !host[colon..].contains(']'));
        let address = resolve(&if has_port {
            host.to_string()
        } else {
            format!("{host}:80")
        })?;
        Ok(Target::Http {
            address,
            host: host.to_string(),
            path: path.to_string(),
        })
    }

    /// Sends one request over a new connection or socket and returns who answered.
    fn ask(&self, timeout: Duration) -> io::Result<String> {
        let answer = match self {
            Target::Http {
                address,
                host,
                path,
            } => {
                let mut stream = TcpStream::connect_timeout(address, timeout)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(timeout))?;
                let request =
                    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
                stream.write_all(request.as_bytes())?;
                let mut response = String::new();
                stream.read_to_string(&mut response)?;
                let (head, body) = response
                    .split_once("\r\n\r\n")
                    .ok_or_else(|| io::Error::other("cut-off HTTP answer"))?;
                if !head.starts_with("HTTP/1.1 200") {
                    return Err(io::Error::other(
                        head.lines().next().unwrap_or_default().to_string(),
                    ));
                }
                body.to_string()
            }
            Target::Udp(address) => {
                let any = if address.is_ipv4() {
                    "0.0.0.0:0"
                } else {
                    "[::]:0"
                };
                let socket = UdpSocket::bind(any)?;
                // Connected: an answer from any other address than the one asked is not accepted.
                socket.connect(address)?;
                socket.set_read_timeout(Some(timeout))?;
                socket.send(b"who is there?")?;
                let mut buffer = [0_u8; 2048];
                let length = socket.recv(&mut buffer)?;
                String::from_utf8_lossy(&buffer[..length]).into_owned()
            }
        };
        Ok(answer.trim().to_string())
    }
}

fn p50_us(latencies: &[Duration]) -> f64 {
    let mut sorted = latencies.to_vec();
    sorted.sort();
    sorted
        .get(sorted.len() / 2)
        .map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
}

impl Tally {
    fn json(&self, sent: u32) -> String {
        let backends: Vec<String> = self
            .by_backend
            .iter()
            .map(|(name, latencies)| {
                format!(
                    r#"{}:{{"count":{},"p50_us":{:.1}}}"#,
                    quoted(name),
                    latencies.len(),
                    p50_us(latencies)
                )
            })
            .collect();
        let errors: Vec<String> = self
            .errors
            .iter()
            .map(|(error, count)| format!("{}:{count}", quoted(error)))
            .collect();
        format!(
            r#"{{"sent":{sent},"replies":{},"p50_us":{:.1},"backends":{{{}}},"errors":{{{}}}}}"#,
            self.latencies.len(),
            p50_us(&self.latencies),
            backends.join(","),
            errors.join(",")
        )
    }

    fn text(&self, sent: u32) -> String {
        let mut text = format!(
            "{} of {sent} answered, p50 {:.0} us\n",
            self.latencies.len(),
            p50_us(&self.latencies)
        );
        for (name, latencies) in &self.by_backend {
            text += &format!("  {:>6} {name}\n", latencies.len());
        }
        for (error, count) in &self.errors {
            text += &format!("  {count:>6} failed: {error}\n");
        }
        text
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            _ if character.is_control() => quoted += &format!("\\u{:04x}", character as u32),
            _ => quoted.push(character),
        }
    }
    quoted + "\""
}
