//! What an overlay costs whose packets go through a process: a TUN device and a UDP socket, in the wire format of
//! flannel's `udp` backend (port 8285, the raw inner packet, TTL reduced by one).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::client::BUFFER;
use crate::process::be_ready;

/// The device, named as flannel's.
pub const DEVICE: &str = "flannel0";
const PORT: u16 = 8285;
/// More than a packet of the underlay.
const LARGEST: usize = 2048;

/// Makes the device in this process's namespace and carries packets between it and the other node until nobody needs
/// it.
pub fn serve(own: Ipv4Addr, other: Ipv4Addr) -> Result<()> {
    let device = open_device()?;
    let socket = UdpSocket::bind((own, PORT)).with_context(|| format!("bind {own}:{PORT}"))?;
    socket.connect((other, PORT))?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    thread::spawn(move || {
        if let Err(error) = carry(&device, &socket) {
            eprintln!("the TUN proxy of {own} ended: {error}");
        }
    });
    be_ready()
}

/// One thread for both directions, which waits only when both are empty, as flannel's does.
fn carry(mut device: &File, socket: &UdpSocket) -> io::Result<()> {
    let mut packet = [0; LARGEST];
    loop {
        let mut ready = [
            PollFd::new(device.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut ready, PollTimeout::NONE)?;
        loop {
            let sent = pass(device.read(&mut packet), &mut packet, |bytes| {
                socket.send(bytes)
            })?;
            let received = pass(socket.recv(&mut packet), &mut packet, |bytes| {
                device.write(bytes)
            })?;
            if !sent && !received {
                break;
            }
        }
    }
}

/// Hands on a packet that was read; `false` if there was none. What the other side does not take is lost, as on a wire.
fn pass(
    read: io::Result<usize>,
    packet: &mut [u8],
    mut write: impl FnMut(&[u8]) -> io::Result<usize>,
) -> io::Result<bool> {
    match read {
        Ok(len) => {
            if reduce_ttl(&mut packet[..len]) {
                let _ = write(&packet[..len]);
            }
            Ok(true)
        }
        // The peer's port is not there yet.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// `false` for what must not be sent on: other than IPv4, or out of hops. The checksum follows by RFC 1624.
fn reduce_ttl(packet: &mut [u8]) -> bool {
    if packet.len() < 20 || packet[0] >> 4 != 4 || packet[8] <= 1 {
        return false;
    }
    packet[8] -= 1;
    let checksum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x100;
    let folded = (checksum & 0xffff) + (checksum >> 16);
    packet[10..12].copy_from_slice(&(folded as u16).to_be_bytes());
    true
}

fn open_device() -> Result<File> {
    let path = "/dev/net/tun";
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("open {path} (is the kernel's module tun there?)"))?;
    // SAFETY: all zeroes is a valid ifreq, a struct of integers and a union of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF reads an ifreq, which is a live local.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    nix::errno::Errno::result(result).context("make the TUN device")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use tests_testkit::packet::{Frame, Parsed};

    use super::*;

    #[test]
    fn a_packet_loses_one_hop_and_keeps_a_valid_checksum() {
        let frame = Frame::new([10, 244, 1, 2].into(), [10, 244, 2, 2].into());
        for ttl in [64, 2] {
            let mut bytes = frame.clone().ttl(ttl).udp(1, 2, b"x").bytes();
            assert!(reduce_ttl(&mut bytes[14..]));
            let parsed = Parsed::from_frame(&bytes).unwrap();
            assert_eq!(parsed.ttl, ttl - 1);
            parsed.assert_checksums();
        }
        let mut last_hop = frame.ttl(1).udp(1, 2, b"x").bytes();
        assert!(!reduce_ttl(&mut last_hop[14..]));
        assert!(!reduce_ttl(&mut [0x60; 40]), "IPv6");
    }
}
