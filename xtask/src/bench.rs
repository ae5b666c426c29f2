//! `bench`: hands a benchmark's name and flags to the program in tests/bench, or `api`'s to that in tests/api-bench, built
//! for speed.

use std::path::Path;

use anyhow::Result;
use clap::Args;

use crate::{command::Run, program, setup, workspace};

/// Flags that name a program of others.
const PROGRAMS: &[&str] = &["--etcd", "--flanneld", "--kube-apiserver", "--kube-proxy"];

#[derive(Debug, Args)]
pub struct Options {
    /// The benchmark's name and its flags; `--help` lists them, and `api --help` those of `api`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    arguments: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let arguments = with_programs(&options.arguments)?;
    match arguments.split_first() {
        Some((name, flags)) if name == "api" => {
            cargo(&["build", "--release", "-p", "control-plane-daemon"], &[])?;
            cargo(&["run", "--release", "-p", "tests-api-bench", "--"], flags)
        }
        _ => {
            setup::require_root("bench")?;
            let program = ["run", "--release", "-p", "tests-bench", "--"];
            cargo(&program, &arguments)
        }
    }
}

/// The same with paths that hold where a bench is run, which is not where it was asked for.
fn with_programs(arguments: &[String]) -> Result<Vec<String>> {
    let path = |flag: &str, path: &str| {
        let found = program::named(flag, Path::new(path))?;
        anyhow::Ok(found.display().to_string())
    };
    let mut before = "";
    let mut changed = Vec::new();
    for argument in arguments {
        let (flag, value) = argument.split_once('=').unwrap_or((argument, ""));
        changed.push(if PROGRAMS.contains(&before) {
            path(before, argument)?
        } else if PROGRAMS.contains(&flag) && argument != flag {
            format!("{flag}={}", path(flag, value)?)
        } else {
            argument.clone()
        });
        before = argument;
    }
    Ok(changed)
}

fn cargo(command: &[&str], flags: &[String]) -> Result<()> {
    Run::new("cargo")
        .args(["--quiet"])
        .args(command)
        .args(flags)
        .directory(workspace::root())
        .status()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(line: &str) -> Result<Vec<String>> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        with_programs(&words)
    }

    #[test]
    fn a_program_gets_a_path_that_holds_everywhere() {
        let shell = Path::new("/bin/sh").canonicalize().unwrap();
        let shell = shell.display().to_string();
        let flagged = format!("--etcd={shell}");
        assert_eq!(
            changed("overlay --quick --flanneld /bin/../bin/sh --json a=b").unwrap(),
            ["overlay", "--quick", "--flanneld", &shell, "--json", "a=b"]
        );
        assert_eq!(changed("api --etcd=/bin/sh").unwrap(), ["api", &flagged]);
    }

    #[test]
    fn what_is_no_program_is_an_error_that_names_the_flag() {
        for line in [
            "overlay --flanneld /etc/passwd",
            "overlay --flanneld=/etc/passwd",
        ] {
            let error = format!("{:#}", changed(line).unwrap_err());
            assert!(
                error.contains("--flanneld /etc/passwd is no program"),
                "{error}"
            );
        }
    }
}
