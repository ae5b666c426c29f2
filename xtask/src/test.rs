//! `test`: every suite in order, its output as it comes, and one closing line that counts them all.

mod build;
mod tally;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::command::command;
use crate::{program, setup, workspace};
use build::{EVERYTHING, Executable};
use tally::Tally;

#[derive(Debug, Args)]
pub struct Options {
    /// Run only these suites, in the order below
    #[arg(long = "suite", value_enum)]
    suites: Vec<Suite>,
    /// A flanneld, for the tests of mixed clusters; without it the kernel's device stands for it
    #[arg(long, value_name = "PATH")]
    flanneld: Option<PathBuf>,
    /// Run the cases of the kubectl suite against this kube-apiserver instead of ours, to prove them
    #[arg(long, value_name = "PATH")]
    reference: Option<PathBuf>,
    /// The etcd below the reference, a program called etcd; without it, the one in PATH
    #[arg(long, value_name = "PATH", requires = "reference")]
    etcd: Option<PathBuf>,
}

/// In the order in which they run: the cheap and general first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Formatting, clippy and the architecture's rules
    Check,
    /// The crates' own tests
    Unit,
    /// Real programs and real packets in network namespaces
    Netns,
    /// The real kubectl and helm against the API server
    Kubectl,
    /// Whole clusters
    E2e,
    /// `cargo xtask up --once`
    Up,
}

/// Variables of the environment of tests.
type Variables<'a> = &'a [(&'a str, OsString)];

pub fn run(options: &Options) -> Result<()> {
    let flanneld = options.flanneld.as_deref();
    let flanneld = flanneld.map(|path| program::named("--flanneld", path));
    let flanneld = flanneld.transpose()?;
    setup::require_root("test")?;
    setup::run()?;
    if let Some(reference) = &options.reference {
        return prove(reference, options.etcd.as_deref());
    }
    let wanted = |suite: &Suite| options.suites.is_empty() || options.suites.contains(suite);
    let mut built = Built::default();
    let mut total = Tally::default();
    for suite in Suite::value_variants().iter().filter(|suite| wanted(suite)) {
        let start = Instant::now();
        println!("=== {suite:?}");
        let tally = suite.run(&mut built, flanneld.as_deref())?;
        println!(
            "=== {suite:?}: {} passed, {} failed in {:.0} s",
            tally.passed,
            tally.failed,
            start.elapsed().as_secs_f64()
        );
        total.passed += tally.passed;
        total.failed += tally.failed;
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        bail!("{} tests failed", total.failed);
    }
    if total.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// What is tested, built when the first suite asks for it.
#[derive(Default)]
struct Built(Option<Vec<Executable>>);

impl Built {
    fn executables(&mut self) -> Result<&[Executable]> {
        Ok(match &mut self.0 {
            Some(executables) => executables,
            none => none.insert(build::build()?),
        })
    }

    /// Runs the tests of these packages.
    fn run(&mut self, wanted: impl Fn(&str) -> bool, variables: Variables) -> Result<Tally> {
        let mut tally = Tally::default();
        let executables = self.executables()?.iter();
        for executable in executables.filter(|executable| wanted(&executable.package)) {
            tally += executable.run(variables)?;
        }
        Ok(tally)
    }
}

/// The packages whose tests are suites of their own.
const NETNS: &[&str] = &["tests-netns", "tests-agent"];
const KUBECTL: &str = "tests-kubectl";
const E2E: &str = "tests-e2e";

impl Suite {
    /// `flanneld`: the real one, for mixed clusters.
    fn run(self, built: &mut Built, flanneld: Option<&Path>) -> Result<Tally> {
        match self {
            Suite::Check => one(&["xtask", "check"]),
            Suite::Unit => {
                let unit = |package: &str| {
                    !NETNS.contains(&package) && package != KUBECTL && package != E2E
                };
                Ok(built.run(unit, &[])? + documentation()?)
            }
            Suite::Netns => {
                let flanneld = flanneld.map(|path| ("FLANNELD", path.into()));
                built.run(|package| NETNS.contains(&package), flanneld.as_slice())
            }
            Suite::Kubectl => built.run(|package| package == KUBECTL, &[]),
            Suite::E2e => built.run(|package| package == E2E, &[]),
            Suite::Up => {
                built.executables()?;
                one(&["xtask", "up", "--once", "--no-build"])
            }
        }
    }
}

/// The tests in the documentation.
fn documentation() -> Result<Tally> {
    let mut cargo = command("cargo");
    cargo.args(["test", "--quiet", "--doc"]).args(EVERYTHING);
    tally::of(cargo.current_dir(workspace::root()))
}

/// Counts a command of ours as one test.
fn one(arguments: &[&str]) -> Result<Tally> {
    let status = command("cargo")
        .args(arguments)
        .current_dir(workspace::root())
        .status()
        .with_context(|| format!("cannot start cargo {}", arguments.join(" ")))?;
    let passed = u64::from(status.success());
    Ok(Tally {
        passed,
        failed: 1 - passed,
    })
}

/// Runs the cases of kubectl against a kube-apiserver over an etcd.
fn prove(reference: &Path, etcd: Option<&Path>) -> Result<()> {
    let reference = program::named("--reference", reference)?;
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(etcd) = etcd {
        let etcd = program::named("--etcd", etcd)?;
        let (Some(folder), Some(name)) = (etcd.parent(), etcd.file_name()) else {
            bail!("--etcd {} is no program", etcd.display());
        };
        if name != "etcd" {
            bail!("--etcd {}: the program must be called etcd", etcd.display());
        }
        let folders = std::env::split_paths(&path);
        path = std::env::join_paths([folder.to_owned()].into_iter().chain(folders))?;
    }
    let variables = [("FAIRLEAD_REFERENCE", reference.into()), ("PATH", path)];
    let mut tally = Tally::default();
    let built = build::build()?;
    let cases = |own: &&Executable| own.package == KUBECTL && own.target == "--test=cases";
    for executable in built.iter().filter(cases) {
        tally += executable.run(&variables)?;
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} cases differ from the reference", tally.failed);
    }
    Ok(())
}

/// The tests of the clients of the API server, with these variables of the environment.
pub fn clients(variables: Variables) -> Result<Tally> {
    Built::default().run(|package| package == KUBECTL, variables)
}
