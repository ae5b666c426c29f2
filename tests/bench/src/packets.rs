//! `packets`: what one run of each program costs on each path, by `BPF_PROG_TEST_RUN`, as a ratio to an empty program.
//!
//! Paths that leave a packet's length alone are run thousands of times a slice: a small program in front writes the
//! packet's head anew each time and goes on with a tail call; its cost is counted in the path's. The overlay's paths
//! change the length, so that each run needs a packet of its own: there a slice is the mean of single runs, as the
//! kernel timed them, and the empty program is run the same way.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use node_agent_maps::{Dataplane, Program, TestRun, TestRunResult};
use node_agent_overlay::Mode;
use tests_testkit::packet::Parsed;

use crate::Options;
use crate::bpf::{self, CounterMap, ProgramType, TailCall, open_pin};
use crate::cell::{CLIENT, Cell, OTHER_NODE, SAME_NODE, Underlay, node_v4, uplink_mac};
use crate::compare;
use crate::fairlead::{Setup, cluster_ips, install, node_port, pins};
use crate::frame::{Frame, SMALL, SOURCE_PORT, client};
use crate::instructions;
use crate::interleave::{Variant, interleave};
use crate::live_frames::thread_cpu_ns;
use crate::netns::Netns;
use crate::program_info::{ProgramInfo, program_info};
use crate::report::Row;
use crate::run::Bench;
use crate::server::PACKET_PORT;
use crate::way::{OUTSIDER, OUTSIDER_MACS, forget_connections};

const BENCH: &str = "packets";
const METRIC: &str = "run_time";
const ROUNDS: usize = 300;
/// Runs of a slice.
const REPEAT: u32 = 4000;
/// Single runs of a slice.
const SINGLE: u32 = 200;
const ESTABLISHED: Option<f64> = Some(5.0);
const NEW_FLOW: Option<f64> = Some(20.0);
const EMPTY: &str = "empty";
const HEAD: &str = "new-head";
const EMPTY_SINGLE: &str = "empty/single";
/// `TC_ACT_REDIRECT`: where every path here ends.
const REDIRECT: u32 = 7;
/// `TC_ACT_OK`: where an empty program ends.
const PASS: u32 = 0;

/// A program on a packet.
struct PathOf<'a> {
    name: &'static str,
    netns: &'a Netns,
    dataplane: &'a Dataplane,
    program: Program,
    device: String,
    packet: Packet,
    /// Source and destination of what comes out.
    becomes: [IpAddr; 2],
}

enum Packet {
    /// The same flow each time.
    Established(Frame),
    /// Another flow each time.
    New(Frame),
    /// Its length changes.
    Single(Vec<u8>),
}

/// A node with its programs.
#[derive(Clone, Copy)]
struct OnNode<'a> {
    cell: &'a Cell,
    dataplanes: &'a [Dataplane],
    number: u8,
}

/// Runs the bench, prints its tables and writes its rows.
pub fn run(options: &Options, compare_with: Option<&Path>) -> Result<()> {
    let mut bench = Bench::start(BENCH, options)?;
    let landed = compare_with.map(compare::read).transpose()?;
    let direct = Cell::new(Underlay::Routing)?;
    // New flows need an empty connection table each time, established ones their entries.
    let direct_new = Cell::new(Underlay::Routing)?;
    let overlay = Cell::new(Underlay::Overlay)?;
    let by_direct = install(&direct, &Setup::new("direct", Mode::Direct))?;
    let by_direct_new = install(&direct_new, &Setup::new("direct-new", Mode::Direct))?;
    let by_overlay = install(&overlay, &Setup::new("overlay", Mode::Vxlan))?;
    let node = |cell, dataplanes, number| OnNode {
        cell,
        dataplanes,
        number,
    };
    let mut paths = direct_paths(
        node(&direct, &by_direct, 1),
        node(&direct_new, &by_direct_new, 1),
    );
    paths.extend(overlay_paths(
        node(&overlay, &by_overlay, 1),
        node(&overlay, &by_overlay, 2),
    )?);
    bench.note("measuring");
    bench.outcome.rows = measure(&paths, options.quick)?;
    let programs = programs("direct")?;
    println!("{}", compare::program_table(&programs));
    let verdict = landed.map(|landed| landed.compare(&bench.outcome.rows, &programs));
    bench.finish()?;
    verdict.unwrap_or(Ok(()))
}

