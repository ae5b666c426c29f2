//! The outer UDP checksum, and what the kernel's VXLAN device does in the programs' place.
//!
//! Over IPv4 a UDP checksum may be left out (RFC 768), over IPv6 only where both ends agree (RFC 6935, RFC 6936): flannel's
//! device drops packets without. The programs find the checksum of a packet without reading its payload, but for what is
//! yet to be cut into segments the kernel makes checksums in its own device alone. So whoever wants checksums has the
//! device too, and one that takes everything may stand in for the programs.

use std::net::IpAddr;
use std::str::FromStr;

use ebpf_abi::{Peer, overlay_header as at, peer_mode};

use crate::{Mode, Overlay, OverlayError, VtepMac};

/// Whether packets to other nodes have an outer UDP checksum.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Checksum {
    /// With VXLAN over IPv6, where flannel's nodes want it.
    Auto,
    On,
    #[default]
    Off,
}

/// How packets to other nodes are encapsulated.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Outer {
    pub checksum: Checksum,
    /// By the kernel's device alone.
    pub by_device: bool,
    /// The device's index; 0: it is not made (yet).
    pub device_ifindex: u32,
    /// What comes from outside for the backend of a node that wants the same is handed on to it, for it to answer.
    pub direct_return: bool,
}

impl FromStr for Checksum {
    type Err = OverlayError;

    fn from_str(text: &str) -> Result<Self, OverlayError> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            other => Err(OverlayError::Checksum(other.to_owned())),
        }
    }
}

impl Overlay {
    /// # Errors
    ///
    /// When the mode cannot be encapsulated so.
    pub fn encapsulating(mut self, outer: Outer) -> Result<Self, OverlayError> {
        let mode = self.options().mode;
        let wanted = [
            ("--vxlan-device", outer.by_device),
            ("--overlay-checksum on", outer.checksum == Checksum::On),
            ("--direct-server-return", outer.direct_return),
        ];
        let wanted = wanted.into_iter().find(|(_, is_wanted)| *is_wanted);
        if let Some((flag, _)) = wanted
            && mode != Mode::Vxlan
        {
            let found = mode.name();
            return Err(OverlayError::NeedsVxlan { flag, found });
        }
        self.outer = outer;
        Ok(self)
    }

    pub fn outer(&self) -> Outer {
        self.outer
    }

    /// Whether packets have an outer UDP checksum.
    pub fn checksum(&self) -> bool {
        self.options().mode == Mode::Vxlan
            && match self.outer.checksum {
                Checksum::Auto => self.underlay().is_ipv6(),
                Checksum::On => true,
                Checksum::Off => false,
            }
    }

    /// Whether the kernel's VXLAN device must be there.
    pub fn needs_device(&self) -> bool {
        self.outer.by_device || self.checksum()
    }

    /// Whether clients outside are answered by their backend's node, where that one says the same. A label is under no
    /// checksum, and the kernel's device neither makes nor takes any.
    pub fn returns_directly(&self) -> bool {
        self.outer.direct_return && !self.needs_device()
    }

    /// Lets the device, or the checksum, be known of a peer whose header is filled in.
    pub(crate) fn finish(&self, peer: &mut Peer) {
        if !self.needs_device() {
            return;
        }
        peer.device_ifindex = self.outer.device_ifindex;
        if self.outer.by_device {
            peer.mode = peer_mode::DEVICE;
        } else if peer.device_ifindex != 0 {
            peer.checksum_sum = checksum_sum(peer, self.underlay());
        }
    }
}

/// Which MAC address the kernel's device must send to which underlay address, for a peer that has something of it.
pub(crate) fn forwarding(peer: &Peer) -> Option<(VtepMac, IpAddr)> {
    if peer.device_ifindex == 0 {
        return None;
    }
    let mac_at = usize::from(peer.header_len).checked_sub(14)?;
    let mac = peer.header.get(mac_at..mac_at + 6)?.try_into().ok()?;
    let [a, b, c, d, ..] = peer.underlay_addr;
    let remote = if usize::from(peer.header_len) == at::VXLAN_OVER_IPV4 {
        IpAddr::from([a, b, c, d])
    } else {
        IpAddr::from(peer.underlay_addr)
    };
    Some((VtepMac(mac), remote))
}

/// See [`Peer::checksum_sum`]. `own`: this node's underlay address.
pub(crate) fn checksum_sum(peer: &Peer, own: IpAddr) -> u32 {
    const UDP: u32 = 17;
    let (own, remote, ip_len) = match own {
        IpAddr::V4(own) => (
            own.octets().to_vec(),
            &peer.underlay_addr[..4],
            at::IPV4_LEN,
        ),
        IpAddr::V6(own) => (own.octets().to_vec(), &peer.underlay_addr[..], at::IPV6_LEN),
    };
    let behind = &peer.header[ip_len..peer.header_len.into()];
    let words = [&own, remote, behind]
        .into_iter()
        .flat_map(|bytes| bytes.chunks(2))
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    words.sum::<u32>() + UDP
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Encapsulation, overlay::peer_at};

    const MAC: VtepMac = VtepMac([2, 0, 0, 0, 0, 2]);

    fn peer(own: &str, remote: &str) -> Peer {
        let mut peer = peer_at(remote.parse().unwrap(), 1400);
        let vxlan = Encapsulation::Vxlan {
            vni: 1,
            own_mac: VtepMac([2, 0, 0, 0, 0, 1]),
            peer_mac: MAC,
        };
        vxlan.fill(&mut peer, own.parse().unwrap(), 8472, true);
        peer
    }

    #[test]
    fn the_device_sends_to_the_peers_mac_address_at_its_underlay_address() {
        for (own, remote) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
            let mut peer = peer(own, remote);
            assert_eq!(forwarding(&peer), None);
            peer.device_ifindex = 9;
            assert_eq!(forwarding(&peer), Some((MAC, remote.parse().unwrap())));
        }
    }

    #[test]
    fn the_sum_has_every_word_that_the_checksum_covers_and_no_other() {
        let sum = checksum_sum(
            &peer("192.0.2.1", "192.0.2.2"),
            "192.0.2.1".parse().unwrap(),
        );
        let addresses = 0xc000 + 0x0201 + 0xc000 + 0x0202;
        let vxlan = 0x0800 + 0x0100;
        let macs = 0x0200 + 2 + 0x0200 + 1;
        assert_eq!(sum, addresses + 17 + 8472 + vxlan + macs);
    }
}
