//! What the agent costs: the same parts as in the daemon (watch streams, planner, reconciler, maps) in a process of
//! their own, in front of an API in the bench that costs them nothing.

use std::io::{self, BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ebpf_abi::{Addr4, FrontendKey};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use node_agent_host::{give_back_freed_memory, share_memory};
use node_agent_maps::{Dataplane, Maps, monotonic_now_ns};
use node_agent_reconcile::{Handle, Metrics, Options, Reconciler};
use node_agent_reflect::{Message, Reflected, SOURCES};
use serde::{Deserialize, Serialize};

use crate::api_stub::{ApiStub, Shape};
use crate::fairlead::{map_options, pins};
use crate::process::Spoken;
use crate::program_info::pinned_map_bytes;

/// Changes of one endpoint that are timed.
const CHANGES: u32 = 200;
/// Between two of them: so long that each is planned alone.
const PAUSE: Duration = Duration::from_millis(12);
/// How often the maps are looked at.
const LOOK_EVERY: Duration = Duration::from_micros(20);
const TIMEOUT: Duration = Duration::from_secs(30);

/// What was measured at one size.
#[derive(Clone, Debug)]
pub struct Figures {
    /// From the last page of the lists to complete maps, seconds.
    pub from_lists: f64,
    /// From the first request to complete maps, seconds.
    pub from_start: f64,
    /// From an event of the watch to the map, for each changed endpoint, milliseconds.
    pub changes: Vec<f64>,
    pub memory: Memory,
    /// Memory of all maps, MiB.
    pub maps: f64,
}

/// Resident memory of the agent's process in MiB, of which some belongs to files: the program and its libraries.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Memory {
    pub resident: f64,
    pub resident_peak: f64,
    pub anonymous: f64,
}

/// What the agent's process says when its maps are complete: by CLOCK_MONOTONIC when it began, and when they were.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Synced {
    began: f64,
    complete: f64,
}

/// Starts an agent in front of an API of this shape and times it.
pub fn measure(shape: Shape) -> Result<Figures> {
    let pinned = sched_getaffinity(Pid::from_raw(0))?;
    use_every_core()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let api = ApiStub::new(shape);
    let address = runtime.block_on(api.serve(ApiStub::listener()?))?;
    let mut agent = Spoken::start("agent", &[address.to_string()])?;
    let synced: Synced = agent.hear().context("wait for complete maps")?;
    let lists_arrived = api.lists_arrived().context("no list was asked for")?;
    let lists_arrived = monotonic() - lists_arrived.elapsed().as_secs_f64();
    let directory = pins(&format!("agent-{}", agent.id()), 1);
    let maps = Maps::open_read_only(&directory)?;
    let changes = (0..CHANGES)
        .map(|round| {
            thread::sleep(PAUSE);
            change_one(&api, shape, &maps, round)
        })
        .collect::<Result<Vec<f64>>>()?;
    let maps = pinned_map_bytes(&directory)? as f64 / 1024.0 / 1024.0;
    agent.say("memory")?;
    let memory = agent.hear()?;
    sched_setaffinity(Pid::from_raw(0), &pinned)?;
    Ok(Figures {
        from_lists: synced.complete - lists_arrived,
        from_start: synced.complete - synced.began,
        changes,
        memory,
        maps,
    })
}

/// The agent's process itself.
pub fn run(api: SocketAddr) -> Result<()> {
    // As the daemon does it.
    share_memory();
    let runtime = tokio::runtime::Runtime::new()?;
    let _inside = runtime.enter();
    let directory = pins(&format!("agent-{}", std::process::id()), 1);
    let dataplane = Dataplane::open(&directory, &map_options()?)?;
    let options = Options {
        capacity: dataplane.maps().capacity(),
        ..Options::new("n1", SOURCES.map(|source| source.label()))
    };
    let metrics = Metrics::register(&mut Default::default());
    let maps = dataplane.maps().clone();
    let (reconciler, handle) = Reconciler::new(maps, options, metrics).context("read the maps")?;
    runtime.spawn(reconciler.run());
    let config = kube::Config::new(format!("http://{api}").parse()?);
    let client = kube::Client::try_from(config)?;
    let began = monotonic();
    runtime.spawn(stream(client, handle.clone()));
    runtime
        .block_on(async { tokio::time::timeout(TIMEOUT, handle.wait_synced()).await })
        .context("the maps are not complete")??;
    let complete = monotonic();
    give_back_freed_memory();
    tell(&Synced { began, complete })?;
    for _asked in io::stdin().lock().lines() {
        tell(&memory()?)?;
    }
    Ok(())
}

fn tell(what: &impl Serialize) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}

/// Seconds, the same for every process.
fn monotonic() -> f64 {
    Duration::from_nanos(monotonic_now_ns()).as_secs_f64()
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
    let address = |round: u32| {
        let first = Ipv4Addr::new(10, 120, 0, 1).to_bits();
        Ipv4Addr::from_bits(first + round)
    };
    // It is the turn of each slice once in so many rounds.
    let earlier = round.checked_sub(shape.slice_count());
    let replaced = earlier.map_or_else(|| shape.endpoint(slice, 0), address);
    let cluster_ip = Shape::cluster_ip(slice / shape.slices);
    let event = ApiStub::modified(&shape.slice(slice, Some(address(round))));
    if find(maps, cluster_ip, address(round))?.is_some() {
        bail!("{} is there before it was announced", address(round));
    }
    // An array of 10,000 slots is not read to find out: it stands in the slot of what it replaces, or the service's entry
    // says that the set moved.
    let slot = find(maps, cluster_ip, replaced)?;
    let slot = slot.with_context(|| format!("{replaced} is not in the maps"))?;
    let look = || Ok::<_, anyhow::Error>((placed(maps, cluster_ip)?, maps.slot.get(&slot)?));
    let before = look()?;
    let start = Instant::now();
    api.send(event)?;
    while look()? == before {
        if start.elapsed() > TIMEOUT {
            bail!("{} did not come into the maps", address(round));
        }
        thread::sleep(LOOK_EVERY);
    }
    let elapsed = start.elapsed();
    if find(maps, cluster_ip, address(round))?.is_none() {
        bail!(
            "the maps of {cluster_ip} changed, but do not hold {}",
            address(round)
        );
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

/// The slot of a service's backend.
fn find(maps: &Maps, cluster_ip: Ipv4Addr, address: Ipv4Addr) -> Result<Option<u32>> {
    let Some(service) = placed(maps, cluster_ip)? else {
        return Ok(None);
    };
    for slot in (service.slot_base..).take(service.slot_count as usize) {
        let backend = maps.slot.get(&slot)?.unwrap_or_default();
        let backend = maps.v4.backend.get(&backend)?.unwrap_or_default();
        if backend.addr == Addr4::from(address) {
            return Ok(Some(slot));
        }
    }
    Ok(None)
}

/// Of this process (proc(5), `VmRSS`, `VmHWM` and `RssAnon`).
fn memory() -> Result<Memory> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let of = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.with_context(|| format!("/proc/self/status has no {name}"))?;
        let kib: f64 = kib.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    };
    Ok(Memory {
        resident: of("VmRSS:")?,
        resident_peak: of("VmHWM:")?,
        anonymous: of("RssAnon:")?,
    })
}
