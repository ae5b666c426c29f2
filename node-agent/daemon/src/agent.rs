//! The start, in order, and the tasks that then run for ever.
//!
//! An agent that starts again finds its programs, maps and links pinned and at work; until it has listed everything it
//! changes nothing of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, anyhow, bail};
use node_agent_host::{Ipam, Network, PodWiring, Uplink, bpffs_mounted, cgroup2_root, mount_bpffs};
use node_agent_maps::{Attached, Dataplane, Options as DataplaneOptions, Program};
use node_agent_model::ChangeId;
use node_agent_overlay::{Mode, Overlay, OverlayOptions, VtepMac};
use node_agent_reconcile::{Handle, Metrics, Options, Reconciler};
use node_agent_reflect::SOURCES;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tracing::info;

use crate::collect::CollectMetrics;
use crate::flags::Flags;
use crate::host::{Host, Prefixes};
use crate::own_node::{Assigned, OwnNode};
use crate::pods::Pods;
use crate::readiness::Readiness;
use crate::streams::Streams;
use crate::{client, cni, collect, events, host, http, kubelet, pods, scrape};

/// The source of what the agent finds on its own machine.
const HOST_SOURCE: &str = "this host";
const BPFFS: &str = "/sys/fs/bpf";

/// Runs the agent; returns only when something that must run for ever has ended.
///
/// # Errors
///
/// When the node cannot carry the dataplane, or a part ended.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    let readiness = Arc::new(Readiness::default());
    readiness.stage("loading the programs");
    let dataplane = Arc::new(open_dataplane(flags.pin_dir.clone()).await?);
    let mut registry = Registry::default();
    let ours = registry.sub_registry_with_prefix("fairlead");
    let reconcile_metrics = Metrics::register(ours);
    let collect_metrics = CollectMetrics::register(ours);
    registry.register_collector(Box::new(scrape::Dataplane(dataplane.maps().clone())));
    let kubelet_metrics = Arc::new(OnceLock::new());
    registry.register_collector(Box::new(scrape::Pods(kubelet_metrics.clone())));
    http::serve(flags.listen, readiness.clone(), registry).await?;

    let network = Network::connect()?;
    let uplink = network
        .uplink(flags.uplink.as_deref())
        .await
        .context("--uplink")?;
    let client = client::connect(&flags).await?;
    let mut tasks = JoinSet::new();
    let kubelet = match flags.kubelet {
        true => Some(kubelet::start(&flags, &uplink, &client, &readiness, &mut tasks).await?),
        false => None,
    };
    if let Some(kubelet) = &kubelet {
        // The cell is empty until here.
        let _ = kubelet_metrics.set(kubelet.metrics());
    }
    let own_node = OwnNode::new(client.clone(), &flags.node_name);
    let assigned = own_node.wait_for_pod_cidrs(&readiness).await?;
    let overlay = overlay(&flags, &uplink, &assigned)?;

    readiness.stage("wiring the host");
    let host = host::wire(&network, uplink, &assigned.pod_cidrs, overlay.mtu()).await?;
    let ipam = Arc::new(Ipam::open(
        &flags.state_dir.join("leases"),
        host.pod_cidrs.clone(),
    )?);
    let handle = start_reconciler(&flags, &dataplane, reconcile_metrics, &mut tasks)?;
    readiness.watch(handle.clone());
    tell_host(&handle, &host, &overlay, &network, &ipam).await?;

    readiness.stage("listing Services, EndpointSlices and Nodes");
    let prefixes = Prefixes::new();
    let streams = Streams {
        handle: handle.clone(),
        overlay: overlay.clone(),
        prefixes: prefixes.clone(),
        own_node: own_node.clone(),
        pod_cidrs: assigned.pod_cidrs.clone(),
        ignored: BTreeMap::new(),
    };
    tasks.spawn({
        let client = client.clone();
        async move { ("watch streams", streams.run(client).await) }
    });
    spawn(
        &mut tasks,
        "events",
        events::run(client, flags.node_name.clone(), handle.clone()),
    );
    spawn(
        &mut tasks,
        "node publisher",
        own_node
            .clone()
            .keep_published(overlay.clone(), handle.clone()),
    );
    handle.wait_synced().await?;

    readiness.stage("attaching the programs");
    attach(&flags, &dataplane, &host)?;
    pods::adopt(&dataplane, &network.pod_links().await?)?;
    spawn(
        &mut tasks,
        "host routes",
        prefixes.follow(network.clone(), host, flags.service_cidr.clone()),
    );
    spawn(
        &mut tasks,
        "connection collector",
        collect::run(dataplane.maps().clone(), collect_metrics),
    );
    own_node.changed();
    let wiring = PodWiring {
        network,
        ipam,
        mtu: overlay.mtu(),
        hook: Arc::new(Pods { handle, dataplane }),
    };
    match kubelet {
        Some(kubelet) => spawn(&mut tasks, "kubelet", kubelet.run(wiring)),
        None if flags.cni => cni::start(&flags, wiring, &readiness, &mut tasks)?,
        None => {}
    }
    readiness.started();
    first_to_end(tasks).await
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
async fn open_dataplane(pin_dir: std::path::PathBuf) -> anyhow::Result<Dataplane> {
    let bpffs = Path::new(BPFFS);
    if pin_dir.starts_with(bpffs) && bpffs.is_dir() && !bpffs_mounted(bpffs)? {
        mount_bpffs(bpffs)?;
        info!(path = BPFFS, "mounted a bpffs");
    }
    let opened = tokio::task::spawn_blocking(move || {
        Dataplane::open(&pin_dir, &DataplaneOptions::default())
    })
    .await?;
    opened.context("opening the dataplane")
}

