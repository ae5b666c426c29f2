//! A connection to a port of a pod, made inside the pod: what listens on its loopback address only is reached too.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use node_agent_host::in_namespace;
use tokio::net::TcpStream;

/// Inside a pod the answer comes at once or never.
const LIMIT: Duration = Duration::from_secs(10);

/// Connects to `port` on the loopback addresses of the network namespace that process `pid` is in, IPv4 first.
///
/// # Errors
///
/// Why not, in the words that the client is shown.
pub(crate) async fn connect(pid: i64, port: u16) -> Result<TcpStream, String> {
    let namespace = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let connected = in_namespace(&namespace, async move |_| Ok(dial(port))).await;
    let stream = connected.map_err(|error| crate::chain(&error))??;
    let ready = || {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        TcpStream::from_std(stream)
    };
    ready().map_err(|error| error.to_string())
}

/// Blocks: the thread is there for nothing else.
fn dial(port: u16) -> Result<std::net::TcpStream, String> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let connect = |address| std::net::TcpStream::connect_timeout(address, LIMIT);
    let failed = |address: SocketAddr, error: io::Error| format!("dial tcp {address}: {error}");
    connect(&v4).or_else(|first| {
        let second = connect(&v6);
        second.map_err(|second| format!("{}; {}", failed(v4, first), failed(v6, second)))
    })
}
