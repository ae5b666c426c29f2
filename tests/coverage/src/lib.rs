//! Which test asks the API server for what: a record that tests leave behind when one is wanted, and the page that is
//! made of it.

#![forbid(unsafe_code)]

pub mod cell;
pub mod page;
pub mod record;

pub use record::record;
