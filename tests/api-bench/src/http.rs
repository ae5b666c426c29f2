//! One connection to an API server: HTTP/1.1 by hand, since the clients share the processors with the servers and a
//! whole client library would cost as much as a good server.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use httparse::Status;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::tls;

/// Room for what the socket has, each time it is read.
const READ: usize = 16 * 1024;
const HEADERS: usize = 32;

/// Where an API server listens.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Target {
    pub address: SocketAddr,
    /// PEM certificates that vouch for the server; `None` where it speaks plain HTTP.
    pub authorities: Option<PathBuf>,
    /// Who asks, where nobody may ask without a name.
    pub token: Option<String>,
}

/// A kept connection, one request at a time.
pub struct Connection {
    stream: Box<dyn Stream>,
    /// The lines that every request has.
    headers: String,
    request: Vec<u8>,
    received: BytesMut,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: &'static str,
    pub path: String,
    pub content_type: &'static str,
    pub body: Bytes,
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Length(usize),
    Chunks,
}

impl Call {
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            method: "GET",
            path: path.into(),
            content_type: "",
            body: Bytes::new(),
        }
    }

    pub fn with_json(method: &'static str, path: String, body: impl Into<Bytes>) -> Self {
        Self {
            method,
            path,
            content_type: "application/json",
            body: body.into(),
        }
    }

    fn write_to(&self, out: &mut Vec<u8>, headers: &str) {
        let mut add = |text: &str| out.extend_from_slice(text.as_bytes());
        for text in [self.method, " ", &self.path, " HTTP/1.1\r\n", headers] {
            add(text);
        }
        if !self.content_type.is_empty() {
            for text in ["content-type: ", self.content_type, "\r\n"] {
                add(text);
            }
            add(&format!("content-length: {}\r\n", self.body.len()));
        }
        add("\r\n");
        out.extend_from_slice(&self.body);
    }
}

impl Connection {
    pub async fn open(target: &Target) -> Result<Self> {
        let tcp = TcpStream::connect(target.address)
            .await
            .with_context(|| format!("connect to {}", target.address))?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &target.authorities {
            Some(authorities) => Box::new(tls::connect(authorities, tcp).await?),
            None => Box::new(tcp),
        };
        Ok(Self {
            stream,
            headers: headers(target),
            request: Vec::new(),
            received: BytesMut::new(),
        })
    }

    /// The answer's whole body.
    ///
    /// # Errors
    /// Any status but 200 and 201.
    pub async fn ask(&mut self, call: &Call) -> Result<Bytes> {
        let (status, framing) = self.send(call).await?;
        let body = self.body(framing).await?;
        refused(call, status, &body)?;
        Ok(body)
    }

    /// As [`Self::ask`], but only counts the bytes, so that a long answer costs no memory here.
    pub async fn measure(&mut self, call: &Call) -> Result<usize> {
        let (status, framing) = self.send(call).await?;
        let Framing::Length(length) = framing else {
            return self.body(framing).await.map(|body| body.len());
        };
        if !is_good(status) {
            let body = self.body(framing).await?;
            refused(call, status, &body)?;
        }
        let mut left = length;
        while left > 0 {
            if self.received.is_empty() {
                self.fill().await?;
            }
            let taken = left.min(self.received.len());
            self.received.advance(taken);
            left -= taken;
        }
        Ok(length)
    }

    /// Opens an answer that goes on; [`Self::chunk`] reads it.
    ///
    /// # Errors
    /// Any status but 200.
    pub async fn open_stream(&mut self, call: &Call) -> Result<()> {
        let (status, framing) = self.send(call).await?;
        if let (200, Framing::Chunks) = (status, framing) {
            return Ok(());
        }
        let body = self.body(framing).await?;
        refused(call, status, &body)?;
        bail!("{}: the answer does not go on", call.path)
    }

    /// The next piece of an answer that goes on; `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let (head, length) = loop {
            match httparse::parse_chunk_size(&self.received) {
                Ok(Status::Complete((head, length))) => break (head, usize::try_from(length)?),
                Ok(Status::Partial) => self.fill().await?,
                Err(_) => bail!("the answer is badly chunked"),
            }
        };
        const END: usize = "\r\n".len();
        while self.received.len() < head + length + END {
            self.fill().await?;
        }
        self.received.advance(head);
        let chunk = self.received.split_to(length).freeze();
        self.received.advance(END);
        Ok((length > 0).then_some(chunk))
    }

    async fn send(&mut self, call: &Call) -> Result<(u16, Framing)> {
        self.request.clear();
        call.write_to(&mut self.request, &self.headers);
        self.stream.write_all(&self.request).await?;
        self.stream.flush().await?;
        loop {
            if let Some(head) = self.head()? {
                return Ok(head);
            }
            self.fill().await?;
        }
    }

    /// The head of the answer, once it is there.
    fn head(&mut self) -> Result<Option<(u16, Framing)>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let Status::Complete(size) = response.parse(&self.received)? else {
            return Ok(None);
        };
        let status = response.code.context("the answer has no status")?;
        let value = |name: &str| {
            let mut headers = response.headers.iter();
            headers.find(|header| header.name.eq_ignore_ascii_case(name))
        };
        let framing = match value("content-length") {
            Some(length) => Framing::Length(std::str::from_utf8(length.value)?.parse()?),
            None => {
                ensure!(
                    value("transfer-encoding").is_some(),
                    "the answer has no length"
                );
                Framing::Chunks
            }
        };
        self.received.advance(size);
        Ok(Some((status, framing)))
    }

    async fn body(&mut self, framing: Framing) -> Result<Bytes> {
        match framing {
            Framing::Length(length) => {
                while self.received.len() < length {
                    self.fill().await?;
                }
                Ok(self.received.split_to(length).freeze())
            }
            Framing::Chunks => {
                let mut whole = Vec::new();
                while let Some(chunk) = self.chunk().await? {
                    whole.extend_from_slice(&chunk);
                }
                Ok(whole.into())
            }
        }
    }

    async fn fill(&mut self) -> Result<()> {
        self.received.reserve(READ);
        let read = self.stream.read_buf(&mut self.received).await?;
        ensure!(read > 0, "the server has closed the connection");
        Ok(())
    }
}

fn headers(target: &Target) -> String {
    let mut lines = format!(
        "host: {}\r\naccept: application/json\r\nuser-agent: tests-bench\r\n",
        target.address
    );
    if let Some(token) = &target.token {
        lines.push_str(&format!("authorization: Bearer {token}\r\n"));
    }
    lines
}

fn is_good(status: u16) -> bool {
    matches!(status, 200 | 201)
}

/// # Errors
/// What the server says, if it is not 200 or 201.
fn refused(call: &Call, status: u16, body: &[u8]) -> Result<()> {
    ensure!(
        is_good(status),
        "{} {}: {status}: {}",
        call.method,
        call.path,
        String::from_utf8_lossy(body)
    );
    Ok(())
}
