//! `api-coverage`: docs/api-coverage.md from what the tests of clients really ask the API server for.

use std::fs;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::Run;
use crate::{setup, test, workspace};

#[derive(Debug, Args)]
pub struct Options {
    /// Run no test and write nothing; fail when the page names other kinds, verbs or tests than there are
    #[arg(long)]
    check: bool,
}

/// Names the folder of the record to them.
const VARIABLE: &str = "FAIRLEAD_API_RECORD";

pub fn run(options: &Options) -> Result<()> {
    if options.check {
        return check();
    }
    setup::run()?;
    let folder = workspace::target().join("api-record");
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let tally = test::clients(&[(VARIABLE, folder.clone().into())])?;
    if tally.failed > 0 {
        bail!(
            "{} tests failed: what they ask for is no coverage",
            tally.failed
        );
    }
    page()
        .args(["--record"])
        .args([folder.as_os_str()])
        .status()
}

/// Compares the page with the kinds that are served and the tests that there are.
pub fn check() -> Result<()> {
    page().args(["--check"]).status()
}

fn page() -> Run {
    Run::new("cargo")
        .args(["run", "--quiet", "--package=tests-coverage", "--"])
        .directory(workspace::root())
}
