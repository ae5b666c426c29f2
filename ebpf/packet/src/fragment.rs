//! IP fragments: only the first carries ports, so it leaves them for those that follow.

use ebpf_abi::{ConnKey, FragmentKey, FragmentPorts};

use crate::{Ip, Node};

/// Gives a later fragment the ports that its first fragment left; `false` if it left none.
#[inline(never)]
pub(crate) fn recall<A: Ip, N: Node<A>>(node: &N, tuple: &mut ConnKey<A>, id_be: u32) -> bool {
    match node.fragment(&key(tuple, id_be)) {
        Some(ports) => {
            tuple.src_port_be = ports.src_port_be;
            tuple.dst_port_be = ports.dst_port_be;
            true
        }
        None => false,
    }
}

/// Leaves a first fragment's ports for those that follow.
#[inline(never)]
pub(crate) fn remember<A: Ip, N: Node<A>>(node: &N, tuple: &ConnKey<A>, id_be: u32) {
    let ports = FragmentPorts {
        src_port_be: tuple.src_port_be,
        dst_port_be: tuple.dst_port_be,
    };
    node.fragment_insert(&key(tuple, id_be), &ports);
}

#[inline(always)]
fn key<A: Ip>(tuple: &ConnKey<A>, id_be: u32) -> FragmentKey<A> {
    FragmentKey {
        src: tuple.src,
        dst: tuple.dst,
        id_be,
        protocol: tuple.protocol,
        pad: [0; 3],
    }
}
