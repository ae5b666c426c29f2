//! The Python client of Kubernetes, in a folder of its own: no other program's packages are touched.

use anyhow::{Context, Result};

use super::{kubectl, packages};
use crate::command::Run;
use crate::workspace;

/// Follows the API that is served: 1.37.
const CLIENT: &str = "kubernetes==37.0.2";

pub fn install() -> Result<()> {
    let folder = workspace::tools().join("python");
    if folder.join("kubernetes").is_dir() {
        return Ok(());
    }
    packages::install(kubectl::PYTHON)?;
    println!(
        "setup: installing the Python package {CLIENT} into {}",
        folder.display()
    );
    // With a target pip needs no virtual environment, for which Debian wants one more package.
    Run::new("python3")
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args(["--root-user-action=ignore", "--no-compile", "--target"])
        .args([folder.as_os_str()])
        .args([CLIENT])
        .text()
        .context("cannot install the Python client")
        .map(drop)
}
