//! The UDP packets that the bench sends without a socket.

use std::net::{IpAddr, SocketAddr};

use tests_testkit::packet;

use crate::cell::{CLIENT, PodAddress};

/// Bytes of the frames of 64 bytes.
pub const SMALL: usize = 64;
/// Source port of the one flow.
pub const SOURCE_PORT: u16 = 40000;

/// An Ethernet frame with a UDP packet whose checksum is valid: a zero one would save a translation its work.
///
/// The payload begins with the complement of the source port; so another port with its complement has the same
/// checksum.
#[derive(Clone, Debug)]
pub struct Frame {
    bytes: Vec<u8>,
    is_ipv4: bool,
}

impl Frame {
    /// Of at least `len` bytes, and of no fewer than the headers and 16 bytes of payload take.
    pub fn new(macs: [[u8; 6]; 2], from: SocketAddr, to: SocketAddr, len: usize) -> Self {
        let is_ipv4 = to.is_ipv4();
        let payload_len = len.saturating_sub(header_len(is_ipv4)).max(16);
        let mut payload = vec![b'p'; payload_len];
        payload[..2].copy_from_slice(&(!from.port()).to_be_bytes());
        let [source, destination] = macs;
        let bytes = packet::Frame::new(from.ip(), to.ip())
            .eth(source, destination)
            .udp(from.port(), to.port(), &payload)
            .bytes();
        Self { bytes, is_ipv4 }
    }

    /// As the client pod sends it to its node.
    pub fn from_client(to: SocketAddr, len: usize) -> Self {
        let macs = [CLIENT.pod_mac(), CLIENT.host_mac()];
        Self::new(macs, client(to.ip(), CLIENT), to, len)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All that a path may write, in whole words of eight bytes.
    pub fn head(&self) -> &[u8] {
        let len = (header_len(self.is_ipv4) + 2).next_multiple_of(8);
        &self.bytes[..len]
    }

    /// Where the source port and its complement stand.
    pub fn port_offsets(&self) -> [i16; 2] {
        let end = header_len(self.is_ipv4) as i16;
        [end - 8, end]
    }
}

/// The one flow's end at a pod, in the family of `like`.
pub fn client(like: IpAddr, pod: PodAddress) -> SocketAddr {
    let ip = if like.is_ipv4() {
        pod.v4().into()
    } else {
        pod.v6().into()
    };
    SocketAddr::new(ip, SOURCE_PORT)
}

/// Ethernet, IP, UDP.
fn header_len(is_ipv4: bool) -> usize {
    14 + if is_ipv4 { 20 } else { 40 } + 8
}

#[cfg(test)]
mod tests {
    use tests_testkit::packet::Parsed;

    use super::*;

    #[test]
    fn another_source_port_with_its_complement_leaves_the_checksum_valid() {
        for to in ["10.244.2.11:8083", "[fd00:244:2::b]:8083"] {
            for len in [SMALL, 1400] {
                let frame = Frame::from_client(to.parse().unwrap(), len);
                let mut bytes = frame.bytes().to_vec();
                assert_eq!(bytes.len(), len.max(header_len(frame.is_ipv4) + 16), "{to}");
                Parsed::from_frame(&bytes).unwrap().assert_checksums();
                let [port, complement] = frame.port_offsets().map(|offset| offset as usize);
                bytes[port..port + 2].copy_from_slice(&1234_u16.to_be_bytes());
                bytes[complement..complement + 2].copy_from_slice(&(!1234_u16).to_be_bytes());
                let parsed = Parsed::from_frame(&bytes).unwrap();
                assert_eq!(parsed.src_port, 1234);
                parsed.assert_checksums();
            }
        }
    }
}
