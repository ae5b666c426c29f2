//! How often this node answers one address by ICMP errors, as the kernel does it (`icmp_ratelimit` in
//! Documentation/networking/ip-sysctl.rst, RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f): one a second, and six at
//! once after a rest.
//!
//! A bucket is one number, the time at which it would be full again (the generic cell rate algorithm of ITU-T I.371).
//! Addresses share buckets by hash: two that meet share one's worth. So do processors that race: an answer more or less.

use crate::{
    Ip, Node, Packet,
    ip::{Aligned, ETH_LEN},
};

/// Time that one answer costs.
const INTERVAL_NS: u64 = 1_000_000_000;
/// Answers at once after a rest.
const BURST: u64 = 6;

/// Takes an answer to the packet's source out of its bucket; `false` if there is none left.
#[inline(never)]
pub(crate) fn admits<A: Ip, P: Packet, N: Node<A>>(packet: &P, node: &N) -> bool {
    let mut source = Aligned([0; 16]);
    let source = &mut source.0[..A::LEN];
    if packet
        .load_words((ETH_LEN + A::SRC_AT) as u32, source)
        .is_err()
    {
        return false;
    }
    let mut hash = 0u32;
    for word in source.chunks_exact(4) {
        hash ^= u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        // Knuth's multiplier, the golden ratio of 32 bits.
        hash = hash.wrapping_mul(0x9e37_79b1);
    }
    // The high bits are the well mixed ones.
    let bucket = hash >> 16;
    let now = node.now_ns();
    let full_at = node.icmp_full_at(bucket).max(now);
    if full_at - now > (BURST - 1) * INTERVAL_NS {
        return false;
    }
    node.set_icmp_full_at(bucket, full_at + INTERVAL_NS);
    true
}
