//! The flags, and which of them go together.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;

use crate::api::{ApiFlags, Mode};
use crate::store::{StoreCommand, StoreFlags};

/// The control plane of a Fairlead cluster: API server, controllers and scheduler over an embedded store or etcd.
#[derive(Debug, Parser)]
#[command(name = "fairlead-control-plane", version)]
pub struct Flags {
    /// The folder that holds the cluster's state; made if it is not there
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/fairlead",
        env = "FAIRLEAD_DATA_DIR",
        global = true
    )]
    pub data_dir: PathBuf,

    #[command(flatten)]
    pub store: StoreFlags,

    /// Where the API server listens without TLS (can be repeated); only loopback addresses are accepted. For others:
    /// --tls-listen
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    pub listen: Vec<SocketAddr>,

    /// Also listen on this address of the development cluster's own link: in 172.31.240.0/24 or fd00:fa1e::/64
    #[arg(long, value_name = "ADDR:PORT")]
    pub development_link: Vec<SocketAddr>,

    /// Accept any address for --listen. Everybody who reaches it can do everything in the cluster and reads all of its
    /// secrets on the way
    #[arg(long)]
    pub dangerously_serve_plaintext_to_network: bool,

    #[command(flatten)]
    pub api: ApiFlags,

    /// What pods' addresses are taken from, at most one range of each family
    #[arg(
        long,
        value_name = "CIDRS",
        value_delimiter = ',',
        default_value = "10.244.0.0/16,fd00:10:244::/48"
    )]
    pub cluster_cidr: Vec<IpNetwork>,

    /// What Services' addresses are taken from, at most one range of each family; the first is the primary one
    #[arg(
        long,
        value_name = "CIDRS",
        value_delimiter = ',',
        default_value = "10.96.0.0/16,fd00:10:96::/112"
    )]
    pub service_cidr: Vec<IpNetwork>,

    /// What node ports are taken from
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767", value_parser = ports)]
    pub node_port_range: RangeInclusive<u16>,

    /// Which part of the control plane this process is
    #[arg(long, value_enum, default_value_t = Role::All)]
    pub role: Role,

    /// The API server, for the roles that are only clients; default: the first --listen address
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// The bearer token that the roles which are only clients show to --server
    #[arg(long, value_name = "FILE", requires = "server")]
    pub server_token_file: Option<PathBuf>,

    /// What is logged: a level, or `target=level` parts with commas between
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "info",
        env = "FAIRLEAD_LOG"
    )]
    pub log: String,

    /// One JSON object a line instead of text
    #[arg(long)]
    pub log_json: bool,

    /// Without one, the control plane runs
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program does besides running the control plane.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Back up, restore and move the cluster's state
    #[command(subcommand)]
    Store(StoreCommand),
}

/// A part of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    All,
    Apiserver,
    Scheduler,
    Controllers,
}

impl Role {
    pub fn has(self, part: Self) -> bool {
        self == part || self == Self::All
    }
}

impl Flags {
    /// Where to listen.
    ///
    /// # Errors
    /// An address that would show the cluster to the network.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>> {
        for address in &self.listen {
            let ok = address.ip().is_loopback() || self.dangerously_serve_plaintext_to_network;
            ensure!(
                ok,
                "--listen {address}: only loopback addresses are accepted, since everything is readable on the way. For other addresses use --tls-listen with --authorization-mode=RBAC, for a development cluster's own link --development-link; to give everybody who reaches this address the whole cluster, add --dangerously-serve-plaintext-to-network"
            );
        }
        for address in &self.development_link {
            ensure!(
                is_development_link(address),
                "--development-link {address}: this flag is for the development cluster's own link only, 172.31.240.0/24 or fd00:fa1e::/64"
            );
        }
        self.check_tls()?;
        let mut all: Vec<_> = self
            .listen
            .iter()
            .chain(&self.development_link)
            .copied()
            .collect();
        all.sort();
        all.dedup();
        Ok(all)
    }

    fn check_tls(&self) -> Result<()> {
        let open = self.api.authorization_mode == Mode::AlwaysAllow && self.api.anonymous_auth;
        let reached = self.api.tls_listen.iter().find(|a| !a.ip().is_loopback());
        if let (true, Some(address)) = (open, reached) {
            bail!(
                "--tls-listen {address}: with --authorization-mode=AlwaysAllow everybody who reaches this address could do everything; add --authorization-mode=RBAC, or --anonymous-auth=false"
            );
        }
        Ok(())
    }

    /// The URL under which the parts that are clients reach the API server.
    pub fn server_url(&self, listening: Option<SocketAddr>) -> Result<String> {
        if let Some(server) = &self.server {
            return Ok(server.clone());
        }
        let address = listening.or(self.listen.first().copied());
        let address = address.context("give --listen or --server")?;
        Ok(format!("http://{address}"))
    }
}

fn is_development_link(address: &SocketAddr) -> bool {
    let links = ["172.31.240.0/24", "fd00:fa1e::/64"];
    links
        .iter()
        .filter_map(|link| link.parse::<IpNetwork>().ok())
        .any(|link| link.contains(address.ip()))
}

fn ports(text: &str) -> Result<RangeInclusive<u16>> {
    let Some((first, last)) = text.split_once('-') else {
        bail!("give two numbers with a dash between, as in 30000-32767");
    };
    let number = |part: &str| {
        part.trim()
            .parse::<u16>()
            .with_context(|| format!("{part:?} is no port number"))
    };
    Ok(number(first)?..=number(last)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(args: &[&str]) -> Result<Vec<SocketAddr>> {
        let args = std::iter::once("fairlead-control-plane").chain(args.iter().copied());
        Flags::try_parse_from(args)?.addresses()
    }

    #[test]
    fn nobody_outside_is_served_unless_the_flag_names_the_danger() {
        assert_eq!(addresses(&[]).unwrap(), ["127.0.0.1:6443".parse().unwrap()]);
        assert!(addresses(&["--listen", "[::1]:1"]).is_ok());
        let error = addresses(&["--listen", "0.0.0.0:6443"]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("--dangerously-serve-plaintext-to-network")
        );
        let danger = "--dangerously-serve-plaintext-to-network";
        assert!(addresses(&["--listen", "192.0.2.1:6443", danger]).is_ok());
    }

    #[test]
    fn the_development_link_is_one_link() {
        for (address, ok) in [
            ("172.31.240.1:6443", true),
            ("[fd00:fa1e::1]:6443", true),
            ("172.31.241.1:6443", false),
            ("0.0.0.0:6443", false),
            ("[fd00:fa1e:0:1::1]:6443", false),
        ] {
            assert_eq!(
                addresses(&["--development-link", address]).is_ok(),
                ok,
                "{address}"
            );
        }
    }

    #[test]
    fn node_port_ranges() {
        assert_eq!(ports("30000-32767").unwrap(), 30000..=32767);
        assert!(ports("30000").is_err() && ports("1-x").is_err());
    }
}
