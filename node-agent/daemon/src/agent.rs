//! The start, in order, and the tasks that then run for ever.
//!
//! An agent that starts again finds its programs, maps and links pinned and at work; until it has listed everything it
//! changes nothing of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, anyhow, bail};
use kube::Client;
use node_agent_host::{
    HostPorts, Ipam, Network, PodWiring, Uplink, VXLAN_DEVICE, bpffs_mounted, cgroup2_root,
    give_back_freed_memory, kube_proxy_rules, mount_bpffs,
};
use node_agent_kubelet::Kubelet;
use node_agent_maps::{Attached, Dataplane, Options as DataplaneOptions, PinLock, Program};
use node_agent_model::ChangeId;
use node_agent_overlay::{
    Attributes, Backend, Mode, Outer, Overlay, OverlayOptions, OwnLease, VtepMac,
};
use node_agent_reconcile::{Handle, Metrics, Options, Reconciler};
use node_agent_reflect::SOURCES;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::checksum_proof::ChecksumProof;
use crate::collect::CollectMetrics;
use crate::connections::Connections;
use crate::events::{self, Recorder};
use crate::external::ExternalAddresses;
use crate::flags::Flags;
use crate::host::{Host, Others};
use crate::keeper::{Keeper, KeeperMetrics};
use crate::peers::{self, Following};
use crate::pods::{self, Pods};
use crate::readiness::Readiness;
use crate::registry::Source;
use crate::streams::{Origin, Streams};
use crate::{
    client, cni, collect, device, gone_backends, host, http, kubelet, own_node, scrape,
    service_health,
};

/// The source of what the agent finds on its own machine.
const HOST_SOURCE: &str = "this host";
const BPFFS: &str = "/sys/fs/bpf";

/// Runs the agent; returns only when something that must run for ever has ended.
///
/// # Errors
///
/// When the node cannot carry the dataplane, or a part ended; [`crate::peers::BeginAnew`] if it must start again.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    let readiness = Arc::new(Readiness::default());
    readiness.stage("loading the programs");
    let (_lock, dataplane) = open_dataplane(&flags).await?;
    let dataplane = Arc::new(dataplane);
    tell_of_kube_proxy().await?;
    let (registry, metrics) = register_metrics(&dataplane, &flags, &readiness);
    http::serve(flags.listen, readiness.clone(), registry).await?;

    let network = Network::connect()?;
    let uplink = network
        .uplink(flags.uplink.as_deref())
        .await
        .context("--uplink")?;
    let client = match flags.services_file {
        Some(_) => None,
        None => Some(client::connect(&flags).await?),
    };
    let mut tasks = JoinSet::new();
    let kubelet = match &client {
        Some(client) if flags.kubelet => {
            Some(kubelet::start(&flags, &uplink, client, &readiness, &mut tasks).await?)
        }
        _ => None,
    };
    if let Some(kubelet) = &kubelet {
        // The cell is empty until here.
        let _ = metrics.kubelet.set(kubelet.metrics());
    }
    let source = Source::open(&flags, client.as_ref(), &uplink, &readiness).await?;
    let waiting = |reason| readiness.stage(reason);
    let earlier = source.registry.earlier(&waiting).await?;
    let overlay = overlay(&flags, &uplink, &earlier, source.backend(&flags))?;
    let overlay = metrics.proof.proven(overlay).await?;
    let own = source
        .registry
        .acquire(&overlay.attributes(), &waiting)
        .await?;
    source.write_subnet_env(&flags.subnet_env, &own, overlay.mtu())?;

    readiness.stage("wiring the host");
    let mut host = host::wire(
        &network,
        uplink,
        &own.subnets,
        overlay.mtu(),
        &flags.state_dir,
    )
    .await?;
    let overlay = host::wire_vxlan(&network, &host.uplink, &overlay)
        .await
        .context("making the kernel's VXLAN device")?;
    host.follow(&overlay);
    tell_of_outer(&overlay);
    host.node_port_addresses
        .clone_from(&flags.node_port_addresses);
    host.non_masquerade_cidrs
        .clone_from(&flags.non_masquerade_cidrs);
    let (ipam, host_ports) = open_leases(&flags.state_dir, &host)?;
    let handle = start_reconciler(&flags, &dataplane, metrics.reconcile, &mut tasks)?;
    readiness.watch(handle.clone());
    tell_host(&handle, &host, &overlay, &network, (&ipam, &host_ports)).await?;

    readiness.stage("listing Services, EndpointSlices and Nodes");
    let mut started = Started {
        flags,
        readiness,
        client,
        network,
        dataplane,
        handle,
        ipam,
        host_ports,
        host,
        overlay: watch::Sender::new(overlay),
        others: Others::new(),
        proof: metrics.proof,
        external: ExternalAddresses::default(),
    };
    let recorder = started.follow(source, own, &mut tasks)?;
    started.handle.wait_synced().await?;
    give_back_freed_memory();
    started.host.device_mode =
        device::choose(started.flags.xdp, &started.dataplane, &started.host.uplink);
    started
        .carry(kubelet, recorder.clone(), metrics.keeper, &mut tasks)
        .await?;
    spawn(
        &mut tasks,
        "connection collector",
        collect::run(started.dataplane.maps().clone(), metrics.collect, recorder),
    );
    if started.flags.close_gone_connections {
        let maps = started.dataplane.maps().clone();
        let closing = gone_backends::run(maps, started.handle.clone(), metrics.closed);
        spawn(&mut tasks, "closing of connections", closing);
    }
    started.readiness.started();
    drop(started);
    first_to_end(tasks).await
}

