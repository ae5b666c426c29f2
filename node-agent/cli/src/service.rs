//! `fairlead service list`, `fairlead service get`.

use anyhow::{Result, bail};
use node_agent_maps::Maps;
use serde::Serialize;

use crate::{
    args::service_name::Wanted,
    filter::{Condition, Facts},
    output::{Report, Section},
    view::{Service, View},
    words,
};

/// Services in short.
#[derive(Debug, Serialize)]
pub struct List {
    pub services: Vec<Service>,
}

/// Services with all that is known of them.
#[derive(Debug, Serialize)]
pub struct Details {
    pub services: Vec<Service>,
}

/// # Errors
///
/// When the maps cannot be read.
pub fn list(maps: &Maps, filter: &[Condition]) -> Result<List> {
    let mut services: Vec<Service> = View::read(maps)?
        .services
        .into_values()
        .filter(|service| facts(service).meet(filter))
        .collect();
    services.sort_by_cached_key(sort_key);
    Ok(List { services })
}

/// # Errors
///
/// When the maps cannot be read, or hold no such service.
pub fn get(maps: &Maps, what: &Wanted) -> Result<Details> {
    let mut services: Vec<Service> = View::read(maps)?
        .services
        .into_values()
        .filter(|service| is_wanted(service, what))
        .collect();
    if services.is_empty() {
        match what {
            Wanted::Name { namespace, name } => bail!(
                "the maps hold no Service {namespace}/{name}: `fairlead service list` shows what they hold"
            ),
            Wanted::Address { ip, port } => bail!(
                "the maps hold no frontend {}: `fairlead service list` shows what they hold",
                port.map_or_else(|| ip.to_string(), |port| words::socket(*ip, port))
            ),
        }
    }
    services.sort_by_cached_key(sort_key);
    Ok(Details { services })
}

impl Report for List {
    fn sections(&self) -> Vec<Section> {
        let row = |service: &Service| {
            let active = service.backends.iter().filter(|b| b.state == "active");
            vec![
                service.namespace.clone(),
                or_dash(&service.name),
                or_dash(&service.port_name),
                service.protocol.clone(),
                service.traffic_policy.into(),
                frontends(service),
                format!("{}/{}", active.count(), service.backends.len()),
                service.turns.to_string(),
            ]
        };
        const COLUMNS: &[&str] = &[
            "NAMESPACE",
            "NAME",
            "PORT",
            "PROTOCOL",
            "POLICY",
            "FRONTENDS",
            "ACTIVE",
            "CONNECTIONS",
        ];
        vec![Section::new(
            COLUMNS,
            self.services.iter().map(row).collect(),
        )]
    }
}

impl Report for Details {
    fn sections(&self) -> Vec<Section> {
        self.services.iter().flat_map(sections_of).collect()
    }
}

fn sections_of(service: &Service) -> [Section; 2] {
    let facts = [
        ("id", service.id.to_string()),
        ("protocol", service.protocol.clone()),
        ("traffic policy", service.traffic_policy.into()),
        ("frontends", frontends(service)),
        ("connections", service.turns.to_string()),
    ];
    let rows = facts
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value]);
    let port = match service.port_name.as_str() {
        "" => String::new(),
        name => format!(" port {name}"),
    };
    let next = match service.backends.len() {
        0 => 0,
        count => service.turns as usize % count,
    };
    let backends = service.backends.iter().enumerate().map(|(index, backend)| {
        vec![
            index.to_string(),
            backend.id.to_string(),
            backend.address.to_string(),
            backend.state.into(),
            if index == next { "next" } else { "" }.into(),
        ]
    });
    [
        Section::new(&[], rows.collect()).headed(format!("{}{port}", service.label())),
        Section::new(
            &["SLOT", "BACKEND", "ADDRESS", "STATE", "TURN"],
            backends.collect(),
        ),
    ]
}

/// What the filters ask of a service.
pub fn facts(service: &Service) -> Facts {
    let frontends = service.frontends.iter().map(|frontend| frontend.address);
    let backends = service.backends.iter().map(|backend| backend.address);
    Facts {
        addresses: frontends
            .chain(backends)
            .map(|addr| (addr.ip(), addr.port()))
            .collect(),
        protocol: service.protocol_number,
        services: vec![service.label()],
    }
}

fn is_wanted(service: &Service, what: &Wanted) -> bool {
    match what {
        Wanted::Name { namespace, name } => {
            service.namespace == *namespace && service.name == *name
        }
        Wanted::Address { ip, port } => service.frontends.iter().any(|frontend| {
            frontend.address.ip() == *ip && port.is_none_or(|port| port == frontend.address.port())
        }),
    }
}

fn frontends(service: &Service) -> String {
    let texts = service.frontends.iter().map(|frontend| {
        let external = if frontend.external { " (external)" } else { "" };
        format!("{}{external}", frontend.address)
    });
    texts.collect::<Vec<_>>().join(", ")
}

fn sort_key(service: &Service) -> (String, String, String, u8, u32) {
    (
        service.namespace.clone(),
        service.name.clone(),
        service.port_name.clone(),
        service.protocol_number,
        service.id,
    )
}

pub fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}
