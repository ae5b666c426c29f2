//! Docker as the kubelet uses it: records of a pod's containers, and the few operations on them.

use std::{collections::HashMap, path::Path, time::Duration};

use bollard::{
    Docker,
    errors::Error as DockerError,
    exec::{CreateExecOptions, StartExecResults},
    models::{ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum},
    query_parameters::{
        CreateContainerOptionsBuilder, CreateImageOptionsBuilder, EventsOptionsBuilder,
        KillContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
    },
};
use futures::{Stream, StreamExt, TryStreamExt};
use jiff::Timestamp;

use crate::labels;

/// Longest time in seconds that Docker may take for the first byte of an answer.
const ANSWER_SECONDS: u64 = 120;

/// An operation that Docker refused or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error(
        "connect to Docker at {socket}: is dockerd running there? Name its socket with --docker-socket"
    )]
    Connect {
        socket: String,
        #[source]
        source: DockerError,
    },
    #[error("Docker: {operation}")]
    Docker {
        operation: String,
        #[source]
        source: DockerError,
    },
    #[error("Docker started a command without its streams")]
    Detached,
    #[error("no answer from `{command}` within {seconds} s")]
    ExecTimeout { command: String, seconds: u64 },
}

/// The connection to one Docker daemon.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    pub docker: Docker,
}

/// A container of a pod as Docker knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Record {
    pub id: String,
    pub pod: PodRef,
    /// The container's name in the pod, or [`labels::SANDBOX`].
    pub container: String,
    pub restart_count: u32,
    /// The image as the pod named it.
    pub image: String,
    /// The image's digest, `sha256:…`.
    pub image_id: String,
    pub sandbox_id: String,
    pub state: State,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// The signal that asks the container's program to end.
    pub stop_signal: String,
}

/// Which pod a container belongs to.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct PodRef {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum State {
    /// Made but never started.
    Created,
    Running {
        pid: i64,
    },
    Exited {
        code: i64,
        oom_killed: bool,
        message: String,
    },
}

/// What a command in a container answered.
#[derive(Debug)]
pub(crate) struct ExecOutcome {
    pub code: i64,
    /// Standard output and error together, the first [`OUTPUT_MAX`] bytes.
    pub output: String,
}

/// As much of a command's output as events and statuses show, in bytes.
const OUTPUT_MAX: usize = 1024;

impl Record {
    pub fn is_sandbox(&self) -> bool {
        self.container == labels::SANDBOX
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// The exit code; `None` while it has not exited.
    pub fn exit_code(&self) -> Option<i64> {
        match self.state {
            State::Exited { code, .. } => Some(code),
            _ => None,
        }
    }
}

impl Runtime {
    pub async fn connect(socket: &Path) -> Result<Self, RuntimeError> {
        let name = socket.display().to_string();
        let failed = |source| RuntimeError::Connect {
            socket: name.clone(),
            source,
        };
        let docker = Docker::connect_with_unix(&name, ANSWER_SECONDS, bollard::API_DEFAULT_VERSION)
            .map_err(failed)?;
        let docker = docker.negotiate_version().await.map_err(failed)?;
        Ok(Self { docker })
    }

    /// Docker's version, such as `20.10.24`; also the sign that it answers.
    pub async fn version(&self) -> Result<String, RuntimeError> {
        let version = self
            .docker
            .version()
            .await
            .map_err(failed("get the version"))?;
        Ok(version.version.unwrap_or_default())
    }

