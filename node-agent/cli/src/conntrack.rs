//! `fairlead conntrack list`: the connections that are translated.

use std::{net::IpAddr, time::Duration};

use anyhow::Result;
use ebpf_abi::{Addr4, Addr6, Conn, ConnKey, conn_flag};
use node_agent_maps::{ConnState, FamilyMaps, Maps, conn_state, monotonic_now_ns};
use node_agent_model::MapFamily;
use serde::Serialize;

use crate::{
    filter::{Condition, Facts},
    output::{Report, Section},
    service::or_dash,
    view::View,
    words,
};

#[derive(Debug, Serialize)]
pub struct List {
    pub connections: Vec<Connection>,
}

/// A translated connection, as its first packet came and as it went on.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    pub protocol: String,
    pub source: String,
    pub destination: String,
    /// What the backend, or the world outside, sees as source.
    pub translated_source: String,
    pub translated_destination: String,
    /// `namespace/name`; empty for masquerade, and when the frontend is gone.
    pub service: String,
    /// 0 for masquerade.
    pub backend_id: u32,
    pub state: &'static str,
    pub source_nat: bool,
    /// The client's packets go on as they are; the backend's node answers.
    pub direct_return: bool,
    /// Seconds since the last packet of either direction.
    pub idle_seconds: f64,
    #[serde(skip)]
    facts: Facts,
}

/// # Errors
///
/// When the maps cannot be read.
pub fn list(maps: &Maps, filter: &[Condition]) -> Result<List> {
    let view = View::read(maps)?;
    let now_ns = monotonic_now_ns();
    let mut connections = of_family(&maps.v4, &view, now_ns);
    connections.extend(of_family::<Addr6>(&maps.v6, &view, now_ns));
    connections.retain(|connection| connection.facts.meet(filter));
    Ok(List { connections })
}

trait Family: node_agent_maps::MapFamily + MapFamily {}
impl Family for Addr4 {}
impl Family for Addr6 {}

fn of_family<A: Family>(maps: &FamilyMaps<A>, view: &View, now_ns: u64) -> Vec<Connection> {
    let mut conns = maps.conns.entries();
    conns.sort_by_key(|conn| conn.original);
    conns
        .iter()
        .map(|conn| connection(conn, view, now_ns))
        .collect()
}

fn connection<A: Family>(conn: &Conn<A>, view: &View, now_ns: u64) -> Connection {
    let (key, target) = (conn.original, conn.reply.reversed());
    let ends = |key: &ConnKey<A>| -> [(IpAddr, u16); 2] {
        [
            (key.src.to_ip(), u16::from_be(key.src_port_be)),
            (key.dst.to_ip(), u16::from_be(key.dst_port_be)),
        ]
    };
    let [_, (ip, port)] = ends(&key);
    let service = view
        .behind(ip, port, key.protocol)
        .filter(|_| conn.flags & conn_flag::SERVICE != 0)
        .map(crate::view::Service::label);
    let protocol = key.protocol;
    Connection {
        protocol: words::protocol(protocol),
        source: words::end(key.src, key.src_port_be, protocol),
        destination: words::end(key.dst, key.dst_port_be, protocol),
        translated_source: words::end(target.src, target.src_port_be, protocol),
        translated_destination: words::end(target.dst, target.dst_port_be, protocol),
        facts: Facts {
            addresses: [ends(&key), ends(&target)].concat(),
            protocol,
            services: service.iter().cloned().collect(),
        },
        service: service.unwrap_or_default(),
        backend_id: conn.backend_id,
        state: state(conn_state(protocol, conn.flags)),
        source_nat: conn.flags & conn_flag::SOURCE_NAT != 0,
        direct_return: conn.flags & conn_flag::DIRECT_RETURN != 0,
        idle_seconds: Duration::from_nanos(now_ns.saturating_sub(conn.last_seen_ns)).as_secs_f64(),
    }
}

pub fn state(state: ConnState) -> &'static str {
    match state {
        ConnState::TcpOpening => "opening",
        ConnState::TcpEstablished => "established",
        ConnState::TcpClosing => "closing",
        ConnState::Udp | ConnState::Icmp | ConnState::Other => "open",
    }
}

impl Report for List {
    fn sections(&self) -> Vec<Section> {
        let row = |c: &Connection| {
            vec![
                c.protocol.clone(),
                c.source.clone(),
                c.destination.clone(),
                c.translated_source.clone(),
                c.translated_destination.clone(),
                or_dash(&c.service),
                c.state.into(),
                words::duration(Duration::from_secs_f64(c.idle_seconds)),
            ]
        };
        const COLUMNS: &[&str] = &[
            "PROTOCOL",
            "SOURCE",
            "DESTINATION",
            "GOES ON AS",
            "TO",
            "SERVICE",
            "STATE",
            "IDLE",
        ];
        vec![Section::new(
            COLUMNS,
            self.connections.iter().map(row).collect(),
        )]
    }
}
