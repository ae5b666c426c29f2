//! Connection tracking and NAT: `conn4_v2`, `conn6_v2`; fragments: `fragment4_v1`, `fragment6_v1`.
//!
//! One record says of a connection that is translated which tuple its packets have when they arrive, in each direction.
//! What a packet becomes is the tuple of the other direction, turned round. Connections that are not translated have
//! no record. The records are found by an index, see [`conn_word`](crate::conn_word).

use crate::{Addr4, Addr6, Address, Plain};

/// The tuple of a packet as it arrives.
///
/// ICMP echo has its identifier in `src_port_be` (request) or `dst_port_be` (reply) and 0 in the other.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(C)]
pub struct ConnKey<A> {
    pub src: A,
    pub dst: A,
    pub src_port_be: u16,
    pub dst_port_be: u16,
    /// IANA protocol number.
    pub protocol: u8,
    pub pad: [u8; 3],
}

// SAFETY: two addresses, two half words, four bytes: no implicit padding.
unsafe impl<A: Address> Plain for ConnKey<A> {}

impl<A: Address> ConnKey<A> {
    /// The tuple of the opposite direction.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port_be: self.dst_port_be,
            dst_port_be: self.src_port_be,
            protocol: self.protocol,
            pad: [0; 3],
        }
    }

    /// Takes the addresses for which `answers` are the answers. Returns the one's complement sum of the new words minus
    /// the old ones, not folded.
    ///
    /// One word after the other: the compiler would have all of them at once, each in a place of its own on the stack.
    #[inline(always)]
    pub fn take_addresses(&mut self, answers: &Self) -> u64 {
        let half = size_of::<A>() / size_of::<u32>();
        let (to, from) = (
            core::ptr::from_mut(self).cast::<u32>(),
            core::ptr::from_ref(answers).cast::<u32>(),
        );
        // The complement of each old word, at once.
        let mut sum = 2 * half as u64 * u32::MAX as u64;
        for at in 0..2 * half {
            let other = if at < half { at + half } else { at - half };
            // SAFETY: both are `Plain`, aligned to words, and begin with two addresses of `half` words.
            unsafe {
                let new = from.add(other).read_volatile();
                sum += new as u64;
                sum -= to.add(at).read_volatile() as u64;
                to.add(at).write_volatile(new);
            }
        }
        sum
    }

    /// Whether it is the same tuple: in double words, where `==` goes byte by byte.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        let mut numbers = 0..Self::DOUBLE_WORDS;
        numbers.all(|number| self.double_word(number) == other.double_word(number))
    }

    const DOUBLE_WORDS: usize = size_of::<Self>() / size_of::<u64>();

    /// A double word of the tuple, read as two words: those were just written, and the processor would have to wait
    /// for them to arrive in its cache if it read them as one.
    #[inline(always)]
    fn double_word(&self, number: usize) -> u64 {
        let start = core::ptr::from_ref(self).cast::<u32>();
        // SAFETY: the type is `Plain` and aligned to words; the callers count to its length.
        let [low, high] =
            [0, 1].map(|half| unsafe { start.add(2 * number + half).read_volatile() });
        low as u64 | (high as u64) << 32
    }

    /// The hash that the index goes by. Multiplications and shifts: the kernel's programs have no better instructions.
    #[inline(always)]
    pub fn hash(&self, seed: u64) -> u64 {
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let numbers = 0..Self::DOUBLE_WORDS;
        numbers.fold(seed, |hash, number| {
            let product = (hash ^ self.double_word(number)).wrapping_mul(FACTOR);
            product ^ product >> 32
        })
    }
}

/// An IP header without options as a program reads it, and behind it what the tuple has more: a header ends with the
/// addresses with which a tuple begins, so that neither is copied. `START`: the header's bytes before them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IpHeader<A, const START: usize> {
    pub start: [u8; START],
    pub tuple: ConnKey<A>,
}

// SAFETY: whole words, then a struct aligned to words.
unsafe impl Plain for IpHeader<Addr4, 12> {}
// SAFETY: as above.
unsafe impl Plain for IpHeader<Addr6, 8> {}

