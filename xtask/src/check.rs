//! `check`: what a reviewer need not look for: formatting, lints, and the architecture's own rules.

mod document;
mod edges;
mod files;

use anyhow::{Result, bail};

use crate::command::Run;
use crate::workspace;

pub fn run() -> Result<()> {
    let metadata = workspace::metadata()?;
    let mut faults = Vec::new();
    edges::check(&metadata, &mut faults);
    files::check(&metadata, &mut faults)?;
    document::check(&mut faults)?;
    for fault in &faults {
        eprintln!("check: {fault}");
    }
    Run::new("cargo")
        .args(["fmt", "--all", "--check"])
        .directory(workspace::root())
        .status()?;
    // The programs build only for the BPF target; their build lints them.
    Run::new("cargo")
        .args([
            "clippy",
            "--quiet",
            "--workspace",
            "--exclude",
            "ebpf-programs",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ])
        .directory(workspace::root())
        .status()?;
    if !faults.is_empty() {
        bail!(
            "{} faults against the rules of ARCHITECTURE.md, listed above",
            faults.len()
        );
    }
    println!("check: formatting, lints, dependency rules and file rules hold");
    Ok(())
}
