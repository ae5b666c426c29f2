//! `bench`: hands a benchmark's name and flags to the program in tests/bench, or `api`'s to that in tests/api-bench, built
//! for speed.

use anyhow::Result;
use clap::Args;

use crate::{command::Run, setup, workspace};

#[derive(Debug, Args)]
pub struct Options {
    /// The benchmark's name and its flags; `--help` lists them, and `api --help` those of `api`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    arguments: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    match options.arguments.split_first() {
        Some((name, flags)) if name == "api" => {
            cargo(&["build", "--release", "-p", "control-plane-daemon"], &[])?;
            cargo(&["run", "--release", "-p", "tests-api-bench", "--"], flags)
        }
        _ => {
            setup::require_root("bench")?;
            let program = ["run", "--release", "-p", "tests-bench", "--"];
            cargo(&program, &options.arguments)
        }
    }
}

fn cargo(command: &[&str], flags: &[String]) -> Result<()> {
    Run::new("cargo")
        .args(["--quiet"])
        .args(command)
        .args(flags)
        .directory(workspace::root())
        .status()
}
