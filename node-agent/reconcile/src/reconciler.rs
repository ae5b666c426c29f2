//! The loop itself.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use node_agent_model::{
    Algorithm, Applied, Capacity, Change, Desired, MapSink, QUARANTINE, SinkError, plan,
};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error, info, warn};

use crate::backoff::Backoff;
use crate::handle::Command;
use crate::kube_proxy_metrics::{Counted, Pending};
use crate::metrics::{self, OpCounts};
use crate::{ApplyError, Handle, HealthChecks, Metrics, Status};

/// How the loop works.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's name.
    pub node_name: String,
    pub capacity: Capacity,
    /// What Services get that name no algorithm.
    pub algorithm: Algorithm,
    /// Must have listed everything once before anything is written.
    pub sources: BTreeSet<&'static str>,
    /// From one pass to the next: the first change of a quiet time is planned at once, those that follow are collected
    /// for so long.
    pub coalesce: Duration,
    /// How often the maps are read back and compared.
    pub compare_every: Duration,
}

impl Options {
    /// At most a pass every 3 ms, compares every five minutes.
    pub fn new(
        node_name: impl Into<String>,
        sources: impl IntoIterator<Item = &'static str>,
    ) -> Self {
        Self {
            node_name: node_name.into(),
            capacity: Capacity::default(),
            algorithm: Algorithm::default(),
            sources: sources.into_iter().collect(),
            coalesce: Duration::from_millis(3),
            compare_every: Duration::from_secs(300),
        }
    }
}

/// Runs on a thread of its own: the operations on the maps block.
#[derive(Debug)]
pub struct Reconciler<S> {
    options: Options,
    state: Box<State<S>>,
    commands: mpsc::Receiver<Command>,
    status: watch::Sender<Status>,
    metrics: Metrics,
    waiting: Vec<oneshot::Sender<Result<(), ApplyError>>>,
    waiting_for: BTreeSet<&'static str>,
    backoff: Backoff,
    retry_at: Option<Instant>,
    failing: bool,
    compare_at: Instant,
    /// Until then what comes is collected.
    collect_until: Instant,
    /// When the first change came that is not in the maps yet.
    changed_at: Option<Instant>,
    pending: Pending,
    health_checks: watch::Sender<HealthChecks>,
}

#[derive(Debug)]
struct State<S> {
    desired: Desired,
    applied: Applied,
    sink: S,
    started: Instant,
    /// The maps may hold something else than we think.
    doubtful: bool,
}

/// What a pass did.
struct Pass {
    /// Operations that are in force.
    ops: usize,
    counts: OpCounts,
    result: Result<(), SinkError>,
    refused: Vec<node_agent_model::Refusal>,
    repaired: bool,
}

