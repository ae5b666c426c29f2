//! Keeps the host as the dataplane needs it, whoever changes it: looks after each word from the kernel and every few
//! seconds, puts back what is missing and says so, and follows the uplink.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ebpf_abi::Endpoint;
use ipnetwork::IpNetwork;
use node_agent_host::{
    Forwarding, HostDeviceSpec, Ipam, Network, NetworkChanges, PodCidr, Uplink, VXLAN_DEVICE,
    VxlanDeviceSpec, shut_own_sockets,
};
use node_agent_maps::{Attached, Dataplane};
use node_agent_model::{Change, ChangeId};
use node_agent_overlay::{Overlay, OverlayError, OverlayOptions};
use node_agent_reconcile::Handle;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::agent::attach;
use crate::checksum_proof::ChecksumProof;
use crate::events::Recorder;
use crate::external::{self, Chosen, ExternalAddresses};
use crate::flags::Flags;
use crate::host::{self, Host, Others};
use crate::pods::Pods;

/// Nothing tells of a pinned link that was removed, so there must be a look without word.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Changes come in swarms; one look is for all of them.
const SETTLE: Duration = Duration::from_millis(50);

/// What was put back, counted.
#[derive(Clone, Debug, Default)]
pub struct KeeperMetrics {
    restored: Counter,
}

impl KeeperMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "host_restored",
            "Devices, addresses, routes and links that somebody else had removed or changed, put back",
            metrics.restored.clone(),
        );
        metrics
    }
}

/// Everything that must stay so.
#[derive(Debug)]
pub struct Keeper {
    pub network: Network,
    pub flags: Flags,
    pub dataplane: Arc<Dataplane>,
    pub handle: Handle,
    pub ipam: Arc<Ipam>,
    pub pods: Arc<Pods>,
    pub others: Others,
    pub external: ExternalAddresses,
    pub host: Host,
    pub overlay: watch::Sender<Overlay>,
    pub mtu: Arc<AtomicU32>,
    pub recorder: Recorder,
    pub metrics: KeeperMetrics,
    pub proof: ChecksumProof,
}

/// What the last look found, to know news from repairs.
#[derive(Debug, Default)]
struct Last {
    prefixes: BTreeSet<IpNetwork>,
    external: Chosen,
    forwarding: Forwarding,
    vxlan: Option<VxlanDeviceSpec>,
    complaint: String,
    /// When links were looked at, and on which devices.
    links: Option<(Instant, [u32; 3])>,
}

