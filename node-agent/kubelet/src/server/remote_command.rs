//! `/exec` and `/attach`: a process's streams over a WebSocket, and how it ended as a `Status` on a channel of its own.

use std::{pin::Pin, time::Duration};

use axum::{
    extract::{
        Path, Query, State,
        ws::{Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use bollard::container::LogOutput;
use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    time::sleep,
};
use tracing::debug;

use super::{
    Refusal, Server,
    channels::{self, Outgoing, PROTOCOLS, Received},
    logs::is_set,
};
use crate::{
    runtime::{Runtime, RuntimeError},
    streams::{Handle, Process, Wanted},
};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
/// A terminal's size may be told before Docker has the process running: how often it is told again.
const RESIZE_TRIES: u32 = 10;
const RESIZE_AGAIN: Duration = Duration::from_millis(30);

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;
type Names = Path<(String, String, String)>;
type Parameters = Query<Vec<(String, String)>>;

pub(crate) async fn exec(
    State(server): State<Server>,
    Path((namespace, pod, container)): Names,
    Query(parameters): Parameters,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let wanted = wanted(&parameters)?;
    let words = parameters.into_iter().filter(|(name, _)| name == "command");
    let command: Vec<String> = words.map(|(_, word)| word).collect();
    if command.is_empty() {
        return Err(Refusal::bad_request("you must specify a command"));
    }
    let found = server.find(&namespace, &pod).await?;
    let id = found.running(&container)?.id.clone();
    channels::accept(upgrade, &PROTOCOLS, move |socket, _| async move {
        let process = server.runtime.run(&id, &command, wanted).await;
        connect(&server.runtime, socket, process, wanted).await;
    })
}

pub(crate) async fn attach(
    State(server): State<Server>,
    Path((namespace, pod, container)): Names,
    Query(parameters): Parameters,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let wanted = wanted(&parameters)?;
    let found = server.find(&namespace, &pod).await?;
    let id = found.running(&container)?.id.clone();
    channels::accept(upgrade, &PROTOCOLS, move |socket, _| async move {
        let process = server.runtime.attach(&id, wanted).await;
        connect(&server.runtime, socket, process, wanted).await;
    })
}

/// `input`, `output`, `error`, `tty`: the kubelet's names for them.
fn wanted(parameters: &[(String, String)]) -> Result<Wanted, Refusal> {
    let flag = |wanted: &str| {
        let last = parameters.iter().rfind(|(name, _)| name == wanted);
        last.is_some_and(|(_, value)| is_set(value))
    };
    let wanted = Wanted {
        stdin: flag("input"),
        stdout: flag("output"),
        stderr: flag("error"),
        tty: flag("tty"),
    };
    if !wanted.stdin && !wanted.stdout && !wanted.stderr {
        let message = "you must specify at least 1 of stdin, stdout, stderr";
        return Err(Refusal::bad_request(message));
    }
    Ok(wanted)
}

/// Carries a process's streams until it ends or the client goes.
async fn connect(
    runtime: &Runtime,
    socket: WebSocket,
    process: Result<Process, RuntimeError>,
    wanted: Wanted,
) {
    let (mut outgoing, mut incoming) = socket.split();
    let status = match process {
        Err(error) => internal_error(&crate::chain(&error)),
        Ok(Process {
            output,
            input,
            handle,
        }) => {
            let said = hear(runtime, &mut incoming, input, &handle);
            let ended = async {
                send_output(&mut outgoing, output, wanted).await?;
                Ok::<_, Gone>(match runtime.exit_code(&handle).await {
                    Ok(code) => status(code.unwrap_or(0)),
                    Err(error) => internal_error(&crate::chain(&error)),
                })
            };
            tokio::select! {
                ended = ended => match ended {
                    Ok(status) => status,
                    Err(Gone) => return,
                },
                () = said => return,
            }
        }
    };
    let status = status.to_string();
    if outgoing
        .send(channels::data(STATUS, status.as_bytes()))
        .await
        .is_ok()
    {
        channels::close(&mut outgoing, &mut incoming).await;
    }
}

/// The client has gone.
struct Gone;

async fn send_output(
    outgoing: &mut Outgoing,
    mut output: impl Stream<Item = Result<LogOutput, RuntimeError>> + Unpin,
    wanted: Wanted,
) -> Result<(), Gone> {
    while let Some(part) = output.next().await {
        let (channel, bytes) = match part {
            Ok(LogOutput::StdErr { message }) => (STDERR, message),
            Ok(
                LogOutput::StdOut { message }
                | LogOutput::Console { message }
                | LogOutput::StdIn { message },
            ) => (STDOUT, message),
            Err(error) => {
                debug!(error = crate::chain(&error), "a process's output broke off");
                return Ok(());
            }
        };
        let asked = if channel == STDERR {
            wanted.stderr
        } else {
            wanted.stdout
        };
        if asked && !bytes.is_empty() {
            let message = channels::data(channel, &bytes);
            outgoing.send(message).await.map_err(|_| Gone)?;
        }
    }
    Ok(())
}

/// Does what the client says, until it goes.
async fn hear(
    runtime: &Runtime,
    incoming: &mut (impl Stream<Item = Result<Message, axum::Error>> + Unpin),
    input: Pin<Box<dyn AsyncWrite + Send>>,
    handle: &Handle,
) {
    let mut input = Some(input);
    while let Some(received) = channels::receive(incoming).await {
        match received {
            Received::Data(STDIN, bytes) => write(&mut input, &bytes).await,
            Received::End(STDIN) => {
                if let Some(mut input) = input.take() {
                    // It may have ended by itself.
                    let _ = input.shutdown().await;
                }
            }
            Received::Data(RESIZE, bytes) => resize(runtime, handle, &bytes).await,
            Received::Data(..) | Received::End(_) => {}
        }
    }
}

/// A process that reads no more is no error: it may still have something to say.
async fn write(input: &mut Option<Pin<Box<dyn AsyncWrite + Send>>>, bytes: &Bytes) {
    let Some(open) = input else { return };
    let written = async {
        open.write_all(bytes).await?;
        open.flush().await
    };
    if let Err(error) = written.await {
        debug!(%error, "a process takes no more input");
        *input = None;
    }
}

async fn resize(runtime: &Runtime, handle: &Handle, message: &[u8]) {
    let size: Value = serde_json::from_slice(message).unwrap_or_default();
    let side = |name: &str| {
        let side = size[name]
            .as_u64()
            .and_then(|side| u16::try_from(side).ok());
        side.filter(|side| *side > 0)
    };
    let (Some(width), Some(height)) = (side("Width"), side("Height")) else {
        return;
    };
    for _ in 0..RESIZE_TRIES {
        match runtime.resize(handle, width, height).await {
            Ok(()) => return,
            Err(error) => debug!(error = crate::chain(&error), "a terminal was not resized"),
        }
        sleep(RESIZE_AGAIN).await;
    }
}

/// How a command ended, as clients read it for their own exit code.
fn status(code: i64) -> Value {
    if code == 0 {
        return json!({ "metadata": {}, "status": "Success" });
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
    })
}

fn internal_error(message: &str) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: {message}"),
        "reason": "InternalError",
        "details": { "causes": [{ "message": message }] },
        "code": 500,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(query: &[(&str, &str)]) -> Vec<(String, String)> {
        let pairs = query.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn streams_are_wanted_by_the_kubelets_names() {
        let query = parameters(&[
            ("input", "1"),
            ("output", "1"),
            ("error", "0"),
            ("tty", "1"),
        ]);
        let expected = Wanted {
            stdin: true,
            stdout: true,
            stderr: false,
            tty: true,
        };
        assert_eq!(wanted(&query).unwrap(), expected);
        assert!(wanted(&parameters(&[("tty", "1")])).is_err());
    }

    #[test]
    fn an_exit_code_is_a_cause() {
        assert_eq!(status(0)["status"], "Success");
        let failure = status(7);
        assert_eq!(failure["reason"], "NonZeroExitCode");
        assert_eq!(failure["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(failure["details"]["causes"][0]["message"], "7");
    }
}