impl<S: MapSink + Send + 'static> Reconciler<S> {
    /// Reads the maps: ids go on as they are.
    ///
    /// # Errors
    ///
    /// When the maps cannot be read.
    pub fn new(sink: S, options: Options, metrics: Metrics) -> Result<(Self, Handle), SinkError> {
        let applied = Applied::restore(sink.snapshot()?, options.capacity);
        let waiting_for = options.sources.clone();
        let (status, status_reader) = watch::channel(Status {
            waiting_for: waiting_for.clone(),
            ..Status::default()
        });
        let (sender, commands) = mpsc::channel(4096);
        let (health_checks, health_checks_reader) = watch::channel(HealthChecks::new());
        let now = Instant::now();
        let state = State {
            desired: Desired::new(options.node_name.clone()).with_algorithm(options.algorithm),
            applied,
            sink,
            started: now,
            doubtful: false,
        };
        let reconciler = Self {
            compare_at: now + options.compare_every,
            options,
            state: Box::new(state),
            commands,
            status,
            metrics,
            waiting: Vec::new(),
            waiting_for,
            backoff: Backoff::default(),
            retry_at: None,
            failing: false,
            collect_until: now,
            changed_at: None,
            pending: Pending::new(),
            health_checks,
        };
        Ok((
            reconciler,
            Handle {
                commands: sender,
                status: status_reader,
                health_checks: health_checks_reader,
            },
        ))
    }

    /// Runs until every handle is gone.
    pub async fn run(mut self) {
        loop {
            let wake_at = self
                .retry_at
                .map_or(self.compare_at, |retry| retry.min(self.compare_at));
            match timeout_at(wake_at, self.commands.recv()).await {
                Ok(Some(command)) => {
                    self.take(command);
                    if !self.collect().await {
                        return;
                    }
                }
                Ok(None) => return,
                Err(_) => {}
            }
            if self.waiting_for.is_empty() && self.is_due() {
                self = match self.pass().await {
                    Some(next) => next,
                    None => return,
                };
            }
        }
    }

    /// Takes what has come already, and after a pass what comes for a few milliseconds more; false when no more can come.
    async fn collect(&mut self) -> bool {
        let latest = Instant::now() + self.options.coalesce;
        loop {
            match self.commands.try_recv() {
                // Who sends without a pause must not keep the maps from being written.
                Ok(command) if Instant::now() < latest => self.take(command),
                Ok(command) => {
                    self.take(command);
                    return true;
                }
                Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) if !self.is_collecting() => return true,
                Err(TryRecvError::Empty) => {}
            }
            match timeout_at(self.collect_until, self.commands.recv()).await {
                Ok(Some(command)) => self.take(command),
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Who only waits for what was planned before, waits for nobody else.
    fn is_collecting(&self) -> bool {
        Instant::now() < self.collect_until && self.state.desired.is_dirty()
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Change { change, id } => {
                let kind = kind_of(&change);
                let counted = Counted::of(&change);
                if self.state.desired.change(*change) {
                    self.pending.add(counted, id.triggered_at);
                    self.metrics.kube_proxy.queued(counted, &self.pending);
                    debug!(change = %id, kind, "planned");
                    self.changed_at.get_or_insert_with(Instant::now);
                }
            }
            Command::Synced(source) => {
                if self.waiting_for.remove(source) {
                    info!(source, still_waiting_for = ?self.waiting_for, "first list is complete");
                    self.status
                        .send_modify(|status| status.waiting_for = self.waiting_for.clone());
                }
            }
            Command::Flush(answer) => self.waiting.push(answer),
        }
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.compare_at {
            self.compare_at = now + self.options.compare_every;
            self.state.doubtful = true;
        }
        // After a failure only the clock decides: changes that come meanwhile wait with the rest.
        match self.retry_at {
            Some(retry) if self.failing || now >= retry => now >= retry,
            _ => {
                self.state.doubtful
                    || self.state.desired.is_dirty()
                    || !self.waiting.is_empty()
                    || !self.status.borrow().synced
            }
        }
    }

    /// One pass; `None` when it panicked, which ends the loop.
    async fn pass(mut self) -> Option<Self> {
        let began = Instant::now();
        let mut state = self.state;
        let joined = tokio::task::spawn_blocking(move || {
            let outcome = state.pass();
            (state, outcome)
        })
        .await;
        let (state, pass) = match joined {
            Ok(done) => done,
            Err(error) => {
                error!(%error, "the reconciler panicked");
                return None;
            }
        };
        self.state = state;
        if pass.ops > 0 {
            self.collect_until = Instant::now() + self.options.coalesce;
        }
        self.metrics.applied(&pass.counts);
        self.metrics.kube_proxy.passed(began.elapsed());
        self.report(&pass);
        Some(self)
    }

    fn report(&mut self, pass: &Pass) {
        let (services, slices) = self.state.desired.counts();
        self.metrics
            .services
            .set(i64::try_from(services).unwrap_or(i64::MAX));
        self.metrics
            .endpoint_slices
            .set(i64::try_from(slices).unwrap_or(i64::MAX));
        self.metrics
            .refused
            .set(i64::try_from(pass.refused.len()).unwrap_or(i64::MAX));
        for refusal in &pass.refused {
            self.metrics.refused_by(refusal.map);
            warn!(
                object = refusal.object,
                map = refusal.map,
                "refused: the map is full"
            );
        }
        self.failing = pass.result.is_err();
        let answer = match (&pass.result, pass.refused.first()) {
            (Err(failure), _) => {
                self.metrics.failures.inc();
                self.metrics.refused_by(failure.map);
                let delay = self.backoff.next();
                self.retry_at = Some(Instant::now() + delay);
                let failure = with_causes(failure);
                warn!(
                    error = failure,
                    full = matches!(&pass.result, Err(e) if e.full),
                    ?delay,
                    "the maps could not be written"
                );
                Err(ApplyError::Failed(failure))
            }
            (Ok(()), refused) => {
                self.backoff.reset();
                self.retry_at = refused.map(|_| Instant::now() + QUARANTINE);
                if let Some(began) = self.changed_at.take() {
                    self.metrics.synced(began.elapsed());
                }
                self.metrics.kube_proxy.synced(&self.pending);
                self.pending.clear();
                self.tell_health_checks();
                if pass.repaired && pass.ops > 0 && self.status.borrow().synced {
                    self.metrics.repairs.inc_by(pass.ops as u64);
                    warn!(
                        operations = pass.ops,
                        "repaired maps that held something else than was written"
                    );
                } else if pass.ops > 0 {
                    debug!(operations = pass.ops, "applied");
                }
                if !self.status.borrow().synced {
                    info!(operations = pass.ops, "the maps hold everything");
                }
                refused.map_or(Ok(()), |refused| {
                    Err(ApplyError::Refused {
                        object: refused.object.clone(),
                        map: refused.map,
                    })
                })
            }
        };
        self.status.send_modify(|status| {
            status.synced |= pass.result.is_ok();
            if pass.result.is_ok() {
                status.updated_at = Some(SystemTime::now());
                status.behind_since = None;
            } else {
                status.behind_since.get_or_insert_with(SystemTime::now);
            }
            status.error = pass.result.as_ref().err().map(with_causes);
            status.refused.clone_from(&pass.refused);
        });
        for waiting in self.waiting.drain(..) {
            // Who no longer waits needs no answer.
            let _ = waiting.send(answer.clone());
        }
    }
}