/// What pods hold of this node: their addresses, and its ports.
fn open_leases(state_dir: &Path, host: &Host) -> anyhow::Result<(Arc<Ipam>, Arc<HostPorts>)> {
    let leases = node_agent_host::lease_dir(state_dir);
    let ipam = Ipam::open(&leases, host.pod_cidrs.clone())?;
    let host_ports = HostPorts::open(&node_agent_host::host_port_dir(state_dir))?;
    Ok((Arc::new(ipam), Arc::new(host_ports)))
}

/// Metrics of the parts.
struct Counted {
    reconcile: Metrics,
    collect: CollectMetrics,
    keeper: KeeperMetrics,
    proof: ChecksumProof,
    /// Connections to backends that were gone.
    closed: Counter,
    /// Empty until a kubelet has started.
    kubelet: Arc<OnceLock<Kubelet>>,
}

fn register_metrics(
    dataplane: &Dataplane,
    flags: &Flags,
    readiness: &Arc<Readiness>,
) -> (Registry, Counted) {
    let mut registry = Registry::default();
    let reconcile = Metrics::register(&mut registry);
    let ours = registry.sub_registry_with_prefix("fairlead");
    let metrics = Counted {
        reconcile,
        collect: CollectMetrics::register(ours),
        keeper: KeeperMetrics::register(ours),
        proof: ChecksumProof::register(ours, readiness.clone(), flags.rehearse_wrong_checksums),
        closed: Counter::default(),
        kubelet: Arc::new(OnceLock::new()),
    };
    ours.register(
        "connections_closed",
        "Connections that were closed because their backend was gone",
        metrics.closed.clone(),
    );
    registry.register_collector(Box::new(scrape::Dataplane(dataplane.maps().clone())));
    registry.register_collector(Box::new(Connections(dataplane.maps().clone())));
    registry.register_collector(Box::new(scrape::Pods(metrics.kubelet.clone())));
    (registry, metrics)
}

/// What the parts that run for ever are made of.
struct Started {
    flags: Flags,
    readiness: Arc<Readiness>,
    /// None where a file says the Services.
    client: Option<Client>,
    network: Network,
    dataplane: Arc<Dataplane>,
    handle: Handle,
    ipam: Arc<Ipam>,
    host_ports: Arc<HostPorts>,
    host: Host,
    overlay: watch::Sender<Overlay>,
    others: Others,
    proof: ChecksumProof,
    external: ExternalAddresses,
}

impl Started {
    /// Listens to the API server, or to the file in its place, and to the registry of leases.
    fn follow(&self, source: Source, own: OwnLease, tasks: &mut Tasks) -> anyhow::Result<Recorder> {
        let name = self.flags.node_name.clone();
        let (recorder, writing) = Recorder::new(self.client.clone(), name.clone());
        spawn(tasks, "events", writing);
        spawn(
            tasks,
            "report of full maps",
            events::run(recorder.clone(), self.handle.clone()),
        );
        let streams = Streams {
            handle: self.handle.clone(),
            nodes: source.nodes,
            own: name.clone(),
            readiness: self.readiness.clone(),
            external: self.external.clone(),
        };
        let origin = match (&self.client, &self.flags.services_file) {
            (Some(client), _) => Origin::Api(client.clone()),
            (None, Some(path)) => Origin::File(path.clone()),
            (None, None) => bail!("neither an API server nor --services-file says the Services"),
        };
        tasks.spawn(async move { ("watch streams", streams.run(origin).await) });
        let checks = service_health::run(self.handle.health_checks(), self.readiness.clone());
        spawn(tasks, "health checks of Services", checks);
        let following = Following {
            handle: self.handle.clone(),
            registry: source.registry.clone(),
            overlay: self.overlay.subscribe(),
            others: self.others.clone(),
            external: self.external.clone(),
            own,
            recorder: recorder.clone(),
            said: BTreeMap::new(),
        };
        tasks.spawn(async move { ("registry of leases", following.run().await) });
        let keeping = peers::keep_own(source.registry, self.overlay.subscribe());
        tasks.spawn(async move { ("own lease", keeping.await) });
        if let Some(client) = self.client.clone() {
            let keeping = own_node::keep_condition(client, name, self.handle.clone());
            spawn(tasks, "Node's condition", keeping);
        }
        Ok(recorder)
    }

