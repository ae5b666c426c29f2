//! Rules of single files: a header that says the idea, a length that fits one idea, no stray `unsafe`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::Metadata;

use crate::command::Run;
use crate::workspace;

const MAX_LINES: usize = 800;

/// Where `unsafe` may stand; everything else forbids it to the compiler.
const UNSAFE_ALLOWED: &[&str] = &[
    "ebpf/abi/",
    "ebpf/programs/",
    "node-agent/maps/",
    "node-agent/host/",
    // Measures with system calls that no safe wrapper offers.
    "tests/bench/",
    // What libFuzzer calls is exported by name, which counts as unsafe.
    "tests/fuzz/src/main.rs",
    // One file without any dependency, so it must call signal(2) by itself.
    "deploy/examples/hello/",
];

pub fn check(metadata: &Metadata, faults: &mut Vec<String>) -> Result<()> {
    for path in rust_files()? {
        let text = fs::read_to_string(workspace::root().join(&path))
            .with_context(|| format!("cannot read {}", path.display()))?;
        check_file(&path.to_string_lossy(), &text, faults);
    }
    for package in metadata.workspace_packages() {
        let manifest = fs::read_to_string(&package.manifest_path)?;
        if !inherits_lints(&manifest) {
            faults.push(format!(
                "{}: needs `[lints]` with `workspace = true`",
                relative(package.manifest_path.as_std_path())
            ));
        }
        for target in &package.targets {
            let is_root = target.is_lib() || target.is_bin();
            let path = relative(target.src_path.as_std_path());
            if is_root
                && !unsafe_allowed(&path)
                && !fs::read_to_string(&target.src_path)?.contains("#![forbid(unsafe_code)]")
            {
                faults.push(format!("{path}: needs #![forbid(unsafe_code)]"));
            }
        }
    }
    Ok(())
}

/// Rust files that git tracks or would track: what lies in target is nobody's concern.
fn rust_files() -> Result<Vec<PathBuf>> {
    let list = Run::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "--",
            "*.rs",
        ])
        .directory(workspace::root())
        .text()?;
    Ok(list
        .lines()
        .map(PathBuf::from)
        .filter(|path| workspace::root().join(path).is_file())
        .collect())
}

fn relative(path: &Path) -> String {
    path.strip_prefix(workspace::root())
        .unwrap_or(path)
        .display()
        .to_string()
}

fn unsafe_allowed(path: &str) -> bool {
    UNSAFE_ALLOWED.iter().any(|folder| path.starts_with(folder))
}

fn inherits_lints(manifest: &str) -> bool {
    manifest
        .split("[lints]")
        .nth(1)
        .and_then(|section| section.trim_start().lines().next())
        .is_some_and(|line| line.replace(' ', "") == "workspace=true")
}

fn check_file(path: &str, text: &str, faults: &mut Vec<String>) {
    if !text.starts_with("//!") {
        faults.push(format!("{path}: must open with `//!` and its one idea"));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        faults.push(format!(
            "{path}: {lines} lines are more than {MAX_LINES}; split it by ideas"
        ));
    }
    if !unsafe_allowed(path) {
        for (index, line) in text.lines().enumerate() {
            if has_unsafe(line) {
                faults.push(format!(
                    "{path}:{}: `unsafe` is allowed only in {}",
                    index + 1,
                    UNSAFE_ALLOWED[..4].join(", ")
                ));
            }
        }
    }
}

fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    [
        "unsafe {",
        "unsafe fn",
        "unsafe impl",
        "unsafe extern",
        "unsafe trait",
    ]
    .iter()
    .any(|form| {
        // Within quotes it is somebody's text (this very list), not code.
        code.find(form)
            .is_some_and(|at| code[..at].matches('"').count().is_multiple_of(2))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(path: &str, text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        check_file(path, text, &mut faults);
        faults
    }

    #[test]
    fn a_file_without_a_header_is_named() {
        assert_eq!(faults_of("a/b.rs", "fn main() {}").len(), 1);
        assert!(faults_of("a/b.rs", "//! One idea.\nfn main() {}").is_empty());
    }

    #[test]
    fn too_long_a_file_is_named() {
        let long = "//! x\n".repeat(MAX_LINES + 1);
        assert!(faults_of("a/b.rs", &long)[0].contains("801 lines"));
    }

    #[test]
    fn unsafe_outside_its_crates_is_named_with_its_line() {
        let text = "//! x\nfn f() {\n    unsafe { g() }\n}\n";
        assert!(
            faults_of("node-agent/model/src/x.rs", text)[0]
                .starts_with("node-agent/model/src/x.rs:3:")
        );
        assert!(faults_of("node-agent/maps/src/x.rs", text).is_empty());
        assert!(faults_of("a.rs", "//! x\n// an unsafe { in a comment\n").is_empty());
        assert!(faults_of("a.rs", "//! x\nlet s = \"unsafe {\";\n").is_empty());
    }

    #[test]
    fn lints_are_inherited_only_by_the_exact_table() {
        assert!(inherits_lints("[lints]\nworkspace = true\n"));
        assert!(!inherits_lints("[lints.rust]\nx = 1\n"));
        assert!(!inherits_lints("[lints]\nrust.x = 1\n"));
    }
}
