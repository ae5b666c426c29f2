//! The packet that the operator describes.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use anyhow::{Result, bail, ensure};
use clap::{ArgAction, Args, ValueEnum};

use crate::words;

/// A packet in words.
#[derive(Clone, Debug, Args)]
pub struct Flow {
    /// Where the packet comes from: a pod of this node, a process of the host, the uplink; `auto` finds out by --src.
    #[arg(long, value_enum, default_value_t = From::Auto)]
    pub from: From,

    /// Source address; without a port 40000 is taken.
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub src: End,

    /// Destination address, with its port for TCP and UDP.
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub dst: End,

    /// tcp, udp or icmp (an echo request).
    #[arg(long, value_name = "NAME", default_value = "tcp", value_parser = words::protocol_number)]
    pub proto: u8,

    /// Of TCP: a packet of a connection that is open already, and not the one that opens it.
    #[arg(long)]
    pub established: bool,

    /// Whether the process is in the cgroup whose sockets are balanced at connect.
    #[arg(long, action = ArgAction::Set, default_value_t = true, value_name = "BOOL")]
    pub socket: bool,

    /// Length of the IP packet in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    pub size: u16,

    /// TTL or hop limit of the packet.
    #[arg(long, default_value_t = 64)]
    pub ttl: u8,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum From {
    Auto,
    Pod,
    Host,
    Network,
}

/// `ADDR`, `ADDR:PORT` or `[ADDR]:PORT`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct End {
    pub ip: IpAddr,
    pub port: Option<u16>,
}

/// What a client's kernel would choose from its range.
const SOURCE_PORT: u16 = 40000;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return Ok(Self {
                ip: addr.ip(),
                port: Some(addr.port()),
            });
        }
        let ip = text.parse().map_err(|_| {
            "write ADDR or ADDR:PORT, such as 10.244.1.5:4000 or [fd00::5]:4000".to_owned()
        })?;
        Ok(Self { ip, port: None })
    }
}

impl Flow {
    /// The flow with every default filled in.
    ///
    /// # Errors
    ///
    /// When the parts do not fit together; names the flag.
    pub fn resolved(&self) -> Result<Self> {
        let mut flow = self.clone();
        ensure!(
            flow.src.ip.is_ipv4() == flow.dst.ip.is_ipv4(),
            "--src and --dst are of two address families"
        );
        if matches!(flow.proto, ICMP | ICMPV6) {
            flow.proto = if flow.src.ip.is_ipv4() { ICMP } else { ICMPV6 };
            ensure!(
                flow.src.port.is_none() && flow.dst.port.is_none(),
                "--proto icmp has no ports: leave them out of --src and --dst"
            );
        } else if matches!(flow.proto, 6 | 17) {
            flow.src.port.get_or_insert(SOURCE_PORT);
            ensure!(
                flow.dst.port.is_some(),
                "--dst needs a port with --proto {}: write {}",
                words::protocol(flow.proto).to_lowercase(),
                words::socket(flow.dst.ip, 80)
            );
        } else {
            bail!("--proto: a packet can be described for tcp, udp and icmp");
        }
        ensure!(
            usize::from(flow.size) >= flow.header_len(),
            "--size {} is less than the headers take: {} bytes",
            flow.size,
            flow.header_len()
        );
        Ok(flow)
    }

    /// IP and transport headers, in bytes.
    pub fn header_len(&self) -> usize {
        let ip = if self.src.ip.is_ipv4() { 20 } else { 40 };
        ip + if self.proto == 6 { 20 } else { 8 }
    }

    /// The packet as it is usually written.
    pub fn text(&self) -> String {
        let end = |end: End| match end.port {
            Some(port) => words::socket(end.ip, port),
            None => end.ip.to_string(),
        };
        format!(
            "{} {} -> {}",
            words::protocol(self.proto),
            end(self.src),
            end(self.dst)
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        flow: Flow,
    }

    fn resolve(text: &str) -> Result<Flow> {
        let words = std::iter::once("trace").chain(text.split_whitespace());
        Only::try_parse_from(words)?.flow.resolved()
    }

    #[test]
    fn what_is_not_said_is_filled_in() {
        let flow = resolve("--src fd00::1 --dst [fd00::2]:80").unwrap();
        assert_eq!(flow.text(), "TCP [fd00::1]:40000 -> [fd00::2]:80");
        let flow = resolve("--src fd00::1 --dst fd00::2 --proto icmp").unwrap();
        assert_eq!(flow.text(), "ICMPv6 fd00::1 -> fd00::2");
    }

    #[test]
    fn parts_that_do_not_fit_are_named_with_the_way_out() {
        for (wrong, part) in [
            ("--src 10.0.0.1 --dst [fd00::2]:80", "two address families"),
            ("--src 10.0.0.1 --dst 10.0.0.2", "write 10.0.0.2:80"),
            (
                "--src 10.0.0.1:9 --dst 10.0.0.2 --proto icmp",
                "leave them out",
            ),
            (
                "--src 10.0.0.1 --dst 10.0.0.2:80 --proto sctp",
                "tcp, udp and icmp",
            ),
            ("--src 10.0.0.1 --dst 10.0.0.2:80 --size 39", "40 bytes"),
            ("--src ten --dst 10.0.0.2:80", "write ADDR"),
            ("--src 10.0.0.1 --dst 10.0.0.2:80 --from pods", "--from"),
        ] {
            let error = resolve(wrong).unwrap_err().to_string();
            assert!(error.contains(part), "{wrong}: {error}");
        }
    }
}