    /// All containers that a kubelet made, or those of one pod; a pod's in the order of their making.
    pub async fn records(&self, uid: Option<&str>) -> Result<Vec<Record>, RuntimeError> {
        let label = match uid {
            Some(uid) => format!("{}={uid}", labels::POD_UID),
            None => labels::POD_UID.to_owned(),
        };
        let filters = HashMap::from([("label".to_owned(), vec![label])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let mut summaries = self
            .docker
            .list_containers(Some(options))
            .await
            .map_err(failed("list the containers"))?;
        summaries.sort_by_key(|summary| summary.created);
        let mut records = Vec::with_capacity(summaries.len());
        for id in summaries.into_iter().filter_map(|summary| summary.id) {
            match self.docker.inspect_container(&id, None).await {
                Ok(found) => records.extend(record(found)),
                Err(error) if status(&error) == Some(404) => {}
                Err(source) => return Err(failed(format!("inspect container {id}"))(source)),
            }
        }
        Ok(records)
    }

    /// Makes a container and answers its id. What is left of an earlier attempt under the same name is removed.
    pub async fn create(
        &self,
        name: &str,
        body: ContainerCreateBody,
    ) -> Result<String, RuntimeError> {
        let options = || Some(CreateContainerOptionsBuilder::new().name(name).build());
        let created = match self.docker.create_container(options(), body.clone()).await {
            Err(error) if status(&error) == Some(409) => {
                self.remove(name).await?;
                self.docker.create_container(options(), body).await
            }
            other => other,
        };
        Ok(created
            .map_err(failed(format!("create container {name}")))?
            .id)
    }

    pub async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.docker
            .start_container(id, None)
            .await
            .map_err(failed(format!("start container {id}")))
    }

    /// Sends a signal; a container that is gone or does not run needs none.
    pub async fn signal(&self, id: &str, signal: &str) -> Result<(), RuntimeError> {
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        match self.docker.kill_container(id, Some(options)).await {
            Err(error) if matches!(status(&error), Some(404 | 409)) => Ok(()),
            other => other.map_err(failed(format!("send {signal} to container {id}"))),
        }
    }

    /// Removes a container with its anonymous volumes, running or not; one that is gone is no error.
    pub async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        match self.docker.remove_container(id, Some(options)).await {
            // 409: its removal is already in progress.
            Err(error) if matches!(status(&error), Some(404 | 409)) => Ok(()),
            other => other.map_err(failed(format!("remove container {id}"))),
        }
    }

    /// The digest of an image that Docker has; `None` if it has none of that name.
    pub async fn image_id(&self, image: &str) -> Result<Option<String>, RuntimeError> {
        match self.docker.inspect_image(image).await {
            Ok(found) => Ok(found.id),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(source) => Err(failed(format!("inspect image {image}"))(source)),
        }
    }

    pub async fn pull(&self, image: &str) -> Result<(), RuntimeError> {
        let options = CreateImageOptionsBuilder::new()
            .from_image(&with_tag(image))
            .build();
        let progress = self.docker.create_image(Some(options), None, None);
        let operation = failed(format!("pull image {image}"));
        progress
            .try_for_each(|_| async { Ok(()) })
            .await
            .map_err(operation)
    }

