//! Ports of the node that lead to pods (`hostPort`), as Services that no API server knows: the same maps carry both.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::bail;
use ebpf_abi::{Addr4, Addr6, Family, FrontendKey, endpoint_flag};
use node_agent_host::{HostPort, PortClaim, PortProtocol};
use node_agent_maps::{MapFamily, Maps};
use node_agent_model::{
    Change, EndpointSlice, ObjectName, Protocol, Service, ServicePort, SliceEndpoint, SlicePort,
};

/// What the model must know of a pod's ports; with `None` for `ips` that they are gone.
pub fn changes(claim: &PortClaim, ips: Option<&[IpAddr]>) -> Vec<Change> {
    // A Service has the same addresses for all its ports.
    let mut by_ip: BTreeMap<Option<IpAddr>, Vec<HostPort>> = BTreeMap::new();
    for port in &claim.ports {
        by_ip.entry(port.ip).or_default().push(*port);
    }
    let change = |(ip, ports): (Option<IpAddr>, Vec<HostPort>)| {
        let name = name(claim, ip);
        let found = ips.map(|ips| (service(ip, &ports, ips), slice(&name, &ports, ips)));
        let (service, slice) = found.unzip();
        [
            Change::Service(name.clone(), service),
            Change::EndpointSlice(name, slice),
        ]
    };
    by_ip.into_iter().flat_map(change).collect()
}

/// No Service of an API can be called so.
fn name(claim: &PortClaim, ip: Option<IpAddr>) -> ObjectName {
    let at = ip.map_or_else(String::new, |ip| format!("@{ip}"));
    ObjectName::new(
        claim.namespace.clone(),
        format!("{}:hostPort{at}", claim.name),
    )
}

fn service(ip: Option<IpAddr>, ports: &[HostPort], pod: &[IpAddr]) -> Service {
    let families: BTreeSet<Family> = pod
        .iter()
        .map(|ip| match ip {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        })
        .collect();
    Service {
        families: families.into_iter().collect(),
        external_ips: ip.into_iter().collect(),
        ports: ports
            .iter()
            .map(|port| ServicePort {
                name: port_name(port),
                protocol: protocol(port.protocol),
                port: port.port,
                node_port: ip.is_none().then_some(port.port),
            })
            .collect(),
        ..Service::default()
    }
}

fn slice(service: &ObjectName, ports: &[HostPort], pod: &[IpAddr]) -> EndpointSlice {
    EndpointSlice {
        service: service.clone(),
        ports: ports
            .iter()
            .map(|port| SlicePort {
                name: port_name(port),
                protocol: protocol(port.protocol),
                port: port.container_port,
            })
            .collect(),
        endpoints: pod.iter().copied().map(SliceEndpoint::at).collect(),
    }
}

fn port_name(port: &HostPort) -> String {
    format!("{}-{}", port.port, port.protocol.word())
}

const fn protocol(protocol: PortProtocol) -> Protocol {
    match protocol {
        PortProtocol::Tcp => Protocol::Tcp,
        PortProtocol::Udp => Protocol::Udp,
        PortProtocol::Sctp => Protocol::Sctp,
    }
}

/// # Errors
///
/// When a Service has one of the ports at an address of this node.
pub fn check_services(maps: &Maps, claim: &PortClaim) -> anyhow::Result<()> {
    if claim.ports.is_empty() {
        return Ok(());
    }
    check_family::<Addr4>(maps, claim)?;
    check_family::<Addr6>(maps, claim)
}

fn check_family<A>(maps: &Maps, claim: &PortClaim) -> anyhow::Result<()>
where
    A: MapFamily + node_agent_model::MapFamily,
{
    let of_family = A::of(maps);
    for (key, frontend) in of_family.frontend.entries()? {
        let FrontendKey {
            addr,
            port_be,
            protocol: number,
            ..
        } = key;
        let ip = addr.to_ip();
        let wanted = claim.ports.iter().find(|port| {
            port.port.to_be() == port_be
                && protocol(port.protocol).number() == number
                && port.ip.is_none_or(|wanted| wanted == ip)
        });
        let Some(wanted) = wanted else { continue };
        let endpoint = of_family.endpoint.get(&addr)?;
        let is_ours = endpoint.is_some_and(|endpoint| endpoint.flags & endpoint_flag::HOST != 0);
        let Some(holder) = maps.service_name.get(&frontend.service_id)? else {
            continue;
        };
        if (wanted.ip.is_some() || is_ours) && !holder.name().contains(':') {
            bail!(
                "hostPort {wanted} is taken: Service {}/{} has it at {ip}; choose another, or remove it there",
                holder.namespace(),
                holder.name()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_one_address_are_one_service_and_go_as_they_came() {
        let port = |number, ip: Option<&str>| HostPort {
            protocol: PortProtocol::Tcp,
            port: number,
            container_port: 80,
            ip: ip.map(|ip| ip.parse().unwrap()),
        };
        let claim = PortClaim {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            ports: vec![port(81, None), port(82, None), port(83, Some("192.0.2.1"))],
        };
        let pod = ["10.244.1.2".parse().unwrap()];
        let come = changes(&claim, Some(&pod));
        let Change::Service(name, Some(service)) = &come[0] else {
            panic!("{come:?}");
        };
        assert_eq!(name.to_string(), "default/web:hostPort");
        assert_eq!(
            (service.ports.len(), &service.families[..]),
            (2, &[Family::V4][..])
        );
        assert_eq!(service.ports[0].node_port, Some(81));
        let Change::Service(name, Some(service)) = &come[2] else {
            panic!("{come:?}");
        };
        assert_eq!(name.to_string(), "default/web:hostPort@192.0.2.1");
        assert_eq!(
            (service.external_ips.len(), service.ports[0].node_port),
            (1, None)
        );
        let go = changes(&claim, None);
        assert_eq!(go.len(), come.len());
        assert!(go.iter().all(|change| matches!(
            change,
            Change::Service(_, None) | Change::EndpointSlice(_, None)
        )));
    }
}
