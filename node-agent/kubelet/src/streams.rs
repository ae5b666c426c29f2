//! What Docker streams: a container's log, and the input and output of a process in it.

use std::{pin::Pin, time::Duration};

use bollard::{
    container::{AttachContainerResults, LogOutput},
    exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults},
    query_parameters::{
        AttachContainerOptionsBuilder, LogsOptionsBuilder, ResizeContainerTTYOptionsBuilder,
    },
};
use futures::{Stream, StreamExt, stream::BoxStream};
use tokio::{io::AsyncWrite, time::sleep};

use crate::runtime::{Runtime, RuntimeError, failed};

/// How soon, and then how often, a command is looked at whose output has ended.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Which of a process's streams somebody wants to be connected to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// A terminal is between: its output is one stream.
    pub tty: bool,
}

/// A process whose streams somebody is connected to.
pub(crate) struct Process {
    pub output: BoxStream<'static, Result<LogOutput, RuntimeError>>,
    /// Shutting it down is the end of the process's standard input.
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
    pub handle: Handle,
}

/// How Docker knows a process.
#[derive(Clone, Debug)]
pub(crate) enum Handle {
    /// A command beside the container's own program, by its exec's id.
    Exec(String),
    /// The container's own program, by the container's id.
    Container(String),
}

impl Runtime {
    /// A container's log, each chunk with its time in front; `tail` counts lines from the end, `since` is in seconds
    /// since 1970 and a chunk of that second may be older than what was asked for.
    pub fn logs(
        &self,
        id: &str,
        follow: bool,
        tail: Option<u64>,
        since: i32,
    ) -> impl Stream<Item = Result<LogOutput, RuntimeError>> + use<> {
        let tail = tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .follow(follow)
            .since(since)
            .tail(&tail)
            .build();
        let operation = format!("read the log of container {id}");
        let parts = self.docker.logs(id, Some(options));
        parts.map(move |part| part.map_err(failed(operation.clone())))
    }

    /// Starts a command in a container.
    pub async fn run(
        &self,
        id: &str,
        command: &[String],
        wanted: Wanted,
    ) -> Result<Process, RuntimeError> {
        let operation = || format!("run `{}` in container {id}", command.join(" "));
        let options = CreateExecOptions {
            cmd: Some(command.to_vec()),
            attach_stdin: Some(wanted.stdin),
            attach_stdout: Some(wanted.stdout),
            // A terminal's output is all one stream, and Docker attaches it as both.
            attach_stderr: Some(wanted.stderr || wanted.tty),
            tty: Some(wanted.tty),
            ..Default::default()
        };
        let exec = self
            .docker
            .create_exec(id, options)
            .await
            .map_err(failed(operation()))?;
        let options = StartExecOptions {
            tty: wanted.tty,
            ..StartExecOptions::default()
        };
        let started = self
            .docker
            .start_exec(&exec.id, Some(options))
            .await
            .map_err(failed(operation()))?;
        match started {
            StartExecResults::Attached { output, input } => Ok(Process {
                output: output
                    .map(move |part| part.map_err(failed("read a command's output")))
                    .boxed(),
                input,
                handle: Handle::Exec(exec.id),
            }),
            StartExecResults::Detached => Err(RuntimeError::Detached),
        }
    }

    /// Connects to a container's own program.
    pub async fn attach(&self, id: &str, wanted: Wanted) -> Result<Process, RuntimeError> {
        let options = AttachContainerOptionsBuilder::new()
            .stream(true)
            .stdin(wanted.stdin)
            .stdout(wanted.stdout)
            .stderr(wanted.stderr)
            .build();
        let AttachContainerResults { output, input } = self
            .docker
            .attach_container(id, Some(options))
            .await
            .map_err(failed(format!("attach to container {id}")))?;
        Ok(Process {
            output: output
                .map(move |part| part.map_err(failed("read a container's output")))
                .boxed(),
            input,
            handle: Handle::Container(id.to_owned()),
        })
    }

    /// Tells a process's terminal its size, in characters.
    pub async fn resize(
        &self,
        handle: &Handle,
        width: u16,
        height: u16,
    ) -> Result<(), RuntimeError> {
        let resized = match handle {
            Handle::Exec(id) => {
                let size = ResizeExecOptions { height, width };
                self.docker.resize_exec(id, size).await
            }
            Handle::Container(id) => {
                let size = ResizeContainerTTYOptionsBuilder::new()
                    .h(i32::from(height))
                    .w(i32::from(width))
                    .build();
                self.docker.resize_container_tty(id, size).await
            }
        };
        resized.map_err(failed("resize a terminal"))
    }

    /// The exit code of a command, once it has ended; `None` for a container's own program, whose end is the pod's
    /// affair.
    pub async fn exit_code(&self, handle: &Handle) -> Result<Option<i64>, RuntimeError> {
        let Handle::Exec(id) = handle else {
            return Ok(None);
        };
        let mut wait = FIRST_LOOK;
        loop {
            let exec = self
                .docker
                .inspect_exec(id)
                .await
                .map_err(failed("look how a command ended"))?;
            if exec.running != Some(true) {
                return Ok(Some(exec.exit_code.unwrap_or(-1)));
            }
            // A command may close its output long before it ends.
            sleep(wait).await;
            wait = (wait * 2).min(LAST_LOOK);
        }
    }
}
