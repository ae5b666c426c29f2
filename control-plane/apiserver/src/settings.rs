//! What an API server is run with.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch as signal;

use crate::access::{Authenticators, Authorization};
use crate::audit::Audit;
use crate::spans::Tracing;

/// Everything that flags decide. The default serves everybody everything, with kube-apiserver's limits.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub limits: Limits,
    pub authenticators: Authenticators,
    pub authorization: Authorization,
    /// What is recorded, and where; `None`: nothing.
    pub audit: Option<Arc<Audit>>,
    /// Where traces of requests go; `None`: there are none.
    pub tracing: Option<Tracing>,
    /// Turns true when the server is about to go but still answers: `/readyz` says no.
    pub leaving: Option<signal::Receiver<bool>>,
}

/// Bounds of single requests and of all together.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Requests that only read and are worked on at one time (`--max-requests-inflight`).
    pub reading: u32,
    /// Requests that write and are worked on at one time (`--max-mutating-requests-inflight`).
    pub writing: u32,
    /// Whether these two are shared out by FlowSchemas and PriorityLevelConfigurations, with queues, or each stands
    /// for itself (`--enable-priority-and-fairness`).
    pub fairness: bool,
    /// How long a request may take that is not long-running (`--request-timeout`).
    pub request_timeout: Duration,
    /// Bytes of a request's headers, and of its path and query.
    pub header_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            reading: 400,
            writing: 200,
            fairness: true,
            request_timeout: Duration::from_secs(60),
            header_bytes: 128 * 1024,
        }
    }
}
