//! Connections that are over: which they are (pure), and taking them out of the tables.
//!
//! A packet may come for a connection just when it is taken out: translated by it, with an answer that nobody translates
//! back. So it is marked first, which any packet that finds it undoes, and taken out after a while in which none came.

use std::{thread, time::Duration};

use ebpf_abi::{Address, Conn, conn_flag};

use crate::{FamilyMaps, MapError, MapFamily, Maps};

/// How long a connection may be idle before its entries go.
///
/// The defaults are those that Calico's eBPF dataplane made known (felix, `bpfConntrackTimeouts`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// TCP whose handshake is not complete.
    pub tcp_opening: Duration,
    pub tcp_established: Duration,
    /// TCP with a RST in either direction, or a FIN in both.
    pub tcp_closing: Duration,
    pub udp: Duration,
    pub icmp: Duration,
    pub other: Duration,
}

/// What the flags of a connection tell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConnState {
    TcpOpening,
    TcpEstablished,
    TcpClosing,
    Udp,
    Icmp,
    Other,
}

/// What a collection found in the table of one family.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct GcReport {
    /// Connections that were there.
    pub entries: u32,
    /// Connections that were deleted.
    pub deleted: u32,
    /// Connections that fit.
    pub capacity: u32,
}

/// Connections of a family that were over, and are marked so that a packet can still take them back.
#[derive(Debug)]
#[must_use = "they end by `end_idle` only"]
pub struct IdleConns {
    /// Connections that were there, the idle ones included.
    entries: u32,
    slots: Vec<u32>,
}

/// From the mark to the end: far longer than a program runs, so that one that found a connection before it was marked
/// has written its time.
const GRACE: Duration = Duration::from_millis(100);
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_opening: Duration::from_secs(20),
            tcp_established: Duration::from_secs(3600),
            tcp_closing: Duration::from_secs(40),
            udp: Duration::from_secs(60),
            icmp: Duration::from_secs(5),
            other: Duration::from_secs(600),
        }
    }
}

impl Timeouts {
    /// How long a connection in this state may be idle.
    pub fn of(&self, state: ConnState) -> Duration {
        match state {
            ConnState::TcpOpening => self.tcp_opening,
            ConnState::TcpEstablished => self.tcp_established,
            ConnState::TcpClosing => self.tcp_closing,
            ConnState::Udp => self.udp,
            ConnState::Icmp => self.icmp,
            ConnState::Other => self.other,
        }
    }

    /// Whether a connection is over.
    pub fn expired<A: Address>(&self, conn: &Conn<A>, now_ns: u64) -> bool {
        let idle = Duration::from_nanos(now_ns.saturating_sub(conn.last_seen_ns));
        idle > self.of(conn_state(conn.original.protocol, conn.flags))
    }
}

/// The state of a connection from its protocol and its flags.
///
/// TCP that was met on its way, without its SYN, is established when both ends went on: as for a handshake.
pub fn conn_state(protocol: u8, flags: u32) -> ConnState {
    const BOTH_FIN: u32 = conn_flag::CLIENT_FIN | conn_flag::BACKEND_FIN;
    match protocol {
        TCP if flags & conn_flag::TCP_RST != 0 || flags & BOTH_FIN == BOTH_FIN => {
            ConnState::TcpClosing
        }
        TCP if flags & conn_flag::CONFIRMED == 0 => ConnState::TcpOpening,
        TCP => ConnState::TcpEstablished,
        UDP => ConnState::Udp,
        ICMP | ICMPV6 => ConnState::Icmp,
        _ => ConnState::Other,
    }
}

/// The clock of [`Conn::last_seen_ns`]: `CLOCK_MONOTONIC_COARSE`, in nanoseconds.
pub fn monotonic_now_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a live mutable reference; the clock exists on every Linux.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    assert_eq!(result, 0, "CLOCK_MONOTONIC_COARSE exists on every Linux");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

impl Maps {
    /// Deletes the connections of both families that are over at `now_ns` ([`monotonic_now_ns`]).
    ///
    /// # Errors
    ///
    /// When a table cannot be written.
    pub fn collect(&self, now_ns: u64, timeouts: &Timeouts) -> Result<[GcReport; 2], MapError> {
        Ok([
            self.v4.collect(now_ns, timeouts)?,
            self.v6.collect(now_ns, timeouts)?,
        ])
    }
}

