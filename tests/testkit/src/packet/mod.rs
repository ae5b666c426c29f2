//! Packets for tests: built from their fields, taken apart again, with checksums computed here from the RFCs and not
//! by the product's code.
//!
//! ```
//! use tests_testkit::packet::{Frame, Parsed, tcp_flag};
//!
//! let bytes = Frame::new("10.244.1.2".parse().unwrap(), "10.96.0.10".parse().unwrap())
//!     .tcp(40000, 80, tcp_flag::SYN, b"")
//!     .bytes();
//! let parsed = Parsed::from_frame(&bytes).unwrap();
//! assert_eq!(parsed.dst_port, 80);
//! parsed.assert_checksums();
//! ```

mod build;
mod checksum;
mod parse;

pub use build::{Frame, L4, vxlan};
pub use checksum::{internet_checksum, pseudo_header};
pub use parse::{Parsed, ParsedVxlan};

/// EtherType numbers.
pub mod ether_type {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const IPV6: u16 = 0x86dd;
}

/// IANA protocol numbers.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const IPV6_FRAGMENT: u8 = 44;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

/// Flags of the TCP header.
pub mod tcp_flag {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
}
