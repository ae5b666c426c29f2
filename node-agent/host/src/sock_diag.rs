//! Closing TCP sockets of others, as `ss --kill` does: sock_diag(7) with `SOCK_DESTROY`
//! (`CONFIG_INET_DIAG_DESTROY`). Their process gets `ECONNABORTED`, the other side a reset.

use std::collections::BTreeSet;
use std::io;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

/// `linux/sock_diag.h`, `linux/netlink.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// A message's header, and in it the offsets of its type and flags.
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, and then whose socket.
const REQUEST: usize = 8 + SOCKET_ID;
/// `struct inet_diag_sockid`: ports, addresses, interface and, last, the cookie.
const SOCKET_ID: usize = 48;
/// Before it in `struct inet_diag_msg`: family, state, timer, retransmissions.
const BEFORE_ID: usize = 4;
const COOKIE: usize = SOCKET_ID - 8;
/// Every state of a connection: neither listening (10), nor closed (7), nor what waits for late packets (6).
const CONNECTED: u32 = 0xfff & !(1 << 10 | 1 << 7 | 1 << 6);

/// One socket as the kernel tells of it.
struct Found {
    family: u8,
    id: [u8; SOCKET_ID],
}

/// Closes the connections of the calling thread's network namespace whose sockets have one of these cookies
/// (`SO_COOKIE`, what `bpf_get_socket_cookie` gives to programs). Answers how many there were.
///
/// # Errors
///
/// When the kernel cannot look for sockets or close them.
pub fn close_tcp_sockets(cookies: &BTreeSet<u64>) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut closed = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let wanted = |found: &Found| cookies.contains(&found.cookie());
        for found in dump(&socket, family as u8)?.into_iter().filter(wanted) {
            closed += usize::from(destroy(&socket, &found)?);
        }
    }
    Ok(closed)
}

impl Found {
    fn cookie(&self) -> u64 {
        let word = |at: usize| {
            let bytes = &self.id[COOKIE + at..COOKIE + at + 4];
            u64::from(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        word(4) << 32 | word(0)
    }
}

fn dump(socket: &Socket, family: u8) -> io::Result<Vec<Found>> {
    let any = Found {
        family,
        id: [0; SOCKET_ID],
    };
    socket.send(&message(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &any), 0)?;
    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&datagram) {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => error(body)?,
                SOCK_DIAG_BY_FAMILY => {
                    let id = body.get(BEFORE_ID..BEFORE_ID + SOCKET_ID);
                    found.extend(id.and_then(|id| {
                        Some(Found {
                            family,
                            id: id.try_into().ok()?,
                        })
                    }));
                }
                _ => {}
            }
        }
    }
}

/// False if it was gone already.
fn destroy(socket: &Socket, found: &Found) -> io::Result<bool> {
    socket.send(&message(SOCK_DESTROY, NLM_F_ACK, found), 0)?;
    let (datagram, _) = socket.recv_from_full()?;
    for (kind, body) in messages(&datagram) {
        if kind == NLMSG_ERROR {
            return match error(body) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
                answer => answer.map(|()| true),
            };
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

fn message(kind: u16, flags: u16, about: &Found) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + REQUEST);
    message.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and sender: one question at a time.
    message.extend([0; 8]);
    message.extend([about.family, libc::IPPROTO_TCP as u8, 0, 0]);
    message.extend(CONNECTED.to_ne_bytes());
    message.extend(about.id);
    message
}

/// Types and bodies of the messages in a datagram; what is cut off is left out.
fn messages(mut datagram: &[u8]) -> Vec<(u16, &[u8])> {
    let mut messages = Vec::new();
    while let Some(header) = datagram.get(..HEADER) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(body) = datagram.get(HEADER..length) else {
            break;
        };
        messages.push((kind, body));
        // They begin at multiples of four.
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    messages
}

/// Of `struct nlmsgerr`: a negative errno, 0 if all is well.
fn error(body: &[u8]) -> io::Result<()> {
    let code = body
        .get(..4)
        .map(|code| i32::from_ne_bytes([code[0], code[1], code[2], code[3]]));
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::*;

    fn cookie(stream: &TcpStream) -> u64 {
        let mut cookie = 0_u64;
        let mut len = size_of::<u64>() as libc::socklen_t;
        // SAFETY: `cookie` and `len` live through the call, and `len` is the size of `cookie`.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut len,
            )
        };
        assert_eq!(result, 0);
        cookie
    }

    #[test]
    fn the_socket_with_the_cookie_is_closed_and_its_neighbour_goes_on() {
        // Closing needs CAP_NET_ADMIN.
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: closing the sockets of others needs root");
            return;
        }
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut closed, mut kept) = (connect(), connect());
            let (mut peer, _) = listener.accept().unwrap();
            let cookies = BTreeSet::from([cookie(&closed)]);
            assert_eq!(close_tcp_sockets(&cookies).unwrap(), 1);
            let error = closed.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
            let error = peer.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            kept.set_nonblocking(true).unwrap();
            assert_eq!(
                kept.read(&mut [0]).unwrap_err().kind(),
                io::ErrorKind::WouldBlock
            );
            assert_eq!(close_tcp_sockets(&cookies).unwrap(), 0, "it is gone");
        }
    }

    #[test]
    fn a_cut_datagram_gives_its_whole_messages() {
        let any = Found {
            family: 2,
            id: [7; SOCKET_ID],
        };
        let mut datagram = message(SOCK_DESTROY, NLM_F_ACK, &any);
        let whole = datagram.len();
        datagram.extend(message(SOCK_DESTROY, NLM_F_ACK, &any));
        for length in 0..=datagram.len() {
            assert_eq!(messages(&datagram[..length]).len(), length / whole);
        }
        assert!(
            messages(&[0; HEADER]).is_empty(),
            "a length of 0 leads nowhere"
        );
    }
}
