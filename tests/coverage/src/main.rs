//! Writes docs/api-coverage.md from a record, or compares: `tests-coverage [--check] [--record DIR]`.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use tests_coverage::page::Coverage;
use tests_coverage::record;

/// Which test asks the API server for what.
#[derive(Debug, Parser)]
#[command(name = "tests-coverage")]
struct Arguments {
    /// The folder that the tests recorded into; without it, the page itself is read
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Write nothing; fail when the page is not what would be written
    #[arg(long)]
    check: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("docs/api-coverage.md");
    let page = fs::read_to_string(&path).unwrap_or_default();
    let coverage = match &arguments.record {
        Some(folder) => Coverage::of(&record::read(folder)?),
        None => Coverage::read(&page),
    };
    ensure!(!coverage.tests().is_empty(), "no test asked for anything");
    let gone: Vec<&str> = coverage
        .tests()
        .into_iter()
        .filter(|test| !exists(&root, test))
        .collect();
    ensure!(
        gone.is_empty(),
        "docs/api-coverage.md names tests that are gone: {}: run `cargo xtask api-coverage`",
        gone.join(", ")
    );
    let wanted = coverage.render();
    if wanted == page {
        println!("docs/api-coverage.md is current");
        return Ok(());
    }
    if arguments.check {
        bail!(
            "docs/api-coverage.md is not what the kinds and the tests give: run `cargo xtask api-coverage`"
        );
    }
    fs::write(&path, wanted).with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote docs/api-coverage.md");
    Ok(())
}

/// Whether the sources name this test, as a function, one of a macro's, or a file of cases.
fn exists(root: &Path, test: &str) -> bool {
    let Some((suite, name)) = test.split_once("::") else {
        return false;
    };
    let folder = root.join("tests/kubectl");
    if suite == "cases" {
        return folder.join(format!("cases/{name}.txt")).is_file();
    }
    let source = fs::read_to_string(folder.join(format!("tests/{suite}.rs")));
    source.is_ok_and(|text| text.contains(name))
}
