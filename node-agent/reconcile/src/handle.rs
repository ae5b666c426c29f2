//! How changes reach the loop.

use std::collections::BTreeMap;

use node_agent_model::{Change, ChangeId, HealthCheck, ObjectName};
use tokio::sync::{mpsc, oneshot, watch};

use crate::Status;

/// Sends changes to the loop; clones reach the same one.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) health_checks: watch::Receiver<HealthChecks>,
}

/// What load balancers are told, by Service.
pub type HealthChecks = BTreeMap<ObjectName, HealthCheck>;

#[derive(Debug)]
pub(crate) enum Command {
    Change {
        change: Box<Change>,
        id: ChangeId,
    },
    Synced(&'static str),
    /// Answered when everything before it is in the maps.
    Flush(oneshot::Sender<Result<(), ApplyError>>),
}

/// A change is not in the maps.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// It is tried again without being asked.
    #[error("the maps could not be written: {0}")]
    Failed(String),
    #[error("{object} does not fit: map {map} is full")]
    Refused { object: String, map: &'static str },
    #[error("the reconciler has ended")]
    Ended,
}

impl Handle {
    /// Hands a change over.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Ended`] if the loop is gone.
    pub async fn change(&self, change: Change, id: ChangeId) -> Result<(), ApplyError> {
        let change = Box::new(change);
        self.send(Command::Change { change, id }).await
    }

    /// Says that a source's first list is complete.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Ended`] if the loop is gone.
    pub async fn synced(&self, source: &'static str) -> Result<(), ApplyError> {
        self.send(Command::Synced(source)).await
    }

    /// Waits until every change that was handed over before is in the maps.
    ///
    /// # Errors
    ///
    /// When the pass with these changes failed, or anything was refused by a full map.
    pub async fn flush(&self) -> Result<(), ApplyError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Flush(answer)).await?;
        answered.await.map_err(|_| ApplyError::Ended)?
    }

    /// Whether the loop still runs.
    pub fn is_alive(&self) -> bool {
        !self.commands.is_closed()
    }

    /// What the loop last reported.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows what the loop reports; does not keep it running.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Follows the health checks of Services, as the maps have them; does not keep the loop running.
    pub fn health_checks(&self) -> watch::Receiver<HealthChecks> {
        self.health_checks.clone()
    }

    /// Waits until the maps hold everything for the first time.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Ended`] if the loop is gone.
    pub async fn wait_synced(&self) -> Result<(), ApplyError> {
        let mut status = self.status.clone();
        status
            .wait_for(|status| status.synced)
            .await
            .map_err(|_| ApplyError::Ended)?;
        Ok(())
    }

    async fn send(&self, command: Command) -> Result<(), ApplyError> {
        self.commands
            .send(command)
            .await
            .map_err(|_| ApplyError::Ended)
    }
}
