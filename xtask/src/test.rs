//! `test`: every suite in order, its output as it comes, and one closing line that counts them all.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{setup, workspace};

#[derive(Debug, Args)]
pub struct Options {
    /// Run only these suites, in the order below
    #[arg(long = "suite", value_enum)]
    suites: Vec<Suite>,
}

/// In the order in which they run: the cheap and general first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Formatting, clippy and the architecture's rules
    Check,
    /// The crates' own tests
    Unit,
    /// Real programs and real packets in network namespaces
    Netns,
    /// The real kubectl and helm against the API server
    Kubectl,
    /// Whole clusters
    E2e,
    /// `cargo xtask up --once`
    Up,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

pub fn run(options: &Options) -> Result<()> {
    setup::require_root("test")?;
    setup::run()?;
    let wanted = |suite: &Suite| options.suites.is_empty() || options.suites.contains(suite);
    let mut total = Tally::default();
    for suite in Suite::value_variants().iter().filter(|suite| wanted(suite)) {
        let start = Instant::now();
        println!("=== {suite:?}");
        let tally = suite.run()?;
        println!(
            "=== {suite:?}: {} passed, {} failed in {:.0} s",
            tally.passed,
            tally.failed,
            start.elapsed().as_secs_f64()
        );
        total.passed += tally.passed;
        total.failed += tally.failed;
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        bail!("{} tests failed", total.failed);
    }
    if total.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

impl Suite {
    fn run(self) -> Result<Tally> {
        match self {
            Suite::Check => one(&["xtask", "check"]),
            Suite::Up => one(&["xtask", "up", "--once"]),
            Suite::Unit => cargo_test(&[
                "--workspace",
                "--exclude=ebpf-programs",
                "--exclude=tests-netns",
                "--exclude=tests-agent",
                "--exclude=tests-kubectl",
                "--exclude=tests-e2e",
            ]),
            Suite::Netns => cargo_test(&["--package=tests-netns", "--package=tests-agent"]),
            Suite::Kubectl => cargo_test(&["--package=tests-kubectl"]),
            Suite::E2e => cargo_test(&["--package=tests-e2e"]),
        }
    }
}

/// Counts a command of ours as one test.
fn one(arguments: &[&str]) -> Result<Tally> {
    let status = Command::new("cargo")
        .args(arguments)
        .current_dir(workspace::root())
        .status()
        .with_context(|| format!("cannot start cargo {}", arguments.join(" ")))?;
    let passed = u64::from(status.success());
    Ok(Tally {
        passed,
        failed: 1 - passed,
    })
}

fn cargo_test(arguments: &[&str]) -> Result<Tally> {
    let mut child = Command::new("cargo")
        .args(["test", "--quiet", "--no-fail-fast"])
        .args(arguments)
        .current_dir(workspace::root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let output = child
        .stdout
        .take()
        .expect("stdout was piped two lines above");
    let mut tally = Tally::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read the output of cargo test")?;
        println!("{line}");
        tally.add(&line);
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    if !status.success() && tally.failed == 0 {
        // It did not compile, or a test took the whole process down.
        tally.failed = 1;
    }
    Ok(tally)
}

impl Tally {
    /// Adds what a line like `test result: ok. 3 passed; 0 failed; 0 ignored; …` counts.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        for part in result.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(word)) = (words.next(), words.next()) else {
                continue;
            };
            match (number.parse::<u64>(), word) {
                (Ok(number), "passed") => self.passed += number,
                (Ok(number), "failed") => self.failed += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed_and_others_ignored() {
        let mut tally = Tally::default();
        tally.add("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        tally.add("test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.01s");
        tally.add("12 passed; this line is a test's own output");
        assert_eq!(
            tally,
            Tally {
                passed: 5,
                failed: 4
            }
        );
    }
}
