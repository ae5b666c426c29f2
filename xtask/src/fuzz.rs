//! `fuzz`: the targets of tests/fuzz under libFuzzer, which keeps every input that reaches new code.
//!
//! Any toolchain will do: the coverage that libFuzzer needs is a pass of LLVM, which `tests/fuzz/rustc` asks for.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::Run;
use crate::workspace;

const BINARY: &str = "fairlead-fuzz";
/// Longer than any frame without offloads, and than any file that an operator writes for a node.
const LONGEST_INPUT: usize = 4096;

#[derive(Debug, Args)]
pub struct Options {
    /// Only these targets; all without any
    targets: Vec<String>,
    /// How long each runs
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u64,
}

/// Runs every target; a fault is shown with the input that leads to it, and the others still run.
pub fn run(options: &Options) -> Result<()> {
    let binary = build()?;
    let known = targets()?;
    for target in &options.targets {
        if !known.contains(target) {
            bail!("{target} is no target: choose among {}", known.join(", "));
        }
    }
    let wanted = |target: &&String| options.targets.is_empty() || options.targets.contains(target);
    let mut failed = Vec::new();
    for target in known.iter().filter(wanted) {
        println!("=== {target}, {} s", options.seconds);
        if let Err(error) = fuzz(&binary, target, options.seconds) {
            eprintln!("{error:#}");
            failed.push(target.as_str());
        }
    }
    if !failed.is_empty() {
        bail!(
            "{}: the inputs that lead there are in {}; run one with FUZZ_TARGET=NAME {} FILE",
            failed.join(", "),
            folder().join("faults").display(),
            binary.display()
        );
    }
    Ok(())
}

/// Where corpora and faults are kept from run to run.
fn folder() -> PathBuf {
    workspace::target().join("fuzz")
}

fn build() -> Result<PathBuf> {
    Run::new("cargo")
        .args([
            "build",
            "--quiet",
            "-p",
            "tests-fuzz",
            "--features=libfuzzer",
        ])
        .directory(workspace::root())
        .variable(
            "RUSTC_WORKSPACE_WRAPPER",
            workspace::root().join("tests/fuzz/rustc"),
        )
        .status()?;
    Ok(workspace::binary(BINARY))
}

/// The names that `ALL` of tests/fuzz lists: the binary tells them to whoever names none.
fn targets() -> Result<Vec<String>> {
    let said = Run::new(workspace::binary(BINARY))
        .variable("FUZZ_LIST", "1")
        .text()?;
    let names: Vec<String> = said.lines().map(str::to_owned).collect();
    if names.is_empty() {
        bail!("{BINARY} lists no targets");
    }
    Ok(names)
}

fn fuzz(binary: &Path, target: &str, seconds: u64) -> Result<()> {
    let place = |name: &str| -> Result<PathBuf> {
        let path = folder().join(name).join(target);
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    };
    let (corpus, seeds, faults) = (place("corpus")?, place("seeds")?, place("faults")?);
    Run::new(binary)
        .args([
            format!("-max_total_time={seconds}"),
            format!("-max_len={LONGEST_INPUT}"),
            format!("-artifact_prefix={}/", faults.display()),
            // An input that takes seconds is a fault too: whoever sends it needs no more of them.
            "-timeout=5".to_owned(),
            "-rss_limit_mb=1024".to_owned(),
            "-reduce_inputs=1".to_owned(),
            "-print_final_stats=1".to_owned(),
            "-verbosity=0".to_owned(),
        ])
        .args([&corpus, &seeds])
        .variable("FUZZ_TARGET", target)
        .variable("FUZZ_SEEDS", &seeds)
        .status()
}
