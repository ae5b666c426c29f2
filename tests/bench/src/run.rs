//! A run of a bench: what must hold before, what is told at the end.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::Options;
use crate::fairlead::private_bpffs;
use crate::program_info;
use crate::report;
use crate::session::{Outcome, Session};

/// A bench that has begun.
#[derive(Debug)]
pub struct Bench<'a> {
    name: &'static str,
    options: &'a Options,
    start: Instant,
    pub outcome: Outcome,
}

impl<'a> Bench<'a> {
    /// Looks at the machine, takes one core for this process and every process that it starts, and a bpffs of its own.
    pub fn start(name: &'static str, options: &'a Options) -> Result<Self> {
        let start = Instant::now();
        program_info::require_jit()?;
        if program_info::stats_are_on() {
            bail!("kernel.bpf_stats_enabled is 1, which costs 2 %: set it to 0");
        }
        prepare(options)?;
        Ok(Self {
            name,
            options,
            start,
            outcome: Outcome::default(),
        })
    }

    /// Tells how long it took to get here.
    pub fn note(&self, what: &str) {
        eprintln!("{what} after {:.1} s", self.start.elapsed().as_secs_f64());
    }

    pub fn measure(&mut self, sessions: &[Session<'_>]) -> Result<()> {
        self.note("measuring");
        for session in sessions {
            self.outcome
                .measure(self.name, session, self.options.quick)?;
        }
        Ok(())
    }

    /// Prints, writes, and fails where a noise row or a target says so.
    pub fn finish(self) -> Result<()> {
        print!("{}", report::table(&self.outcome.rows));
        self.end()
    }

    /// The same with a column a metric, where there are many rows; the spreads are in the file only.
    pub fn finish_by_metric(self) -> Result<()> {
        print!("{}", report::by_metric(&self.outcome.rows));
        self.end()
    }

    fn end(self) -> Result<()> {
        let rows = &self.outcome.rows;
        self.note(&format!("{} rows", rows.len()));
        if let Some(path) = &self.options.json {
            tests_figures::write_json(path, rows)?;
        }
        self.outcome.verdict()
    }
}

/// One core for this process and every process that it starts, and a bpffs of its own.
pub fn prepare(options: &Options) -> Result<()> {
    let cpu = match options.cpu {
        Some(cpu) => cpu,
        None => std::thread::available_parallelism()?.get() - 1,
    };
    let mut set = CpuSet::new();
    set.set(cpu)
        .with_context(|| format!("--cpu {cpu}: there is no such core"))?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .with_context(|| format!("--cpu {cpu}: cannot run there"))?;
    private_bpffs()
}
