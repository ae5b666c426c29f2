//! The node's own side: netlink, namespaces, sysctls, mounts and the addresses of pods. It knows neither BPF programs
//! nor Kubernetes objects.
//!
//! The order in which an agent uses it:
//! 1. [`bpffs_mounted`], [`cgroup2_root`]: what the dataplane needs is there;
//! 2. [`Network::connect`], [`Network::uplink`]: what the node looks like;
//! 3. [`apply_host_sysctls`], [`Network::ensure_host_device`], [`Network::set_host_routes`]: the host's own way to pods
//!    and services;
//! 4. [`Ipam::open`], then for each pod [`PodWiring::wire`].
//!
//! The state of the network is read from the kernel and from nowhere else, so an agent that was killed finds all of it
//! again: the device of a pod carries the pod's uid in its alias.

mod bandwidth;
mod error;
mod host_device;
mod host_device_removal;
mod host_port;
mod ipam;
mod kube_proxy;
mod mac;
mod memory;
mod mounts;
mod namespace;
mod namespaces;
mod netlink;
mod netns_cookie;
mod own_sockets;
mod pod_check;
mod pod_cidr;
mod pod_link;
mod pod_wiring;
mod route;
mod service_routes;
mod sock_diag;
mod state;
mod sysctl;
mod sysctl_record;
mod uplink;
mod vxlan_device;
mod watch;

pub use bandwidth::{Bandwidth, Rate};
pub use error::NetworkError;
pub use host_device::{HOST_DEVICE, HOST_DEVICE_PEER, HostDevice, HostDeviceSpec};
pub use host_device_removal::RemovedHostDevice;
pub use host_port::{HostPort, HostPortError, HostPorts, PortClaim, PortProtocol};
pub use ipam::{Ipam, IpamError, Lease};
pub use kube_proxy::{KubeProxyRules, kube_proxy_rules};
pub use mac::MacAddr;
pub use memory::{give_back_freed_memory, share_memory};
pub use mounts::{MountError, bpffs_mounted, cgroup2_root, mount_bpffs};
pub use namespace::{in_namespace, namespace_id};
pub use namespaces::in_every_namespace;
pub use netlink::Network;
pub use netns_cookie::netns_cookie;
pub use own_sockets::shut_own_sockets;
pub use pod_cidr::{PodCidr, PodCidrError};
pub use pod_link::{POD_DEVICE, PodLink, PodLinkSpec, pod_device_name};
pub use pod_wiring::{PodHook, PodNetwork, PodWiring};
pub use route::RouteChanges;
pub use sock_diag::close_tcp_sockets;
pub use state::{STATE_DIR, host_port_dir, lease_dir, sysctl_record};
pub use sysctl::{SysctlChange, SysctlError, apply_host_sysctls, plan_host_sysctls};
pub use sysctl_record::{SysctlRecord, SysctlRecordError};
pub use uplink::Uplink;
pub use vxlan_device::{Forwarding, VXLAN_DEVICE, VxlanDeviceSpec};
pub use watch::NetworkChanges;
