//! From touched entries to operations: compares what is wanted with what is held, and orders what differs.
//!
//! Order: what is pointed at comes before what points at it, and goes after it. Between the two lies the replacement
//! of the service's value, the one step in which clients see a new set of backends.

use std::net::IpAddr;

use ebpf_abi::{
    Addr4, Addr6, Backend, Family, Frontend, FrontendKey, KEEPS_SOURCE, PeerName, RangeKey, Route,
    RouteKey, ServiceName, backend_state, maps, name_policy, peer_mode,
};
use ipnetwork::IpNetwork;

use crate::applied::PlacedSet;
use crate::wanted::FrontendAddr;
use crate::{
    Applied, Desired, FamilyOp, MapFamily, MapOp, PackedName, Plan, Refusal, TrafficPolicy,
};

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Phase {
    Config,
    PeerNamePut,
    PeerPut,
    RoutePut,
    EndpointPut,
    BackendPut,
    Slots,
    ServiceNamePut,
    ServicePut,
    RangePut,
    FrontendPut,
    FrontendDelete,
    RangeDelete,
    ServiceDelete,
    ServiceNameDelete,
    BackendRetire,
    EndpointDelete,
    RouteDelete,
    PeerFree,
    PeerNameDelete,
}

type Phased = Vec<(Phase, MapOp)>;

/// Appends the operations to the plan, and takes them as done.
pub(crate) fn emit(desired: &mut Desired, applied: &mut Applied, plan: &mut Plan) {
    let mut ops = Phased::new();
    let touched = std::mem::take(&mut applied.touched);
    if touched.config
        && let Some(config) = desired.config
        && applied.held.config != config
    {
        ops.push((Phase::Config, MapOp::Config(Box::new(config))));
    }
    for id in touched.peers {
        peer_ops(applied, id, &mut ops);
        peer_name_ops(applied, id, &mut ops);
    }
    for prefix in touched.routes {
        route_ops::<Addr4>(applied, prefix, &mut ops);
        route_ops::<Addr6>(applied, prefix, &mut ops);
    }
    let mut room = Room::new(applied);
    for addr in touched.endpoints {
        let fitted = endpoint_ops::<Addr4>(desired, applied, addr, &mut room.v4, &mut ops)
            && endpoint_ops::<Addr6>(desired, applied, addr, &mut room.v6, &mut ops);
        if !fitted {
            let map = if addr.is_ipv4() {
                maps::ENDPOINT4
            } else {
                maps::ENDPOINT6
            };
            plan.refused.push(Refusal {
                object: addr.to_string(),
                map,
            });
            desired.dirty_mut().endpoints.insert(addr);
        }
    }
    backend_ops::<Addr4>(applied, &mut ops);
    backend_ops::<Addr6>(applied, &mut ops);
    for id in touched.services {
        service_ops(applied, id, &mut ops);
        service_name_ops(applied, id, &mut ops);
    }
    for (id, range) in touched.ranges {
        range_ops::<Addr4>(applied, id, range, &mut ops);
        range_ops::<Addr6>(applied, id, range, &mut ops);
    }
    for frontend in touched.frontends {
        frontend_ops::<Addr4>(applied, frontend, &mut ops);
        frontend_ops::<Addr6>(applied, frontend, &mut ops);
    }
    ops.sort_by_key(|(phase, _)| *phase);
    plan.ops.reserve_exact(ops.len());
    for (_, op) in ops {
        applied.held.apply_one(&op);
        plan.ops.push(op);
    }
}

/// `None` if the frontend is of the other family.
pub(crate) fn frontend_key<A: MapFamily>(frontend: &FrontendAddr) -> Option<FrontendKey<A>> {
    let addr = A::from_ip(frontend.at.ip)?;
    Some(FrontendKey {
        addr,
        port_be: frontend.at.port.to_be(),
        protocol: frontend.protocol,
        pad: 0,
    })
}

/// `None` if the range is of the other family.
pub(crate) fn range_key<A: MapFamily>(id: u32, range: IpNetwork) -> Option<RangeKey<A>> {
    let addr = A::from_ip(range.network())?;
    Some(RangeKey::new(id, addr, range.prefix().into()))
}

/// `None` if the prefix is of the other family.
pub(crate) fn route_key<A: MapFamily>(prefix: IpNetwork) -> Option<RouteKey<A>> {
    Some(RouteKey {
        prefix_len: prefix.prefix().into(),
        addr: A::from_ip(prefix.network())?,
    })
}

/// Entries that still fit.
struct Room {
    v4: usize,
    v6: usize,
}

