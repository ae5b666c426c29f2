//! The Internet checksum (RFC 1071), updated incrementally (RFC 1624).
//!
//! A difference is what `bpf_csum_diff` gives: the one's complement sum of the new words minus the old ones, in 32
//! bits, words read as they lie in memory. Such sums may be added in any order.

/// The difference that replacing `old` by `new` makes. Both have the same length, a multiple of four.
#[inline(always)]
pub(crate) fn difference(old: &[u8], new: &[u8]) -> u32 {
    // The complement of each old word, at once.
    let mut sum = (old.len() / 4) as u64 * u32::MAX as u64;
    for (old, new) in old.chunks_exact(4).zip(new.chunks_exact(4)) {
        sum += word(new) as u64;
        sum -= word(old) as u64;
    }
    fold_to_32(sum)
}

/// The difference that replacing 16-bit words makes, words as they lie in memory.
#[inline(always)]
pub(crate) fn difference16(old: u16, new: u16) -> u32 {
    !old as u32 + new as u32
}

/// The sum of two differences.
#[inline(always)]
pub(crate) fn add(a: u32, b: u32) -> u32 {
    fold_to_32(a as u64 + b as u64)
}

/// The checksum field after a difference, both as they lie in memory.
#[inline(always)]
pub(crate) fn apply(field: u16, difference: u32) -> u16 {
    !fold(!field as u64 + difference as u64)
}

/// A transport checksum after a difference, both as they lie in memory. `zero_is_none`: a sum of zero means 'none' and
/// stays so; a computed zero is written as 0xffff (RFC 768).
#[inline(always)]
pub fn apply_to_checksum(field: u16, difference: u32, zero_is_none: bool) -> u16 {
    if zero_is_none && field == 0 {
        return 0;
    }
    match apply(field, difference) {
        0 if zero_is_none => 0xffff,
        sum => sum,
    }
}

/// Sum of bytes as words lie in memory, for a header that is built anew. A length that is a multiple of four.
#[inline(always)]
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let mut sum = 0u64;
    for bytes in bytes.chunks_exact(4) {
        sum += word(bytes) as u64;
    }
    sum
}

/// A sum folded into 16 bits.
#[inline(always)]
pub(crate) fn fold(mut sum: u64) -> u16 {
    sum = (sum >> 32) + (sum & 0xffff_ffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// A sum of differences as a difference.
#[inline(always)]
pub(crate) fn fold_to_32(mut sum: u64) -> u32 {
    sum = (sum >> 32) + (sum & 0xffff_ffff);
    sum = (sum >> 32) + (sum & 0xffff_ffff);
    sum as u32
}

#[inline(always)]
fn word(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