impl<S> Reconciler<S> {
    /// Load balancers learn of endpoints when connections would find them, and not before.
    fn tell_health_checks(&mut self) {
        let changes = self.state.desired.take_health_checks();
        self.health_checks.send_if_modified(|checks| {
            let mut modified = false;
            for (name, check) in changes {
                let before = match check {
                    Some(check) => checks.insert(name, check),
                    None => checks.remove(&name),
                };
                modified |= before != check;
            }
            modified
        });
    }
}

impl<S: MapSink> State<S> {
    /// Reads back if in doubt, plans, applies.
    fn pass(&mut self) -> Pass {
        let repaired = self.doubtful;
        if self.doubtful {
            match self.sink.snapshot() {
                Ok(snapshot) => self.applied.resync(snapshot),
                Err(error) => {
                    return Pass {
                        ops: 0,
                        counts: OpCounts::new(),
                        result: Err(error),
                        refused: Vec::new(),
                        repaired: false,
                    };
                }
            }
            self.doubtful = false;
        }
        let planned = plan(&mut self.desired, &mut self.applied, self.started.elapsed());
        let mut ops = planned.ops;
        let result = if ops.is_empty() {
            Ok(())
        } else {
            self.sink.apply(&ops)
        };
        if let Err(failure) = &result {
            self.doubtful = true;
            ops.truncate(failure.index.unwrap_or(0));
        }
        Pass {
            ops: ops.len(),
            counts: metrics::count(&ops),
            result,
            refused: planned.refused,
            repaired,
        }
    }
}

fn kind_of(change: &Change) -> &'static str {
    match change {
        Change::Service(..) => "service",
        Change::EndpointSlice(..) => "endpointslice",
        Change::NodeAddresses(_) => "node addresses",
        Change::Zone(_) => "zone",
        Change::Endpoint(..) => "endpoint",
        Change::Peer(..) => "peer",
        Change::KeepSource(_) => "destinations that keep the source",
        Change::Config(_) => "config",
    }
}

fn with_causes(error: &SinkError) -> String {
    format!("{error}: {}", error.source)
}
