//! A packet as a byte vector, which refuses what the kernel's helpers refuse.

use ebpf_abi::Family;
use ebpf_packet::{ChecksumField, OutOfBounds, Packet};

/// A frame on the wire.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wire {
    pub bytes: Vec<u8>,
    /// Payload bytes of each segment, of a packet that is still to be cut.
    pub segment: u32,
}

impl Wire {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, segment: 0 }
    }

    fn range(&self, at: u32, len: usize) -> Result<std::ops::Range<usize>, OutOfBounds> {
        let at = at as usize;
        let end = at.checked_add(len).ok_or(OutOfBounds)?;
        if end > self.bytes.len() {
            Err(OutOfBounds)
        } else {
            Ok(at..end)
        }
    }
}

impl Packet for Wire {
    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn ethertype(&self) -> u16 {
        match self.bytes.get(12..14) {
            Some(bytes) => u16::from_ne_bytes([bytes[0], bytes[1]]),
            None => 0,
        }
    }

    fn load(&self, at: u32, into: &mut [u8]) -> Result<(), OutOfBounds> {
        assert!(into.len().is_multiple_of(2), "halves and words only");
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
        assert!(into.len().is_multiple_of(4) && into.as_ptr().addr().is_multiple_of(4));
        self.load(at, into)
    }

    fn store_words(
        &mut self,
        at: u32,
        bytes: &[u8],
        halves: &[(usize, u16)],
    ) -> Result<(), OutOfBounds> {
        assert!(bytes.as_ptr().addr().is_multiple_of(4));
        self.store(at, bytes)?;
        for (offset, half) in halves.iter().filter(|(offset, _)| *offset != bytes.len()) {
            assert!(offset + 2 <= bytes.len());
            self.store(at + *offset as u32, &half.to_be_bytes())?;
        }
        Ok(())
    }

    fn store_ethernet(&mut self, macs: [u32; 3], ethertype: u16) -> Result<(), OutOfBounds> {
        self.store(0, macs.map(u32::to_ne_bytes).as_flattened())?;
        self.store(12, &ethertype.to_ne_bytes())
    }

    fn sum_changed(&mut self, _: u32) {}

    /// RFC 1624, equation 3, in 16-bit big-endian arithmetic: not the way the crate itself computes.
    fn add_to_checksum(
        &mut self,
        at: u32,
        difference: u32,
        field: ChecksumField,
    ) -> Result<(), OutOfBounds> {
        let range = self.range(at, 2)?;
        let old = u16::from_be_bytes([self.bytes[range.start], self.bytes[range.start + 1]]);
        if field.zero_is_none && old == 0 {
            return Ok(());
        }
        let words = difference.to_ne_bytes();
        let mut sum = u32::from(!old);
        sum += u32::from(u16::from_be_bytes([words[0], words[1]]));
        sum += u32::from(u16::from_be_bytes([words[2], words[3]]));
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let mut new = !(sum as u16);
        if field.zero_is_none && new == 0 {
            new = 0xffff;
        }
        self.bytes[range].copy_from_slice(&new.to_be_bytes());
        Ok(())
    }

    fn segment_payload(&self) -> u32 {
        self.segment
    }

    fn make_room_for_overlay(
        &mut self,
        len: usize,
        underlay: Family,
        inner_ethernet: bool,
    ) -> Result<(), OutOfBounds> {
        let ip = match underlay {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        assert_eq!(len, ip + 8 + if inner_ethernet { 22 } else { 0 });
        self.bytes.splice(14..14, vec![0xee; len]);
        Ok(())
    }

    fn remove_overlay(&mut self, len: u32, inner: Family) -> Result<(), OutOfBounds> {
        let least = match inner {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        // As bpf_skb_adjust_room: what is left must hold an IP header.
        if self.bytes.len() < 14 + len as usize + least {
            return Err(OutOfBounds);
        }
        self.bytes.drain(14..14 + len as usize);
        Ok(())
    }

    fn resize(&mut self, len: u32) -> Result<(), OutOfBounds> {
        self.bytes.resize(len as usize, 0);
        Ok(())
    }
}
