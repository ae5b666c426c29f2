//! A pod's link to its node: a veth pair, mostly `eth0` in the pod, `fl…` on the host.
//!
//! The pod has full-length prefixes and one next hop, its gateway, whose Ethernet address is fixed to that of the
//! host's side: it sends neither ARP nor NDP. The host's side has no address at all.

use std::{collections::BTreeMap, net::IpAddr, os::fd::AsFd, path::Path};

use sha2::{Digest, Sha256};

use crate::{
    Bandwidth, MacAddr, Network, NetworkError,
    bandwidth::TOKEN_BUCKET,
    in_namespace,
    namespace::{self},
    netlink::{Link, VethSide},
    sysctl::{self, Family},
};

/// The name of the pod's interface inside the pod, unless somebody asks for another.
pub const POD_DEVICE: &str = "eth0";
/// What the alias of each host side begins with.
const ALIAS: &str = "fairlead:";
/// Longest alias that the kernel takes, in bytes (`IFALIASZ` less its final zero).
const ALIAS_MAX: usize = 255;

/// What a pod's link shall be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodLinkSpec {
    /// Identifies the pod: the same uid always gives the same interface name and the same Ethernet addresses.
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// The name of the pod's interface inside the pod.
    pub device: String,
    /// The pod's addresses, at most one a family.
    pub ips: Vec<IpAddr>,
    /// The next hop in each family of `ips`.
    pub gateways: Vec<IpAddr>,
    /// In bytes.
    pub mtu: u32,
    pub bandwidth: Bandwidth,
    /// Parameters of the pod's own network namespace, such as `net.ipv4.ip_unprivileged_port_start`.
    pub sysctls: BTreeMap<String, String>,
}

/// A pod's link as it is in the kernel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodLink {
    pub uid: String,
    pub namespace: String,
    /// Cut off at the end where uid, namespace and name together exceed what an alias holds.
    pub name: String,
    /// The host's side.
    pub ifname: String,
    pub ifindex: u32,
    pub host_mac: MacAddr,
    pub pod_mac: MacAddr,
    /// In bytes.
    pub mtu: u32,
    /// Whether packets to the pod wait before the host's side: they must not go around it.
    pub limited: bool,
}

