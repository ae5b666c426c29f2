//! The one function that the verifier looks at by itself and not again on every way that leads to it: a global one, of
//! numbers only (<https://docs.kernel.org/bpf/verifier.html>).

/// See [`ebpf_packet::crc_after`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn crc_after(bytes: u32, zeros: u32) -> u32 {
    ebpf_packet::crc_after(bytes, zeros)
}
