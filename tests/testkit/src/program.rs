//! The programs of this workspace, as they are now.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

/// Names the folder of the programs where all are built already: `cargo xtask test` builds them once, with what tests.
const PROGRAMS: &str = "FAIRLEAD_PROGRAMS";

/// The program `name`, which the package builds.
///
/// # Errors
///
/// When it does not build.
pub fn program(package: &str, name: &str) -> Result<PathBuf> {
    let folder = match std::env::var_os(PROGRAMS) {
        Some(folder) => folder.into(),
        None => {
            build_once(package)?;
            folder()?
        }
    };
    let program = folder.join(name);
    ensure!(program.exists(), "{} was not built", program.display());
    Ok(program)
}

/// The program of a package that has this feature; it lies beside the usual one, with the feature's name behind its own.
///
/// # Errors
///
/// When it does not build.
pub fn program_with(package: &str, name: &str, feature: &str) -> Result<PathBuf> {
    let usual = program(package, name)?;
    let folder = usual.parent().context("a program lies in a folder")?;
    let (kept, other) = (
        folder.join(format!("{name}-usual")),
        folder.join(format!("{name}-{feature}")),
    );
    std::fs::rename(&usual, &kept)?;
    let feature = format!("--features={package}/{feature}");
    let built = match std::env::var_os(PROGRAMS) {
        // With a test and out of everything, as what is there was built: the libraries below have the same features then.
        Some(_) => {
            let (bin, test) = (format!("--bin={name}"), format!("--test={}", own_name()?));
            build(&[
                "--workspace",
                "--exclude=ebpf-programs",
                &bin,
                &test,
                &feature,
            ])
        }
        None => build(&[&format!("--package={package}"), &feature]),
    };
    if built.is_ok() {
        std::fs::rename(&usual, &other)?;
    }
    // The name belongs to the usual one.
    std::fs::rename(&kept, &usual)?;
    built.map(|()| other)
}

/// Where cargo leaves programs: the test lies in its folder `deps`.
fn folder() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the test's own file")?;
    let folder = own.ancestors().nth(2).context("the test lies in target")?;
    Ok(folder.to_owned())
}

/// The name of the test that asks: cargo puts a hash behind it.
fn own_name() -> Result<String> {
    let own = std::env::current_exe().context("find the test's own file")?;
    let name = own.file_stem().and_then(|stem| stem.to_str());
    let name = name.and_then(|stem| Some(stem.rsplit_once('-')?.0.to_owned()));
    name.context("the test's file has no hash in its name")
}

fn build_once(package: &str) -> Result<()> {
    static BUILT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if !built.contains(package) {
        build(&[&format!("--package={package}")])?;
        built.insert(package.to_owned());
    }
    Ok(())
}

fn build(arguments: &[&str]) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Cargo tells a test which package it is of. Build scripts (ring's) that look at these would take them for another
    // environment, and everything above them would be built anew by each of the two cargos in turn.
    let of_package =
        |key: &String| key.starts_with("CARGO_PKG_") || key.starts_with("CARGO_MANIFEST_");
    for (key, _) in std::env::vars().filter(|(key, _)| of_package(key)) {
        cargo.env_remove(key);
    }
    let status = cargo
        .args(["build", "--quiet"])
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .status()
        .context("start cargo")?;
    ensure!(
        status.success(),
        "cargo build {} ended with {status}",
        arguments.join(" ")
    );
    Ok(())
}
