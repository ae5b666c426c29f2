//! How a cluster of flannel's is configured, and what flanneld leaves on a node of it.

use std::net::Ipv6Addr;
use std::process::Command;

use anyhow::{Result, ensure};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use tests_testkit::{Machine, NetNs};

use crate::{Api, FlannelLease};

/// As docs/overlay.md says to remove what flanneld lays in its two modes.
const REMOVE_IPTABLES: &str = "
    iptables -t nat -D POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG
    iptables -t nat -F FLANNEL-POSTRTG
    iptables -t nat -X FLANNEL-POSTRTG
    iptables -D FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD
    iptables -F FLANNEL-FWD
    iptables -X FLANNEL-FWD";
const REMOVE_NFTABLES: &str = "
    nft delete table ip flannel-ipv4
    nft delete table ip6 flannel-ipv6";

/// Where any of it would be seen.
const SHOW: &str = "
    iptables-save
    ip6tables-save
    nft list ruleset
    ip link
    ip route show dev eth0";

/// What a cluster's net-conf.json says.
#[derive(Clone, Copy, Debug)]
pub struct FlannelConfig {
    /// `vxlan`, `udp`, `host-gw`.
    pub backend: &'static str,
    /// With `vxlan`: packets to nodes on the same link go as they are.
    pub direct_routing: bool,
    /// Nodes and pods have nothing but IPv6.
    pub ipv6: bool,
    /// Its rules go to nftables, not to iptables.
    pub nftables: bool,
}

impl FlannelConfig {
    #[must_use]
    pub fn json(self) -> Value {
        let backend = json!({"Type": self.backend, "DirectRouting": self.direct_routing});
        let mut config = json!({"EnableNFTables": self.nftables, "Backend": backend});
        if self.ipv6 {
            config["EnableIPv4"] = false.into();
            config["EnableIPv6"] = true.into();
            config["IPv6Network"] = "fd64::/48".into();
        } else {
            config["Network"] = "10.64.0.0/16".into();
        }
        config
    }

    /// The flag of a program of the nodes that leads to an API: by a URL it is called one thing, by a kubeconfig another.
    #[must_use]
    pub fn flag(self, api: &Api, url: &str, kubeconfig: &str) -> String {
        let machine = api.machine();
        let address = match self.ipv6 {
            true => machine.ipv6.into(),
            false => machine.ipv4.into(),
        };
        api.flag_at(address, url, kubeconfig)
    }

    /// The pods of a machine's node, where the configuration does not choose.
    ///
    /// # Panics
    ///
    /// Never: the prefixes are such.
    #[must_use]
    pub fn subnet(self, machine: &Machine) -> IpNetwork {
        if !self.ipv6 {
            return FlannelLease::of(machine).subnet.into();
        }
        let base = [0xfd64, 0, 0, machine.number.into(), 0, 0, 0, 0];
        IpNetwork::new(Ipv6Addr::from(base).into(), 64).expect("64 bits are a prefix of IPv6")
    }

    /// Removes what an ended flanneld leaves on its node.
    ///
    /// # Errors
    ///
    /// When something of it is not there, or something else is.
    pub fn remove_rest(self, host: &NetNs) -> Result<()> {
        // With udp the TUN device goes with its process.
        match (self.backend, self.ipv6) {
            ("vxlan", false) => host.ip("link del flannel.1")?,
            ("vxlan", true) => host.ip("link del flannel-v6.1")?,
            _ => {}
        }
        if self.backend == "host-gw" || self.direct_routing {
            host.ip("route flush root 10.64.0.0/16 dev eth0")?;
        }
        let remove_rules = match (self.nftables, self.ipv6) {
            (true, _) => REMOVE_NFTABLES.to_owned(),
            (false, false) => REMOVE_IPTABLES.to_owned(),
            (false, true) => REMOVE_IPTABLES.replace("iptables", "ip6tables"),
        };
        shell(host, &remove_rules)?;
        let left = shell(host, SHOW)?;
        ensure!(
            !left.to_lowercase().contains("flannel") && !left.contains("10.64."),
            "of flannel's there is still something in\n{left}"
        );
        Ok(())
    }
}

/// Runs commands on a node, up to the first that fails.
fn shell(host: &NetNs, commands: &str) -> Result<String> {
    let output = host.run(|| Command::new("sh").args(["-ec", commands]).output())?;
    ensure!(
        output.status.success(),
        "{}\nin:\n{commands}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
