//! A packet in the kernel: a socket buffer behind its helpers.

use core::arch::asm;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0,
        BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    bpf_f_adj_room_encap_l2,
    helpers::{
        bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data,
        bpf_skb_store_bytes,
    },
};
use ebpf_abi::Family;
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
    fn room(&self, difference: i32, flags: u64) -> i64 {
        // SAFETY: the context pointer is the program's own.
        unsafe { bpf_skb_adjust_room(self.0, difference, BPF_ADJ_ROOM_MAC, flags) }
    }

    /// Where `len` bytes of the packet lie in memory, all of them; pulls them together if they do not yet.
    ///
    /// Direct access: a helper for each read and write would take a quarter of the program's time.
    #[inline(always)]
    fn window(&self, at: u32, len: usize) -> Result<Window, OutOfBounds> {
        let window = self.linear(at, len);
        if window.0 != 0 {
            return Ok(window);
        }
        // SAFETY: the context pointer is the program's own; the helper refuses what is beyond the packet's end.
        check(unsafe { bpf_skb_pull_data(self.0, at.wrapping_add(len as u32)) })?;
        let window = self.linear(at, len);
        if window.0 == 0 {
            Err(OutOfBounds)
        } else {
            Ok(window)
        }
    }

    /// The bytes, if they lie in the linear part; address 0 if not.
    ///
    /// In assembly, since the verifier wants the very comparison of a packet pointer with the packet's end, which the
    /// compiler would turn around.
    #[inline(always)]
    fn linear(&self, at: u32, len: usize) -> Window {
        let start: u64;
        // SAFETY: reads two fields of the context (data at 76, data_end at 80) and compares; changes nothing.
        unsafe {
            asm!(
                "{start} = 0",
                // The verifier follows offsets below 64 KiB only.
                "if {at} > 16383 goto +6",
                "{start} = *(u32 *)({ctx} + 76)",
                "{end} = *(u32 *)({ctx} + 80)",
                "{start} += {at}",
                "{behind} = {start}",
                "{behind} += {len}",
                "if {behind} <= {end} goto +1",
                "{start} = 0",
                ctx = in(reg) self.0,
                at = in(reg) at as u64,
                len = in(reg) len as u64,
                start = out(reg) start,
                end = out(reg) _,
                behind = out(reg) _,
                options(nostack),
            );
        }
        Window(start)
    }
}

/// The address of packet bytes that are in bounds.
#[derive(Clone, Copy)]
struct Window(u64);

/// Copies the words of a header between a window and memory, up to the longest header that goes in one piece. `$shift`:
/// where in memory the window's start lies.
///
/// Offsets are part of the instructions and a word never is a variable: the compiler would keep headers and addresses
/// in registers, of which there are ten.
macro_rules! copy_words {
    ($direction:ident, $window:expr, $memory:expr, $len:expr, $start:literal) => {
        copy_words!(@ $direction, $window, $memory, $len, $start; 0 4 8 12 16 20 24 28 32 36 40 44 48 52 56 60 64)
    };
    (@ $direction:ident, $window:expr, $memory:expr, $len:expr, $start:literal; $($offset:literal)*) => {
        {
            $(if $start + $offset + 4 <= $len {
                copy_words!($direction $window, $memory, $start + $offset, $start + $offset + $start);
            })*
        }
    };
    (to $window:expr, $memory:expr, $from:expr, $to:expr) => {
        asm!("{v} = *(u32 *)({p} + {from})", "*(u32 *)({q} + {to}) = {v}", v = out(reg) _,
             p = in(reg) $window.0, q = in(reg) $memory, from = const $from, to = const $to, options(nostack))
    };
    (from $window:expr, $memory:expr, $to:expr, $from:expr) => {
        asm!("{v} = *(u32 *)({q} + {from})", "*(u32 *)({p} + {to}) = {v}", v = out(reg) _,
             p = in(reg) $window.0, q = in(reg) $memory, from = const $from, to = const $to, options(nostack))
    };
}

impl Window {
    /// A part of the window.
    #[inline(always)]
    fn skip(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }

    #[inline(always)]
    fn half(self) -> [u8; 2] {
        let value: u64;
        // SAFETY: two bytes of a window that is in bounds.
        unsafe {
            asm!("{v} = *(u16 *)({p} + 0)", v = out(reg) value, p = in(reg) self.0, options(nostack))
        };
        (value as u16).to_ne_bytes()
    }

