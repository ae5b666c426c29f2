//! The bench's own eBPF programs, instruction by instruction: a packet generator, the same in front of another program,
//! a sink, and nothing at all.

use std::net::IpAddr;

use crate::bpf::{CounterMap, Insn, TailCall};
use crate::frame::Frame;
use crate::server::PACKET_PORT;

/// Registers and opcodes (RFC 9669), named as bpftool prints them.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R5: u8 = 5;
const R6: u8 = 6;
const LOAD_U16: u8 = 0x69;
const LOAD_U32: u8 = 0x61;
const LOAD_U64: u8 = 0x79;
const STORE_U16: u8 = 0x6b;
const STORE_U64: u8 = 0x7b;
const LOAD_IMMEDIATE_64: u8 = 0x18;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const ADD_IMMEDIATE: u8 = 0x07;
const XOR_IMMEDIATE: u8 = 0xa7;
/// To network order; the immediate is the width in bits.
const TO_BIG_ENDIAN: u8 = 0xdc;
const JUMP_GREATER: u8 = 0x2d;
const JUMP_NOT_EQUAL: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// `BPF_PSEUDO_MAP_FD`: the immediate is a map's descriptor, the register gets the map.
const PSEUDO_MAP_FD: u8 = 1;
/// `BPF_PSEUDO_MAP_VALUE`: the immediate is a map's descriptor, the register gets its value's address.
const PSEUDO_MAP_VALUE: u8 = 2;
const HELPER_TAIL_CALL: i32 = 12;

const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const TCX_NEXT: i32 = -1;
const TC_OK: i32 = 0;
const TC_SHOT: i32 = 2;

/// Where a packet's first and last byte stand in a program's context (linux/bpf.h).
#[derive(Clone, Copy)]
struct Context {
    data: i16,
    data_end: i16,
}

const XDP_MD: Context = Context {
    data: 0,
    data_end: 4,
};
const SK_BUFF: Context = Context {
    data: 76,
    data_end: 80,
};

/// An XDP program that writes the head of the frame anew, since the pages come back with what the stack wrote, and
/// passes. With `ports` each frame has the next source port.
pub fn generator(frame: &Frame, ports: Option<&CounterMap>) -> Vec<Insn> {
    let pass = [
        insn(MOVE_IMMEDIATE, R0, 0, 0, XDP_PASS),
        insn(EXIT, 0, 0, 0, 0),
    ];
    with_new_head(XDP_MD, frame, ports, &pass, XDP_DROP)
}

/// A tcx program that writes the head of the packet anew and goes on with another program, so that a test run that
/// repeats gives it the same packet every time.
pub fn refresher(frame: &Frame, ports: Option<&CounterMap>, next: &TailCall) -> Vec<Insn> {
    let mut tail = vec![insn(MOVE_REGISTER, R1, R6, 0, 0)];
    tail.extend(load_64(R2, PSEUDO_MAP_FD, next.fd_number(), 0));
    tail.extend([
        insn(MOVE_IMMEDIATE, R3, 0, 0, 0),
        insn(CALL, 0, 0, 0, HELPER_TAIL_CALL),
        // Only if there is no such program.
        insn(MOVE_IMMEDIATE, R0, 0, 0, TC_SHOT),
        insn(EXIT, 0, 0, 0, 0),
    ]);
    with_new_head(SK_BUFF, frame, ports, &tail, TC_SHOT)
}

/// A tcx program that does nothing.
pub fn empty() -> Vec<Insn> {
    vec![
        insn(MOVE_IMMEDIATE, R0, 0, 0, TC_OK),
        insn(EXIT, 0, 0, 0, 0),
    ]
}

