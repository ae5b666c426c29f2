//! cgroup connect4/6, getpeername4/6 and sock_release: socket load balancing for TCP.
//!
//! An IPv6 socket may connect to an IPv4 address in its mapped form (RFC 4291 section 2.5.5.2): it is balanced as IPv4.

use aya_ebpf::{
    bindings::{BPF_ANY, bpf_sock, bpf_sock_addr},
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
};
use ebpf_abi::{Addr4, Addr6};
use ebpf_packet::{Caller, Connect, connect, peer_name};

use crate::{maps, node::Kernel};

const IPPROTO_TCP: u32 = 6;
const ECONNREFUSED: i32 = 111;
/// What a hook returns: let the system call go on, or fail it.
const PROCEED: i32 = 1;
const REFUSE: i32 = 0;
/// The third word of an IPv4-mapped address.
const MAPPED: u32 = 0xffffu32.to_be();

#[unsafe(no_mangle)]
#[unsafe(link_section = "cgroup/connect4")]
pub extern "C" fn connect4(ctx: *mut bpf_sock_addr) -> i32 {
    Call(ctx).connect4(Call::addr4, Call::set_addr4)
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "cgroup/connect6")]
pub extern "C" fn connect6(ctx: *mut bpf_sock_addr) -> i32 {
    let call = Call(ctx);
    if call.is_mapped() {
        call.connect4(Call::mapped4, Call::set_mapped4)
    } else {
        call.connect6()
    }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "cgroup/getpeername4")]
pub extern "C" fn getpeername4(ctx: *mut bpf_sock_addr) -> i32 {
    Call(ctx).peer_name4(Call::addr4, Call::set_addr4)
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "cgroup/getpeername6")]
pub extern "C" fn getpeername6(ctx: *mut bpf_sock_addr) -> i32 {
    let call = Call(ctx);
    if call.is_mapped() {
        call.peer_name4(Call::mapped4, Call::set_mapped4)
    } else {
        call.peer_name6()
    }
}

/// A socket goes: what was noted of it goes too, so that the tables hold living sockets only and no new one has to
/// push an old one out.
#[unsafe(no_mangle)]
#[unsafe(link_section = "cgroup/sock_release")]
pub extern "C" fn sock_release(ctx: *mut bpf_sock) -> i32 {
    // SAFETY: a field of the context, and a helper that takes it.
    let (protocol, cookie) = unsafe { ((*ctx).protocol, bpf_get_socket_cookie(ctx.cast())) };
    if protocol == IPPROTO_TCP {
        // An IPv6 socket may have been connected in either family. Most sockets have no entry, which is as good.
        let _ = maps::SOCKET4.remove(&cookie);
        let _ = maps::SOCKET6.remove(&cookie);
    }
    PROCEED
}

/// A system call on a socket's address. Every access is to a field of the context that the hook may touch.
#[derive(Clone, Copy)]
struct Call(*mut bpf_sock_addr);

impl Caller for Call {
    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        // SAFETY: the context pointer is the program's own.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }
}

impl Call {
    #[inline(always)]
    fn connect4(self, addr: fn(Self) -> Addr4, set_addr: fn(Self, Addr4)) -> i32 {
        if !self.is_tcp() {
            return PROCEED;
        }
        match connect::<Addr4, _>(&Kernel, &self, addr(self), self.port()) {
            Connect::Unchanged => PROCEED,
            Connect::Refused => refuse(),
            Connect::Backend(origin) => {
                // If it cannot be remembered, getpeername answers the backend: no reason to fail.
                let _ = maps::SOCKET4.insert(&self.cookie(), &origin, BPF_ANY as u64);
                set_addr(self, origin.backend_addr);
                self.set_port(origin.backend_port_be);
                PROCEED
            }
        }
    }

    #[inline(always)]
    fn connect6(self) -> i32 {
        if !self.is_tcp() {
            return PROCEED;
        }
        match connect::<Addr6, _>(&Kernel, &self, self.addr6(), self.port()) {
            Connect::Unchanged => PROCEED,
            Connect::Refused => refuse(),
            Connect::Backend(origin) => {
                // As above.
                let _ = maps::SOCKET6.insert(&self.cookie(), &origin, BPF_ANY as u64);
                self.set_addr6(origin.backend_addr);
                self.set_port(origin.backend_port_be);
                PROCEED
            }
        }
    }

