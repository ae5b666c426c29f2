//! Every case of `cases/`: the commands of its transcript print what stands there. `FAIRLEAD_UPDATE=1` writes what they
//! print into the files; `FAIRLEAD_REFERENCE=PATH` runs them against the kube-apiserver at PATH instead of ours.

use std::path::Path;

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use tests_kubectl::Server;
use tests_kubectl::case::{self, Case, Step};
use tests_kubectl::reference::{self, KubeApiserver};
use tests_kubectl::transcript::Shell;

/// How many commands the cases hold together, at least.
const COMMANDS: usize = 120;

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    match reference::given() {
        Some(path) => println!("cases: against the reference {}", path.display()),
        None => println!(
            "cases: against our server only: no reference was given (`cargo xtask test --suite kubectl --reference PATH` takes a kube-apiserver; no package of one is known to the setup)"
        ),
    }
    let paths = case::all()?;
    let mut calls = 0;
    let mut trials = Vec::new();
    for path in paths {
        calls += Case::read(&path)?.calls();
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let test = name.clone();
        trials.push(Trial::test(name, move || {
            let runtime = tokio::runtime::Runtime::new()?;
            runtime
                .block_on(run(&path, &test))
                .map_err(|error| Failed::from(format!("{error:#}")))
        }));
    }
    println!(
        "cases: {} files with {calls} calls of kubectl and helm",
        trials.len()
    );
    trials.push(Trial::test(
        format!("there_are_{COMMANDS}_commands"),
        move || {
            if calls < COMMANDS {
                return Err(format!("the cases hold only {calls} commands").into());
            }
            Ok(())
        },
    ));
    libtest_mimic::run(&arguments, trials).exit()
}

async fn run(path: &Path, name: &str) -> Result<()> {
    let mut case = Case::read(path)?;
    let found = match reference::given() {
        Some(program) => {
            let server = KubeApiserver::start(&program).await?;
            play(&case, &server.kubeconfig()).await?
        }
        None => {
            let server = Server::start_for(name).await?;
            play(&case, &server.kubeconfig()).await?
        }
    };
    if std::env::var_os("FAIRLEAD_UPDATE").is_some() {
        case.steps = found;
        std::fs::write(path, case.render()?)?;
        return Ok(());
    }
    let pairs = case.steps.iter().zip(&found);
    let wrong: Vec<String> = pairs
        .filter(|(want, found)| want != found)
        .map(|(want, found)| format!("--- expected\n{}--- found\n{}", want.render(), found.output))
        .collect();
    ensure!(
        wrong.is_empty(),
        "{}:\n{}",
        path.display(),
        wrong.join("\n")
    );
    Ok(())
}

/// What every command prints, each after the one before it, whatever that printed.
async fn play(case: &Case, kubeconfig: &str) -> Result<Vec<Step>> {
    let shell = Shell::new(case, kubeconfig)?;
    let mut steps = Vec::new();
    for Step { command, .. } in &case.steps {
        steps.push(Step {
            command: command.clone(),
            output: shell.run(command).await?,
        });
    }
    Ok(steps)
}
