//! One tunnel: streams that the client opens in pairs, and a connection into the pod for each pair.

use std::collections::{HashMap, hash_map::Entry};

use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tracing::debug;

use super::{
    frame::{self, Frame, FrameError, Reader, Writer},
    headers::Headers,
};
use crate::server::{
    channels, port,
    port_forward::{Pod, QUEUE, carry},
};

/// `PROTOCOL_ERROR` and `REFUSED_STREAM` of SPDY/3.1, section 2.6.3.
const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 3;
/// Streams that a client may have open in one tunnel.
const STREAMS_MAX: usize = 4096;

/// What a tunnel knows of its streams.
struct Tunnel {
    pod: Pod,
    writer: Writer,
    out: mpsc::Sender<Bytes>,
    streams: HashMap<u32, Open>,
    /// Requests of which one stream has come so far.
    halves: HashMap<String, Half>,
    connections: JoinSet<u32>,
}

/// A stream that the client has opened.
struct Open {
    /// Where its data goes: into the pod. `None` once the client has ended it, and for error streams.
    input: Option<mpsc::Sender<Bytes>>,
    connection: Option<AbortHandle>,
}

/// One of the two streams of a request.
struct Half {
    stream: u32,
    /// What the client sends on it; `None`: it is the error stream.
    given: Option<mpsc::Receiver<Bytes>>,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Error,
    Data,
}

/// What the headers of a stream ask for.
struct Request {
    kind: Kind,
    port: u16,
    id: String,
}

/// Serves a tunnel until the client goes.
pub(crate) async fn serve(socket: WebSocket, pod: Pod) {
    let (mut outgoing, mut incoming) = socket.split();
    let (out, mut frames) = mpsc::channel::<Bytes>(QUEUE);
    let speak = async {
        while let Some(frame) = frames.recv().await {
            if outgoing.send(Message::Binary(frame)).await.is_err() {
                return;
            }
        }
    };
    let hear = async {
        let mut tunnel = Tunnel::new(pod, out)?;
        tunnel.run(&mut incoming).await
    };
    tokio::select! {
        () = speak => return,
        heard = hear => if let Err(error) = heard {
            debug!(error = crate::chain(&error), "a tunnel of port-forwarding ends");
        },
    }
    channels::close(&mut outgoing, &mut incoming).await;
}

impl Tunnel {
    fn new(pod: Pod, out: mpsc::Sender<Bytes>) -> Result<Self, FrameError> {
        Ok(Self {
            pod,
            writer: Writer::new()?,
            out,
            streams: HashMap::new(),
            halves: HashMap::new(),
            connections: JoinSet::new(),
        })
    }

