//! Services of a test cluster as map operations.

use std::net::{IpAddr, SocketAddr};

use ebpf_abi::{
    Addr4, Addr6, Address, Backend, FrontendKey, Service, backend_state, frontend_flag,
};
use node_agent_model::{FamilyOp, MapOp};

/// Backends that one service may have: the range of ids and slots that it owns.
const MAX_BACKENDS: u32 = 64;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// An address that clients ask for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frontend {
    pub addr: SocketAddr,
    pub protocol: Protocol,
    /// Reached from outside the cluster, as a NodePort is.
    pub external: bool,
}

/// A service: frontends and backends of one address family.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceSpec {
    /// From 1 on. [`crate::Cluster::publish`] replaces what it had under the same id; 0 is for it to choose.
    pub id: u32,
    pub frontends: Vec<Frontend>,
    pub backends: Vec<SocketAddr>,
    /// Of every backend: raised when ids are given to other backends.
    pub epoch: u32,
}

impl Protocol {
    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl ServiceSpec {
    /// A ClusterIP for TCP.
    pub fn tcp(addr: SocketAddr, backends: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self::cluster_ip(addr, Protocol::Tcp, backends)
    }

    /// A ClusterIP for UDP.
    pub fn udp(addr: SocketAddr, backends: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self::cluster_ip(addr, Protocol::Udp, backends)
    }

    /// A ClusterIP for one protocol.
    pub fn cluster_ip(
        addr: SocketAddr,
        protocol: Protocol,
        backends: impl IntoIterator<Item = SocketAddr>,
    ) -> Self {
        Self {
            id: 0,
            frontends: vec![Frontend {
                addr,
                protocol,
                external: false,
            }],
            backends: backends.into_iter().collect(),
            epoch: 1,
        }
    }

    /// Adds a NodePort on one node's address.
    #[must_use]
    pub fn with_node_port(mut self, node: IpAddr, port: u16) -> Self {
        let protocol = self
            .frontends
            .first()
            .map_or(Protocol::Tcp, |first| first.protocol);
        let addr = SocketAddr::new(node, port);
        self.frontends.push(Frontend {
            addr,
            protocol,
            external: true,
        });
        self
    }

    #[must_use]
    pub fn with_id(mut self, id: u32) -> Self {
        self.id = id;
        self
    }

    /// The operations in the order in which they must become visible: backends, slots, service, frontends.
    ///
    /// # Panics
    ///
    /// When there are more than 64 backends.
    pub fn ops(&self) -> Vec<MapOp> {
        assert!(
            self.backends.len() <= MAX_BACKENDS as usize,
            "at most {MAX_BACKENDS} backends"
        );
        let base = self.id * MAX_BACKENDS;
        let count = self.backends.len() as u32;
        let mut ops: Vec<MapOp> = (base..)
            .zip(&self.backends)
            .map(|(id, &addr)| backend_op(id, addr, self.epoch))
            .collect();
        ops.push(MapOp::Slots {
            base,
            backend_ids: (base..base + count).collect(),
        });
        let service = Service {
            slot_base: base,
            slot_count: count,
            ..Service::default()
        };
        ops.push(MapOp::Service {
            id: self.id,
            service: Some(service),
        });
        ops.extend(
            self.frontends
                .iter()
                .map(|frontend| frontend.op(Some(self.id))),
        );
        ops
    }

    /// The operations that take it away.
    pub fn removal(&self) -> Vec<MapOp> {
        let mut ops: Vec<MapOp> = self
            .frontends
            .iter()
            .map(|frontend| frontend.op(None))
            .collect();
        ops.push(MapOp::Service {
            id: self.id,
            service: None,
        });
        ops
    }
}

impl Frontend {
    fn op(&self, service_id: Option<u32>) -> MapOp {
        let frontend = service_id.map(|service_id| ebpf_abi::Frontend {
            service_id,
            inside_id: service_id,
            flags: if self.external {
                frontend_flag::EXTERNAL
            } else {
                0
            },
        });
        match self.addr.ip() {
            IpAddr::V4(ip) => MapOp::V4(FamilyOp::Frontend {
                key: self.key(ip.into()),
                frontend,
            }),
            IpAddr::V6(ip) => MapOp::V6(FamilyOp::Frontend {
                key: self.key(ip.into()),
                frontend,
            }),
        }
    }

    fn key<A: Address>(&self, addr: A) -> FrontendKey<A> {
        FrontendKey {
            addr,
            port_be: self.addr.port().to_be(),
            protocol: self.protocol.number(),
            pad: 0,
        }
    }
}

fn backend_op(id: u32, addr: SocketAddr, epoch: u32) -> MapOp {
    fn backend<A>(addr: A, port: u16, epoch: u32) -> Backend<A> {
        Backend {
            addr,
            port_be: port.to_be(),
            state: backend_state::ACTIVE,
            epoch,
        }
    }
    match addr.ip() {
        IpAddr::V4(ip) => {
            let backend = backend(Addr4::from(ip), addr.port(), epoch);
            MapOp::V4(FamilyOp::Backend { id, backend })
        }
        IpAddr::V6(ip) => {
            let backend = backend(Addr6::from(ip), addr.port(), epoch);
            MapOp::V6(FamilyOp::Backend { id, backend })
        }
    }
}