    /// Takes packets, and pods.
    async fn carry(
        &self,
        kubelet: Option<kubelet::Started>,
        recorder: Recorder,
        metrics: KeeperMetrics,
        tasks: &mut Tasks,
    ) -> anyhow::Result<()> {
        self.readiness.stage("attaching the programs");
        for (program, attached) in attach(&self.flags, &self.dataplane, &self.host)? {
            info!(program, ?attached, "attached");
        }
        let overlay = self.overlay.borrow().clone();
        host::unwire_vxlan(&self.network, &overlay)
            .await
            .context("removing the kernel's VXLAN device")?;
        let pods = Arc::new(Pods::new(
            self.handle.clone(),
            self.dataplane.clone(),
            self.host_ports.clone(),
        ));
        pods.adopt(&self.network.pod_links().await?)?;
        for map in self.dataplane.finish_resize()? {
            info!(map, "has its new size");
        }
        let mtu = Arc::new(AtomicU32::new(self.overlay.borrow().mtu()));
        let keeper = Keeper {
            network: self.network.clone(),
            flags: self.flags.clone(),
            dataplane: self.dataplane.clone(),
            handle: self.handle.clone(),
            ipam: self.ipam.clone(),
            pods: pods.clone(),
            others: self.others.clone(),
            external: self.external.clone(),
            host: self.host.clone(),
            overlay: self.overlay.clone(),
            mtu: mtu.clone(),
            recorder,
            metrics,
            proof: self.proof.clone(),
        };
        tasks.spawn(async move { ("keeper of the host", keeper.run().await) });
        let wiring = PodWiring {
            network: self.network.clone(),
            ipam: self.ipam.clone(),
            host_ports: self.host_ports.clone(),
            mtu,
            hook: pods,
        };
        match kubelet {
            Some(kubelet) => spawn(tasks, "kubelet", kubelet.run(wiring)),
            // Without an API server nobody would say which pods there are.
            None if self.flags.cni && self.client.is_some() => {
                cni::start(&self.flags, wiring, &self.readiness, tasks)?
            }
            None => {}
        }
        Ok(())
    }
}

pub type Tasks = JoinSet<(&'static str, anyhow::Result<()>)>;

fn spawn(tasks: &mut Tasks, part: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async move {
        work.await;
        (part, Ok(()))
    });
}

/// None of the parts may end: the agent ends with the first, and is started again.
async fn first_to_end(mut tasks: Tasks) -> anyhow::Result<()> {
    match tasks.join_next().await {
        Some(Ok((part, Err(error)))) => Err(error.context(format!("the {part} failed"))),
        Some(Ok((part, Ok(())))) => bail!("the {part} ended"),
        Some(Err(error)) => Err(anyhow!(error).context("a part panicked")),
        None => bail!("nothing is left to run"),
    }
}

/// Loading makes the kernel verify the programs, which blocks for a while.
async fn open_dataplane(flags: &Flags) -> anyhow::Result<(PinLock, Dataplane)> {
    let pin_dir = flags.pin_dir.clone();
    let options = DataplaneOptions {
        max_entries: flags.sizes().context("sizing the maps")?.max_entries(),
        log: cfg!(feature = "ebpf-log"),
    };
    let bpffs = Path::new(BPFFS);
    if pin_dir.starts_with(bpffs) && bpffs.is_dir() && !bpffs_mounted(bpffs)? {
        mount_bpffs(bpffs)?;
        info!(path = BPFFS, "mounted a bpffs");
    }
    let opened = tokio::task::spawn_blocking(move || {
        let lock = PinLock::acquire(&pin_dir)?;
        let dataplane = Dataplane::open(&pin_dir, &options)?;
        Ok::<_, node_agent_maps::Error>((lock, dataplane))
    })
    .await?;
    opened.context("opening the dataplane")
}

