//! A packet generator without sockets: XDP live frames go in at the client pod's veth, through the whole path, and
//! are counted and dropped at the tcx ingress of the backend pod. The CPU time of the caller is the path's cost.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};

use crate::bpf::{CounterMap, Insn, Link, Program, ProgramType};
use crate::cell::{CLIENT, Cell};
use crate::netns::Netns;
use crate::server::PACKET_PORT;

/// Source port of the flow.
const SOURCE_PORT: u16 = 40000;
/// Bytes of UDP payload.
const PAYLOAD: usize = 22;

/// Sends one established UDP flow from the client pod to `to`.
#[derive(Debug)]
pub struct LiveFrames<'a> {
    node: &'a Netns,
    ifindex: u32,
    generator: Program,
    frame: Vec<u8>,
    _parked: Link,
    _parking: Netns,
}

/// Counts and drops the flow in the backend pod while it lives.
#[derive(Debug)]
pub struct Sink {
    counter: CounterMap,
    _link: Link,
}

impl<'a> LiveFrames<'a> {
    pub fn new(cell: &'a Cell, to: SocketAddr) -> Result<Self> {
        let node = cell.node(CLIENT.node);
        let frame = udp_frame(to)?;
        let generator = Program::load(ProgramType::Xdp, &generator(&frame))
            .context("load the packet generator")?;
        let (parking, parked) = park(&generator)?;
        let ifindex = node.ifindex(&CLIENT.host_device())?;
        Ok(Self {
            node,
            ifindex,
            generator,
            frame,
            _parked: parked,
            _parking: parking,
        })
    }

    /// CPU nanoseconds a packet over `count` packets.
    pub fn slice(&mut self, count: u32) -> Result<f64> {
        self.node.run(|| {
            let start = thread_cpu_ns()?;
            self.generator.inject(self.ifindex, &self.frame, count)?;
            Ok((thread_cpu_ns()? - start) / f64::from(count))
        })
    }
}

