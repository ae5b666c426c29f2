//! `check`: what a reviewer need not look for: formatting, lints, and the architecture's own rules.

mod document;
mod edges;
mod files;

use anyhow::{Result, bail};

use crate::command::Run;
use crate::{coverage, workspace};

/// The programs build only for the BPF target; their build lints them.
const CLIPPY: &[&str] = &[
    "clippy",
    "--quiet",
    "--workspace",
    "--exclude=ebpf-programs",
    "--all-targets",
    "--",
    "-Dwarnings",
];

pub fn run() -> Result<()> {
    let metadata = workspace::metadata()?;
    let mut faults = Vec::new();
    edges::check(&metadata, &mut faults);
    files::check(&metadata, &mut faults)?;
    document::check(&mut faults)?;
    // Each part speaks, so that one run shows everything there is to mend.
    faults.extend(failure(&["fmt", "--all", "--check"]));
    faults.extend(failure(CLIPPY));
    let page = coverage::check().err();
    faults.extend(page.map(|error| format!("{error:#}")));
    for fault in &faults {
        eprintln!("check: {fault}");
    }
    if !faults.is_empty() {
        bail!("{} faults, listed above", faults.len());
    }
    println!(
        "check: formatting, lints, dependency rules, file rules and the API's coverage page hold"
    );
    Ok(())
}

fn failure(arguments: &[&str]) -> Option<String> {
    let outcome = Run::new("cargo")
        .args(arguments)
        .directory(workspace::root())
        .status();
    outcome.err().map(|error| format!("{error:#}"))
}
