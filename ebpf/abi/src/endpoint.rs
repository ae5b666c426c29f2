//! What is on this node, and which addresses are services': `endpoint4_v2`, `endpoint6_v2`, by address.

use crate::Plain;

/// Value of `endpoint4_v2` and `endpoint6_v2`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Endpoint {
    /// The host side of the pod's veth; 0 for the host's own addresses.
    pub ifindex: u32,
    /// See [`endpoint_flag`].
    pub flags: u32,
    /// MAC address of the pod's side; of an address of the host, that of `fairlead0`: what is delivered to the host
    /// comes in there, and must be addressed to it.
    pub pod_mac: [u8; 6],
    /// MAC address of the host's side.
    pub host_mac: [u8; 6],
    pub pad: u32,
}

// SAFETY: two words, twelve bytes, one word: no implicit padding.
unsafe impl Plain for Endpoint {}

impl Endpoint {
    /// Destination and source MAC address of what is delivered there, as they lie in the Ethernet header.
    #[inline(always)]
    pub fn macs(&self) -> [u32; 3] {
        let start = core::ptr::from_ref(&self.pod_mac).cast::<u32>();
        // SAFETY: twelve bytes of this `Plain` struct, aligned to words, as `layout` makes sure.
        [0, 1, 2].map(|word| unsafe { start.add(word).read() })
    }
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flag {
    /// An address of the host itself: the packet goes to the host's stack.
    pub const HOST: u32 = 1;
    /// The address that source NAT uses: only answers of tracked connections may come to it.
    pub const SOURCE_NAT: u32 = 1 << 1;
    /// A ClusterIP: nothing is there but its frontends, so what asks for more is refused, and a ping is answered.
    pub const CLUSTER_IP: u32 = 1 << 2;
    /// An address of a load balancer: a ping is answered. Something else may serve its other ports.
    pub const VIP: u32 = 1 << 3;
    /// A pod's address whose packets wait before the host's side of its link: they must not go around it.
    pub const LIMITED: u32 = 1 << 4;
}
