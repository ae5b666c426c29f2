//! Before the programs' outer checksums go to other nodes: do they come out right on this kernel? If not, the kernel's
//! VXLAN device encapsulates, which computes its own.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use node_agent_maps::Trial;
use node_agent_overlay::{Outer, Overlay, proof_frames, prove};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tracing::{info, warn};

use crate::events::Recorder;
use crate::readiness::Readiness;

/// The proof, repeated where the overlay becomes another, and what came of it.
#[derive(Clone, Debug, Default)]
pub struct ChecksumProof {
    outcome: Family<[(&'static str, &'static str); 1], Gauge>,
    /// Found and not yet told in an event.
    fault: Arc<Mutex<Option<String>>>,
    readiness: Arc<Readiness>,
    /// Whether the programs are to compute wrong checksums in the test.
    spoil: bool,
}

impl ChecksumProof {
    /// `spoil` makes the programs compute wrong checksums in the test.
    pub fn register(registry: &mut Registry, readiness: Arc<Readiness>, spoil: bool) -> Self {
        let proof = Self {
            readiness,
            spoil,
            ..Self::default()
        };
        registry.register(
            "overlay_checksum_proof",
            "What the test of the programs' outer UDP checksums came to at the start: 1 at its outcome",
            proof.outcome.clone(),
        );
        proof
    }

    /// The overlay as it may be used: that which was asked for, or one that leaves its packets to the kernel's device.
    ///
    /// # Errors
    ///
    /// When the overlay cannot do without the programs.
    pub async fn proven(&self, overlay: Overlay) -> anyhow::Result<Overlay> {
        let (readiness, spoil) = (&self.readiness, self.spoil);
        let outer = overlay.outer();
        if outer.by_device || !overlay.checksum() {
            // Where the device has taken over, it stays with that.
            if !readiness.has_checksum_fault() {
                self.came_to("not_needed");
            }
            return Ok(overlay);
        }
        let tried = overlay.clone();
        let Err(fault) = tokio::task::spawn_blocking(move || try_out(&tried, spoil)).await? else {
            info!("the programs' outer checksums are right");
            self.came_to("right");
            readiness.set_checksum_fault(None);
            return Ok(overlay);
        };
        let fault = format!(
            "the outer checksums of the programs are wrong on this kernel, so its own VXLAN device sends to the other \
             nodes, which is slower (as with --vxlan-device): {fault:#}"
        );
        warn!(fault, "falling back");
        self.came_to("wrong");
        readiness.set_checksum_fault(Some(fault.clone()));
        *self.fault() = Some(fault);
        let by_device = Outer {
            by_device: true,
            ..outer
        };
        Ok(overlay.encapsulating(by_device)?)
    }

    /// Tells what was found since the last time.
    pub fn tell(&self, recorder: &Recorder) {
        if let Some(fault) = self.fault().take() {
            recorder.warn("OverlayChecksumWrong", fault);
        }
    }

    fn came_to(&self, outcome: &'static str) {
        self.outcome.clear();
        self.outcome.get_or_create(&[("outcome", outcome)]).set(1);
    }

    fn fault(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the program send packets in maps of its own, and looks at every byte of what leaves.
fn try_out(overlay: &Overlay, spoil: bool) -> anyhow::Result<()> {
    let (config, mut peer) = overlay.proof_peer();
    if spoil {
        peer.checksum_sum += 1;
    }
    let trial = Trial::new(&config, &peer).context("the program could not be tried")?;
    for frame in proof_frames() {
        let sent = trial.sent(&frame).context("the program could not be run")?;
        let sent = sent.context("a packet did not leave")?;
        prove(&sent, &peer)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("the checksum around a packet of {} bytes", frame.len()))?;
    }
    Ok(())
}
