//! Connections that are over: which they are (pure), and taking them out of the tables.

use std::{collections::BTreeSet, time::Duration};

use ebpf_abi::{Conn, ConnKey, conn_flag};

use crate::{FamilyMaps, MapError, MapFamily, Maps, Table};

/// How long a connection may be idle before its entries go.
///
/// The defaults are those that Calico's eBPF dataplane made known (felix, `bpfConntrackTimeouts`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// TCP whose SYN was not answered.
    pub tcp_opening: Duration,
    pub tcp_established: Duration,
    /// TCP with a RST in either direction, or a FIN in both.
    pub tcp_closing: Duration,
    pub udp: Duration,
    pub icmp: Duration,
    pub other: Duration,
}

/// What the flags of a connection's two entries tell.
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
    /// Entries that were there, two a connection.
    pub entries: u32,
    /// Entries that were deleted.
    pub deleted: u32,
    /// Entries that fit.
    pub capacity: u32,
}

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

    /// Whether a connection is over. `entry` and `partner` are its two entries, in either order; an entry without a
    /// partner can serve nobody and is taken as closing.
    pub fn expired<A>(
        &self,
        protocol: u8,
        entry: &Conn<A>,
        partner: Option<&Conn<A>>,
        now_ns: u64,
    ) -> bool {
        let (state, last_seen_ns) = match partner {
            Some(partner) => (
                conn_state(protocol, entry.flags, partner.flags),
                entry.last_seen_ns.max(partner.last_seen_ns),
            ),
            None if protocol == TCP => (ConnState::TcpClosing, entry.last_seen_ns),
            None => (
                conn_state(protocol, entry.flags, entry.flags),
                entry.last_seen_ns,
            ),
        };
        let idle = Duration::from_nanos(now_ns.saturating_sub(last_seen_ns));
        idle > self.of(state)
    }
}

