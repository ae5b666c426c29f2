//! A client process that asks as fast as it is answered, on some connections, and prints how long each answer took.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};

use crate::http::{Call, Connection, Target};
use crate::objects::{self, Kind};

/// What one client process does.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Load {
    pub target: Target,
    pub connections: usize,
    pub namespace: String,
    pub kind: Kind,
    pub verb: Verb,
    /// The number of the first object.
    pub first: u64,
    /// How many requests.
    pub count: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Verb {
    Create,
    Get,
    Update,
    Patch,
    Delete,
    /// Lists this path, each time whole.
    List(String),
}

/// What came of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Answered {
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Milliseconds, sorted.
    pub latencies: Vec<f64>,
    /// Of the last answer.
    pub bytes: usize,
}

impl Load {
    /// Runs in a process of its own.
    pub fn run(&self) -> Result<Answered> {
        let output = Command::new(std::env::current_exe()?)
            .args(["load", &serde_json::to_string(self)?])
            .stderr(Stdio::inherit())
            .output()
            .context("start a client")?;
        ensure!(output.status.success(), "{:?} failed", self.verb);
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn call(&self, at: u64) -> Call {
        let collection = self.kind.collection(&self.namespace);
        let number = self.first + at;
        let one = || format!("{collection}/{}", objects::name(number));
        match &self.verb {
            Verb::Create => Call::with_json("POST", collection, self.kind.object(number)),
            Verb::Get => Call::get(one()),
            Verb::Update => Call::with_json("PUT", one(), self.kind.object(number)),
            Verb::Delete => Call::with_json("DELETE", one(), Bytes::new()),
            Verb::Patch => Call {
                content_type: "application/merge-patch+json",
                ..Call::with_json("PATCH", one(), objects::patch())
            },
            Verb::List(path) => Call::get(path),
        }
    }
}

impl Answered {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds
    }
}

/// The process itself.
pub fn serve(spec: &str) -> Result<()> {
    let load: Load = serde_json::from_str(spec)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answered = runtime.block_on(ask_all(load))?;
    println!("{}", serde_json::to_string(&answered)?);
    Ok(())
}

async fn ask_all(load: Load) -> Result<Answered> {
    let opened = (0..load.connections).map(|_| Connection::open(&load.target));
    let connections = try_join_all(opened).await?;
    let load = Arc::new(load);
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let tasks = connections.into_iter().map(|connection| {
        let asking = ask(connection, load.clone(), next.clone());
        async { tokio::spawn(asking).await? }
    });
    let parts = try_join_all(tasks).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let bytes = parts.iter().map(|part| part.1).max().unwrap_or(0);
    let mut latencies: Vec<f64> = parts.into_iter().flat_map(|part| part.0).collect();
    latencies.sort_by(f64::total_cmp);
    Ok(Answered {
        seconds,
        latencies,
        bytes,
    })
}

async fn ask(
    mut connection: Connection,
    load: Arc<Load>,
    next: Arc<AtomicU64>,
) -> Result<(Vec<f64>, usize)> {
    let mut latencies = Vec::new();
    let mut bytes = 0;
    loop {
        let at = next.fetch_add(1, Ordering::Relaxed);
        if at >= load.count {
            return Ok((latencies, bytes));
        }
        let call = load.call(at);
        let begun = Instant::now();
        bytes = connection.measure(&call).await?;
        latencies.push(begun.elapsed().as_secs_f64() * 1e3);
    }
}
