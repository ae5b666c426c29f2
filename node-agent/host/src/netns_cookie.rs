//! What the kernel calls a network namespace towards BPF programs.

use std::{io, mem::size_of, net::UdpSocket, os::fd::AsRawFd};

/// The cookie of the calling thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14), as
/// `bpf_get_netns_cookie` gives it to programs for a socket there.
///
/// # Errors
///
/// When the kernel makes no socket or does not know the option.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).or_else(|_| UdpSocket::bind(("0.0.0.0", 0)))?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` live through the call, and `len` is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    match result {
        0 => Ok(cookie),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_keeps_its_cookie() {
        let cookie = netns_cookie().unwrap();
        assert_ne!(cookie, 0);
        assert_eq!(cookie, netns_cookie().unwrap());
    }
}
