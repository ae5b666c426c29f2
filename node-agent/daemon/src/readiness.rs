//! Whether this node's dataplane is programmed, and if not, why.

use std::sync::{Mutex, OnceLock, PoisonError};

use node_agent_reconcile::Handle;
use tracing::info;

/// What `/readyz` and `/healthz` tell.
#[derive(Debug, Default)]
pub struct Readiness {
    /// What the start is at; `None` once it is through.
    stage: Mutex<Option<String>>,
    reconciler: OnceLock<Handle>,
}

impl Readiness {
    pub fn stage(&self, stage: impl Into<String>) {
        let stage = stage.into();
        let mut now = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if now.as_ref() != Some(&stage) {
            info!(stage, "starting");
            *now = Some(stage);
        }
    }

    pub fn started(&self) {
        info!("the node is ready");
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub fn watch(&self, handle: Handle) {
        // There is one reconciler a process.
        let _ = self.reconciler.set(handle);
    }

    /// Empty when the node is ready.
    pub fn not_ready(&self) -> Vec<String> {
        let stage = self
            .stage
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut reasons: Vec<String> = stage.into_iter().collect();
        if let Some(handle) = self.reconciler.get() {
            reasons.extend(handle.status().not_ready());
        }
        reasons
    }

    /// Whether the parts that can end are alive.
    pub fn is_alive(&self) -> bool {
        self.reconciler.get().is_none_or(Handle::is_alive)
    }

    /// What works but not as asked.
    pub fn warnings(&self) -> Vec<String> {
        let Some(status) = self.reconciler.get().map(Handle::status) else {
            return Vec::new();
        };
        let error = status
            .error
            .into_iter()
            .map(|error| format!("the maps could not be written: {error}"));
        let refused = status
            .refused
            .into_iter()
            .map(|refusal| format!("{}: map {} is full", refusal.object, refusal.map));
        error.chain(refused).collect()
    }
}
