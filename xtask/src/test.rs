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
    #[command(flatten)]
    given: Given,
    /// Run the cases of the kubectl suite against this kube-apiserver instead of ours, to prove them
    #[arg(long, value_name = "PATH")]
    reference: Option<PathBuf>,
}

/// Programs of others, which then stand beside ours.
#[derive(Debug, Args)]
struct Given {
    /// The etcd below a kube-apiserver, a program called etcd; without it, the one in PATH
    #[arg(long, value_name = "PATH")]
    etcd: Option<PathBuf>,
    /// A flanneld, for the tests of mixed clusters; without it the kernel's device stands for it
    #[arg(long, value_name = "PATH")]
    flanneld: Option<PathBuf>,
    /// A kube-apiserver, which the agents of suite netns ask in the place of ours
    #[arg(long, value_name = "PATH")]
    kube_apiserver: Option<PathBuf>,
    /// A kube-proxy, for the test of the change from it; without it, rules in its shape stand for it
    #[arg(long, value_name = "PATH")]
    kube_proxy: Option<PathBuf>,
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

/// Names a kube-apiserver to tests.
const REFERENCE: &str = "FAIRLEAD_REFERENCE";

/// Variables of the environment of tests.
type Variables<'a> = &'a [(&'a str, OsString)];

pub fn run(options: &Options) -> Result<()> {
    let given = options.given.variables()?;
    setup::require_root("test")?;
    setup::run()?;
    if let Some(reference) = &options.reference {
        return prove(reference, &given);
    }
    let wanted = |suite: &Suite| options.suites.is_empty() || options.suites.contains(suite);
    let mut built = Built::default();
    let mut total = Tally::default();
    for suite in Suite::value_variants().iter().filter(|suite| wanted(suite)) {
        let start = Instant::now();
        println!("=== {suite:?}");
        let tally = suite.run(&mut built, &given)?;
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
    /// `given`: programs of others, for the agent's tests.
    fn run(self, built: &mut Built, given: Variables) -> Result<Tally> {
        match self {
            Suite::Check => one(&["xtask", "check"]),
            Suite::Unit => {
                let unit = |package: &str| {
                    !NETNS.contains(&package) && package != KUBECTL && package != E2E
                };
                Ok(built.run(unit, &[])? + documentation()?)
            }
            Suite::Netns => built.run(|package| NETNS.contains(&package), given),
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

impl Given {
    /// As the tests are told of them.
    fn variables(&self) -> Result<Vec<(&'static str, OsString)>> {
        let mut variables = Vec::new();
        for (flag, name, path) in [
            ("--flanneld", "FLANNELD", &self.flanneld),
            ("--kube-apiserver", REFERENCE, &self.kube_apiserver),
            ("--kube-proxy", "KUBE_PROXY", &self.kube_proxy),
        ] {
            if let Some(path) = path {
                variables.push((name, program::named(flag, path)?.into()));
            }
        }
        if let Some(etcd) = &self.etcd {
            variables.push(("PATH", path_with(etcd)?));
        }
        Ok(variables)
    }
}

/// `PATH` with this etcd in front.
fn path_with(etcd: &Path) -> Result<OsString> {
    let etcd = program::named("--etcd", etcd)?;
    let (Some(folder), Some(name)) = (etcd.parent(), etcd.file_name()) else {
        bail!("--etcd {} is no program", etcd.display());
    };
    if name != "etcd" {
        bail!("--etcd {}: the program must be called etcd", etcd.display());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path);
    Ok(std::env::join_paths(
        [folder.to_owned()].into_iter().chain(folders),
    )?)
}

/// Runs the cases of kubectl against a kube-apiserver over an etcd.
fn prove(reference: &Path, given: Variables) -> Result<()> {
    let reference = program::named("--reference", reference)?;
    let mut variables = given.to_vec();
    variables.push((REFERENCE, reference.into()));
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
