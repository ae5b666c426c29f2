//! The host's own part: `fairlead0`, kernel parameters, and what the programs must know of this node.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use ebpf_abi::{Addr4, Addr6, Config, Endpoint, FamilyConfig, config_flag, endpoint_flag};
use ipnetwork::IpNetwork;
use node_agent_host::{
    Forwarding, HostDevice, HostDeviceSpec, MacAddr, Network, PodCidr, SysctlRecord, Uplink,
    VxlanDeviceSpec, netns_cookie, plan_host_sysctls, sysctl_record,
};
use node_agent_maps::DeviceMode;
use node_agent_model::Change;
use node_agent_overlay::{Outer, Overlay, VtepMac};
use tokio::sync::watch;
use tracing::info;

/// Ports that masquerade may use.
const NAT_PORTS: RangeInclusive<u16> = 61000..=63999;

/// The node's own network, wired.
#[derive(Clone, Debug)]
pub struct Host {
    pub uplink: Uplink,
    pub device: HostDevice,
    /// The kernel's VXLAN device, where it takes packets out of the overlay in the programs' place.
    pub vxlan_ifindex: Option<u32>,
    pub pod_cidrs: Vec<PodCidr>,
    pub netns_cookie: u64,
    /// Which of the node's addresses serve NodePorts; empty: all.
    pub node_port_addresses: Vec<IpNetwork>,
    /// Destinations to which pods keep their address.
    pub non_masquerade_cidrs: Vec<IpNetwork>,
    /// How the uplink's device runs `from_device`, if it does.
    pub device_mode: Option<DeviceMode>,
}

/// Makes `fairlead0` and sets the kernel parameters; what is right already stays untouched.
///
/// # Errors
///
/// When a podCIDR cannot serve or the kernel refuses.
pub async fn wire(
    network: &Network,
    uplink: Uplink,
    pod_cidrs: &[IpNetwork],
    mtu: u32,
    state_dir: &Path,
) -> anyhow::Result<Host> {
    let pod_cidrs: Vec<PodCidr> = pod_cidrs
        .iter()
        .map(|cidr| PodCidr::new(*cidr))
        .collect::<Result<_, _>>()?;
    set_sysctls(state_dir).context("setting the kernel's parameters")?;
    let spec = HostDeviceSpec {
        mtu,
        gateways: pod_cidrs.iter().map(PodCidr::gateway).collect(),
    };
    let device = network
        .ensure_host_device(&spec)
        .await
        .context("making fairlead0")?;
    Ok(Host {
        uplink,
        device,
        vxlan_ifindex: None,
        pod_cidrs,
        netns_cookie: netns_cookie().context("asking for the network namespace's cookie")?,
        node_port_addresses: Vec::new(),
        non_masquerade_cidrs: Vec::new(),
        device_mode: None,
    })
}

/// Notes what the parameters were before they are set: `fairlead cleanup` gives them back.
fn set_sysctls(state_dir: &Path) -> anyhow::Result<()> {
    let changes = plan_host_sysctls(&NAT_PORTS)?;
    let mut record = SysctlRecord::open(&sysctl_record(state_dir))?;
    record.note(&changes)?;
    for change in &changes {
        change.apply()?;
        info!(path = %change.path.display(), before = change.before, after = change.after, "kernel parameter set");
    }
    Ok(())
}

impl Host {
    /// Everything that the model must know of the host.
    pub fn changes(&self, overlay: &Overlay) -> Vec<Change> {
        let own: Vec<IpAddr> = self.addresses().collect();
        let mut changes = vec![
            Change::Config(self.config(overlay)),
            Change::NodeAddresses(serving_node_ports(&own, &self.node_port_addresses)),
            Change::KeepSource(self.non_masquerade_cidrs.iter().copied().collect()),
        ];
        let mac = self.device.mac.0;
        // What is delivered to the host comes in by fairlead0, addressed to it.
        let host = Endpoint {
            flags: endpoint_flag::HOST,
            pod_mac: mac,
            host_mac: mac,
            ..Endpoint::default()
        };
        let source_nat = Endpoint {
            flags: endpoint_flag::SOURCE_NAT,
            ..Endpoint::default()
        };
        let gateways = self.pod_cidrs.iter().map(PodCidr::gateway);
        changes.extend(
            own.into_iter()
                .chain(gateways)
                .map(|ip| Change::Endpoint(ip, Some(host))),
        );
        let reserved = self.pod_cidrs.iter().map(PodCidr::source_nat);
        changes.extend(reserved.map(|ip| Change::Endpoint(ip, Some(source_nat))));
        changes
    }

    /// Which device the overlay's packets come out of.
    pub fn follow(&mut self, overlay: &Overlay) {
        let outer = overlay.outer();
        self.vxlan_ifindex = outer.by_device.then_some(outer.device_ifindex);
    }

