//! Connections of this process that can carry nothing any more.
//!
//! A connection keeps the address that it was made from. When the node loses that address, the kernel says nothing to
//! the process: reads wait for ever, since no answer can come.

use std::{
    fs, io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::sys::socket::{
    AddressFamily, Shutdown, SockaddrLike, SockaddrStorage, getsockname, shutdown,
};

/// Shuts every socket of this process down that has one of these addresses; whoever reads it sees its end. Answers how
/// many there were.
///
/// # Errors
///
/// When the process may not see its own descriptors.
pub fn shut_own_sockets(addresses: &[IpAddr]) -> io::Result<usize> {
    let mut shut = 0;
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // The directory's own descriptor is in the list, and gone by the time it is looked at.
        let is_socket = fs::read_link(entry.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        let number: Option<RawFd> = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|_| is_socket) else {
            continue;
        };
        let Ok(socket) = duplicate(number) else {
            continue;
        };
        let local = local_address(&socket);
        if local.is_some_and(|local| addresses.contains(&local))
            && shutdown(socket.as_raw_fd(), Shutdown::Both).is_ok()
        {
            shut += 1;
        }
    }
    Ok(shut)
}

/// A descriptor of our own for the same socket: another thread may close that one, and its number be given again.
fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is borrowed for this one call only; if it was closed since it was listed, the call fails
    // with EBADF, and if its number was given again, the copy is of another file that is then looked at like any.
    let listed = unsafe { BorrowedFd::borrow_raw(number) };
    listed.try_clone_to_owned()
}

fn local_address(socket: &OwnedFd) -> Option<IpAddr> {
    let address: SockaddrStorage = getsockname(socket.as_fd().as_raw_fd()).ok()?;
    match address.family()? {
        AddressFamily::Inet => Some(IpAddr::V4(address.as_sockaddr_in()?.ip())),
        AddressFamily::Inet6 => Some(address.as_sockaddr_in6()?.ip().to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn a_reader_on_a_lost_address_sees_the_end_and_others_go_on() {
        let connection = |address: &str| {
            let listener = TcpListener::bind((address, 0)).unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (stream, listener)
        };
        // Both ends are this process's, and loopback is a whole network.
        let (mut lost, _listener) = connection("127.0.77.1");
        let (kept, other) = connection("127.0.77.2");
        let (mut accepted, _) = other.accept().unwrap();
        assert!(shut_own_sockets(&["127.0.77.1".parse().unwrap()]).unwrap() >= 1);
        assert_eq!(lost.read(&mut [0]).unwrap_or(0), 0);
        drop(kept);
        accepted.set_nonblocking(false).unwrap();
        assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
    }
}
