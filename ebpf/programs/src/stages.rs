//! Stages that few packets need, as global functions: the verifier looks at each of them by itself, and not again on every
//! way that leads to it (<https://docs.kernel.org/bpf/verifier.html>).

use aya_ebpf::bindings::__sk_buff;
use ebpf_abi::{Addr4, Addr6};
use ebpf_packet::direct_return;

use crate::{node::Kernel, skb::Skb};

/// See [`direct_return::receive`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn receive_handed_on(skb: *mut __sk_buff, labelled: u32) -> u64 {
    direct_return::receive(&mut Skb(skb), &Kernel, labelled)
}

/// See [`direct_return::hand_on`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hand_on4(skb: *mut __sk_buff) -> u64 {
    direct_return::hand_on::<Addr4, _, _>(&mut Skb(skb), &Kernel)
}

/// See [`direct_return::hand_on`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hand_on6(skb: *mut __sk_buff) -> u64 {
    direct_return::hand_on::<Addr6, _, _>(&mut Skb(skb), &Kernel)
}
