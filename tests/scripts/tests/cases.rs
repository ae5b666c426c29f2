//! Every case of `cases/`, in every order of arrival, on a tree of maps.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use node_agent_model::Snapshot;
use tests_scripts::{Arrival, Script, run};

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn the_maps_hold_what_the_objects_say_in_any_order_of_arrival() {
    let update = std::env::var_os("FAIRLEAD_UPDATE").is_some();
    for path in cases() {
        let mut script = Script::read(&path).unwrap();
        if update {
            let dumps = run(&script, Arrival::ALL[0], &mut Snapshot::default());
            let dumps = dumps.unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
            for (number, step) in &mut script.steps {
                step.maps.clone_from(&dumps[number]);
            }
            std::fs::write(&path, script.render()).unwrap();
        }
        for arrival in Arrival::ALL {
            let dumps = run(&script, arrival, &mut Snapshot::default())
                .unwrap_or_else(|error| panic!("{} {arrival:?}: {error:#}", path.display()));
            for (number, step) in &script.steps {
                let (found, expected) = (&dumps[number], &step.maps);
                assert!(
                    found == expected,
                    "{} {arrival:?} step {number}: expected\n{expected}\nfound\n{found}",
                    path.display()
                );
            }
        }
    }
}
