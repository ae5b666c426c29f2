//! `bench`: hands a benchmark's name and flags to the program in tests/bench, built for speed.

use anyhow::Result;
use clap::Args;

use crate::{command::Run, setup, workspace};

#[derive(Debug, Args)]
pub struct Options {
    /// The benchmark's name and its flags; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    arguments: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    setup::require_root("bench")?;
    Run::new("cargo")
        .args(["run", "--quiet", "--release", "-p", "tests-bench", "--"])
        .args(&options.arguments)
        .directory(workspace::root())
        .status()
}
