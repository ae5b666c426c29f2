//! `fairlead`: what the dataplane of this node holds and does, read from the pinned maps, whether an agent runs or not.
#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    process::ExitCode,
};

fn main() -> ExitCode {
    let mut out = io::stdout().lock();
    let result = node_agent_cli::run(std::env::args_os(), &mut out);
    match result.and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast::<clap::Error>() {
            // Usage and help, which clap prints where they belong.
            Ok(usage) => usage.exit(),
            Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("fairlead: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

/// Whoever read the output has had enough, as `head` has.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
