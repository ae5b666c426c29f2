//! The rules that kube-proxy lays for the same services, in its `iptables` and its `nftables` mode: chains, order and
//! matches as its tests publish them (`TestOverallIPTablesRules`, `TestOverallNFTablesRules`), names of the same length. Where
//! a kube-proxy is given, it lays its own too ([`real`]).

mod real;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use node_agent_model::Protocol;

use crate::cell::{Cell, OTHER_NODE, PodAddress, SAME_NODE};
use crate::fairlead::{MEASURED_PORTS, cluster_ips, node_port, other_endpoints, other_service_ip};
use crate::server::PACKET_PORT;

/// Everything that a pod's address can be here.
const CLUSTER_CIDR: &str = "10.244.0.0/14";

/// After which conntrack forgets a flow that was not answered.
pub const UDP_TIMEOUT: Duration = Duration::from_secs(1);

/// Which of kube-proxy's modes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// `iptables-legacy`.
    Iptables,
    Nftables,
}

/// One port of a service.
#[derive(Clone, Debug)]
struct ServicePort {
    /// `namespace/name:port`.
    name: String,
    cluster_ip: Ipv4Addr,
    protocol: &'static str,
    port: u16,
    node_port: Option<u16>,
    endpoints: Vec<(Ipv4Addr, u16)>,
}

impl Mode {
    /// Lays the rules of `services` services with three endpoints on both nodes of a cell; the measured ones stand in
    /// the middle.
    pub fn lay(self, cell: &mut Cell, services: u16) -> Result<()> {
        let ports = service_ports(services);
        for node in &cell.nodes {
            match self {
                Self::Iptables => {
                    node.feed("iptables-legacy-restore", &["--noflush"], &iptables(&ports))
                }
                Self::Nftables => node.feed("nft", &["-f", "-"], &nftables(&ports)),
            }
            .with_context(|| format!("lay the rules of {services} services in {self:?} mode"))?;
        }
        Self::forget_fast(cell)
    }

    /// Lays them by this kube-proxy.
    pub fn lay_by(self, program: &Path, cell: &mut Cell, services: u16) -> Result<()> {
        for number in [1, 2] {
            real::lay(program, self, cell, number, service_ports(services))
                .with_context(|| format!("have {} lay its rules", program.display()))?;
        }
        Self::forget_fast(cell)
    }

    fn forget_fast(cell: &mut Cell) -> Result<()> {
        for node in &cell.nodes {
            // A source port that comes again opens a flow of its own, and a closed connection goes soon.
            let seconds = UDP_TIMEOUT.as_secs().to_string();
            node.sysctl("net/netfilter/nf_conntrack_udp_timeout", &seconds)?;
            node.sysctl("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "1")?;
        }
        cell.netfilter = true;
        Ok(())
    }
}

/// All ports of all services, in the order of the rules.
fn service_ports(services: u16) -> Vec<ServicePort> {
    let others = services.saturating_sub(2);
    let before = others / 2;
    let mut ports: Vec<ServicePort> = (0..before).map(other).collect();
    ports.extend([SAME_NODE, OTHER_NODE].into_iter().flat_map(measured));
    ports.extend((before..others).map(other));
    ports
}

fn other(index: u16) -> ServicePort {
    ServicePort {
        name: format!("bench/other-{index}:http"),
        cluster_ip: other_service_ip(index),
        protocol: "tcp",
        port: 80,
        node_port: None,
        endpoints: other_endpoints(index).map(|ip| (ip, 80)).to_vec(),
    }
}

fn measured(backend: PodAddress) -> Vec<ServicePort> {
    let [IpAddr::V4(cluster_ip), _] = cluster_ips(backend) else {
        unreachable!("the first ClusterIP is the IPv4 one")
    };
    MEASURED_PORTS
        .into_iter()
        .map(|(name, protocol, port)| ServicePort {
            name: format!("bench/backend-{}:{name}", backend.node),
            cluster_ip,
            protocol: match protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            },
            port,
            node_port: (port == PACKET_PORT).then(|| node_port(backend)),
            endpoints: vec![(backend.v4(), port)],
        })
        .collect()
}