impl Sink {
    /// Attaches to `eth0` of the pod; `to` is an address of the pod, whose family is counted.
    pub fn new(pod: &Netns, to: IpAddr) -> Result<Self> {
        let counter = CounterMap::new()?;
        let program = Program::load(ProgramType::SchedCls, &sink(to, &counter))
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

fn thread_cpu_ns() -> Result<f64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer leads to a live local of the type that clock_gettime writes.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    nix::errno::Errno::result(result).context("read the thread's CPU time")?;
    Ok(time.tv_sec as f64 * 1e9 + time.tv_nsec as f64)
}

/// Ethernet, IP, UDP with a valid checksum (a zero one would save a translation its work), 22 bytes.
fn udp_frame(to: SocketAddr) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    frame.extend(CLIENT.host_mac());
    frame.extend(CLIENT.pod_mac());
    let udp_len = u16::try_from(8 + PAYLOAD)?;
    let (source, destination): (Vec<u8>, Vec<u8>) = match to.ip() {
        IpAddr::V4(ip) => (CLIENT.v4().octets().to_vec(), ip.octets().to_vec()),
        IpAddr::V6(ip) => (CLIENT.v6().octets().to_vec(), ip.octets().to_vec()),
    };
    if to.is_ipv4() {
        frame.extend([0x08, 0x00]);
        let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
        header[2..4].copy_from_slice(&(20 + udp_len).to_be_bytes());
        header.extend(&source);
        header.extend(&destination);
        let checksum = internet_checksum(&[&header]);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(header);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(udp_len.to_be_bytes());
        frame.extend([17, 64]);
        frame.extend(&source);
        frame.extend(&destination);
    }
    let mut udp = Vec::new();
    udp.extend(SOURCE_PORT.to_be_bytes());
    udp.extend(to.port().to_be_bytes());
    udp.extend(udp_len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend([b'p'; PAYLOAD]);
    let mut pseudo = source;
    pseudo.extend(destination);
    pseudo.extend([0, 17]);
    pseudo.extend(udp_len.to_be_bytes());
    let checksum = internet_checksum(&[&pseudo, &udp]);
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(udp);
    Ok(frame)
}

/// RFC 1071, over parts of even length.
fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u32 = parts
        .iter()
        .flat_map(|part| part.chunks_exact(2))
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Registers and opcodes (RFC 9669), named as bpftool prints them.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R5: u8 = 5;
const LOAD_U16: u8 = 0x69;
const LOAD_U32: u8 = 0x61;
const LOAD_U64: u8 = 0x79;
const STORE_U64: u8 = 0x7b;
const LOAD_IMMEDIATE_64: u8 = 0x18;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const ADD_IMMEDIATE: u8 = 0x07;
const JUMP_GREATER: u8 = 0x2d;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;
/// `BPF_PSEUDO_MAP_VALUE`: the immediate is a map's descriptor, the register gets its value's address.
const PSEUDO_MAP_VALUE: u8 = 2;

const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

/// The generator: writes the head of the frame anew, since the pages come back with what the stack wrote, and passes.
fn generator(frame: &[u8]) -> Vec<Insn> {
    let words: Vec<u64> = frame
        .chunks_exact(8)
        .map(|chunk| u64::from_ne_bytes(chunk.try_into().expect("chunks_exact gives eight bytes")))
        .collect();
    let mut program = vec![
        // r2 = ctx->data, r3 = ctx->data_end
        insn(LOAD_U32, R2, R1, 0, 0),
        insn(LOAD_U32, R3, R1, 4, 0),
        // if (r2 + length > r3) goto drop
        insn(MOVE_REGISTER, R4, R2, 0, 0),
        insn(ADD_IMMEDIATE, R4, 0, 0, words.len() as i32 * 8),
        insn(JUMP_GREATER, R4, R3, words.len() as i16 * 3 + 2, 0),
    ];
    for (index, word) in words.iter().enumerate() {
        // r5 = word; *(u64 *)(r2 + 8 * index) = r5
        program.extend(load_64(
            R5,
            0,
            *word as u32 as i32,
            (*word >> 32) as u32 as i32,
        ));
        program.push(insn(STORE_U64, R2, R5, index as i16 * 8, 0));
    }
    program.extend([
        insn(MOVE_IMMEDIATE, R0, 0, 0, XDP_PASS),
        insn(EXIT, 0, 0, 0, 0),
        // drop:
        insn(MOVE_IMMEDIATE, R0, 0, 0, XDP_DROP),
        insn(EXIT, 0, 0, 0, 0),
    ]);
    program
}

/// The sink: counts and drops what goes to [`PACKET_PORT`], lets everything else pass.
fn sink(to: IpAddr, counter: &CounterMap) -> Vec<Insn> {
    // Offset of the UDP destination port behind Ethernet and the IP header.
    let offset = if to.is_ipv4() {
        14 + 20 + 2
    } else {
        14 + 40 + 2
    };
    let mut program = vec![
        // r2 = skb->data, r3 = skb->data_end (offsets in struct __sk_buff)
        insn(LOAD_U32, R2, R1, 76, 0),
        insn(LOAD_U32, R3, R1, 80, 0),
        // if (r2 + offset + 2 > r3) goto pass
        insn(MOVE_REGISTER, R4, R2, 0, 0),
        insn(ADD_IMMEDIATE, R4, 0, 0, offset + 2),
        insn(JUMP_GREATER, R4, R3, 9, 0),
        // if (*(u16 *)(r2 + offset) != port) goto pass
        insn(LOAD_U16, R5, R2, offset as i16, 0),
        insn(JUMP_NOT_EQUAL, R5, 0, 7, i32::from(PACKET_PORT.to_be())),
    ];
    // r4 = &counter; *r4 += 1: everything runs on one core, nothing to lock
    program.extend(load_64(R4, PSEUDO_MAP_VALUE, counter.fd_number(), 0));
    program.extend([
        insn(LOAD_U64, R5, R4, 0, 0),
        insn(ADD_IMMEDIATE, R5, 0, 0, 1),
        insn(STORE_U64, R4, R5, 0, 0),
        insn(MOVE_IMMEDIATE, R0, 0, 0, TCX_DROP),
        insn(EXIT, 0, 0, 0, 0),
        // pass:
        insn(MOVE_IMMEDIATE, R0, 0, 0, TCX_NEXT),
        insn(EXIT, 0, 0, 0, 0),
    ]);
    program
}

fn insn(opcode: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Insn {
    Insn {
        opcode,
        registers: destination | source << 4,
        offset,
        immediate,
    }
}

/// The one instruction that takes two places.
fn load_64(destination: u8, source: u8, low: i32, high: i32) -> [Insn; 2] {
    [
        insn(LOAD_IMMEDIATE_64, destination, source, 0, low),
        insn(0, 0, 0, 0, high),
    ]
}

/// Fails unless every packet of a probe of `count` arrives: a path that loses packets is not measured.
pub fn require_delivery(frames: &mut LiveFrames<'_>, sink: &Sink, count: u32) -> Result<()> {
    // The first packet may have to wait for a neighbour entry or a connection entry.
    frames.slice(1)?;
    let before = sink.count()?;
    frames.slice(count)?;
    let arrived = sink.count()? - before;
    if arrived != u64::from(count) {
        bail!("{arrived} of {count} live frames arrived at the backend pod");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_checks_out_against_its_own_checksums() {
        for to in ["10.244.2.11:8083", "[fd00:244:2::b]:8083"] {
            let to: SocketAddr = to.parse().unwrap();
            let frame = udp_frame(to).unwrap();
            let (ip_len, pseudo_addresses) = if to.is_ipv4() {
                (20, &frame[26..34])
            } else {
                (40, &frame[22..54])
            };
            if to.is_ipv4() {
                assert_eq!(internet_checksum(&[&frame[14..34]]), 0, "IPv4 header");
            }
            let udp = &frame[14 + ip_len..];
            assert_eq!(udp.len(), 8 + PAYLOAD);
            assert_eq!(u16::from_be_bytes([udp[4], udp[5]]) as usize, udp.len());
            assert_eq!(
                internet_checksum(&[pseudo_addresses, &[0, 17, udp[4], udp[5]], udp]),
                0,
                "UDP"
            );
        }
    }
}
