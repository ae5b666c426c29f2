//! A packet generator without sockets: XDP live frames, frames that the kernel itself makes and takes as received
//! (<https://docs.kernel.org/bpf/bpf_prog_run.html>, Linux 5.18).

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use crate::sys;

/// Sends one frame over and over into the stack, as if it came in by an interface.
#[derive(Debug)]
pub struct LiveFrames {
    program: OwnedFd,
    frame: Vec<u8>,
}

/// What a run of frames took.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LiveFramesRun {
    /// Wall clock time of the call.
    pub elapsed: Duration,
    /// CPU time of the calling thread: what the frames cost, as long as the stack handles them on this CPU.
    pub cpu: Duration,
}

const PROG_TYPE_XDP: u32 = 6;
const TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

impl LiveFrames {
    /// Prepares a frame. Its program writes the frame's first `header_len` bytes anew each time, since the kernel
    /// recycles the pages with what the stack wrote into them.
    ///
    /// # Errors
    ///
    /// When `header_len` exceeds the frame or the kernel refuses the program.
    pub fn new(frame: &[u8], header_len: usize) -> io::Result<Self> {
        let header = frame.get(..header_len).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "header_len exceeds the frame")
        })?;
        let program = sys::prog_load(&sys::ProgLoad {
            prog_type: PROG_TYPE_XDP,
            instructions: &write_header(header),
            license: c"GPL",
        })?;
        Ok(Self {
            program,
            frame: frame.into(),
        })
    }

    /// Sends the frame `count` times by the interface with this index, of the calling thread's network namespace, in
    /// batches of `batch_size`.
    ///
    /// # Errors
    ///
    /// When there is no such interface or it has no XDP receive queue.
    pub fn run(&self, ifindex: u32, count: u32, batch_size: u32) -> io::Result<LiveFramesRun> {
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, self.frame.len() as u32, 0, ifindex, 0, 0];
        let context: Vec<u8> = context
            .iter()
            .flat_map(|word: &u32| word.to_ne_bytes())
            .collect();
        let (wall, cpu) = (
            clock(libc::CLOCK_MONOTONIC),
            clock(libc::CLOCK_THREAD_CPUTIME_ID),
        );
        sys::prog_test_run(
            self.program.as_fd(),
            sys::TestRunArgs {
                data_in: &self.frame,
                data_out: &mut [],
                ctx_in: &context,
                repeat: count,
                flags: TEST_XDP_LIVE_FRAMES,
                batch_size,
            },
        )?;
        Ok(LiveFramesRun {
            elapsed: clock(libc::CLOCK_MONOTONIC) - wall,
            cpu: clock(libc::CLOCK_THREAD_CPUTIME_ID) - cpu,
        })
    }
}

/// An XDP program that writes `header` and passes the frame to the stack.
///
/// Instructions by RFC 9669: opcode, registers (destination low), offset, immediate.
fn write_header(header: &[u8]) -> Vec<u64> {
    const LOAD_WORD: u8 = 0x61;
    const STORE_WORD: u8 = 0x62;
    const STORE_BYTE: u8 = 0x72;
    const ADD: u8 = 0x07;
    const MOVE: u8 = 0xb7;
    const MOVE_REGISTER: u8 = 0xbf;
    const JUMP_IF_GREATER: u8 = 0x2d;
    const EXIT: u8 = 0x95;
    const XDP_DROP: i32 = 1;
    const XDP_PASS: i32 = 2;

    let stores = header.chunks(4).enumerate().flat_map(|(index, chunk)| {
        let offset = (index * 4) as i16;
        match <[u8; 4]>::try_from(chunk) {
            Ok(word) => {
                vec![instruction(
                    STORE_WORD,
                    2,
                    0,
                    offset,
                    i32::from_ne_bytes(word),
                )]
            }
            Err(_) => (offset..)
                .zip(chunk)
                .map(|(offset, &byte)| instruction(STORE_BYTE, 2, 0, offset, byte.into()))
                .collect(),
        }
    });
    let stores: Vec<u64> = stores.collect();

    let mut program = vec![
        instruction(MOVE, 0, 0, 0, XDP_DROP),
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(LOAD_WORD, 3, 1, 4, 0),
        instruction(MOVE_REGISTER, 4, 2, 0, 0),
        instruction(ADD, 4, 0, 0, header.len() as i32),
        instruction(JUMP_IF_GREATER, 4, 3, stores.len() as i16 + 1, 0),
    ];
    program.extend(stores);
    program.extend([
        instruction(MOVE, 0, 0, 0, XDP_PASS),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    program
}

fn instruction(opcode: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let mut bytes = [0; 8];
    bytes[0] = opcode;
    bytes[1] = if cfg!(target_endian = "little") {
        destination | source << 4
    } else {
        source | destination << 4
    };
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..].copy_from_slice(&immediate.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a live mutable reference; both clocks that come here exist on every Linux.
    let result = unsafe { libc::clock_gettime(id, &raw mut time) };
    assert_eq!(
        result, 0,
        "the monotonic and the thread's CPU clock exist on every Linux"
    );
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
