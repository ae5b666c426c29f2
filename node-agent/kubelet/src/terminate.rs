//! The end of a pod: by itself, or because it was deleted.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tracing::info;

use crate::{
    metrics,
    plan::View,
    runtime::Record,
    worker::{Done, LOOK_ANYWAY, Next, Worker},
};

/// Grace for the containers of a pod that the API server no longer has.
const GRACE_OF_GONE: Duration = Duration::from_secs(1);

impl Worker {
    /// The pod has ended by itself: nothing of it may run, and it needs neither link nor addresses.
    pub(crate) async fn finish(&mut self, pod: &Arc<Pod>, view: &View) -> anyhow::Result<Done> {
        let mut running = false;
        for record in view.running() {
            running = true;
            self.ask(
                Some(pod),
                record,
                grace_of_spec(pod),
                format!("Stopping container {}", record.container),
            );
        }
        if running {
            return Ok(Done::Nothing);
        }
        self.waiting.clear();
        self.report(pod, view, false).await;
        if view.sandbox.is_some() || !self.shared.wiring.ipam.addresses(&self.pod.uid).is_empty() {
            self.remove_sandboxes(view).await?;
        }
        Ok(Done::Nothing)
    }

    /// The pod is deleted: everything of it ends, then it goes, here and at the API server.
    pub(crate) async fn terminate(&mut self, present: Option<&Arc<Pod>>) -> anyhow::Result<Next> {
        self.probes.forget_failures();
        let view = self.view().await?;
        let running: Vec<Record> = view.running().cloned().collect();
        let pod = present.cloned().or_else(|| self.last.clone());
        let grace = present.map_or(GRACE_OF_GONE, |pod| remaining_grace(pod));
        for record in &running {
            self.ask(
                pod.as_ref(),
                record,
                grace,
                format!("Stopping container {}", record.container),
            );
        }
        let deadline = self
            .stopping
            .enforce(&self.shared.runtime, running.iter())
            .await?;
        self.waiting.clear();
        if let Some(pod) = present {
            self.report(pod, &view, running.is_empty()).await;
        }
        if !running.is_empty() {
            return Ok(Next::In(deadline.unwrap_or(LOOK_ANYWAY).min(LOOK_ANYWAY)));
        }
        self.remove_sandboxes(&view).await?;
        for record in view.containers.values().flatten() {
            self.shared.runtime.remove(&record.id).await?;
        }
        // A container may have been in the making when the deletion came.
        if !self
            .shared
            .runtime
            .records(Some(&self.pod.uid))
            .await?
            .is_empty()
        {
            return Ok(Next::In(Duration::from_millis(200)));
        }
        self.shared
            .volumes
            .remove(&self.pod.uid)
            .context("remove the pod's volumes")?;
        if present.is_some() {
            self.shared.objects.delete_pod(&self.pod).await?;
        }
        metrics::count(&self.shared.metrics.pods_terminated);
        info!(
            pod = self.pod.name,
            namespace = self.pod.namespace,
            uid = self.pod.uid,
            "pod terminated"
        );
        Ok(Next::Never)
    }
}

pub(crate) fn grace_of_spec(pod: &Pod) -> Duration {
    let seconds = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.termination_grace_period_seconds)
        .unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// What is left of the grace that the deletion gave: `deletionTimestamp` is the moment at which it is over.
fn remaining_grace(pod: &Pod) -> Duration {
    let Some(end) = &pod.metadata.deletion_timestamp else {
        return grace_of_spec(pod);
    };
    let left = end.0.duration_since(Timestamp::now());
    let given = pod
        .metadata
        .deletion_grace_period_seconds
        .and_then(|seconds| u64::try_from(seconds).ok());
    // The API server's clock may be ahead; never wait longer than was given.
    let most = given.map_or_else(|| grace_of_spec(pod), Duration::from_secs);
    Duration::try_from(left).unwrap_or(Duration::ZERO).min(most)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn a_restarted_agent_gives_only_the_grace_that_is_left() {
        let mut pod = Pod::default();
        pod.metadata.deletion_grace_period_seconds = Some(30);
        let end = |seconds: i64| {
            Some(Time(
                Timestamp::now() + jiff::SignedDuration::from_secs(seconds),
            ))
        };
        pod.metadata.deletion_timestamp = end(20);
        let left = remaining_grace(&pod);
        assert!(
            left > Duration::from_secs(18) && left <= Duration::from_secs(20),
            "{left:?}"
        );
        pod.metadata.deletion_timestamp = end(-5);
        assert_eq!(remaining_grace(&pod), Duration::ZERO);
        pod.metadata.deletion_timestamp = end(400);
        assert_eq!(remaining_grace(&pod), Duration::from_secs(30));
    }
}