const IPTABLES_FILTER: &str = r#"*filter
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"#;

const IPTABLES_NAT: &str = r#"-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
COMMIT
"#;

fn iptables(ports: &[ServicePort]) -> String {
    let mut chains = String::from(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n",
    );
    let mut rules = String::new();
    for (index, port) in ports.iter().enumerate() {
        iptables_port(index, port, &mut chains, &mut rules)
            .expect("a String takes whatever is written");
    }
    format!("{IPTABLES_FILTER}{chains}{rules}{IPTABLES_NAT}")
}

fn iptables_port(
    index: usize,
    port: &ServicePort,
    chains: &mut String,
    rules: &mut String,
) -> std::fmt::Result {
    let ServicePort {
        name,
        cluster_ip,
        protocol,
        port: number,
        ..
    } = port;
    let id = format!("{index:016X}");
    let to_service = format!("-m {protocol} -p {protocol} -d {cluster_ip} --dport {number}");
    writeln!(chains, ":KUBE-SVC-{id} - [0:0]")?;
    writeln!(
        rules,
        "-A KUBE-SERVICES -m comment --comment \"{name} cluster IP\" {to_service} -j KUBE-SVC-{id}"
    )?;
    if let Some(node_port) = port.node_port {
        writeln!(chains, ":KUBE-EXT-{id} - [0:0]")?;
        writeln!(
            rules,
            "-A KUBE-NODEPORTS -m comment --comment {name} -m {protocol} -p {protocol} --dport {node_port} -j KUBE-EXT-{id}\n\
             -A KUBE-EXT-{id} -m comment --comment \"masquerade traffic for {name} external destinations\" -j KUBE-MARK-MASQ\n\
             -A KUBE-EXT-{id} -j KUBE-SVC-{id}"
        )?;
    }
    writeln!(
        rules,
        "-A KUBE-SVC-{id} -m comment --comment \"{name} cluster IP\" {to_service} ! -s {CLUSTER_CIDR} -j KUBE-MARK-MASQ"
    )?;
    for (number, (ip, target)) in port.endpoints.iter().enumerate() {
        let endpoint = format!("KUBE-SEP-{:016X}", index << 16 | number);
        let left = port.endpoints.len() - number;
        let chance = if left > 1 {
            let share = 1.0 / left as f64;
            format!(" -m statistic --mode random --probability {share:.10}")
        } else {
            String::new()
        };
        writeln!(chains, ":{endpoint} - [0:0]")?;
        writeln!(
            rules,
            "-A KUBE-SVC-{id} -m comment --comment \"{name} -> {ip}:{target}\"{chance} -j {endpoint}\n\
             -A {endpoint} -m comment --comment {name} -s {ip} -j KUBE-MARK-MASQ\n\
             -A {endpoint} -m comment --comment {name} -m {protocol} -p {protocol} -j DNAT --to-destination {ip}:{target}"
        )?;
    }
    Ok(())
}

/// Up to where the chains of the services come: they must be there before a map names them.
const NFTABLES_HEAD: &str = r#"table ip kube-proxy {
  comment "rules for kube-proxy"
  set cluster-ips { type ipv4_addr; comment "Active ClusterIPs"; }
  set nodeport-ips { type ipv4_addr; comment "IPs that accept NodePort traffic"; }
  map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
  map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
  map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map service-nodeports { type inet_proto . inet_service : verdict; }
  chain mark-for-masquerade { mark set mark or 0x4000; }
  chain masquerading {
    mark and 0x4000 == 0 return
    mark set mark xor 0x4000
    masquerade fully-random
  }
  chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
  chain cluster-ips-check {
    ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
    ip daddr { 10.96.0.0/12 } drop comment "Drop traffic to unallocated ClusterIPs"
  }
  chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
  chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }
  chain filter-prerouting-pre-dnat { type filter hook prerouting priority -110; ct state new jump firewall-check; }
  chain filter-output-pre-dnat { type filter hook output priority -110; ct state new jump firewall-check; }
  chain filter-forward { type filter hook forward priority 0; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }
  chain filter-input { type filter hook input priority 0; ct state new jump nodeport-endpoints-check; ct state new jump service-endpoints-check; }
  chain filter-output { type filter hook output priority 0; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }
  chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
  chain nat-output { type nat hook output priority -100; jump services; }
  chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
}
add element ip kube-proxy nodeport-ips { 192.168.100.1, 192.168.100.2 }
"#;