fn overlay(flags: &Flags, uplink: &Uplink, assigned: &Assigned) -> anyhow::Result<Overlay> {
    // Peers keep our address over a restart: it is the one that we published.
    let published =
        Overlay::published_mac(&assigned.annotations).filter(|_| flags.overlay == Mode::Vxlan);
    let options = OverlayOptions {
        node_name: flags.node_name.clone(),
        mode: flags.overlay,
        underlay_v4: uplink.v4.first().copied(),
        underlay_v6: uplink.v6.first().copied(),
        on_link_v4: uplink.on_link_v4.clone(),
        uplink_mtu: uplink.mtu,
        port: flags.vxlan_port,
        vni: flags.vni,
        mac: published.unwrap_or_else(|| VtepMac::from_random(rand::random())),
    };
    Ok(Overlay::new(options)?)
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
        .chain([HOST_SOURCE]);
    let options = Options::new(flags.node_name.clone(), sources);
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
    ipam: &Ipam,
) -> anyhow::Result<()> {
    let links = network
        .pod_links()
        .await
        .context("looking for the links of pods")?;
    for change in host
        .changes(overlay)
        .into_iter()
        .chain(pods::found(&links, ipam))
    {
        handle.change(change, ChangeId::default()).await?;
    }
    handle.synced(HOST_SOURCE).await?;
    Ok(())
}

/// Only after the maps hold everything: a program without its maps would turn packets away.
fn attach(flags: &Flags, dataplane: &Dataplane, host: &Host) -> anyhow::Result<()> {
    let log = |program: &str, attached: Attached| info!(program, ?attached, "attached");
    log(
        "from_network",
        dataplane.attach_uplink(host.uplink.ifindex)?,
    );
    log("from_host", dataplane.attach_host(host.device.ifindex)?);
    if flags.socket_lb {
        let cgroup = match &flags.cgroup {
            Some(path) => path.clone(),
            None => cgroup2_root()?,
        };
        for (program, attached) in dataplane.attach_cgroup(&cgroup)? {
            log(program.name(), attached);
        }
    } else {
        for program in Program::CGROUP {
            dataplane.detach(program.name())?;
        }
    }
    Ok(())
}
