//! Bytes of a packet by direct access: whatever the program's kind, a context names where the packet starts and ends.

use core::{arch::asm, ffi::c_void};

/// The address of packet bytes that are in bounds; 0 if they were not.
#[derive(Clone, Copy)]
pub struct Window(u64);

/// Copies the words of a header between a window and memory, up to the longest header that goes in one piece.
///
/// Offsets are part of the instructions and a word never is a variable: the compiler would keep headers and addresses
/// in registers, of which there are ten.
macro_rules! copy_words {
    ($direction:ident, $window:expr, $memory:expr, $len:expr) => {
        copy_words!(@ $direction, $window, $memory, $len; 0 4 8 12 16 20 24 28 32 36 40 44 48 52 56 60 64)
    };
    (@ $direction:ident, $window:expr, $memory:expr, $len:expr; $($offset:literal)*) => {
        {
            $(if $offset + 4 <= $len {
                copy_words!($direction $window, $memory, $offset);
            })*
        }
    };
    (to $window:expr, $memory:expr, $at:expr) => {
        asm!("{v} = *(u32 *)({p} + {at})", "*(u32 *)({q} + {at}) = {v}", v = out(reg) _,
             p = in(reg) $window.0, q = in(reg) $memory, at = const $at, options(nostack))
    };
    (from $window:expr, $memory:expr, $at:expr) => {
        asm!("{v} = *(u32 *)({q} + {at})", "*(u32 *)({p} + {at}) = {v}", v = out(reg) _,
             p = in(reg) $window.0, q = in(reg) $memory, at = const $at, options(nostack))
    };
}

impl Window {
    /// The bytes, if all of them lie in the linear part. `DATA` and `DATA_END`: where the context names it.
    ///
    /// In assembly, since the verifier wants the very comparison of a packet pointer with the packet's end, which the
    /// compiler would turn around.
    #[inline(always)]
    pub fn of<const DATA: usize, const DATA_END: usize>(
        context: *mut c_void,
        at: u32,
        len: usize,
    ) -> Self {
        let start: u64;
        // SAFETY: reads two fields of the context and compares; changes nothing.
        unsafe {
            asm!(
                "{start} = 0",
                // The verifier follows offsets below 64 KiB only.
                "if {at} > 16383 goto +6",
                "{start} = *(u32 *)({ctx} + {data})",
                "{end} = *(u32 *)({ctx} + {data_end})",
                "{start} += {at}",
                "{behind} = {start}",
                "{behind} += {len}",
                "if {behind} <= {end} goto +1",
                "{start} = 0",
                ctx = in(reg) context,
                at = in(reg) at as u64,
                len = in(reg) len as u64,
                data = const DATA,
                data_end = const DATA_END,
                start = out(reg) start,
                end = out(reg) _,
                behind = out(reg) _,
                options(nostack),
            );
        }
        Self(start)
    }

    #[inline(always)]
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Reads an even number of bytes.
    #[inline(always)]
    pub fn load(self, into: &mut [u8]) {
        for word in WORDS {
            if word + 4 <= into.len() {
                into[word..word + 4].copy_from_slice(&self.skip(word).word());
            }
        }
        let tail = into.len() & !3;
        if tail < into.len() {
            into[tail..].copy_from_slice(&self.skip(tail).half());
        }
    }

    /// Writes an even number of bytes.
    #[inline(always)]
    pub fn store(self, bytes: &[u8]) {
        for word in WORDS {
            if word + 4 <= bytes.len() {
                self.skip(word).set_word([
                    bytes[word],
                    bytes[word + 1],
                    bytes[word + 2],
                    bytes[word + 3],
                ]);
            }
        }
        let tail = bytes.len() & !3;
        if tail < bytes.len() {
            self.skip(tail).set_half([bytes[tail], bytes[tail + 1]]);
        }
    }

