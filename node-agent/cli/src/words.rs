//! Numbers of the contract as the words that people use.

use std::{net::IpAddr, time::Duration};

use ebpf_abi::backend_state;
use node_agent_model::MapFamily;

/// Name of an IANA protocol number, as Kubernetes writes those that Services have.
pub fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        58 => "ICMPv6".into(),
        132 => "SCTP".into(),
        other => other.to_string(),
    }
}

/// # Errors
///
/// When `text` is neither a known name nor a number.
pub fn protocol_number(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmpv6" => Ok(58),
        "sctp" => Ok(132),
        other => other.parse().map_err(|_| {
            format!("{text:?} is no protocol: write tcp, udp, sctp, icmp, icmpv6 or its number")
        }),
    }
}

/// Value of `Backend::state`.
pub fn backend(state: u16) -> &'static str {
    match state {
        backend_state::FREE => "free",
        backend_state::ACTIVE => "active",
        backend_state::TERMINATING => "terminating",
        _ => "unknown",
    }
}

/// `ADDR:PORT`, of a tuple without ports the address alone.
pub fn end<A: MapFamily>(addr: A, port_be: u16, protocol: u8) -> String {
    match protocol {
        1 | 58 => addr.to_ip().to_string(),
        _ => socket(addr.to_ip(), u16::from_be(port_be)),
    }
}

pub fn socket(ip: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

/// Such as `3.2s`, `2m10s`, `1h5m`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", duration.as_secs_f64()),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
    }
}
