//! Addresses: four-byte aligned, so that the compiler moves them in words and not in bytes.

use crate::Plain;

/// The address family, as `AF_INET` and `AF_INET6` number it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Family {
    V4 = 2,
    V6 = 10,
}

/// An IPv4 address, in network byte order.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(C, align(4))]
pub struct Addr4 {
    pub bytes: [u8; 4],
}

/// An IPv6 address, in network byte order.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(C, align(4))]
pub struct Addr6 {
    pub bytes: [u8; 16],
}

// SAFETY: byte arrays whose size is a multiple of their alignment.
unsafe impl Plain for Addr4 {}
// SAFETY: as above.
unsafe impl Plain for Addr6 {}

/// What the generic types and the packet code ask of an address family.
pub trait Address:
    Plain + Default + Eq + Ord + Send + Sync + core::hash::Hash + core::fmt::Debug
{
    const FAMILY: Family;
    /// Length in bytes.
    const LEN: usize;
    /// What fills a [`Conn`](crate::Conn) up to whole cache lines.
    type ConnReserve: Plain + Default + Eq + Send + Sync + core::fmt::Debug;
    fn as_bytes(&self) -> &[u8];
    /// Takes an address from its bytes; `None` if the length is not [`Address::LEN`].
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl Address for Addr4 {
    const FAMILY: Family = Family::V4;
    const LEN: usize = 4;
    type ConnReserve = [u32; 2];

    #[inline(always)]
    fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            bytes: bytes.try_into().ok()?,
        })
    }
}

impl Address for Addr6 {
    const FAMILY: Family = Family::V6;
    const LEN: usize = 16;
    type ConnReserve = [u32; 6];

    #[inline(always)]
    fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            bytes: bytes.try_into().ok()?,
        })
    }
}

impl From<core::net::Ipv4Addr> for Addr4 {
    fn from(ip: core::net::Ipv4Addr) -> Self {
        Self { bytes: ip.octets() }
    }
}

impl From<core::net::Ipv6Addr> for Addr6 {
    fn from(ip: core::net::Ipv6Addr) -> Self {
        Self { bytes: ip.octets() }
    }
}

impl From<Addr4> for core::net::IpAddr {
    fn from(addr: Addr4) -> Self {
        Self::V4(addr.bytes.into())
    }
}

impl From<Addr6> for core::net::IpAddr {
    fn from(addr: Addr6) -> Self {
        Self::V6(addr.bytes.into())
    }
}
