//! A packet before the kernel has made a socket buffer of it: one frame in the device's memory.

use aya_ebpf::{
    bindings::{
        bpf_fib_lookup as FibLookup, bpf_fib_lookup__bindgen_ty_3 as FibSource,
        bpf_fib_lookup__bindgen_ty_4 as FibDestination, xdp_md,
    },
    helpers::{bpf_fib_lookup, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
};
use ebpf_abi::Family;
use ebpf_packet::{ChecksumField, Device, Ip, Neighbour, OutOfBounds, Packet, apply_to_checksum};

use crate::window::{Window, direct_access, forget};

/// Where `struct xdp_md` has the packet's start and end.
const DATA: usize = 0;
const DATA_END: usize = 4;
/// Length of the Ethernet header in bytes.
const ETH_LEN: usize = 14;

/// A frame at the device.
pub struct Xdp(pub *mut xdp_md);

impl Xdp {
    #[inline(always)]
    fn window(&self, at: u32, len: usize) -> Result<Window, OutOfBounds> {
        let window = Window::of::<DATA, DATA_END>(self.0.cast(), at, len);
        if window.is_none() {
            Err(OutOfBounds)
        } else {
            Ok(window)
        }
    }

    /// Moves the frame's start by `difference` bytes, and its Ethernet header with it.
    #[inline(always)]
    fn move_head(&mut self, difference: i32, family: Family) -> Result<(), OutOfBounds> {
        let mut ethernet = [0; ETH_LEN];
        self.load(0, &mut ethernet)?;
        // SAFETY: the context pointer is the program's own; the helper refuses what does not fit.
        check(unsafe { bpf_xdp_adjust_head(self.0, difference) })?;
        ethernet[12..].copy_from_slice(&ethertype(family).to_ne_bytes());
        self.store(0, &ethernet)
    }
}

/// The EtherType of a family, in network byte order.
#[inline(always)]
fn ethertype(family: Family) -> u16 {
    match family {
        Family::V4 => <ebpf_abi::Addr4 as Ip>::ETHERTYPE,
        Family::V6 => <ebpf_abi::Addr6 as Ip>::ETHERTYPE,
    }
}

impl Packet for Xdp {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context pointer is the program's own.
        unsafe { bpf_xdp_get_buff_len(self.0) as u32 }
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        let mut ethertype = [0; 2];
        match self.load(12, &mut ethertype) {
            Ok(()) => u16::from_ne_bytes(ethertype),
            Err(_) => 0,
        }
    }

    direct_access!();

    /// No device left a sum with a frame.
    #[inline(always)]
    fn sum_changed(&mut self, _: u32) {}

    /// The whole sum is in the frame: no device computes the rest of it later.
    #[inline(always)]
    fn add_to_checksum(
        &mut self,
        at: u32,
        difference: u32,
        field: ChecksumField,
    ) -> Result<(), OutOfBounds> {
        let window = self.window(at, 2)?;
        let old = u16::from_ne_bytes(window.half());
        let new = apply_to_checksum(old, difference, field.zero_is_none);
        window.set_half(new.to_ne_bytes());
        Ok(())
    }

    /// Frames at the device are cut already.
    #[inline(always)]
    fn segment_payload(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn make_room_for_overlay(
        &mut self,
        len: usize,
        underlay: Family,
        _inner_ethernet: bool,
    ) -> Result<(), OutOfBounds> {
        self.move_head(-(len as i32), underlay)
    }

    #[inline(always)]
    fn remove_overlay(&mut self, len: u32, inner: Family) -> Result<(), OutOfBounds> {
        self.move_head(len as i32, inner)
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Result<(), OutOfBounds> {
        let difference = len.wrapping_sub(self.length()) as i32;
        // SAFETY: the context pointer is the program's own; the helper refuses what does not fit.
        check(unsafe { bpf_xdp_adjust_tail(self.0, difference) })
    }

    #[inline(always)]
    fn crc_after(&self, bytes: u32, zeros: u32) -> u32 {
        crate::crc::crc_after(bytes, zeros)
    }

    #[inline(always)]
    fn forget_range(&self, value: u32) -> u32 {
        // SAFETY: a field of the context.
        forget(value, unsafe { (*self.0).rx_queue_index })
    }
}

impl Device for Xdp {
    /// Asks the kernel's routes and neighbours (`bpf_fib_lookup`); it answers only where the kernel itself would forward.
    #[inline(always)]
    fn neighbour<A: Ip>(&self, src: &A, dst: &A, neighbour: &mut Neighbour) -> bool {
        let words = |addr: &A| {
            let mut words = [0u32; 4];
            for (word, bytes) in words.iter_mut().zip(addr.as_bytes().chunks_exact(4)) {
                *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            words
        };
        // SAFETY: a structure of numbers.
        let mut question: FibLookup = unsafe { core::mem::zeroed() };
        question.family = A::FAMILY as u8;
        // SAFETY: a field of the context.
        question.ifindex = unsafe { (*self.0).ingress_ifindex };
        question.__bindgen_anon_3 = FibSource {
            ipv6_src: words(src),
        };
        question.__bindgen_anon_4 = FibDestination {
            ipv6_dst: words(dst),
        };
        let len = size_of::<FibLookup>() as i32;
        // SAFETY: the context pointer is the program's own, the question lies on the stack.
        let answer = unsafe { bpf_fib_lookup(self.0.cast(), &raw mut question, len, 0) };
        if answer != 0 {
            return false;
        }
        *neighbour = Neighbour {
            ifindex: question.ifindex,
            macs: macs(question.dmac, question.smac),
        };
        true
    }
}

/// Two MAC addresses as they lie in the Ethernet header.
#[inline(always)]
fn macs(dst: [u8; 6], src: [u8; 6]) -> [u32; 3] {
    let word = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
    [
        word([dst[0], dst[1], dst[2], dst[3]]),
        word([dst[4], dst[5], src[0], src[1]]),
        word([src[2], src[3], src[4], src[5]]),
    ]
}

#[inline(always)]
fn check(result: i64) -> Result<(), OutOfBounds> {
    if result == 0 {
        Ok(())
    } else {
        Err(OutOfBounds)
    }
}