impl Room {
    fn new(applied: &Applied) -> Self {
        let held = &applied.held;
        Self {
            v4: applied
                .capacity
                .endpoints(Family::V4)
                .saturating_sub(held.v4.endpoints.len()),
            v6: applied
                .capacity
                .endpoints(Family::V6)
                .saturating_sub(held.v6.endpoints.len()),
        }
    }
}

fn peer_ops(applied: &Applied, id: u32, ops: &mut Phased) {
    let wanted = applied
        .peer_of_id
        .get(&id)
        .and_then(|node| applied.peers.get(node))
        .map(|placed| placed.peer);
    let held = applied.held.peers.get(&id).copied().unwrap_or_default();
    match wanted {
        Some(peer) if peer != held => {
            let peer = Box::new(peer);
            ops.push((Phase::PeerPut, MapOp::Peer { id, peer }));
        }
        None if held.mode != peer_mode::NONE => {
            ops.push((
                Phase::PeerFree,
                MapOp::Peer {
                    id,
                    peer: Box::default(),
                },
            ));
        }
        _ => {}
    }
}

fn peer_name_ops(applied: &Applied, id: u32, ops: &mut Phased) {
    let wanted = applied.peer_of_id.get(&id).map(|node| PeerName::new(node));
    if wanted.as_ref() != applied.held.peer_names.get(&id) {
        let phase = match wanted {
            Some(_) => Phase::PeerNamePut,
            None => Phase::PeerNameDelete,
        };
        let name = wanted.map(Box::new);
        ops.push((phase, MapOp::PeerName { id, name }));
    }
}

fn route_ops<A: MapFamily>(applied: &Applied, prefix: IpNetwork, ops: &mut Phased) {
    let Some(key) = route_key::<A>(prefix) else {
        return;
    };
    let node = applied.routes.get(&prefix).and_then(|nodes| nodes.first());
    let wanted = node
        .and_then(|node| applied.peers.get(node))
        .map(|placed| Route { peer_id: placed.id });
    let held = A::half(&applied.held).routes.get(&key).copied();
    if wanted != held {
        let phase = if wanted.is_some() {
            Phase::RoutePut
        } else {
            Phase::RouteDelete
        };
        ops.push((phase, A::op(FamilyOp::Route { key, route: wanted })));
    }
}

/// False if the endpoint does not fit.
fn endpoint_ops<A: MapFamily>(
    desired: &Desired,
    applied: &Applied,
    ip: IpAddr,
    room: &mut usize,
    ops: &mut Phased,
) -> bool {
    let Some(addr) = A::from_ip(ip) else {
        return true;
    };
    let wanted = desired.endpoint(&ip);
    let held = A::half(&applied.held).endpoints.get(&addr).copied();
    if wanted == held {
        return true;
    }
    if held.is_none() {
        let Some(left) = room.checked_sub(1) else {
            return false;
        };
        *room = left;
    }
    let phase = if wanted.is_some() {
        Phase::EndpointPut
    } else {
        Phase::EndpointDelete
    };
    ops.push((
        phase,
        A::op(FamilyOp::Endpoint {
            addr,
            endpoint: wanted,
        }),
    ));
    true
}

/// The epoch rises whenever the id changes hands: given, given to another address, withdrawn.
fn backend_ops<A: MapFamily>(applied: &mut Applied, ops: &mut Phased) {
    let table = applied.backends.get_mut(A::FAMILY);
    for id in table.take_touched() {
        let held = A::half(&applied.held)
            .backends
            .get(&id)
            .copied()
            .unwrap_or_default();
        let wanted = table.wanted(id).and_then(|(addr, state)| {
            Some(Backend {
                addr: A::from_ip(addr.ip)?,
                port_be: addr.port.to_be(),
                state,
                epoch: held.epoch,
            })
        });
        let next_epoch = held.epoch.wrapping_add(1);
        let backend = match wanted {
            Some(wanted) if wanted == held => continue,
            Some(wanted) => {
                let same_address = wanted.addr == held.addr && wanted.port_be == held.port_be;
                let same = same_address && held.state != backend_state::FREE;
                Backend {
                    epoch: if same { held.epoch } else { next_epoch },
                    ..wanted
                }
            }
            None if held.state == backend_state::FREE => continue,
            None => Backend {
                state: backend_state::FREE,
                epoch: next_epoch,
                ..Backend::default()
            },
        };
        let phase = if backend.state == backend_state::ACTIVE {
            Phase::BackendPut
        } else {
            Phase::BackendRetire
        };
        ops.push((phase, A::op(FamilyOp::Backend { id, backend })));
    }
}