/// Two proxies would translate the same packets: the operator must know of the other one.
async fn tell_of_kube_proxy() -> anyhow::Result<()> {
    let rules = tokio::task::spawn_blocking(kube_proxy_rules).await?;
    for found in rules.found {
        warn!(
            found,
            "a kube-proxy's rules are on this node: stop it, then remove them with `kube-proxy --cleanup`"
        );
    }
    for unseen in rules.unseen {
        debug!(unseen, "rules of a kube-proxy could not be looked for");
    }
    Ok(())
}

fn overlay(
    flags: &Flags,
    uplink: &Uplink,
    earlier: &Attributes,
    backend: Backend,
) -> anyhow::Result<Overlay> {
    // Peers keep our address over a restart: it is the one that we published.
    let published = Overlay::published_mac(earlier).filter(|_| backend.mode == Mode::Vxlan);
    let options = OverlayOptions {
        node_name: flags.node_name.clone(),
        mode: backend.mode,
        direct_routing: backend.direct_routing,
        underlay_v4: uplink.v4.first().copied(),
        underlay_v6: uplink.v6.first().copied(),
        on_link: uplink.on_link.clone(),
        uplink_mtu: uplink.mtu,
        port: backend.port,
        vni: backend.vni,
        mac: published.unwrap_or_else(|| VtepMac::from_random(rand::random())),
    };
    let outer = Outer {
        checksum: flags.overlay_checksum,
        by_device: flags.vxlan_device,
        device_ifindex: 0,
        direct_return: flags.direct_server_return,
    };
    Ok(Overlay::new(options)?.encapsulating(outer)?)
}

/// What `auto` came to.
fn tell_of_outer(overlay: &Overlay) {
    info!(
        checksum = overlay.checksum(),
        device = overlay.needs_device().then_some(VXLAN_DEVICE),
        programs = !overlay.outer().by_device,
        "how packets to other nodes are encapsulated"
    );
}

fn start_reconciler(
    flags: &Flags,
    dataplane: &Dataplane,
    metrics: Metrics,
    tasks: &mut Tasks,
) -> anyhow::Result<Handle> {
    let sources = SOURCES
        .map(|source| source.label())
        .into_iter()
        .chain([HOST_SOURCE, peers::SOURCE]);
    let options = Options {
        algorithm: flags.service_algorithm,
        capacity: dataplane.maps().capacity(),
        ..Options::new(flags.node_name.clone(), sources)
    };
    let (reconciler, handle) =
        Reconciler::new(dataplane.maps().clone(), options, metrics).context("reading the maps")?;
    spawn(tasks, "reconciler", reconciler.run());
    Ok(handle)
}

/// What the agent knows without the API: the node itself, and the pods that are already wired.
async fn tell_host(
    handle: &Handle,
    host: &Host,
    overlay: &Overlay,
    network: &Network,
    (ipam, host_ports): (&Ipam, &HostPorts),
) -> anyhow::Result<()> {
    let links = network
        .pod_links()
        .await
        .context("looking for the links of pods")?;
    let known = host.changes(overlay).into_iter();
    for change in known.chain(pods::found(&links, ipam, host_ports)) {
        handle.change(change, ChangeId::default()).await?;
    }
    handle.synced(HOST_SOURCE).await?;
    Ok(())
}

/// Only after the maps hold everything: a program without its maps would turn packets away. Calling it again repairs.
pub fn attach(
    flags: &Flags,
    dataplane: &Dataplane,
    host: &Host,
) -> anyhow::Result<Vec<(&'static str, Attached)>> {
    let mut done = vec![
        (
            "from_network",
            dataplane.attach_uplink(host.uplink.ifindex)?,
        ),
        ("from_host", dataplane.attach_host(host.device.ifindex)?),
    ];
    if let Some(ifindex) = host.vxlan_ifindex {
        done.push(("from_vxlan", dataplane.attach_vxlan(ifindex)?));
    } else {
        dataplane.detach("from_vxlan")?;
    }
    if let Some(mode) = host.device_mode {
        let attached = dataplane.attach_device(host.uplink.ifindex, mode)?;
        done.push((mode.link(), attached));
    }
    if flags.socket_lb {
        let cgroup = match &flags.cgroup {
            Some(path) => path.clone(),
            None => cgroup2_root()?,
        };
        let attached = dataplane.attach_cgroup(&cgroup)?.into_iter();
        done.extend(attached.map(|(program, attached)| (program.name(), attached)));
    } else {
        for program in Program::CGROUP {
            dataplane.detach(program.name())?;
        }
    }
    Ok(done)
}
