//! SCTP (RFC 9260): its checksum is a CRC32c over the whole packet (appendix A). Addresses are no part of it, ports are.
//!
//! A CRC is linear: what changed ports do to it depends on which bits changed and on how many bytes follow, and not on
//! what these are. So it is updated without reading the packet.

use crate::{OutOfBounds, Packet, checksum};

/// Ports, verification tag, checksum.
pub(crate) const HEADER_LEN: u32 = 12;
const CHECKSUM_AT: u32 = 8;
/// The polynomial 0x1edc6f41, lowest power first.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The polynomial 1.
const ONE: u32 = 1 << 31;

/// Writes ports, as they lie in memory, and the checksum that they make. `len`: of the SCTP packet in bytes.
///
/// A checksum of zero is left to the device that sends the packet, and stays so.
#[inline(never)]
pub(crate) fn write_ports<P: Packet>(packet: &mut P, at: u32, len: u32, ports: u32) -> bool {
    write(packet, at, len, ports).is_ok()
}

#[inline(always)]
fn write<P: Packet>(packet: &mut P, at: u32, len: u32, ports: u32) -> Result<(), OutOfBounds> {
    let mut header = [0u8; HEADER_LEN as usize];
    packet.load(at, &mut header)?;
    let old = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
    let check = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    replace(packet, at, old.to_ne_bytes(), ports.to_ne_bytes())?;
    if check == 0 {
        return Ok(());
    }
    let changed = u32::from_le_bytes((old ^ ports).to_ne_bytes());
    let new = check ^ packet.crc_after(changed, len.wrapping_sub(4));
    let at = at + CHECKSUM_AT;
    replace(packet, at, check.to_le_bytes(), new.to_le_bytes())
}

/// Writes a word whose change no checksum balances.
#[inline(always)]
fn replace<P: Packet>(
    packet: &mut P,
    at: u32,
    old: [u8; 4],
    new: [u8; 4],
) -> Result<(), OutOfBounds> {
    packet.store(at, &new)?;
    packet.sum_changed(checksum::difference(&old, &new));
    Ok(())
}

/// The CRC, begun with zero, of these four bytes (the first is the lowest) and `zeros` bytes of zero.
#[inline(always)]
pub fn crc_after(bytes: u32, zeros: u32) -> u32 {
    // Four bytes more, since a CRC is the remainder of the message times x^32.
    let mut power = zeros.wrapping_add(4);
    let mut crc = bytes;
    let mut factor = SHIFT_BYTE;
    // A packet has less than 2^16 bytes.
    for _ in 0..17 {
        // No branch: the verifier would follow every way through all the rounds.
        let bit = 0u32.wrapping_sub(power & 1);
        crc = times(crc, (factor & bit) | (ONE & !bit));
        factor = times(factor, factor);
        power >>= 1;
    }
    crc
}

/// x^8, modulo the polynomial.
const SHIFT_BYTE: u32 = ONE >> 8;

/// The product modulo the polynomial.
#[inline(always)]
fn times(mut a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    for _ in 0..32 {
        product ^= b & 0u32.wrapping_sub(a >> 31);
        a <<= 1;
        b = (b >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(b & 1));
    }
    product
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    /// CRC32c as the appendix of RFC 9260 has it, bit by bit.
    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(crc & 1))
            })
        })
    }

    #[test]
    fn the_reference_is_the_known_one() {
        assert_eq!(crc(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_changed_beginning_changes_the_checksum_as_a_whole_computation_says() {
        for len in [4_usize, 5, 12, 28, 1480, 9000, 65515] {
            let mut bytes: vec::Vec<u8> = (0..len).map(|n| (n * 7 + 3) as u8).collect();
            let before = crc(&bytes);
            for (byte, changed) in bytes.iter_mut().zip(0x5a..=0x5d) {
                *byte ^= changed;
            }
            let changed = u32::from_le_bytes([0x5a, 0x5b, 0x5c, 0x5d]);
            assert_eq!(
                before ^ crc_after(changed, len as u32 - 4),
                crc(&bytes),
                "{len} bytes"
            );
        }
    }
}
