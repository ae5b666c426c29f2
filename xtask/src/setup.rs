//! `setup`: installs what is missing and nothing else, and says each thing that it installs.

mod kubectl;
mod packages;
mod python;
mod toolchain;

use anyhow::{Result, bail};

pub use kubectl::find as find_kubectl;

pub fn run() -> Result<()> {
    packages::install(packages::TOOLS)?;
    toolchain::install()?;
    kubectl::install()?;
    kubectl::install_older();
    python::install()?;
    println!("setup: everything is there");
    Ok(())
}

/// Fails with the way out unless this process may create namespaces and load programs.
pub fn require_root(command: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "`cargo xtask {command}` needs root: run it with sudo -E (it makes network namespaces and loads eBPF programs)"
        );
    }
    Ok(())
}
