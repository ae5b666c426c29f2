//! tcx ingress at the kernel's VXLAN device, where that takes packets out of the overlay: what other nodes' pods send.

use aya_ebpf::bindings::__sk_buff;

use crate::{
    drops::{self, Delivery},
    node::Kernel,
    skb::Skb,
};

#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
pub extern "C" fn from_vxlan(skb: *mut __sk_buff) -> i32 {
    let mut skb = Skb(skb);
    let verdict = ebpf_packet::from_vxlan(&mut skb, &Kernel);
    drops::carry_out(&skb, verdict, Delivery::Peer)
}
