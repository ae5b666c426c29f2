//! The object as a user has it: the plain tools load it, its maps have names.

use std::{fs, process::Command};

use ebpf_abi::maps;
use node_agent_maps::{OBJECT, Program};
use tests_testkit::{Bpffs, is_root, skip};

#[test]
fn bpftool_loads_the_object_and_pins_every_program_and_map() {
    if !is_root() {
        return skip("needs root");
    }
    if Command::new("bpftool").arg("version").output().is_err() {
        return skip("needs bpftool");
    }
    let bpffs = Bpffs::new().unwrap();
    let object = std::env::temp_dir().join(format!("fairlead-{}.bpf.o", std::process::id()));
    fs::write(&object, OBJECT).unwrap();
    let (programs, pinned) = (bpffs.path().join("programs"), bpffs.path().join("maps"));
    let output = Command::new("bpftool")
        .args(["prog", "loadall"])
        .args([&object, &programs])
        .arg("pinmaps")
        .arg(&pinned)
        .output()
        .unwrap();
    fs::remove_file(&object).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for program in Program::ALL {
        assert!(
            programs.join(program.name()).exists(),
            "{program} is not there"
        );
    }
    for map in maps::ALL {
        let output = Command::new("bpftool")
            .args(["--json", "map", "show", "pinned"])
            .arg(pinned.join(map))
            .output()
            .unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.contains("\"btf_id\""), "{map} has no BTF: {shown}");
    }
}
