//! Where things are in this work tree.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::Run;

/// The folder of the virtual workspace's Cargo.toml.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in a folder of the workspace")
}

pub fn target() -> PathBuf {
    let own = std::env::var_os("CARGO_TARGET_DIR").and_then(|own| std::path::absolute(own).ok());
    own.unwrap_or_else(|| root().join("target"))
}

/// Tools that `setup` fetched because the machine had none.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// Names the folder of the built programs to tests, which build what they start unless somebody has done it.
pub const PROGRAMS: &str = "FAIRLEAD_PROGRAMS";

/// Where `cargo build` of the default profile leaves binaries.
pub fn programs() -> PathBuf {
    target().join("debug")
}

pub fn binary(name: &str) -> PathBuf {
    programs().join(name)
}

pub fn metadata() -> Result<cargo_metadata::Metadata> {
    cargo_metadata::MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .exec()
        .context("cargo metadata")
}

/// Builds the given packages with their binaries, quietly unless something fails.
pub fn build(packages: &[&str]) -> Result<()> {
    if std::env::var_os(PROGRAMS).is_some() {
        return Ok(());
    }
    let mut run = Run::new("cargo")
        .args(["build", "--quiet"])
        .directory(root());
    for package in packages {
        run = run.args(["-p", package]);
    }
    run.status()
}