/// The name of the host's side of a pod's link: `fl` and 13 hexadecimal digits, 15 characters.
#[must_use]
pub fn pod_device_name(uid: &str) -> String {
    let digest = Sha256::digest(uid.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("fl{}", &hex[..13])
}

impl Network {
    /// Links the pod whose network namespace is at `netns` (such as `/proc/PID/ns/net`) to this node. A link that is
    /// there already is completed; one that leads to another namespace (that of an earlier sandbox) is replaced.
    ///
    /// # Errors
    ///
    /// [`NetworkError::NoGateway`] if an address has no gateway of its family, [`NetworkError::Namespace`], or a
    /// failed netlink request or sysctl. A failure may leave the link half made; calling again completes it.
    pub async fn wire_pod(
        &self,
        spec: &PodLinkSpec,
        netns: &Path,
    ) -> Result<PodLink, NetworkError> {
        for address in &spec.ips {
            gateway_for(spec, *address)?;
        }
        let host = self.clone();
        let (for_pod, path) = (spec.clone(), netns.to_owned());
        let link = in_namespace(netns, async move |pod: Network| {
            prepare_pod(&for_pod)?;
            let host_link = ensure_pair(&host, &pod, &for_pod, &path).await?;
            configure_host_side(&host, &host_link, &for_pod).await?;
            configure_pod_side(&pod, &for_pod).await?;
            for (key, value) in &for_pod.sysctls {
                sysctl::set_net(key, value)?;
            }
            Ok(host_link)
        })
        .await?;
        sysctl::quiet_ipv6(&link.name)?;
        // The route to a pod leads to fairlead0, so its packets for the host come from where no route points.
        sysctl::set_interface(Family::V4, &link.name, "rp_filter", "0")?;
        Ok(PodLink {
            uid: spec.uid.clone(),
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            ifname: link.name,
            ifindex: link.index,
            host_mac: host_mac(&spec.uid),
            pod_mac: pod_mac(&spec.uid),
            mtu: spec.mtu,
            limited: spec.bandwidth.ingress.is_some(),
        })
    }

    /// Removes a pod's link; false if there was none (the kernel removes it together with the pod's namespace).
    ///
    /// # Errors
    ///
    /// A failed netlink request.
    pub async fn unwire_pod(&self, uid: &str) -> Result<bool, NetworkError> {
        match self.link(&pod_device_name(uid)).await? {
            Some(link) => self.delete_link(link.index).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// The link of one pod.
    ///
    /// # Errors
    ///
    /// A failed netlink request.
    pub async fn pod_link(&self, uid: &str) -> Result<Option<PodLink>, NetworkError> {
        let link = self.link(&pod_device_name(uid)).await?;
        Ok(link.and_then(pod_link))
    }

    /// The links of all pods on this node, found by their alias.
    ///
    /// # Errors
    ///
    /// A failed netlink request.
    pub async fn pod_links(&self) -> Result<Vec<PodLink>, NetworkError> {
        Ok(self
            .links()
            .await?
            .into_iter()
            .filter_map(pod_link)
            .collect())
    }
}

/// Kernel parameters of the pod's namespace, before it has an interface: containers without a network start with IPv6
/// off, and duplicate address detection would keep the address unusable for a second.
fn prepare_pod(spec: &PodLinkSpec) -> Result<(), NetworkError> {
    if spec.ips.iter().any(IpAddr::is_ipv6) {
        for (interface, key, value) in [
            ("all", "disable_ipv6", "0"),
            ("default", "disable_ipv6", "0"),
            ("default", "accept_dad", "0"),
            ("default", "accept_ra", "0"),
        ] {
            sysctl::set_interface(Family::V6, interface, key, value)?;
        }
    }
    Ok(())
}

async fn ensure_pair(
    host: &Network,
    pod: &Network,
    spec: &PodLinkSpec,
    netns: &Path,
) -> Result<Link, NetworkError> {
    let name = pod_device_name(&spec.uid);
    if let Some(link) = host.link(&name).await? {
        let pod_side = pod.link(&spec.device).await?;
        if pod_side.is_some_and(|side| are_joined(&link, &side, &spec.uid)) {
            return Ok(link);
        }
        host.delete_link(link.index).await?;
    }
    let target = namespace::open(netns)?;
    let side = VethSide {
        name: &name,
        mac: host_mac(&spec.uid),
        namespace: None,
    };
    let peer = VethSide {
        name: &spec.device,
        mac: pod_mac(&spec.uid),
        namespace: Some(target.as_fd()),
    };
    host.add_veth(&side, &peer, spec.mtu).await?;
    host.link(&name)
        .await?
        .ok_or(NetworkError::NoInterface { name })
}

async fn configure_host_side(
    host: &Network,
    link: &Link,
    spec: &PodLinkSpec,
) -> Result<(), NetworkError> {
    host.set_up(link.index, spec.mtu, Some(&alias(spec)))
        .await?;
    host.limit(link, spec.bandwidth.ingress).await
}

async fn configure_pod_side(pod: &Network, spec: &PodLinkSpec) -> Result<(), NetworkError> {
    let missing = |name: &str| NetworkError::NoInterface {
        name: name.to_owned(),
    };
    let lo = pod.link("lo").await?.ok_or_else(|| missing("lo"))?;
    pod.set_only_up(lo.index).await?;
    let device = pod
        .link(&spec.device)
        .await?
        .ok_or_else(|| missing(&spec.device))?;
    pod.set_up(device.index, spec.mtu, None).await?;
    pod.limit(&device, spec.bandwidth.egress).await?;
    pod.set_addresses(device.index, &spec.ips).await?;
    for address in &spec.ips {
        let gateway = gateway_for(spec, *address)?;
        pod.set_neighbour(device.index, gateway, host_mac(&spec.uid))
            .await?;
        pod.set_default_route(device.index, gateway).await?;
    }
    Ok(())
}

/// Whether the two are the sides of one pair, and the pod's side is ours.
pub(crate) fn are_joined(host: &Link, pod: &Link, uid: &str) -> bool {
    pod.mac == Some(pod_mac(uid))
        && pod.peer_index == Some(host.index)
        && host.peer_index == Some(pod.index)
}

fn gateway_for(spec: &PodLinkSpec, address: IpAddr) -> Result<IpAddr, NetworkError> {
    let found = spec
        .gateways
        .iter()
        .copied()
        .find(|gateway| gateway.is_ipv4() == address.is_ipv4());
    found.ok_or(NetworkError::NoGateway { address })
}

fn host_mac(uid: &str) -> MacAddr {
    MacAddr::derived(&format!("fairlead pod {uid} host side"))
}

fn pod_mac(uid: &str) -> MacAddr {
    MacAddr::derived(&format!("fairlead pod {uid} pod side"))
}

fn alias(spec: &PodLinkSpec) -> String {
    let mut alias = format!("{ALIAS}{}/{}/{}", spec.uid, spec.namespace, spec.name);
    while alias.len() > ALIAS_MAX {
        alias.pop();
    }
    alias
}

fn pod_link(link: Link) -> Option<PodLink> {
    let mut parts = link.alias.as_deref()?.strip_prefix(ALIAS)?.splitn(3, '/');
    let (uid, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    // An alias is free text: the name says whether the link really is that pod's.
    if link.name != pod_device_name(uid) {
        return None;
    }
    Some(PodLink {
        uid: uid.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ifindex: link.index,
        host_mac: link.mac.unwrap_or_default(),
        pod_mac: pod_mac(uid),
        mtu: link.mtu,
        limited: link.queue.as_deref() == Some(TOKEN_BUCKET),
        ifname: link.name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(alias: &str, name: &str) -> Link {
        Link {
            index: 7,
            name: name.to_owned(),
            mac: Some(host_mac("u1")),
            mtu: 1450,
            alias: Some(alias.to_owned()),
            peer_index: Some(2),
            is_veth: true,
            vxlan: None,
            queue: None,
            is_up: true,
        }
    }

    #[test]
    fn device_names_fit_the_kernel_and_differ_by_uid() {
        let name = pod_device_name("7c3a0c6e-6f3d-4b6e-9d3c-0d8b2f6d7a11");
        assert_eq!(name.len(), 15);
        assert_ne!(
            name,
            pod_device_name("7c3a0c6e-6f3d-4b6e-9d3c-0d8b2f6d7a12")
        );
    }

    #[test]
    fn the_pod_is_read_back_from_the_alias() {
        let spec = PodLinkSpec {
            uid: "u1".to_owned(),
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            device: POD_DEVICE.to_owned(),
            ips: Vec::new(),
            gateways: Vec::new(),
            mtu: 1450,
            bandwidth: Bandwidth::default(),
            sysctls: BTreeMap::new(),
        };
        let found = pod_link(link(&alias(&spec), &pod_device_name("u1"))).unwrap();
        assert_eq!(
            (
                found.uid.as_str(),
                found.namespace.as_str(),
                found.name.as_str()
            ),
            ("u1", "default", "web")
        );
        assert_eq!(found.ifindex, 7);
    }

    #[test]
    fn an_alias_that_somebody_else_wrote_is_not_believed() {
        assert_eq!(pod_link(link("fairlead:u1/default/web", "veth12")), None);
        assert_eq!(
            pod_link(link("uplink to rack 7", &pod_device_name("u1"))),
            None
        );
    }

    #[test]
    fn a_long_pod_name_is_cut_to_what_the_kernel_takes() {
        let spec = PodLinkSpec {
            uid: "u1".to_owned(),
            namespace: "n".repeat(63),
            name: "p".repeat(253),
            device: POD_DEVICE.to_owned(),
            ips: Vec::new(),
            gateways: Vec::new(),
            mtu: 1450,
            bandwidth: Bandwidth::default(),
            sysctls: BTreeMap::new(),
        };
        assert_eq!(alias(&spec).len(), ALIAS_MAX);
        assert_eq!(
            pod_link(link(&alias(&spec), &pod_device_name("u1")))
                .unwrap()
                .namespace,
            "n".repeat(63)
        );
    }
}
