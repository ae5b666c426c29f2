//! Running other programs, with errors that show the command line and what it said.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// A program in the environment of whoever called `cargo xtask`. Cargo told this one which package it is of; build scripts
/// (ring's) that look at these would take them for another environment, and a cargo below this one would build everything
/// above them anew, as would the next one that the user calls.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    let of_package =
        |key: &String| key.starts_with("CARGO_PKG_") || key.starts_with("CARGO_MANIFEST_");
    for (key, _) in std::env::vars().filter(|(key, _)| of_package(key)) {
        command.env_remove(key);
    }
    command
}

/// A command line that is run to its end.
#[derive(Debug)]
pub struct Run {
    program: OsString,
    arguments: Vec<OsString>,
    command: Command,
}

impl Run {
    pub fn new(program: impl AsRef<OsStr>) -> Run {
        Run {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            command: command(program),
        }
    }

    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Run {
        for argument in arguments {
            self.arguments.push(argument.as_ref().to_owned());
            self.command.arg(argument);
        }
        self
    }

    pub fn directory(mut self, directory: impl AsRef<Path>) -> Run {
        self.command.current_dir(directory);
        self
    }

    pub fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Run {
        self.command.env(name, value);
        self
    }

    /// Runs with the terminal's own output and fails unless the program succeeds.
    pub fn status(mut self) -> Result<()> {
        let status = self
            .command
            .status()
            .with_context(|| format!("cannot start `{self}`"))?;
        if !status.success() {
            bail!("`{self}` failed with {status}");
        }
        Ok(())
    }

    /// Runs with the output caught, whatever the outcome.
    pub fn output(mut self) -> Result<Output> {
        self.command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{self}`"))
    }

    /// Returns the trimmed standard output; a failure shows the last lines of what was said.
    pub fn text(mut self) -> Result<String> {
        let output = self
            .command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{self}`"))?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            bail!(
                "`{self}` failed with {}: {}",
                output.status,
                last_lines(&said, 15)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
    }

    /// Returns the standard output; warnings and errors go to the terminal as they come.
    pub fn caught_stdout(mut self) -> Result<Vec<u8>> {
        let output = self
            .command
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot start `{self}`"))?;
        if !output.status.success() {
            bail!("`{self}` failed with {}", output.status);
        }
        Ok(output.stdout)
    }

    pub fn succeeds(self) -> bool {
        self.output().is_ok_and(|output| output.status.success())
    }
}

impl fmt::Display for Run {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.program.to_string_lossy())?;
        for argument in &self.arguments {
            write!(formatter, " {}", argument.to_string_lossy())?;
        }
        Ok(())
    }
}

pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Looks a program up in PATH and in the sbin folders, which a plain user's PATH lacks on Debian.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}