fn nftables(ports: &[ServicePort]) -> String {
    let mut text = NFTABLES_HEAD.to_owned();
    for (index, port) in ports.iter().enumerate() {
        nftables_port(index, port, &mut text).expect("a String takes whatever is written");
    }
    text
}

fn nftables_port(index: usize, port: &ServicePort, text: &mut String) -> std::fmt::Result {
    const TABLE: &str = "ip kube-proxy";
    let ServicePort {
        name,
        cluster_ip,
        protocol,
        port: number,
        ..
    } = port;
    let (object, port_name) = name.split_once(':').unwrap_or((name, ""));
    let tail = format!("{index:08X}-{object}/{protocol}/{port_name}");
    let mut numbered = Vec::new();
    for (number, (ip, target)) in port.endpoints.iter().enumerate() {
        let endpoint = format!("endpoint-{tail}__{ip}/{target}");
        writeln!(
            text,
            "add chain {TABLE} {endpoint}\n\
             add rule {TABLE} {endpoint} ip saddr {ip} jump mark-for-masquerade\n\
             add rule {TABLE} {endpoint} meta l4proto {protocol} dnat to {ip}:{target}"
        )?;
        numbered.push(format!("{number} : goto {endpoint}"));
    }
    let (count, endpoints) = (numbered.len(), numbered.join(", "));
    writeln!(
        text,
        "add chain {TABLE} service-{tail}\n\
         add rule {TABLE} service-{tail} ip daddr {cluster_ip} ip saddr != {CLUSTER_CIDR} jump mark-for-masquerade\n\
         add rule {TABLE} service-{tail} numgen random mod {count} vmap {{ {endpoints} }}\n\
         add element {TABLE} cluster-ips {{ {cluster_ip} }}\n\
         add element {TABLE} service-ips {{ {cluster_ip} . {protocol} . {number} : goto service-{tail} }}"
    )?;
    if let Some(node_port) = port.node_port {
        writeln!(
            text,
            "add chain {TABLE} external-{tail}\n\
             add rule {TABLE} external-{tail} jump mark-for-masquerade\n\
             add rule {TABLE} external-{tail} goto service-{tail}\n\
             add element {TABLE} service-nodeports {{ {protocol} . {node_port} : goto external-{tail} }}"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::Netns;

    #[test]
    fn the_measured_services_stand_in_the_middle_of_so_many() {
        let ports = service_ports(10);
        let addresses: std::collections::BTreeSet<_> =
            ports.iter().map(|port| port.cluster_ip).collect();
        assert_eq!(addresses.len(), 10);
        let first = ports.iter().position(|port| port.node_port.is_some());
        assert_eq!(first, Some(4 + 3), "four others, then three TCP ports");
    }

    #[test]
    fn the_kernel_takes_the_rules_of_both_modes() {
        if !tests_testkit::is_root() {
            return tests_testkit::skip("needs root");
        }
        let ports = service_ports(10);
        for (program, arguments, text) in [
            ("iptables-legacy-restore", "--noflush", iptables(&ports)),
            ("nft", "-f-", nftables(&ports)),
        ] {
            let netns = Netns::new().unwrap();
            netns.feed(program, &[arguments], &text).unwrap();
            let broken = text.replace("30084", "port");
            assert_ne!(broken, text);
            netns.feed(program, &[arguments], &broken).unwrap_err();
        }
    }
}