    async fn run(
        &mut self,
        incoming: &mut (impl Stream<Item = Result<Message, axum::Error>> + Unpin),
    ) -> Result<(), FrameError> {
        let mut reader = Reader::new();
        loop {
            let message = tokio::select! {
                message = incoming.next() => message,
                Some(ended) = self.connections.join_next() => {
                    if let Ok(stream) = ended {
                        self.streams.remove(&stream);
                    }
                    continue;
                }
            };
            match message {
                Some(Ok(Message::Binary(bytes))) => reader.push(&bytes),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(()),
                Some(Ok(_)) => {}
            }
            while let Some(frame) = reader.next()? {
                self.take(frame).await?;
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), FrameError> {
        match frame {
            Frame::Open {
                stream, headers, ..
            } => self.open(stream, &headers).await?,
            Frame::Data { stream, fin, bytes } => self.data(stream, fin, bytes).await,
            Frame::Reset { stream } => {
                let open = self.streams.remove(&stream);
                if let Some(connection) = open.and_then(|open| open.connection) {
                    connection.abort();
                }
            }
            Frame::Ping { id } => self.send(frame::ping(id)).await,
            Frame::GoAway | Frame::Other => {}
        }
        Ok(())
    }

    async fn open(&mut self, stream: u32, headers: &Headers) -> Result<(), FrameError> {
        if self.streams.len() >= STREAMS_MAX || self.halves.len() >= STREAMS_MAX {
            self.send(frame::reset(stream, REFUSED_STREAM)).await;
            return Ok(());
        }
        let (Some(request), Entry::Vacant(place)) =
            (Request::parse(headers), self.streams.entry(stream))
        else {
            self.send(frame::reset(stream, PROTOCOL_ERROR)).await;
            return Ok(());
        };
        let (input, given) = match request.kind {
            Kind::Error => (None, None),
            Kind::Data => {
                let (input, given) = mpsc::channel(QUEUE);
                (Some(input), Some(given))
            }
        };
        place.insert(Open {
            input,
            connection: None,
        });
        let reply = self.writer.reply(stream)?;
        self.send(reply).await;
        let half = Half { stream, given };
        match self.halves.remove(&request.id) {
            Some(other) => match (half, other) {
                (
                    Half {
                        stream: data,
                        given: Some(given),
                    },
                    Half {
                        stream: error,
                        given: None,
                    },
                )
                | (
                    Half {
                        stream: error,
                        given: None,
                    },
                    Half {
                        stream: data,
                        given: Some(given),
                    },
                ) => self.connect(request.port, error, data, given),
                // Two of a kind: the later one counts.
                (half, _) => drop(self.halves.insert(request.id, half)),
            },
            None => drop(self.halves.insert(request.id, half)),
        }
        Ok(())
    }

    fn connect(&mut self, port: u16, error: u32, data: u32, given: mpsc::Receiver<Bytes>) {
        // The client says nothing on the error stream.
        self.streams.remove(&error);
        let connection = forward(self.pod.clone(), port, error, data, given, self.out.clone());
        let connection = self.connections.spawn(connection);
        if let Some(open) = self.streams.get_mut(&data) {
            open.connection = Some(connection);
        }
    }

    async fn data(&mut self, stream: u32, fin: bool, bytes: Bytes) {
        let Some(open) = self.streams.get_mut(&stream) else {
            return;
        };
        if let Some(input) = open.input.as_ref().filter(|_| !bytes.is_empty()) {
            // A connection that has ended takes no more.
            let _ = input.send(bytes).await;
        }
        if fin {
            open.input = None;
        }
    }

    /// A client that has gone is found when it is read from.
    async fn send(&self, frame: Bytes) {
        let _ = self.out.send(frame).await;
    }
}

impl Request {
    fn parse(headers: &Headers) -> Option<Self> {
        let value = |wanted: &str| {
            let found = headers.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.as_str())
        };
        Some(Self {
            kind: match value("streamtype")? {
                "error" => Kind::Error,
                "data" => Kind::Data,
                _ => return None,
            },
            port: value("port")?.parse().ok().filter(|port| *port != 0)?,
            id: value("requestid")?.to_owned(),
        })
    }
}

/// One connection into the pod; answers its data stream.
async fn forward(
    pod: Pod,
    port: u16,
    error: u32,
    data: u32,
    given: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<Bytes>,
) -> u32 {
    let mut failure = String::new();
    match port::connect(pod.pid, port).await {
        Ok(stream) => {
            let (read, write) = stream.into_split();
            carry(read, write, given, &out, |bytes| {
                frame::data(data, false, bytes)
            })
            .await;
        }
        Err(why) => failure = pod.failure(port, &why),
    }
    // The client waits for the end of both streams; it may have gone.
    for last in [
        frame::data(error, true, failure.as_bytes()),
        frame::data(data, true, b""),
    ] {
        let _ = out.send(last).await;
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_says_which_request_it_belongs_to() {
        let headers = |pairs: &[(&str, &str)]| -> Headers {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        let good = [("streamtype", "data"), ("port", "80"), ("requestid", "7")];
        let request = Request::parse(&headers(&good)).unwrap();
        assert!(request.kind == Kind::Data && request.port == 80 && request.id == "7");
        for (at, wrong) in [
            ("streamtype", "video"),
            ("port", "0"),
            ("port", "65536"),
            ("requestid", ""),
        ] {
            let mut pairs = good.to_vec();
            pairs.retain(|(name, _)| *name != at);
            if !wrong.is_empty() {
                pairs.push((at, wrong));
            }
            assert!(Request::parse(&headers(&pairs)).is_none(), "{at} {wrong}");
        }
    }
}
