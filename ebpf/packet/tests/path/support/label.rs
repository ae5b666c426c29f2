//! What one node hands on to another, as it lies on the wire over IPv4.

use ebpf_abi::{Addr4, Address, direct_label};

use super::{Frame, TestFamily, Wire};

/// The VXLAN header and the MAC addresses of what node `from` hands on to this backend.
pub fn label<A: TestFamily>(from: u8, backend: (A, u16)) -> [u8; direct_label::LEN] {
    let mut label = [0; direct_label::LEN];
    label[0] = direct_label::FLAGS;
    label[direct_label::PORT..][..2].copy_from_slice(&backend.1.to_be_bytes());
    label[6] = 1;
    let (addr, sender) = (backend.0.as_bytes(), A::pod(from, 0));
    let len = addr.len().min(8);
    label[direct_label::SENDER - len..direct_label::SENDER]
        .copy_from_slice(&addr[addr.len() - len..]);
    let at = if A::LEN == Addr4::LEN { 0 } else { 4 };
    label[direct_label::SENDER..].copy_from_slice(&sender.as_bytes()[at..at + 4]);
    label
}

/// This frame, handed on to node 1 by node `from`, whose label names it as node `named`.
pub fn labelled<A: TestFamily>(from: u8, named: u8, backend: (A, u16), frame: &[u8]) -> Wire {
    let mut payload = label(named, backend).to_vec();
    payload.extend(&frame[direct_label::LEN - 8..]);
    Frame::udp_with((Addr4::node(from), 50000), (Addr4::node(1), 8472), &payload).wire()
}
