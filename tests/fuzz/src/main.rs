//! The targets under libFuzzer, one a process: `FUZZ_TARGET` names it. `FUZZ_SEEDS` is a directory for its seeds;
//! `FUZZ_LIST` prints the names and nothing else.
// What libFuzzer calls is exported by name, so the crate cannot forbid what the macro below needs.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tests_fuzz::Target;

static TARGET: OnceLock<&Target> = OnceLock::new();

fuzz_target!(
    init: {
        if std::env::var_os("FUZZ_LIST").is_some() {
            tests_fuzz::ALL.iter().for_each(|target| println!("{}", target.name));
            std::process::exit(0);
        }
        let target = TARGET.get_or_init(target);
        if let Some(directory) = std::env::var_os("FUZZ_SEEDS") {
            write_seeds(target, Path::new(&directory));
        }
    },
    |data: &[u8]| (TARGET.get_or_init(target).run)(data)
);

fn target() -> &'static Target {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    tests_fuzz::find(&name).unwrap_or_else(|| {
        let names: Vec<&str> = tests_fuzz::ALL.iter().map(|target| target.name).collect();
        panic!(
            "FUZZ_TARGET is {name:?}: choose one of {}",
            names.join(", ")
        )
    })
}

fn write_seeds(target: &Target, directory: &Path) {
    for (number, seed) in (target.seeds)().into_iter().enumerate() {
        let path = directory.join(format!("seed{number}"));
        std::fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
