//! ARCHITECTURE.md stays short, and every path that it names exists.

use std::fs;

use anyhow::{Context, Result};

use crate::workspace;

const NAME: &str = "ARCHITECTURE.md";
const MAX_LINES: usize = 199;
const TOP_FOLDERS: &[&str] = &[
    "control-plane/",
    "node-agent/",
    "ebpf/",
    "xtask/",
    "tests/",
    "deploy/",
    "docs/",
    ".ci/",
];

pub fn check(faults: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(workspace::root().join(NAME))
        .with_context(|| format!("cannot read {NAME}"))?;
    let lines = text.lines().count();
    if lines > MAX_LINES {
        faults.push(format!(
            "{NAME}: {lines} lines; it must stay below {}",
            MAX_LINES + 1
        ));
    }
    for path in paths(&text) {
        if !workspace::root().join(&path).exists() {
            faults.push(format!("{NAME}: `{path}` does not exist"));
        }
    }
    Ok(())
}

/// The words in backticks that start with one of our top folders.
fn paths(text: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for line in text.lines() {
        for (index, word) in line.split('`').enumerate() {
            let is_path = TOP_FOLDERS.iter().any(|folder| word.starts_with(folder));
            // Every second piece lies between two backticks. Patterns and commands are no paths.
            if index % 2 == 1 && is_path && !word.contains(['*', ' ', '{']) {
                paths.push(word.to_string());
            }
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_the_quoted_words_below_our_folders() {
        let text = "see `ebpf/abi` and `ebpf/*`, not ebpf/packet nor `cargo`; `docs/maps.md` too";
        assert_eq!(paths(text), ["ebpf/abi", "docs/maps.md"]);
    }
}
