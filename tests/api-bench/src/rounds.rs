//! Rates of the verbs, and watches: each round asks every side once, in a new order.

use anyhow::Result;
use rand::seq::SliceRandom;
use serde_json::Value;
use tests_figures::quantile;

use crate::Bench;
use crate::disk;
use crate::http::{Call, Connection};
use crate::load::{Answered, Load, Verb};
use crate::objects::Kind;
use crate::side::Side;
use crate::watchers::Watching;

const ROUNDS: usize = 9;
const CONNECTIONS: usize = 16;
const WRITES: u64 = 640;
const READS: u64 = 3_200;
const LISTED: u64 = 3_000;
const LISTS: u64 = 5;
const WATCHES: usize = 1_000;
const WATCHED: u64 = 100;

/// Where the objects of the rates stand.
const NAMESPACE: &str = "default";
const LIST_NAMESPACE: &str = "bench-list";
const WATCH_NAMESPACE: &str = "bench-watch";

/// The samples of one metric of one side.
#[derive(Debug)]
struct Samples {
    side: &'static str,
    metric: &'static str,
    unit: &'static str,
    values: Vec<f64>,
}

#[derive(Debug, Default)]
struct Table(Vec<Samples>);

impl Table {
    fn add(&mut self, side: &'static str, metric: &'static str, unit: &'static str, value: f64) {
        let mut all = self.0.iter_mut();
        match all.find(|s| s.side == side && s.metric == metric) {
            Some(samples) => samples.values.push(value),
            None => self.0.push(Samples {
                side,
                metric,
                unit,
                values: vec![value],
            }),
        }
    }

    /// The rate and the slow end of what was answered.
    fn answered(
        &mut self,
        side: &'static str,
        rate: &'static str,
        p99: &'static str,
        answered: &Answered,
    ) {
        self.add(side, rate, "1/s", answered.rate());
        self.add(side, p99, "ms", quantile(&answered.latencies, 0.99));
    }
}

impl Bench {
    fn count_rounds(&self) -> usize {
        if self.quick { ROUNDS / 3 } else { ROUNDS }
    }

    fn shuffled(&self) -> Vec<&Side> {
        let mut sides: Vec<&Side> = self.sides.iter().collect();
        sides.shuffle(&mut rand::rng());
        sides
    }

    /// Creates, gets, updates, patches, deletes and lists.
    pub fn rounds(&mut self) -> Result<()> {
        for side in &self.sides {
            Self::make_namespace(&self.runtime, side, LIST_NAMESPACE)?;
            load(side, LIST_NAMESPACE, Verb::Create, 0, LISTED).run()?;
        }
        let mut table = Table::default();
        for round in 0..self.count_rounds() {
            eprintln!("round {round}");
            for sync in disk::syncs(self.folder.path())? {
                table.add("embedded", "disk_sync", "ms", sync);
            }
            for side in self.shuffled() {
                verbs(side, round as u64 * WRITES, &mut table)?;
            }
        }
        self.take(table);
        Ok(())
    }

    /// Writes that a thousand watches see.
    pub fn watches(&mut self) -> Result<()> {
        for side in &self.sides {
            Self::make_namespace(&self.runtime, side, WATCH_NAMESPACE)?;
            load(side, WATCH_NAMESPACE, Verb::Create, 0, WATCHED).run()?;
        }
        let mut table = Table::default();
        for round in 0..self.count_rounds() {
            eprintln!("watches, round {round}");
            for side in self.shuffled() {
                self.fan_out(side, &mut table)?;
            }
        }
        self.take(table);
        Ok(())
    }

    fn fan_out(&self, side: &Side, table: &mut Table) -> Result<()> {
        let collection = Kind::ConfigMap.collection(WATCH_NAMESPACE);
        let list = Call::get(format!("{collection}?limit=1"));
        let listed = self
            .runtime
            .block_on(async { Connection::open(&side.target()).await?.ask(&list).await })?;
        let list: Value = serde_json::from_slice(&listed)?;
        let version = list["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default();
        let watching = Watching {
            target: side.target(),
            path: format!(
                "{collection}?watch=true&allowWatchBookmarks=true&resourceVersion={version}"
            ),
            watches: WATCHES,
            events: usize::try_from(WATCHED)?,
        };
        let before = side.memory()?;
        let watchers = watching.start()?;
        let held = (side.memory()? - before) * 1024.0 / WATCHES as f64;
        let writes = Load {
            connections: 1,
            ..load(side, WATCH_NAMESPACE, Verb::Patch, 0, WATCHED)
        };
        writes.run()?;
        let seen = watchers.finish()?;
        let events = seen.delays.len() as f64;
        table.add(side.name, "events", "1/s", events / seen.seconds);
        table.add(side.name, "event_p50", "ms", quantile(&seen.delays, 0.5));
        table.add(side.name, "event_p99", "ms", quantile(&seen.delays, 0.99));
        // What the first thousand took is there for those who come after them.
        if !table
            .0
            .iter()
            .any(|s| s.side == side.name && s.metric == "memory_of_watcher")
        {
            table.add(side.name, "memory_of_watcher", "KiB", held);
        }
        Ok(())
    }

    fn take(&mut self, table: Table) {
        for samples in table.0 {
            let Samples {
                side,
                metric,
                unit,
                values,
            } = samples;
            self.figures.add(side, metric, unit, &values);
        }
    }
}

fn verbs(side: &Side, first: u64, table: &mut Table) -> Result<()> {
    let writes = |verb| load(side, NAMESPACE, verb, first, WRITES).run();
    table.answered(side.name, "creates", "create_p99", &writes(Verb::Create)?);
    let reads = load(side, LIST_NAMESPACE, Verb::Get, 0, LISTED.min(READS)).run()?;
    table.answered(side.name, "gets", "get_p99", &reads);
    table.answered(side.name, "updates", "update_p99", &writes(Verb::Update)?);
    table.answered(side.name, "patches", "patch_p99", &writes(Verb::Patch)?);
    table.answered(side.name, "deletes", "delete_p99", &writes(Verb::Delete)?);
    let path = Kind::ConfigMap.collection(LIST_NAMESPACE);
    let lists = lists(side, &path).run()?;
    table.add(
        side.name,
        "list_3000",
        "ms",
        quantile(&lists.latencies, 0.5),
    );
    Ok(())
}

fn load(side: &Side, namespace: &str, verb: Verb, first: u64, count: u64) -> Load {
    Load {
        target: side.target(),
        connections: CONNECTIONS,
        namespace: namespace.to_owned(),
        kind: Kind::ConfigMap,
        verb,
        first,
        count,
    }
}

/// Whole lists, one after the other.
pub fn lists(side: &Side, path: &str) -> Load {
    Load {
        connections: 1,
        ..load(side, "", Verb::List(path.to_owned()), 0, LISTS)
    }
}
