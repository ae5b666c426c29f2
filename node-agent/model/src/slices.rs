//! EndpointSlices as they are kept: what this node's selection asks of them and no more, since there are many.

use std::net::IpAddr;

use crate::select::{Here, Hints, Standing};
use crate::{EndpointSlice, ObjectName, SliceEndpoint, SlicePort};

/// The EndpointSlices of one Service, in the order of their names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slices(Vec<Slice>);

/// One EndpointSlice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Slice {
    name: ObjectName,
    pub(crate) ports: Box<[SlicePort]>,
    pub(crate) endpoints: Box<[KeptEndpoint]>,
}

/// An endpoint. Of its node only remains whether it is this one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct KeptEndpoint {
    pub(crate) addr: IpAddr,
    /// As of a node that is in no zone.
    standing: Standing,
    /// The node's own zone may change, so the names stay. Most endpoints have none.
    zone_hints: Box<[String]>,
    /// Name of the Pod.
    pub(crate) pod: Option<Box<str>>,
}

impl Slices {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slice> + Clone {
        self.0.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts one in, in the place of that with its name; false if it is there as it is.
    pub(crate) fn put(&mut self, slice: Slice) -> bool {
        match self.0.binary_search_by(|other| other.name.cmp(&slice.name)) {
            Ok(at) if self.0[at] == slice => return false,
            Ok(at) => self.0[at] = slice,
            Err(at) => {
                if self.0.len() < 8 {
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, slice);
            }
        }
        true
    }

    pub(crate) fn remove(&mut self, name: &ObjectName) {
        self.0.retain(|slice| slice.name != *name);
    }

    /// Addresses of ready endpoints on this node; an address may come twice.
    pub(crate) fn local_and_ready(&self) -> impl Iterator<Item = IpAddr> {
        let endpoints = self.0.iter().flat_map(|slice| &slice.endpoints);
        let local = endpoints.filter(|e| e.standing.ready && e.standing.local);
        local.map(|endpoint| endpoint.addr)
    }

    pub(crate) fn has_zone_hints(&self) -> bool {
        let mut endpoints = self.0.iter().flat_map(|slice| &slice.endpoints);
        endpoints.any(|endpoint| !endpoint.zone_hints.is_empty())
    }
}

impl Slice {
    /// `node` is this node's name.
    pub(crate) fn new(name: ObjectName, slice: EndpointSlice, node: &str) -> Self {
        let endpoints = slice.endpoints.into_iter();
        let mut ports = slice.ports;
        ports.iter_mut().for_each(|port| port.name.shrink_to_fit());
        Self {
            name,
            ports: ports.into(),
            endpoints: endpoints
                .map(|endpoint| KeptEndpoint::new(endpoint, node))
                .collect(),
        }
    }
}

impl KeptEndpoint {
    fn new(endpoint: SliceEndpoint, node: &str) -> Self {
        let here = Here { node, zone: None };
        Self {
            addr: endpoint.addr,
            standing: Standing::of(&endpoint, here),
            zone_hints: endpoint.zone_hints.into(),
            pod: endpoint.pod.map(String::into_boxed_str),
        }
    }

    pub(crate) fn terminates(&self) -> bool {
        self.standing.terminating
    }

    /// `zone` is this node's.
    pub(crate) fn standing(&self, zone: Option<&str>) -> Standing {
        Standing {
            for_zones: Hints::of(&self.zone_hints, zone),
            ..self.standing
        }
    }
}