    #[inline(always)]
    fn word(self) -> [u8; 4] {
        let value: u64;
        // SAFETY: four bytes of a window that is in bounds.
        unsafe {
            asm!("{v} = *(u32 *)({p} + 0)", v = out(reg) value, p = in(reg) self.0, options(nostack))
        };
        (value as u32).to_ne_bytes()
    }

    #[inline(always)]
    fn set_half(self, bytes: [u8; 2]) {
        let value = u16::from_ne_bytes(bytes) as u64;
        // SAFETY: two bytes of a window that is in bounds; the kernel sees to it that they are this packet's alone.
        unsafe {
            asm!("*(u16 *)({p} + 0) = {v}", v = in(reg) value, p = in(reg) self.0, options(nostack))
        };
    }

    #[inline(always)]
    fn set_word(self, bytes: [u8; 4]) {
        let value = u32::from_ne_bytes(bytes) as u64;
        // SAFETY: as above, four bytes.
        unsafe {
            asm!("*(u32 *)({p} + 0) = {v}", v = in(reg) value, p = in(reg) self.0, options(nostack))
        };
    }
}

/// Offsets of the words of the longest small piece.
const WORDS: [usize; 6] = [0, 4, 8, 12, 16, 20];

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
        let window = self.window(at, into.len())?;
        for word in WORDS {
            if word + 4 <= into.len() {
                into[word..word + 4].copy_from_slice(&window.skip(word).word());
            }
        }
        let tail = into.len() & !3;
        if tail < into.len() {
            into[tail..].copy_from_slice(&window.skip(tail).half());
        }
        Ok(())
    }

    #[inline(always)]
    fn store(&mut self, at: u32, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let window = self.window(at, bytes.len())?;
        for word in WORDS {
            if word + 4 <= bytes.len() {
                window.skip(word).set_word([
                    bytes[word],
                    bytes[word + 1],
                    bytes[word + 2],
                    bytes[word + 3],
                ]);
            }
        }
        let tail = bytes.len() & !3;
        if tail < bytes.len() {
            window.skip(tail).set_half([bytes[tail], bytes[tail + 1]]);
        }
        Ok(())
    }

    #[inline(always)]
    fn load_words(&self, at: u32, into: &mut [u8]) -> Result<(), OutOfBounds> {
        let window = self.window(at, into.len())?;
        // SAFETY: words of a window that is in bounds go to a slice of the same length, aligned as the trait demands.
        unsafe { copy_words!(to, window, into.as_mut_ptr(), into.len(), 0) };
        Ok(())
    }

    #[inline(always)]
    fn store_words(
        &mut self,
        at: u32,
        bytes: &[u8],
        halves: &[(usize, u16)],
    ) -> Result<(), OutOfBounds> {
        let window = self.window(at, bytes.len())?;
        // SAFETY: as above, the other way round.
        unsafe { copy_words!(from, window, bytes.as_ptr(), bytes.len(), 0) };
        let tail = bytes.len() & !3;
        if tail < bytes.len() {
            window.skip(tail).set_half([bytes[tail], bytes[tail + 1]]);
        }
        for (offset, half) in halves {
            if offset + 2 <= bytes.len() {
                window.skip(*offset).set_half(half.to_be_bytes());
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn load_frame(&self, frame: &mut [u8]) -> Result<(), OutOfBounds> {
        let len = frame.len() - 2;
        let window = self.window(0, len)?;
        frame[2..4].copy_from_slice(&window.half());
        // SAFETY: as in `load_words`; the frame starts two bytes before the window.
        unsafe { copy_words!(to, window, frame.as_mut_ptr(), len, 2) };
        Ok(())
    }

    #[inline(always)]
    fn store_frame(&mut self, frame: &[u8]) -> Result<(), OutOfBounds> {
        let len = frame.len() - 2;
        let window = self.window(0, len)?;
        window.set_half([frame[2], frame[3]]);
        // SAFETY: as above, the other way round.
        unsafe { copy_words!(from, window, frame.as_ptr(), len, 2) };
        Ok(())
    }

    #[inline(always)]
    fn store_unbalanced(&mut self, at: u32, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let (from, len) = (bytes.as_ptr().cast(), bytes.len() as u32);
        // SAFETY: the context pointer is the program's own; the slice is on the stack and its length is its size.
        check(unsafe { bpf_skb_store_bytes(self.0, at, from, len, BPF_F_RECOMPUTE_CSUM as u64) })
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
