//! ICMP echo (RFC 792, RFC 4443), as ping(8) does it.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

const HEADER: usize = 8;
const REQUEST4: u8 = 8;
const REPLY4: u8 = 0;
const REQUEST6: u8 = 128;
const REPLY6: u8 = 129;

/// A socket that asks one address.
pub struct Echo {
    socket: Socket,
    is_v4: bool,
    id: u16,
}

impl Echo {
    /// # Errors
    ///
    /// Without the right to raw sockets, and when there is no route to the address.
    pub fn to(address: IpAddr) -> io::Result<Self> {
        let (domain, protocol) = match address {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        // Only this address is heard from then on.
        socket.connect(&SocketAddr::new(address, 0).into())?;
        Ok(Self {
            socket,
            is_v4: address.is_ipv4(),
            id: std::process::id() as u16,
        })
    }

    /// Asks by an IP packet of `size` bytes; how long the answer took, `None` if there is none in time.
    ///
    /// # Errors
    ///
    /// When the packet cannot be sent.
    pub fn ask(
        &self,
        number: u16,
        size: usize,
        patience: Duration,
    ) -> io::Result<Option<Duration>> {
        let request = self.request(number, size);
        let begun = Instant::now();
        self.socket.send(&request)?;
        let mut bytes = vec![0; 1 << 16];
        loop {
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match (&self.socket).read(&mut bytes) {
                Ok(len) if self.is_reply(&bytes[..len], number) => {
                    return Ok(Some(begun.elapsed()));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                // An ICMP error that came back is no answer: the counters tell more.
                Err(error) if error.raw_os_error().is_some() => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn request(&self, number: u16, size: usize) -> Vec<u8> {
        let header = if self.is_v4 { 20 } else { 40 };
        let mut request = vec![0; size.saturating_sub(header).max(HEADER)];
        request[0] = if self.is_v4 { REQUEST4 } else { REQUEST6 };
        request[4..6].copy_from_slice(&self.id.to_be_bytes());
        request[6..8].copy_from_slice(&number.to_be_bytes());
        if self.is_v4 {
            // The kernel computes ICMPv6's, whose sum covers the addresses.
            let check = checksum(&request);
            request[2..4].copy_from_slice(&check.to_be_bytes());
        }
        request
    }

    /// A raw IPv4 socket shows the IP header too.
    fn is_reply(&self, packet: &[u8], number: u16) -> bool {
        let (at, reply) = match (self.is_v4, packet.first()) {
            (true, Some(first)) => (usize::from(first & 0xf) * 4, REPLY4),
            (true, None) => return false,
            (false, _) => (0, REPLY6),
        };
        packet.get(at..at + HEADER).is_some_and(|header| {
            header[0] == reply
                && header[4..6] == self.id.to_be_bytes()
                && header[6..8] == number.to_be_bytes()
        })
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_answers_itself_in_every_size() {
        for address in ["127.0.0.1", "::1"] {
            let Ok(echo) = Echo::to(address.parse().unwrap()) else {
                println!("skipped: no raw sockets for {address} here");
                continue;
            };
            for (number, size) in [(1, 0), (2, 85), (3, 1450)] {
                let answer = echo.ask(number, size, Duration::from_secs(5)).unwrap();
                assert!(answer.is_some(), "{address}, {size} bytes");
            }
        }
    }

    #[test]
    fn a_request_is_as_long_as_asked_and_its_checksum_verifies() {
        let Ok(echo) = Echo::to([127, 0, 0, 1].into()) else {
            println!("skipped: no raw sockets here");
            return;
        };
        let request = echo.request(7, 1451);
        assert_eq!(request.len(), 1431);
        assert_eq!(checksum(&request), 0);
        assert!(!echo.is_reply(&request, 7));
    }
}