    /// Reads whole words into a slice that is aligned to them.
    #[inline(always)]
    pub fn load_words(self, into: &mut [u8]) {
        // SAFETY: words of a window that is in bounds go to a slice of the same length, aligned as is demanded.
        unsafe { copy_words!(to, self, into.as_mut_ptr(), into.len()) };
    }

    /// See [`ebpf_packet::Packet::store_words`].
    #[inline(always)]
    pub fn store_words(self, bytes: &[u8], halves: &[(usize, u16)]) {
        // SAFETY: as above, the other way round.
        unsafe { copy_words!(from, self, bytes.as_ptr(), bytes.len()) };
        let tail = bytes.len() & !3;
        if tail < bytes.len() {
            self.skip(tail).set_half([bytes[tail], bytes[tail + 1]]);
        }
        for (offset, half) in halves {
            if offset + 2 <= bytes.len() {
                self.skip(*offset).set_half(half.to_be_bytes());
            }
        }
    }

    /// See [`ebpf_packet::Packet::store_ethernet`].
    #[inline(always)]
    pub fn store_ethernet(self, macs: [u32; 3], ethertype: u16) {
        for (number, word) in macs.into_iter().enumerate() {
            self.skip(4 * number).set_word(word.to_ne_bytes());
        }
        self.skip(12).set_half(ethertype.to_ne_bytes());
    }

    /// A part of the window.
    #[inline(always)]
    fn skip(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }

    #[inline(always)]
    pub fn half(self) -> [u8; 2] {
        let value: u64;
        // SAFETY: two bytes of a window that is in bounds.
        unsafe {
            asm!("{v} = *(u16 *)({p} + 0)", v = out(reg) value, p = in(reg) self.0,
                 options(pure, readonly, nostack))
        };
        (value as u16).to_ne_bytes()
    }

    #[inline(always)]
    fn word(self) -> [u8; 4] {
        let value: u64;
        // SAFETY: four bytes of a window that is in bounds.
        unsafe {
            asm!("{v} = *(u32 *)({p} + 0)", v = out(reg) value, p = in(reg) self.0,
                 options(pure, readonly, nostack))
        };
        (value as u32).to_ne_bytes()
    }

    #[inline(always)]
    pub fn set_half(self, bytes: [u8; 2]) {
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

/// The same value, of which the verifier has forgotten what it knew. `unknown`: any number that it does not know.
#[inline(always)]
pub fn forget(value: u32, unknown: u32) -> u32 {
    let mut value = value as u64;
    // SAFETY: exclusive or twice with the same number, in registers.
    unsafe {
        asm!("{value} ^= {unknown}", "{value} ^= {unknown}", value = inout(reg) value,
             unknown = in(reg) unknown as u64, options(pure, nomem, nostack));
    }
    value as u32
}

/// The operations of [`ebpf_packet::Packet`] that are plain reads and writes, by the packet's own `window`.
macro_rules! direct_access {
    () => {
        #[inline(always)]
        fn load(&self, at: u32, into: &mut [u8]) -> Result<(), OutOfBounds> {
            self.window(at, into.len())?.load(into);
            Ok(())
        }

        #[inline(always)]
        fn store(&mut self, at: u32, bytes: &[u8]) -> Result<(), OutOfBounds> {
            self.window(at, bytes.len())?.store(bytes);
            Ok(())
        }

        #[inline(always)]
        fn load_words(&self, at: u32, into: &mut [u8]) -> Result<(), OutOfBounds> {
            self.window(at, into.len())?.load_words(into);
            Ok(())
        }

        #[inline(always)]
        fn store_words(
            &mut self,
            at: u32,
            bytes: &[u8],
            halves: &[(usize, u16)],
        ) -> Result<(), OutOfBounds> {
            self.window(at, bytes.len())?.store_words(bytes, halves);
            Ok(())
        }

        #[inline(always)]
        fn store_ethernet(&mut self, macs: [u32; 3], ethertype: u16) -> Result<(), OutOfBounds> {
            self.window(0, 14)?.store_ethernet(macs, ethertype);
            Ok(())
        }
    };
}
pub(crate) use direct_access;
