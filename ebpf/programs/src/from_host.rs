//! tcx egress at `fairlead0`: what processes of the host send to pods and services.

use aya_ebpf::bindings::__sk_buff;

use crate::{
    drops::{self, Delivery},
    node::Kernel,
    skb::Skb,
};

#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
pub extern "C" fn from_host(skb: *mut __sk_buff) -> i32 {
    let mut skb = Skb(skb);
    let verdict = ebpf_packet::from_host(&mut skb, &Kernel);
    drops::carry_out(&skb, verdict, Delivery::HostSide)
}
