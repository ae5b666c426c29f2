//! From a verdict to the kernel's return code, and the one place where drops are counted.

use aya_ebpf::{
    bindings::{
        BPF_F_INGRESS, TC_ACT_OK, TC_ACT_SHOT, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
};
use ebpf_abi::{DropReason, Family, Peer};
use ebpf_packet::{Packet, Verdict};

use crate::{maps, skb::Skb};

/// How a hook can hand a packet to a pod.
#[derive(Clone, Copy)]
pub enum Delivery {
    /// Straight into the pod's namespace; only at tcx ingress.
    Peer,
    /// Out of the host side of its veth.
    HostSide,
}

/// Carries a verdict out.
#[inline(always)]
pub fn carry_out(skb: &Skb, verdict: Verdict, delivery: Delivery) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_OK,
        Verdict::Drop(reason) => count(skb, reason),
        Verdict::DeliverToPod { ifindex } => match delivery {
            // SAFETY: a helper with plain arguments.
            Delivery::Peer => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
            // SAFETY: as above.
            Delivery::HostSide => unsafe { bpf_redirect(ifindex, 0) as i32 },
        },
        Verdict::ToHost => match maps::CONFIG.get(0) {
            // SAFETY: a helper with plain arguments.
            Some(config) => unsafe {
                bpf_redirect(config.host_ifindex, BPF_F_INGRESS as u64) as i32
            },
            None => count(skb, DropReason::NoConfig),
        },
        Verdict::ToNetwork { next_hop_peer } => to_network(skb, next_hop_peer),
        // SAFETY: a helper with plain arguments.
        Verdict::ToDevice { ifindex } => unsafe { bpf_redirect(ifindex, 0) as i32 },
        Verdict::Reflect => {
            // SAFETY: a field of the context, and a helper with plain arguments.
            unsafe { bpf_redirect((*skb.0).ifindex, 0) as i32 }
        }
        // SAFETY: a helper with plain arguments.
        Verdict::Transmit { ifindex } => unsafe { bpf_redirect(ifindex, 0) as i32 },
    }
}

#[inline(always)]
fn to_network(skb: &Skb, next_hop_peer: u32) -> i32 {
    let Some(config) = maps::CONFIG.get(0) else {
        return count(skb, DropReason::NoConfig);
    };
    if next_hop_peer == 0 {
        // SAFETY: null parameters of length 0 mean 'the neighbour is the destination'.
        return unsafe {
            bpf_redirect_neigh(config.uplink_ifindex, core::ptr::null_mut(), 0, 0) as i32
        };
    }
    let Some(peer) = maps::PEER.get(next_hop_peer) else {
        return count(skb, DropReason::NoPeer);
    };
    let mut neighbour = next_hop(peer);
    // SAFETY: the parameters are on the stack and their length is their size.
    unsafe {
        bpf_redirect_neigh(
            config.uplink_ifindex,
            &raw mut neighbour,
            size_of::<bpf_redir_neigh>() as i32,
            0,
        ) as i32
    }
}

#[inline(always)]
fn next_hop(peer: &Peer) -> bpf_redir_neigh {
    // An IPv4 address takes the first word of the union, the others are idle then.
    // SAFETY: 16 bytes at a multiple of four; byte by byte it would be forty instructions.
    let ipv6_nh = unsafe { peer.underlay_addr.as_ptr().cast::<[u32; 4]>().read() };
    let family = if peer.underlay_family == Family::V4 as u8 {
        Family::V4
    } else {
        Family::V6
    };
    bpf_redir_neigh {
        nh_family: family as u32,
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh },
    }
}

/// Counts a drop and says so to the kernel.
#[inline(always)]
fn count(skb: &Skb, reason: DropReason) -> i32 {
    note(reason, skb.length());
    #[cfg(feature = "log")]
    log(skb, reason as u32);
    TC_ACT_SHOT
}

/// Counts a packet of `bytes` bytes under its reason.
#[inline(always)]
pub fn note(reason: DropReason, bytes: u32) {
    if let Some(counter) = maps::DROP.get_ptr_mut(reason as u32) {
        // SAFETY: this processor's own counter; a program is not moved to another one while it runs.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes as u64;
        }
    }
}

/// Writes a dropped packet to the log, its reason by number (`ebpf_abi::DropReason`).
#[cfg(feature = "log")]
#[inline(never)]
fn log(skb: &Skb, reason: u32) {
    let context = aya_ebpf::programs::TcContext::new(skb.0);
    // SAFETY: a field of the context.
    let ifindex = unsafe { (*skb.0).ifindex };
    aya_log_ebpf::info!(
        &context,
        "drop {} on interface {}, {} bytes",
        reason,
        ifindex,
        skb.length()
    );
}