/// The state of a connection from the flags of its two entries, in either order.
pub fn conn_state(protocol: u8, flags: u32, partner_flags: u32) -> ConnState {
    let either = |flag| (flags | partner_flags) & flag != 0;
    let both = |flag| flags & partner_flags & flag != 0;
    match protocol {
        TCP if either(conn_flag::TCP_RST) || both(conn_flag::TCP_FIN) => ConnState::TcpClosing,
        // A connection that was met on its way, without its SYN, counts as established.
        TCP if either(conn_flag::OPEN) && !both(conn_flag::OPEN) => ConnState::TcpOpening,
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
    /// When a table cannot be read or written.
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
    /// When the table cannot be read or written.
    pub fn collect(&self, now_ns: u64, timeouts: &Timeouts) -> Result<GcReport, MapError> {
        let table = &self.conn;
        let mut report = GcReport {
            capacity: table.capacity(),
            ..GcReport::default()
        };
        let mut idle = BTreeSet::new();
        table.for_each(|key, entry| {
            report.entries += 1;
            // The shortest timeout that may hold, so that a busy entry costs no second lookup.
            if timeouts.may_expire(key.protocol, &entry, now_ns) {
                idle.insert(key);
            }
        })?;
        // The second of a pair finds itself deleted with the first.
        for key in idle {
            report.deleted += collect_one(table, key, now_ns, timeouts)?;
        }
        Ok(report)
    }
}

impl Timeouts {
    /// Whether an entry looks idle enough to look at its partner too.
    fn may_expire<A>(&self, protocol: u8, entry: &Conn<A>, now_ns: u64) -> bool {
        let shortest = match protocol {
            TCP => self
                .tcp_opening
                .min(self.tcp_closing)
                .min(self.tcp_established),
            _ => self.of(conn_state(protocol, 0, 0)),
        };
        Duration::from_nanos(now_ns.saturating_sub(entry.last_seen_ns)) > shortest
    }
}

/// Looks at both entries of a connection as they are now, and deletes them if it is over.
fn collect_one<A: MapFamily>(
    table: &Table<ConnKey<A>, Conn<A>>,
    key: ConnKey<A>,
    now_ns: u64,
    timeouts: &Timeouts,
) -> Result<u32, MapError> {
    let Some(entry) = table.get(&key)? else {
        return Ok(0);
    };
    let partner_key = partner_key(&entry, key.protocol);
    let partner = table.get(&partner_key)?;
    if !timeouts.expired(key.protocol, &entry, partner.as_ref(), now_ns) {
        return Ok(0);
    }
    table.remove(&key)?;
    if partner.is_some() {
        table.remove(&partner_key)?;
    }
    Ok(1 + u32::from(partner.is_some()))
}

/// The key of the entry of the opposite direction.
fn partner_key<A: MapFamily>(entry: &Conn<A>, protocol: u8) -> ConnKey<A> {
    ConnKey {
        src: entry.dst,
        dst: entry.src,
        src_port_be: entry.dst_port_be,
        dst_port_be: entry.src_port_be,
        protocol,
        pad: [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use ebpf_abi::Addr4;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn entry(flags: u32, last_seen_s: u64) -> Conn<Addr4> {
        Conn {
            flags,
            last_seen_ns: last_seen_s * SECOND,
            ..Conn::default()
        }
    }

    #[test]
    fn a_tcp_connection_passes_through_its_states() {
        use conn_flag::{OPEN, REPLY, TCP_FIN, TCP_RST};
        for (there, back, expected) in [
            (OPEN, REPLY, ConnState::TcpOpening),
            (OPEN, REPLY | OPEN, ConnState::TcpEstablished),
            (0, REPLY, ConnState::TcpEstablished),
            (OPEN | TCP_FIN, REPLY | OPEN, ConnState::TcpEstablished),
            (
                OPEN | TCP_FIN,
                REPLY | OPEN | TCP_FIN,
                ConnState::TcpClosing,
            ),
            (OPEN, REPLY | TCP_RST, ConnState::TcpClosing),
        ] {
            assert_eq!(
                conn_state(TCP, there, back),
                expected,
                "{there:#x} {back:#x}"
            );
            assert_eq!(
                conn_state(TCP, back, there),
                expected,
                "{back:#x} {there:#x}"
            );
        }
    }

    #[test]
    fn a_connection_is_over_when_both_directions_were_idle_for_its_timeout() {
        let timeouts = Timeouts::default();
        let syn = conn_flag::OPEN;
        for (name, protocol, there, back, limit_s) in [
            ("unanswered SYN", TCP, syn, 0, 20),
            ("established", TCP, syn, syn, 3600),
            ("reset", TCP, syn | conn_flag::TCP_RST, syn, 40),
            ("UDP", UDP, 0, 0, 60),
            ("ICMP", ICMP, 0, 0, 5),
            ("ICMPv6", ICMPV6, 0, 0, 5),
            ("SCTP", 132, 0, 0, 600),
        ] {
            let (there, back) = (entry(there, 100), entry(back, 200));
            let over = |now_s| {
                let now_ns = now_s * SECOND;
                let one = timeouts.expired(protocol, &there, Some(&back), now_ns);
                assert_eq!(one, timeouts.expired(protocol, &back, Some(&there), now_ns));
                one
            };
            assert!(!over(200 + limit_s), "{name} at its limit");
            assert!(over(201 + limit_s), "{name} beyond its limit");
        }
    }

    #[test]
    fn an_entry_without_its_partner_goes_soon() {
        let timeouts = Timeouts::default();
        let lone = entry(conn_flag::OPEN, 100);
        assert!(!timeouts.expired(TCP, &lone, None, 140 * SECOND));
        assert!(timeouts.expired(TCP, &lone, None, 141 * SECOND));
    }

    #[test]
    fn a_clock_that_lags_behind_an_entry_ends_nothing() {
        let timeouts = Timeouts::default();
        let seen_later = entry(0, 500);
        assert!(!timeouts.expired(UDP, &seen_later, Some(&seen_later), 100 * SECOND));
    }
}
