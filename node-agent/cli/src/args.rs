//! What the operator asks.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, Subcommand};

use crate::{cleanup, filter::Condition, output::Format, overlay, trace::Flow};

/// What Fairlead's dataplane on this node holds and does.
#[derive(Debug, Parser)]
#[command(name = "fairlead", version)]
pub struct Args {
    /// Directory on a bpffs where maps, programs and links are pinned.
    #[arg(long, global = true, value_name = "PATH", default_value = ebpf_abi::maps::PIN_DIR)]
    pub pin_dir: PathBuf,

    /// How the answer is written.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Agent, programs, configuration and counts of this node.
    Status {
        /// Where the agent answers /readyz (its --listen).
        #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10256")]
        agent: SocketAddr,
    },
    /// Services: their frontends and backends.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Backends: who takes connections, and who drains.
    #[command(subcommand)]
    Backend(ListCommand),
    /// Connections that are translated.
    #[command(subcommand)]
    Conntrack(ListCommand),
    /// Dropped packets by reason.
    Drops {
        /// Also reasons for which nothing was dropped.
        #[arg(long)]
        all: bool,
    },
    /// The other nodes: who and where they are, what goes there, and whether it arrives.
    #[command(subcommand)]
    Overlay(OverlayCommand),
    /// What the dataplane would do with a packet, and why; nothing is sent or changed.
    Trace(Flow),
    /// Removes every trace of the dataplane from this node, and says what went.
    Cleanup(cleanup::Options),
    /// How fast this kernel writes and reads maps like ours; on maps of its own.
    BenchMap {
        /// Entries of each map.
        #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        entries: u32,
    },
    /// The maps: what each is and how full.
    Maps,
}

#[derive(Debug, Subcommand)]
pub enum OverlayCommand {
    /// The other nodes, and what went to them, came from them and was dropped.
    Peers,
    /// Which subnet lies on which node, and the next hop there.
    Routes,
    /// The largest packets that each way carries.
    Mtu,
    /// Sends through the overlay to a node and says at which hop it dies.
    Probe(overlay::ProbeOptions),
}

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// All, one a port, a family and a traffic policy.
    List {
        /// Only those to which this applies; see `conntrack list`. May be given several times: all must apply.
        #[arg(long, value_name = "KEY=VALUE")]
        filter: Vec<Condition>,
    },
    /// One, with its backends in the order of their turns.
    Get {
        /// NAMESPACE/NAME, or an address: ADDR, ADDR:PORT.
        #[arg(value_name = "NS/NAME|ADDR[:PORT]")]
        what: service_name::Wanted,
    },
}

#[derive(Debug, Subcommand)]
pub enum ListCommand {
    List {
        /// Only those to which this applies: address=ADDR[/LEN], port=N, protocol=tcp|udp|sctp|icmp|N,
        /// service=NAMESPACE/NAME. May be given several times: all must apply.
        #[arg(long, value_name = "KEY=VALUE")]
        filter: Vec<Condition>,
    },
}

pub mod service_name {
    //! How a service is asked for.

    use std::{
        net::{IpAddr, SocketAddr},
        str::FromStr,
    };

    /// A service by its name or by where it is reached.
    #[derive(Clone, Debug, Eq, PartialEq)]
    pub enum Wanted {
        Name { namespace: String, name: String },
        Address { ip: IpAddr, port: Option<u16> },
    }

    impl FromStr for Wanted {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, String> {
            if let Ok(addr) = text.parse::<SocketAddr>() {
                return Ok(Self::Address {
                    ip: addr.ip(),
                    port: Some(addr.port()),
                });
            }
            if let Ok(ip) = text.parse() {
                return Ok(Self::Address { ip, port: None });
            }
            match text.split_once('/') {
                Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                    Ok(Self::Name {
                        namespace: namespace.into(),
                        name: name.into(),
                    })
                }
                _ => Err(
                    "write NAMESPACE/NAME, or an address such as 10.96.0.10 or 10.96.0.10:80"
                        .into(),
                ),
            }
        }
    }
}
