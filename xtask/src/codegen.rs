//! `codegen`: the tables of the API's types, written from what Kubernetes publishes about them.
//!
//! Field types, list kinds and merge keys come from the Python package `kubernetes-validate`, which carries the
//! JSON schemas of one release with their `x-kubernetes-*` extensions; the values of enumerations, which they lack, are
//! listed beside this file; protobuf's field numbers come from the crate
//! `k8s-pb`. Both are fetched by their registries' own clients at pinned versions, so the same tables come out anywhere.

mod enums;
mod openapi;
mod protobuf;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Map, Value};

use crate::command::Run;
use crate::workspace;

#[derive(Debug, Args)]
pub struct Options {
    /// Write nothing; fail when a table is not what would be written
    #[arg(long)]
    check: bool,
}

/// Where the tables stand, below the root.
const FOLDER: &str = "control-plane/registry/src/schema";
const WHEEL: &str = "kubernetes-validate";
const WHEEL_VERSION: &str = "1.37.0";
const CRATE: &str = "k8s-pb";
const CRATE_VERSION: &str = "0.9.0";

const UNPACK: &str = r#"
import glob, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/kubernetes_validate-*.whl")[0])
name = "kubernetes_validate/kubernetes-json-schema/v" + sys.argv[2] + "-local/_definitions.json"
open(sys.argv[1] + "/definitions.json", "wb").write(wheel.read(name))
"#;

pub fn run(options: &Options) -> Result<()> {
    let folder = workspace::target().join("codegen");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut definitions = openapi::table(&published(&folder)?)?;
    enums::add(&mut definitions)?;
    let numbers = protobuf::table(&messages(&folder)?, &definitions)?;
    let mut stale = Vec::new();
    for (name, table) in [
        ("definitions.json", &definitions),
        ("protobuf.json", &numbers),
    ] {
        let path = workspace::root().join(FOLDER).join(name);
        let text = lines(table);
        if fs::read_to_string(&path).is_ok_and(|now| now == text) {
            println!("codegen: {FOLDER}/{name} is current");
        } else if options.check {
            stale.push(format!("{FOLDER}/{name}"));
        } else {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            println!("codegen: wrote {FOLDER}/{name}, {} types", table.len());
        }
    }
    if !stale.is_empty() {
        bail!(
            "{} differ from what {WHEEL} {WHEEL_VERSION} and {CRATE} {CRATE_VERSION} give: run `cargo xtask codegen`",
            stale.join(" and ")
        );
    }
    Ok(())
}

/// The JSON schemas of all types, by their OpenAPI names.
fn published(folder: &Path) -> Result<Map<String, Value>> {
    let file = folder.join("definitions.json");
    if !file.is_file() {
        Run::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--no-deps"])
            .args(["--disable-pip-version-check", "--dest"])
            .args([folder.as_os_str()])
            .args([format!("{WHEEL}=={WHEEL_VERSION}")])
            .text()?;
        Run::new("python3")
            .args(["-c", UNPACK])
            .args([folder.as_os_str()])
            .args([WHEEL_VERSION])
            .text()
            .context("cannot unpack the schemas")?;
    }
    let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut document: Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", file.display()))?;
    match document["$defs"].take() {
        Value::Object(definitions) => Ok(definitions),
        _ => bail!("{} has no $defs", file.display()),
    }
}

/// The source folder of the crate with the protobuf messages, as cargo fetched it for a package that depends on it.
fn messages(folder: &Path) -> Result<PathBuf> {
    let package = folder.join("messages");
    fs::create_dir_all(package.join("src"))?;
    fs::write(package.join("src/lib.rs"), "")?;
    let manifest = package.join("Cargo.toml");
    fs::write(
        &manifest,
        format!(
            "[package]\nname = \"messages\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n{CRATE} = \"={CRATE_VERSION}\"\n\n[workspace]\n"
        ),
    )?;
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(&manifest)
        .exec()
        .with_context(|| format!("cargo cannot fetch {CRATE} {CRATE_VERSION}"))?;
    let found = metadata.packages.iter().find(|p| p.name.as_str() == CRATE);
    let found = found.with_context(|| format!("cargo knows no {CRATE}"))?;
    let root = found
        .manifest_path
        .parent()
        .context("a manifest has a folder")?;
    Ok(root.join("src").into_std_path_buf())
}

/// One type a line, sorted, so that a new release reads as a diff of types.
fn lines(table: &Map<String, Value>) -> String {
    let mut names: Vec<_> = table.iter().collect();
    names.sort_by_key(|(name, _)| *name);
    let lines: Vec<String> = names
        .iter()
        .map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())))
        .collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}
