//! A packet in the kernel: a socket buffer behind its helpers.

use core::arch::asm;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    bpf_f_adj_room_encap_l2,
    helpers::{
        bpf_get_hash_recalc, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail,
        bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
};
use ebpf_abi::{Family, overlay_header};
use ebpf_packet::{ChecksumField, OutOfBounds, Packet};

/// `BPF_F_IPV6` (Linux 6.16, and backports): the difference does not change `skb->csum`, as the addresses balance it.
const BPF_F_IPV6: u64 = 1 << 7;
const EINVAL: i64 = -22;
const EALREADY: i64 = -114;
/// Length of the inner Ethernet header, for the kernel's segmentation.
const INNER_ETH_LEN: u64 = 14;

/// A socket buffer.
pub struct Skb(pub *mut __sk_buff);

impl Skb {
    #[inline(always)]
    fn store_with(&self, at: u32, bytes: &[u8], flags: u64) -> Result<(), OutOfBounds> {
        // SAFETY: the context pointer is the program's own; the slice is on the stack and its length is its size.
        check(unsafe {
            bpf_skb_store_bytes(self.0, at, bytes.as_ptr().cast(), bytes.len() as u32, flags)
        })
    }

    #[inline(always)]
    fn room(&self, difference: i32, flags: u64) -> i64 {
        // SAFETY: the context pointer is the program's own.
        unsafe { bpf_skb_adjust_room(self.0, difference, BPF_ADJ_ROOM_MAC, flags) }
    }
}

impl Packet for Skb {
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

    #[inline(always)]
    fn load(&self, at: u32, into: &mut [u8]) -> Result<(), OutOfBounds> {
        // SAFETY: the slice is on the stack and its length is its size; the helper checks the packet's bounds.
        check(unsafe {
            bpf_skb_load_bytes(
                self.0.cast(),
                at,
                into.as_mut_ptr().cast(),
                into.len() as u32,
            )
        })
    }

    #[inline(always)]
    fn store(&mut self, at: u32, bytes: &[u8]) -> Result<(), OutOfBounds> {
        self.store_with(at, bytes, 0)
    }

    #[inline(always)]
    fn store_unbalanced(&mut self, at: u32, bytes: &[u8]) -> Result<(), OutOfBounds> {
        self.store_with(at, bytes, BPF_F_RECOMPUTE_CSUM as u64)
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
    fn flow_hash(&self) -> u32 {
        // SAFETY: the context pointer is the program's own.
        unsafe { bpf_get_hash_recalc(self.0) }
    }

    #[inline(always)]
    fn make_room_for_overlay(&mut self) -> Result<(), OutOfBounds> {
        const FIXED: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64;
        let flags = FIXED
            | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
            | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
            | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
            | bpf_f_adj_room_encap_l2(INNER_ETH_LEN);
        let result = self.room(overlay_header::LEN_V4 as i32, flags);
        // The kernel does not clear skb->encapsulation at decapsulation and refuses to set it twice.
        if result == EALREADY {
            return check(self.room(overlay_header::LEN_V4 as i32, FIXED));
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
    fn truncate(&mut self, len: u32) -> Result<(), OutOfBounds> {
        // SAFETY: the context pointer is the program's own.
        check(unsafe { bpf_skb_change_tail(self.0, len, 0) })
    }

    #[inline(always)]
    fn forget_range(&self, value: u32) -> u32 {
        let mut value = value as u64;
        // SAFETY: exclusive or twice with the same number, in registers; the number is one that the verifier does
        // not know.
        unsafe {
            asm!("{value} ^= {unknown}", "{value} ^= {unknown}", value = inout(reg) value,
                 unknown = in(reg) self.length() as u64, options(pure, nomem, nostack));
        }
        value as u32
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
