//! How many tests passed and failed, by what the programs that run them print.

use std::io::{BufRead, BufReader};
use std::ops::{Add, AddAssign};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
}

/// Runs a command that runs tests, and shows what it prints as it comes.
pub fn of(command: &mut Command) -> Result<Tally> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the tests")?;
    let output = child
        .stdout
        .take()
        .expect("stdout was piped three lines above");
    let mut tally = Tally::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what the tests print")?;
        println!("{line}");
        tally.count(&line);
    }
    let status = child.wait().context("cannot wait for the tests")?;
    if !status.success() && tally.failed == 0 {
        // They did not compile, or one took the whole process down.
        tally.failed = 1;
    }
    Ok(tally)
}

impl Tally {
    /// Adds what a line like `test result: ok. 3 passed; 0 failed; 0 ignored; …` counts.
    fn count(&mut self, line: &str) {
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

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl Add for Tally {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed_and_others_ignored() {
        let mut tally = Tally::default();
        tally.count("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        tally.count("test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.01s");
        tally.count("12 passed; this line is a test's own output");
        assert_eq!(
            tally,
            Tally {
                passed: 5,
                failed: 4
            }
        );
    }
}
