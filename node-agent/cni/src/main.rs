//! `fairlead-cni`: called by the container runtime, once for each command of CNI.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut input);
    let variable = |name: &str| std::env::var(name).ok();
    let (output, code) = match read {
        Ok(_) => node_agent_cni::run(&variable, &input),
        Err(error) => node_agent_cni::CniError::reading(&error).printed(None),
    };
    // A runtime that does not listen any more has no use for the answer.
    let _ = std::io::stdout().lock().write_all(output.as_bytes());
    code
}
