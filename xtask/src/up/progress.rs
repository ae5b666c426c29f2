//! One line per step: how far it is while it runs, then how long it took; and Ctrl-C at any point.

use std::cell::{Cell, RefCell};
use std::io::{IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Prints the steps and hears the signals that end the cluster.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
    live: bool,
    signals: RefCell<Signals>,
    interrupted: Cell<bool>,
}

/// How far a wait has come.
#[derive(Debug)]
pub enum Wait<T> {
    Done(T),
    /// Not yet, and what it waits for.
    Pending(String),
}

impl Progress {
    /// From here on Ctrl-C no longer ends this process by itself: the steps notice it. Programs
    /// that a step runs still end by it, since a handler does not outlive exec, as a blocked
    /// signal would.
    pub fn new() -> Result<Progress> {
        Ok(Progress {
            start: Instant::now(),
            live: std::io::stdout().is_terminal(),
            signals: Signals::new([SIGINT, SIGTERM, SIGHUP])
                .context("cannot handle signals")?
                .into(),
            interrupted: Cell::new(false),
        })
    }

    /// Runs one step and prints its line.
    pub fn step<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.check_interrupted()?;
        self.uninterrupted(name, work)
    }

    /// A step that a signal does not keep from starting.
    pub fn uninterrupted<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        self.show(name, "");
        let outcome = work();
        self.finish(name, begun, outcome)
    }

    /// Asks `poll` again and again until it is done, with its words on the live line.
    pub fn wait<T>(
        &self,
        name: &str,
        patience: Duration,
        mut poll: impl FnMut() -> Result<Wait<T>>,
    ) -> Result<T> {
        let begun = Instant::now();
        let outcome = loop {
            let pending = match self.check_interrupted().and_then(|()| poll()) {
                Ok(Wait::Done(value)) => break Ok(value),
                Ok(Wait::Pending(pending)) => pending,
                Err(error) => break Err(error),
            };
            if begun.elapsed() > patience {
                break Err(anyhow::anyhow!(
                    "still waiting after {} s: {pending}",
                    patience.as_secs()
                ));
            }
            self.show(name, &pending);
            thread::sleep(Duration::from_millis(150));
        };
        self.finish(name, begun, outcome)
    }

    pub fn note(&self, text: &str) {
        println!("{text}");
    }

    /// Blocks until Ctrl-C or a termination signal.
    pub fn wait_for_signal(&self) {
        self.signals.borrow_mut().forever().next();
    }

    /// True if somebody asked for the end; a step may have failed for that alone.
    pub fn interrupted(&self) -> bool {
        if self.signals.borrow_mut().pending().next().is_some() {
            self.interrupted.set(true);
        }
        self.interrupted.get()
    }

    fn check_interrupted(&self) -> Result<()> {
        if self.interrupted() {
            bail!("interrupted");
        }
        Ok(())
    }

    fn show(&self, name: &str, pending: &str) {
        if self.live {
            // A line that wraps cannot be written over.
            let pending: String = pending.chars().take(50).collect();
            // Erase to the end of the line: the last words may have been longer.
            print!(
                "\r[{:6.1}s]  ...  {name}  {pending}\x1b[K",
                self.start.elapsed().as_secs_f64()
            );
            // A terminal that cannot be written to is no reason to stop.
            drop(std::io::stdout().flush());
        }
    }

    fn finish<T>(&self, name: &str, begun: Instant, outcome: Result<T>) -> Result<T> {
        let word = if outcome.is_ok() { " ok  " } else { "FAILED" };
        let erase = if self.live { "\r\x1b[K" } else { "" };
        println!(
            "{erase}[{:6.1}s]  {word} {name}  ({:.1} s)",
            self.start.elapsed().as_secs_f64(),
            begun.elapsed().as_secs_f64()
        );
        outcome.with_context(|| name.to_string())
    }
}
