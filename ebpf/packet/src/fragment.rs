//! IP fragments: only the first carries ports, so it leaves them for those that follow.

use ebpf_abi::{FragmentKey, FragmentPorts};

use crate::{Ip, Node, parse::Headers};

/// Gives a later fragment the ports that its first fragment left; `false` if it left none.
#[inline(always)]
pub(crate) fn recall<A: Ip, N: Node<A>>(node: &N, headers: &mut Headers<A>) -> bool {
    match node.fragment(&key(headers)) {
        Some(ports) => {
            headers.tuple.src_port_be = ports.src_port_be;
            headers.tuple.dst_port_be = ports.dst_port_be;
            true
        }
        None => false,
    }
}

/// Leaves a first fragment's ports for those that follow.
#[inline(always)]
pub(crate) fn remember<A: Ip, N: Node<A>>(node: &N, headers: &Headers<A>) {
    let ports = FragmentPorts {
        src_port_be: headers.tuple.src_port_be,
        dst_port_be: headers.tuple.dst_port_be,
    };
    node.fragment_insert(&key(headers), &ports);
}

#[inline(always)]
fn key<A: Ip>(headers: &Headers<A>) -> FragmentKey<A> {
    FragmentKey {
        src: headers.tuple.src,
        dst: headers.tuple.dst,
        id_be: headers.fragment_id_be,
        protocol: headers.tuple.protocol,
        pad: [0; 3],
    }
}
