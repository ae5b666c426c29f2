//! The same cases on the kernel's own maps, one after the other on the same ones.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use ebpf_abi::maps;
use node_agent_maps::{Dataplane, Options};
use tests_scripts::{Arrival, Script, run};
use tests_testkit::{Bpffs, is_root, skip};

#[test]
fn the_kernels_maps_hold_the_same() {
    if !is_root() {
        skip("maps need root");
        return;
    }
    let bpffs = Bpffs::new().unwrap();
    // Small ones, since every step reads all of them back; a Maglev table has 1021 slots.
    let max_entries = [
        (maps::SLOT, 4096),
        (maps::BACKEND4, 1024),
        (maps::BACKEND6, 1024),
        (maps::PEER, 1024),
    ];
    let options = Options {
        max_entries: max_entries.into(),
        ..Options::default()
    };
    let dataplane = Dataplane::open(&bpffs.pin_dir(), &options).unwrap();
    let mut maps = dataplane.maps().clone();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut cases = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let script = Script::read(&path).unwrap();
        for arrival in Arrival::ALL {
            let dumps = run(&script, arrival, &mut maps)
                .unwrap_or_else(|error| panic!("{} {arrival:?}: {error:#}", path.display()));
            for (number, step) in &script.steps {
                assert_eq!(
                    dumps[number],
                    step.maps,
                    "{} {arrival:?} step {number}",
                    path.display()
                );
            }
        }
        cases += 1;
    }
    assert!(cases > 0);
}
