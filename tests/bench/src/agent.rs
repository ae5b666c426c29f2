//! What the agent costs: the same parts as in the daemon (watch streams, planner, reconciler, maps) in a process of
//! their own, in front of an API that costs nothing.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ebpf_abi::{Addr4, FrontendKey};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use node_agent_maps::{Dataplane, Maps};
use node_agent_reconcile::{Handle, Metrics, Options, Reconciler};
use node_agent_reflect::{Message, Reflected, SOURCES};
use serde::{Deserialize, Serialize};

use crate::api_stub::{ApiStub, Shape};
use crate::fairlead::{large_maps, pins};
use crate::program_info::pinned_map_bytes;

/// Changes of one endpoint that are timed.
const CHANGES: u32 = 200;
/// Between two of them: so long that each is planned alone.
const PAUSE: Duration = Duration::from_millis(12);
/// How often the maps are looked at.
const LOOK_EVERY: Duration = Duration::from_micros(20);
const TIMEOUT: Duration = Duration::from_secs(30);

/// What one process measured.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Figures {
    /// From the last page of the lists to complete maps, seconds.
    pub from_lists: f64,
    /// From the first request to complete maps, seconds.
    pub from_start: f64,
    /// From an event of the watch to the map, for each changed endpoint, milliseconds.
    pub changes: Vec<f64>,
    /// Resident memory of the process at the end, and at most, MiB.
    pub resident: f64,
    pub resident_peak: f64,
    /// Memory of all maps, MiB.
    pub maps: f64,
}

/// The process itself: prints its figures as JSON.
pub fn run(shape: Shape) -> Result<()> {
    use_every_core()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let _inside = runtime.enter();
    let directory = pins(&format!("agent-{}", std::process::id()), 1);
    let (map_options, capacity) = large_maps();
    let dataplane = Dataplane::open(&directory, &map_options)?;
    let options = Options {
        capacity,
        ..Options::new("n1", SOURCES.map(|source| source.label()))
    };
    let metrics = Metrics::register(&mut Default::default());
    let maps = dataplane.maps().clone();
    let (reconciler, handle) =
        Reconciler::new(maps.clone(), options, metrics).context("read the maps")?;
    runtime.spawn(reconciler.run());
    let api = ApiStub::new(shape);
    let start = Instant::now();
    runtime.spawn(stream(api.client(), handle.clone()));
    runtime
        .block_on(async { tokio::time::timeout(TIMEOUT, handle.wait_synced()).await })
        .context("the maps are not complete")??;
    let synced = Instant::now();
    let lists_arrived = api.lists_arrived().context("no list was asked for")?;
    let changes = (0..CHANGES)
        .map(|round| {
            thread::sleep(PAUSE);
            change_one(&api, shape, &maps, round)
        })
        .collect::<Result<Vec<f64>>>()?;
    let [resident, resident_peak] = resident_mib()?;
    let figures = Figures {
        from_lists: (synced - lists_arrived).as_secs_f64(),
        from_start: (synced - start).as_secs_f64(),
        changes,
        resident,
        resident_peak,
        maps: pinned_map_bytes(&directory)? as f64 / 1024.0 / 1024.0,
    };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// As an agent has them; the bench that started this process has one.
fn use_every_core() -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in 0..CpuSet::count() {
        set.set(cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).context("use every core")
}

/// From the streams to the reconciler, as the daemon does it.
async fn stream(client: kube::Client, handle: Handle) -> Result<()> {
    let (sender, mut messages) = tokio::sync::mpsc::channel(1024);
    tokio::spawn(node_agent_reflect::run(client, sender));
    while let Some(message) = messages.recv().await {
        match message {
            Message::Synced(source) => handle.synced(source.label()).await?,
            Message::Object {
                reflected: Reflected::Change(change),
                id,
            } => handle.change(change, id).await?,
            // There are none.
            Message::Object { .. } => {}
        }
    }
    Ok(())
}

/// Gives one EndpointSlice another first endpoint; milliseconds until its service's set in the maps has it.
fn change_one(api: &ApiStub, shape: Shape, maps: &Maps, round: u32) -> Result<f64> {
    let slice = round.wrapping_mul(7919) % shape.slice_count();
    let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 120, 0, 1).to_bits() + round);
    let cluster_ip = Shape::cluster_ip(slice / shape.slices);
    let event = ApiStub::modified(&shape.slice(slice, Some(address)));
    if has_backend(maps, cluster_ip, address)? {
        bail!("{address} is there before it was announced");
    }
    // An array of 10,000 slots is not read to find out: the service's entry says that it moved.
    let before = placed(maps, cluster_ip)?;
    let start = Instant::now();
    api.send(event)?;
    while placed(maps, cluster_ip)? == before {
        if start.elapsed() > TIMEOUT {
            bail!("{address} did not come into the maps");
        }
        thread::sleep(LOOK_EVERY);
    }
    let elapsed = start.elapsed();
    if !has_backend(maps, cluster_ip, address)? {
        bail!("the maps of {cluster_ip} changed, but do not hold {address}");
    }
    Ok(elapsed.as_secs_f64() * 1000.0)
}

/// Where the service's backends stand.
fn placed(maps: &Maps, cluster_ip: Ipv4Addr) -> Result<Option<ebpf_abi::Service>> {
    let key = FrontendKey {
        addr: Addr4::from(cluster_ip),
        port_be: 80_u16.to_be(),
        protocol: 6,
        pad: 0,
    };
    let Some(frontend) = maps.v4.frontend.get(&key)? else {
        return Ok(None);
    };
    Ok(maps.service.get(&frontend.service_id)?)
}

fn has_backend(maps: &Maps, cluster_ip: Ipv4Addr, address: Ipv4Addr) -> Result<bool> {
    let Some(service) = placed(maps, cluster_ip)? else {
        return Ok(false);
    };
    for slot in (service.slot_base..).take(service.slot_count as usize) {
        let backend = maps.slot.get(&slot)?.unwrap_or_default();
        let backend = maps.v4.backend.get(&backend)?.unwrap_or_default();
        if backend.addr == Addr4::from(address) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Now and at most (proc(5), `VmRSS` and `VmHWM`).
fn resident_mib() -> Result<[f64; 2]> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let of = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.with_context(|| format!("/proc/self/status has no {name}"))?;
        let kib: f64 = kib.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    };
    Ok([of("VmRSS:")?, of("VmHWM:")?])
}
