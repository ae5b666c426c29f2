//! The loop between the desired state and the maps: collect changes, plan, apply, report; on failure read the maps back
//! and try again.
//!
//! Errors of the maps end here and become a [`Status`]: the sources of changes would not know what to do with them.
#![forbid(unsafe_code)]

mod backoff;
mod handle;
mod kube_proxy_metrics;
mod metrics;
mod reconciler;
mod status;

pub use handle::{ApplyError, Handle, HealthChecks};
pub use metrics::Metrics;
pub use reconciler::{Options, Reconciler};
pub use status::Status;
