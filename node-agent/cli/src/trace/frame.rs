//! The described packet as bytes. It is never sent, so nobody will check its checksums: they stay as they are.

use std::{net::IpAddr, ops::Range};

use ebpf_abi::Family;
use ebpf_packet::{ChecksumField, OutOfBounds, Packet};

use super::flow::Flow;
use crate::words;

/// An Ethernet frame.
#[derive(Clone, Debug)]
pub struct Frame {
    bytes: Vec<u8>,
    /// What the overlay has put before the packet.
    overlay: Option<Overlay>,
}

#[derive(Clone, Copy, Debug)]
struct Overlay {
    len: usize,
    /// Where its UDP header begins.
    udp: usize,
    vxlan: bool,
}

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 2;
const ACK: u8 = 16;

impl Frame {
    /// The frame of a flow whose defaults are filled in.
    pub fn of(flow: &Flow) -> Self {
        let mut bytes = vec![0; ETHERNET - 2];
        let payload_len = match flow.src.ip {
            IpAddr::V4(_) => flow.size - 20,
            IpAddr::V6(_) => flow.size - 40,
        };
        match (flow.src.ip, flow.dst.ip) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                bytes.extend([0x08, 0x00, 0x45, 0]);
                bytes.extend(flow.size.to_be_bytes());
                // Identification, "don't fragment".
                bytes.extend([0, 0, 0x40, 0, flow.ttl, flow.proto, 0, 0]);
                bytes.extend(src.octets());
                bytes.extend(dst.octets());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                bytes.extend(payload_len.to_be_bytes());
                bytes.extend([flow.proto, flow.ttl]);
                bytes.extend(src.octets());
                bytes.extend(dst.octets());
            }
            _ => unreachable!("a resolved flow has one address family"),
        }
        bytes.extend(transport(flow, payload_len));
        bytes.resize(ETHERNET + usize::from(flow.size), 0);
        Self {
            bytes,
            overlay: None,
        }
    }

    /// How the packet looks now, its overlay headers first if it has got them.
    pub fn text(&self) -> Option<String> {
        let packet = ends(&self.bytes, ETHERNET)?;
        let Some(overlay) = self.overlay else {
            return Some(packet);
        };
        let inner = ends(&self.bytes, ETHERNET + overlay.len)?;
        if !overlay.vxlan {
            return Some(format!("{inner}, in UDP {packet}"));
        }
        // The VNI is the second word of the VXLAN header (RFC 7348 section 5).
        let vni = self.bytes.get(overlay.udp + 12..overlay.udp + 15)?;
        let vni = u32::from_be_bytes([0, vni[0], vni[1], vni[2]]);
        Some(format!("{inner}, in VXLAN (VNI {vni}) {packet}"))
    }

    fn range(&self, at: u32, len: usize) -> Result<Range<usize>, OutOfBounds> {
        let at = at as usize;
        let end = at.checked_add(len).ok_or(OutOfBounds)?;
        if end <= self.bytes.len() {
            Ok(at..end)
        } else {
            Err(OutOfBounds)
        }
    }
}

fn transport(flow: &Flow, len: u16) -> Vec<u8> {
    let ports = [flow.src.port, flow.dst.port].map(|port| port.unwrap_or(0).to_be_bytes());
    match flow.proto {
        TCP => {
            let flags = if flow.established { ACK } else { SYN };
            let rest = [0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0x20, 0, 0, 0, 0, 0];
            [ports.concat(), rest.to_vec()].concat()
        }
        UDP => [ports.concat(), len.to_be_bytes().to_vec(), vec![0, 0]].concat(),
        // An echo request with identifier 1.
        1 => vec![8, 0, 0, 0, 0, 1, 0, 1],
        _ => vec![128, 0, 0, 0, 0, 1, 0, 1],
    }
}

/// Source and destination in words, of the IP packet at this offset, which has no options.
fn ends(bytes: &[u8], at: usize) -> Option<String> {
    let ip = |at: usize, len: usize| -> Option<IpAddr> {
        let octets = bytes.get(at..at + len)?;
        match len {
            4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        }
    };
    let (protocol, src, dst, l4) = match bytes.get(at)? >> 4 {
        4 => (bytes[at + 9], ip(at + 12, 4)?, ip(at + 16, 4)?, at + 20),
        _ => (
            *bytes.get(at + 6)?,
            ip(at + 8, 16)?,
            ip(at + 24, 16)?,
            at + 40,
        ),
    };
    let text = match (protocol, bytes.get(l4..l4 + 4)) {
        (TCP | UDP, Some(ports)) => format!(
            "{} -> {}",
            words::socket(src, u16::from_be_bytes([ports[0], ports[1]])),
            words::socket(dst, u16::from_be_bytes([ports[2], ports[3]]))
        ),
        _ => format!("{src} -> {dst}"),
    };
    Some(text)
}

impl Packet for Frame {
    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn ethertype(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[12], self.bytes[13]])
    }

    fn load(&self, at: u32, into: &mut [u8]) -> Result<(), OutOfBounds> {
        let range = self.range(at, into.len())?;
        into.copy_from_slice(&self.bytes[range]);
        Ok(())
    }

    fn store(&mut self, at: u32, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let range = self.range(at, bytes.len())?;
        self.bytes[range].copy_from_slice(bytes);
        Ok(())
    }

    fn load_words(&self, at: u32, into: &mut [u8]) -> Result<(), OutOfBounds> {
        self.load(at, into)
    }

    fn store_words(
        &mut self,
        at: u32,
        bytes: &[u8],
        halves: &[(usize, u16)],
    ) -> Result<(), OutOfBounds> {
        self.store(at, bytes)?;
        for (offset, half) in halves {
            if *offset == bytes.len() {
                continue;
            }
            let at = at + u32::try_from(*offset).map_err(|_| OutOfBounds)?;
            self.store(at, &half.to_be_bytes())?;
        }
        Ok(())
    }

    fn store_ethernet(&mut self, macs: [u32; 3], ethertype: u16) -> Result<(), OutOfBounds> {
        self.store(0, macs.map(u32::to_ne_bytes).as_flattened())?;
        self.store(12, &ethertype.to_ne_bytes())
    }

    fn sum_changed(&mut self, _: u32) {}

    fn add_to_checksum(&mut self, at: u32, _: u32, _: ChecksumField) -> Result<(), OutOfBounds> {
        self.range(at, 2).map(|_| ())
    }

    fn segment_payload(&self) -> u32 {
        0
    }

    fn make_room_for_overlay(
        &mut self,
        len: usize,
        underlay: Family,
        inner_ethernet: bool,
    ) -> Result<(), OutOfBounds> {
        let ip_len = match underlay {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        let ethertype: [u8; 2] = match underlay {
            Family::V4 => [0x08, 0x00],
            Family::V6 => [0x86, 0xdd],
        };
        self.bytes[12..ETHERNET].copy_from_slice(&ethertype);
        self.bytes.splice(ETHERNET..ETHERNET, vec![0; len]);
        self.overlay = Some(Overlay {
            len,
            udp: ETHERNET + ip_len,
            vxlan: inner_ethernet,
        });
        Ok(())
    }

    fn remove_overlay(&mut self, len: u32, _: Family) -> Result<(), OutOfBounds> {
        let range = self.range(ETHERNET as u32, len as usize)?;
        self.bytes.drain(range);
        Ok(())
    }

    fn resize(&mut self, len: u32) -> Result<(), OutOfBounds> {
        self.bytes.resize(len as usize, 0);
        Ok(())
    }
}
