//! Every case of `cases/`: the commands of its transcript print what stands there. `FAIRLEAD_UPDATE=1` writes what they
//! print into the files; `FAIRLEAD_REFERENCE=PATH` runs them against the kube-apiserver at PATH instead of ours.

use std::path::Path;

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use tests_kubectl::Server;
use tests_kubectl::case::{self, Case, Otherwise, Step, UNEXPLAINED};
use tests_kubectl::reference::KubeApiserver;
use tests_kubectl::transcript::Shell;

/// How many commands the cases hold together, at least.
const COMMANDS: usize = 120;

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    match tests_reference::given() {
        Some(path) => println!("cases: against the reference {}", path.display()),
        None => println!(
            "cases: against our server only: no reference was given (`cargo xtask test --suite kubectl --reference PATH` takes a kube-apiserver; no package of one is known to the setup)"
        ),
    }
    let paths = case::all()?;
    let mut calls = 0;
    let mut otherwise = Vec::new();
    let mut trials = Vec::new();
    for path in paths {
        let case = Case::read(&path)?;
        calls += case.calls();
        otherwise.extend(case.steps.into_iter().filter_map(|step| step.otherwise));
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
        "cases: {} files with {calls} calls of kubectl and helm; {} commands are known to be answered otherwise by a kube-apiserver",
        trials.len(),
        otherwise.len()
    );
    trials.push(Trial::test("each_difference_has_a_reason", move || {
        let of = |difference: &Otherwise| [UNEXPLAINED, ""].contains(&difference.why.as_str());
        match otherwise.iter().find(|difference| of(difference)) {
            Some(without) => Err(format!("why this?\n{}", without.output).into()),
            None => Ok(()),
        }
    }));
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
    let reference = tests_reference::given();
    let found = match &reference {
        Some(program) => {
            let server = KubeApiserver::start(program).await?;
            play(&case, &server.kubeconfig()).await?
        }
        None => {
            let server = Server::start_for(name).await?;
            play(&case, &server.kubeconfig()).await?
        }
    };
    let of_reference = reference.is_some();
    if std::env::var_os("FAIRLEAD_UPDATE").is_some() {
        for (step, printed) in case.steps.iter_mut().zip(found) {
            step.update(printed, of_reference);
        }
        std::fs::write(path, case.render()?)?;
        return Ok(());
    }
    let wrong: Vec<String> = (case.steps.iter().zip(&found))
        .filter(|(step, found)| step.expected(of_reference) != *found)
        .map(|(step, found)| {
            let Step { command, .. } = step;
            let expected = step.expected(of_reference);
            format!("--- expected\n$ {command}\n{expected}--- found\n{found}")
        })
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
async fn play(case: &Case, kubeconfig: &str) -> Result<Vec<String>> {
    let shell = Shell::new(case, kubeconfig)?;
    let mut printed = Vec::new();
    for Step { command, .. } in &case.steps {
        printed.push(shell.run(command).await?);
    }
    Ok(printed)
}
