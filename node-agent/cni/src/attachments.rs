//! The agent's side: attachments made, removed, checked, collected.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ipnetwork::IpNetwork;
use node_agent_host::{PodNetwork, PodWiring};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, RwLock, Semaphore};
use tracing::{info, warn};

use crate::protocol::WiredIp;
use crate::{Attachment, CniError, Code, Done, PortMapping, Reply, Request, Wanted, Wired};

/// How many attachments are worked on at once: each takes a thread in the pod's namespace.
const AT_ONCE: usize = 32;
/// Longest owner that leaves room in a link's alias for the separators.
const OWNER_MAX: usize = 240;

/// All attachments of this node, by the leases and links that are theirs: there is no other record that could differ.
pub struct Attachments {
    wiring: PodWiring,
    /// Why pods cannot be attached now; empty if they can.
    not_ready: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// Taken shared by commands of one attachment, alone by GC.
    collecting: RwLock<()>,
    at_once: Semaphore,
    /// One command at a time for each attachment.
    locks: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
}

impl std::fmt::Debug for Attachments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachments")
            .field("wiring", &self.wiring)
            .finish_non_exhaustive()
    }
}

impl Attachments {
    pub fn new(
        wiring: PodWiring,
        not_ready: impl Fn() -> Vec<String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            wiring,
            not_ready: Box::new(not_ready),
            collecting: RwLock::new(()),
            at_once: Semaphore::new(AT_ONCE),
            locks: Mutex::default(),
        }
    }

    /// Carries out one request. `netns` is a path by which this process reaches the pod's network namespace.
    ///
    /// # Errors
    ///
    /// What the plugin is to print.
    pub async fn handle(&self, request: Request, netns: Option<&Path>) -> Reply {
        let need_netns = || {
            netns.ok_or_else(|| {
                CniError::new(
                    Code::InvalidEnvironment,
                    "CNI_NETNS is missing: the runtime names the pod's network namespace",
                )
            })
        };
        match request {
            Request::Add(attachment, wanted) => self.add(&attachment, wanted, need_netns()?).await,
            Request::Del(attachment) => self.del(&attachment).await,
            Request::Check(attachment, ips) => self.check(&attachment, &ips, need_netns()?).await,
            Request::Gc { network, valid } => self.gc(&network, &valid).await,
            Request::Status => self.status(),
        }
    }

    async fn add(&self, attachment: &Attachment, wanted: Wanted, netns: &Path) -> Reply {
        let owner = attachment.owner();
        if owner.len() > OWNER_MAX {
            return Err(CniError::new(
                Code::InvalidEnvironment,
                format!(
                    "CNI_CONTAINERID is too long: with the network's and the interface's name it may have {OWNER_MAX} \
                     bytes"
                ),
            ));
        }
        let mut spec = self
            .wiring
            .spec(&owner, &wanted.pod_namespace, &wanted.pod_name);
        spec.device.clone_from(&attachment.ifname);
        if let Some(mtu) = wanted.mtu {
            if mtu > spec.mtu {
                return Err(CniError::new(
                    Code::InvalidConfiguration,
                    format!(
                        "mtu is {mtu}: the way to the other nodes carries {}; choose that or less, or leave it out",
                        spec.mtu
                    ),
                ));
            }
            spec.mtu = mtu;
        }
        spec.sysctls = wanted.sysctls;
        spec.bandwidth = wanted.bandwidth.bandwidth()?;
        let ports = wanted.port_mappings.iter().map(PortMapping::host_port);
        let ports = ports.collect::<Result<_, _>>()?;
        let mtu = spec.mtu;
        let _shared = self.collecting.read().await;
        let _one = self.lock(&owner).await;
        let _turn = self.turn().await;
        match self.wiring.wire(spec, ports, netns).await {
            Ok(network) => {
                info!(pod = network.name, namespace = network.namespace, owner, ips = ?network.ips, "attached");
                Ok(Done::Wired(self.wired(&network, mtu)))
            }
            Err(error) => {
                // A runtime calls DEL after an ADD that failed; one that does not should leak nothing either.
                if let Err(error) = self.wiring.unwire(&owner).await {
                    warn!(
                        owner,
                        error = format!("{error:#}"),
                        "left for DEL or GC to remove"
                    );
                }
                Err(failed("the pod was not attached", &error))
            }
        }
    }

    async fn del(&self, attachment: &Attachment) -> Reply {
        let _shared = self.collecting.read().await;
        self.remove(&attachment.owner()).await
    }

    /// What DEL and GC do with one attachment.
    async fn remove(&self, owner: &str) -> Reply {
        let _one = self.lock(owner).await;
        let _turn = self.turn().await;
        let removed = self.wiring.unwire(owner).await;
        removed.map_err(|error| failed("the pod was not detached", &error))?;
        Ok(Done::Nothing)
    }

    async fn check(&self, attachment: &Attachment, ips: &[IpAddr], netns: &Path) -> Reply {
        let owner = attachment.owner();
        let _shared = self.collecting.read().await;
        let _one = self.lock(&owner).await;
        let mut spec = self.wiring.spec(&owner, "", "");
        spec.device.clone_from(&attachment.ifname);
        let mut faults: Vec<String> = ips
            .iter()
            .filter(|ip| !spec.ips.contains(ip))
            .map(|ip| format!("address {ip} is not leased to this attachment"))
            .collect();
        if spec.ips.is_empty() {
            faults.push("the attachment has no addresses".to_owned());
        }
        let found = self.wiring.network.check_pod(&spec, netns).await;
        faults.extend(found.map_err(|error| failed("the pod was not checked", &error.into()))?);
        if faults.is_empty() {
            return Ok(Done::Nothing);
        }
        Err(CniError::new(Code::CheckFailed, faults.join("; ")))
    }

    async fn gc(&self, network: &str, valid: &[Attachment]) -> Reply {
        let _alone = self.collecting.write().await;
        let valid: BTreeSet<&Attachment> = valid.iter().collect();
        let mut failures = Vec::new();
        for attachment in self.present().await? {
            if attachment.network != network || valid.contains(&attachment) {
                continue;
            }
            let owner = attachment.owner();
            match self.remove(&owner).await {
                Ok(_) => info!(owner, "an attachment that the runtime forgot was removed"),
                Err(error) => failures.push(format!("{owner}: {error} ({})", error.details)),
            }
        }
        if failures.is_empty() {
            return Ok(Done::Nothing);
        }
        Err(CniError::new(
            Code::Failed,
            format!("{} attachments were not removed", failures.len()),
        )
        .with_details(failures.join("; ")))
    }

    fn status(&self) -> Reply {
        let reasons = (self.not_ready)();
        if reasons.is_empty() {
            return Ok(Done::Nothing);
        }
        Err(CniError::new(
            Code::NotAvailable,
            "the node agent is not ready to attach pods",
        )
        .with_details(reasons.join("; ")))
    }

    /// Whoever has a lease or a link.
    async fn present(&self) -> Result<BTreeSet<Attachment>, CniError> {
        let links = self.wiring.network.pod_links().await;
        let links = links.map_err(|error| failed("the links were not listed", &error.into()))?;
        let leases = self.wiring.ipam.leases();
        let owners = leases.into_iter().map(|lease| lease.owner);
        Ok(owners
            .chain(links.into_iter().map(|link| link.uid))
            .filter_map(|owner| Attachment::of_owner(&owner))
            .collect())
    }

    fn wired(&self, network: &PodNetwork, mtu: u32) -> Wired {
        let cidrs = self.wiring.ipam.cidrs();
        let with_prefix = |ip: IpAddr| {
            let cidr = cidrs.iter().find(|cidr| cidr.contains(ip))?;
            let address = IpNetwork::new(ip, cidr.network().prefix()).ok()?;
            Some(WiredIp {
                address,
                gateway: cidr.gateway(),
            })
        };
        Wired {
            host_ifname: network.ifname.clone(),
            host_mac: network.host_mac.to_string(),
            pod_mac: network.pod_mac.to_string(),
            mtu,
            ips: network
                .ips
                .iter()
                .copied()
                .filter_map(with_prefix)
                .collect(),
        }
    }

    async fn lock(&self, owner: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            if let Some(lock) = locks.get(owner).and_then(Weak::upgrade) {
                lock
            } else {
                let lock = Arc::new(AsyncMutex::new(()));
                locks.insert(owner.to_owned(), Arc::downgrade(&lock));
                lock
            }
        };
        lock.lock_owned().await
    }

    async fn turn(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.at_once
            .acquire()
            .await
            .expect("the semaphore is never closed")
    }
}

fn failed(message: &str, error: &anyhow::Error) -> CniError {
    CniError::new(Code::Failed, message).with_details(format!("{error:#}"))
}