impl Keeper {
    /// Runs for ever; to be started once all leases are known, since it removes routes that it does not know.
    ///
    /// # Errors
    ///
    /// When the kernel gives no netlink socket.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut changes = NetworkChanges::subscribe()?;
        let mut nodes = self.others.subscribe();
        let mut external = self.external.subscribe();
        let mut last = Last::default();
        loop {
            nodes.borrow_and_update();
            self.proof.tell(&self.recorder);
            external.borrow_and_update();
            let complaint = match self.look(&mut last).await {
                Ok(()) => String::new(),
                Err(error) => format!("{error:#}"),
            };
            if !complaint.is_empty() && last.complaint != complaint {
                warn!(
                    error = complaint,
                    "the host's network is not as it should be, trying again"
                );
            }
            last.complaint = complaint;
            let again = if last.complaint.is_empty() {
                LOOK_EVERY
            } else {
                SETTLE * 10
            };
            tokio::select! {
                () = tokio::time::sleep(again) => {}
                more = changes.changed() => {
                    anyhow::ensure!(more, "the kernel tells no more of its network");
                    tokio::time::sleep(SETTLE).await;
                }
                Ok(()) = nodes.changed() => {}
                Ok(()) = external.changed() => tokio::time::sleep(SETTLE).await,
            }
        }
    }

    async fn look(&mut self, last: &mut Last) -> anyhow::Result<()> {
        self.follow_uplink().await?;
        self.keep_device().await?;
        self.keep_vxlan(last).await?;
        self.keep_routes(last).await?;
        self.keep_service_routes(last).await?;
        // A look at each pod's link is for the pace of the clock, not for each word of the kernel: those come by the
        // thousand when pods do.
        let devices = [
            self.host.uplink.ifindex,
            self.host.device.ifindex,
            self.host.vxlan_ifindex.unwrap_or_default(),
        ];
        let fresh = last
            .links
            .is_some_and(|(then, on)| then.elapsed() + SETTLE < LOOK_EVERY && on == devices);
        if !fresh {
            self.keep_links()?;
            last.links = Some((Instant::now(), devices));
        }
        Ok(())
    }

    /// The address by which peers know this node, and the MTU that pods may use, are the uplink's.
    async fn follow_uplink(&mut self) -> anyhow::Result<()> {
        let uplink = self.network.uplink(self.flags.uplink.as_deref()).await?;
        if uplink == self.host.uplink {
            return Ok(());
        }
        let overlay = with_uplink(&self.overlay.borrow(), &uplink)?;
        let overlay = self.proof.proven(overlay).await?;
        let before: Vec<Change> = self.host.changes(&self.overlay.borrow());
        info!(was = ?self.host.uplink, now = ?uplink, "the uplink changed");
        self.recorder.warn(
            "UplinkChanged",
            format!(
                "{}: addresses {:?}, MTU {} became {}: addresses {:?}, MTU {}",
                self.host.uplink.name,
                self.host.addresses().collect::<Vec<_>>(),
                self.host.uplink.mtu,
                uplink.name,
                uplink
                    .v4
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>(),
                uplink.mtu,
            ),
        );
        let before_addresses: Vec<IpAddr> = self.host.addresses().collect();
        self.host.uplink = uplink;
        let now: Vec<IpAddr> = self.host.addresses().collect();
        let lost: Vec<IpAddr> = before_addresses
            .into_iter()
            .filter(|ip| !now.contains(ip))
            .collect();
        if !lost.is_empty() {
            // Ours to the API server would wait for answers that cannot come.
            let shut = shut_own_sockets(&lost)?;
            info!(?lost, shut, "connections from these addresses are over");
        }
        self.mtu.store(overlay.mtu(), Ordering::Relaxed);
        self.overlay.send_replace(overlay);
        self.tell(&before).await
    }

    async fn keep_device(&mut self) -> anyhow::Result<()> {
        let spec = HostDeviceSpec {
            mtu: self.overlay.borrow().mtu(),
            gateways: self.host.pod_cidrs.iter().map(PodCidr::gateway).collect(),
        };
        let faults = self.network.host_device_faults(&spec).await?;
        if faults.is_empty() && self.host.device.mtu == spec.mtu {
            return Ok(());
        }
        let before = self.host.changes(&self.overlay.borrow());
        let own_doing = self.host.device.mtu != spec.mtu;
        let device = self.network.ensure_host_device(&spec).await?;
        if !own_doing {
            faults.into_iter().for_each(|fault| self.restored(&fault));
        }
        self.host.device = device;
        self.tell(&before).await
    }

    /// The kernel's VXLAN device, if the overlay needs it, and whom it reaches.
    async fn keep_vxlan(&mut self, last: &mut Last) -> anyhow::Result<()> {
        let overlay = self.overlay.borrow().clone();
        let Some(spec) = host::vxlan_spec(&self.host.uplink, &overlay) else {
            return Ok(());
        };
        let own_doing = last.vxlan.as_ref().is_some_and(|earlier| *earlier != spec);
        let faults = self.network.vxlan_device_faults(&spec).await?;
        if !faults.is_empty() {
            let overlay = host::wire_vxlan(&self.network, &self.host.uplink, &overlay).await?;
            self.host.follow(&overlay);
            self.overlay.send_replace(overlay);
            if !own_doing {
                faults.into_iter().for_each(|fault| self.restored(&fault));
            }
            last.forwarding = Forwarding::new();
        }
        last.vxlan = Some(spec);
        let ifindex = self.overlay.borrow().outer().device_ifindex;
        let wanted = self.others.forwarding();
        let changes = self.network.set_forwarding(ifindex, &wanted).await?;
        if changes > 0 && wanted == last.forwarding {
            self.restored(&format!(
                "{changes} forwarding entries of {VXLAN_DEVICE} were missing or others'"
            ));
        }
        last.forwarding = wanted;
        Ok(())
    }

    async fn keep_routes(&self, last: &mut Last) -> anyhow::Result<()> {
        let device = &self.host.device;
        let own = self.host.pod_cidrs.iter().map(PodCidr::network);
        let services = self.flags.service_cidr.iter().copied();
        // Pods of an earlier podCIDR are reached from here still.
        let outside = |ip: &IpAddr| !self.host.pod_cidrs.iter().any(|cidr| cidr.contains(*ip));
        let leases = self.ipam.leases().into_iter().map(|lease| lease.address);
        let lone = leases.filter(outside).map(IpNetwork::from);
        // Without a podCIDR of a family the host has no address in it to send from.
        let reachable = |prefix: &IpNetwork| device.gateway_for(prefix.ip()).is_some();
        let wanted: BTreeSet<IpNetwork> = own
            .chain(services)
            .chain(lone)
            .chain(self.others.prefixes())
            .filter(reachable)
            .collect();
        let prefixes: Vec<IpNetwork> = wanted.iter().copied().collect();
        let changes = self.network.set_host_routes(device, &prefixes).await?;
        if changes.added + changes.removed > 0 {
            if wanted == last.prefixes {
                self.restored(&format!(
                    "{} routes to pods and services were missing, {} were others'",
                    changes.added, changes.removed
                ));
            } else {
                info!(
                    added = changes.added,
                    removed = changes.removed,
                    "the host's routes changed"
                );
            }
        }
        last.prefixes = wanted;
        Ok(())
    }

    /// External addresses of Services, for what is not translated at the socket; also tells of those that get no route.
    async fn keep_service_routes(&self, last: &mut Last) -> anyhow::Result<()> {
        let device = &self.host.device;
        let reachable = |ip: &IpAddr| device.gateway_for(*ip).is_some();
        let own = self.host.addresses().chain(device.gateways.iter().copied());
        let chosen = match self.external.is_empty() {
            true => Chosen::default(),
            false => {
                let routers = self.network.routers().await?;
                let resolvers = external::resolvers();
                let protected = external::protected(own, routers, resolvers);
                self.external.choose(&protected, reachable)
            }
        };
        let routes = &chosen.routes;
        let changes = self.network.set_service_routes(device, routes).await?;
        if changes.added + changes.removed > 0 && *routes == last.external.routes {
            self.restored(&format!(
                "{} routes or rules to external addresses of Services were missing, {} were others'",
                changes.added, changes.removed
            ));
        }
        for (address, why) in &chosen.left_out {
            if last.external.left_out.get(address) != Some(why) {
                warn!(%address, why, "external address left out");
                let message = format!(
                    "UDP and SCTP of this node's own processes to {address} are not balanced: {why}"
                );
                self.recorder.warn("ExternalAddressLeftOut", message);
            }
        }
        last.external = chosen;
        Ok(())
    }

    fn keep_links(&self) -> anyhow::Result<()> {
        let mut created = Vec::new();
        for (program, attached) in attach(&self.flags, &self.dataplane, &self.host)? {
            if attached == Attached::Created {
                created.push(program.to_owned());
            }
        }
        created.extend(self.pods.attach_again()?);
        for name in created {
            self.restored(&format!("the link of {name} was missing"));
        }
        Ok(())
    }

    /// Tells the model what is now, and takes back what was told before and is no longer so.
    async fn tell(&self, before: &[Change]) -> anyhow::Result<()> {
        let now = self.host.changes(&self.overlay.borrow());
        let kept: BTreeSet<IpAddr> = now.iter().filter_map(endpoint_of).collect();
        let gone = before.iter().filter_map(endpoint_of);
        let gone = gone
            .filter(|ip| !kept.contains(ip))
            .map(|ip| Change::Endpoint(ip, None::<Endpoint>));
        for change in gone.chain(now.iter().cloned()) {
            self.handle.change(change, ChangeId::default()).await?;
        }
        Ok(())
    }

    fn restored(&self, what: &str) {
        self.metrics.restored.inc();
        warn!(what, "put back");
        self.recorder
            .warn("HostStateRestored", format!("{what}: put back"));
    }
}

fn endpoint_of(change: &Change) -> Option<IpAddr> {
    match change {
        Change::Endpoint(ip, Some(_)) => Some(*ip),
        _ => None,
    }
}

fn with_uplink(overlay: &Overlay, uplink: &Uplink) -> Result<Overlay, OverlayError> {
    let options = OverlayOptions {
        underlay_v4: uplink.v4.first().copied(),
        underlay_v6: uplink.v6.first().copied(),
        on_link: uplink.on_link.clone(),
        uplink_mtu: uplink.mtu,
        ..overlay.options().clone()
    };
    Overlay::new(options)?.encapsulating(overlay.outer())
}
