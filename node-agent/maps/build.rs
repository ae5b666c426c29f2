//! Builds the eBPF object from `ebpf/programs` and leaves it at `OUT_DIR/fairlead.bpf.o`.
//!
//! `FAIRLEAD_BPF_OBJECT=FILE` takes a file that was built before in its place, for machines without the toolchain.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

const SETUP: &str =
    "the eBPF object needs bpf-linker and a toolchain with rust-src: run cargo xtask setup";

/// Toolchains by the name that rustup knows them by, best first. `fairlead-ebpf` is what `cargo xtask setup` links.
const TOOLCHAINS: [&str; 2] = ["fairlead-ebpf", "nightly"];

const PREBUILT: &str = "FAIRLEAD_BPF_OBJECT";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("../..");
    // Nothing else: a change in user space alone must not rebuild the object.
    for path in ["ebpf/abi", "ebpf/packet", "ebpf/programs", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    let object = PathBuf::from(variable("OUT_DIR")?).join("fairlead.bpf.o");
    println!("cargo::rerun-if-env-changed={PREBUILT}");
    if let Ok(file) = env::var(PREBUILT) {
        println!("cargo::rerun-if-changed={file}");
        return copy(Path::new(&file), &object);
    }

    let toolchain = TOOLCHAINS
        .into_iter()
        .find(|name| has_core_source(name))
        .ok_or(SETUP)?;
    if !has_linker() {
        return Err(SETUP.into());
    }

    let target_dir = target_dir(&object);
    let target = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let status = cargo(toolchain, &workspace)
        .args([
            "build",
            "--release",
            "--package",
            "ebpf-programs",
            "-Z",
            "build-std=core",
        ])
        .args(["--target", target, "--target-dir"])
        .arg(&target_dir)
        .args(features())
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            rustflags(&variable("CARGO_CFG_TARGET_ARCH")?),
        )
        .status()
        .map_err(|error| format!("rustup run {toolchain} cargo: {error}"))?;
    if !status.success() {
        return Err("the eBPF object did not build: the compiler's messages are above".into());
    }

    copy(
        &target_dir.join(target).join("release/fairlead-bpf"),
        &object,
    )
}

/// What `ebpf/programs` is built with, by our own features.
fn features() -> &'static [&'static str] {
    match env::var_os("CARGO_FEATURE_EBPF_LOG") {
        Some(_) => &["--features", "log"],
        None => &[],
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to)
        .map_err(|error| format!("copy {} to {}: {error}", from.display(), to.display()))?;
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}

/// Full debug info and `--btf`: bpf-linker makes the BTF of the maps from it.
fn rustflags(arch: &str) -> String {
    let arch = format!("--cfg=bpf_target_arch=\"{arch}\"");
    ["-Cdebuginfo=2", "-Clink-arg=--btf", &arch].join("\x1f")
}

fn cargo(toolchain: &str, workspace: &Path) -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", toolchain, "cargo"])
        .current_dir(workspace);
    // `-Z build-std` is refused on a compiler that is not a nightly without it.
    command.env("RUSTC_BOOTSTRAP", "1");
    // What the outer cargo set for its own compiler (or clippy's) does not hold for this one.
    for name in [
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(name);
    }
    command
}

/// One directory for all profiles, beside theirs, so that `core` is compiled once.
fn target_dir(object: &Path) -> PathBuf {
    let root = object
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").exists());
    root.unwrap_or(object.parent().unwrap_or(object))
        .join("bpf")
}

fn has_core_source(toolchain: &str) -> bool {
    let output = Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .env_remove("RUSTUP_TOOLCHAIN")
        // A toolchain that is not there is an answer, not a request to download it.
        .env("RUSTUP_AUTO_INSTALL", "0")
        .output();
    let Ok(output) = output else { return false };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    output.status.success()
        && Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .exists()
}

fn has_linker() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join("bpf-linker").is_file())
}
