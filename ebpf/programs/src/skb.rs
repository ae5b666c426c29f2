//! A packet in the kernel: a socket buffer behind its helpers.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0,
        BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    bpf_f_adj_room_encap_l2,
    helpers::{
        bpf_csum_update, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail,
        bpf_skb_pull_data,
    },
};
use ebpf_abi::Family;
use ebpf_packet::{ChecksumField, Ip, OutOfBounds, Packet};

use crate::{
    stages::{hand_on4, hand_on6, receive_handed_on},
    window::{Window, direct_access, forget},
};

/// `BPF_F_IPV6` (Linux 6.16, and backports): the difference does not change `skb->csum`, as the addresses balance it.
const BPF_F_IPV6: u64 = 1 << 7;
const EINVAL: i64 = -22;
const EALREADY: i64 = -114;
/// Length of the inner Ethernet header, for the kernel's segmentation.
const INNER_ETH_LEN: u64 = 14;

/// Where `struct __sk_buff` has the packet's start and end.
const DATA: usize = 76;
const DATA_END: usize = 80;

/// A socket buffer.
pub struct Skb(pub *mut __sk_buff);

impl Skb {
    #[inline(always)]
    fn room(&self, difference: i32, flags: u64) -> i64 {
        // SAFETY: the context pointer is the program's own.
        unsafe { bpf_skb_adjust_room(self.0, difference, BPF_ADJ_ROOM_MAC, flags) }
    }

    /// Where `len` bytes of the packet lie in memory, all of them; pulls them together if they do not yet.
    ///
    /// Direct access: a helper for each read and write would take a quarter of the program's time.
    #[inline(always)]
    fn window(&self, at: u32, len: usize) -> Result<Window, OutOfBounds> {
        let window = Window::of::<DATA, DATA_END>(self.0.cast(), at, len);
        if !window.is_none() {
            return Ok(window);
        }
        // SAFETY: the context pointer is the program's own; the helper refuses what is beyond the packet's end.
        check(unsafe { bpf_skb_pull_data(self.0, at.wrapping_add(len as u32)) })?;
        let window = Window::of::<DATA, DATA_END>(self.0.cast(), at, len);
        if window.is_none() {
            Err(OutOfBounds)
        } else {
            Ok(window)
        }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn receive_handed_on<N>(&mut self, _: &N, labelled: u32) -> u64 {
        receive_handed_on(self.0, labelled)
    }

    #[inline(always)]
    fn hand_on<A: Ip, N>(&mut self, _: &N) -> u64 {
        match A::FAMILY {
            Family::V4 => hand_on4(self.0),
            Family::V6 => hand_on6(self.0),
        }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        // SAFETY: a field of the context.
        unsafe { (*self.0).protocol as u16 }
    }

    direct_access!();

    #[inline(always)]
    fn sum_changed(&mut self, difference: u32) {
        // Only where a device left the sum with the packet: it is no error if none did.
        // SAFETY: the context pointer is the program's own.
        unsafe { bpf_csum_update(self.0, difference) };
    }

    #[inline(always)]
    fn add_to_checksum(
        &mut self,
        at: u32,
        difference: u32,
        field: ChecksumField,
    ) -> Result<(), OutOfBounds> {
        let mut flags = 0;
        if field.pseudo_header {
            flags |= BPF_F_PSEUDO_HDR as u64;
        }
        if field.zero_is_none {
            flags |= BPF_F_MARK_MANGLED_0 as u64;
        }
        let replace = |flags| {
            // SAFETY: the context pointer is the program's own; the helper checks the offset. Size 0: `to` is a sum.
            unsafe { bpf_l4_csum_replace(self.0, at, 0, difference as u64, flags) }
        };
        if field.pseudo_header && matches!(field.family, Family::V6) {
            let result = replace(flags | BPF_F_IPV6);
            if result != EINVAL {
                return check(result);
            }
        }
        check(replace(flags))
    }

    #[inline(always)]
    fn segment_payload(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.0).gso_size }
    }

    #[inline(always)]
    fn make_room_for_overlay(
        &mut self,
        len: usize,
        underlay: Family,
        inner_ethernet: bool,
    ) -> Result<(), OutOfBounds> {
        const FIXED: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64;
        let network = match underlay {
            Family::V4 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
            Family::V6 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        };
        let mut flags = FIXED | network as u64 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64;
        if inner_ethernet {
            flags |= BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64 | bpf_f_adj_room_encap_l2(INNER_ETH_LEN);
        }
        let result = self.room(len as i32, flags);
        // The kernel does not clear skb->encapsulation at decapsulation and refuses to set it twice.
        if result == EALREADY {
            return check(self.room(len as i32, FIXED));
        }
        check(result)
    }

    #[inline(always)]
    fn remove_overlay(&mut self, len: u32, inner: Family) -> Result<(), OutOfBounds> {
        let family = match inner {
            Family::V4 => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
            Family::V6 => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        };
        check(self.room(-(len as i32), (BPF_F_ADJ_ROOM_FIXED_GSO | family) as u64))
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Result<(), OutOfBounds> {
        // SAFETY: the context pointer is the program's own.
        check(unsafe { bpf_skb_change_tail(self.0, len, 0) })
    }

    #[inline(always)]
    fn crc_after(&self, bytes: u32, zeros: u32) -> u32 {
        crate::crc::crc_after(bytes, zeros)
    }

    #[inline(always)]
    fn forget_range(&self, value: u32) -> u32 {
        forget(value, self.length())
    }
}

#[inline(always)]
fn check(result: i64) -> Result<(), OutOfBounds> {
    if result == 0 {
        Ok(())
    } else {
        Err(OutOfBounds)
    }
}
