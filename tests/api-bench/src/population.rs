//! Growing numbers of Pods: what they hold in memory, how long a list of all takes, and how long a restart.

use anyhow::Result;
use tests_figures::quantile;

use crate::Bench;
use crate::load::{Load, Verb};
use crate::objects::Kind;
use crate::rounds::lists;
use crate::side::Side;

/// Pods in one namespace.
const IN_NAMESPACE: u64 = 10_000;
const CONNECTIONS: usize = 64;

impl Bench {
    /// Makes the Pods of one side after the other: at each moment one server has them to itself.
    pub fn populate(&mut self) -> Result<()> {
        let namespaces = if self.quick { 1 } else { 15 };
        for at in 0..self.sides.len() {
            eprintln!(
                "{} Pods at {}",
                namespaces * IN_NAMESPACE,
                self.sides[at].name
            );
            for namespace in 0..namespaces {
                self.fill(at, namespace)?;
            }
            let (side, runtime) = (&mut self.sides[at], &self.runtime);
            let name = side.name;
            side.stop()?;
            let seconds = side.start(runtime, "apiserver")?;
            let (start, memory) = match namespaces {
                1 => ("start_10000", "memory_10000_restarted"),
                _ => ("start_150000", "memory_150000_restarted"),
            };
            self.figures.add(name, start, "ms", &[seconds * 1e3]);
            self.figures
                .add(name, memory, "MiB", &[self.sides[at].memory()?]);
            self.sides[at].stop()?;
        }
        Ok(())
    }

    fn fill(&mut self, at: usize, namespace: u64) -> Result<()> {
        let side = &self.sides[at];
        let name = format!("bench-pods-{namespace}");
        Self::make_namespace(&self.runtime, side, &name)?;
        let created = pods(side, &name).run()?;
        match (namespace + 1) * IN_NAMESPACE {
            10_000 => {
                let rate = [created.rate()];
                self.figures.add(side.name, "pod_creates_64", "1/s", &rate);
                let memory = [side.memory()?];
                self.figures.add(side.name, "memory_10000", "MiB", &memory);
            }
            50_000 => {
                let listed = lists(side, "/api/v1/pods").run()?;
                let (time, bytes) = ([quantile(&listed.latencies, 0.5)], listed.bytes as f64);
                self.figures.add(side.name, "list_50000", "ms", &time);
                self.figures
                    .add(side.name, "list_50000_size", "MB", &[bytes / 1e6]);
            }
            100_000 => {
                let memory = [side.memory()?];
                self.figures.add(side.name, "memory_100000", "MiB", &memory);
            }
            _ => {}
        }
        Ok(())
    }
}

fn pods(side: &Side, namespace: &str) -> Load {
    Load {
        target: side.target(),
        connections: CONNECTIONS,
        namespace: namespace.to_owned(),
        kind: Kind::Pod,
        verb: Verb::Create,
        first: 0,
        count: IN_NAMESPACE,
    }
}
