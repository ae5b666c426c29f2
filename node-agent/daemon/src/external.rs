//! Addresses of Services outside of the service CIDR, as the node's own processes reach them by UDP and SCTP.
//!
//! Anybody who may write a Service may name any address there. Where taking packets to it away from their usual way
//! could cut this node off from others, it is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use node_agent_model::{ObjectName, Protocol, Service};
use tokio::sync::watch;

/// Where a machine's resolvers stand; the second where its own stub is in the first (systemd-resolved(8)).
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// What Services and nodes say, and word of changes.
#[derive(Clone, Debug, Default)]
pub struct ExternalAddresses(Arc<watch::Sender<Known>>);

#[derive(Debug, Default)]
pub struct Known {
    services: BTreeMap<ObjectName, BTreeSet<IpAddr>>,
    /// By the Node's name.
    nodes: BTreeMap<String, BTreeSet<IpAddr>>,
    /// By the lease's holder.
    leases: BTreeMap<String, BTreeSet<IpAddr>>,
}

/// Which addresses get a route.
#[derive(Debug, Default)]
pub struct Chosen {
    pub routes: BTreeSet<IpAddr>,
    /// The others, and why.
    pub left_out: BTreeMap<IpAddr, String>,
}

impl ExternalAddresses {
    /// A Service is so now, or gone. TCP is translated at the socket and needs no route.
    pub fn service(&self, name: &ObjectName, service: Option<&Service>) {
        let by_packet = |service: &&Service| {
            let mut ports = service.ports.iter();
            ports.any(|port| port.protocol != Protocol::Tcp)
        };
        let addresses = service.filter(by_packet).into_iter().flat_map(|service| {
            let external = service.external_ips.iter();
            let all = external.chain(&service.load_balancer_ips).copied();
            // Only in its families it is served.
            let served = |ip: &IpAddr| {
                let mut own = service.cluster_ips.iter();
                own.any(|own| own.is_ipv4() == ip.is_ipv4())
            };
            all.filter(served)
        });
        self.set(name.clone(), addresses, |known| &mut known.services);
    }

    /// All addresses of a Node; none if it is gone.
    pub fn node(&self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        self.set(name.to_owned(), addresses, |known| &mut known.nodes);
    }

    /// By which the overlay reaches a holder; none if it is gone.
    pub fn lease(&self, holder: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        self.set(holder.to_owned(), addresses, |known| &mut known.leases);
    }

    /// Tells of changes.
    pub fn subscribe(&self) -> watch::Receiver<Known> {
        self.0.subscribe()
    }

    /// Whether no Service has such an address.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().services.is_empty()
    }

    /// `protected`: addresses that keep their way, and whose they are; `reachable`: whether this node has the family.
    pub fn choose(
        &self,
        protected: &BTreeMap<IpAddr, &'static str>,
        reachable: impl Fn(&IpAddr) -> bool,
    ) -> Chosen {
        let known = self.0.borrow();
        let mut chosen = Chosen::default();
        for (service, addresses) in &known.services {
            for address in addresses.iter().filter(|ip| reachable(ip)) {
                match protected.get(address).copied().or(known.whose(address)) {
                    None => {
                        chosen.routes.insert(*address);
                    }
                    Some(whose) => {
                        let why = format!("Service {service} names {whose}");
                        chosen.left_out.entry(*address).or_insert(why);
                    }
                }
            }
        }
        chosen
    }

    fn set<K: Ord>(
        &self,
        key: K,
        addresses: impl IntoIterator<Item = IpAddr>,
        of: impl Fn(&mut Known) -> &mut BTreeMap<K, BTreeSet<IpAddr>>,
    ) {
        let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
        self.0.send_if_modified(|known| {
            let entries = of(known);
            if addresses.is_empty() {
                return entries.remove(&key).is_some();
            }
            let changed = entries.get(&key) != Some(&addresses);
            entries.insert(key, addresses);
            changed
        });
    }
}

impl Known {
    fn whose(&self, address: &IpAddr) -> Option<&'static str> {
        let mut nodes = self.nodes.values().chain(self.leases.values());
        if nodes.any(|addresses| addresses.contains(address)) {
            return Some("a node's address");
        }
        is_special(address).then_some("an address that no route leads to")
    }
}

/// Loopback, multicast, and what stays on a link.
fn is_special(address: &IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(ip) => ip.is_link_local() || *ip == Ipv4Addr::BROADCAST,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    link_local || address.is_loopback() || address.is_multicast() || address.is_unspecified()
}

