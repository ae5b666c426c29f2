//! Which nodes are peers, how a packet reaches them, and what this node tells them: flannel's annotations and frames.
//!
//! Flannel in kube mode keeps everything in the Node object (flannel `pkg/subnet/kube/annotations.go`), so nodes of
//! ours and nodes that run flanneld read each other.
#![forbid(unsafe_code)]

mod annotation;
mod header;
mod mac;
mod overlay;

pub use annotation::{
    BACKEND_DATA, BACKEND_TYPE, BackendData, KUBE_SUBNET_MANAGER, PUBLIC_IP, PUBLIC_IP_OVERWRITE,
    PUBLIC_IPV6, PUBLIC_IPV6_OVERWRITE,
};
pub use header::vxlan_header;
pub use mac::VtepMac;
pub use overlay::{Mode, NotAPeer, Overlay, OverlayError, OverlayOptions, VXLAN_OVERHEAD_V4};