/// Value of `conn4_v2` and `conn6_v2`: a connection, in one or two cache lines of its own.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Conn<A: Address> {
    /// When the last packet passed in either direction, by `CLOCK_MONOTONIC_COARSE`, in nanoseconds.
    pub last_seen_ns: u64,
    /// The tuple that the client's packets arrive with.
    pub original: ConnKey<A>,
    /// The tuple that the answers arrive with.
    pub reply: ConnKey<A>,
    /// See [`conn_flag`].
    pub flags: u32,
    /// See [`conn_generation`].
    pub generation: u32,
    pub backend_id: u32,
    /// The backend's epoch when it was selected.
    pub backend_epoch: u32,
    pub reserve: A::ConnReserve,
}

// SAFETY: a double word, two structs of a multiple of it, four words, and words that fill up to a multiple of 64.
unsafe impl<A: Address> Plain for Conn<A> {}

/// [`Conn::generation`]: it rises with each connection, and its two lowest bits say what the slot holds.
pub mod conn_generation {
    /// Nothing, or a connection that is being written.
    pub const FREE: u32 = 0;
    /// A connection that is being put into the index: it is found already, but not yet to be taken out.
    pub const ENTERING: u32 = 1;
    /// A connection.
    pub const HELD: u32 = 2;
    /// A connection that was idle for so long that the agent is about to end it. A packet that finds it makes it
    /// [`HELD`] again.
    pub const IDLE: u32 = 3;

    /// One of the above.
    #[inline(always)]
    pub const fn of(generation: u32) -> u32 {
        generation & 3
    }

    /// Of a connection: the same one, idle.
    #[inline(always)]
    pub const fn idle(generation: u32) -> u32 {
        generation | IDLE
    }

    /// Of a connection: the same one, not idle any more.
    #[inline(always)]
    pub const fn awake(generation: u32) -> u32 {
        generation & !IDLE | HELD
    }

    /// The next generation in which the slot is free.
    #[inline(always)]
    pub const fn next_free(generation: u32) -> u32 {
        (generation | 3).wrapping_add(1)
    }
}

/// Bits of [`Conn::flags`].
pub mod conn_flag {
    /// The client opened it: a SYN of TCP, or any packet of another protocol.
    pub const OPEN: u32 = 1;
    /// A packet passed in the direction of the answers.
    pub const ANSWERED: u32 = 1 << 1;
    /// TCP: the client went on after the answer. Whoever forges a source address never gets that far.
    pub const CONFIRMED: u32 = 1 << 2;
    pub const CLIENT_FIN: u32 = 1 << 3;
    pub const BACKEND_FIN: u32 = 1 << 4;
    /// In either direction.
    pub const TCP_RST: u32 = 1 << 5;
    /// The source is replaced too (NodePort to another node, hairpin, masquerade).
    pub const SOURCE_NAT: u32 = 1 << 6;
    /// The destination was a service; without it there is no backend of ours: only the source is replaced, or the other
    /// node chose that handed the connection on.
    pub const SERVICE: u32 = 1 << 7;
    /// The client's packets are handed on to the backend's node as they arrive, and the answers do not come this way.
    pub const DIRECT_RETURN: u32 = 1 << 8;
}

/// Key of `fragment4_v1` and `fragment6_v1`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(C)]
pub struct FragmentKey<A> {
    pub src: A,
    pub dst: A,
    /// The identification of the IP header or the fragment header, as it stands in the packet.
    pub id_be: u32,
    /// IANA protocol number.
    pub protocol: u8,
    pub pad: [u8; 3],
}

// SAFETY: two four-byte aligned addresses, a word, four bytes: no implicit padding.
unsafe impl<A: Address> Plain for FragmentKey<A> {}

/// Value of `fragment4_v1` and `fragment6_v1`: the ports that only the first fragment carries.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct FragmentPorts {
    pub src_port_be: u16,
    pub dst_port_be: u16,
}

// SAFETY: two half words.
unsafe impl Plain for FragmentPorts {}