fn direct_paths<'a>(node: OnNode<'a>, new: OnNode<'a>) -> Vec<PathOf<'a>> {
    let mut paths = Vec::new();
    let names = [
        ["cluster-ip", "cluster-ip-reply", "cluster-ip-new-flow"],
        [
            "cluster-ip/ipv6",
            "cluster-ip-reply/ipv6",
            "cluster-ip-new-flow/ipv6",
        ],
    ];
    for (family, [established, reply, new_flow]) in names.into_iter().enumerate() {
        let service = SocketAddr::new(cluster_ips(OTHER_NODE)[family], PACKET_PORT);
        let backend = SocketAddr::new(OTHER_NODE.ips()[family], PACKET_PORT);
        let from = client(service.ip(), CLIENT);
        let out = Frame::from_client(service, SMALL);
        let back = Frame::new([uplink_mac(2), uplink_mac(1)], backend, from, SMALL);
        let to_backend = [from.ip(), backend.ip()];
        let to_client = [service.ip(), from.ip()];
        paths.extend([
            node.at_client(established, Packet::Established(out.clone()), to_backend),
            node.at_uplink(reply, Packet::Established(back), to_client),
            new.at_client(new_flow, Packet::New(out), to_backend),
        ]);
    }
    for (name, pod) in [
        ("pod-to-pod", OTHER_NODE),
        ("pod-to-pod/same-node", SAME_NODE),
    ] {
        let to = SocketAddr::new(pod.v4().into(), PACKET_PORT);
        // From another port: a direct packet ends the service's flow to the same backend.
        let from = SocketAddr::new(CLIENT.v4().into(), SOURCE_PORT + 1);
        let frame = Frame::new([CLIENT.pod_mac(), CLIENT.host_mac()], from, to, SMALL);
        paths.push(node.at_client(name, Packet::Established(frame), [from.ip(), to.ip()]));
    }
    let outsider = SocketAddr::new(OUTSIDER.into(), SOURCE_PORT);
    let to = SocketAddr::new(node_v4(1).into(), node_port(SAME_NODE));
    let outside = Frame::new(OUTSIDER_MACS, outsider, to, SMALL);
    let to_backend = [outsider.ip(), SAME_NODE.v4().into()];
    paths.extend([
        node.at_uplink(
            "node-port",
            Packet::Established(outside.clone()),
            to_backend,
        ),
        new.at_uplink("node-port-new-flow", Packet::New(outside), to_backend),
    ]);
    paths
}

/// Node 1's program makes the packet that node 2's takes apart, as they do on the wire.
fn overlay_paths<'a>(here: OnNode<'a>, there: OnNode<'a>) -> Result<Vec<PathOf<'a>>> {
    let to = SocketAddr::new(OTHER_NODE.v4().into(), PACKET_PORT);
    let plain = Frame::from_client(to, SMALL).bytes().to_vec();
    let nodes = [1, 2].map(|number| node_v4(number).into());
    let out = here.at_client("encapsulation", Packet::Single(plain), nodes);
    let mut on_the_wire = out.run_once()?;
    // The kernel writes it as the packet leaves.
    on_the_wire[..6].copy_from_slice(&uplink_mac(2));
    let on_the_wire = Packet::Single(on_the_wire);
    let pods = [CLIENT.v4().into(), to.ip()];
    let back = there.at_uplink("decapsulation", on_the_wire, pods);
    Ok(vec![out, back])
}

impl<'a> OnNode<'a> {
    fn at_client(self, name: &'static str, packet: Packet, becomes: [IpAddr; 2]) -> PathOf<'a> {
        self.path(
            name,
            Program::FromPod,
            CLIENT.host_device(),
            packet,
            becomes,
        )
    }

    fn at_uplink(self, name: &'static str, packet: Packet, becomes: [IpAddr; 2]) -> PathOf<'a> {
        let device = "uplink".to_owned();
        self.path(name, Program::FromNetwork, device, packet, becomes)
    }

    fn path(
        self,
        name: &'static str,
        program: Program,
        device: String,
        packet: Packet,
        becomes: [IpAddr; 2],
    ) -> PathOf<'a> {
        PathOf {
            name,
            netns: self.cell.node(self.number),
            dataplane: &self.dataplanes[usize::from(self.number) - 1],
            program,
            device,
            packet,
            becomes,
        }
    }
}

impl PathOf<'_> {
    fn bytes(&self) -> &[u8] {
        match &self.packet {
            Packet::Established(frame) | Packet::New(frame) => frame.bytes(),
            Packet::Single(bytes) => bytes,
        }
    }

    fn pin(&self) -> Result<OwnedFd> {
        pinned(self.dataplane.pin_dir(), self.program)
    }

    /// The packet that comes out; the program must send it on.
    fn run_once(&self) -> Result<Vec<u8>> {
        let program = self.pin()?;
        let result = self.run(program.as_fd(), 1)?;
        if result.retval != REDIRECT {
            bail!(
                "{}: the verdict is {}, not a redirect",
                self.name,
                result.retval
            );
        }
        let parsed = Parsed::from_frame(&result.packet)?;
        if [parsed.src, parsed.dst] != self.becomes {
            bail!(
                "{}: {} -> {} comes out, not {:?}",
                self.name,
                parsed.src,
                parsed.dst,
                self.becomes
            );
        }
        Ok(result.packet)
    }

