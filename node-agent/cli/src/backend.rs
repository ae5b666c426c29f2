//! `fairlead backend list`.

use std::collections::BTreeMap;

use anyhow::Result;
use ebpf_abi::{Addr4, Addr6, Family, backend_state};
use node_agent_maps::Maps;
use node_agent_model::{MapFamily, Snapshot};
use serde::Serialize;

use crate::{
    filter::{Condition, Facts},
    output::{Report, Section},
    service::or_dash,
    view::{Backend, View, backend_of},
};

#[derive(Debug, Serialize)]
pub struct List {
    pub backends: Vec<Used>,
}

/// A backend and who uses it.
#[derive(Debug, Serialize)]
pub struct Used {
    #[serde(flatten)]
    pub backend: Backend,
    pub protocols: Vec<String>,
    /// `namespace/name`, each once. A backend that drains belongs to none.
    pub services: Vec<String>,
    #[serde(skip)]
    protocol_numbers: Vec<u8>,
}

/// Who uses a backend id of a family.
type Users = BTreeMap<u32, Vec<(String, String, u8)>>;

/// # Errors
///
/// When the maps cannot be read.
pub fn list(maps: &Maps, filter: &[Condition]) -> Result<List> {
    let view = View::read(maps)?;
    let mut users: BTreeMap<bool, Users> = BTreeMap::new();
    for service in view.services.values() {
        for backend in &service.backends {
            users
                .entry(backend.address.is_ipv6())
                .or_default()
                .entry(backend.id)
                .or_default()
                .push((
                    service.label(),
                    service.protocol.clone(),
                    service.protocol_number,
                ));
        }
    }
    let users = |family: Family| users.get(&(family == Family::V6));
    let mut backends = of_family::<Addr4>(&view.held, users(Family::V4));
    backends.extend(of_family::<Addr6>(&view.held, users(Family::V6)));
    backends.retain(|used| used.meets(filter));
    Ok(List { backends })
}

fn of_family<A: MapFamily>(held: &Snapshot, users: Option<&Users>) -> Vec<Used> {
    let in_use = A::half(held)
        .backends
        .iter()
        .filter(|(_, backend)| backend.state != backend_state::FREE);
    in_use
        .filter_map(|(&id, _)| {
            let users = users.and_then(|users| users.get(&id)).into_iter().flatten();
            let mut used = Used {
                backend: backend_of::<A>(held, id)?,
                protocols: Vec::new(),
                services: Vec::new(),
                protocol_numbers: Vec::new(),
            };
            for (service, protocol, number) in users {
                used.services.push(service.clone());
                used.protocols.push(protocol.clone());
                used.protocol_numbers.push(*number);
            }
            used.services.sort();
            used.services.dedup();
            used.protocols.sort();
            used.protocols.dedup();
            Some(used)
        })
        .collect()
}

impl Used {
    /// Of a backend with two protocols each counts.
    fn meets(&self, filter: &[Condition]) -> bool {
        let address = self.backend.address;
        let facts = |protocol| Facts {
            addresses: vec![(address.ip(), address.port())],
            protocol,
            services: self.services.clone(),
        };
        match self.protocol_numbers.as_slice() {
            [] => facts(0).meet(filter),
            numbers => numbers.iter().any(|number| facts(*number).meet(filter)),
        }
    }
}

impl Report for List {
    fn sections(&self) -> Vec<Section> {
        let row = |used: &Used| {
            vec![
                used.backend.id.to_string(),
                used.backend.address.to_string(),
                or_dash(&used.protocols.join(",")),
                used.backend.state.into(),
                used.backend.epoch.to_string(),
                or_dash(&used.services.join(", ")),
            ]
        };
        const COLUMNS: &[&str] = &["ID", "ADDRESS", "PROTOCOL", "STATE", "EPOCH", "SERVICES"];
        vec![Section::new(
            COLUMNS,
            self.backends.iter().map(row).collect(),
        )]
    }
}
