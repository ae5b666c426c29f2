//! Atomic operations: `core` offers only loads and stores for this target, the instruction set has more.

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

/// Replaces a word that holds `old`; returns what it held.
///
/// # Safety
///
/// As for [`fetch_add`].
#[inline(always)]
pub unsafe fn compare_exchange(word: *mut u32, old: u32, new: u32) -> u32 {
    let mut held = old as u64;
    // SAFETY: the caller's promise; the verifier checks the access itself.
    unsafe {
        asm!("w0 = cmpxchg32_32(r1 + 0, w0, w2)", in("r1") word, inout("r0") held, in("r2") new as u64, options(nostack));
    }
    held as u32
}

/// Sets bits in a double word; returns what it held.
///
/// # Safety
///
/// As for [`fetch_add`].
#[inline(always)]
pub unsafe fn fetch_or64(word: *mut u64, bits: u64) -> u64 {
    let mut old = bits;
    // SAFETY: the caller's promise; the verifier checks the access itself.
    unsafe {
        asm!("r2 = atomic_fetch_or((u64 *)(r1 + 0), r2)", in("r1") word, inout("r2") old, options(nostack));
    }
    old
}

/// Adds to a double word, wrapping.
///
/// # Safety
///
/// As for [`fetch_add`].
#[inline(always)]
pub unsafe fn add64(word: *mut u64, amount: u64) {
    // SAFETY: the caller's promise; the verifier checks the access itself.
    unsafe {
        asm!("lock *(u64 *)(r1 + 0) += r2", in("r1") word, in("r2") amount, options(nostack));
    }
}

/// Leaves only these bits in a double word.
///
/// # Safety
///
/// As for [`fetch_add`].
#[inline(always)]
pub unsafe fn and64(word: *mut u64, bits: u64) {
    // SAFETY: the caller's promise; the verifier checks the access itself.
    unsafe {
        asm!("lock *(u64 *)(r1 + 0) &= r2", in("r1") word, in("r2") bits, options(nostack));
    }
}