    /// The node's addresses on the uplink.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.uplink.v4.iter().copied().map(IpAddr::V4);
        v4.chain(self.uplink.v6.iter().copied().map(IpAddr::V6))
    }

    fn config(&self, overlay: &Overlay) -> Config {
        let options = overlay.options();
        let source_nat = |v4: bool| {
            self.pod_cidrs
                .iter()
                .map(PodCidr::source_nat)
                .find(|ip| ip.is_ipv4() == v4)
        };
        Config {
            uplink_ifindex: self.uplink.ifindex,
            host_ifindex: self.device.ifindex,
            flags: overlay.config_flags() | config_flag::MASQUERADE,
            uplink_mac: self.uplink.mac.0,
            overlay_port_be: options.port.to_be(),
            vni: options.vni,
            uplink_mtu: self.uplink.mtu,
            nat_port_first: *NAT_PORTS.start(),
            nat_port_last: *NAT_PORTS.end(),
            v4: FamilyConfig {
                node_addr: self
                    .uplink
                    .v4
                    .first()
                    .copied()
                    .map(Addr4::from)
                    .unwrap_or_default(),
                source_nat_addr: match source_nat(true) {
                    Some(IpAddr::V4(ip)) => ip.into(),
                    _ => Addr4::default(),
                },
            },
            v6: FamilyConfig {
                node_addr: self
                    .uplink
                    .v6
                    .first()
                    .copied()
                    .map(Addr6::from)
                    .unwrap_or_default(),
                source_nat_addr: match source_nat(false) {
                    Some(IpAddr::V6(ip)) => ip.into(),
                    _ => Addr6::default(),
                },
            },
            host_netns_cookie: self.netns_cookie,
        }
    }
}

/// Which of the node's addresses serve NodePorts: all, loopback for the host's own processes included, or those within
/// the ranges that the operator names.
fn serving_node_ports(own: &[IpAddr], ranges: &[IpNetwork]) -> Vec<IpAddr> {
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let named = |ip: &IpAddr| ranges.is_empty() || ranges.iter().any(|range| range.contains(*ip));
    let all = own.iter().copied().chain(loopback);
    all.filter(named).collect()
}

/// Makes the kernel's VXLAN device if the overlay needs it; answers the overlay that knows of it.
///
/// # Errors
///
/// When something else has its name or its port, or the kernel refuses.
pub async fn wire_vxlan(
    network: &Network,
    uplink: &Uplink,
    overlay: &Overlay,
) -> anyhow::Result<Overlay> {
    let device_ifindex = match vxlan_spec(uplink, overlay) {
        Some(spec) => network.ensure_vxlan_device(&spec).await?,
        None => 0,
    };
    let outer = Outer {
        device_ifindex,
        ..overlay.outer()
    };
    Ok(overlay.clone().encapsulating(outer)?)
}

/// Removes the kernel's VXLAN device if the overlay does without, once the maps and the programs do too: until then packets
/// go by it.
///
/// # Errors
///
/// When something else has its name, or the kernel refuses.
pub async fn unwire_vxlan(network: &Network, overlay: &Overlay) -> anyhow::Result<()> {
    if !overlay.needs_device() && network.remove_vxlan_device().await? {
        info!("the kernel's VXLAN device is needed no more: removed");
    }
    Ok(())
}

/// What the kernel's VXLAN device must be; `None` if the overlay does without.
pub fn vxlan_spec(uplink: &Uplink, overlay: &Overlay) -> Option<VxlanDeviceSpec> {
    let options = overlay.options();
    overlay.needs_device().then(|| VxlanDeviceSpec {
        vni: options.vni,
        port: options.port,
        local: overlay.underlay(),
        uplink: uplink.ifindex,
        mac: MacAddr(options.mac.0),
        mtu: overlay.mtu(),
        checksum: overlay.checksum(),
    })
}

/// What this machine must know of another node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Reach {
    /// Of its pods: the host's routes follow them.
    pub prefixes: Vec<IpNetwork>,
    /// Where the kernel's VXLAN device sends what is for it.
    pub forwarding: Option<(VtepMac, IpAddr)>,
}

/// The other nodes.
#[derive(Clone, Debug)]
pub struct Others(Arc<watch::Sender<BTreeMap<String, Reach>>>);

impl Others {
    pub fn new() -> Self {
        Self(Arc::new(watch::channel(BTreeMap::new()).0))
    }

    /// The default for a node that is gone or no peer.
    pub fn set(&self, node: &str, reach: Reach) {
        self.0.send_if_modified(|nodes| {
            if reach == Reach::default() {
                return nodes.remove(node).is_some();
            }
            let changed = nodes.get(node) != Some(&reach);
            nodes.insert(node.to_owned(), reach);
            changed
        });
    }

    /// Prefixes of all nodes.
    pub fn prefixes(&self) -> Vec<IpNetwork> {
        let nodes = self.0.borrow();
        let prefixes = nodes.values().flat_map(|reach| &reach.prefixes);
        prefixes.copied().collect()
    }

    /// Forwarding entries of all nodes.
    pub fn forwarding(&self) -> Forwarding {
        let nodes = self.0.borrow();
        let entries = nodes.values().filter_map(|reach| reach.forwarding);
        entries
            .map(|(mac, remote)| (MacAddr(mac.0), remote))
            .collect()
    }

    /// Tells of changes.
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<String, Reach>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ports_are_served_on_all_addresses_or_on_those_in_the_named_ranges() {
        let ips = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let ranges = |texts: &[&str]| -> Vec<IpNetwork> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let own = ips(&["192.0.2.1", "198.51.100.1", "2001:db8::1"]);
        assert_eq!(
            serving_node_ports(&own, &[]),
            ips(&[
                "192.0.2.1",
                "198.51.100.1",
                "2001:db8::1",
                "127.0.0.1",
                "::1"
            ])
        );
        assert_eq!(
            serving_node_ports(&own, &ranges(&["192.0.2.0/24", "::1/128"])),
            ips(&["192.0.2.1", "::1"])
        );
        assert_eq!(serving_node_ports(&own, &ranges(&["10.0.0.0/8"])), ips(&[]));
    }
}
