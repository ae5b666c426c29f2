//! Whether this node's dataplane is programmed, and if not, why.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use node_agent_reconcile::Handle;
use tracing::info;

/// What `/readyz` and `/healthz` tell.
#[derive(Debug, Default)]
pub struct Readiness {
    /// What the start is at; `None` once it is through.
    stage: Mutex<Option<String>>,
    reconciler: OnceLock<Handle>,
    /// The Node is about to go.
    leaving: AtomicBool,
    /// Why the last version of the file of Services was not taken.
    file_error: Mutex<Option<String>>,
    /// Why the programs do not encapsulate, where they should.
    checksum_fault: Mutex<Option<String>>,
}

/// Passes may fail this long before the agent counts as unhealthy; the kube-proxy's patience is two sync periods of
/// 30 s.
const PATIENCE: Duration = Duration::from_secs(60);

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
        if !reasons.is_empty() {
            reasons.extend(self.file_error());
        }
        reasons
    }

    /// Whether the parts that can end are alive, and changes reach the maps.
    pub fn is_alive(&self) -> bool {
        let Some(handle) = self.reconciler.get() else {
            return true;
        };
        let behind = handle.status().behind_since;
        let behind = behind.and_then(|since| since.elapsed().ok());
        handle.is_alive() && behind.is_none_or(|behind| behind < PATIENCE)
    }

    /// Whether new connections may be sent to this node's dataplane.
    pub fn is_healthy(&self) -> bool {
        self.is_alive() && self.not_ready().is_empty()
    }

    pub fn set_file_error(&self, error: Option<String>) {
        let mut now = self
            .file_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *now = error;
    }

    pub fn set_checksum_fault(&self, fault: Option<String>) {
        *self.checksum_fault() = fault;
    }

    pub fn has_checksum_fault(&self) -> bool {
        self.checksum_fault().is_some()
    }

    fn checksum_fault(&self) -> MutexGuard<'_, Option<String>> {
        let fault = self.checksum_fault.lock();
        fault.unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_leaving(&self, leaving: bool) {
        if self.leaving.swap(leaving, Ordering::Relaxed) != leaving {
            info!(leaving, "the Node is about to go, or no longer");
        }
    }

    /// Whether load balancers may use this node.
    pub fn is_eligible(&self) -> bool {
        !self.leaving.load(Ordering::Relaxed)
    }

    /// When the maps last held everything that was known.
    pub fn updated_at(&self) -> Option<SystemTime> {
        self.reconciler.get()?.status().updated_at
    }

    fn file_error(&self) -> Option<String> {
        let error = self
            .file_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let error = error.as_ref()?;
        Some(format!("the services file is not taken: {error}"))
    }

    /// What works but not as asked.
    pub fn warnings(&self) -> Vec<String> {
        let fault = self.checksum_fault().clone();
        let Some(status) = self.reconciler.get().map(Handle::status) else {
            return fault.into_iter().collect();
        };
        let error = status
            .error
            .into_iter()
            .map(|error| format!("the maps could not be written: {error}"));
        let refused = status
            .refused
            .into_iter()
            .map(|refusal| format!("{}: map {} is full", refusal.object, refusal.map));
        let error = fault.into_iter().chain(error);
        error.chain(refused).chain(self.file_error()).collect()
    }
}
