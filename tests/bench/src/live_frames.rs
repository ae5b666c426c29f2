//! A packet generator without sockets: XDP live frames go in at a device, through the whole path, and are counted and
//! dropped at the tcx ingress of the backend pod. The CPU time of the caller is the path's cost.

use std::net::IpAddr;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};

use crate::bpf::{CounterMap, Link, Program, ProgramType};
use crate::frame::Frame;
use crate::instructions;
use crate::netns::Netns;

/// Below are the ports that services have.
const FIRST_PORT: u64 = 1024;
/// Flows with a source port of their own.
pub const MANY: u32 = 60_000;

/// Which flows the frames belong to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Flows {
    /// All to one.
    One,
    /// Each to one of its own, until there are [`MANY`].
    New,
    /// To one of [`MANY`] in turn, each of which has been seen before.
    Many,
}

/// Sends copies of a frame into a device of a node.
#[derive(Debug)]
pub struct LiveFrames<'a> {
    node: &'a Netns,
    ifindex: u32,
    generator: Program,
    frame: Frame,
    flows: Flows,
    ports: Option<CounterMap>,
    _parked: Link,
    _parking: Netns,
}

/// Counts and drops the frames in the backend pod while it lives.
#[derive(Debug)]
pub struct Sink {
    counter: CounterMap,
    _link: Link,
}

impl<'a> LiveFrames<'a> {
    pub fn new(node: &'a Netns, device: &str, frame: Frame, flows: Flows) -> Result<Self> {
        let ports = match flows {
            Flows::One => None,
            Flows::New | Flows::Many => Some(CounterMap::new()?),
        };
        if let Some(ports) = &ports {
            ports.set(FIRST_PORT)?;
        }
        let instructions = instructions::generator(&frame, ports.as_ref());
        let generator =
            Program::load(ProgramType::Xdp, &instructions).context("load the packet generator")?;
        let (parking, parked) = park(&generator)?;
        Ok(Self {
            node,
            ifindex: node.ifindex(device)?,
            generator,
            frame,
            flows,
            ports,
            _parked: parked,
            _parking: parking,
        })
    }

    /// CPU nanoseconds a packet over `count` packets, all of which must arrive: a path that loses packets is not
    /// measured.
    pub fn slice(&mut self, count: u32, sink: &Sink) -> Result<f64> {
        let before = sink.count()?;
        let cpu = self.inject(count)?;
        let arrived = sink.count()? - before;
        if arrived != u64::from(count) {
            bail!("{arrived} of {count} live frames arrived at the backend pod");
        }
        Ok(cpu / f64::from(count))
    }

    /// Sends one packet, which may have to wait for a neighbour entry, and then a slice.
    pub fn require_delivery(&mut self, sink: &Sink, count: u32) -> Result<()> {
        self.inject(1)?;
        self.slice(count, sink)?;
        if self.flows == Flows::Many {
            for _ in 0..MANY / count {
                self.slice(count, sink)?;
            }
        }
        Ok(())
    }

    /// CPU nanoseconds of all of them.
    fn inject(&mut self, count: u32) -> Result<f64> {
        if let Some(ports) = &self.ports
            && ports.get()? + u64::from(count) > FIRST_PORT + u64::from(MANY)
        {
            match self.flows {
                Flows::Many => ports.set(FIRST_PORT)?,
                _ => bail!("more than {MANY} new flows: their source ports would come again"),
            }
        }
        let frames = node_agent_maps::LiveFrames {
            frame: self.frame.bytes(),
            count,
            ifindex: self.ifindex,
        };
        self.node.run(|| {
            let start = thread_cpu_ns()?;
            frames
                .inject(self.generator.as_fd())
                .context("inject live frames")?;
            Ok(thread_cpu_ns()? - start)
        })
    }
}

impl Sink {
    /// Attaches to `eth0` of the pod; `to` is an address of the pod, whose family is counted.
    pub fn new(pod: &Netns, to: IpAddr) -> Result<Self> {
        let counter = CounterMap::new()?;
        let program = Program::load(ProgramType::SchedCls, &instructions::sink(to, &counter))
            .context("load the packet sink")?;
        let ifindex = pod.ifindex("eth0")?;
        let link = pod.run(|| program.attach_tcx_ingress(ifindex))?;
        Ok(Self {
            counter,
            _link: link,
        })
    }

    pub fn count(&self) -> Result<u64> {
        self.counter.get()
    }
}

/// Keeps the program in the kernel's XDP dispatcher by attaching it to a device that receives nothing. Else each test
/// run would patch the dispatcher's code twice and wait 25 ms for RCU, which costs time and makes noise.
fn park(program: &Program) -> Result<(Netns, Link)> {
    let netns = Netns::new()?;
    netns.ip("link add parking type veth peer name parking-peer")?;
    let ifindex = netns.ifindex("parking")?;
    let link = netns.run(|| program.attach_xdp(ifindex))?;
    Ok((netns, link))
}

/// CPU time that this thread has used.
pub fn thread_cpu_ns() -> Result<f64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer leads to a live local of the type that clock_gettime writes.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    nix::errno::Errno::result(result).context("read the thread's CPU time")?;
    Ok(time.tv_sec as f64 * 1e9 + time.tv_nsec as f64)
}