impl<A: MapFamily> FamilyMaps<A> {
    /// As [`Maps::collect`], of this family.
    ///
    /// # Errors
    ///
    /// When the table cannot be written.
    pub fn collect(&self, now_ns: u64, timeouts: &Timeouts) -> Result<GcReport, MapError> {
        let idle = self.mark_idle(now_ns, timeouts)?;
        if !idle.slots.is_empty() {
            thread::sleep(GRACE);
        }
        Ok(self.end_idle(&idle, now_ns, timeouts))
    }

    /// Marks the connections that are over at `now_ns`, the first half of [`FamilyMaps::collect`].
    ///
    /// # Errors
    ///
    /// When the table cannot be written.
    pub fn mark_idle(&self, now_ns: u64, timeouts: &Timeouts) -> Result<IdleConns, MapError> {
        let (mut entries, mut over) = (0, Vec::new());
        self.conns.for_each(|slot, conn| {
            entries += 1;
            if timeouts.expired(&conn, now_ns) {
                over.push((slot, conn));
            }
        });
        let mut slots = Vec::with_capacity(over.len());
        for (slot, conn) in over {
            if self.conns.mark_idle(slot, &conn)? {
                slots.push(slot);
            }
        }
        Ok(IdleConns { entries, slots })
    }

    /// Takes out those that no packet has found since they were marked, the second half.
    pub fn end_idle(&self, idle: &IdleConns, now_ns: u64, timeouts: &Timeouts) -> GcReport {
        let slots = idle.slots.iter();
        let ended = slots.filter(|slot| {
            self.conns
                .end_idle(**slot, |conn| timeouts.expired(conn, now_ns))
        });
        GcReport {
            entries: idle.entries,
            deleted: ended.count() as u32,
            capacity: self.conns.capacity(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ebpf_abi::{Addr4, ConnKey};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn conn(protocol: u8, flags: u32, last_seen_s: u64) -> Conn<Addr4> {
        Conn {
            original: ConnKey {
                protocol,
                ..ConnKey::default()
            },
            flags,
            last_seen_ns: last_seen_s * SECOND,
            ..Conn::default()
        }
    }

    #[test]
    fn a_tcp_connection_passes_through_its_states() {
        use conn_flag::{ANSWERED, BACKEND_FIN, CLIENT_FIN, CONFIRMED, OPEN, TCP_RST};
        const ESTABLISHED: u32 = OPEN | ANSWERED | CONFIRMED;
        for (flags, expected) in [
            (OPEN, ConnState::TcpOpening),
            (OPEN | ANSWERED, ConnState::TcpOpening),
            (ESTABLISHED, ConnState::TcpEstablished),
            (0, ConnState::TcpOpening),
            (ANSWERED | CONFIRMED, ConnState::TcpEstablished),
            (ESTABLISHED | CLIENT_FIN, ConnState::TcpEstablished),
            (
                ESTABLISHED | CLIENT_FIN | BACKEND_FIN,
                ConnState::TcpClosing,
            ),
            (OPEN | ANSWERED | TCP_RST, ConnState::TcpClosing),
        ] {
            assert_eq!(conn_state(TCP, flags), expected, "{flags:#x}");
        }
    }

    #[test]
    fn a_connection_is_over_when_it_was_idle_for_its_timeout() {
        use conn_flag::{ANSWERED, CONFIRMED, OPEN, TCP_RST};
        let timeouts = Timeouts::default();
        for (name, protocol, flags, limit_s) in [
            ("unanswered SYN", TCP, OPEN, 20),
            (
                "SYN that only the backend answered",
                TCP,
                OPEN | ANSWERED,
                20,
            ),
            ("established", TCP, OPEN | ANSWERED | CONFIRMED, 3600),
            ("reset", TCP, OPEN | TCP_RST, 40),
            ("UDP", UDP, OPEN, 60),
            ("ICMP", ICMP, OPEN, 5),
            ("ICMPv6", ICMPV6, OPEN, 5),
            ("SCTP", 132, OPEN, 600),
        ] {
            let conn = conn(protocol, flags, 200);
            let over = |now_s| timeouts.expired(&conn, now_s * SECOND);
            assert!(!over(200 + limit_s), "{name} at its limit");
            assert!(over(201 + limit_s), "{name} beyond its limit");
        }
    }

    #[test]
    fn a_clock_that_lags_behind_a_connection_ends_nothing() {
        let seen_later = conn(UDP, conn_flag::OPEN, 500);
        assert!(!Timeouts::default().expired(&seen_later, 100 * SECOND));
    }
}
