//! One build of everything that is tested.
//!
//! Each `cargo test -p …` would resolve other features of the libraries below, and so build most of the workspace anew.

use std::path::PathBuf;

use anyhow::{Context, Result};
use cargo_metadata::{Message, PackageId};

use super::tally::{self, Tally};
use super::{Variables, workspace};
use crate::command::{Run, command};

/// All crates but the eBPF programs, which node-agent-maps builds; and what their tests need to be built.
pub const EVERYTHING: &[&str] = &["--workspace", "--exclude=ebpf-programs"];

/// A program that runs tests.
#[derive(Debug)]
pub struct Executable {
    pub package: String,
    /// As `cargo test` takes it: `--lib`, `--bin=NAME` or `--test=NAME`.
    pub target: String,
    pub path: PathBuf,
    /// Where cargo would start it: the folder of its package.
    pub folder: PathBuf,
}

impl Executable {
    pub fn run(&self, variables: Variables) -> Result<Tally> {
        let name = format!("{} {}", self.package, self.target);
        println!("\n--- {name}");
        let mut tests = command(&self.path);
        tests.arg("--quiet").current_dir(&self.folder);
        tests.env(workspace::PROGRAMS, workspace::programs());
        tests.envs(variables.iter().map(|(name, value)| (name, value)));
        let tally = tally::of(&mut tests)?;
        if tally.failed > 0 {
            println!("--- to run them again: cargo test -p {name}");
        }
        Ok(tally)
    }
}

/// Builds the programs of the workspace into target/debug, and answers those that run tests, by package and target.
pub fn build() -> Result<Vec<Executable>> {
    let output = Run::new("cargo")
        .args(["build", "--quiet", "--bins", "--tests"])
        .args(["--message-format=json-render-diagnostics"])
        .args(EVERYTHING)
        .directory(workspace::root())
        .caught_stdout()?;
    let packages = workspace::metadata()?.packages;
    let mut executables = Vec::new();
    for message in Message::parse_stream(output.as_slice()) {
        let Message::CompilerArtifact(artifact) = message.context("what cargo built")? else {
            continue;
        };
        let Some(path) = artifact.executable.filter(|_| artifact.profile.test) else {
            continue;
        };
        let own = |package: &&cargo_metadata::Package| package.id == artifact.package_id;
        let package = packages.iter().find(own);
        let package = package.with_context(|| unknown(&artifact.package_id))?;
        let folder = package.manifest_path.parent();
        executables.push(Executable {
            package: package.name.to_string(),
            target: argument(&artifact.target),
            path: path.into(),
            folder: folder.context("a manifest lies in a folder")?.into(),
        });
    }
    executables.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(executables)
}

fn unknown(package: &PackageId) -> String {
    format!("cargo built a test of {package}, which is none of the workspace")
}

fn argument(target: &cargo_metadata::Target) -> String {
    if target.is_test() {
        format!("--test={}", target.name)
    } else if target.is_bin() {
        format!("--bin={}", target.name)
    } else {
        "--lib".to_owned()
    }
}
