//! The packet as the code sees it: bytes behind a few operations that the kernel has helpers for.

use ebpf_abi::{Addr4, Addr6, Family};

use crate::{Ip, Node, direct_return};

/// An access beyond the packet's end, or one that the kernel refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OutOfBounds;

/// What the kernel must know to update a transport checksum in place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChecksumField {
    /// The difference comes from the pseudo header (addresses): it counts even where the rest of the sum is left to
    /// the device (`CHECKSUM_PARTIAL`).
    pub pseudo_header: bool,
    /// A sum of zero means 'none' and stays so; a computed zero is written as 0xffff (RFC 768).
    pub zero_is_none: bool,
    pub family: Family,
}

/// A frame: Ethernet, IP and what follows. Offsets count from the Ethernet header, in bytes.
pub trait Packet {
    /// Length in bytes, Ethernet header included.
    fn length(&self) -> u32;
    /// The EtherType, in network byte order.
    fn ethertype(&self) -> u16;
    /// Reads bytes; the slice's length is even and a constant where this is called.
    fn load(&self, at: u32, into: &mut [u8]) -> Result<(), OutOfBounds>;
    /// Writes bytes whose change is balanced elsewhere in the packet's sum, or lies outside of it (Ethernet header);
    /// the slice's length is even and a constant where this is called.
    fn store(&mut self, at: u32, bytes: &[u8]) -> Result<(), OutOfBounds>;
    /// [`Packet::load`] of whole words into a slice that is aligned to words.
    fn load_words(&self, at: u32, into: &mut [u8]) -> Result<(), OutOfBounds>;
    /// [`Packet::store`] from a slice that starts at a word; then half words, by their offset in it and in host order.
    /// Those whose offset is the slice's length are left out.
    fn store_words(
        &mut self,
        at: u32,
        bytes: &[u8],
        halves: &[(usize, u16)],
    ) -> Result<(), OutOfBounds>;
    /// Writes the Ethernet header: both MAC addresses, and the EtherType in network byte order.
    fn store_ethernet(&mut self, macs: [u32; 3], ethertype: u16) -> Result<(), OutOfBounds>;
    /// Says that what was written changed the sum over the packet by this difference, which nothing balances (the IPv6
    /// hop limit): the device may have left that sum with it.
    fn sum_changed(&mut self, difference: u32);
    /// Applies a difference to the 16-bit checksum at `at`.
    fn add_to_checksum(
        &mut self,
        at: u32,
        difference: u32,
        field: ChecksumField,
    ) -> Result<(), OutOfBounds>;
    /// Payload bytes of each segment of a packet that the device will cut; 0 if it is to be sent as it is.
    fn segment_payload(&self) -> u32;
    /// Makes room for `len` bytes between the Ethernet header and what follows: the overlay's header over this family.
    /// `inner_ethernet`: it ends with an Ethernet header.
    fn make_room_for_overlay(
        &mut self,
        len: usize,
        underlay: Family,
        inner_ethernet: bool,
    ) -> Result<(), OutOfBounds>;
    /// Removes `len` bytes behind the Ethernet header; what follows then is of this family.
    fn remove_overlay(&mut self, len: u32, inner: Family) -> Result<(), OutOfBounds>;
    /// Cuts the packet to `len` bytes, or lengthens it by zeros.
    fn resize(&mut self, len: u32) -> Result<(), OutOfBounds>;
    /// [`crate::crc_after`]: where a verifier counts every step on every way that leads here, a function that it looks
    /// at once.
    #[inline(always)]
    fn crc_after(&self, bytes: u32, zeros: u32) -> u32 {
        crate::crc_after(bytes, zeros)
    }
    /// [`direct_return::receive`], also a function that a verifier looks at once.
    #[inline(always)]
    fn receive_handed_on<N>(&mut self, node: &N, labelled: u32) -> u64
    where
        Self: Sized,
        N: Node<Addr4> + Node<Addr6>,
    {
        direct_return::receive(self, node, labelled)
    }
    /// [`direct_return::hand_on`], such a function too.
    #[inline(always)]
    fn hand_on<A: Ip, N: Node<A>>(&mut self, node: &N) -> u64
    where
        Self: Sized,
    {
        direct_return::hand_on(self, node)
    }
    /// The same value, of which the verifier has forgotten what it knew.
    ///
    /// Where many ways through a loop meet, each with its own range of a value, the verifier would follow every one of
    /// them to the end of the program.
    #[inline(always)]
    fn forget_range(&self, value: u32) -> u32 {
        value
    }
}

/// The next machine on a packet's way.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Neighbour {
    /// The interface that leads there.
    pub ifindex: u32,
    /// Its MAC address and that of the interface, as they lie in the Ethernet header.
    pub macs: [u32; 3],
}

/// A packet where no later stage of the kernel finds the neighbour.
pub trait Device: Packet {
    /// The neighbour towards `dst`, as the kernel's routes say; `false` if the kernel must look for it first, or would not
    /// forward there.
    fn neighbour<A: Ip>(&self, src: &A, dst: &A, neighbour: &mut Neighbour) -> bool;
}
