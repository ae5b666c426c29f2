//! The project's commands: `cargo xtask NAME`. Each prints what it does and works from a clean clone.
#![forbid(unsafe_code)]

mod bench;
mod check;
mod codegen;
mod command;
mod coverage;
mod ebpf;
mod fuzz;
mod program;
mod setup;
mod test;
mod up;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Fairlead's development commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what is missing: packages, the eBPF toolchain, bpf-linker, kubectl, the Python client
    Setup,
    /// Build the eBPF object to target/ebpf/fairlead.bpf.o
    BuildEbpf,
    /// Formatting, clippy, the rules of ARCHITECTURE.md; needs no root
    Check,
    /// Write the tables of the API's types from what Kubernetes publishes; --check only compares
    Codegen(codegen::Options),
    /// Write docs/api-coverage.md from what the tests of clients ask for; --check only compares
    ApiCoverage(coverage::Options),
    /// Everything: check, unit tests, real-kernel tests, kubectl, a whole cluster; needs root
    Test(test::Options),
    /// Start a cluster of several nodes on this machine, prove its traffic, stay until Ctrl-C
    Up(up::Options),
    /// Remove a detached or crashed cluster
    Down,
    /// Run something where a node is
    #[command(subcommand)]
    Node(up::NodeCommand),
    /// Look for inputs that break what reads foreign bytes: every target of tests/fuzz, or those named
    Fuzz(fuzz::Options),
    /// Run a benchmark of tests/bench, or tests/api-bench: `cargo xtask bench NAME [--json FILE]`
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Setup => setup::run(),
        Command::BuildEbpf => ebpf::run(),
        Command::Check => check::run(),
        Command::Codegen(options) => codegen::run(&options),
        Command::ApiCoverage(options) => coverage::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Up(options) => up::run(&options),
        Command::Down => up::down(),
        Command::Node(command) => up::node(&command),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Bench(options) => bench::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
