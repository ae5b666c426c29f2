//! The commands of `fairlead`. Each reads the pinned maps into a report, and a report is written as a table, as JSON or
//! as YAML. Nothing needs an agent; nothing but `cleanup` changes anything (`bench-map` makes maps of its own, and
//! `overlay probe` sends packets).
#![forbid(unsafe_code)]

mod args;
mod backend;
mod bench_map;
mod cleanup;
mod conntrack;
mod drops;
mod filter;
mod map;
mod output;
mod overlay;
mod service;
mod status;
mod trace;
mod view;
mod words;

use std::{ffi::OsString, io::Write};

use anyhow::{Context, Result, bail};
use clap::Parser;
use node_agent_maps::Maps;

use crate::args::{Args, Command, ListCommand, OverlayCommand, ServiceCommand};

/// Runs one command; `args` begin with the program's name.
///
/// # Errors
///
/// [`clap::Error`] for wrong usage and for help; otherwise what could not be read, with its causes.
pub fn run(args: impl IntoIterator<Item = OsString>, out: &mut dyn Write) -> Result<()> {
    let args = Args::try_parse_from(args)?;
    let format = args.output;
    let maps = || {
        Maps::open_read_only(&args.pin_dir)
            .with_context(|| format!("reading the maps in {}", args.pin_dir.display()))
    };
    match &args.command {
        Command::Status { agent } => {
            output::write(&status::read(&maps()?, &args.pin_dir, *agent)?, format, out)
        }
        Command::Service(ServiceCommand::List { filter }) => {
            output::write(&service::list(&maps()?, filter)?, format, out)
        }
        Command::Service(ServiceCommand::Get { what }) => {
            output::write(&service::get(&maps()?, what)?, format, out)
        }
        Command::Backend(ListCommand::List { filter }) => {
            output::write(&backend::list(&maps()?, filter)?, format, out)
        }
        Command::Conntrack(ListCommand::List { filter }) => {
            output::write(&conntrack::list(&maps()?, filter)?, format, out)
        }
        Command::Drops { all } => output::write(&drops::read(&maps()?, *all)?, format, out),
        Command::Overlay(OverlayCommand::Peers) => {
            output::write(&overlay::peers(&maps()?)?, format, out)
        }
        Command::Overlay(OverlayCommand::Routes) => {
            output::write(&overlay::routes(&maps()?)?, format, out)
        }
        Command::Overlay(OverlayCommand::Mtu) => {
            output::write(&overlay::mtu(&maps()?)?, format, out)
        }
        Command::Overlay(OverlayCommand::Probe(options)) => {
            let probe = overlay::probe(&maps()?, options)?;
            output::write(&probe, format, out)?;
            if !probe.reached {
                bail!("{} is not reached through the overlay", probe.node);
            }
            Ok(())
        }
        Command::Trace(flow) => {
            output::write(&trace::run(&maps()?, &args.pin_dir, flow)?, format, out)
        }
        Command::Cleanup(options) => {
            output::write(&cleanup::run(&args.pin_dir, options)?, format, out)
        }
        Command::BenchMap { entries } => output::write(&bench_map::run(*entries)?, format, out),
        Command::Maps => output::write(&map::read(&maps()?)?, format, out),
    }
}
