//! The eBPF toolchain: a compiler that has its library's source, and bpf-linker.
//!
//! A nightly with rust-src is taken if it is there or rustup can fetch it. Where rustup's own
//! server cannot be reached, Debian's rustc-web with rust-web-src does the same work, linked into
//! rustup under the name `fairlead-ebpf`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::packages::{self, Evidence, Package};
use super::require_root;
use crate::command::{Run, find};

const LINKED_NAME: &str = "fairlead-ebpf";
const BPF_LINKER_VERSION: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";
/// Long enough for a download that makes progress, short enough for a refusing network.
const RUSTUP_PATIENCE: Duration = Duration::from_secs(180);

const DEBIAN_COMPILER: &[Package] = &[
    Package {
        names: &["rustc-web"],
        shown_by: Evidence::File("/var/lib/dpkg/info/rustc-web.list"),
        purpose: "compiles the eBPF object",
    },
    Package {
        names: &["rust-web-src"],
        shown_by: Evidence::File("/var/lib/dpkg/info/rust-web-src.list"),
        purpose: "source of core for the eBPF target",
    },
];

const DEBIAN_LLVM: &[Package] = &[
    Package {
        names: &["llvm-22-dev"],
        shown_by: Evidence::File("/usr/lib/llvm-22/bin/llvm-config"),
        purpose: "builds bpf-linker",
    },
    Package {
        names: &["libclang-22-dev"],
        shown_by: Evidence::File("/usr/lib/llvm-22/lib/libclang.so"),
        purpose: "builds bpf-linker",
    },
    Package {
        names: &["libpolly-22-dev"],
        shown_by: Evidence::File("/usr/lib/llvm-22/lib/libPolly.a"),
        purpose: "builds bpf-linker",
    },
    Package {
        names: &["zlib1g-dev"],
        shown_by: Evidence::File("/usr/include/zlib.h"),
        purpose: "builds bpf-linker",
    },
    Package {
        names: &["libzstd-dev"],
        shown_by: Evidence::File("/usr/include/zstd.h"),
        purpose: "builds bpf-linker",
    },
    Package {
        names: &["g++"],
        shown_by: Evidence::Program("c++"),
        purpose: "builds bpf-linker",
    },
];

enum Source {
    Rustup,
    Debian,
}

pub fn install() -> Result<()> {
    let source = install_compiler()?;
    install_linker(&source)
}

fn install_compiler() -> Result<Source> {
    if has_source(LINKED_NAME) {
        return Ok(Source::Debian);
    }
    if has_source("nightly") {
        return Ok(Source::Rustup);
    }
    println!("setup: asking rustup for a nightly toolchain with rust-src");
    if rustup_nightly() && has_source("nightly") {
        return Ok(Source::Rustup);
    }
    println!("setup: rustup cannot fetch one here; taking Debian's compiler instead");
    if !packages::is_known(DEBIAN_LLVM[0].names[0]) {
        // Lists from before that LLVM name a rustc-web that is too old as well.
        packages::update_lists();
    }
    packages::install(DEBIAN_COMPILER)?;
    Run::new("rustup")
        .args(["toolchain", "link", LINKED_NAME, "/usr"])
        .text()?;
    if !has_source(LINKED_NAME) {
        bail!(
            "Debian's rustc has no library source for the toolchain {LINKED_NAME}: is rust-web-src of the same version as rustc-web?"
        );
    }
    Ok(Source::Debian)
}

/// True if the toolchain exists and carries the source that `-Z build-std` compiles.
fn has_source(toolchain: &str) -> bool {
    Run::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .variable("RUSTUP_AUTO_INSTALL", "0")
        .text()
        .is_ok_and(|sysroot| {
            Path::new(&sysroot)
                .join("lib/rustlib/src/rust/library/core")
                .is_dir()
        })
}

fn rustup_nightly() -> bool {
    let child = Command::new("rustup")
        .args([
            "toolchain",
            "install",
            "nightly",
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ])
        .env("RUSTUP_MAX_RETRIES", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    let start = Instant::now();
    while start.elapsed() < RUSTUP_PATIENCE {
        if let Ok(Some(status)) = child.try_wait() {
            return status.success();
        }
        thread::sleep(Duration::from_millis(100));
    }
    // It has run past its time; its exit code no longer matters.
    drop(child.kill().and_then(|()| child.wait()));
    false
}

fn install_linker(source: &Source) -> Result<()> {
    if find_linker().is_some_and(|linker| Run::new(linker).args(["--version"]).succeeds()) {
        return Ok(());
    }
    let cargo = Run::new("cargo").args([
        "install",
        "bpf-linker",
        "--version",
        BPF_LINKER_VERSION,
        "--locked",
    ]);
    match source {
        Source::Rustup => {
            println!("setup: installing bpf-linker {BPF_LINKER_VERSION} (links the eBPF object); takes a minute or two");
            cargo.text()
        }
        Source::Debian => {
            packages::install(DEBIAN_LLVM)?;
            require_root("setup")?;
            println!("setup: installing bpf-linker {BPF_LINKER_VERSION} (links the eBPF object) against {LLVM}; takes a minute or two");
            cargo
                .args(["--no-default-features", "--features", "llvm-22"])
                .variable("LLVM_PREFIX", LLVM)
                .variable("LLVM_SYS_221_PREFIX", LLVM)
                .text()
        }
    }
    .context("cannot install bpf-linker")?;
    Ok(())
}

fn find_linker() -> Option<PathBuf> {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    find("bpf-linker")
        .or_else(|| Some(cargo_home?.join("bin/bpf-linker")).filter(|linker| linker.is_file()))
}