    fn run(&self, program: BorrowedFd<'_>, repeat: u32) -> Result<TestRunResult> {
        let ifindex = self.netns.ifindex(&self.device)?;
        let run = TestRun {
            repeat,
            ifindex,
            ingress_ifindex: ifindex,
            ..TestRun::new(self.bytes())
        };
        self.netns.run(|| {
            run.on(program)
                .with_context(|| format!("run {}", self.name))
        })
    }

    /// CPU nanoseconds of each of [`REPEAT`] runs.
    fn repeated(&self, program: BorrowedFd<'_>, verdict: u32) -> Result<f64> {
        let start = thread_cpu_ns()?;
        let result = self.run(program, REPEAT)?;
        let cpu = thread_cpu_ns()? - start;
        if result.retval != verdict {
            bail!("the last verdict is {}, not {verdict}", result.retval);
        }
        Ok(cpu / f64::from(REPEAT))
    }

    /// Nanoseconds of a run, the mean of [`SINGLE`].
    fn singly(&self, program: BorrowedFd<'_>) -> Result<f64> {
        let mut sum = 0;
        for _ in 0..SINGLE {
            sum += self.run(program, 1)?.duration.as_nanos();
        }
        Ok(sum as f64 / f64::from(SINGLE))
    }

    fn variant(&self) -> Result<Variant<'_>> {
        self.run_once()?;
        let program = self.pin()?;
        let (frame, ports) = match &self.packet {
            Packet::Single(_) => {
                return Ok(Variant::new(self.name, move || {
                    self.singly(program.as_fd())
                }));
            }
            Packet::Established(frame) => (frame, None),
            Packet::New(frame) => (frame, Some(CounterMap::new()?)),
        };
        let next = TailCall::new(program.as_fd())?;
        let instructions = instructions::refresher(frame, ports.as_ref(), &next);
        let refresher = bpf::Program::load(ProgramType::SchedCls, &instructions)?;
        Ok(Variant::new(self.name, move || {
            let _used_by_the_program = &next;
            if ports.is_some() {
                // Ports come again after 65,536 runs.
                forget_connections(self.dataplane)?;
            }
            self.repeated(refresher.as_fd(), REDIRECT)
        }))
    }
}

fn measure(paths: &[PathOf<'_>], quick: bool) -> Result<Vec<Row>> {
    let empty = bpf::Program::load(ProgramType::SchedCls, &instructions::empty())?;
    // What of the paths' figures is the program in front.
    let next = TailCall::new(empty.as_fd())?;
    let client = Frame::from_client(SocketAddr::new(OTHER_NODE.v4().into(), PACKET_PORT), SMALL);
    let head = instructions::refresher(&client, None, &next);
    let head = bpf::Program::load(ProgramType::SchedCls, &head)?;
    let mut variants = Vec::new();
    for path in paths {
        variants.push(path.variant().with_context(|| path.name)?);
    }
    let [first, .., last] = paths else {
        bail!("no paths");
    };
    variants.push(Variant::new(EMPTY, || first.repeated(empty.as_fd(), PASS)));
    variants.push(Variant::new(HEAD, || first.repeated(head.as_fd(), PASS)));
    variants.push(Variant::new(EMPTY_SINGLE, || last.singly(empty.as_fd())));
    let rounds = if quick { ROUNDS / 8 } else { ROUNDS };
    let samples = interleave(&mut variants, rounds)?;
    let mut rows = vec![Row::new(BENCH, METRIC, "ns", &samples, HEAD, EMPTY)?];
    for path in paths {
        let (versus, target) = match path.packet {
            Packet::Established(_) => (EMPTY, ESTABLISHED),
            Packet::New(_) => (EMPTY, NEW_FLOW),
            Packet::Single(_) => (EMPTY_SINGLE, None),
        };
        let mut row = Row::new(BENCH, METRIC, "ns", &samples, path.name, versus)?;
        row.target = target;
        rows.push(row);
    }
    Ok(rows)
}

/// What the verifier and the kernel's compiler say of each program.
fn programs(name: &str) -> Result<BTreeMap<&'static str, ProgramInfo>> {
    Program::ALL
        .into_iter()
        .map(|program| {
            let info = program_info(&pinned(&pins(name, 1), program)?)?;
            Ok((program.name(), info))
        })
        .collect()
}

fn pinned(pins: &Path, program: Program) -> Result<OwnedFd> {
    open_pin(&pins.join("programs").join(program.name()))
}
