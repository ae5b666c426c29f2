//! Kubernetes watch streams become changes of the model. With the kubelet, the only agent code that knows Kubernetes'
//! types.
//!
//! Level-triggered: each stream lists, then watches, and lists again on any doubt; what a new list no longer holds is
//! removed then. Nothing is ever removed because of what was not heard.
#![forbid(unsafe_code)]

mod file;
mod file_rules;
mod kind;
mod service;
mod stream;

pub use file::{FileError, Objects, run_file, with_causes};
pub use kind::{Kind, Reflected};
pub use service::{ALGORITHM, SHARES};
pub use stream::{Message, SOURCES, Source, run};
