//! The registry of a machine that has no API server: one lease, its own, which the operator gives by flags.

use std::future::pending;
use std::time::Duration;

use async_trait::async_trait;
use ipnetwork::IpNetwork;
use node_agent_overlay::{Attributes, LeaseEvent, OwnLease, Registry, RegistryError};
use tokio::sync::mpsc;

#[derive(Debug)]
pub struct StaticRegistry {
    pub node_name: String,
    pub pod_cidrs: Vec<IpNetwork>,
}

/// Nothing ever has to be renewed.
const NEVER: Duration = Duration::from_secs(24 * 3600);

#[async_trait]
impl Registry for StaticRegistry {
    async fn earlier(&self, _: &(dyn Fn(String) + Sync)) -> Result<Attributes, RegistryError> {
        Ok(Attributes::default())
    }

    async fn acquire(
        &self,
        _: &Attributes,
        _: &(dyn Fn(String) + Sync),
    ) -> Result<OwnLease, RegistryError> {
        Ok(OwnLease {
            holder: self.node_name.clone(),
            subnets: self.pod_cidrs.clone(),
        })
    }

    async fn renew(&self, _: &Attributes) -> Result<Duration, RegistryError> {
        Ok(NEVER)
    }

    async fn own_changed(&self) {
        pending().await
    }

    async fn follow(&self, events: &mpsc::Sender<LeaseEvent>) {
        // Who no longer listens has ended.
        let _ = events.send(LeaseEvent::Listed).await;
        pending().await
    }
}