/// A tcx program that counts and drops what goes to [`PACKET_PORT`], and lets everything else pass.
pub fn sink(to: IpAddr, counter: &CounterMap) -> Vec<Insn> {
    // Offset of the UDP destination port behind Ethernet and the IP header.
    let offset = if to.is_ipv4() {
        14 + 20 + 2
    } else {
        14 + 40 + 2
    };
    let mut program = vec![
        insn(LOAD_U32, R2, R1, SK_BUFF.data, 0),
        insn(LOAD_U32, R3, R1, SK_BUFF.data_end, 0),
        // if (r2 + offset + 2 > r3) goto pass
        insn(MOVE_REGISTER, R4, R2, 0, 0),
        insn(ADD_IMMEDIATE, R4, 0, 0, offset + 2),
        insn(JUMP_GREATER, R4, R3, 9, 0),
        // if (*(u16 *)(r2 + offset) != port) goto pass
        insn(LOAD_U16, R5, R2, offset as i16, 0),
        insn(JUMP_NOT_EQUAL, R5, 0, 7, i32::from(PACKET_PORT.to_be())),
    ];
    program.extend(count(counter));
    program.extend([
        insn(MOVE_IMMEDIATE, R0, 0, 0, TC_SHOT),
        insn(EXIT, 0, 0, 0, 0),
        // pass:
        insn(MOVE_IMMEDIATE, R0, 0, 0, TCX_NEXT),
        insn(EXIT, 0, 0, 0, 0),
    ]);
    program
}

/// Writes the head of `frame` over the packet's, then does `next`; a packet that is too short gets `too_short`.
fn with_new_head(
    context: Context,
    frame: &Frame,
    ports: Option<&CounterMap>,
    next: &[Insn],
    too_short: i32,
) -> Vec<Insn> {
    let words: Vec<u64> = frame
        .head()
        .chunks_exact(8)
        .map(|chunk| u64::from_ne_bytes(chunk.try_into().expect("chunks_exact gives eight bytes")))
        .collect();
    let mut body = Vec::new();
    for (index, word) in words.iter().enumerate() {
        // r5 = word; *(u64 *)(r2 + 8 * index) = r5
        body.extend(load_64(
            R5,
            0,
            *word as u32 as i32,
            (*word >> 32) as u32 as i32,
        ));
        body.push(insn(STORE_U64, R2, R5, index as i16 * 8, 0));
    }
    if let Some(counter) = ports {
        let [port, complement] = frame.port_offsets();
        body.extend(count(counter));
        body.extend([
            insn(TO_BIG_ENDIAN, R5, 0, 0, 16),
            insn(STORE_U16, R2, R5, port, 0),
            // The payload takes the port's complement, so that the checksum stays what it is.
            insn(XOR_IMMEDIATE, R5, 0, 0, 0xffff),
            insn(STORE_U16, R2, R5, complement, 0),
        ]);
    }
    body.extend(next);
    let mut program = vec![
        insn(MOVE_REGISTER, R6, R1, 0, 0),
        insn(LOAD_U32, R2, R1, context.data, 0),
        insn(LOAD_U32, R3, R1, context.data_end, 0),
        // if (r2 + length > r3) goto drop
        insn(MOVE_REGISTER, R4, R2, 0, 0),
        insn(ADD_IMMEDIATE, R4, 0, 0, frame.head().len() as i32),
        insn(JUMP_GREATER, R4, R3, body.len() as i16, 0),
    ];
    program.extend(body);
    program.extend([
        // drop:
        insn(MOVE_IMMEDIATE, R0, 0, 0, too_short),
        insn(EXIT, 0, 0, 0, 0),
    ]);
    program
}

/// `r4 = &counter; r5 = ++*r4`: everything runs on one core, nothing to lock.
fn count(counter: &CounterMap) -> Vec<Insn> {
    let mut program = load_64(R4, PSEUDO_MAP_VALUE, counter.fd_number(), 0).to_vec();
    program.extend([
        insn(LOAD_U64, R5, R4, 0, 0),
        insn(ADD_IMMEDIATE, R5, 0, 0, 1),
        insn(STORE_U64, R4, R5, 0, 0),
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
