//! The CNI plugin `fairlead-cni` and the agent's side of it.
//!
//! The plugin says what CNI says: it reads the environment and the network configuration, asks the agent over a UNIX
//! socket, and prints the result in the version of the specification that the configuration names. The agent does the
//! rest, with the addresses and links that it has for all pods. The pod's network namespace travels as a descriptor, so
//! the runtime's path need mean nothing in the agent's own mount namespace.
//!
//! Source: <https://www.cni.dev/docs/spec/>, versions 0.3.1, 0.4.0, 1.0.0 and 1.1.0.
#![forbid(unsafe_code)]

mod attachments;
mod config;
mod environment;
mod error;
mod install;
mod plugin;
mod protocol;
mod result;
mod server;
mod version;

pub use attachments::Attachments;
pub use config::{BandwidthLimits, NetConf, PortMapping, PrevResult};
pub use environment::{Command, Environment};
pub use error::{CniError, Code};
pub use install::{InstallError, PLUGIN, install, installed_files};
pub use plugin::run;
pub use protocol::{Attachment, DEFAULT_SOCKET, Done, Reply, Request, Wanted, Wired, ask};
pub use server::serve;
pub use version::Version;
