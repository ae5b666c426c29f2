//! Telling the API server a pod's status: only what changed, and again if it did not listen.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::Value;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::{
    metrics,
    plan::View,
    runtime::Record,
    status::{self, Observed},
    worker::{Worker, host_network},
};

/// How long the API server may take for a status.
const REPORT_LIMIT: Duration = Duration::from_secs(10);
/// The fields of a status that the kubelet writes.
const OWNED: [&str; 11] = [
    "phase",
    "conditions",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "observedGeneration",
    "message",
];

impl Worker {
    /// Tells the API server the pod's status if it does not know it yet. A server that does not answer keeps no
    /// container from being started or stopped: the status is told again at the next look.
    pub(crate) async fn report(&mut self, pod: &Pod, view: &View, ended: bool) {
        let status = match serde_json::to_value(self.status(pod, view, ended)) {
            Ok(status) => status,
            Err(error) => {
                return warn!(pod = self.pod.name, %error, "the status cannot be written as JSON");
            }
        };
        let known = match &self.reported {
            Some(reported) => reported.clone(),
            None => serde_json::to_value(&pod.status).unwrap_or(Value::Null),
        };
        if same(&status, &known) {
            return;
        }
        let patch = with_removals(status.clone(), &known);
        let request = timeout(
            REPORT_LIMIT,
            self.shared.objects.patch_status(&self.pod, &patch),
        );
        self.unreported = true;
        match request.await {
            Ok(Ok(known)) => {
                if known {
                    metrics::count(&self.shared.metrics.status_patches);
                    debug!(pod = self.pod.name, uid = self.pod.uid, phase = %patch["phase"], "status reported");
                }
                self.reported = Some(status);
                self.unreported = false;
            }
            Ok(Err(error)) => {
                warn!(
                    pod = self.pod.name,
                    uid = self.pod.uid,
                    error = crate::chain(&error),
                    "status not reported"
                );
            }
            Err(_) => warn!(
                pod = self.pod.name,
                uid = self.pod.uid,
                "status not reported: no answer"
            ),
        }
    }

    /// The pod with the status that was reported last, which its watch may not have brought back yet: otherwise a
    /// condition would seem to change again and again.
    fn with_reported(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        if let Some(reported) = self
            .reported
            .clone()
            .and_then(|status| serde_json::from_value::<PodStatus>(status).ok())
        {
            let status = pod.status.get_or_insert_default();
            let others = status.conditions.take().unwrap_or_default();
            let others = others
                .into_iter()
                .filter(|condition| !status::is_own(condition));
            let own = reported
                .conditions
                .unwrap_or_default()
                .into_iter()
                .filter(status::is_own);
            status.conditions = Some(others.chain(own).collect());
            status.start_time = reported.start_time;
            if !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
                status.phase = reported.phase;
            }
        }
        pod
    }

    fn status(&self, pod: &Pod, view: &View, ended: bool) -> PodStatus {
        let pod = &self.with_reported(pod);
        let addresses = self.addresses(pod);
        let wired = self.wired.as_ref().map(|wired| wired.sandbox_id.as_str());
        let network_ready = match &view.sandbox {
            Some(sandbox) => host_network(pod) || wired == Some(&sandbox.id),
            None => false,
        };
        let observed = Observed {
            pod,
            view,
            pod_ips: if view.sandbox.is_some() {
                &addresses
            } else {
                &[]
            },
            host_ips: &self.shared.config.node_ips,
            network_ready,
            waiting: &self.waiting,
            health: |record: &Record| self.probes.health(pod, record),
            ended,
            now: Timestamp::now(),
        };
        observed.status()
    }
}

/// Whether the API server knows all of `status` already; what others wrote beside it does not count.
fn same(status: &Value, known: &Value) -> bool {
    OWNED.iter().all(|key| status.get(key) == known.get(key))
}

/// A merge patch removes only what it names (RFC 7386).
fn with_removals(mut status: Value, known: &Value) -> Value {
    if let Some(fields) = status.as_object_mut() {
        for key in OWNED {
            if !fields.contains_key(key) && known.get(key).is_some() {
                fields.insert(key.to_owned(), Value::Null);
            }
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_own_fields_make_a_status_different() {
        let known = json!({"phase": "Running", "qosClass": "BestEffort"});
        assert!(same(&json!({"phase": "Running"}), &known));
        assert!(!same(&json!({"phase": "Failed"}), &known));
        assert!(!same(
            &json!({"phase": "Running", "podIP": "10.0.0.1"}),
            &known
        ));
    }

    #[test]
    fn what_is_no_more_is_named_in_the_patch() {
        let known = json!({"phase": "Running", "podIP": "10.0.0.1", "qosClass": "BestEffort"});
        assert_eq!(
            with_removals(json!({"phase": "Failed"}), &known),
            json!({"phase": "Failed", "podIP": null})
        );
    }
}
