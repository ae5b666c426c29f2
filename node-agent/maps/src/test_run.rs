//! Running a program on a packet: `BPF_PROG_TEST_RUN` (<https://docs.kernel.org/bpf/bpf_prog_run.html>), without an
//! interface or, as a packet generator, behind one.

use std::{io, os::fd::BorrowedFd, time::Duration};

use crate::{Dataplane, Error, Program, sys};

/// A packet and what the kernel says of it. Only for the tcx programs: the kernel runs no cgroup program this way.
#[derive(Clone, Copy, Debug)]
pub struct TestRun<'a> {
    /// An Ethernet frame of at least 14 bytes.
    pub packet: &'a [u8],
    /// How often to run; from the second time on the program meets what it left the first time.
    pub repeat: u32,
    /// The interface that the packet belongs to, of the calling thread's network namespace; 0 for `lo`.
    pub ifindex: u32,
    /// The interface that it came in by.
    pub ingress_ifindex: u32,
    /// Payload bytes of one segment of a GSO packet; 0 for another packet.
    pub gso_size: u32,
    /// Segments of a GSO packet.
    pub gso_segs: u32,
    pub mark: u32,
}

/// What the program made of the packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TestRunResult {
    /// The verdict, a `TC_ACT_*`: 0 pass, 2 drop, 7 redirect.
    pub retval: u32,
    pub packet: Vec<u8>,
    /// Mean of the repetitions, with the kernel's loop around the program (some 40 ns).
    pub duration: Duration,
}

/// Copies of a frame that an XDP program lets into the stack as if an interface had received them.
#[derive(Clone, Copy, Debug)]
pub struct LiveFrames<'a> {
    /// An Ethernet frame. The pages come back to the program with what the stack wrote: it has to write the head anew.
    pub frame: &'a [u8],
    pub count: u32,
    /// The interface, of the calling thread's network namespace.
    pub ifindex: u32,
}

/// `struct __sk_buff` (linux/bpf.h) in words, and the indexes of the fields that the kernel accepts from outside.
const SK_BUFF_WORDS: usize = 48;
const MARK: usize = 2;
const INGRESS_IFINDEX: usize = 9;
const IFINDEX: usize = 10;
const GSO_SEGS: usize = 41;
const GSO_SIZE: usize = 44;

/// `struct xdp_md` (linux/bpf.h) in words, and the indexes of the fields that are used.
const XDP_MD_WORDS: usize = 6;
const DATA_END: usize = 1;
const XDP_INGRESS_IFINDEX: usize = 3;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`.
const LIVE_FRAMES: u32 = 1 << 1;
/// Frames that go into the stack together.
const LIVE_BATCH: u32 = 64;

/// More than any program adds to a packet.
const HEADROOM: usize = 256;

impl<'a> TestRun<'a> {
    /// One run on `lo`.
    pub fn new(packet: &'a [u8]) -> Self {
        Self {
            packet,
            repeat: 1,
            ifindex: 0,
            ingress_ifindex: 0,
            gso_size: 0,
            gso_segs: 0,
            mark: 0,
        }
    }

    fn context(&self) -> Vec<u8> {
        let mut words = [0_u32; SK_BUFF_WORDS];
        words[MARK] = self.mark;
        words[INGRESS_IFINDEX] = self.ingress_ifindex;
        words[IFINDEX] = self.ifindex;
        words[GSO_SEGS] = self.gso_segs;
        words[GSO_SIZE] = self.gso_size;
        bytes_of(&words)
    }

    /// Runs any tcx program on the packet.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the program's type, the packet (shorter than an Ethernet header, longer than a page
    /// allows) or the interface.
    pub fn on(&self, program: BorrowedFd<'_>) -> io::Result<TestRunResult> {
        let mut packet = vec![0; self.packet.len() + HEADROOM];
        let context = self.context();
        let args = sys::TestRunArgs {
            data_in: self.packet,
            data_out: &mut packet,
            ctx_in: &context,
            repeat: self.repeat,
            flags: 0,
            batch_size: 0,
        };
        let answer = sys::prog_test_run(program, args)?;
        packet.truncate(answer.data_size_out as usize);
        Ok(TestRunResult {
            retval: answer.retval,
            packet,
            duration: Duration::from_nanos(answer.duration.into()),
        })
    }
}

impl LiveFrames<'_> {
    /// Lets the frames through `program`, an XDP program that returns `XDP_PASS`; returns when the stack is done with
    /// them.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the program's type, the frame (longer than a page allows) or the interface.
    pub fn inject(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut words = [0_u32; XDP_MD_WORDS];
        words[DATA_END] = self.frame.len() as u32;
        words[XDP_INGRESS_IFINDEX] = self.ifindex;
        let args = sys::TestRunArgs {
            data_in: self.frame,
            data_out: &mut [],
            ctx_in: &bytes_of(&words),
            repeat: self.count,
            flags: LIVE_FRAMES,
            batch_size: LIVE_BATCH,
        };
        sys::prog_test_run(program, args).map(drop)
    }
}

impl Dataplane {
    /// Runs a program on a packet, with the real maps.
    ///
    /// # Errors
    ///
    /// As [`TestRun::on`].
    pub fn test_run(&self, program: Program, run: &TestRun<'_>) -> Result<TestRunResult, Error> {
        run.on(self.program(program).fd())
            .map_err(|source| Error::Program {
                action: "run",
                program,
                source,
            })
    }
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
