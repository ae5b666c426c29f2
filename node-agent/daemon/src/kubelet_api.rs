//! Where the kubelet's API is served, and to whom: without TLS and users nobody but the API server may reach it.
//!
//! The API server is known by its address. That holds where nobody else can send from it: on this machine, whose own
//! addresses the kernel takes from no link, and on the development cluster's own link. Elsewhere it is not served.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context;
use ipnetwork::IpNetwork;
use tokio::net::{TcpListener, lookup_host};
use tracing::{info, warn};

use crate::client;
use crate::flags::Flags;

/// The links of the development cluster, as the control plane knows them.
const DEVELOPMENT_LINKS: [&str; 2] = ["172.31.240.0/24", "fd00:fa1e::/64"];

/// A listener, and who is answered there.
#[derive(Debug)]
pub struct KubeletApi {
    pub listener: TcpListener,
    pub callers: Vec<IpAddr>,
}

/// Listens on the node's preferred address, or says why the API is not served.
///
/// # Errors
///
/// When the API server's name leads nowhere, or the port is taken.
pub async fn bind(flags: &Flags, node_ips: &[IpAddr]) -> anyhow::Result<Option<KubeletApi>> {
    let (Some(own), true) = (node_ips.first(), flags.kubelet_port != 0) else {
        return Ok(None);
    };
    let servers = api_server(flags).await?;
    let callers = match callers(&servers, node_ips) {
        Ok(callers) => callers,
        Err(stranger) => {
            warn!(
                api_server = %stranger,
                "kubectl logs, exec and port-forward do not work on this node: its API server is on another machine, and there is no TLS yet by which it could be told from others"
            );
            return Ok(None);
        }
    };
    let address = (*own, flags.kubelet_port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("--kubelet-port: cannot listen on {own} port {}", address.1))?;
    info!(address = %listener.local_addr()?, ?callers, "the kubelet's API listens");
    Ok(Some(KubeletApi { listener, callers }))
}

async fn api_server(flags: &Flags) -> anyhow::Result<Vec<IpAddr>> {
    let url = client::config(flags).await?.cluster_url;
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_u16().unwrap_or(80);
    let found = lookup_host((host, port))
        .await
        .with_context(|| format!("looking up the API server {host}"))?;
    Ok(found.map(|address| address.ip().to_canonical()).collect())
}

/// The addresses from which the API server comes; or one of it that others could come from.
fn callers(servers: &[IpAddr], own: &[IpAddr]) -> Result<Vec<IpAddr>, IpAddr> {
    let links = DEVELOPMENT_LINKS.map(|link| link.parse::<IpNetwork>());
    let on_link = |ip: IpAddr| links.iter().flatten().any(|link| link.contains(ip));
    let is_here = |ip: &IpAddr| ip.is_loopback() || own.contains(ip);
    let stranger = servers.iter().find(|ip| !is_here(ip) && !on_link(**ip));
    if let Some(stranger) = stranger {
        return Err(*stranger);
    }
    let mut callers = servers.to_vec();
    if servers.iter().any(is_here) {
        callers.extend(own);
        callers.extend([
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ]);
    }
    callers.sort();
    callers.dedup();
    Ok(callers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn only_who_cannot_be_feigned_is_answered() {
        let own = ips(&["192.0.2.7"]);
        let callers = |servers: &[&str]| callers(&ips(servers), &own);
        let here = ips(&["127.0.0.1", "192.0.2.7", "::1"]);
        assert_eq!(callers(&["127.0.0.1"]), Ok(here.clone()));
        assert_eq!(callers(&["192.0.2.7"]), Ok(here));
        assert_eq!(callers(&["172.31.240.254"]), Ok(ips(&["172.31.240.254"])));
        assert_eq!(callers(&["fd00:fa1e::fe"]), Ok(ips(&["fd00:fa1e::fe"])));
        let elsewhere = "192.0.2.8";
        assert_eq!(
            callers(&["127.0.0.1", elsewhere]),
            Err(elsewhere.parse().unwrap())
        );
    }
}
