//! From the names in a path to what Docker has of them.

use axum::http::StatusCode;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::{Refusal, Server};
use crate::{
    plan::View,
    runtime::{Record, State},
};

/// A pod of this node.
pub(crate) struct Found {
    pod: Pod,
    view: View,
    name: String,
}

impl Server {
    /// A pod by its name, which must be bound to this node.
    pub async fn find(&self, namespace: &str, name: &str) -> Result<Found, Refusal> {
        let none = || {
            Refusal::new(
                StatusCode::NOT_FOUND,
                format!("pod {name:?} does not exist"),
            )
        };
        let pod = self.objects.pod(namespace, name).await?.ok_or_else(none)?;
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        if node != Some(&self.node_name) {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                format!("pod {name:?} is not on node {}", self.node_name),
            ));
        }
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let view = View::new(self.runtime.records(Some(&uid)).await?);
        Ok(Found {
            pod,
            view,
            name: name.to_owned(),
        })
    }
}

impl Found {
    /// The incarnation of a container whose log is to be read: the latest, or the one before.
    pub fn logged(&self, container: &str, previous: bool) -> Result<&Record, Refusal> {
        self.check_name(container)?;
        let name = &self.name;
        if previous {
            return self.view.previous(container).ok_or_else(|| {
                Refusal::bad_request(format!(
                    "previous terminated container {container:?} in pod {name:?} not found"
                ))
            });
        }
        let started = self
            .view
            .latest(container)
            .filter(|record| record.state != State::Created);
        started.ok_or_else(|| {
            let why = self.waiting(container);
            Refusal::bad_request(format!(
                "container {container:?} in pod {name:?} is waiting to start: {why}"
            ))
        })
    }

    /// The incarnation of a container that runs.
    pub fn running(&self, container: &str) -> Result<&Record, Refusal> {
        self.check_name(container)?;
        let latest = self.view.latest(container);
        latest.filter(|record| record.is_running()).ok_or_else(|| {
            Refusal::bad_request(format!(
                "container {container:?} in pod {:?} is not running",
                self.name
            ))
        })
    }

    /// The process that holds the pod's namespaces.
    pub fn sandbox_pid(&self) -> Result<i64, Refusal> {
        match self.view.sandbox.as_ref().map(|record| &record.state) {
            Some(State::Running { pid }) => Ok(*pid),
            _ => Err(Refusal::bad_request(format!(
                "unable to forward port because pod {:?} is not running",
                self.name
            ))),
        }
    }

    /// `NAME_NAMESPACE(UID)`'s uid, as messages show it.
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    fn check_name(&self, container: &str) -> Result<(), Refusal> {
        let spec = self.pod.spec.iter();
        let mut names = spec.flat_map(|spec| {
            let init = spec.init_containers.iter().flatten();
            init.chain(&spec.containers)
                .map(|container| container.name.as_str())
        });
        if names.any(|name| name == container) {
            return Ok(());
        }
        Err(Refusal::new(
            StatusCode::NOT_FOUND,
            format!("container {container:?} not found in pod {:?}", self.name),
        ))
    }

    /// Why a container does not run, in the words of its status.
    fn waiting(&self, container: &str) -> String {
        let status = self.pod.status.iter();
        let mut all = status.flat_map(|status| {
            let init = status.init_container_statuses.iter().flatten();
            init.chain(status.container_statuses.iter().flatten())
        });
        let of_container = |status: &&ContainerStatus| status.name == container;
        let waiting = all
            .find(of_container)
            .and_then(|status| status.state.as_ref()?.waiting.as_ref());
        match waiting.and_then(|waiting| waiting.reason.as_deref()) {
            Some("ErrImagePull") => "image can't be pulled".to_owned(),
            Some("ImagePullBackOff") => "trying and failing to pull image".to_owned(),
            Some(reason) => reason.to_owned(),
            None => "ContainerCreating".to_owned(),
        }
    }
}