fn service_ops(applied: &Applied, id: u32, ops: &mut Phased) {
    let placed = applied.set_of(id).map(|(_, set)| set);
    let held = applied.held.services.get(&id).copied();
    let wanted = placed.map(PlacedSet::service);
    if let Some(set) = placed {
        slot_ops(applied, set, ops);
    }
    if wanted != held {
        let phase = if wanted.is_some() {
            Phase::ServicePut
        } else {
            Phase::ServiceDelete
        };
        ops.push((
            phase,
            MapOp::Service {
                id,
                service: wanted,
            },
        ));
    }
}

/// One operation for each run of slots that hold something else.
fn slot_ops(applied: &Applied, set: &PlacedSet, ops: &mut Phased) {
    let base = set.range.base;
    let mut held = applied.held.slots.range(base..base + set.range.len);
    let mut next_held = held.next();
    let mut run: Option<(u32, Vec<u32>)> = None;
    let mut finish = |run: Option<(u32, Vec<u32>)>| {
        let op = run.map(|(base, backend_ids)| MapOp::Slots { base, backend_ids });
        ops.extend(op.map(|op| (Phase::Slots, op)));
    };
    for (slot, id) in (base..).zip(set.turns.slots()) {
        let mut holds = None;
        if let Some((at, held_id)) = next_held
            && *at == slot
        {
            holds = Some(*held_id);
            next_held = held.next();
        }
        if holds == Some(id) {
            finish(run.take());
        } else {
            run.get_or_insert_with(|| (slot, Vec::new())).1.push(id);
        }
    }
    finish(run);
}

fn range_ops<A: MapFamily>(applied: &Applied, id: u32, range: IpNetwork, ops: &mut Phased) {
    let Some(key) = range_key::<A>(id, range) else {
        return;
    };
    let admitted = match id {
        KEEPS_SOURCE => applied.keep_source.contains(&range),
        _ => applied
            .set_of(id)
            .is_some_and(|(_, set)| set.ranges.contains(&range)),
    };
    if admitted != A::half(&applied.held).ranges.contains(&key) {
        let phase = if admitted {
            Phase::RangePut
        } else {
            Phase::RangeDelete
        };
        ops.push((phase, A::op(FamilyOp::Range { key, admitted })));
    }
}

fn service_name_ops(applied: &Applied, id: u32, ops: &mut Phased) {
    let wanted = applied.set_of(id).map(|(service, set)| {
        let key = &set.key;
        let policy = match key.policy {
            TrafficPolicy::Cluster => name_policy::CLUSTER,
            TrafficPolicy::Local => name_policy::LOCAL,
        };
        PackedName::from(&ServiceName::new(
            &service.namespace,
            &service.name,
            &key.port,
            key.protocol.number(),
            policy,
            key.family,
        ))
    });
    if wanted.as_ref() != applied.held.service_names.get(&id) {
        let phase = if wanted.is_some() {
            Phase::ServiceNamePut
        } else {
            Phase::ServiceNameDelete
        };
        ops.push((phase, MapOp::ServiceName { id, name: wanted }));
    }
}

fn frontend_ops<A: MapFamily>(applied: &Applied, frontend: FrontendAddr, ops: &mut Phased) {
    let Some(key) = frontend_key::<A>(&frontend) else {
        return;
    };
    let wanted = wanted_frontend(applied, &frontend);
    let held = A::half(&applied.held).frontends.get(&key).copied();
    if wanted != held {
        let phase = if wanted.is_some() {
            Phase::FrontendPut
        } else {
            Phase::FrontendDelete
        };
        ops.push((
            phase,
            A::op(FamilyOp::Frontend {
                key,
                frontend: wanted,
            }),
        ));
    }
}

/// The first who wants it has it: by the name of the Service, so that it depends on no order of arrival.
fn wanted_frontend(applied: &Applied, frontend: &FrontendAddr) -> Option<Frontend> {
    let claims = applied.frontends.get(frontend)?.iter();
    let claims = claims.filter_map(|claim| Some((applied.set_of(claim.id)?, claim.flags)));
    let ((service, set), flags) =
        claims.min_by(|((a, x), _), ((b, y), _)| (a, &x.key).cmp(&(b, &y.key)))?;
    let inside = set.key.inside(flags);
    let inside = applied
        .sets
        .get(service)?
        .iter()
        .find(|set| set.key == inside)?;
    Some(Frontend {
        service_id: set.id,
        inside_id: inside.id,
        flags,
    })
}
