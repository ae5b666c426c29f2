//! The eBPF toolchain: a compiler that has its library's source, and bpf-linker.
//!
//! Debian's rustc-web with rust-web-src is preferred where apt offers it: its LLVM comes from the
//! same release, so the linker fits for certain. It is linked into rustup under the name
//! `fairlead-ebpf`. Elsewhere a nightly with rust-src is fetched by rustup. bpf-linker reads the
//! compiler's bitcode, so its LLVM must not be older than the compiler's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::packages::{self, Evidence, Package};
use crate::command::{Run, find};

const LINKED_NAME: &str = "fairlead-ebpf";
const BPF_LINKER_VERSION: &str = "0.13.0";

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

/// An LLVM that this version of bpf-linker can be built with.
#[derive(Debug)]
struct Llvm {
    major: u32,
    prefix: &'static str,
    /// What llvm-sys asks for the prefix.
    variable: &'static str,
    feature: &'static str,
    packages: [Package; 6],
}

macro_rules! llvm {
    ($major:literal) => {
        Llvm {
            major: $major,
            prefix: concat!("/usr/lib/llvm-", $major),
            variable: concat!("LLVM_SYS_", $major, "1_PREFIX"),
            feature: concat!("llvm-", $major),
            packages: [
                llvm!(@package concat!("llvm-", $major, "-dev"), File, concat!("/usr/lib/llvm-", $major, "/bin/llvm-config")),
                llvm!(@package concat!("libclang-", $major, "-dev"), File, concat!("/usr/lib/llvm-", $major, "/lib/libclang.so")),
                llvm!(@package concat!("libpolly-", $major, "-dev"), File, concat!("/usr/lib/llvm-", $major, "/lib/libPolly.a")),
                llvm!(@package "zlib1g-dev", File, "/usr/include/zlib.h"),
                llvm!(@package "libzstd-dev", File, "/usr/include/zstd.h"),
                llvm!(@package "g++", Program, "c++"),
            ],
        }
    };
    (@package $name:expr, $evidence:ident, $path:expr) => {
        Package {
            names: &[$name],
            shown_by: Evidence::$evidence($path),
            purpose: "builds bpf-linker",
        }
    };
}

const LLVMS: [Llvm; 3] = [llvm!(22), llvm!(23), llvm!(21)];

pub fn install() -> Result<()> {
    let toolchain = install_compiler()?;
    install_linker(toolchain)
}

/// Returns the rustup name of a toolchain that can build the object.
fn install_compiler() -> Result<&'static str> {
    if let Some(toolchain) = [LINKED_NAME, "nightly"]
        .into_iter()
        .find(|name| has_source(name))
    {
        return Ok(toolchain);
    }
    if find("apt-get").is_some() && packages::are_offered(DEBIAN_COMPILER) {
        packages::install(DEBIAN_COMPILER)?;
        println!("setup: linking Debian's compiler into rustup as {LINKED_NAME}");
        Run::new("rustup")
            .args(["toolchain", "link", LINKED_NAME, "/usr"])
            .text()?;
        if !has_source(LINKED_NAME) {
            bail!(
                "Debian's rustc has no library source for the toolchain {LINKED_NAME}: is rust-web-src of the same version as rustc-web?"
            );
        }
        return Ok(LINKED_NAME);
    }
    println!(
        "setup: fetching a nightly toolchain with rust-src through rustup (compiles the eBPF object)"
    );
    let component =
        Run::new("rustup").args(["component", "add", "rust-src", "--toolchain", "nightly"]);
    if !component.succeeds() {
        Run::new("rustup")
            .args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"])
            .text()
            .context("no compiler for the eBPF object: apt offers no rustc-web, and rustup cannot fetch a nightly with rust-src")?;
    }
    Ok("nightly")
}

/// True if the toolchain exists and carries the source that `-Z build-std` compiles.
fn has_source(toolchain: &str) -> bool {
    rustc(toolchain, &["--print", "sysroot"]).is_ok_and(|sysroot| {
        Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/core")
            .is_dir()
    })
}

fn rustc(toolchain: &str, arguments: &[&str]) -> Result<String> {
    Run::new("rustup")
        .args(["run", toolchain, "rustc"])
        .args(arguments)
        .variable("RUSTUP_AUTO_INSTALL", "0")
        .text()
}

fn install_linker(toolchain: &str) -> Result<()> {
    if find_linker().is_some_and(|linker| Run::new(linker).args(["--version"]).succeeds()) {
        return Ok(());
    }
    let needed = llvm_major(&rustc(toolchain, &["-vV"])?)
        .with_context(|| format!("rustc of {toolchain} does not tell its LLVM version"))?;
    let llvm = LLVMS
        .iter()
        .filter(|llvm| llvm.major >= needed)
        .find(|llvm| packages::are_offered(&llvm.packages))
        .with_context(|| {
            format!(
                "bpf-linker {BPF_LINKER_VERSION} has to be built with LLVM {needed} or newer, of which no package source \
                 offers one: install a prebuilt bpf-linker from its releases page and run this again"
            )
        })?;
    packages::install(&llvm.packages)?;
    println!(
        "setup: installing bpf-linker {BPF_LINKER_VERSION} (links the eBPF object) with {}; takes a minute or two",
        llvm.prefix
    );
    Run::new("cargo")
        .args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER_VERSION,
            "--locked",
        ])
        .args(["--no-default-features", "--features", llvm.feature])
        .variable("LLVM_PREFIX", llvm.prefix)
        .variable(llvm.variable, llvm.prefix)
        .text()
        .context("cannot install bpf-linker")
        .map(drop)
}

fn llvm_major(version: &str) -> Option<u32> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

fn find_linker() -> Option<PathBuf> {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    find("bpf-linker")
        .or_else(|| Some(cargo_home?.join("bin/bpf-linker")).filter(|linker| linker.is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_is_read_from_rustc() {
        assert_eq!(
            llvm_major("rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n"),
            Some(22)
        );
        assert_eq!(llvm_major("rustc 1.96.0"), None);
    }
}
