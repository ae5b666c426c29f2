//! Which nodes are peers, how a packet reaches them, and what this node tells them: flannel's frames and registries.
//!
//! A node's share of the overlay is its [`Lease`]. A [`Registry`] keeps the leases: [`KubeRegistry`] in Nodes, where
//! flannel in kube mode keeps everything (flannel `pkg/subnet/kube`), [`EtcdRegistry`] in flannel's keys. Nodes of ours
//! and nodes that run flanneld read each other in both. [`Peers`] says what the leases mean to this node.
#![forbid(unsafe_code)]

mod annotation;
mod checksum_proof;
mod etcd;
mod header;
mod kube_registry;
mod lease;
mod mac;
mod net_conf;
mod outer;
mod overlay;
mod peers;
mod registry;
mod subnet_env;

pub use annotation::{AnnotationPrefix, BackendData, BadPrefix, node_lease};
pub use checksum_proof::{proof_frames, prove};
pub use etcd::{EtcdOptions, EtcdRegistry, NoLease, etcd_lease};
pub use header::Encapsulation;
pub use kube_registry::KubeRegistry;
pub use lease::{Attributes, Lease};
pub use mac::VtepMac;
pub use net_conf::{Backend, NetConf, NetConfError, Range};
pub use outer::{Checksum, Outer};
pub use overlay::{Mode, NotAPeer, Overlay, OverlayError, OverlayOptions};
pub use peers::{Conflict, Peers, Update};
pub use registry::{LeaseEvent, OwnLease, Registry, RegistryError};
pub use subnet_env::{SubnetEnv, SubnetEnvError};
