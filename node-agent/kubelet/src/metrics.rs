//! What the kubelet counts. Names and exposition are the daemon's.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The kubelet's counters at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct KubeletMetrics {
    /// Pods that have a worker now.
    pub pods: u64,
    pub sandboxes_started: u64,
    pub containers_started: u64,
    /// Starts that came after an earlier incarnation of the container.
    pub container_restarts: u64,
    /// Sandboxes that could not be made or wired.
    pub sandbox_failures: u64,
    /// Containers that could not be made or started, images included.
    pub container_failures: u64,
    pub images_pulled: u64,
    pub probes_succeeded: u64,
    pub probes_failed: u64,
    pub status_patches: u64,
    /// Pods whose containers, link and addresses were removed after their deletion.
    pub pods_terminated: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub pods: AtomicU64,
    pub sandboxes_started: AtomicU64,
    pub containers_started: AtomicU64,
    pub container_restarts: AtomicU64,
    pub sandbox_failures: AtomicU64,
    pub container_failures: AtomicU64,
    pub images_pulled: AtomicU64,
    pub probes_succeeded: AtomicU64,
    pub probes_failed: AtomicU64,
    pub status_patches: AtomicU64,
    pub pods_terminated: AtomicU64,
}

impl Metrics {
    pub fn snapshot(&self) -> KubeletMetrics {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        KubeletMetrics {
            pods: read(&self.pods),
            sandboxes_started: read(&self.sandboxes_started),
            containers_started: read(&self.containers_started),
            container_restarts: read(&self.container_restarts),
            sandbox_failures: read(&self.sandbox_failures),
            container_failures: read(&self.container_failures),
            images_pulled: read(&self.images_pulled),
            probes_succeeded: read(&self.probes_succeeded),
            probes_failed: read(&self.probes_failed),
            status_patches: read(&self.status_patches),
            pods_terminated: read(&self.pods_terminated),
        }
    }

    pub fn probe(&self, success: bool) {
        count(if success {
            &self.probes_succeeded
        } else {
            &self.probes_failed
        });
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
