//! The kernel lets the frames of a chain of calls take 512 bytes together. How much the deepest chain of each program
//! takes, and that a change still has room to grow in.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use aya_obj::{Function, Object, generated::bpf_insn};

/// What a program's chain may take, in bytes: so much of the kernel's 512 stays free that a change of one function does
/// not need a change of all.
const LIMIT: u32 = 416;
/// What the lines for dropped packets take more in the outermost frame; the object without them leaves that free.
const LOG: u32 = if cfg!(feature = "ebpf-log") { 0 } else { 16 };
/// Frames count in pieces of this size (`round_up_stack_depth` in the kernel's verifier).
const PIECE: u32 = 16;

const FRAME_POINTER: u8 = 10;
const CALL: u8 = 0x85;
const LOAD_IMMEDIATE_64: u8 = 0x18;
const MOVE_REGISTER: u8 = 0xbf;
const ADD_IMMEDIATE: u8 = 0x07;
/// `BPF_PSEUDO_CALL`, `BPF_PSEUDO_FUNC`: the immediate leads to a function of this program.
const PSEUDO_CALL: u8 = 1;
const PSEUDO_FUNC: u8 = 4;

/// A function's frame, where it ends, and which ones it calls, by their first instruction.
struct Frame {
    /// Behind its last instruction.
    end: usize,
    size: u32,
    calls: BTreeSet<usize>,
}

#[test]
fn the_deepest_chain_of_calls_leaves_room_on_the_stack() {
    let mut object = Object::parse(node_agent_maps::OBJECT).expect("the object parses");
    let sections: HashSet<usize> = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    object
        .relocate_calls(&sections)
        .expect("calls lead to functions");
    let mut deepest = 0;
    for (program_name, program) in &object.programs {
        let instructions = &object.functions[&program.function_key()].instructions;
        let frames = frames(instructions);
        let (depth, chain) = deepest_from(&frames, 0);
        let callees: Vec<_> = chain[1..]
            .iter()
            .map(|start| {
                let frame = &frames[start];
                let name = name(&object, &instructions[*start..frame.end]);
                format!("{name} {}", frame.size)
            })
            .collect();
        let own = frames[&0].size;
        println!(
            "{program_name}: {depth} bytes: {own}, {}",
            callees.join(", ")
        );
        deepest = deepest.max(depth);
    }
    assert!(
        deepest + LOG <= LIMIT,
        "{deepest} bytes are more than {}: let functions run one after the other and not one in the other",
        LIMIT - LOG
    );
}

/// The functions of a program, by their first instruction.
fn frames(program: &[bpf_insn]) -> BTreeMap<usize, Frame> {
    let called = |at: usize| {
        let instruction = &program[at];
        let leads_on = match instruction.code {
            CALL => instruction.src_reg() == PSEUDO_CALL,
            LOAD_IMMEDIATE_64 => instruction.src_reg() == PSEUDO_FUNC,
            _ => false,
        };
        leads_on.then(|| {
            let next = i64::try_from(at + 1).expect("a program is short");
            usize::try_from(next + i64::from(instruction.imm)).expect("within the program")
        })
    };
    let mut starts: BTreeSet<usize> = (0..program.len()).filter_map(called).collect();
    starts.insert(0);
    let ends = starts.iter().skip(1).copied().chain([program.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(&start, end)| {
            let lowest = (start..end).map(|at| reach(program, at)).max().unwrap_or(0);
            let frame = Frame {
                end,
                size: lowest.next_multiple_of(PIECE),
                calls: (start..end).filter_map(called).collect(),
            };
            (start, frame)
        })
        .collect()
}

/// How far below the frame pointer an instruction reaches: by an access, or by an address that it makes.
fn reach(program: &[bpf_insn], at: usize) -> u32 {
    let instruction = &program[at];
    let (class, offset) = (instruction.code & 7, i32::from(instruction.off));
    let below = match class {
        // Loads, then stores.
        1 if instruction.src_reg() == FRAME_POINTER => offset,
        2 | 3 if instruction.dst_reg() == FRAME_POINTER => offset,
        7 if instruction.code == ADD_IMMEDIATE
            && is_copy_of_frame_pointer(program, at, instruction.dst_reg()) =>
        {
            instruction.imm
        }
        _ => 0,
    };
    below.min(0).unsigned_abs()
}

/// Whether the instruction before gave the register the frame pointer's value.
fn is_copy_of_frame_pointer(program: &[bpf_insn], at: usize, register: u8) -> bool {
    at.checked_sub(1).is_some_and(|before| {
        let before = &program[before];
        before.code == MOVE_REGISTER
            && before.src_reg() == FRAME_POINTER
            && before.dst_reg() == register
    })
}

/// What the frames of the deepest chain from a function on take, and the chain. The kernel allows no recursion.
fn deepest_from(frames: &BTreeMap<usize, Frame>, start: usize) -> (u32, Vec<usize>) {
    let frame = &frames[&start];
    let callees = frame
        .calls
        .iter()
        .map(|callee| deepest_from(frames, *callee));
    let (depth, mut chain) = callees.max().unwrap_or_default();
    chain.insert(0, start);
    (frame.size + depth, chain)
}

/// What an appended function is called: the one with the same instructions, but for where they lead.
fn name<'a>(object: &'a Object, body: &[bpf_insn]) -> &'a str {
    let is_it = |function: &&Function| {
        let codes = function
            .instructions
            .iter()
            .map(|instruction| instruction.code);
        codes.eq(body.iter().map(|instruction| instruction.code))
    };
    object
        .functions
        .values()
        .find(is_it)
        .map_or("?", |function| &function.name)
}