    #[inline(always)]
    fn peer_name4(self, addr: fn(Self) -> Addr4, set_addr: fn(Self, Addr4)) -> i32 {
        // SAFETY: copied at once, before any other operation on the map.
        if let Some(origin) = unsafe { maps::SOCKET4.get(&self.cookie()) }.copied()
            && let Some((frontend, port_be)) = peer_name(&origin, addr(self), self.port())
        {
            set_addr(self, frontend);
            self.set_port(port_be);
        }
        PROCEED
    }

    #[inline(always)]
    fn peer_name6(self) -> i32 {
        // SAFETY: copied at once, before any other operation on the map.
        if let Some(origin) = unsafe { maps::SOCKET6.get(&self.cookie()) }.copied()
            && let Some((frontend, port_be)) = peer_name(&origin, self.addr6(), self.port())
        {
            self.set_addr6(frontend);
            self.set_port(port_be);
        }
        PROCEED
    }

    #[inline(always)]
    fn is_tcp(self) -> bool {
        // SAFETY: a field of the context.
        unsafe { (*self.0).protocol == IPPROTO_TCP }
    }

    #[inline(always)]
    fn cookie(self) -> u64 {
        // SAFETY: the context pointer is the program's own.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    #[inline(always)]
    fn port(self) -> u16 {
        // SAFETY: a field of the context; the port is in its first two bytes, in network order.
        unsafe { (&raw const (*self.0).user_port).read_volatile() as u16 }
    }

    #[inline(always)]
    fn set_port(self, port_be: u16) {
        // SAFETY: a field of the context that the hook may write.
        unsafe { (&raw mut (*self.0).user_port).write_volatile(port_be as u32) }
    }

    #[inline(always)]
    fn addr4(self) -> Addr4 {
        // SAFETY: a field of the context.
        let word = unsafe { (&raw const (*self.0).user_ip4).read_volatile() };
        Addr4 {
            bytes: word.to_ne_bytes(),
        }
    }

    #[inline(always)]
    fn set_addr4(self, addr: Addr4) {
        // SAFETY: a field of the context that the hook may write.
        unsafe { (&raw mut (*self.0).user_ip4).write_volatile(u32::from_ne_bytes(addr.bytes)) }
    }

    #[inline(always)]
    fn word6(self, i: usize) -> u32 {
        // SAFETY: a field of the context, read by words as the verifier wants it; `i` is below 4.
        unsafe {
            (&raw const (*self.0).user_ip6)
                .cast::<u32>()
                .add(i)
                .read_volatile()
        }
    }

    #[inline(always)]
    fn set_word6(self, i: usize, word: u32) {
        // SAFETY: as above, and the hook may write it.
        unsafe {
            (&raw mut (*self.0).user_ip6)
                .cast::<u32>()
                .add(i)
                .write_volatile(word)
        }
    }

    #[inline(always)]
    fn is_mapped(self) -> bool {
        self.word6(0) == 0 && self.word6(1) == 0 && self.word6(2) == MAPPED
    }

    #[inline(always)]
    fn mapped4(self) -> Addr4 {
        Addr4 {
            bytes: self.word6(3).to_ne_bytes(),
        }
    }

    #[inline(always)]
    fn set_mapped4(self, addr: Addr4) {
        self.set_word6(3, u32::from_ne_bytes(addr.bytes));
    }

    #[inline(always)]
    fn addr6(self) -> Addr6 {
        let mut addr = Addr6::default();
        for (i, bytes) in addr.bytes.chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&self.word6(i).to_ne_bytes());
        }
        addr
    }

    #[inline(always)]
    fn set_addr6(self, addr: Addr6) {
        for (i, bytes) in addr.bytes.chunks_exact(4).enumerate() {
            self.set_word6(
                i,
                u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            );
        }
    }
}

#[inline(always)]
fn refuse() -> i32 {
    // SAFETY: a helper with a plain argument.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REFUSE
}