/// Addresses without which this node is cut off, and whose they are.
pub fn protected(
    own: impl IntoIterator<Item = IpAddr>,
    routers: BTreeSet<IpAddr>,
    resolvers: Vec<IpAddr>,
) -> BTreeMap<IpAddr, &'static str> {
    let own = own.into_iter().map(|ip| (ip, "an address of this node"));
    let routers = routers.into_iter().map(|ip| (ip, "a router of this node"));
    let resolvers = resolvers
        .into_iter()
        .map(|ip| (ip, "a DNS server of this node"));
    resolvers.chain(routers).chain(own).collect()
}

/// The DNS servers of this machine.
pub fn resolvers() -> Vec<IpAddr> {
    // What is not there names none.
    let texts = RESOLVERS.map(|path| std::fs::read_to_string(path).unwrap_or_default());
    texts.iter().flat_map(|text| nameservers(text)).collect()
}

/// resolv.conf(5).
fn nameservers(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let word = words.next().filter(|word| *word == "nameserver");
        // An address of a link has its interface behind it.
        let address = word.and(words.next())?.split('%').next()?;
        address.parse().ok()
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use node_agent_model::ServicePort;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn service(protocols: &[Protocol], addresses: &[&str]) -> Service {
        let port = |protocol: &Protocol| ServicePort {
            name: String::new(),
            protocol: *protocol,
            port: 53,
            node_port: None,
        };
        Service {
            cluster_ips: vec![ip("10.96.0.10"), ip("fd00:10:96::10")],
            external_ips: addresses.iter().map(|text| ip(text)).collect(),
            ports: protocols.iter().map(port).collect(),
            ..Service::default()
        }
    }

    #[test]
    fn what_would_cut_the_node_off_is_left_out_and_whose_it_is_is_said() {
        let external = ExternalAddresses::default();
        let name = ObjectName::new("default", "dns");
        let addresses = [
            "203.0.113.1",
            "192.0.2.1",
            "192.0.2.2",
            "192.0.2.3",
            "192.0.2.254",
            "192.0.2.53",
            "127.0.0.1",
            "224.0.0.251",
            "fe80::1",
            "2001:db8:113::1",
        ];
        let udp = service(&[Protocol::Tcp, Protocol::Udp], &addresses);
        external.service(&name, Some(&udp));
        external.node("n2", [ip("192.0.2.2")]);
        external.lease("192.0.2.0-24", [ip("192.0.2.3")]);
        let protected = protected(
            [ip("192.0.2.1")],
            BTreeSet::from([ip("192.0.2.254")]),
            nameservers(
                "# nameserver 203.0.113.1\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n",
            ),
        );
        let chosen = external.choose(&protected, |_| true);
        let expected = ["203.0.113.1", "2001:db8:113::1"].map(ip);
        assert_eq!(chosen.routes, BTreeSet::from(expected));
        assert_eq!(chosen.left_out.len(), addresses.len() - 2);
        let whose = |address: &str| chosen.left_out[&ip(address)].as_str();
        assert_eq!(
            whose("192.0.2.1"),
            "Service default/dns names an address of this node"
        );
        assert_eq!(
            whose("192.0.2.2"),
            "Service default/dns names a node's address"
        );
        assert_eq!(
            whose("192.0.2.3"),
            "Service default/dns names a node's address"
        );
        assert_eq!(
            whose("192.0.2.254"),
            "Service default/dns names a router of this node"
        );
        assert_eq!(
            whose("192.0.2.53"),
            "Service default/dns names a DNS server of this node"
        );
        // A Service of one family, and a node of the other.
        let ipv4 = Service {
            cluster_ips: vec![ip("10.96.0.10")],
            ..udp
        };
        external.service(&name, Some(&ipv4));
        assert!(
            external
                .choose(&protected, IpAddr::is_ipv6)
                .routes
                .is_empty()
        );
        let chosen = external.choose(&protected, IpAddr::is_ipv4);
        assert_eq!(chosen.routes, BTreeSet::from([ip("203.0.113.1")]));
    }

    #[test]
    fn services_of_tcp_alone_and_those_that_are_gone_need_no_route() {
        let external = ExternalAddresses::default();
        let mut changes = external.subscribe();
        let name = ObjectName::new("default", "web");
        external.service(&name, Some(&service(&[Protocol::Tcp], &["203.0.113.1"])));
        assert!(external.is_empty() && !changes.has_changed().unwrap());
        external.service(&name, Some(&service(&[Protocol::Sctp], &["203.0.113.1"])));
        assert!(!external.is_empty() && changes.has_changed().unwrap());
        changes.borrow_and_update();
        external.service(&name, Some(&service(&[Protocol::Sctp], &["203.0.113.1"])));
        assert!(!changes.has_changed().unwrap());
        external.service(&name, None);
        assert!(external.is_empty() && changes.has_changed().unwrap());
    }
}