    /// Runs a command in a container and waits for its end, at most `limit`.
    pub async fn exec(
        &self,
        id: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<ExecOutcome, RuntimeError> {
        let timeout = || RuntimeError::ExecTimeout {
            command: command.join(" "),
            seconds: limit.as_secs(),
        };
        tokio::time::timeout(limit, self.exec_unbounded(id, command))
            .await
            .map_err(|_| timeout())?
    }

    async fn exec_unbounded(
        &self,
        id: &str,
        command: &[String],
    ) -> Result<ExecOutcome, RuntimeError> {
        let failed = || failed(format!("run `{}` in container {id}", command.join(" ")));
        let options = CreateExecOptions {
            cmd: Some(command.to_vec()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..Default::default()
        };
        let exec = self
            .docker
            .create_exec(id, options)
            .await
            .map_err(failed())?;
        let mut output = Vec::new();
        if let StartExecResults::Attached {
            output: mut stream, ..
        } = self
            .docker
            .start_exec(&exec.id, None)
            .await
            .map_err(failed())?
        {
            while let Some(part) = stream.try_next().await.map_err(failed())? {
                let room = OUTPUT_MAX.saturating_sub(output.len());
                let bytes = part.as_ref();
                output.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
        }
        let ended = self.docker.inspect_exec(&exec.id).await.map_err(failed())?;
        Ok(ExecOutcome {
            code: ended.exit_code.unwrap_or(-1),
            output: String::from_utf8_lossy(&output).into_owned(),
        })
    }

    /// The uid of the pod for each start and end of one of its containers, from now on.
    pub fn events(&self) -> impl Stream<Item = Result<String, RuntimeError>> + use<> {
        let filters = HashMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            ("label".to_owned(), vec![labels::POD_UID.to_owned()]),
            (
                "event".to_owned(),
                ["start", "die", "oom", "destroy"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
        ]);
        let options = EventsOptionsBuilder::new().filters(&filters).build();
        self.docker
            .events(Some(options))
            .filter_map(async |event| match event {
                Ok(event) => event.actor?.attributes?.remove(labels::POD_UID).map(Ok),
                Err(source) => Some(Err(failed("follow the events")(source))),
            })
    }
}

fn record(found: ContainerInspectResponse) -> Option<Record> {
    let config = found.config?;
    let mut labels = config.labels?;
    let state = found.state?;
    let started_at = state.started_at.as_deref().and_then(timestamp);
    let finished_at = state.finished_at.as_deref().and_then(timestamp);
    let state = match state.status? {
        ContainerStateStatusEnum::CREATED => State::Created,
        ContainerStateStatusEnum::RUNNING
        | ContainerStateStatusEnum::PAUSED
        | ContainerStateStatusEnum::RESTARTING
        | ContainerStateStatusEnum::STOPPING => State::Running {
            pid: state.pid.unwrap_or_default(),
        },
        _ => State::Exited {
            code: state.exit_code.unwrap_or(-1),
            oom_killed: state.oom_killed.unwrap_or_default(),
            message: state.error.unwrap_or_default(),
        },
    };
    Some(Record {
        id: found.id?,
        pod: PodRef {
            uid: labels.remove(labels::POD_UID)?,
            namespace: labels.remove(labels::POD_NAMESPACE)?,
            name: labels.remove(labels::POD_NAME)?,
        },
        container: labels.remove(labels::CONTAINER_NAME)?,
        restart_count: labels.remove(labels::RESTART_COUNT)?.parse().ok()?,
        image: labels.remove(labels::IMAGE).unwrap_or_default(),
        sandbox_id: labels.remove(labels::SANDBOX_ID).unwrap_or_default(),
        image_id: found.image.unwrap_or_default(),
        state,
        started_at,
        finished_at,
        stop_signal: config
            .stop_signal
            .filter(|signal| !signal.is_empty())
            .unwrap_or_else(|| "SIGTERM".to_owned()),
    })
}

/// Docker writes the year 1 for what has not happened.
fn timestamp(text: &str) -> Option<Timestamp> {
    text.parse()
        .ok()
        .filter(|time: &Timestamp| time.as_second() > 0)
}

/// Without a tag or a digest Docker would pull every tag.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

pub(crate) fn failed(operation: impl Into<String>) -> impl FnOnce(DockerError) -> RuntimeError {
    let operation = operation.into();
    move |source| RuntimeError::Docker { operation, source }
}

fn status(error: &DockerError) -> Option<u16> {
    match error {
        DockerError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_image_without_a_tag_gets_one() {
        for (given, meant) in [
            ("busybox", "busybox:latest"),
            ("busybox:1.36", "busybox:1.36"),
            (
                "reg.example:5000/a/busybox",
                "reg.example:5000/a/busybox:latest",
            ),
            ("busybox@sha256:00ff", "busybox@sha256:00ff"),
        ] {
            assert_eq!(with_tag(given), meant);
        }
    }

    #[test]
    fn what_has_not_happened_has_no_time() {
        assert_eq!(timestamp("0001-01-01T00:00:00Z"), None);
        assert_eq!(
            timestamp("2026-11-22T01:00:00.5Z").unwrap().as_second(),
            1_795_309_200
        );
    }
}
