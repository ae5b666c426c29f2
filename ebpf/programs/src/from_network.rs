//! tcx ingress at the uplink: what other nodes and the outside send.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_OK};

use crate::{
    drops::{self, Delivery},
    node::Kernel,
    skb::Skb,
};

/// What `skb->pkt_type` says of a frame with another machine's MAC address (linux/if_packet.h).
const PACKET_OTHERHOST: u32 = 3;

#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
pub extern "C" fn from_network(skb: *mut __sk_buff) -> i32 {
    // A bridge's port and a promiscuous device show what others are sent: the host's stack leaves it alone, too.
    // SAFETY: a field of the context.
    if unsafe { (*skb).pkt_type } == PACKET_OTHERHOST {
        return TC_ACT_OK;
    }
    let mut skb = Skb(skb);
    let verdict = ebpf_packet::from_network(&mut skb, &Kernel);
    drops::carry_out(&skb, verdict, Delivery::Peer)
}
