//! A client process with many watches of one collection: how long each event took from its write to here.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};

use crate::http::{Call, Connection, Target};
use crate::objects::{SENT, nanoseconds};

const OPEN: &str = "open";
/// All events together do not take so long; a watch that waits longer has lost one.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the process does.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Watching {
    pub target: Target,
    pub path: String,
    pub watches: usize,
    /// Each watch ends after so many events.
    pub events: usize,
}

/// What the watches saw.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Seen {
    /// From the first write of which there was an event to the last event's receipt.
    pub seconds: f64,
    /// From write to receipt, milliseconds, sorted.
    pub delays: Vec<f64>,
}

/// The running process; it ends when this goes.
#[derive(Debug)]
pub struct Watchers(Child);

impl Watching {
    /// Starts the process and waits until every watch is open.
    pub fn start(&self) -> Result<Watchers> {
        let program = std::env::current_exe()?;
        let mut child = Command::new(program)
            .args(["watch", &serde_json::to_string(self)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the watches")?;
        let mut line = String::new();
        let stdout = child
            .stdout
            .as_mut()
            .context("the watches have no stdout")?;
        // Nothing follows before it is asked for, so no byte is lost in this buffer.
        BufReader::new(stdout).read_line(&mut line)?;
        let watchers = Watchers(child);
        ensure!(
            line.trim_end() == OPEN,
            "the watches of {} did not open",
            self.path
        );
        Ok(watchers)
    }
}

impl Watchers {
    /// Waits until each watch has seen its events.
    pub fn finish(mut self) -> Result<Seen> {
        self.0
            .stdin
            .as_mut()
            .context("the watches have no stdin")?
            .write_all(b"\n")?;
        let mut printed = String::new();
        let stdout = self
            .0
            .stdout
            .as_mut()
            .context("the watches have no stdout")?;
        stdout.read_to_string(&mut printed)?;
        serde_json::from_str(&printed).context("the watches failed")
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process itself.
pub fn serve(spec: &str) -> Result<()> {
    let watching: Watching = serde_json::from_str(spec)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let seen = runtime.block_on(watch_all(&watching))?;
    // Whoever reads says when; until then there is only the one line.
    std::io::stdin().lock().read_line(&mut String::new())?;
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

async fn watch_all(watching: &Watching) -> Result<Seen> {
    let mut open = Vec::new();
    for _ in 0..watching.watches {
        open.push(watch(watching).await?);
    }
    println!("{OPEN}");
    let read = open.into_iter().map(|connection| {
        let events = read_events(connection, watching.events);
        // One clock for all of a watch's events: one for each would cost as much as the event.
        let reading = async {
            let events = tokio::time::timeout(PATIENCE, events).await;
            events.context("an event does not come")?
        };
        async { tokio::spawn(reading).await? }
    });
    let events: Vec<(u128, u128)> = try_join_all(read).await?.into_iter().flatten().collect();
    let first = events.iter().map(|event| event.0).min().unwrap_or(0);
    let last = events.iter().map(|event| event.1).max().unwrap_or(0);
    let mut delays: Vec<f64> = events
        .iter()
        .map(|(sent, received)| received.saturating_sub(*sent) as f64 / 1e6)
        .collect();
    delays.sort_by(f64::total_cmp);
    Ok(Seen {
        seconds: (last - first) as f64 / 1e9,
        delays,
    })
}

async fn watch(watching: &Watching) -> Result<Connection> {
    let mut connection = Connection::open(&watching.target).await?;
    connection.open_stream(&Call::get(&*watching.path)).await?;
    Ok(connection)
}

/// The moments of sending and receiving of so many events.
async fn read_events(mut connection: Connection, count: usize) -> Result<Vec<(u128, u128)>> {
    let mut events = Vec::with_capacity(count);
    let mut rest: Vec<u8> = Vec::new();
    while events.len() < count {
        let chunk = connection.chunk().await?;
        let data = chunk.context("a watch ended by itself")?;
        let received = nanoseconds();
        rest.extend_from_slice(&data);
        let whole = rest
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        for line in rest[..whole]
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
        {
            events.push((sent(line)?, received));
        }
        rest.drain(..whole);
    }
    ensure!(events.len() == count, "a watch saw an event too many");
    Ok(events)
}

/// When the write of this event was sent.
fn sent(line: &[u8]) -> Result<u128> {
    let line = std::str::from_utf8(line)?;
    let key = format!("\"{SENT}\":\"");
    let (_, after) = line
        .split_once(&key)
        .with_context(|| format!("no moment in {line}"))?;
    let (number, _) = after.split_once('"').context("a moment does not end")?;
    Ok(number.parse()?)
}
