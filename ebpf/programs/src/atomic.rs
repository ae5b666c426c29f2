//! Atomic operations on 32-bit words: `core` offers only 64-bit ones for this target, the instruction set has both.

use core::arch::asm;

/// Adds to a word and returns what it held before. Instruction set v3 (Linux 5.12).
///
/// # Safety
///
/// `word` points to an aligned word of a map's value that every program changes atomically only.
#[inline(always)]
pub unsafe fn fetch_add(word: *mut u32, value: u32) -> u32 {
    let mut old = value as u64;
    // SAFETY: the caller's promise; the verifier checks the access itself.
    unsafe {
        asm!("w2 = atomic_fetch_add((u32 *)(r1 + 0), w2)", in("r1") word, inout("r2") old, options(nostack));
    }
    old as u32
}

/// Sets bits in a word.
///
/// # Safety
///
/// As for [`fetch_add`].
#[inline(always)]
pub unsafe fn or(word: *mut u32, bits: u32) {
    // SAFETY: the caller's promise; the verifier checks the access itself.
    unsafe {
        asm!("lock *(u32 *)(r1 + 0) |= w2", in("r1") word, in("r2") bits as u64, options(nostack));
    }
}
