//! The dataplane's part in a pod's network: its endpoints in the maps, and the program at its link.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use async_trait::async_trait;
use ebpf_abi::{Endpoint, endpoint_flag};
use node_agent_host::{HostPorts, Ipam, MacAddr, PodHook, PodLink, PodNetwork};
use node_agent_maps::{Attached, Dataplane};
use node_agent_model::{Change, ChangeId};
use node_agent_reconcile::Handle;
use tracing::{debug, info};

use crate::host_ports;

/// Called for each pod, by the kubelet or for the CNI plugin.
#[derive(Debug)]
pub struct Pods {
    handle: Handle,
    dataplane: Arc<Dataplane>,
    host_ports: Arc<HostPorts>,
    /// The links that must have our program: interface names and indexes.
    wired: Mutex<BTreeMap<String, u32>>,
}

impl Pods {
    pub fn new(handle: Handle, dataplane: Arc<Dataplane>, host_ports: Arc<HostPorts>) -> Self {
        Self {
            handle,
            dataplane,
            host_ports,
            wired: Mutex::default(),
        }
    }

    /// Puts this agent's program on the links of pods that are there, and forgets the links of those that are not.
    ///
    /// # Errors
    ///
    /// When a program cannot be attached.
    pub fn adopt(&self, links: &[PodLink]) -> anyhow::Result<()> {
        let mut wired = self.wired();
        *wired = links
            .iter()
            .map(|link| (link.ifname.clone(), link.ifindex))
            .collect();
        for name in self.dataplane.attached_pods()? {
            if !wired.contains_key(&name) {
                self.dataplane.detach_pod(&name)?;
                info!(ifname = name, "the link of a pod that is gone was removed");
            }
        }
        for (name, ifindex) in wired.iter() {
            self.dataplane.attach_pod(name, *ifindex)?;
        }
        Ok(())
    }

    /// Attaches what is no longer attached; answers to which interfaces.
    ///
    /// # Errors
    ///
    /// When a program cannot be attached.
    pub fn attach_again(&self) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        for (name, ifindex) in self.wired().iter() {
            // The interface goes with the pod's namespace, often before anybody says that the pod is gone.
            let is_gone = nix::net::if_::if_nametoindex(name.as_str()).is_err();
            if !is_gone && self.dataplane.attach_pod(name, *ifindex)? == Attached::Created {
                found.push(name.clone());
            }
        }
        Ok(found)
    }

    fn wired(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.wired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl PodHook for Pods {
    async fn pod_wired(&self, pod: &PodNetwork) -> anyhow::Result<()> {
        let id = ChangeId {
            uid: pod.uid.clone(),
            ..ChangeId::default()
        };
        for ip in &pod.ips {
            let endpoint = endpoint(pod.ifindex, pod.limited, pod.pod_mac, pod.host_mac);
            self.handle
                .change(Change::Endpoint(*ip, Some(endpoint)), id.clone())
                .await?;
        }
        if let Some(claim) = self.host_ports.of(&pod.uid) {
            host_ports::check_services(self.dataplane.maps(), &claim)?;
            for change in host_ports::changes(&claim, Some(&pod.ips)) {
                self.handle.change(change, id.clone()).await?;
            }
        }
        self.handle
            .flush()
            .await
            .with_context(|| format!("programming pod {}/{}", pod.namespace, pod.name))?;
        let attached = {
            let mut wired = self.wired();
            wired.insert(pod.ifname.clone(), pod.ifindex);
            self.dataplane.attach_pod(&pod.ifname, pod.ifindex)?
        };
        if attached == Attached::Adopted {
            debug!(pod = pod.name, ifname = pod.ifname, "pod was wired before");
        } else {
            info!(namespace = pod.namespace, pod = pod.name, ips = ?pod.ips, ifname = pod.ifname, "pod is wired");
        }
        Ok(())
    }

    async fn pod_unwired(&self, pod: &PodNetwork) -> anyhow::Result<()> {
        let id = ChangeId {
            uid: pod.uid.clone(),
            ..ChangeId::default()
        };
        for ip in &pod.ips {
            self.handle
                .change(Change::Endpoint(*ip, None), id.clone())
                .await?;
        }
        if let Some(claim) = self.host_ports.of(&pod.uid) {
            for change in host_ports::changes(&claim, None) {
                self.handle.change(change, id.clone()).await?;
            }
        }
        self.handle
            .flush()
            .await
            .with_context(|| format!("removing pod {}/{}", pod.namespace, pod.name))?;
        {
            let mut wired = self.wired();
            wired.remove(&pod.ifname);
            self.dataplane.detach_pod(&pod.ifname)?;
        }
        info!(namespace = pod.namespace, pod = pod.name, ips = ?pod.ips, "pod is unwired");
        Ok(())
    }
}

/// The endpoints and host ports of the pods that an earlier agent wired, so that none is removed before the kubelet has
/// looked.
pub fn found(links: &[PodLink], ipam: &Ipam, ports: &HostPorts) -> Vec<Change> {
    let mut addresses: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for lease in ipam.leases() {
        addresses
            .entry(lease.owner)
            .or_default()
            .push(lease.address);
    }
    let of = |link: &PodLink| {
        let endpoint = endpoint(link.ifindex, link.limited, link.pod_mac, link.host_mac);
        let ips = addresses.get(&link.uid).cloned().unwrap_or_default();
        ips.into_iter()
            .map(move |ip| Change::Endpoint(ip, Some(endpoint)))
    };
    let mut found: Vec<Change> = links.iter().flat_map(of).collect();
    for (owner, claim) in ports.all() {
        if let Some(ips) = addresses.get(&owner) {
            found.extend(host_ports::changes(&claim, Some(ips)));
        }
    }
    found
}

fn endpoint(ifindex: u32, limited: bool, pod_mac: MacAddr, host_mac: MacAddr) -> Endpoint {
    Endpoint {
        ifindex,
        flags: if limited { endpoint_flag::LIMITED } else { 0 },
        pod_mac: pod_mac.0,
        host_mac: host_mac.0,
        pad: 0,
    }
}
