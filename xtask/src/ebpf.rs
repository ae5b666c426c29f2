//! `build-ebpf`: the object, where a user finds it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use cargo_metadata::Message;

use crate::command::Run;
use crate::workspace;

const OBJECT: &str = "fairlead.bpf.o";

pub fn run() -> Result<()> {
    let object = build()?;
    let destination = workspace::target().join("ebpf").join(OBJECT);
    fs::create_dir_all(destination.parent().expect("target/ebpf has a parent"))?;
    fs::copy(&object, &destination).with_context(|| {
        format!(
            "cannot copy {} to {}",
            object.display(),
            destination.display()
        )
    })?;
    println!("{}", destination.display());
    println!(
        "load it by hand (as root, with bpffs mounted on /sys/fs/bpf):\n  \
         bpftool prog loadall {} /sys/fs/bpf/fairlead-test pinmaps /sys/fs/bpf/fairlead-test/maps",
        destination.display()
    );
    Ok(())
}

/// Builds node-agent-maps, whose build script compiles the programs, and returns the object's path.
fn build() -> Result<PathBuf> {
    let output = Run::new("cargo")
        .args([
            "build",
            "-p",
            "node-agent-maps",
            "--message-format=json-render-diagnostics",
        ])
        .directory(workspace::root())
        .caught_stdout()?;
    Message::parse_stream(output.as_slice())
        .filter_map(Result::ok)
        .filter_map(|message| match message {
            Message::BuildScriptExecuted(script)
                if script.package_id.repr.contains("node-agent/maps") =>
            {
                Some(script.out_dir.into_std_path_buf().join(OBJECT))
            }
            _ => None,
        })
        .find(|object| object.is_file())
        .with_context(|| format!("the build script of node-agent-maps left no {OBJECT}"))
}
