//! XDP at the uplink: what only passes through this node goes on before it costs a socket buffer.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::bpf_redirect,
};
use ebpf_packet::{Packet, Verdict};

use crate::{drops, node::Kernel, xdp::Xdp};

#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
pub extern "C" fn from_device(frame: *mut xdp_md) -> u32 {
    let mut frame = Xdp(frame);
    match ebpf_packet::from_device(&mut frame, &Kernel) {
        Verdict::Transmit { ifindex } => transmit(&frame, ifindex),
        Verdict::Drop(reason) => {
            drops::note(reason, frame.length());
            xdp_action::XDP_DROP
        }
        _ => xdp_action::XDP_PASS,
    }
}

/// Out of the device on which it arrived without a detour, or by another one.
#[inline(always)]
fn transmit(frame: &Xdp, ifindex: u32) -> u32 {
    // SAFETY: a field of the context, and a helper with plain arguments.
    unsafe {
        if (*frame.0).ingress_ifindex == ifindex {
            xdp_action::XDP_TX
        } else {
            bpf_redirect(ifindex, 0) as u32
        }
    }
}
