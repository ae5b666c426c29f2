//! Where the cluster's state is, and the commands that back it up, restore it and move it.

mod commands;
mod flags;
mod place;
mod socket;

pub use commands::{StoreCommand, run};
pub use flags::StoreFlags;
pub use place::Place;
pub use socket::BackupSocket;
